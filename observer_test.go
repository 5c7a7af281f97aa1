package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// audience are clients of any nodes in one room, while faults happen. Each of them observes: it folds what it is told, whatever
// else the test does. A leave of a member whose socket lives is a false one.
type audience struct {
	t    testing.TB
	room string
	done sync.WaitGroup // the observers' reading and beating

	mu      sync.Mutex
	living  map[string]bool // connections that nobody has closed
	all     []*observer
	leaves  int      // told to the observers, true and false
	wrongly []string // leaves of the living
}

// observer is one client of an audience. Its methods may be called from any goroutine.
type observer struct {
	*audience
	user   *user
	mirror *mirror

	mu      sync.Mutex // guards the rest, and writing
	waiting map[string]func(ack []byte)
	ended   chan struct{} // closed when the connection is
	told    map[EventType]int
}

var errEnded = errors.New("the connection has ended")

// newAudience makes an audience. At the end of the test its connections are closed.
func newAudience(t testing.TB, room string) *audience {
	c := &audience{t: t, room: room, living: map[string]bool{}}
	t.Cleanup(func() {
		for _, o := range c.all {
			_ = o.user.conn.Close()
		}
		c.done.Wait()
	})
	return c
}

// join has a new client join at the node of that address. Its user is no other's.
func (c *audience) join(addr, state string) *observer {
	c.t.Helper()
	u := dialUser(c.t, addr)
	_ = u.conn.SetDeadline(time.Time{})
	o := &observer{audience: c, user: u, mirror: newMirror(c.room), waiting: map[string]func([]byte){}, ended: make(chan struct{}),
		told: map[EventType]int{}}
	c.mu.Lock()
	c.living[u.id] = true
	c.all = append(c.all, o)
	c.mu.Unlock()
	c.done.Go(o.read)
	ack, err := o.try(c.t.Context(), eventJoin, joinPayloadOf(c.room, "user of "+u.id, state))
	if err != nil || !ack.OK {
		c.t.Fatalf("the join of %s is answered with %s, %v", u.id, ack.text, err)
	}
	return o
}

// read takes what the client is sent until the connection ends.
func (o *observer) read() {
	defer close(o.ended)
	for {
		op, packet, err := o.user.next()
		if err != nil {
			return
		}
		switch {
		case op != ws.OpText:
		case packet == "2":
			_ = o.write("3") // the next reading tells of a failure
		case strings.HasPrefix(packet, `42["presence:event",`):
			o.hear(frame(strings.TrimSuffix(strings.TrimPrefix(packet, `42["presence:event",`), "]")))
		default:
			id, ack, _ := strings.Cut(strings.TrimPrefix(packet, "43"), "[")
			o.mu.Lock()
			answer := o.waiting[id]
			delete(o.waiting, id)
			o.mu.Unlock()
			if answer != nil {
				answer([]byte(strings.TrimSuffix(ack, "]")))
			}
		}
	}
}

func (o *observer) write(packet string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.user.conn.Write(masked(true, ws.OpText, packet))
	return err
}

func (o *observer) hear(text frame) {
	o.mirror.queue(text, memberUpdate{})
	o.mirror.flush()
	var e Event
	_ = json.Unmarshal(text, &e) // the mirror has complained
	o.mu.Lock()
	o.told[e.Type]++
	o.mu.Unlock()
	if e.Type != EventLeave {
		return
	}
	o.audience.mu.Lock()
	defer o.audience.mu.Unlock()
	o.leaves++
	if o.living[e.ConnID] {
		o.wrongly = append(o.wrongly, fmt.Sprintf("%s was told that %s left (%q, revision %d)", o.user.id, e.ConnID, e.Reason, e.Rev))
	}
}

// heard is how many events of a kind the client was told.
func (o *observer) heard(kind EventType) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.told[kind]
}

// try sends an event and waits for its acknowledgement, which may be a refusal. The error is that none came.
func (o *observer) try(ctx context.Context, event, payload string) (wireAck, error) {
	type answer struct {
		ack wireAck
		err error
	}
	acked := make(chan answer, 1) // who waits may be gone when it comes
	o.mu.Lock()
	o.user.calls++
	id := fmt.Sprint(o.user.calls)
	o.waiting[id] = func(text []byte) {
		got := answer{ack: wireAck{text: string(text)}}
		got.err = json.Unmarshal(text, &got.ack)
		if event == eventJoin && got.ack.OK {
			var parts struct{ Snapshot json.RawMessage }
			_ = json.Unmarshal(text, &parts) // it could be read before
			o.mirror.begin(parts.Snapshot, got.ack.Rev)
		}
		acked <- got
	}
	o.mu.Unlock()
	if err := o.write(`42` + id + `["` + event + `"` + strings.TrimSuffix(","+payload, ",") + `]`); err != nil {
		return wireAck{}, err
	}
	select {
	case got := <-acked:
		return got.ack, got.err
	case <-o.ended:
		return wireAck{}, errEnded
	case <-ctx.Done():
		return wireAck{}, ctx.Err()
	}
}

