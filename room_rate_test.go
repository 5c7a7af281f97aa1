package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// roomMeter is a receiver that counts what it is sent, and keeps the last of it.
type roomMeter struct {
	nowhere
	id string

	mu    sync.Mutex
	bytes int
	last  frame
}

func (m *roomMeter) ID() string { return m.id }

func (m *roomMeter) queue(f frame, _ memberUpdate) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += len(f)
	m.last = f
	return false
}

func (m *roomMeter) heard() (bytes int, last frame) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes, m.last
}

func (m *roomMeter) hold() (release func(frameParts)) { return func(frameParts) {} }

// One member changes a large state at its full rate: a room of 50 is sent what the limit allows, and ends with the last state.
func TestOneSenderKeepsToTheLimitOfTheRoom_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		const limit, every = 1_500_000, 20 * time.Millisecond
		w.hub.roomBytes = limit
		w.source.store(1, here("a", 1, "{}"))
		r := w.room()
		var meters []*roomMeter
		for i := range 50 {
			m := &roomMeter{id: fmt.Sprint("m", i)}
			meters = append(meters, m)
			if err := r.admit(w.Context(), newWaiter(1, m, asWatcher, modeAll, func(*view) frameParts { return nil })); err != nil {
				w.Fatal(err)
			}
		}
		sent := func() (bytes int) {
			for _, m := range meters {
				n, _ := m.heard()
				bytes += n
			}
			return bytes
		}
		rev, pad := int64(1), long(3000)
		second := func() (bytes int) {
			before := sent()
			for range time.Second / every {
				w.tell(patched(rev, rev+1, "a", fmt.Sprintf(`{"n":%d,"pad":"%s"}`, rev+1, pad)))
				rev++
				w.pass(every)
			}
			return sent() - before
		}
		if first := second(); first < limit || first > 2*limit*6/5 { // a burst of one second is free
			w.Errorf("in the first second %d bytes are sent", first)
		}
		for range 4 {
			if bytes := second(); bytes < limit*4/5 || bytes > limit*6/5 {
				w.Errorf("in a second %d bytes are sent", bytes)
			}
		}
		w.pass(2 * time.Second)
		for _, m := range meters {
			_, last := m.heard()
			if want := fmt.Sprintf(`update a A 1 @%d {"n":%d,`, rev, rev); !strings.HasPrefix(string(last), want) {
				w.Fatalf("%s is told %.30q last, want %q", m.id, last, want)
			}
		}
	})
}

// A room that is over its limit: what is told at once, and what waits.
func TestARoomOverItsLimit_G2(t *testing.T) {
	begin := func(w *world) (r *room, all *ear) {
		w.hub.roomBytes = 1
		w.source.store(10, here("a", 1, "{}"), here("b", 2, "{}"))
		r = w.room()
		all = w.listener(r, "all", asWatcher, modeAll)
		w.tell(patched(10, 11, "a", "1"), patched(11, 12, "a", "2"), patched(12, 13, "b", "3"), patched(13, 14, "a", "4"))
		w.wantHeard(all, "update a A 1 @11 1")
		return r, all
	}
	collected := []string{"update a A 1 @11 1", "update b B 1 @13 3", "update a A 1 @14 4"}
	cases := map[string]struct {
		do   func(w *world, r *room, all *ear)
		then []string
	}{
		"time": {func(w *world, _ *room, _ *ear) { w.pass(time.Minute) }, collected},
		"a join": {func(w *world, _ *room, _ *ear) { w.tell(joined(14, 15, "c")) },
			append(slices.Clone(collected), "join c C 1 @15 {}")},
		"a leave of who has changed": {func(w *world, _ *room, _ *ear) { w.tell(gone(14, 15, "a")) },
			append(slices.Clone(collected), "leave a A 0 @15 null")},
		"a kick of the receiver's member": {func(w *world, r *room, all *ear) {
			w.tell(joined(14, 15, "all"), patched(15, 16, "b", "5"))
			kick := gone(16, 17, "all")
			kick.Reason = ReasonKicked
			w.tell(kick)
		}, append(slices.Clone(collected), "join all ALL 1 @15 {}", "update b B 1 @16 5", "leave all ALL 0 @17 null")},
		"its page": {func(w *world, r *room, all *ear) {
			if err := r.admit(w.Context(), newGlance(0, "", 1, all, func(p page) frameParts { return frameParts{fmt.Appendf(nil, "page @%d", p.rev)} })); err != nil {
				w.Error(err)
			}
		}, append(slices.Clone(collected), "page @14")},
		"another one's page": {func(w *world, r *room, _ *ear) {
			other := w.listener(r, "other", asWatcher, modeAll)
			if err := r.admit(w.Context(), newGlance(0, "", 1, other, func(page) frameParts { return nil })); err != nil {
				w.Error(err)
			}
		}, collected[:1]},
		"another mode": {func(w *world, r *room, all *ear) {
			if err := r.admit(w.Context(), newWaiter(0, all, asMember, modeNone, func(*view) frameParts { return nil })); err != nil {
				w.Error(err)
			}
			r.leave(all, asWatcher)
			w.pass(time.Minute)
		}, collected},
		"the end of its watch": {func(w *world, r *room, all *ear) {
			r.leave(all, asWatcher)
			w.pass(time.Minute)
		}, collected[:1]},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				r, all := begin(w)
				c.do(w, r, all)
				w.wantHeard(all, c.then...)
			})
		})
	}
}

