package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// tripHook counts round trips of pipelines, the commands in them and the calls in these. While it is closed, none leaves.
type tripHook struct {
	gate    sync.RWMutex
	trips   atomic.Int64
	evals   atomic.Int64
	scripts atomic.Int64
	largest atomic.Int64 // calls of one command
}

// callsOf counts the calls that an EVALSHA carries, and checks that their keys and arguments are all there is.
func callsOf(words []any) (calls int64) {
	keys := words[2].(int)
	args := words[3+keys:]
	if len(args) == 0 {
		return 1 // none of ours
	}
	for ; len(args) > 0; calls++ {
		keys -= args[0].(int)
		args = args[2+args[1].(int):]
	}
	if keys != 0 {
		panic(fmt.Sprintf("%d keys belong to no call", keys))
	}
	return calls
}

func (*tripHook) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*tripHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h *tripHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.trips.Add(1)
		for _, cmd := range cmds {
			h.scripts.Add(callsOf(cmd.Args()))
			h.evals.Add(1)
			h.largest.Store(max(h.largest.Load(), callsOf(cmd.Args())))
		}
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
	if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil { // Redis knows the script then
		t.Fatal(err)
	}
	trips, scripts, evals := hook.trips.Load(), hook.scripts.Load(), hook.evals.Load()
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
	if n := hook.evals.Load() - evals; n > calls/8 {
		t.Errorf("%d heartbeats took %d commands", calls, n)
	}
}

// wantedCall is a heartbeat and the verdict that it has to get.
type wantedCall struct {
	*pipelinedCall
	member Member
	want   string
}

// heartbeatCall is what a heartbeat sends that takes epoch for the member's.
func heartbeatCall(s *Service, m Member, epoch int64, want string) wantedCall {
	sha := s.scripts.heartbeat.redis7.sha
	if s.noScriptFlags.Load() {
		sha = s.scripts.heartbeat.legacy.sha
	}
	keys := []string{keysOf(m.Room).lastSeen(), keysOf(m.Room).revision(), connKey(m.Room, m.Conn)}
	return wantedCall{&pipelinedCall{command: "evalsha", script: sha, keys: keys, args: []any{3, 4, m.Conn, epoch, m.Rev, 60_000}, done: make(chan struct{})}, m, want}
}

func (c wantedCall) check(t *testing.T) {
	t.Helper()
	<-c.done
	must(t, c.err)
	answer := reply(c.answer.([]any))
	own := answer.list(0)
	if answer.text(0) != "" {
		own = reply{"ok"}
	}
	good := own.verdict() == c.want
	switch c.want {
	case "error":
		good = good && spoilt(scriptError(own.text(1)))
	case "epoch":
		good = good && own.int(1) == c.member.Epoch
	}
	if !good {
		t.Errorf("the heartbeat of %s is answered %v, want %s", c.member.Conn, own, c.want)
	}
}

// TestCallsInOneCommandAreAsGoodAsAlone: each has its own answer, and a failed one harms no other.
func TestCallsInOneCommandAreAsGoodAsAlone(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := b.open(t)
		p := newPipelines(rdb)
		t.Cleanup(func() { p.stop(); p.work.Wait() })
		s, room, spoiled := startService(t, p, Options{}), uniqueRoom(t), uniqueRoom(t)
		other := mustJoin(t, s, spoiled, "bob", "b", "{}")
		if _, _, err := s.heartbeat(t.Context(), &other, nil, 0); err != nil {
			t.Fatal(err)
		}
		spoil(t, rdb, keysOf(spoiled).lastSeen())
		var wanted []wantedCall
		for i := range 2 * mergedKeys / 3 {
			m := mustJoin(t, s, room, "ann", fmt.Sprint("c", i), "{}")
			if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil { // Redis knows the script then
				t.Fatal(err)
			}
			wanted = append(wanted, heartbeatCall(s, m, m.Epoch, "ok"))
			switch {
			case i == 3:
				m.Rev--
				wanted = append(wanted, heartbeatCall(s, m, 7, "epoch"))
			case i == 5:
				wanted = append(wanted, heartbeatCall(s, Member{Room: room, Conn: "nobody", Rev: 7}, 7, "missing"))
			case i == 7 && !b.cluster:
				wanted = append(wanted, heartbeatCall(s, other, other.Epoch, "error"))
			}
		}
		var calls []*pipelinedCall
		for _, c := range wanted {
			calls = append(calls, c.pipelinedCall)
		}
		l, err := p.lineFor(t.Context(), keysOf(room).meta())
		must(t, err)
		l.send(calls)
		for _, c := range wanted {
			c.check(t)
		}
		if n := len(merges(l, calls)); n != 3 {
			t.Errorf("%d calls went in %d commands", len(calls), n)
		}
	})
}

// merges are the commands that carry the calls.
func merges(l *pipeline, calls []*pipelinedCall) (list []*scriptCommand) {
	for _, c := range calls {
		list = l.place(c, list)
	}
	return list
}

