package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
		w.hub = newHub(w.source, encode, testFreshFor, testLogger(t))
		w.hub.bridge = w.subs
		defer w.hub.close()
		body(w)
	})
}

// room acquires room "r" and waits until its replica is what the store holds.
func (w *world) room() *room {
	r := w.hub.acquire("r")
	w.hub.subscribed("r")
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
		w.hub.message("r", payloadOf(m))
	}
	w.hub.settled()
	synctest.Wait()
}

func (w *world) wantHeard(e *ear, lines ...string) {
	w.Helper()
	synctest.Wait() // who was answered may hear of it before the others' frames are written
	if got, want := e.all(w), strings.Join(lines, "\n"); got != want {
		w.Errorf("the receiver heard\n%s\nwant\n%s", got, want)
	}
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

func TestAReplicaTellsTheDifferenceToWhatWasRead_G3(t *testing.T) {
	old := func(conn, user string, epoch, rev int64, state string) Entry {
		return Entry{ConnID: conn, UserID: user, Epoch: epoch, Rev: rev, State: raw(state)}
	}
	before := []Entry{old("a", "ann", 5, 5, "{}"), old("b", "ann", 6, 6, `{"n":1}`), old("c", "cid", 7, 7, "{}")}
	cases := map[string]struct {
		rev   int64
		found []Entry
		want  []string // in this order
	}{
		"nothing new": {9, before, nil},
		"heartbeats only": {9, []Entry{
			{ConnID: "a", UserID: "ann", Epoch: 5, Rev: 5, State: raw("{}"), LastSeenMs: 99}, before[1], before[2]}, nil},
		"a join of a new user": {9, append(slices.Clone(before), old("d", "dan", 8, 8, `{"x":[]}`)),
			[]string{`join d dan 1 @9 {"x":[]}`}},
		"a third connection of a user": {9, append(slices.Clone(before), old("d", "ann", 8, 8, "{}")),
			[]string{"join d ann 3 @9 {}"}},
		"an update": {9, []Entry{before[0], old("b", "ann", 6, 8, `{"n":2}`), before[2]},
			[]string{`update b ann 2 @9 {"n":2}`}},
		"put back with the same state": {9, []Entry{before[0], old("b", "ann", 6, 8, `{"n":1}`), before[2]},
			[]string{`join b ann 2 @9 {"n":1}`}},
		"a new incarnation": {9, []Entry{before[0], old("b", "ann", 8, 8, `{"n":1}`), before[2]},
			[]string{`join b ann 2 @9 {"n":1}`}},
		"another user on the connection": {9, []Entry{before[0], old("b", "bob", 8, 8, "{}"), before[2]},
			[]string{"join b bob 1 @9 {}"}},
		"a leave": {9, before[:2], []string{"leave c cid 0 @9"}},
		"joins and updates before leaves, counted one by one": {
			9, []Entry{old("b", "ann", 6, 8, `{"n":2}`), old("d", "ann", 9, 9, "{}"), old("e", "cid", 8, 8, "{}")},
			[]string{`update b ann 2 @9 {"n":2}`, "join d ann 3 @9 {}", "join e cid 2 @9 {}", "leave a ann 2 @9", "leave c cid 1 @9"}},
		"everybody left":                 {9, nil, []string{"leave a ann 1 @9", "leave b ann 0 @9", "leave c cid 0 @9"}},
		"the store has lost its counter": {0, before[:2], []string{"leave c cid 0 @7"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := newReplica("r")
			p.adopt(Snapshot{Rev: 7, Entries: before}, nobody)
			var got []string
			joins := 0 // events that are no leaves
			for _, e := range p.adopt(Snapshot{Rev: c.rev, TS: 123, Entries: c.found}, nobody) {
				if e.TS != 123 || e.RoomID != "r" || e.Epoch == 0 {
					t.Errorf("an event without its time, room or epoch: %+v", e)
				}
				if e.Type != EventLeave {
					joins++
				}
				got = append(got, said(e.Event))
			}
			sortLeaves(got[joins:])
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			assertHolds(t, p, max(7, c.rev), c.found)
		})
	}
}

// sortLeaves puts leaves, which come in any order, into that of their connections; the counts of a user go with the
// places, not with the connections.
func sortLeaves(leaves []string) {
	counts := map[string][]string{}
	for _, line := range leaves {
		f := strings.Fields(line)
		counts[f[2]] = append(counts[f[2]], f[3])
	}
	slices.Sort(leaves)
	for i, line := range leaves {
		f := strings.Fields(line)
		f[3], counts[f[2]] = counts[f[2]][0], counts[f[2]][1:]
		leaves[i] = strings.Join(f, " ")
	}
}

// entry is a member, without anything if it is not there.
func (p *replica) entry(conn string) Entry {
	e, _ := p.entries.get(conn)
	return e
}

func (p *replica) byConn() map[string]Entry {
	all := map[string]Entry{}
	for e := range p.entries.all() {
		all[e.ConnID] = e
	}
	return all
}

func assertHolds(t *testing.T, p replica, rev int64, want []Entry) {
	t.Helper()
	users := map[string]int{}
	for _, e := range want {
		users[e.UserID]++
		if got := p.entry(e.ConnID); got.UserID != e.UserID || got.Epoch != e.Epoch || got.Rev != e.Rev || string(got.State) != string(e.State) {
			t.Errorf("the replica has %+v, want %+v", got, e)
		}
	}
	if p.entries.len() != len(want) || !maps.Equal(p.users, users) || p.rev != rev {
		t.Errorf("the replica has %d entries, users %v, revision %d; want %d, %v, %d", p.entries.len(), p.users, p.rev, len(want), users, rev)
	}
}

func TestAReplicaFollowsEvents_G3(t *testing.T) {
	p := newReplica("r")
	event := func(kind EventType, conn, user string, epoch, rev int64, state string) {
		p.apply(Event{Type: kind, ConnID: conn, UserID: user, Epoch: epoch, Rev: rev, TS: 100 + rev, State: raw(state)})
	}
	event(EventJoin, "a", "ann", 1, 1, "{}")
	event(EventJoin, "b", "ann", 2, 2, "{}")
	event(EventUpdate, "a", "ann", 1, 3, `{"n":1}`)
	event(EventLeave, "b", "ann", 2, 4, "null")
	event(EventLeave, "b", "ann", 2, 5, "null")
	event(EventJoin, "a", "bob", 6, 6, "{}")
	event(EventUpdate, "c", "cid", 4, 7, "{}")
	assertHolds(t, p, 7, []Entry{
		{ConnID: "a", UserID: "bob", Epoch: 6, Rev: 6, State: raw("{}")},
		{ConnID: "c", UserID: "cid", Epoch: 4, Rev: 7, State: raw("{}")},
	})
	if seen := p.entry("c").LastSeenMs; seen != 107 {
		t.Errorf("last seen at %d, want the event's time", seen)
	}
}

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

func TestMessagesDuringARead_G1_G2_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		listener := w.guest(r)
		w.source.store(12, here("a", 1, "{}"), here("b", 12, "{}"))
		release := w.source.hold()
		w.hub.subscribed("r")
		synctest.Wait()
		w.tell(joined(10, 12, "b"), joined(12, 13, "c"), gone(13, 14, "a"))
		w.wantHeard(listener)
		release()
		synctest.Wait()
		w.wantHeard(listener, "join b B 1 @12 {}", "join c C 1 @13 {}", "leave a A 0 @14 null")
		w.wantReads(2)
		if r.revision() != 14 {
			t.Errorf("the replica is at %d", r.revision())
		}
	})
}

