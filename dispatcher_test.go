package main

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// Each dispatcher tells of its own rooms in order, and what one of them queues for a socket is written by it or by another one
// that had queued before.
func TestDispatchersShareASocket_G1(t *testing.T) {
	t.Parallel()
	const rooms, updates, batch = 40, 500, 7
	h := newHub(hubOptions{
		source: &fakeSource{}, dispatcherCount: 4, log: testLogger(t),
		encode:  encoders{event: func(e Event) frame { return frame(fmt.Sprint(e.RoomID, " ", e.Rev)) }},
		connect: func([]bridgeSink) subscriptions { return &fakeSubscriptions{} },
	})
	defer h.close()
	to, mine := &ear{}, map[*dispatcher][]string{}
	for i := range rooms {
		id := fmt.Sprint("room", i)
		r := h.acquire(id)
		if r != h.find(id) || r.dispatcher != h.dispatcherOf(id) {
			t.Fatalf("%s is not found again", id)
		}
		r.check()
		if err := r.admit(t.Context(), newWaiter(0, to, asWatcher, modeAll, to.welcome)); err != nil {
			t.Fatal(err)
		}
		mine[r.dispatcher] = append(mine[r.dispatcher], id)
	}
	if len(h.all(rooms+1)) != rooms || len(h.all(3)) != 3 || len(mine) < 2 {
		t.Fatalf("%d rooms of %d dispatchers", len(h.all(rooms+1)), len(mine))
	}
	var work sync.WaitGroup
	for d, ids := range mine {
		work.Go(func() {
			for i := range updates * len(ids) {
				id, rev := ids[i%len(ids)], int64(i/len(ids)+1)
				d.message(id, payloadOf(message{rev - 1, Event{Type: EventUpdate, RoomID: id, ConnID: "a", UserID: "A", Rev: rev, Epoch: 1, State: raw("{}")}}))
				if i%batch == 0 {
					d.settled()
				}
			}
			d.settled()
		})
	}
	work.Wait()
	last, events := map[string]int64{}, 0
	to.all(t) // nothing is left unwritten
	for _, line := range to.heard {
		var id string
		var rev int64
		if n, _ := fmt.Sscanf(line, "room%s %d", &id, &rev); n != 2 {
			continue // the answer to a join
		}
		if rev != last[id]+1 {
			t.Fatalf("room%s is at %d after %d", id, rev, last[id])
		}
		last[id] = rev
		events++
	}
	if events != rooms*updates {
		t.Errorf("%d events, want %d", events, rooms*updates)
	}
}

// Everything is spread: a room that is busy holds back only those of its dispatcher.
func TestDispatchersDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	h := newHub(hubOptions{
		source: &fakeSource{}, dispatcherCount: 2, log: testLogger(t), encode: encoders{event: presenceFrame},
		connect: func([]bridgeSink) subscriptions { return &fakeSubscriptions{} },
	})
	defer h.close()
	busy, other := h.dispatchers[0], h.dispatchers[1]
	busy.mu.Lock()
	defer busy.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		other.message("unknown", "")
		other.settled()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("a dispatcher waits for another one")
	}
}
