package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// clockedService is a service without a reaper of its own on a miniredis whose clock stands still until the test moves it.
func clockedService(t testing.TB, o Options) (s *Service, moveTo func(since time.Duration)) {
	t.Helper()
	b := miniRedis(t)
	start := time.Now().Truncate(time.Millisecond)
	b.mini.SetTime(start)
	return startService(t, b.open(t), o), func(since time.Duration) { b.mini.SetTime(start.Add(since)) }
}

// newTrustingReaper is a reaper that judges without having been in contact.
func newTrustingReaper(s *Service) *reaper {
	r := newReaper(s)
	r.contact.need, r.loss.need = 0, 0
	return r
}

func mustPass(t testing.TB, s *Service) {
	t.Helper()
	if err := newTrustingReaper(s).pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// due is the room's score in the reaper's index.
func due(t testing.TB, s *Service, room string) (ms float64, there bool) {
	t.Helper()
	score, err := s.rdb.ZScore(t.Context(), activeRoomsKey, room).Result()
	return score, err == nil
}

func now(t testing.TB, s *Service) int64 {
	t.Helper()
	return mustRead(t, s, "any").TS
}

func TestSilentMembersLeaveOnceWhoeverReaps_G5(t *testing.T) {
	t.Parallel()
	const members, rooms = 100, 5
	eachBackend(t, func(t *testing.T, b backend) {
		o := Options{TTL: 200 * time.Millisecond, Lookback: 400 * time.Millisecond, ReaperInterval: 20 * time.Millisecond}
		services := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o), startService(t, b.open(t), o)}
		s, unique := services[0], uniqueRoom(t)
		events := map[string]*recorder{}
		for i := range rooms {
			room := fmt.Sprint(unique, i)
			events[room] = record(t, s.rdb, room)
		}
		var work sync.WaitGroup
		for i := range members {
			work.Go(func() {
				_, err := services[i%3].Join(t.Context(), fmt.Sprint(unique, i%rooms), "ann of "+unique, fmt.Sprint("c", i), nil)
				if err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		for room, recorded := range events {
			eventually(t, 10*time.Second, room+" is empty", func() bool { return len(mustRead(t, s, room).Entries) == 0 })
			all := recorded.upTo(t, s, room)
			assertChain(t, all)
			assertOneLeave(t, all)
			joined := map[string]message{}
			for _, m := range all {
				if m.Type == EventJoin {
					joined[m.ConnID] = m
					continue
				}
				if silent := m.TS - joined[m.ConnID].TS; m.Reason != ReasonTimeout || silent < o.Lookback.Milliseconds() {
					t.Errorf("%s left with reason %q after %d ms, want %q after the lookback", m.ConnID, m.Reason, silent, ReasonTimeout)
				}
			}
			if len(joined) != members/rooms || len(all) != 2*len(joined) {
				t.Errorf("%d joins in %d events, want one leave for each", len(joined), len(all))
			}
			assertAgree(t, s, room)
		}
		eventually(t, 5*time.Second, "the user's index is empty", func() bool {
			return s.rdb.Exists(t.Context(), userKey("ann of "+unique)).Val() == 0
		})
	})
}

func TestAMemberThatHeartbeatsIsNotCulled(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		o := Options{TTL: 200 * time.Millisecond, Lookback: 500 * time.Millisecond, ReaperInterval: 20 * time.Millisecond}
		s, room := startService(t, b.open(t), o), uniqueRoom(t)
		events := record(t, s.rdb, room)
		joined, err := s.Join(t.Context(), room, "ann", "alive", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 { // three lookbacks long
			silent := fmt.Sprint("silent", i)
			if _, err := s.Join(t.Context(), room, "bob", silent, nil); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, silent+" is removed", func() bool {
				if _, _, err := s.Heartbeat(t.Context(), room, "alive", nil, joined.Epoch); err != nil {
					t.Fatal(err)
				}
				return stateOf(t, s, room, silent) == ""
			})
		}
		for _, m := range events.upTo(t, s, room) {
			if m.ConnID == "alive" && m.Type == EventLeave {
				t.Error("the living member was removed")
			}
		}
	})
}

// A removal that waited in a stopped Redis runs before the heartbeats that wait behind it.
func TestARemovalThatWaitedDoesNothing(t *testing.T) {
	const lookback = 60 * time.Second
	for name, c := range map[string]struct {
		waited time.Duration
		gone   int
	}{"in time": {time.Second, 1}, "too late": {time.Second + time.Millisecond, 0}} {
		t.Run(name, func(t *testing.T) {
			s, moveTo := clockedService(t, Options{Lookback: lookback})
			room, r := uniqueRoom(t), newTrustingReaper(s)
			mustJoin(t, s, room, "ann", "a", `{}`)
			moveTo(lookback)
			found, err := r.overdue(t.Context(), room)
			if err != nil || len(found.list) != 1 {
				t.Fatalf("overdue are %v, %v", found.list, err)
			}
			moveTo(lookback + c.waited)
			if gone, err := r.removeSilent(t.Context(), room, found); err != nil || gone != c.gone {
				t.Errorf("%d were removed, %v, want %d", gone, err, c.gone)
			}
			if next, err := strconv.ParseFloat(r.next(found, false), 64); err != nil || int64(next) <= found.now {
				t.Errorf("the room is looked at again at %f, %v, want later than %d", next, err, found.now)
			}
		})
	}
}