// A read that is faster than the messages, or that they overtake, must not swallow them.
func TestAReadTakesNoEventsPlace_G1(t *testing.T) {
	both := []message{joined(10, 11, "b"), gone(11, 12, "b")}
	cases := map[string]struct {
		during, after []message
	}{
		"all come during the read":  {both, nil},
		"one comes after the read":  {both[:1], both[1:]},
		"all come after the read":   {nil, both},
		"more come during the read": {append(both[:2:2], joined(12, 13, "c"), gone(13, 14, "c")), nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				beaten := here("a", 1, "{}")
				w.source.store(10, beaten)
				r := w.room()
				listener := w.guest(r)
				pause(w.Context(), testFreshFor+time.Second)
				beaten.LastSeenMs = 5000
				w.source.store(12, beaten)
				release := w.source.hold()
				late, result := w.admit(w.Context(), r, 12)
				w.tell(c.during...)
				release()
				synctest.Wait()
				w.tell(c.after...)
				if err := <-result; err != nil {
					w.Fatal(err)
				}
				w.wantReads(2)
				want := []string{"join b B 1 @11 {}", "leave b B 0 @12 null", "join c C 1 @13 {}", "leave c C 0 @14 null"}
				w.wantHeard(listener, want[:len(c.during)+len(c.after)]...)
				w.wantHeard(late, fmt.Sprintf("ack @%d [a]", r.revision()))
				if seen := r.replica.entry("a").LastSeenMs; seen != 5000 {
					t.Errorf("the snapshot is as old as before: %d", seen)
				}
			})
		})
	}
}

