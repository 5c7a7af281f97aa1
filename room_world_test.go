package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// testFreshFor is the age up to which a hub of these tests answers from a replica.
const testFreshFor = 10 * time.Second

// fakeSource is a store with one room. A read looks at it at once, and answers as soon as it may.
type fakeSource struct {
	mu     sync.Mutex
	stored Snapshot
	err    error
	reads  int
	held   chan struct{} // while it is not nil, answers wait until it is closed
	slow   time.Duration // of each read, after it has looked
}

func (f *fakeSource) read(ctx context.Context, _ string) (Snapshot, error) {
	f.mu.Lock()
	f.reads++
	found, err, held := f.stored, f.err, f.held
	f.mu.Unlock()
	pause(ctx, f.slow)
	if held == nil {
		return found, err
	}
	select {
	case <-held:
		return found, err
	case <-ctx.Done():
		return Snapshot{}, ctx.Err()
	}
}

func (f *fakeSource) size(context.Context, string) (rev int64, count int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stored.Rev, len(f.stored.Entries), f.err
}

func (f *fakeSource) legible(_ string, state json.RawMessage) json.RawMessage { return state }

func (f *fakeSource) lastSeen(_ context.Context, _ string, conns []string) ([]int64, error) {
	return make([]int64, len(conns)), f.err
}

// scan gives all members at once, as miniredis does.
func (f *fakeSource) scan(ctx context.Context, room, _ string, _ int) (scanned, error) {
	s, err := f.read(ctx, room)
	s.Users = len(s.Entries)
	return scanned{Snapshot: s, count: len(s.Entries), next: "0"}, err
}

// store sets what the reads from now on find.
func (f *fakeSource) store(rev int64, entries ...Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stored = Snapshot{Rev: rev, TS: 1000 + rev, Entries: entries}
}

func (f *fakeSource) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// hold keeps back the answers of the reads from now on, until release is called.
func (f *fakeSource) hold() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := make(chan struct{})
	f.held = held
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(held)
		if f.held == held {
			f.held = nil
		}
	}
}

func (f *fakeSource) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

// fakeSubscriptions keeps what a hub asked for.
type fakeSubscriptions struct {
	mu    sync.Mutex
	asked []string
}

func (f *fakeSubscriptions) subscribe(room string)   { f.note("+" + room) }
func (f *fakeSubscriptions) unsubscribe(room string) { f.note("-" + room) }

func (f *fakeSubscriptions) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, what)
}

// ear is a receiver that keeps what it hears, as text.
type ear struct {
	mu      sync.Mutex
	heard   []string
	unsaid  bool // something was queued after the last flush
	flushes int
	id      string
	held    holding
}

func (e *ear) ID() string { return e.id }

func (e *ear) queue(f frame, _ memberUpdate) bool { return !e.held.keeps(f) && e.hear(f) }

func (e *ear) hold() (release func(frameParts)) {
	end := e.held.begin()
	return func(first frameParts) {
		if end(func() bool { return first != nil && e.hear(bytes.Join(first, nil)) }, e.hear) {
			e.flush()
		}
	}
}

func (e *ear) hear(f frame) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, string(f))
	first := !e.unsaid
	e.unsaid = true
	return first
}

func (e *ear) flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unsaid = false
	e.flushes++
}

// welcome is the acknowledgement of its join, as admit calls it.
func (e *ear) welcome(v *view) frameParts {
	var entries []Entry
	if err := json.Unmarshal(v.page("", 0).entries, &entries); err != nil {
		panic(err)
	}
	conns := make([]string, 0, len(entries))
	for _, entry := range entries {
		conns = append(conns, entry.ConnID)
	}
	slices.Sort(conns)
	return frameParts{fmt.Appendf(nil, "ack @%d [%s]", v.rev, strings.Join(conns, " "))}
}

// all is what was heard so far, one item per line. It fails the test when something of it is not written.
func (e *ear) all(t testing.TB) string {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.unsaid {
		t.Error("frames are queued that nobody writes")
	}
	return strings.Join(e.heard, "\n")
}

