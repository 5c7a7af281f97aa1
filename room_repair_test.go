package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// readAgain sets what the store holds, and has the room read because messages may be lost.
func (w *world) readAgain(rev int64, signs lossSigns, entries ...Entry) {
	w.source.store(rev, entries...)
	w.source.mu.Lock()
	w.source.stored.loss = signs
	w.source.mu.Unlock()
	w.hub.dispatchers[0].subscribed("r")
	synctest.Wait()
}

// TestSignsOfALossOfData_G3 has a room of a and b at revision 10 read again without b.
func TestSignsOfALossOfData_G3(t *testing.T) {
	before := lossSigns{server: "s1", origin: 5}
	a, b := here("a", 8, "{}"), here("b", 9, "{}")
	for name, c := range map[string]struct {
		rev   int64
		signs lossSigns
		lost  bool
	}{
		"messages were missed":                     {20, before, false},
		"the marker of the counter has expired":    {20, lossSigns{server: "s1"}, false},
		"the process is not told":                  {20, lossSigns{origin: 5}, false},
		"the counter began anew and rose":          {20, lossSigns{server: "s1", origin: 15}, true},
		"the counter went on from an older copy":   {20, lossSigns{server: "s1", origin: 7}, true},
		"the counter fell":                         {6, before, true},
		"another process":                          {20, lossSigns{server: "s2", origin: 5}, true},
		"the indices disagree":                     {20, lossSigns{server: "s1", origin: 5, torn: true}, true},
		"the member is missing without any change": {10, before, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(10, a, b)
				w.source.stored.loss = before
				e := w.guest(w.room())
				w.readAgain(c.rev, c.signs, a)
				leave := fmt.Sprintf("leave b B 0 @%d", max(c.rev, 10))
				if !c.lost {
					w.wantHeard(e, leave)
					return
				}
				w.wantHeard(e)
				w.pass(lossPatience)
				w.wantHeard(e, leave)
			})
		})
	}
}

// TestAFirstCounterIsNoLossOfData_G3 has the counter of a room begin while the room is known to be empty.
func TestAFirstCounterIsNoLossOfData_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		e := w.guest(w.room())
		w.tell(joined(0, 10, "a"), joined(10, 11, "b"))
		w.readAgain(20, lossSigns{origin: 10}, here("a", 10, "{}"))
		w.wantHeard(e, "join a A 1 @10 {}", "join b B 1 @11 {}", "leave b B 0 @20")
	})
}

// TestALostCounterIsNoFirstOne_G3 has a room first read while its counter is lost. What begins anew is known to be another counter then.
func TestALostCounterIsNoFirstOne_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(0, here("a", 8, "{}"))
		e := w.guest(w.room())
		w.tell(joined(0, 10, "b"))
		w.readAgain(20, lossSigns{origin: 10}, here("b", 10, "{}"))
		w.wantHeard(e, "join b B 1 @10 {}")
		w.pass(lossPatience)
		w.wantHeard(e, "join b B 1 @10 {}", "leave a A 0 @20")
	})
}

// TestAFirstJoinAtWorkIsSpared_G3 has Redis lose a member of this node whose first join is not yet answered.
func TestAFirstJoinAtWorkIsSpared_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		a := here("a", 8, "{}")
		w.source.store(10, a)
		w.source.stored.loss = lossSigns{origin: 5}
		e := w.guest(w.room())
		joining := &membership{room: w.room(), mu: newOperationLock[ofMembership]()}
		joining.mu.Lock()
		w.room().own("b", joining)
		w.tell(joined(10, 11, "b"))
		w.readAgain(20, lossSigns{origin: 20}, a)
		w.wantHeard(e, "join b B 1 @11 {}")
		w.pass(lossPatience)
		w.wantHeard(e, "join b B 1 @11 {}", "leave b B 0 @20")
		joining.mu.Unlock()
	})
}

// TestTheLeaveOfAMemberAtWorkIsToldAfterAReading_G3 has a reading find that a member of this node is gone whose request is at work, and the message
// come after it.
func TestTheLeaveOfAMemberAtWorkIsToldAfterAReading_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := here("a", 8, "{}"), here("b", 9, "{}")
		w.source.store(10, a, b)
		e := w.guest(w.room())
		busy := &membership{room: w.room(), mu: newOperationLock[ofMembership]()}
		busy.joinedOnce.Store(true)
		busy.mu.Lock()
		w.room().own("b", busy)
		w.readAgain(11, lossSigns{}, a)
		w.wantHeard(e)
		w.tell(gone(10, 11, "b"))
		w.wantHeard(e)
		kicked := gone(10, 11, "b")
		kicked.Epoch, kicked.Reason = 9, ReasonKicked
		w.tell(kicked)
		w.wantHeard(e, "leave b B 0 @11 null")
		busy.mu.Unlock()
	})
}