func TestALostMessageDuringAReadForAFreshSnapshotIsMadeUp_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		listener := w.guest(r)
		pause(w.Context(), testFreshFor+time.Second)
		w.source.store(13, here("b", 11, "{}"), here("c", 13, "{}"))
		release := w.source.hold()
		late, result := w.admit(w.Context(), r, 13)
		w.tell(joined(11, 13, "c")) // that of b is lost
		release()
		if err := <-result; err != nil {
			w.Fatal(err)
		}
		synctest.Wait()
		w.wantReads(2)
		w.wantHeard(listener, "join b B 1 @13 {}", "join c C 1 @13 {}")
		w.wantHeard(late, "ack @13 [b c]")
	})
}

func TestAGapDuringAReadIsReadAgain_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		listener := w.guest(w.room())
		first := w.source.hold()
		w.hub.subscribed("r") // finds revision 10
		synctest.Wait()
		w.source.store(16, here("b", 12, "{}"), here("c", 16, "{}"))
		w.tell(joined(12, 16, "c"))
		second := w.source.hold()
		first()
		synctest.Wait()
		w.tell(gone(16, 17, "c"))
		second()
		synctest.Wait()
		w.wantHeard(listener, "join b B 1 @16 {}", "join c C 1 @16 {}", "leave c C 0 @17 null")
		w.wantReads(3)
	})
}

func TestASubscriptionConfirmedDuringAReadAsksForAnother_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.source.hold()
		r := w.hub.acquire("r")
		w.hub.subscribed("r") // finds nothing
		synctest.Wait()
		w.source.store(12, here("b", 12, "{}")) // its message was lost
		w.hub.subscribed("r")
		release()
		synctest.Wait()
		w.wantReads(2)
		if r.revision() != 12 {
			t.Errorf("the replica is at %d, want 12", r.revision())
		}
	})
}

func TestMessagesKeptDuringAReadAreBounded_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		listener := w.guest(r)
		release := w.source.hold()
		w.hub.subscribed("r")
		synctest.Wait()
		rev := int64(0)
		for range maxPending + 1 {
			w.tell(patched(rev, rev+1, "a", "{}"))
			rev++
		}
		if len(r.pending) > maxPending {
			t.Errorf("%d messages are kept", len(r.pending))
		}
		w.source.store(rev, Entry{ConnID: "a", UserID: "A", Epoch: 1, Rev: rev, State: raw("{}")})
		release()
		synctest.Wait()
		w.wantHeard(listener, fmt.Sprintf("join a A 1 @%d {}", rev))
		if r.pending != nil || r.reading {
			t.Error("the room does not come to rest")
		}
	})
}

// What came before a read is dropped after it, and nothing else: nothing that came when the messages before it were given up,
func TestMessagesGivenUpDuringASecondReadAreReadAgain_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		first := w.source.hold()
		w.hub.subscribed("r")
		synctest.Wait()
		w.tell(patched(15, 16, "a", "{}"))
		second := w.source.hold()
		first()
		synctest.Wait() // the second read knows of one message
		rev := int64(16)
		for range maxPending {
			w.tell(patched(rev, rev+1, "a", "{}"))
			rev++
		}
		w.source.store(rev, here("a", rev, "{}"))
		second()
		synctest.Wait()
		if r.revision() != rev {
			t.Errorf("the replica is at %d, want %d", r.revision(), rev)
		}
	})
}

// and nothing that came after messages that were applied.
func TestAGapAfterAReadThatFailedIsReadAgain_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		listener := w.guest(w.room())
		w.source.fail(errors.New("down"))
		w.hub.subscribed("r")
		synctest.Wait()
		w.tell(joined(10, 11, "b"))
		w.source.fail(nil)
		w.source.store(11, here("b", 11, "{}"))
		release := w.source.hold()
		pause(w.Context(), time.Second) // the next read knows of b
		w.source.store(14, here("b", 11, "{}"), here("c", 13, "{}"))
		w.tell(gone(13, 14, "d"))
		release()
		synctest.Wait()
		w.wantHeard(listener, "join b B 1 @11 {}", "join c C 1 @14 {}")
	})
}

