package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// mirror is a receiver that folds what it is sent, as a client does: the snapshot of its acknowledgement, then events.
type mirror struct {
	mu      sync.Mutex
	replica replica
	from    int64   // revision of the acknowledgement, 0 = it has not come
	heard   []int64 // revisions of the events
	wrong   []string
	unsaid  bool // something was queued after the last flush
	held    holding
}

func newMirror(room string) *mirror { return &mirror{replica: newReplica(room)} }

func (m *mirror) ID() string { return "mirror" }

func (m *mirror) flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsaid = false
}

// welcome is the acknowledgement of its join, as admit calls it.
func (m *mirror) welcome(v *view) frameParts {
	m.begin(v.page("", 0).entries, v.rev)
	return nil
}

// begin starts the fold with a snapshot.
func (m *mirror) begin(snapshot []byte, rev int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var entries []Entry
	if err := json.Unmarshal(snapshot, &entries); err != nil {
		m.wrong = append(m.wrong, err.Error())
	}
	m.from = rev
	m.replica.adopt(Snapshot{Rev: rev, Entries: entries}, nobody)
}

func (m *mirror) queue(f frame, _ memberUpdate) bool { return !m.held.keeps(f) && m.fold(f) }

func (m *mirror) hold() (release func(frameParts)) {
	end := m.held.begin()
	return func(frameParts) {
		if end(func() bool { return false }, m.fold) {
			m.flush()
		}
	}
}

func (m *mirror) fold(f frame) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	var e Event
	err := json.Unmarshal(f, &e)
	switch {
	case err != nil:
		m.wrong = append(m.wrong, err.Error())
	case m.from == 0:
		m.wrong = append(m.wrong, "an event before the acknowledgement")
	case e.Rev < m.replica.rev:
		m.wrong = append(m.wrong, fmt.Sprintf("event %d after %d", e.Rev, m.replica.rev))
	}
	m.replica.apply(e)
	if n := m.replica.users[e.UserID]; n != e.UserConns {
		m.wrong = append(m.wrong, fmt.Sprintf("event %d says that %s has %d connections, the fold has %d", e.Rev, e.UserID, e.UserConns, n))
	}
	m.heard = append(m.heard, e.Rev)
	first := !m.unsaid
	m.unsaid = true
	return first
}

// equals tells whether the fold is the room.
func (m *mirror) equals(s Snapshot) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	same := m.replica.entries.len() == len(s.Entries) && len(m.replica.users) == s.Users && !m.unsaid
	for _, e := range s.Entries {
		have := m.replica.entry(e.ConnID)
		same = same && have.UserID == e.UserID && have.Epoch == e.Epoch && string(have.State) == string(e.State)
	}
	return same
}

// assertOrdered checks G2, and with every issued revision given, G1.
func (m *mirror) assertOrdered(t *testing.T, issued []int64, complete bool) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, what := range m.wrong[:min(3, len(m.wrong))] {
		t.Error(what)
	}
	if issued == nil {
		return
	}
	first, _ := slices.BinarySearch(issued, m.from+1)
	want := issued[first:]
	if !complete {
		want = want[:min(len(want), len(m.heard))]
	}
	if !slices.Equal(m.heard, want) {
		t.Errorf("after revision %d heard %d events, want %d; %s", m.from, len(m.heard), len(want), firstDifference(m.heard, want))
	}
}

func firstDifference(got, want []int64) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("event %d is %d and not %d", i, got[i], want[i])
		}
	}
	return "one is the beginning of the other"
}

// testNode is what a server has between Redis and its sockets.
type testNode struct {
	service *Service
	hub     *hub
	bridge  *bridge
	deaf    atomic.Bool  // loses every message
	loss    atomic.Int64 // per cent of the messages that get lost
	whole   bool         // no message gets lost
	heard   sync.Map     // room → revision of its last message

	confirmed atomic.Int64 // subscriptions
}

func startTestNode(t *testing.T, w wire, whole bool) *testNode {
	t.Helper()
	rdb := w.open(t)
	n := &testNode{service: startService(t, rdb, Options{Sharded: w.sharded}), whole: whole}
	n.hub = newHub(hubOptions{source: patientSource{n.service, n}, encode: encoders{event: func(e Event) frame { return e.appendJSON(nil) }},
		dispatcherCount: 2,
		connect: func(sinks []bridgeSink) subscriptions {
			for i, sink := range sinks {
				sinks[i] = lossySink{sink.(*dispatcher), n}
			}
			n.bridge = newBridge(rdb, w.sharded, aboutRooms, testLogger(t), sinks...)
			return n.bridge
		}, freshFor: time.Minute, log: testLogger(t)})
	t.Cleanup(func() {
		n.bridge.close()
		n.hub.close()
	})
	return n
}

// lossySink is a dispatcher that some messages do not reach.
type lossySink struct {
	*dispatcher
	node *testNode
}

