package main

import (
	"maps"
	"strings"
	"testing"
	"testing/synctest"
)

func TestMessagesOfARoom_G1_G2_G3(t *testing.T) {
	cases := map[string]struct {
		messages []message
		reads    int // beyond the first
		want     []string
	}{
		"in order": {[]message{joined(10, 11, "b"), gone(11, 14, "b")}, 0, []string{"join b B 1 @11 {}", "leave b B 0 @14 null"}},
		"twice":    {[]message{joined(10, 11, "b"), joined(10, 11, "b")}, 0, []string{"join b B 1 @11 {}"}},
		"old ones": {[]message{joined(3, 4, "b"), joined(9, 10, "b")}, 0, nil},
		"one was lost: prev is above the replica": {[]message{joined(15, 20, "c")}, 1,
			[]string{"join b B 1 @20 {}", "join c C 1 @20 {}"}},
		"the counter was lost: prev is below the replica": {[]message{joined(0, 20, "c")}, 1,
			[]string{"join b B 1 @20 {}", "join c C 1 @20 {}"}},
		"those after a lost one are in the read": {[]message{joined(15, 18, "b"), joined(18, 20, "c")}, 1,
			[]string{"join b B 1 @20 {}", "join c C 1 @20 {}"}},
		"one that a failover lost after the message": {[]message{joined(25, 26, "d")}, 1,
			[]string{"join b B 1 @20 {}", "join c C 1 @20 {}"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(10, here("a", 1, "{}"))
				listener := w.guest(w.room())
				w.source.store(20, here("a", 1, "{}"), here("b", 18, "{}"), here("c", 20, "{}"))
				w.tell(c.messages...)
				w.wantReads(1 + c.reads)
				w.wantHeard(listener, c.want...)
			})
		})
	}
}

func TestALeftReceiverHearsNothingMore(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		stays, goes := w.guest(r), w.guest(r)
		w.tell(joined(10, 11, "a"))
		r.leave(goes, asMember)
		r.leave(goes, asMember)
		w.tell(gone(11, 12, "a"))
		w.wantHeard(stays, "join a A 1 @11 {}", "leave a A 0 @12 null")
		w.wantHeard(goes, "join a A 1 @11 {}")
	})
}

func TestARoomWithoutLocalMembersIsGivenUp(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		again := w.hub.acquire("r")
		other := w.hub.acquire("other")
		w.hub.release(r)
		w.pass(2 * roomLinger)
		if again != r || w.hub.find("r") != r {
			t.Error("a room was given up that has a member")
		}
		w.hub.release(again)
		w.pass(roomLinger / 4)
		if w.hub.acquire("r") != r {
			t.Error("a room was given up at once")
		}
		w.hub.release(r)
		w.pass(2 * roomLinger)
		if w.hub.find("r") != nil || w.hub.find("other") != other {
			t.Error("not the idle room is gone, and that only")
		}
		if r.ctx.Err() == nil {
			t.Error("a room that is gone would still read")
		}
		fresh := w.room()
		if fresh == r {
			t.Error("a room was taken up again after it was given up")
		}
		if got, want := strings.Join(w.subs.asked, " "), "+r +other -r +r"; got != want {
			t.Errorf("asked for %q, want %q", got, want)
		}
	})
}

func TestAHubGivesTheReceiversOfRoomsOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.room(), w.hub.acquire("b")
		w.hub.dispatchers[0].subscribed("b")
		synctest.Wait()
		both, one := w.guest(a), w.guest(b)
		if err := b.admit(w.Context(), newWaiter(0, both, asMember, modeAll, both.welcome)); err != nil {
			t.Fatal(err)
		}
		got := w.hub.receivers([]string{"r", "b", "unknown", "r"})
		if !maps.Equal(got, map[receiver]bool{both: true, one: true}) {
			t.Errorf("%d receivers, want 2", len(got))
		}
		if got := w.hub.receivers(nil); len(got) != 0 {
			t.Errorf("%d receivers in no room", len(got))
		}
	})
}

func TestForeignMessagesHarmNobody_G9(t *testing.T) {
	elsewhere := joined(10, 11, "x")
	elsewhere.RoomID = "other"
	backwards := joined(10, 4, "x")
	cases := map[string]string{
		"empty":                  "",
		"not of ours":            "hello",
		"JSON of somebody else":  `{"type":"join"}`,
		"of another room":        payloadOf(elsewhere),
		"half of a message":      payloadOf(joined(10, 11, "x"))[:60],
		"a revision before prev": payloadOf(backwards),
		"of no known type":       strings.Replace(payloadOf(joined(10, 11, "x")), `"join"`, `"jump"`, 1),
	}
	for name, payload := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(10)
				r := w.room()
				listener := w.guest(r)
				w.hub.dispatchers[0].message("r", payload)
				w.hub.dispatchers[0].message("unknown", payload)
				w.hub.dispatchers[0].settled()
				w.tell(joined(10, 12, "a"))
				w.wantHeard(listener, "join a A 1 @12 {}")
				w.wantReads(1)
			})
		})
	}
}
