package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// withWindows has a world whose batches and counts can be read: "batch @rev count/users [events]".
func withWindows(t *testing.T, body func(w *world)) {
	t.Helper()
	inWorld(t, func(w *world) {
		w.hub.encode.batch = func(b Batch) frame {
			lines := []string{}
			for _, e := range b.Events {
				lines = append(lines, said(e))
			}
			return frame(fmt.Sprintf("batch @%d %d/%d [%s]", b.Rev, b.Count, b.Users, strings.Join(lines, "; ")))
		}
		w.hub.encode.count = func(b Batch) frame { return frame(fmt.Sprintf("count @%d %d/%d", b.Rev, b.Count, b.Users)) }
		body(w)
	})
}

// listener is a receiver that has begun in a role and a mode, and has heard nothing.
func (w *world) listener(r *room, id string, as role, mode eventMode) *ear {
	w.Helper()
	e := &ear{id: id}
	if err := r.admit(w.Context(), newWaiter(0, e, as, mode, e.welcome)); err != nil {
		w.Fatal(err)
	}
	e.heard = nil
	return e
}

func TestModes(t *testing.T) {
	withWindows(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		all := w.listener(r, "all", asWatcher, modeAll)
		batch := w.listener(r, "batch", asMember, modeBatch)
		count := w.listener(r, "count", asWatcher, modeCount)
		none := w.listener(r, "none", asMember, modeNone)

		w.tell(joined(10, 11, "b")) // the first change after a quiet time
		w.wantHeard(batch, "batch @11 2/2 [join b B 1 @11 {}]")
		w.wantHeard(count, "count @11 2/2")

		w.tell(patched(11, 12, "b", `{"n":1}`))
		w.tell(patched(12, 13, "b", `{"n":2}`), joined(13, 14, "c"), gone(14, 15, "c"), gone(15, 16, "a"))
		w.wantHeard(batch, "batch @11 2/2 [join b B 1 @11 {}]") // all else waits for the end of the window
		w.pass(w.hub.batchEvery)
		w.wantHeard(batch, "batch @11 2/2 [join b B 1 @11 {}]", `batch @16 1/1 [update b B 1 @13 {"n":2}; leave a A 0 @16 null]`)
		w.wantHeard(count, "count @11 2/2")
		w.pass(w.hub.countEvery)
		w.wantHeard(count, "count @11 2/2", "count @16 1/1")
		w.wantHeard(none)
		if n := len(all.heard); n != 6 {
			t.Errorf("who wants each event got %d", n)
		}
	})
}

func TestAMemberHearsOfItsRemovalInEveryMode(t *testing.T) {
	withWindows(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"), here("b", 2, "{}"), here("c", 3, "{}"), here("d", 4, "{}"))
		r := w.room()
		modes := map[eventMode]*ear{}
		for i, id := range []string{"a", "b", "c", "d"} {
			modes[eventMode(i)] = w.listener(r, id, asMember, eventMode(i))
		}
		w.tell(gone(10, 11, "a"), gone(11, 12, "b"), gone(12, 13, "c"), gone(13, 14, "d"))
		w.wantHeard(modes[modeNone], "leave a A 0 @11 null")
		w.wantHeard(modes[modeCount], "leave b B 0 @12 null", "count @14 0/0")
		w.wantHeard(modes[modeBatch], "batch @14 0/0 [leave a A 0 @11 null; leave b B 0 @12 null; leave c C 0 @13 null; leave d D 0 @14 null]")
	})
}

// Who begins within a window is answered at once, and is told what changed since then when the window ends: what its snapshot
// holds does not come again (G2). The others' window does not end sooner.
func TestABatchHoldsNothingOfTheSnapshot_G2(t *testing.T) {
	withWindows(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		early := w.listener(r, "early", asMember, modeBatch)
		w.tell(joined(10, 11, "a"))
		w.tell(joined(11, 12, "b")) // waits
		late := &ear{id: "late"}
		if err := r.admit(w.Context(), newWaiter(12, late, asMember, modeBatch, late.welcome)); err != nil {
			t.Fatal(err)
		}
		w.wantHeard(late, "ack @12 [a b]")
		w.tell(joined(12, 13, "c"), gone(13, 14, "b"))
		w.wantHeard(early, "batch @11 1/1 [join a A 1 @11 {}]")
		w.pass(w.hub.batchEvery)
		w.wantHeard(early, "batch @11 1/1 [join a A 1 @11 {}]", "batch @14 2/2 [join c C 1 @13 {}]")
		w.wantHeard(late, "ack @12 [a b]", "batch @14 2/2 [join c C 1 @13 {}; leave b B 0 @14 null]")
		w.wantReads(1) // nobody was impatient
	})
}

