package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// faultyRedis is a client whose scripts can be counted, watched and lost.
type faultyRedis struct {
	redis.UniversalClient

	mu     sync.Mutex
	sent   []string       // digest or text of each script that was sent
	before func(n int)    // called before the n-th script is sent, from 0
	lose   map[int]string // n-th script: "request" never arrives, "answer" is lost after it ran

	holdRoomScripts bool              // scripts of a room do not arrive before held is called
	held            func() *redis.Cmd // sends the last of them
}

var errLost = errors.New("connection lost")

func (f *faultyRedis) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return f.send(ctx, sha, keys, func() *redis.Cmd { return f.UniversalClient.EvalSha(ctx, sha, keys, args...) })
}

func (f *faultyRedis) Eval(ctx context.Context, text string, keys []string, args ...any) *redis.Cmd {
	return f.send(ctx, text, keys, func() *redis.Cmd { return f.UniversalClient.Eval(ctx, text, keys, args...) })
}

func (f *faultyRedis) send(ctx context.Context, what string, keys []string, call func() *redis.Cmd) *redis.Cmd {
	f.mu.Lock()
	n := len(f.sent)
	f.sent = append(f.sent, what)
	before, lost := f.before, f.lose[n]
	f.mu.Unlock()
	if before != nil {
		before(n)
	}
	failed := redis.NewCmd(ctx)
	failed.SetErr(errLost)
	if f.holdRoomScripts && len(keys) > 1 {
		f.held, lost = call, "request"
	}
	if lost == "request" {
		return failed
	}
	answer := call()
	if lost == "answer" {
		return failed
	}
	return answer
}

// start forgets what was sent, and loses from now on what the map says.
func (f *faultyRedis) start(lose map[int]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent, f.lose = nil, lose
}

func (f *faultyRedis) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sent)
}

func TestALostScriptIsNotSentAgainAndARepeatedRequestIsRight_G7(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		for _, op := range operations() {
			t.Run(op.name, func(t *testing.T) {
				rdb := &faultyRedis{UniversalClient: b.open(t)}
				s := startService(t, rdb, Options{Grace: time.Minute})
				wholeRoom, m := prepared(t, s)
				loadEverywhere(t, s, b)
				rdb.start(nil)
				if err := op.do(t.Context(), s, &m); err != nil {
					t.Fatal(err)
				}
				scripts := rdb.count()
				want := picture(t, s, wholeRoom)
				for n := range scripts {
					for _, lost := range []string{"request", "answer"} {
						room, m := prepared(t, s)
						rdb.start(map[int]string{n: lost})
						err := op.do(t.Context(), s, &m)
						if tolerated := op.name == "leave" && n == 1; !tolerated { // the user's index may hold too much
							wantCode(t, err, CodeUnavailable)
							if !errors.Is(err, errLost) {
								t.Errorf("the cause is not in %v", err)
							}
							if sent := rdb.count(); sent != n+1 {
								t.Errorf("%s %d lost: %d scripts were sent, want none after it", lost, n, sent)
							}
						}
						rdb.start(nil)
						if err := op.do(t.Context(), s, &m); err != nil {
							t.Errorf("%s %d lost, then repeated: %v", lost, n, err)
						}
						if got := picture(t, s, room); got != want {
							t.Errorf("%s %d lost, then repeated: the room is %s, want %s", lost, n, got, want)
						}
						assertAgree(t, s, room)
					}
				}
			})
		}
	})
}

