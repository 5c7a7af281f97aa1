package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// tripHook counts round trips of pipelines and how many scripts went in each. While it is closed, none leaves.
type tripHook struct {
	gate    sync.RWMutex
	trips   atomic.Int64
	scripts atomic.Int64
	largest atomic.Int64
}

func (*tripHook) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*tripHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h *tripHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.trips.Add(1)
		h.scripts.Add(int64(len(cmds)))
		h.largest.Store(max(h.largest.Load(), int64(len(cmds))))
		h.gate.RLock()
		defer h.gate.RUnlock()
		return next(ctx, cmds)
	}
}

// shut lets no round trip leave until open is called, or the test has failed: what waits would hold its end for ever.
func (h *tripHook) shut(t *testing.T) (open func()) {
	h.gate.Lock()
	open = sync.OnceFunc(h.gate.Unlock)
	t.Cleanup(open)
	return open
}

// startPipelines gives pipelines to a server and the hook that watches them.
func startPipelines(t *testing.T, b backend) (*pipelines, *tripHook) {
	t.Helper()
	rdb, hook := b.open(t).(*redis.Client), &tripHook{}
	rdb.AddHook(hook)
	p := newPipelines(rdb)
	t.Cleanup(func() { p.stop(); p.work.Wait() })
	return p, hook
}

func TestScriptsThatWaitShareARoundTrip(t *testing.T) {
	p, hook := startPipelines(t, realRedis(t))
	s, room := startService(t, p, Options{}), uniqueRoom(t)
	m := mustJoin(t, s, room, "ann", "a", "{}")
	trips, scripts := hook.trips.Load(), hook.scripts.Load()
	// More than the workers can take before the gate: up to a whole batch each. All others wait behind them.
	const calls = (pipelineWorkers + 2) * pipelineBatch
	open := hook.shut(t)
	var work sync.WaitGroup
	for range calls {
		work.Go(func() {
			m := m
			if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, 5*time.Second, "the workers are busy", func() bool { return hook.trips.Load()-trips == pipelineWorkers })
	eventually(t, 5*time.Second, "the rest waits", func() bool { return len(p.lines[p.single].calls) == pipelineBatch })
	open()
	work.Wait()
	if n := hook.trips.Load() - trips; n > calls/8 {
		t.Errorf("%d heartbeats took %d round trips", calls, n)
	}
	if n := hook.scripts.Load() - scripts; n != calls {
		t.Errorf("%d scripts were sent", n)
	}
	if n := hook.largest.Load(); n > pipelineBatch {
		t.Errorf("%d scripts in one round trip", n)
	}
}

func TestAScriptThatWasGivenUpBeforeItsTurnIsNotSent(t *testing.T) {
	p, hook := startPipelines(t, miniRedis(t))
	l, err := p.lineFor(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	open := hook.shut(t)
	var work sync.WaitGroup
	for busy := range int64(pipelineWorkers) { // one by one, else a worker takes several
		work.Go(func() { _ = l.process(t.Context(), scriptCmd(t.Context(), "eval", "return 1", []string{"key"}, nil)) })
		eventually(t, 5*time.Second, "one more worker is busy", func() bool { return hook.trips.Load() == busy+1 })
	}
	ctx, giveUp := context.WithCancel(t.Context())
	work.Go(func() {
		if err := p.EvalSha(ctx, "any", []string{"key"}).Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
	eventually(t, 5*time.Second, "the call waits", func() bool { return len(l.calls) == 1 })
	giveUp()
	eventually(t, 5*time.Second, "the call is given up", func() bool { return len(l.calls) == 1 && ctx.Err() != nil })
	work.Go(func() { _ = l.process(t.Context(), scriptCmd(t.Context(), "eval", "return 2", []string{"key"}, nil)) })
	eventually(t, 5*time.Second, "another one waits", func() bool { return len(l.calls) == 2 })
	open()
	work.Wait()
	if n := hook.scripts.Load(); n != pipelineWorkers+1 {
		t.Errorf("%d scripts were sent, want %d", n, pipelineWorkers+1)
	}
}

// TestCallsToAHungRedisDoNotPileUp: the first one waits for its time, those after it are refused at once, and with the
// first answer all is well again.
func TestCallsToAHungRedisDoNotPileUp(t *testing.T) {
	server := spawnRedis(t)
	p, _ := startPipelines(t, backend{url: server.url})
	s, room := startService(t, p, Options{}), uniqueRoom(t)
	m := mustJoin(t, s, room, "ann", "a", "{}")
	server.signal(syscall.SIGSTOP)
	// Not by its context: the client of Redis has a timeout of its own, which may come first.
	if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); !isUnavailable(err) {
		t.Fatalf("the error is %v", err)
	}
	began := time.Now()
	for range 1000 {
		if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); !errors.Is(err, errOwes) {
			t.Fatalf("the error is %v", err)
		}
	}
	if took := time.Since(began); took > answerWithin {
		t.Errorf("1,000 calls took %v", took)
	}
	server.signal(syscall.SIGCONT)
	eventually(t, 5*time.Second, "a heartbeat works again", func() bool {
		_, _, err := s.heartbeat(t.Context(), &m, nil, 0)
		return err == nil
	})
}

// TestADeadMasterStopsNobodyElse also follows the rooms of a cluster to all of its masters.
func TestADeadMasterStopsNobodyElse(t *testing.T) {
	t.Parallel()
	needRedis(t)
	c, err := startCluster()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.remove)
	p := newPipelines(backend{url: c.url}.open(t))
	t.Cleanup(func() { p.stop(); p.work.Wait() })
	s := startService(t, p, Options{})
	rooms := map[*redis.Client]Member{}
	for len(rooms) < 3 {
		room := uniqueRoom(t)
		master, err := p.cluster.MasterForKey(t.Context(), keysOf(room).meta())
		if err != nil {
			t.Fatal(err)
		}
		rooms[master] = mustJoin(t, s, room, "ann", "a", "{}")
	}
	c.nodes[0].t = t
	c.nodes[0].signal(syscall.SIGSTOP)
	defer c.nodes[0].signal(syscall.SIGCONT)
	for master, m := range rooms {
		dead := master.Options().Addr == c.nodes[0].addr
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), pipelineDoubt)
			_, _, err := s.heartbeat(ctx, &m, nil, 0)
			cancel()
			if dead != (err != nil) {
				t.Fatalf("on the master that hangs = %v: %v", dead, err)
			}
		}
	}
}
