package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// newHeldLease is a lease that the test renews by itself.
func newHeldLease(t *testing.T, s *Service) *lease {
	t.Helper()
	l := newLease(s, s.options.NodeLease, func() {}, testLogger(t))
	if err := l.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close(context.Background(), true) })
	return l
}

// mustOwn has a node's connection join as its handlers do.
func mustOwn(t *testing.T, l *lease, room, conn string) Member {
	t.Helper()
	node, err := l.host(t.Context(), room)
	if err == nil {
		err = l.service.indexRoom(t.Context(), room, l.service.options.Lookback)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.service.join(t.Context(), Member{Room: room, User: "user of " + conn, Conn: conn, Node: node, State: raw("{}")}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustPassNodes(t *testing.T, s *Service) {
	t.Helper()
	if err := newTrustingReaper(s).passNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestALostNodesConnectionsLeave_G5: exactly those, once each, whoever notices, and none of a node that keeps its lease.
func TestALostNodesConnectionsLeave_G5(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{NodeLease: time.Second})
		dead, alive, rooms := newHeldLease(t, s), newHeldLease(t, s), []string{uniqueRoom(t), uniqueRoom(t)}
		events := []*recorder{record(t, s.rdb, rooms[0]), record(t, s.rdb, rooms[1])}
		for i := range removeBatch + 20 {
			mustOwn(t, dead, rooms[i%2], fmt.Sprint("dead", i))
		}
		mustOwn(t, alive, rooms[0], "alive")
		mustJoin(t, s, rooms[0], "nobody's", "free", "{}")
		mustOwn(t, dead, rooms[0], "moved")
		mustOwn(t, alive, rooms[0], "moved") // a newer incarnation, on another node
		eventually(t, 10*time.Second, "the dead are gone", func() bool {
			if err := alive.renew(t.Context()); err != nil {
				t.Error(err)
			}
			var work sync.WaitGroup
			for range 3 {
				work.Go(func() { mustPassNodes(t, s) })
			}
			work.Wait()
			return len(mustRead(t, s, rooms[0]).Entries) == 3 && len(mustRead(t, s, rooms[1]).Entries) == 0
		})
		if got := conns(mustRead(t, s, rooms[0])); !slices.Equal(got, []string{"alive", "free", "moved"}) {
			t.Errorf("the room has %q", got)
		}
		for i, room := range rooms {
			all := events[i].upTo(t, s, room)
			assertChain(t, all)
			assertOneLeave(t, all)
			for _, m := range all {
				if m.Type == EventLeave && m.Reason != ReasonNodeLost {
					t.Errorf("%s left with %q", m.ConnID, m.Reason)
				}
			}
			assertAgree(t, s, room)
		}
		eventually(t, 10*time.Second, "the node is forgotten", func() bool {
			mustPassNodes(t, s)
			return s.rdb.Exists(t.Context(), nodeRoomsKey(dead.name())).Val() == 0 &&
				s.rdb.ZScore(t.Context(), leasesKey, dead.name()).Err() != nil
		})
	})
}

// TestANodeThatFindsItsLeaseLost_G8 goes on under another name, which what is still meant for the old one spares.
func TestANodeThatFindsItsLeaseLost_G8(t *testing.T) {
	const length = 10 * time.Second
	for name, c := range map[string]struct {
		passes int // of others, before it wakes
		leaves int
	}{"before its connections are removed": {0, 0}, "after that": {1, 1}} {
		t.Run(name, func(t *testing.T) {
			s, moveTo := clockedService(t, Options{NodeLease: length})
			l, room := newHeldLease(t, s), uniqueRoom(t)
			events := record(t, s.rdb, room)
			m, lost := mustOwn(t, l, room, "a"), 0
			done := make(chan struct{}, 1)
			l.lost = func() { lost++; done <- struct{}{} }
			old := l.name()
			moveTo(length + time.Second)
			other := newTrustingReaper(s)
			found, _, err := other.owned(t.Context(), room, old, "0") // this one is late
			if err != nil || len(found.list) != 1 {
				t.Fatalf("it has %v, %v", found.list, err)
			}
			for range c.passes {
				mustPassNodes(t, s)
			}
			if c.passes == 0 {
				s.rdb.ZAdd(t.Context(), leasesKey, redis.Z{Score: float64(now(t, s)) + 0.5, Member: old}) // claimed, and no more
			}
			if err := l.renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-done
			if lost != 1 || l.name() == old {
				t.Errorf("the loss was told %d times, and the node is %q", lost, l.name())
			}
			if m.Node, err = l.host(t.Context(), room); err != nil {
				t.Fatal(err)
			}
			if err := s.restore(t.Context(), &m, 0, 0); err != nil {
				t.Fatal(err)
			}
			if _, gone, err := s.remove(t.Context(), room, removal{reason: ReasonNodeLost, node: old}, found.list); err != nil || len(gone) != 0 {
				t.Errorf("the late removal took %v, %v", gone, err)
			}
			mustPassNodes(t, s)
			if v := mustRead(t, s, room); len(v.Entries) != 1 || v.Entries[0].Epoch != m.Epoch {
				t.Errorf("the room is %+v", v)
			}
			all, leaves := events.upTo(t, s, room), 0
			for _, e := range all {
				if e.Type == EventLeave {
					leaves++
				}
			}
			if leaves != c.leaves {
				t.Errorf("%d leaves, want %d", leaves, c.leaves)
			}
			assertAgree(t, s, room)
		})
	}
}

// TestALeaseKnowsItsRooms: what others find of a node may be too much and never too little.
func TestALeaseKnowsItsRooms(t *testing.T) {
	s := startService(t, miniRedis(t).open(t), Options{})
	l := newHeldLease(t, s)
	stored := func() []string {
		t.Helper()
		rooms := s.rdb.HKeys(t.Context(), nodeRoomsKey(l.name())).Val()
		slices.Sort(rooms)
		return rooms
	}
	expect := func(when string, want ...string) {
		t.Helper()
		if got := stored(); !slices.Equal(got, want) {
			t.Errorf("%s: the rooms are %q, want %q", when, got, want)
		}
	}
	renew := func() {
		t.Helper()
		if err := l.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	host := func(room string) {
		t.Helper()
		if _, err := l.host(t.Context(), room); err != nil {
			t.Fatal(err)
		}
	}
	host("one")
	host("two")
	host("two")
	expect("at first", "one", "two")
	l.leave("one")
	expect("before the renewal", "one", "two")
	renew()
	expect("after it", "two")
	l.leave("two")
	host("two")
	renew()
	expect("left and entered again", "two")
	s.rdb.Del(t.Context(), nodeRoomsKey(l.name()))
	renew()
	expect("the rooms were lost", "two")
	s.rdb.Del(t.Context(), leasesKey)
	was := l.name()
	host("three")
	if l.name() == was {
		t.Error("the loss of its lease went unnoticed")
	}
	expect("under a new name", "three")
	for _, key := range []string{leasesKey, nodeRoomsKey(l.name())} {
		if life := s.rdb.PTTL(t.Context(), key).Val(); life < time.Hour-time.Minute || life > time.Hour {
			t.Errorf("%s lives for %v", key, life)
		}
	}
}

// TestANodeThatRenewsNoLongerIsLost_G5 has the parts of two nodes at work: the reaper of one, with its contact to each master,
// and the rooms of the other. One that stops with members that Redis did not take out is found as well.
func TestANodeThatRenewsNoLongerIsLost_G5(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		settings := []string{"PRESENCE_NODE_LEASE_MS=1000", "PRESENCE_REAPER_INTERVAL_MS=100"}
		silent, other := startNodeFor(t, b, settings...), startNodeFor(t, b, settings...)
		room := uniqueRoom(t)
		witness, u := other.member(t, room, "witness", "{}"), silent.member(t, room, "ann", "{}")
		silent.lease.close(t.Context(), false)
		if e := witness.sees(EventLeave, u.id); e.Reason != string(ReasonNodeLost) {
			t.Errorf("left with %q", e.Reason)
		}
	})
}