// TestALaterCopyThatWasLostIsReplaced_G3 has Redis lose a join of unknown outcome of which this node was told, and its node put the incarnation before
// it back.
func TestALaterCopyThatWasLostIsReplaced_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 8, "{}"), here("b", 9, "{}"))
		e := w.guest(w.room())
		mine := &membership{room: w.room(), mu: newOperationLock[ofMembership](), Member: Member{Conn: "b", User: "B", Epoch: 5, Rev: 5}, rejoinInFlight: true,
			expiresAt: time.Now().Add(time.Minute)}
		w.room().own("b", mine)
		w.readAgain(20, lossSigns{origin: 20}, here("a", 8, "{}"))
		w.wantHeard(e)
		back := here("b", 21, "{}")
		back.Epoch = 5
		w.readAgain(21, lossSigns{origin: 20}, here("a", 8, "{}"), back)
		w.wantHeard(e, "join b B 1 @21 {}")
	})
}

// TestALossIsNotedOnce_G3 has further losses, and changes, follow the first. Nobody who was missing after the first is kept longer for them,
// and who is put back stays.
func TestALossIsNotedOnce_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, c := here("a", 8, "{}"), here("b", 9, "{}"), here("c", 10, "{}")
		w.source.store(10, a, b, c)
		w.source.stored.loss = lossSigns{origin: 5}
		e, rev := w.guest(w.room()), int64(100)
		w.readAgain(rev, lossSigns{origin: rev}, a)
		for range 4 {
			w.pass(time.Second)
			w.tell(patched(rev, rev+1, "a", fmt.Sprint(rev)))
			rev += 100
			w.readAgain(rev, lossSigns{origin: rev}, here("a", rev, fmt.Sprint(rev)), here("c", rev, "{}"))
		}
		e.heard = nil
		w.pass(time.Second)
		w.wantHeard(e, "leave b B 0 @500")
		w.readAgain(600, lossSigns{origin: 600}, here("a", 500, "400"))
		w.pass(lossPatience - time.Millisecond)
		w.wantHeard(e, "leave b B 0 @500")
		w.pass(time.Millisecond)
		w.wantHeard(e, "leave b B 0 @500", "leave c C 0 @600")
	})
}

// flushAll empties every master.
func flushAll(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		must(t, cluster.ForEachMaster(t.Context(), func(ctx context.Context, master *redis.Client) error { return master.FlushAll(ctx).Err() }))
		return
	}
	must(t, rdb.FlushAll(t.Context()).Err())
}

// ownRedis are servers that the test may flush.
func ownRedis(t *testing.T, cluster bool) backend {
	t.Helper()
	if !cluster {
		return backend{url: spawnRedis(t).url, real: true}
	}
	needRedis(t)
	c, err := startCluster()
	must(t, err)
	t.Cleanup(c.remove)
	return backend{url: c.url, real: true, cluster: true}
}

// repairedRooms are rooms in which one node owns most members and each of some others has one client; another node only watches.
type repairedRooms struct {
	*testing.T
	large, watching *node
	others          []*node
	rooms           []*audience
	owned           []string // connections of the large node; the one at i is in the room i modulo their number
	watchers        []*ear
	rdb             redis.UniversalClient
}

func newRepairedRooms(t *testing.T, b backend, rooms, members int) *repairedRooms {
	t.Helper()
	s := &repairedRooms{T: t, rdb: b.open(t), large: startNodeFor(t, b), watching: startNodeFor(t, b),
		others: []*node{startNodeFor(t, b), startNodeFor(t, b)}, owned: make([]string, members), watchers: make([]*ear, rooms)}
	for range rooms {
		s.rooms = append(s.rooms, newAudience(t, uniqueRoom(t)))
	}
	crowd(members, func(i int) {
		s.owned[i] = fmt.Sprint("c", i)
		s.large.settle(t, s.in(i).room, s.owned[i])
	})
	for i, conn := range s.owned {
		s.in(i).living[conn] = true
	}
	crowd(rooms, func(i int) {
		for _, n := range s.others {
			s.in(i).join("127.0.0.1:"+n.port(), "{}")
		}
		s.watchers[i] = &ear{id: "watcher"}
		w := newWaiter(0, s.watchers[i], asWatcher, modeAll, func(*view) frameParts { return nil })
		if err := s.watching.hub.acquire(s.in(i).room).admit(t.Context(), w); err != nil {
			t.Error(err)
		}
	})
	return s
}

// in is the room of the connection at i.
func (s *repairedRooms) in(i int) *audience { return s.rooms[i%len(s.rooms)] }

// patch changes the state of a client in each room.
func (s *repairedRooms) patch(n int) {
	crowd(len(s.rooms), func(i int) {
		if _, err := s.rooms[i].observers()[n%len(s.others)].patch(s.Context(), n); err != nil {
			s.Error(err)
		}
	})
}

// repaired tells whether the store has who lives in a room, and all its clients know that.
func (s *repairedRooms) repaired(r *audience) bool {
	read, err := s.large.service.read(s.Context(), r.room)
	r.mu.Lock()
	living := len(r.living)
	r.mu.Unlock()
	if err != nil || len(read.Entries) != living {
		return false
	}
	for _, o := range r.observers() {
		if !o.mirror.equals(read) {
			return false
		}
	}
	return true
}