func TestAReadThatFailsIsRepeated_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.fail(errors.New("down"))
		r := w.room()
		pause(w.Context(), 10*time.Second)
		if n := w.source.count(); n < 15 || n > 30 {
			t.Errorf("%d tries in 10 s", n)
		}
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := r.ready(ctx); !isUnavailable(err) {
			t.Errorf("a room that cannot be read gives %v", err)
		}
		w.source.fail(nil)
		w.source.store(12)
		if rev, err := r.ready(w.Context()); rev != 12 || err != nil {
			t.Errorf("got revision %d, %v", rev, err)
		}
	})
}

func TestAReadWithoutAnswerIsGivenUp_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.source.hold()
		defer release()
		r := w.room()
		w.source.mu.Lock()
		w.source.held = nil // the next one is answered
		w.source.mu.Unlock()
		w.source.store(12)
		before := time.Now()
		if rev, err := r.ready(w.Context()); rev != 12 || err != nil {
			t.Errorf("got revision %d, %v", rev, err)
		}
		if waited := time.Since(before); waited > readPatience+time.Second {
			t.Errorf("given up after %v", waited)
		}
	})
}

func TestAJoinIsAnsweredInTheOrderOfTheRoom_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		e, result := w.admit(w.Context(), r, 12)
		w.wantHeard(e)
		w.tell(joined(10, 11, "b"))
		w.wantHeard(e)
		w.tell(joined(11, 12, "c"), joined(12, 13, "d"), gone(13, 14, "a"))
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.tell(gone(14, 15, "b"))
		w.wantHeard(e, "ack @14 [b c d]", "leave b B 0 @15 null")
		w.wantReads(1)
	})
}

func TestAJoinThatTheReplicaHasIsAnsweredAtOnce_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		e, result := w.admit(w.Context(), w.room(), 10)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @10 [a]")
	})
}

func TestJoinsOfOneBatchShareASnapshot_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		snapshots := make([][]byte, 3)
		var answered []<-chan error
		ears := []*ear{{}, {}, {}}
		for i, e := range ears {
			result := make(chan error, 1)
			answered = append(answered, result)
			go func() {
				result <- r.admit(w.Context(), newWaiter(int64(11+i), e, asMember, modeAll, func(v *view) frameParts {
					snapshots[i] = v.page("", 0).entries
					return e.welcome(v)
				}))
			}()
		}
		synctest.Wait()
		for _, m := range []message{joined(10, 11, "a"), joined(11, 12, "b"), joined(12, 13, "c")} {
			w.hub.message("r", payloadOf(m))
		}
		synctest.Wait()
		if snapshots[0] != nil {
			t.Error("a join was answered within the batch")
		}
		w.hub.settled()
		for _, result := range answered {
			if err := <-result; err != nil {
				t.Fatal(err)
			}
		}
		for i, e := range ears {
			w.wantHeard(e, "ack @13 [a b c]")
			if &snapshots[i][0] != &snapshots[0][0] {
				t.Error("a snapshot was built twice")
			}
		}
		w.tell(gone(13, 14, "a"))
		w.wantHeard(ears[2], "ack @13 [a b c]", "leave a A 0 @14 null")
		if w.frames != 1 {
			t.Errorf("%d frames for one event that somebody hears", w.frames)
		}
		late, result := w.admit(w.Context(), r, 14)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(late, "ack @14 [b c]")
	})
}

func TestAJoinDuringABatchWaitsForItsEnd_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		w.hub.message("r", payloadOf(joined(10, 11, "a")))
		e, result := w.admit(w.Context(), r, 11)
		w.wantHeard(e)
		w.hub.settled()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @11 [a]")
	})
}

func TestAnImpatientJoinReadsTheRoom_G2_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		listener := w.guest(r)
		before := time.Now()
		w.source.store(11, here("a", 11, "{}")) // its message is lost
		e, result := w.admit(w.Context(), r, 11)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(before); waited != joinPatience {
			t.Errorf("it waited %v, want %v", waited, joinPatience)
		}
		w.wantHeard(e, "ack @11 [a]")
		w.wantHeard(listener, "join a A 1 @11 {}")
		w.wantReads(2)
	})
}