func TestOnlyKeysOfOneTagGoTogetherInACluster(t *testing.T) {
	call := func(sha, key string) *pipelinedCall { return &pipelinedCall{script: sha, keys: []string{key}} }
	calls := []*pipelinedCall{
		call("light", "prs:{room:a}:rev"), call("light", "prs:{room:b}:rev"), call("light", "prs:{room:a}:rev"),
		call("heavy", "prs:{room:a}:rev"), call("heavy", "prs:{room:a}:rev"), call("light", "prs:user:u:conns"), call("light", "prs:user:v:conns"),
	}
	for name, tc := range map[string]struct {
		cluster *redis.ClusterClient
		want    []int // calls in each command
	}{
		"one server": {nil, []int{5, 1, 1}},
		"cluster":    {&redis.ClusterClient{}, []int{2, 1, 1, 1, 1, 1}},
	} {
		l := &pipeline{of: &pipelines{cluster: tc.cluster, merged: map[string]bool{"light": true}}}
		var got []int
		for _, e := range merges(l, calls) {
			got = append(got, len(e.calls))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
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
		work.Go(func() { _ = p.EvalSha(t.Context(), "none", []string{"key"}) })
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
	work.Go(func() { _ = p.EvalSha(t.Context(), "none", []string{"key"}) })
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
		if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); !errors.Is(err, errUnresponsive) {
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
	takesLong(t)
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

// TestACommandWithNeitherAnswerNorErrorIsAnError, whatever client it came from.
func TestACommandWithNeitherAnswerNorErrorIsAnError(t *testing.T) {
	calls := []*pipelinedCall{{done: make(chan struct{})}, {done: make(chan struct{})}}
	(&scriptCommand{calls: calls, cmd: redis.NewCmd(t.Context())}).settle()
	for i, c := range calls {
		if !errors.Is(c.err, errNoAnswer) {
			t.Errorf("call %d has %v, %v", i, c.answer, c.err)
		}
	}
	s := startService(t, silentRedis{miniRedis(t).open(t)}, Options{})
	if _, _, err := s.whereabouts(t.Context(), "ann"); !isUnavailable(err) || !errors.Is(err, errNoAnswer) {
		t.Errorf("the error is %v", err)
	}
}

// silentRedis leaves scripts without an answer.
type silentRedis struct{ redis.UniversalClient }

func (silentRedis) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	return redis.NewCmd(ctx)
}

// serving counts the workers of pipelines.
func serving() (workers int) {
	for _, stack := range goroutines() {
		if strings.Contains(stack, "(*pipeline).serve") || strings.Contains(stack, "(*pipeline).probe") {
			workers++
		}
	}
	return workers
}

// TestReplacedMastersLeaveNothingBehind has twenty masters one after the other, some of which owe an answer.
func TestReplacedMastersLeaveNothingBehind(t *testing.T) {
	takesLong(t)
	mini := miniRedis(t).mini
	var master atomic.Int64
	cluster := redis.NewClusterClient(&redis.ClusterOptions{
		MaxRetries: -1, DisableRoutingPolicies: true,
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{{End: 16383, Nodes: []redis.ClusterNode{{Addr: fmt.Sprintf("master%d:1", master.Load())}}}}, nil
		},
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, mini.Addr())
		},
	})
	before := serving()
	p := newPipelines(cluster)
	t.Cleanup(func() { _ = p.Close() })
	s := startService(t, p, Options{})
	for range 20 {
		room := uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", "{}")
		l, err := p.lineFor(t.Context(), keysOf(room).meta())
		must(t, err)
		if master.Load()%10 == 0 {
			l.owes.Store(true)
			p.work.Go(func() {
				<-l.ctx.Done() // its server answers, so that the probe has to find the end by itself
				l.probe()
			})
		}
		master.Add(1)
		cluster.ReloadState(t.Context())
		eventually(t, 5*time.Second, "the next master", func() bool {
			client, err := p.MasterForKey(t.Context(), "key")
			return err == nil && client.Options().Addr == fmt.Sprintf("master%d:1", master.Load())
		})
	}
	mustJoin(t, s, uniqueRoom(t), "ann", "a", "{}")
	eventually(t, 2*layoutPeriod, "only the workers for the last master", func() bool { return serving()-before == pipelineWorkers })
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) != 1 {
		t.Errorf("%d masters are remembered", len(p.lines))
	}
}

// TestACallToAMasterThatIsForgottenGoesAnotherWay, unless a worker has sent it.
func TestACallToAMasterThatIsForgottenGoesAnotherWay(t *testing.T) {
	p, hook := startPipelines(t, miniRedis(t))
	s, room := startService(t, p, Options{}), uniqueRoom(t)
	m := mustJoin(t, s, room, "ann", "a", "{}")
	l, err := p.lineFor(t.Context(), "key")
	must(t, err)
	beat := func() {
		m := m
		if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil {
			t.Error(err)
		}
	}
	beat() // Redis knows the script then
	trips := hook.trips.Load()
	open := hook.shut(t)
	var work sync.WaitGroup
	for busy := range int64(pipelineWorkers) {
		work.Go(beat)
		eventually(t, 5*time.Second, "one more worker is busy", func() bool { return hook.trips.Load() == trips+busy+1 })
	}
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		beat()
	}()
	eventually(t, 5*time.Second, "a call waits", func() bool { return len(l.calls) == 1 })
	p.forget(p.single)
	<-waited // although the workers are busy
	open()
	work.Wait()
	beat()
}