// patch sends a heartbeat that changes the state to {"n":n}.
func (o *observer) patch(ctx context.Context, n int) (wireAck, error) {
	return o.try(ctx, eventHeartbeat, inRoom(o.room, fmt.Sprintf(`,"patchState":{"n":%d}`, n)))
}

// close ends the connection without a word. From then on its leave is a true one.
func (o *observer) close() {
	o.audience.mu.Lock()
	delete(o.living, o.user.id)
	o.all = slices.DeleteFunc(o.all, func(other *observer) bool { return other == o })
	o.audience.mu.Unlock()
	_ = o.user.conn.Close()
}

// busy has every client patch its state, one request after the other with a pause between, until stop is called, whatever
// the answers are.
func (c *audience) busy(every time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for i, o := range c.observers() {
		work.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				_, _ = o.patch(ctx, 1000*n+i)
				pause(ctx, every)
			}
		})
	}
	stop = func() { cancel(); work.Wait() }
	c.t.Cleanup(stop)
	return stop
}

func (c *audience) observers() []*observer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// converged tells what is not yet so: that the room has exactly the living members, and that the fold of each is the room.
func (c *audience) converged(s Snapshot) (missing string) {
	all := c.observers()
	if len(s.Entries) != len(all) {
		return fmt.Sprintf("the room has %d members, %d clients live", len(s.Entries), len(all))
	}
	for _, o := range all {
		switch {
		case !slices.ContainsFunc(s.Entries, func(e Entry) bool { return e.ConnID == o.user.id }):
			return o.user.id + " lives and is not in the room"
		case !o.mirror.equals(s):
			return o.user.id + " sees another room than there is"
		}
	}
	return ""
}

// eventuallyConverged waits until the audience has converged and returns how long that took.
func (c *audience) eventuallyConverged(s *Service, within time.Duration) time.Duration {
	c.t.Helper()
	start, missing := time.Now(), ""
	converged := poll(within, func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), answerWithin)
		defer cancel()
		room, err := s.read(ctx, c.room)
		if missing = fmt.Sprint(err); err == nil {
			missing = c.converged(room)
		}
		return missing == ""
	})
	if !converged {
		c.t.Fatalf("not converged within %v: %s", within, missing)
	}
	return time.Since(start)
}

// assertNoFalseLeave checks that nobody was told of a leave of a living member, and that all were told in order.
func (c *audience) assertNoFalseLeave() {
	c.t.Helper()
	for _, o := range c.observers() {
		o.mirror.mu.Lock()
		for _, what := range o.mirror.wrong[:min(3, len(o.mirror.wrong))] {
			c.t.Errorf("%s: %s", o.user.id, what)
		}
		o.mirror.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t.Logf("%d clients were told %d leaves, %d of them false", len(c.all), c.leaves, len(c.wrongly))
	if len(c.wrongly) > 0 {
		c.t.Errorf("%d leaves of living members, the first: %s", len(c.wrongly), c.wrongly[0])
	}
}

// TestTheAudienceCountsFalseLeaves shows that the counting of false leaves can fail.
func TestTheAudienceCountsFalseLeaves(t *testing.T) {
	b := miniRedis(t)
	n := startNodeFor(t, b)
	c := newAudience(t, uniqueRoom(t))
	addr := "127.0.0.1:" + n.port()
	mortal, witness, victim := c.join(addr, "{}"), c.join(addr, "{}"), c.join(addr, "{}")
	c.eventuallyConverged(n.service, 5*time.Second)
	mortal.close()
	c.eventuallyConverged(n.service, 5*time.Second)
	c.assertNoFalseLeave()
	if witness.heard(EventLeave) != 1 {
		t.Errorf("%d leaves of the one that closed its connection", witness.heard(EventLeave))
	}
	mustLeave(t, n.service, c.room, victim.user.id) // behind the node's back
	eventually(t, 5*time.Second, "two observers of a false leave", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.wrongly) == 2
	})
}