func TestAMemberThatIsHeardOfAtTheLastMomentStays(t *testing.T) {
	const lookback = 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room, r := uniqueRoom(t), newTrustingReaper(s)
	m := mustJoin(t, s, room, "ann", "a", `{}`)
	moveTo(lookback)
	found, err := r.overdue(t.Context(), room)
	if err != nil || len(found.list) != 1 {
		t.Fatalf("overdue are %v, %v", found.list, err)
	}
	if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil {
		t.Fatal(err)
	}
	if gone, err := r.removeSilent(t.Context(), room, found); err != nil || gone != 0 {
		t.Errorf("%d were removed, %v, want none", gone, err)
	}
	assertAgree(t, s, room)
}

// Redis' clock fell back, as by a failover: a heartbeat in the future counts as one of now.
func TestAHeartbeatInTheFutureCountsAsNow(t *testing.T) {
	const lookback = 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room := uniqueRoom(t)
	moveTo(time.Hour)
	mustJoin(t, s, room, "ann", "a", `{}`)
	moveTo(0)
	mustJoin(t, s, room, "bob", "b", `{}`)
	moveTo(lookback)
	mustPass(t, s)
	if v := mustRead(t, s, room); len(v.Entries) != 1 || v.Entries[0].ConnID != "a" {
		t.Fatalf("the room has %+v, want a only", v.Entries)
	}
	moveTo(2 * lookback)
	mustPass(t, s)
	if v := mustRead(t, s, room); len(v.Entries) != 0 {
		t.Errorf("a silent member stays until the clock has caught up: %+v", v.Entries)
	}
}

func TestMoreOverdueMembersThanOneScriptRemoves(t *testing.T) {
	const members, lookback = 2*removeBatch + 1, 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room := uniqueRoom(t)
	for i := range members {
		mustJoin(t, s, room, "ann", fmt.Sprint("c", i), `{}`)
	}
	moveTo(lookback)
	mustPass(t, s)
	if n := len(mustRead(t, s, room).Entries); n != 0 {
		t.Errorf("%d overdue members stay after a pass", n)
	}
	assertAgree(t, s, room)
}

func TestAPassEndsWithItsContext(t *testing.T) {
	s, _ := clockedService(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newReaper(s).pass(ctx); err == nil {
		t.Error("a pass without time has looked at every room")
	}
}

// TestAJudgeWantsUnbrokenContact: who lives has had the time to say so, and the clock went right.
func TestAJudgeWantsUnbrokenContact(t *testing.T) {
	const need, patience = 10 * time.Second, 500 * time.Millisecond
	type answer struct {
		after, took, step time.Duration
		server            string
		reads             bool // it is that of a call which writes nothing
		lost              bool // it does not come
	}
	every := func(n int, a answer) []answer { return slices.Repeat([]answer{a}, n) }
	steady := answer{after: time.Second}
	then := func(a answer) []answer { return append(every(10, steady), a) }
	for name, c := range map[string]struct {
		before  []answer
		trusted bool
	}{
		"the first answer":           {nil, false},
		"nearly long enough":         {every(9, steady), false},
		"long enough":                {every(10, steady), true},
		"a late answer":              {then(answer{after: time.Second, took: patience + 1}), false},
		"an answer just in time":     {then(answer{after: time.Second, took: patience}), true},
		"a long silence":             {then(answer{after: contactPeriod + patience + 1}), false},
		"a silence just too short":   {then(answer{after: contactPeriod + patience}), true},
		"a clock set forward":        {then(answer{after: time.Second, step: time.Second + time.Millisecond}), false},
		"a clock set back":           {then(answer{after: time.Second, step: -time.Second - time.Millisecond}), false},
		"a clock that slews":         {every(10, answer{after: time.Second, step: 900 * time.Millisecond}), true},
		"again long enough":          {slices.Concat(every(10, steady), every(1, answer{after: time.Minute}), every(10, steady)), true},
		"a refused write":            {slices.Concat(every(10, steady), every(1, answer{lost: true}), every(1, steady)), false},
		"another process":            {slices.Concat(every(10, answer{after: time.Second, server: "a"}), every(1, answer{after: time.Second, server: "b"})), false},
		"a process without a name":   {slices.Concat(every(10, answer{after: time.Second, server: "a"}), every(1, steady)), true},
		"reads alone":                {append(every(1, answer{lost: true}), every(20, answer{after: time.Second, reads: true})...), false},
		"a read":                     {then(answer{after: time.Second, reads: true}), true},
		"reads while writes fail":    {slices.Concat(every(10, steady), every(1, answer{lost: true}), every(20, answer{after: time.Second, reads: true})), false},
		"reads do not stand in":      {then(answer{after: contactPeriod + patience + 1, reads: true}), false},
		"a late read":                {then(answer{after: time.Second, took: patience + 1, reads: true}), false},
		"a read by a clock set back": {then(answer{after: time.Second, step: -2 * time.Second, reads: true}), false},
		"a write after a late read":  {slices.Concat(every(10, steady), every(1, answer{after: time.Second, took: patience + 1, reads: true}), every(1, steady)), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, offset := newContactTracker(need, patience), time.Duration(0)
				lasted, _ := j.wrote("master", time.Now(), time.Now().UnixMilli(), "")
				for _, a := range c.before {
					<-time.After(a.after)
					offset += a.step
					began, clock := time.Now().Add(-a.took), time.Now().Add(offset).UnixMilli()
					switch {
					case a.lost:
						j.lost("master")
					case a.reads:
						lasted, _ = j.read("master", began, clock)
					default:
						lasted, _ = j.wrote("master", began, clock, a.server)
					}
				}
				if trusted := lasted >= need; trusted != c.trusted {
					t.Errorf("trusted: %t, want %t", trusted, c.trusted)
				}
				if other, _ := j.wrote("another master", time.Now(), 0, ""); other != 0 {
					t.Error("contact with one master counts for another")
				}
				j.lost("master")
				if again, _ := j.wrote("master", time.Now(), time.Now().Add(offset).UnixMilli(), ""); again != 0 {
					t.Error("contact that was lost counts")
				}
			})
		})
	}
}

