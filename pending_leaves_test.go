package main

import (
	"container/heap"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// tryAll tries every leave, also those whose next try is later.
func (o *pendingLeaves) tryAll(ctx context.Context) {
	o.mu.Lock()
	for _, l := range o.waiting {
		if !l.held {
			l.when = 0
		}
	}
	heap.Init(&o.waiting)
	o.mu.Unlock()
	o.try(ctx)
}

func conns(s Snapshot) (ids []string) {
	for _, e := range s.Entries {
		ids = append(ids, e.ConnID)
	}
	return ids
}

func TestALeaveIsRepeatedUntilRedisConfirmsIt_G5(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		faulty := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, faulty, Options{}), uniqueRoom(t)
		events := record(t, faulty.UniversalClient, room)
		m := mustJoin(t, s, room, "ann", "a", "{}")
		mustJoin(t, s, room, "bob", "b", "{}")
		faulty.start(map[int]string{0: "request", 1: "request", 2: "answer"})
		o := newPendingLeaves(s)
		o.add(m, ReasonDisconnected)
		eventually(t, 10*time.Second, "no pending leave", func() bool { return o.size() == 0 })
		if left := o.close(t.Context()); left != 0 {
			t.Errorf("%d leaves are left", left)
		}
		if sent := faulty.count(); sent < 4 {
			t.Errorf("%d scripts were sent, one of them the fourth try", sent)
		}
		all := events.upTo(t, s, room)
		if len(all) != 3 || short(all[2]) != "leave a ann 0 disconnected null" {
			t.Errorf("the last of %d events is %q", len(all), short(all[len(all)-1]))
		}
		assertOneLeave(t, all)
		assertAgree(t, s, room)
	})
}

func TestAnUnknownJoinIsTakenBack_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		o := newIdlePendingLeaves(s)
		unknown := Member{Room: room, User: "ann", Conn: "a"}
		o.add(unknown, ReasonDisconnected)
		o.tryAll(t.Context())
		if o.size() != 1 {
			t.Fatal("a join that may still run is forgotten")
		}
		mustJoin(t, s, room, "ann", "a", "{}") // it runs late
		mustJoin(t, s, room, "bob", "b", "{}")
		o.tryAll(t.Context())
		if got := conns(mustRead(t, s, room)); !slices.Equal(got, []string{"b"}) || o.size() != 0 {
			t.Errorf("the room has %q, %d leaves are pending", got, o.size())
		}
	})
}

func TestAnUnknownJoinThatNeverRanIsForgotten(t *testing.T) {
	s, room := startService(t, miniRedis(t).open(t), Options{}), uniqueRoom(t)
	o := newIdlePendingLeaves(s)
	o.add(Member{Room: room, User: "ann", Conn: "a"}, ReasonDisconnected)
	o.tryAll(t.Context())
	leave := o.conns["a"]
	leave.absent -= owedWatch - 100*time.Millisecond
	o.tryAll(t.Context())
	if o.size() != 1 {
		t.Fatal("forgotten too early")
	}
	leave.absent -= 100 * time.Millisecond
	o.tryAll(t.Context())
	if o.size() != 0 {
		t.Error("watched for ever")
	}
}

// findingRedis calls around each lookup of one connection.
type findingRedis struct {
	redis.UniversalClient
	before, after func()
}

func (f *findingRedis) HGet(ctx context.Context, key, field string) *redis.StringCmd {
	f.before()
	defer f.after()
	return f.UniversalClient.HGet(ctx, key, field)
}