// A batch does not wait for the time of counts, nor a newcomer for that of batches, and who takes and ends a role again and
// again makes nobody's batches more frequent.
func TestEachModeHasItsOwnTime(t *testing.T) {
	withWindows(t, func(w *world) {
		w.source.store(10, here("x", 1, "{}"))
		r := w.room()
		steady := w.listener(r, "steady", asMember, modeBatch)
		w.listener(r, "count", asMember, modeCount)
		toggles := w.listener(r, "toggles", asMember, modeBatch)
		rev, began := int64(10), time.Now()
		for time.Since(began) < 2*time.Second {
			w.tell(joined(rev, rev+1, "a"), gone(rev+1, rev+2, "a"), patched(rev+2, rev+3, "x", fmt.Sprint(rev)))
			rev += 3
			if err := r.admit(w.Context(), newWaiter(rev, toggles, asWatcher, modeNone, toggles.welcome)); err != nil {
				t.Fatal(err)
			}
			r.leave(toggles, asWatcher)
			w.pass(10 * time.Millisecond)
		}
		if n := len(steady.heard); n < 8 || n > 9 {
			t.Errorf("%d batches in 2 s", n)
		}
	})
}

// A page may show a connection that comes and goes within a window: its leave is told then.
func TestAPageWithinAWindowLeavesNoGhost_G3(t *testing.T) {
	withWindows(t, func(w *world) {
		w.source.store(10, here("x", 1, "{}"))
		r := w.room()
		e := w.listener(r, "e", asMember, modeBatch)
		w.tell(joined(10, 11, "a"))
		w.tell(joined(11, 12, "b"))
		var p page
		err := w.hub.page(w.Context(), "r", "a", 1, e, func(given page) frameParts {
			p = given
			return nil
		})
		if !strings.Contains(string(p.entries), `"connId":"b"`) || p.rev != 12 || p.last != "b" || err != nil {
			t.Fatalf("the page is %s at %d, last %q, %v", p.entries, p.rev, p.last, err)
		}
		w.tell(gone(12, 13, "b"), joined(13, 14, "c"), gone(14, 15, "c"))
		w.pass(w.hub.batchEvery)
		w.wantHeard(e, "batch @11 2/2 [join a A 1 @11 {}]", "batch @15 2/2 [leave b B 0 @13 null]")
	})
}

// A member that also watches hears of each change once, in the mode that tells more.
func TestSeats(t *testing.T) {
	closed, stop := context.WithCancel(t.Context())
	stop() // a closed hub sets no timers
	r := newRoom(newDispatcher(&hub{background: &background{ctx: closed}}), "r")
	l := &r.listeners
	type place struct{ member, watcher eventMode } // plus one
	model := map[receiver]place{}
	all := make([]*ear, 20)
	for i := range all {
		all[i] = &ear{id: fmt.Sprint(i)}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		e, as, mode := all[random.IntN(len(all))], role(random.IntN(int(roles))), eventMode(random.IntN(4))
		p := model[e]
		chosen := &p.member
		if as == asWatcher {
			chosen = &p.watcher
		}
		if random.IntN(2) == 0 {
			l.admit(e, as, mode)
			*chosen = mode + 1
		} else {
			l.dismiss(e, as)
			*chosen = 0
		}
		if model[e] = p; p == (place{}) {
			delete(model, e)
		}
		for mode, list := range l.lists {
			for at, to := range list {
				p := model[to]
				if max(p.member, p.watcher) != eventMode(mode)+1 || l.subscriptions[to].at != at {
					t.Fatalf("%s has %v and is at %d of the list of mode %d", to.ID(), p, at, mode)
				}
			}
		}
		members, quiet := map[receiver]bool{}, 0
		for to, p := range model {
			if p.member > 0 {
				members[to] = true
				if max(p.member, p.watcher) <= modeBatch {
					quiet++
				}
			}
		}
		if rooms, n := r.hub.size(); n != len(members) || rooms != min(len(members), 1) {
			t.Fatalf("the hub has %d members in %d rooms, want %d", n, rooms, len(members))
		}
		got := map[receiver]bool{}
		l.collect(got)
		if !maps.Equal(got, members) || len(l.withoutEvents) != quiet || len(l.subscriptions) != len(model) || l.members != len(members) {
			t.Fatalf("%d members, %d counted, %d quiet ones, %d subscriptions, want %d, %d, %d", len(got), l.members, len(l.withoutEvents), len(l.subscriptions), len(members), quiet, len(model))
		}
	}
}

// The fold of snapshot and batches is the room, and userConns of each event is what the fold then has, whatever happened in
// the windows, events lost and the room read anew included (G3).
func TestNetEffectsFoldToTheRoom_G3(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		room, fold := newReplica("r"), newReplica("r")
		w, number := changes{}, int64(0)
		for range 20 {
			for range random.IntN(12) {
				for _, c := range randomChange(random, &room) {
					number++
					w.note(c, number, 0)
				}
			}
			last := fold.rev
			for _, e := range w.net(&room) {
				if e.Rev < last {
					t.Fatalf("seed %d: %s comes after revision %d", seed, said(e), last)
				}
				last = e.Rev
				before, had := fold.entries.get(e.ConnID)
				if had && e.Type == EventJoin && before.UserID != e.UserID && before.Epoch >= e.Epoch || !had && e.Type != EventJoin {
					t.Fatalf("seed %d: %s for %+v", seed, said(e), before)
				}
				fold.apply(e)
				if got := fold.users[e.UserID]; got != e.UserConns {
					t.Fatalf("seed %d: %s, and the fold has %d connections", seed, said(e), got)
				}
			}
			w = changes{}
			assertSameMembers(t, seed, fold, room)
		}
	}
}