// TestWithoutContactNobodyIsJudged: neither the silent nor lost nodes, and others may look at the rooms at once.
func TestWithoutContactNobodyIsJudged(t *testing.T) {
	const lookback, length = 60 * time.Second, 10 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback, NodeLease: length})
	room, l := uniqueRoom(t), newHeldLease(t, s)
	mustJoin(t, s, room, "ann", "silent", `{}`)
	mustOwn(t, l, room, "owned")
	moveTo(lookback)
	r := newReaper(s)
	for _, pass := range []func(context.Context) error{r.pass, r.passNodes} {
		if err := pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mustRead(t, s, room).Entries); n != 2 {
		t.Fatalf("%d members stay, want both", n)
	}
	if score, _ := due(t, s, room); score != float64(now(t, s)+unjudgedPause.Milliseconds()) {
		t.Errorf("the room is due in %f ms, want %v", score-float64(now(t, s)), unjudgedPause)
	}
	if claimed := s.rdb.ZScore(t.Context(), leasesKey, l.name()).Val(); claimed != math.Floor(claimed) {
		t.Error("the node was declared lost")
	}
	moveTo(lookback + time.Second)
	mustPass(t, s)
	mustPassNodes(t, s)
	if n := len(mustRead(t, s, room).Entries); n != 0 {
		t.Errorf("%d members stay, want none", n)
	}
}

// TestAClaimOfNodesThatWaitedDoesNothing: it ran in a Redis that hung, before the renewals that waited behind it.
func TestAClaimOfNodesThatWaitedDoesNothing(t *testing.T) {
	s, moveTo := clockedService(t, Options{NodeLease: time.Second})
	l, start := newHeldLease(t, s), now(t, s)
	moveTo(2 * time.Second)
	for notAfter, want := range map[int64]int{start + 1999: 0, start + 2000: 1} {
		claimed, err := s.run(t.Context(), s.scripts.claimNodes, []string{leasesKey}, 1000, notAfter)
		if err != nil || len(claimed) != want {
			t.Errorf("until %d: claimed %q, %v, want %d", notAfter-start, claimed, err, want)
		}
		s.rdb.ZAdd(t.Context(), leasesKey, redis.Z{Score: float64(start + 1000), Member: l.name()})
	}
}

// TestManyHeartbeatsInTheFutureAreSetRightInOnePass, though one step takes a part of them only.
func TestManyHeartbeatsInTheFutureAreSetRightInOnePass(t *testing.T) {
	const members = 1200
	s, moveTo := clockedService(t, Options{})
	room := uniqueRoom(t)
	moveTo(time.Hour)
	fillRoom(t, s.rdb, room, members)
	moveTo(0)
	if _, err := newReaper(s).reap(t.Context(), room, false); err != nil {
		t.Fatal(err)
	}
	ahead := s.rdb.ZCount(t.Context(), keysOf(room).lastSeen(), fmt.Sprint("(", now(t, s)), "+inf").Val()
	if ahead != 0 {
		t.Errorf("%d of %d heartbeats stay in the future", ahead, members)
	}
}