// A read that looked before the join does not end the impatience of the join.
func TestAJoinStaysImpatientWhenAnOlderReadIsSlow_G2_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		release := w.source.hold()
		w.hub.subscribed("r") // finds revision 10
		synctest.Wait()
		w.source.store(11, here("a", 11, "{}")) // its message is lost
		ctx, cancel := context.WithTimeout(w.Context(), answerWithin)
		defer cancel()
		e, result := w.admit(ctx, r, 11)
		pause(w.Context(), joinPatience*3/2)
		release()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @11 [a]")
	})
}

// Impatient joins must not keep the room from ever coming to the end of its reading.
func TestSlowReadsAnswerJoinsAllTheSame_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		w.source.slow = joinPatience * 3 / 2
		var answered []<-chan error
		for rev := range int64(100) {
			ctx, cancel := context.WithTimeout(w.Context(), answerWithin)
			defer cancel()
			w.source.store(11 + rev)
			_, result := w.admit(ctx, r, 11+rev) // no message of it ever comes
			answered = append(answered, result)
			pause(w.Context(), joinPatience*2/3)
		}
		for i, result := range answered {
			if err := <-result; err != nil {
				t.Fatalf("join %d: %v", i, err)
			}
		}
	})
}

func TestAJoinWithoutItsEventGivesUp_G7(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		ctx, cancel := context.WithTimeout(w.Context(), answerWithin)
		defer cancel()
		before := time.Now()
		e, result := w.admit(ctx, r, 11)
		other, second := w.admit(w.Context(), r, 12)
		if err := <-result; !isUnavailable(err) {
			t.Errorf("got %v, want unavailable", err)
		}
		if waited := time.Since(before); waited != answerWithin {
			t.Errorf("it waited %v, want %v", waited, answerWithin)
		}
		w.tell(joined(10, 11, "a"), joined(11, 12, "b"), gone(12, 13, "a"))
		w.wantHeard(e)
		if err := <-second; err != nil {
			t.Error(err)
		}
		w.wantHeard(other, "ack @13 [b]")
	})
}

// Who was answered in the very moment in which its time was over has its answer, and is in the room.
func TestALateAnswerWins_G7(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		ctx, cancel := context.WithCancel(w.Context())
		ears := make([]*ear, 20) // select takes either of two
		waiting := make([]*waiter, len(ears))
		for i := range ears {
			ears[i] = &ear{}
			waiting[i] = newWaiter(11, ears[i], asMember, modeAll, ears[i].welcome)
		}
		r.waiters = append(r.waiters, waiting...)
		w.tell(joined(10, 11, "a"))
		cancel()
		for _, late := range waiting {
			if err := r.await(ctx, late); err != nil {
				t.Errorf("answered, and then %v", err)
			}
		}
		w.tell(gone(11, 12, "a"))
		for _, e := range ears {
			w.wantHeard(e, "ack @11 [a]", "leave a A 0 @12 null")
		}
	})
}

func TestASnapshotThatIsTooOldIsReadFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		listener := w.guest(r)
		pause(w.Context(), testFreshFor)
		_, result := w.admit(w.Context(), r, 10)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantReads(1)
		pause(w.Context(), time.Millisecond)
		e := &ear{}
		beaten := here("a", 1, "{}")
		beaten.LastSeenMs = 5000
		w.source.store(10, beaten)
		err := r.admit(w.Context(), newWaiter(10, e, asMember, modeAll, func(v *view) frameParts {
			if got := string(v.page("", 0).entries); !strings.Contains(got, `"lastSeenMs":5000`) {
				t.Errorf("the snapshot is as old as before: %s", got)
			}
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		w.wantReads(2)
		w.wantHeard(listener)
	})
}