// said is an event in a form that a table can hold: type, connection, user, its connections @revision, state.
func said(e Event) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %d @%d %s", e.Type, e.ConnID, e.UserID, e.UserConns, e.Rev, e.State))
}

// world is a hub over a fake store, in a bubble whose clock goes on only when all wait.
type world struct {
	*testing.T
	hub    *hub
	source *fakeSource
	subs   *fakeSubscriptions
	frames int // encoded
}

func inWorld(t *testing.T, body func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, source: &fakeSource{}, subs: &fakeSubscriptions{}}
		encode := encoders{event: func(e Event) frame {
			w.frames++
			return frame(said(e))
		}}
		w.hub = newHub(hubOptions{source: w.source, encode: encode, connect: func([]bridgeSink) subscriptions { return w.subs },
			freshFor: testFreshFor, batchEvery: 250 * time.Millisecond, countEvery: time.Second, log: testLogger(t)})
		defer w.hub.close()
		body(w)
	})
}

// room acquires room "r" and waits until its replica is what the store holds.
func (w *world) room() *room {
	r := w.hub.acquire("r")
	w.hub.dispatchers[0].subscribed("r")
	synctest.Wait()
	return r
}

// admit has a new receiver join at a revision. It does not wait for the acknowledgement.
func (w *world) admit(ctx context.Context, r *room, rev int64) (*ear, <-chan error) {
	e, result := &ear{}, make(chan error, 1)
	go func() {
		result <- r.admit(ctx, newWaiter(rev, e, asMember, modeAll, e.welcome))
	}()
	synctest.Wait()
	return e, result
}

// guest is a receiver that is in the room already, and has heard nothing.
func (w *world) guest(r *room) *ear {
	w.Helper()
	e, result := w.admit(w.Context(), r, 0)
	if err := <-result; err != nil {
		w.Fatal(err)
	}
	e.heard = nil
	return e
}

// tell brings messages of the room as the bridge does: one after the other, and then nothing for a while.
func (w *world) tell(messages ...message) {
	for _, m := range messages {
		w.hub.dispatchers[0].message("r", payloadOf(m))
	}
	w.hub.dispatchers[0].settled()
	synctest.Wait()
}

func (w *world) wantHeard(e *ear, lines ...string) {
	w.Helper()
	synctest.Wait() // who was answered may hear of it before the others' frames are written
	if got, want := e.all(w), strings.Join(lines, "\n"); got != want {
		w.Errorf("the receiver heard\n%s\nwant\n%s", got, want)
	}
}

// pass lets d pass, and waits for what falls due within it.
func (w *world) pass(d time.Duration) {
	pause(w.Context(), d)
	synctest.Wait()
}

func (w *world) wantReads(n int) {
	w.Helper()
	if got := w.source.count(); got != n {
		w.Errorf("the room was read %d times, want %d", got, n)
	}
}

// here is an entry of a connection; its user has the same name, in capitals.
func here(conn string, rev int64, state string) Entry {
	return Entry{ConnID: conn, UserID: strings.ToUpper(conn), State: raw(state), LastSeenMs: rev, Epoch: rev, Rev: rev}
}

// joined, patched and gone are messages of room "r" about such a connection.
func joined(prev, rev int64, conn string) message {
	return message{prev, Event{Type: EventJoin, RoomID: "r", UserID: strings.ToUpper(conn), ConnID: conn, State: raw("{}"), TS: rev,
		Epoch: rev, Rev: rev, UserConns: 1}}
}

func patched(prev, rev int64, conn, state string) message {
	return message{prev, Event{Type: EventUpdate, RoomID: "r", UserID: strings.ToUpper(conn), ConnID: conn, State: raw(state), TS: rev,
		Epoch: 1, Rev: rev, UserConns: 1}}
}

func gone(prev, rev int64, conn string) message {
	return message{prev, Event{Type: EventLeave, RoomID: "r", UserID: strings.ToUpper(conn), ConnID: conn, State: raw("null"), TS: rev,
		Epoch: 1, Rev: rev, Reason: ReasonLeft}}
}
