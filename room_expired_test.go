package main

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// countedLosses counts what a hub takes for losses of data.
type countedLosses struct{ members, data, kicks int }

func (c *countedLosses) lostMembers(*room)                             { c.members++ }
func (c *countedLosses) lostData()                                     { c.data++ }
func (c *countedLosses) toldOfKick(*membership, string, int64, Reason) { c.kicks++ }

const (
	lastRev   = int64(10)        // of the room that these tests begin with
	expiredAt = lastRev + 60_000 // the first moment at which its counter may have expired
	begun     = expiredAt + 5    // when a new counter begins
)

// inEmptyRoom calls body with a room that is known to be empty at lastRev, and a receiver in it. members are there nevertheless.
func inEmptyRoom(t *testing.T, body func(w *world, e *ear, losses *countedLosses), members ...Entry) {
	t.Helper()
	inWorld(t, func(w *world) {
		losses := &countedLosses{}
		w.hub.loss = losses
		w.source.store(lastRev, members...)
		w.source.stored.loss = lossSigns{server: "s1", origin: 5}
		body(w, w.guest(w.room()), losses)
	})
}

// nowStored sets what the store holds at a time of Redis' clock.
func (w *world) nowStored(rev, ms int64, signs lossSigns, entries ...Entry) {
	w.source.store(rev, entries...)
	w.source.mu.Lock()
	defer w.source.mu.Unlock()
	w.source.stored.TS, w.source.stored.loss = ms, signs
}

// TestAReadingAfterTheCounterExpired_G3 is of a room that was empty, whose counter is another one or gone.
func TestAReadingAfterTheCounterExpired_G3(t *testing.T) {
	a, b := here("a", begun, "{}"), here("b", 9, "{}")
	for name, c := range map[string]struct {
		before  []Entry
		rev, ms int64
		signs   lossSigns
		entries []Entry
		lost    bool
	}{
		"no counter":                        {nil, 0, expiredAt, lossSigns{server: "s1"}, nil, false},
		"no counter, and no server's name":  {nil, 0, expiredAt, lossSigns{}, nil, false},
		"no counter too early":              {nil, 0, expiredAt - 1, lossSigns{server: "s1"}, nil, true},
		"no counter at another process":     {nil, 0, expiredAt, lossSigns{server: "s2"}, nil, true},
		"no counter in a torn room":         {nil, 0, expiredAt, lossSigns{server: "s1", torn: true}, nil, true},
		"members without a counter":         {nil, 0, expiredAt, lossSigns{server: "s1"}, []Entry{a}, true},
		"a member went with the counter":    {[]Entry{b}, 0, expiredAt, lossSigns{server: "s1"}, nil, true},
		"a new counter":                     {nil, begun, begun, lossSigns{server: "s1", origin: expiredAt}, []Entry{a}, false},
		"a new counter too early":           {nil, begun, begun, lossSigns{server: "s1", origin: expiredAt - 1}, []Entry{a}, true},
		"a new counter, another process":    {nil, begun, begun, lossSigns{server: "s2", origin: expiredAt}, []Entry{a}, true},
		"a new counter after a member":      {[]Entry{b}, begun, begun, lossSigns{server: "s1", origin: expiredAt}, []Entry{a}, true},
		"the counter fell":                  {nil, 6, expiredAt, lossSigns{server: "s1", origin: 5}, nil, true},
		"the counter fell below its origin": {nil, begun, begun, lossSigns{server: "s1", origin: begun + 1}, []Entry{a}, true},
		"the counter went on":               {nil, begun, begun, lossSigns{server: "s1", origin: 5}, []Entry{a}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inEmptyRoom(t, func(w *world, e *ear, losses *countedLosses) {
				w.nowStored(c.rev, c.ms, c.signs, c.entries...)
				w.hub.dispatchers[0].subscribed("r")
				synctest.Wait()
				if lost := losses.data > 0; lost != c.lost {
					t.Errorf("a loss of data was seen: %t, want %t", lost, c.lost)
				}
				if c.lost {
					return
				}
				want := []string{}
				for _, there := range c.entries {
					want = append(want, fmt.Sprintf("join %s A 1 @%d {}", there.ConnID, c.rev))
				}
				w.tell(joined(c.rev, begun+1, "c"))
				w.wantHeard(e, append(want, fmt.Sprintf("join c C 1 @%d {}", begun+1))...)
				if *losses != (countedLosses{}) {
					t.Errorf("losses were seen: %+v", *losses)
				}
			}, c.before...)
		})
	}
}

