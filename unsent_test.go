package main

import (
	"bytes"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// hoarder is a client that takes nothing.
type hoarder struct {
	total *unsent

	mu     sync.Mutex
	frames [][]byte
	slow   bool
}

func (h *hoarder) hold(frames ...[]byte) {
	h.mu.Lock()
	h.frames = append(h.frames, frames...)
	h.mu.Unlock()
	h.total.add(h, frames...)
}

func (h *hoarder) held() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.frames {
		n += len(f)
	}
	return n
}

func (h *hoarder) tooSlow() {
	h.mu.Lock()
	frames := h.frames
	h.frames, h.slow = nil, true
	h.mu.Unlock()
	h.total.remove(h, frames...)
}

func (h *hoarder) cut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.slow
}

func TestUnsentCountsASharedFrameOnce(t *testing.T) {
	u := newUnsent(1 << 20)
	a, b := &hoarder{total: u}, &hoarder{total: u}
	shared, own := make([]byte, 1000), make([]byte, 10)
	a.hold(shared, own)
	b.hold(shared[400:]) // of which the kernel took a part
	if want := 1010 + 3*slotBytes; u.total != want {
		t.Errorf("%d bytes wait, want %d", u.total, want)
	}
	u.remove(a, shared[100:], own)
	u.remove(a, make([]byte, 5)) // was never added
	if want := 1000 + slotBytes; u.total != want {
		t.Errorf("%d bytes wait, want %d", u.total, want)
	}
	u.remove(b, shared[999:])
	if u.total != 0 || len(u.frames) != 0 || len(u.clients) != 0 {
		t.Errorf("%d bytes, %d frames and %d clients are left", u.total, len(u.frames), len(u.clients))
	}
}

func TestUnsentCutsThoseWithTheMost(t *testing.T) {
	u := newUnsent(100_000)
	clients := make([]*hoarder, 20)
	for i := range clients {
		clients[i] = &hoarder{total: u}
		clients[i].hold(make([]byte, 400*i+1)) // 76,020 bytes, and the slots
	}
	if clients[19].cut() {
		t.Fatal("a client was cut below the limit")
	}
	clients[0].hold(make([]byte, 30_000))
	u.close()
	var cut []int
	for i, c := range clients {
		if c.cut() {
			cut = append(cut, i)
		}
	}
	if !slices.Equal(cut, []int{0}) {
		t.Errorf("clients %v were cut, want the one with the most", cut)
	}
}

// unread is a WebSocket client whose kernel is full, and what waits for it.
func TestUnsentOfAllSocketsIsBounded(t *testing.T) {
	const bound = 8 << 20
	app := &testApp{}
	total := newUnsent(bound)
	s := startSockets(t, app, func(o *socketOptions) { o.Unsent, o.MaxUnsentBytes = total, 0 })
	for range 8 {
		s.dial(t, direct4).connect()
	}
	for range 4 {
		s.poller(t).connect()
	}
	clients := s.all()
	for range 40 { // frames of their own: 12 times more than the bound
		for _, c := range clients {
			c.send(eventFrame("large", append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, 200_000)...), '"')))
		}
	}
	eventually(t, patience, "what waits is within the bound", func() bool { return !total.above(bound) })
	eventually(t, patience, "clients were cut", func() bool { return s.count() < len(clients) })
	if n := s.Refusals.all()[refusedSlow]; n == 0 {
		t.Error("no client was counted as too slow")
	}
	for _, c := range s.all() {
		c.close()
	}
	eventually(t, patience, "nothing is counted any more", func() bool {
		total.mu.Lock()
		defer total.mu.Unlock()
		return total.total == 0 && len(total.frames) == 0 && len(total.clients) == 0
	})
}

// A client that takes a byte now and then is not done in time.
func TestAClientThatTakesLittleForTooLongIsCut(t *testing.T) {
	x, client := socketPair(t, func(o *socketOptions) { o.TakeTimeout, o.MaxUnsentBytes = 300*time.Millisecond, 0 })
	x.send(newFrame(bytes.Repeat([]byte{'x'}, 16<<20)))
	go trickle(client)
	eventually(t, patience, "the client is cut", func() bool { return x.reason() == errTooSlow })
}

// trickle reads a little at a time until the end.
func trickle(conn net.Conn) {
	for {
		if _, err := io.CopyN(io.Discard, conn, 100); err != nil {
			return
		}
	}
}

func TestAClientThatDoesNotPollIsCut(t *testing.T) {
	app := &testApp{}
	s := startSockets(t, app, func(o *socketOptions) { o.WriteTimeout = 200 * time.Millisecond })
	idle, slow := s.poller(t), s.poller(t)
	idle.connect()
	slow.connect()
	eventually(t, patience, "both are connected", func() bool { return s.count() == 2 })
	slow.send(`421["its acknowledgement waits for a poll"]`)
	eventually(t, patience, "the one for whom something waits is cut", func() bool { return s.count() == 1 })
	idle.send(`422["the other one is well"]`)
	idle.want("432[null]")
}