func TestARevisionThatStaysDifferentIsReadAnew_G3(t *testing.T) {
	cases := map[string]struct {
		returned []int64 // by heartbeats, a moment after each other
		then     []message
		reads    int // beyond the first, after replicaPatience
	}{
		"the same":                             {[]int64{10}, nil, 0},
		"the last message was lost":            {[]int64{11}, nil, 1},
		"the message comes by then":            {[]int64{11}, []message{joined(10, 11, "a")}, 0},
		"more messages come by then":           {[]int64{11}, []message{joined(10, 11, "a"), gone(11, 12, "a")}, 0},
		"the first comes, the last is lost":    {[]int64{11, 12}, []message{joined(10, 11, "a")}, 1},
		"a later heartbeat brings the news":    {[]int64{10, 11}, nil, 1},
		"the counter was lost":                 {[]int64{5}, nil, 1},
		"an answer was overtaken by a message": {[]int64{9}, []message{joined(10, 11, "a")}, 0},
		"many heartbeats, one read":            {[]int64{11, 11, 11, 11}, nil, 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(10)
				r := w.room()
				w.source.store(12)
				for _, rev := range c.returned {
					r.compare(rev)
					pause(w.Context(), time.Millisecond)
				}
				w.tell(c.then...)
				pause(w.Context(), replicaPatience/2)
				w.wantReads(1)
				pause(w.Context(), 2*replicaPatience)
				w.wantReads(1 + c.reads)
				r.compare(13)
				pause(w.Context(), 2*replicaPatience)
				w.wantReads(2 + c.reads)
			})
		})
	}
}

// In a busy room the message of the last change is always on its way when a heartbeat returns its revision.
func TestABusyRoomIsNotReadAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		for rev := int64(11); rev < 60; rev++ {
			r.compare(rev)
			pause(w.Context(), replicaPatience/20)
			w.tell(joined(rev-1, rev, "a"))
		}
		pause(w.Context(), 2*replicaPatience)
		w.wantReads(1)
	})
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
		pause(w.Context(), 2*roomLinger)
		if again != r || w.hub.find("r") != r {
			t.Error("a room was given up that has a member")
		}
		w.hub.release(again)
		pause(w.Context(), roomLinger/4)
		if w.hub.acquire("r") != r {
			t.Error("a room was given up at once")
		}
		w.hub.release(r)
		pause(w.Context(), 2*roomLinger)
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
		w.hub.subscribed("b")
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
				w.hub.message("r", payload)
				w.hub.message("unknown", payload)
				w.hub.settled()
				w.tell(joined(10, 12, "a"))
				w.wantHeard(listener, "join a A 1 @12 {}")
				w.wantReads(1)
			})
		})
	}
}

func TestNobodyPassesBeforeTheIndexIsWritten(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		var mu sync.Mutex
		writes, passed := 0, 0
		written := make(chan error)
		write := func(context.Context) error {
			mu.Lock()
			writes++
			mu.Unlock()
			return <-written
		}
		pass := func(ctx context.Context) {
			err := r.index(ctx, write)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				passed++
			}
		}
		want := func(wantWrites, wantPassed int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if writes != wantWrites || passed != wantPassed {
				t.Errorf("%d writes and %d passed, want %d and %d", writes, passed, wantWrites, wantPassed)
			}
		}
		impatient, cancel := context.WithCancel(w.Context())
		go pass(w.Context())
		synctest.Wait()
		go pass(impatient)
		for range 19 {
			go pass(w.Context())
		}
		want(1, 0)
		cancel()
		want(1, 0)
		written <- errors.New("down") // the first one fails, another one tries
		want(2, 0)
		written <- nil
		want(2, 19)
		pass(w.Context())
		want(2, 20)
	})
}

func TestTheIndexIsWrittenAgain(t *testing.T) {
	cases := map[string]struct {
		between func(w *world, r *room)
		again   bool
	}{
		"not while it is fresh":            {func(*world, *room) {}, false},
		"after the last member left":       {func(w *world, r *room) { w.hub.release(r); w.hub.acquire("r") }, true},
		"not when another member stays":    {func(w *world, r *room) { w.hub.acquire("r"); w.hub.release(r) }, false},
		"when a reaper may have forgotten": {func(w *world, _ *room) { pause(w.Context(), testFreshFor+time.Second) }, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				r, writes := w.room(), 0
				write := func(context.Context) error { writes++; return nil }
				if err := r.index(w.Context(), write); err != nil {
					t.Fatal(err)
				}
				c.between(w, r)
				if err := r.index(w.Context(), write); err != nil {
					t.Fatal(err)
				}
				if again := writes == 2; again != c.again {
					t.Errorf("written %d times", writes)
				}
			})
		})
	}
}

func TestACloseEndsReadsThatHang(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.source.hold()
		defer release()
		r := w.room()
		w.hub.close() // else the bubble waits for the read for ever
		r.mu.Lock()
		r.reading = false
		r.reread()
		reading := r.reading
		r.mu.Unlock()
		if reading {
			t.Error("a closed hub reads on")
		}
	})
}