// The client asks again, and is told of its new incarnation, at any moment of the taking back of the first one.
func TestAJoinThatTheClientWasToldOfStays_G7(t *testing.T) {
	cases := map[string]struct {
		epochKnown bool
		when       string
	}{
		"before the try":                         {false, "before"},
		"before the lookup":                      {false, "lookup"},
		"after the lookup":                       {false, "found"},
		"before the try, of a known incarnation": {true, "before"},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				finding := &findingRedis{UniversalClient: b.open(t)}
				s, room := startService(t, finding, Options{}), uniqueRoom(t)
				first := mustJoin(t, s, room, "ann", "a", "{}")
				o := newIdlePendingLeaves(s)
				var told Member
				again := func(when string) func() {
					return func() {
						if when != c.when || told.Epoch != 0 {
							return
						}
						o.take("a", room)
						told = mustJoin(t, s, room, "ann", "a", "{}")
					}
				}
				finding.before, finding.after = again("lookup"), again("found")
				owes := first
				if !c.epochKnown {
					owes.Epoch = 0
				}
				o.add(owes, ReasonDisconnected)
				again("before")()
				o.tryAll(t.Context())
				entries := mustRead(t, s, room).Entries
				if len(entries) != 1 || entries[0].Epoch != told.Epoch || told.Epoch <= first.Epoch {
					t.Errorf("the room has %v, the client was told of %d", entries, told.Epoch)
				}
				if o.size() != 0 {
					t.Errorf("%d leaves are pending", o.size())
				}
			})
		}
	})
}

func TestPendingLeavesDoNotPileUp(t *testing.T) {
	o := newIdlePendingLeaves(nil)
	for epoch := range int64(1000) {
		o.add(Member{Room: fmt.Sprint("r", epoch%2), Conn: "a", Epoch: epoch}, ReasonLeft)
	}
	o.add(Member{Room: "r0", Conn: "b", Epoch: 7}, ReasonLeft)
	if o.size() != 3 {
		t.Errorf("%d leaves of three places", o.size())
	}
	if got := o.take("a", "r1"); len(got) != 1 || got[0].Epoch != 999 {
		t.Errorf("took %v, want the latest in r1", got)
	}
	if got := o.take("a", ""); len(got) != 1 || got[0].Room != "r0" {
		t.Errorf("took %v, want the one left", got)
	}
	if got := o.take("a", ""); got != nil || o.size() != 1 {
		t.Errorf("took %v, %d are left", got, o.size())
	}
}

func TestALaterLeaveIsNotStruckWithTheOneBefore_G5(t *testing.T) {
	faulty := &faultyRedis{UniversalClient: miniRedis(t).open(t)}
	s, room := startService(t, faulty, Options{}), uniqueRoom(t)
	m := mustJoin(t, s, room, "ann", "a", "{}")
	o := newIdlePendingLeaves(s)
	o.add(m, ReasonDisconnected)
	m.Epoch++
	faulty.before = func(int) { o.add(m, ReasonLeft) }
	o.settle(t.Context(), o.next(t.Context()))
	if got := o.take("a", room); len(got) != 1 || got[0].Epoch != m.Epoch {
		t.Errorf("pending is %v, want the later leave", got)
	}
}

// hungRedis answers nothing for as long as it is asked.
type hungRedis struct {
	redis.UniversalClient
}

func (hungRedis) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	<-ctx.Done()
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(ctx.Err())
	return cmd
}

func (hungRedis) HGet(ctx context.Context, _, _ string) *redis.StringCmd {
	<-ctx.Done()
	cmd := redis.NewStringCmd(ctx)
	cmd.SetErr(ctx.Err())
	return cmd
}

func TestClosingWaitsNoLongerThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newPendingLeaves(NewService(hungRedis{}, Options{ReaperInterval: -1}))
		for i := range int64(1000) {
			o.add(Member{Room: "r", Conn: fmt.Sprint("c", i), Epoch: i % 2}, ReasonDisconnected)
			o.add(Member{Room: "q", Conn: fmt.Sprint("c", i), Epoch: i % 2}, ReasonDisconnected)
		}
		pause(t.Context(), 10*time.Second) // it tries, in vain
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		before := time.Now()
		if left := o.close(ctx); left != 2000 {
			t.Errorf("%d leaves are left, want 2000", left)
		}
		if waited := time.Since(before); waited != 3*time.Second {
			t.Errorf("it took %v", waited)
		}
	})
}

func TestClosingTriesOnceMore(t *testing.T) {
	s, room := startService(t, miniRedis(t).open(t), Options{}), uniqueRoom(t)
	m := mustJoin(t, s, room, "ann", "a", "{}")
	o := newPendingLeaves(s)
	o.stop()
	o.work.Wait()
	o.add(m, ReasonDisconnected)
	if left := o.close(t.Context()); left != 0 {
		t.Errorf("%d leaves are left", left)
	}
	if _, err := s.find(t.Context(), room, "a"); err == nil {
		t.Error("the member is still there")
	}
}