func (s *repairedRooms) assertNoFalseLeave() {
	s.Helper()
	for _, r := range s.rooms {
		eventually(s, healedWithin+removedWithin, "all members are back, and everybody knows it", func() bool { return s.repaired(r) })
	}
	for _, r := range s.rooms {
		r.afterTheHold(append(s.others, s.large, s.watching)...)
	}
	wrong, first := 0, ""
	for i, r := range s.rooms {
		r.mu.Lock()
		for _, leave := range r.wrongly {
			wrong, first = wrong+1, leave
		}
		for conn := range r.living {
			for line := range strings.Lines(s.watchers[i].all(s)) {
				if strings.Contains(line, `"type":"leave"`) && strings.Contains(line, `"connId":"`+conn+`"`) {
					wrong, first = wrong+1, line
				}
			}
		}
		r.mu.Unlock()
	}
	if wrong > 0 {
		s.Errorf("%d leaves of living members were told, one of them: %s", wrong, first)
	}
}

// TestAnotherNodeRepairsFirst_G3 loses data of rooms and has clients of small nodes patch at once, so that their nodes first read
// rooms whose repair has begun elsewhere, or by themselves.
func TestAnotherNodeRepairsFirst_G3(t *testing.T) {
	for _, c := range []struct {
		name    string
		cluster bool
		rooms   int
		lose    func(s *repairedRooms)
	}{
		{"few rooms", false, 3, func(s *repairedRooms) { flushAll(s.T, s.rdb) }},
		{"many rooms", false, 100, func(s *repairedRooms) { flushAll(s.T, s.rdb) }},
		{"cluster", true, 40, func(s *repairedRooms) { flushAll(s.T, s.rdb) }},
		{"one of three masters", true, 40, func(s *repairedRooms) {
			var once bool
			must(s.T, s.rdb.(*redis.ClusterClient).ForEachMaster(s.Context(), func(ctx context.Context, master *redis.Client) error {
				s.rooms[0].mu.Lock()
				first := !once
				once = true
				s.rooms[0].mu.Unlock()
				if !first {
					return nil
				}
				return master.FlushAll(ctx).Err()
			}))
		}},
		{"subscriptions too", false, 30, func(s *repairedRooms) {
			flushAll(s.T, s.rdb)
			must(s.T, s.rdb.ClientKillByFilter(s.Context(), "TYPE", "pubsub").Err())
		}},
		{"counters", false, 30, func(s *repairedRooms) {
			for _, r := range s.rooms {
				must(s.T, s.rdb.Del(s.Context(), keysOf(r.room).revision()).Err())
			}
		}},
		{"all but the counters", false, 30, func(s *repairedRooms) {
			for _, r := range s.rooms {
				k := keysOf(r.room)
				must(s.T, s.rdb.Del(s.Context(), k.meta(), k.members(), k.lastSeen(), k.conns()).Err())
			}
			must(s.T, s.rdb.ClientKillByFilter(s.Context(), "TYPE", "pubsub").Err())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.rooms > 3 {
				takesLong(t)
			}
			s := newRepairedRooms(t, ownRedis(t, c.cluster), c.rooms, 600)
			for n := range 2 {
				c.lose(s)
				s.patch(n)
			}
			s.assertNoFalseLeave()
		})
	}
}

// TestWhoLeftIsToldInTimeWhileOthersComeAndGo_G3 has members end unheard in a loss of data, while other clients join and leave, and the
// members of the nodes are removed behind their backs.
func TestWhoLeftIsToldInTimeWhileOthersComeAndGo_G3(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s := newRepairedRooms(t, ownRedis(t, false), 5, 50)
	witness := s.rooms[0].observers()
	flushAll(t, s.rdb)
	lost := time.Now()
	for i, conn := range s.owned[:10] {
		s.large.hub.find(s.in(i).room).disown(conn)
		s.in(i).mu.Lock()
		delete(s.in(i).living, conn)
		s.in(i).mu.Unlock()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	churned := make(chan struct{})
	go func() {
		defer close(churned)
		for n := 0; ctx.Err() == nil; n++ {
			s.patch(n)
			victim := s.owned[10+n%40]
			_ = s.large.service.Leave(ctx, s.in(10+n%40).room, victim) // as a reaper would that took it for silent
			s.large.hub.find(s.in(10 + n%40).room).check()
			pause(ctx, 20*time.Millisecond)
		}
	}()
	gone := func() bool {
		for _, o := range witness {
			o.mirror.mu.Lock()
			_, first := o.mirror.replica.entries.get(s.owned[0])
			_, second := o.mirror.replica.entries.get(s.owned[5])
			o.mirror.mu.Unlock()
			if first || second {
				return false
			}
		}
		return true
	}
	eventually(t, 2*removedWithin, "the leaves of those who ended", gone)
	took := time.Since(lost)
	cancel()
	<-churned
	t.Logf("told after %v", took.Round(time.Millisecond))
	if took > removedWithin {
		t.Errorf("want it within %v", removedWithin)
	}
}