// Who begins while updates are collected is told only those after its snapshot.
func TestWhoBeginsInARoomOverItsLimit_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.hub.roomBytes = 1
		w.source.store(10, here("a", 1, "{}"), here("b", 2, "{}"))
		r := w.room()
		first := w.listener(r, "first", asWatcher, modeAll)
		w.tell(patched(10, 11, "a", "1"), patched(11, 12, "a", "2"))
		second := w.listener(r, "second", asWatcher, modeAll)
		w.tell(patched(12, 13, "b", "3"))
		third := w.listener(r, "third", asWatcher, modeAll)
		gone := w.listener(r, "gone", asWatcher, modeAll)
		w.tell(patched(13, 14, "a", "4"))
		r.leave(gone, asWatcher)
		gone = w.listener(r, "gone", asWatcher, modeAll)
		w.tell(patched(14, 15, "a", "5"))
		r.leave(gone, asWatcher)
		r.mu.Lock()
		if n := len(r.listeners.collected.spans); n != 3 {
			w.Errorf("%d spans are kept for three receivers", n)
		}
		r.mu.Unlock()
		w.pass(time.Minute)
		w.wantHeard(first, "update a A 1 @11 1", "update b B 1 @13 3", "update a A 1 @15 5")
		w.wantHeard(second, "update b B 1 @13 3", "update a A 1 @15 5")
		w.wantHeard(third, "update a A 1 @15 5")
		w.wantHeard(gone)
	})
}

// Joins and leaves count against the limit, and yet later updates do not wait for what they cost.
func TestJoinsMakeNoDebtOfARoom(t *testing.T) {
	inWorld(t, func(w *world) {
		w.hub.roomBytes = 1000
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		all := w.listener(r, "all", asWatcher, modeAll)
		for rev := range int64(1000) { // 20 KB
			w.hub.dispatchers[0].message("r", payloadOf(joined(10+rev, 11+rev, "b")))
		}
		w.tell(patched(1010, 1011, "a", "1"), patched(1011, 1012, "a", "2"))
		if heard := all.all(w); !strings.HasSuffix(heard, "update a A 1 @1011 1") {
			w.Errorf("ends with %q", heard[len(heard)-30:])
		}
		w.pass(100 * time.Millisecond)
		if heard := all.all(w); !strings.HasSuffix(heard, "update a A 1 @1012 2") {
			w.Errorf("ends with %q", heard[len(heard)-30:])
		}
	})
}

func TestTheLimitOfARoomIsASetting(t *testing.T) {
	n, room := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_ROOM_BYTES_PER_SECOND=1"), uniqueRoom(t)
	u := n.user(t)
	u.join(room, "ann", "{}")
	for i := range 3 {
		u.ok(eventHeartbeat, fmt.Sprintf(`{"patchState":{"n":%d}}`, i))
	}
	n.member(t, room, "bob", "{}")
	u.until("the join", func(e wireEvent) bool { return e.UserID == "bob" })
	var told []string
	for _, e := range u.events {
		if e.Type == string(EventUpdate) {
			told = append(told, string(e.State))
		}
	}
	if !slices.Equal(told, []string{`{"n":0}`, `{"n":2}`}) {
		t.Errorf("is told %q", told)
	}
}