func (s lossySink) message(room, payload string) {
	if s.node.deaf.Load() || rand.Int64N(100) < s.node.loss.Load() {
		return
	}
	s.dispatcher.message(room, payload)
	if m, ok := parseMessage(payload); ok {
		s.node.heard.Store(room, m.Rev)
	}
}

func (s lossySink) subscribed(room string) {
	s.node.confirmed.Add(1)
	s.dispatcher.subscribed(room)
}

// patientSource answers when the messages before a read have come, unless they may be lost: a machine that is so slow that
// joins become impatient shall not have fewer events than another.
type patientSource struct {
	*Service
	node *testNode
}

func (p patientSource) read(ctx context.Context, room string) (Snapshot, error) {
	found, err := p.Service.read(ctx, room)
	for err == nil && p.node.whole && !p.node.has(room, found.Rev) {
		pause(ctx, time.Millisecond)
		err = ctx.Err()
	}
	return found, err
}

// has tells whether the node has had a room's messages up to a revision, or has yet to read the room for the first time.
func (n *testNode) has(room string, rev int64) bool {
	r := n.hub.find(room)
	if r == nil {
		return true // given up while it was read
	}
	select {
	case <-r.loaded:
	default:
		return true
	}
	heard, _ := n.heard.LoadOrStore(room, int64(0))
	return max(heard.(int64), r.revision()) >= rev
}

// actor is a connection that joins a room, changes its state, and leaves.
type actor struct {
	load   *load
	node   *testNode
	user   string
	conn   string
	room   *room   // nil while it is not in
	mirror *mirror // of the present or the last time in the room
	Member
}

// load is a room, the nodes that it is spread over, and what was done there.
type load struct {
	*testing.T
	wire
	whole  bool
	room   string
	nodes  []*testNode
	actors []*actor

	mu     sync.Mutex
	issued []int64   // revisions
	past   []*mirror // of those who left
}

// startLoad spreads actors over nodes; two of them share a user. Where it is whole, no message gets lost.
func startLoad(t *testing.T, w wire, whole bool, nodes, actors int) *load {
	t.Helper()
	l := &load{T: t, wire: w, whole: whole, room: uniqueRoom(t)}
	for range nodes {
		l.nodes = append(l.nodes, startTestNode(t, w, whole))
	}
	for i := range actors {
		l.actors = append(l.actors, &actor{load: l, node: l.nodes[i%nodes], user: fmt.Sprint("u", i/2), conn: fmt.Sprint("c", i)})
	}
	return l
}

// run has every actor do so many things, all at the same time, and enter the room at last.
func (l *load) run(steps int) {
	l.Helper()
	var work sync.WaitGroup
	for i, a := range l.actors {
		work.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), uint64(steps)))
			for step := range steps {
				a.step(random.IntN(10), step)
			}
			if a.room == nil {
				a.enter()
			}
		})
	}
	work.Wait()
	if l.Failed() {
		l.FailNow()
	}
}

func (a *actor) step(dice, step int) {
	switch {
	case a.room == nil:
		a.enter()
	case dice < 7:
		a.patch(step)
	default:
		a.leave()
	}
}

// must notes the revision of a change.
func (l *load) must(rev int64, err error) {
	l.Helper()
	if err != nil {
		l.Error(err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.issued = append(l.issued, rev)
}

// enter takes the way of a join through a node.
func (a *actor) enter() {
	ctx, cancel := context.WithTimeout(a.load.Context(), 10*time.Second)
	defer cancel()
	a.room, a.mirror = a.node.hub.acquire(a.load.room), newMirror(a.load.room)
	floor, err := a.room.ready(ctx)
	if err == nil {
		err = a.room.index(ctx, func(ctx context.Context) error {
			return a.node.service.indexRoom(ctx, a.load.room, time.Minute)
		})
	}
	if err == nil {
		wish := Member{Room: a.load.room, User: a.user, Conn: a.conn, State: raw("{}")}
		a.Member, err = a.node.service.join(ctx, wish, floor)
	}
	a.load.must(a.Epoch, err)
	if err = a.room.admit(ctx, newWaiter(a.Epoch, a.mirror, asMember, modeAll, a.mirror.welcome)); err != nil {
		a.load.Error(err)
	}
}

func (a *actor) patch(n int) {
	changed, _, err := a.node.service.heartbeat(a.load.Context(), &a.Member, raw(fmt.Sprintf(`{"n":%d}`, n)), a.room.revision())
	if !changed && err == nil {
		a.load.Error("a patch changed nothing")
	}
	a.load.must(a.Rev, err)
}

// beat is a heartbeat without a patch, which tells the node the room's revision.
func (a *actor) beat() {
	_, rev, err := a.node.service.heartbeat(a.load.Context(), &a.Member, nil, a.room.revision())
	if err != nil {
		a.load.Error(err)
	}
	a.room.compare(rev)
}

func (a *actor) leave() {
	a.room.leave(a.mirror, asMember)
	a.node.hub.release(a.room)
	a.room = nil
	rev, left, err := a.node.service.remove(a.load.Context(), a.load.room, removal{reason: ReasonLeft}, []incarnation{{a.conn, a.Epoch}})
	if len(left) != 1 {
		a.load.Errorf("%d left", len(left))
	}
	a.load.must(rev, err)
	a.load.mu.Lock()
	defer a.load.mu.Unlock()
	a.load.past = append(a.load.past, a.mirror)
}

// eventuallyEqual waits until every fold is the room.
func (l *load) eventuallyEqual(within time.Duration) {
	l.Helper()
	stored := mustRead(l, l.nodes[0].service, l.room)
	if len(stored.Entries) != len(l.actors) {
		l.Fatalf("the room has %d members, want %d", len(stored.Entries), len(l.actors))
	}
	eventually(l, within, "every fold equal to the room", func() bool {
		return !slices.ContainsFunc(l.actors, func(a *actor) bool { return !a.mirror.equals(stored) })
	})
}

// assertOrdered checks what each receiver heard: in the order of the room, and if nothing was lost, each event once.
func (l *load) assertOrdered() {
	l.Helper()
	var issued []int64
	if l.whole {
		issued = slices.Sorted(slices.Values(l.issued))
	}
	for _, m := range l.past {
		m.assertOrdered(l.T, issued, false)
	}
	for _, a := range l.actors {
		a.mirror.assertOrdered(l.T, issued, true)
	}
}

// during calls do again and again until the load has run.
func (l *load) during(every time.Duration, do func(), run func()) {
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				do()
			}
		}
	})
	run()
	close(done)
	work.Wait()
}