// TestPendingLeavesAreSmall: each of them, whatever its member's state was, and whether it is to leave at once or held back.
func TestPendingLeavesAreSmall(t *testing.T) {
	const leaves, limit = 50_000, 200
	for name, add := range map[string]func(o *pendingLeaves, m Member){
		"pending": func(o *pendingLeaves, m Member) { o.add(m, ReasonDisconnected) },
		"held": func(o *pendingLeaves, m Member) {
			l := newPendingLeave(m, ReasonDisconnected)
			l.when, l.held = time.Hour, true
			o.wait(l)
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newIdlePendingLeaves(nil)
			before := heapInUse()
			for i := range leaves {
				room := strings.Clone(strings.Repeat("a long name of a room ", 8))
				state := raw(`{"s":"` + strings.Repeat("x", 2000) + `"}`)
				add(o, Member{Room: room, User: fmt.Sprint("user-of-", i), Conn: newID(), Epoch: int64(i + 1), State: state})
			}
			each := int64(heapInUse()-before) / leaves
			t.Logf("%d bytes each", each)
			if each > limit {
				t.Errorf("%d bytes for each of %d leaves, want %d at most", each, leaves, limit)
			}
			runtime.KeepAlive(o)
		})
	}
}

// muteRedis counts what it is asked in vain.
type muteRedis struct {
	hungRedis
	asked  atomic.Int64
	refuse bool // it fails at once, as the pipelines do while Redis is silent
}

func (r *muteRedis) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	r.asked.Add(1)
	if r.refuse {
		cmd := redis.NewCmd(ctx)
		cmd.SetErr(errUnresponsive)
		return cmd
	}
	return r.hungRedis.EvalSha(ctx, sha, keys, args...)
}

// TestASilentRedisIsAskedAsOftenForManyAsForFew, and one that answers again gets them all.
func TestASilentRedisIsAskedAsOftenForManyAsForFew(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		asked := map[int]int64{}
		for _, leaves := range []int{50, 5000} {
			synctest.Test(t, func(t *testing.T) {
				rdb := &muteRedis{refuse: refuse}
				o := newPendingLeaves(NewService(rdb, Options{ReaperInterval: -1}))
				for i := range leaves {
					o.add(Member{Room: "r", Conn: fmt.Sprint("c", i), Epoch: 1}, ReasonDisconnected)
				}
				synctest.Wait()
				before := rdb.asked.Load()
				pause(t.Context(), 20*time.Second)
				asked[leaves] = rdb.asked.Load() - before
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if left := o.close(ctx); left != leaves {
					t.Errorf("%d leaves are left, want %d", left, leaves)
				}
			})
		}
		t.Logf("asked in 20 s, refused at once %t: %v", refuse, asked)
		// Of each try, the failures and what the workers have begun meanwhile.
		if limit := int64(20*time.Second/owedPause) * (owedFailures + owedWorkers); asked[50] == 0 || asked[5000] > limit {
			t.Errorf("refused at once %t: asked %d times for 50 leaves and %d for 5,000, want at most %d", refuse, asked[50], asked[5000], limit)
		}
	}
}

// halfRedis does not answer for half of the rooms.
type halfRedis struct {
	redis.UniversalClient
}

func (r halfRedis) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if strings.Contains(keys[0], "away") {
		return lost(ctx)
	}
	return r.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

// TestLeavesForAMasterThatIsAwayHoldUpNoOthers_G5, though they came first.
func TestLeavesForAMasterThatIsAwayHoldUpNoOthers_G5(t *testing.T) {
	const leaves = 2000
	s := startService(t, halfRedis{miniRedis(t).open(t)}, Options{})
	o := newPendingLeaves(s)
	for _, room := range []string{"away", "here"} {
		for i := range leaves {
			o.add(Member{Room: room, Conn: fmt.Sprint("c", i), Epoch: 1}, ReasonDisconnected)
		}
	}
	eventually(t, 30*time.Second, "those of the other master are confirmed", func() bool { return o.size() == leaves })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if left := o.close(ctx); left != leaves {
		t.Errorf("%d are left, want %d", left, leaves)
	}
}