// TestALeaseCostsTheSameForAnyNumberOfConnections: one script for each renewal.
func TestALeaseCostsTheSameForAnyNumberOfConnections(t *testing.T) {
	b := backend{url: spawnRedis(t).url}
	rdb := b.open(t)
	s := startService(t, rdb, Options{})
	l, room := newHeldLease(t, s), uniqueRoom(t)
	loadEverywhere(t, s, b)
	cost := func() int {
		t.Helper()
		before := calls(t, rdb)
		if err := l.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		return calls(t, rdb) - before
	}
	mustOwn(t, l, room, "first")
	few := cost()
	for i := range 300 {
		mustOwn(t, l, room, fmt.Sprint("c", i))
	}
	many := cost()
	t.Logf("a renewal is %d commands of Redis with 1 connection, %d with 301", few, many)
	if few != many || few == 0 {
		t.Error("want the same number")
	}
}

// TestALeaseForgetsRoomsAsFastAsTheyAreLeft: not one batch for each renewal.
func TestALeaseForgetsRoomsAsFastAsTheyAreLeft(t *testing.T) {
	const rooms, length = 4 * leaseBatch, 30 * time.Second
	s := startService(t, miniRedis(t).open(t), Options{})
	l := newLease(s, length, func() {}, s.options.Logger)
	must(t, l.renew(t.Context()))
	for i := range rooms {
		if _, err := l.host(t.Context(), fmt.Sprint("r", i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range rooms {
		l.leave(fmt.Sprint("r", i))
	}
	l.start()
	defer l.close(t.Context(), true)
	eventually(t, length/6, "all rooms are forgotten", func() bool { return s.rdb.HLen(t.Context(), nodeRoomsKey(l.name())).Val() < leaseBatch })
}