// randomChange changes a room as a message does, or as a reading after lost messages.
func randomChange(random *rand.Rand, room *replica) []change {
	rev := room.rev + 1 + random.Int64N(3)
	conn, user := fmt.Sprint("c", random.IntN(5)), fmt.Sprint("u", random.IntN(3))
	old, had := room.entries.get(conn)
	e := Event{Type: EventJoin, RoomID: "r", UserID: user, ConnID: conn, State: raw(fmt.Sprint(random.IntN(3))), Epoch: rev, Rev: rev}
	switch kind := random.IntN(10); {
	case kind == 0:
		s := Snapshot{Rev: rev, TS: rev}
		for entry := range room.entries.all() {
			if random.IntN(3) > 0 {
				s.Entries = append(s.Entries, entry)
			}
		}
		if !had {
			s.Entries = append(s.Entries, Entry{ConnID: conn, UserID: user, State: e.State, Epoch: rev, Rev: rev})
		}
		slices.SortFunc(s.Entries, func(a, b Entry) int { return strings.Compare(a.ConnID, b.ConnID) })
		return room.adopt(s, nobody)
	case had && kind < 4:
		e.Type, e.UserID, e.Epoch, e.State = EventLeave, old.UserID, old.Epoch, nil
	case had && kind < 7:
		e.Type, e.UserID, e.Epoch = EventUpdate, old.UserID, old.Epoch
	case had && old.UserID != user:
		gone := Event{Type: EventLeave, RoomID: "r", UserID: old.UserID, ConnID: conn, Epoch: old.Epoch, Rev: rev, Reason: ReasonReplaced}
		e.Rev, e.Epoch = rev+1, rev+1
		return []change{room.apply(gone), room.apply(e)}
	}
	return []change{room.apply(e)}
}

func assertSameMembers(t *testing.T, seed uint64, fold, room replica) {
	t.Helper()
	same := func(a, b Entry) bool {
		return a.ConnID == b.ConnID && a.UserID == b.UserID && a.Epoch == b.Epoch && string(a.State) == string(b.State)
	}
	if !slices.EqualFunc(slices.Collect(fold.entries.all()), slices.Collect(room.entries.all()), same) || !maps.Equal(fold.users, room.users) {
		t.Fatalf("seed %d: the fold has\n%v\nthe room\n%v", seed, slices.Collect(fold.entries.all()), slices.Collect(room.entries.all()))
	}
}

// Pages from first to last give everybody once, in the order of ids, whatever their size and whoever comes in between.
func TestPagesOfAReplica(t *testing.T) {
	p := newReplica("r")
	var want []string
	for i := range 25 {
		id := fmt.Sprintf("c%02d", (i*7)%25)
		p.put(here(id, int64(i+1), "{}"))
		want = append(want, id)
	}
	slices.Sort(want)
	for limit := 1; limit < 30; limit++ {
		var got []string
		for after := ""; ; {
			given := p.view().page(after, limit)
			var entries []Entry
			if err := json.Unmarshal(given.entries, &entries); err != nil {
				t.Fatal(err)
			}
			if len(entries) > limit {
				t.Fatalf("%d entries, %d asked for", len(entries), limit)
			}
			for _, e := range entries {
				got = append(got, e.ConnID)
			}
			if after = given.last; after == "" {
				break
			}
			p.put(here("a", 99, "{}")) // before every cursor
			p.drop("a")
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v", limit, got)
		}
	}
}

// TestAWatcherWhoseMembershipIsRemovedHearsOfTheOthers_G3 has a reading find that a member was kicked whose socket watches the room as well, and
// that somebody else came.
func TestAWatcherWhoseMembershipIsRemovedHearsOfTheOthers_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.hub.encode.batch = func(b Batch) frame {
			var text []string
			for _, e := range b.Events {
				text = append(text, said(e))
			}
			return frame(fmt.Sprintf("batch @%d %d: %s", b.Rev, b.Count, strings.Join(text, ", ")))
		}
		w.source.store(10, here("a", 8, "{}"))
		r, e := w.room(), &ear{id: "a"}
		for _, as := range []role{asMember, asWatcher} {
			if err := r.admit(w.Context(), newWaiter(0, e, as, modeBatch, func(*view) frameParts { return nil })); err != nil {
				t.Fatal(err)
			}
		}
		r.own("a", &membership{room: r, mu: newOperationLock[ofMembership](), ended: true})
		w.readAgain(14, lossSigns{}, here("b", 13, "{}"))
		w.wantHeard(e, "batch @14 1: join b B 1 @14 {}, leave a A 0 @14")
		w.tell(gone(14, 15, "b"))
		w.pass(w.hub.batchEvery)
		w.wantHeard(e, "batch @14 1: join b B 1 @14 {}, leave a A 0 @14", "batch @15 0: leave b B 0 @15 null")
	})
}