func TestEveryNodeTellsEveryEventOnceAndInOrder_G1_G2_G3(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		for _, nodes := range []int{2, 5} {
			t.Run(fmt.Sprint(nodes, " nodes"), func(t *testing.T) {
				if nodes > 2 {
					takesLong(t)
				}
				l := startLoad(t, w, true, nodes, 20)
				if w.real {
					l.run(80)
				}
				l.run(20) // miniredis is slow
				l.eventuallyEqual(2 * time.Second)
				l.assertOrdered()
				assertAgree(t, l.nodes[0].service, l.room)
			})
		}
	})
}

func TestNodesRecoverFromLostSubscriptions_G1_G2_G3(t *testing.T) {
	takesLong(t)
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		l := startLoad(t, w, false, 3, 12)
		bridges := []*bridge{l.nodes[0].bridge, l.nodes[1].bridge, l.nodes[2].bridge}
		l.during(30*time.Millisecond, func() { w.cut(t, bridges...) }, func() { l.run(80) })
		l.eventuallyEqual(2 * time.Second)
		for _, n := range l.nodes {
			if n.confirmed.Load() < 3 {
				t.Errorf("subscribed %d times: the connections were hardly cut", n.confirmed.Load())
			}
		}
		l.assertOrdered()
		l.run(5) // and now nothing is lost any more
		l.eventuallyEqual(2 * time.Second)
		l.assertOrdered()
	})
}

func TestNodesRecoverFromLostMessages_G1_G2_G3(t *testing.T) {
	takesLong(t)
	eachWire(t, func(t *testing.T, w wire) {
		l := startLoad(t, w, false, 3, 12)
		for _, n := range l.nodes {
			n.loss.Store(10)
		}
		l.run(60)
		for _, n := range l.nodes {
			n.deaf.Store(true)
		}
		l.actors[0].patch(-1) // nobody hears the last one, and none comes after it
		for _, a := range l.actors {
			a.beat()
		}
		l.eventuallyEqual(replicaPatience + 2*time.Second)
		l.assertOrdered()
	})
}

func TestNodesGoOnThroughScriptFlushes_G1_G2_G3(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		l := startLoad(t, w, true, 2, 6)
		flush := func() {
			w.masters(t, func(ctx context.Context, rdb *redis.Client) error { return rdb.ScriptFlush(ctx).Err() })
		}
		l.during(5*time.Millisecond, flush, func() { l.run(60) })
		l.eventuallyEqual(2 * time.Second)
		l.assertOrdered()
	})
}

// Rooms do not mix: each node hosts many, and a receiver hears those it is in.
func TestRoomsAreApart_G1(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		one := startLoad(t, w, true, 2, 4)
		other := &load{T: t, wire: w, whole: true, room: one.room + "/other", nodes: one.nodes}
		for i := range 4 {
			other.actors = append(other.actors, &actor{load: other, node: other.nodes[i%2], user: "u", conn: fmt.Sprint("c", i)})
		}
		var work sync.WaitGroup
		for _, l := range []*load{one, other} {
			work.Go(func() { l.run(50) })
		}
		work.Wait()
		for _, l := range []*load{one, other} {
			l.eventuallyEqual(2 * time.Second)
			l.assertOrdered()
		}
		all := one.nodes[0].hub.receivers([]string{one.room, other.room})
		if len(all) != 4 || maps.Equal(all, one.nodes[0].hub.receivers([]string{one.room})) {
			t.Errorf("a node with 2 receivers in each of 2 rooms has %d", len(all))
		}
	})
}