// loadEverywhere has every server know every script, so that each is sent once.
func loadEverywhere(t testing.TB, s *Service, b backend) {
	t.Helper()
	all := s.scripts
	for _, sc := range []*script{all.join, all.heartbeat, all.patch, all.restore, all.remove, all.hold, all.read, all.pulse, all.overdue,
		all.indexRoom, all.claimRooms, all.settleRooms, all.indexUser, all.unindexUser} {
		text := sc.redis7
		if s.noScriptFlags.Load() {
			text = sc.legacy
		}
		if err := b.open(t).ScriptLoad(t.Context(), text.source).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// prepared is a room with two members, and one of them as its node knows it.
func prepared(t testing.TB, s *Service) (room string, m Member) {
	t.Helper()
	room = uniqueRoom(t)
	mustJoin(t, s, room, "bob", "b", `{"other":1}`)
	return room, mustJoin(t, s, room, "ann", "a", `{"n":1}`)
}

// picture is a room without what differs from run to run.
func picture(t testing.TB, s *Service, room string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range mustRead(t, s, room).Entries {
		fmt.Fprintf(&b, "%s of %s with %s; ", e.ConnID, e.UserID, e.State)
	}
	return b.String()
}

func TestScriptFlushAtAnyMomentFailsNoRequest(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s := startService(t, rdb, Options{Grace: time.Minute})
		rdb.before = func(n int) {
			sent := rdb.sent[n]
			if strings.Contains(sent, "\n") {
				return // the text itself
			}
			if err := rdb.ScriptFlush(t.Context()).Err(); err != nil {
				t.Error(err)
			}
		}
		for _, op := range operations() {
			t.Run(op.name, func(t *testing.T) {
				room, m := prepared(t, s)
				rdb.start(nil)
				if err := op.do(t.Context(), s, &m); err != nil {
					t.Fatal(err)
				}
				digests, texts := map[string]int{}, map[string]int{}
				for _, sent := range rdb.sent {
					if strings.Contains(sent, "\n") {
						texts[newScriptText(sent).sha]++
					} else {
						digests[sent]++
					}
				}
				if !maps.Equal(digests, texts) {
					t.Errorf("digests %v and texts %v: want one text for each digest that Redis did not know", digests, texts)
				}
				assertAgree(t, s, room)
			})
		}
	})
}

// oldRedis knows no flags, as before Redis 7: it answers like Redis 6.2.
type oldRedis struct{ redis.UniversalClient }

func (o oldRedis) Eval(ctx context.Context, text string, keys []string, args ...any) *redis.Cmd {
	if strings.HasPrefix(text, "#!") {
		refused := redis.NewCmd(ctx)
		refused.SetErr(errors.New("ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'"))
		return refused
	}
	return o.UniversalClient.Eval(ctx, text, keys, args...)
}

func TestAServerThatKnowsNoFlagsServesTheFirstRequests(t *testing.T) {
	s, room := startService(t, oldRedis{miniRedis(t).open(t)}, Options{}), uniqueRoom(t)
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			if _, err := s.Join(t.Context(), room, "ann", fmt.Sprint("c", i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	assertAgree(t, s, room)
}

// lossyHook loses the answers of scripts after they ran, and counts those.
type lossyHook struct{ ran atomic.Int64 }

func (*lossyHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*lossyHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h *lossyHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if strings.HasPrefix(cmd.Name(), "eval") && err == nil {
			h.ran.Add(1)
			return io.EOF
		}
		return err
	}
}

func TestAScriptIsNotSentAgainInACluster(t *testing.T) {
	rdb := redisCluster(t).open(t).(*redis.ClusterClient)
	s, room := startService(t, rdb, Options{}), uniqueRoom(t)
	if _, err := s.Join(t.Context(), room, "ann", "c1", nil); err != nil {
		t.Fatal(err)
	}
	hook := &lossyHook{}
	err := rdb.ForEachMaster(t.Context(), func(_ context.Context, node *redis.Client) error {
		node.AddHook(hook)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Heartbeat(t.Context(), room, "c1", json.RawMessage(`{"a":1}`), 0); !isUnavailable(err) {
		t.Errorf("the error is %v, want unavailable", err)
	}
	if n := hook.ran.Load(); n != 1 {
		t.Errorf("the script ran %d times", n)
	}
}