// TestAMessageAfterTheCounterExpired_G2_G3 is the first of a new counter, in a room that nobody has read since.
func TestAMessageAfterTheCounterExpired_G2_G3(t *testing.T) {
	for name, c := range map[string]struct {
		before    []Entry
		prev, rev int64
		lost      bool // so that the room is read
	}{
		"a new counter":              {nil, 0, expiredAt, false},
		"a new counter too early":    {nil, 0, expiredAt - 1, true},
		"a counter that went on":     {nil, 7, expiredAt, true},
		"a new counter for a member": {[]Entry{here("b", 9, "{}")}, 0, expiredAt, true},
	} {
		t.Run(name, func(t *testing.T) {
			inEmptyRoom(t, func(w *world, e *ear, losses *countedLosses) {
				reads := w.source.count()
				w.nowStored(c.rev, c.rev, lossSigns{server: "s1", origin: c.rev}, here("a", c.rev, "{}"))
				w.tell(joined(c.prev, c.rev, "a"))
				w.wantHeard(e, fmt.Sprintf("join a A 1 @%d {}", c.rev))
				if lost := losses.data > 0; lost != c.lost || (w.source.count() > reads) != c.lost {
					t.Errorf("a loss of data was seen: %t, after %d reads, want %t", lost, w.source.count()-reads, c.lost)
				}
				if c.lost {
					return
				}
				w.tell(patched(c.rev, c.rev+1, "a", `{"n":1}`))
				w.nowStored(c.rev+1, c.rev+1, lossSigns{server: "s1", origin: c.rev}, Entry{ConnID: "a", UserID: "A", State: raw(`{"n":1}`), Epoch: 1, Rev: c.rev + 1})
				w.hub.dispatchers[0].subscribed("r")
				w.wantHeard(e, fmt.Sprintf("join a A 1 @%d {}", c.rev), fmt.Sprintf(`update a A 1 @%d {"n":1}`, c.rev+1))
				if *losses != (countedLosses{}) {
					t.Errorf("losses were seen: %+v", *losses)
				}
			}, c.before...)
		})
	}
}

// TestAReadingBeforeTheFirstMessageOfANewCounter_G1 looked before a join that its answer comes after.
func TestAReadingBeforeTheFirstMessageOfANewCounter_G1(t *testing.T) {
	for name, rev := range map[string]int64{"the old counter was there": lastRev, "no counter was there": 0} {
		for why, ask := range map[string]func(w *world){
			"messages may be lost": func(w *world) { w.hub.dispatchers[0].subscribed("r") },
			"for a fresh snapshot": func(w *world) { r := w.hub.find("r"); r.mu.Lock(); r.look(); r.mu.Unlock() },
		} {
			t.Run(name+"/"+why, func(t *testing.T) {
				inEmptyRoom(t, func(w *world, e *ear, losses *countedLosses) {
					w.nowStored(rev, expiredAt, lossSigns{server: "s1"})
					release := w.source.hold()
					ask(w)
					synctest.Wait()
					w.tell(joined(0, begun, "a"))
					release()
					w.wantHeard(e, fmt.Sprintf("join a A 1 @%d {}", begun))
					w.tell(gone(begun, begun+1, "a"))
					w.wantHeard(e, fmt.Sprintf("join a A 1 @%d {}", begun), fmt.Sprintf("leave a A 0 @%d null", begun+1))
					if *losses != (countedLosses{}) {
						t.Errorf("losses were seen: %+v", *losses)
					}
				})
			})
		}
	}
}

// assertNoLoss checks that a node has not taken anything for a loss of data.
func assertNoLoss(t *testing.T, n *node) {
	t.Helper()
	if n.hub.missedAt.Load() != nil {
		t.Error("a node has seen a loss of data")
	}
}

// TestARoomWhoseCounterExpiredGoesOn_G1_G2_G3 with watchers and readers of pages, on the node of who joins next and on another.
// They have noticed that the counter is gone, or learn it from the join.
func TestARoomWhoseCounterExpiredGoesOn_G1_G2_G3(t *testing.T) {
	t.Parallel()
	for _, noticed := range []bool{true, false} {
		t.Run(fmt.Sprintf("noticed %t", noticed), func(t *testing.T) {
			eachBackend(t, func(t *testing.T, b backend) {
				nodes := []*node{startNodeFor(t, b), startNodeFor(t, b)}
				rdb, room, other := b.open(t), uniqueRoom(t), uniqueRoom(t)
				nodes[0].member(t, other, "bob", "{}")
				key := keysOf(room).revision()
				last := now(t, nodes[0].service) - (leastCounterLife + time.Second).Milliseconds()
				must(t, rdb.Set(t.Context(), key, last, time.Hour).Err()) // it has been empty for a while
				var watchers []*user
				for _, n := range nodes {
					w := n.user(t)
					if ack := w.ok(eventWatch, inRoom(room, "")); ack.Rev != last || ack.Count != 0 {
						t.Fatalf("the room is %s, want revision %d", ack.text, last)
					}
					watchers = append(watchers, w)
				}
				must(t, rdb.Del(t.Context(), key).Err()) // as when it expires
				if noticed {
					for _, n := range nodes {
						eventually(t, 10*time.Second, "the node notices", func() bool { rev, _ := n.hub.find(room).known(); return rev == 0 })
					}
				}
				ann := nodes[0].user(t)
				joined := ann.join(room, "ann", "{}")
				if joined.Rev <= last || len(joined.Snapshot) != 1 {
					t.Errorf("after revision %d the join is answered %s", last, joined.text)
				}
				for i, w := range watchers {
					if e := w.sees(EventJoin, ann.id); e.Rev <= last || e.Rev != joined.Self.Epoch {
						t.Errorf("event %d after %d", e.Rev, last)
					}
					if ack := nodes[i].user(t).ok(eventGet, inRoom(room, `,"limit":1`)); ack.Count != 1 || ack.Rev != joined.Self.Epoch || len(ack.Snapshot) != 1 {
						t.Errorf("a page of the room is %s", ack.text)
					}
				}
				ann.ok(eventHeartbeat, inRoom(room, `,"patchState":{"n":1}`))
				ann.ok(eventLeave, "")
				for _, w := range watchers {
					w.sees(EventLeave, ann.id)
					w.wantEvents(ann.id, "join ann 1 {}", `update ann 1 {"n":1}`, "leave ann 0 left null")
				}
				for _, n := range nodes {
					assertNoLoss(t, n)
				}
			})
		})
	}
}
