package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A join that waits so long for its own event reads the room instead.
	joinPatience = 100 * time.Millisecond

	// A replica that differs for so long from a revision that Redis returned is read anew.
	replicaPatience = time.Second

	// A read of a room that takes so long is given up and repeated. A room of 100,000 takes half a second.
	readPatience = 10 * time.Second

	// Pause while a read waits for the messages of what changed meanwhile.
	followPause = 5 * time.Millisecond

	// Rooms that are read at the same time: after an outage all of them want to be.
	roomReaders = 64

	// A room without local members is given up after this time.
	roomLinger = time.Second

	// One that is still being read is kept for so long, because who gave up waiting for it will ask again.
	loadLinger = 30 * time.Second

	// Messages kept while a room is read. When more come, the room is read once more instead.
	maxPending = 10_000
)

// receiver is a local socket as a room sees it. Its methods do not wait, and lock nothing that is held by who calls
// into a room.
type receiver interface {
	ID() string                                      // of the connection
	queue(f frame, of memberUpdate) (mustFlush bool) // an update takes the place of one of the same incarnation, if the socket is behind
	flush()
	hold() (release func(first frameParts)) // keeps back what is queued from now on, until it is released behind first
}

// roomSource is where rooms come from.
type roomSource interface {
	read(ctx context.Context, room string) (Snapshot, error)
	scan(ctx context.Context, room, cursor string, step int) (scanned, error)
	size(ctx context.Context, room string) (rev int64, count int, err error)
	lastSeen(ctx context.Context, room string, conns []string) ([]int64, error)
	legible(conn string, state json.RawMessage) json.RawMessage
}

// subscriptions are asked for the messages of rooms; a hub is told of them as a bridgeSink.
type subscriptions interface {
	subscribe(room string)
	unsubscribe(room string)
}

// encoders make what receivers are sent: one frame for all that get the same.
type encoders struct {
	event func(Event) frame
	batch func(Batch) frame
	count func(Batch) frame // its Events are none
}

// hub holds the rooms that local sockets are in.
//
// Locks are taken in the order hub, room, receiver.
type hub struct {
	source     roomSource
	bridge     subscriptions
	encode     encoders
	deserted   func(room string) // is told of rooms that this node has no members in any more; nil = nobody
	loss       lossListener      // is told of members of this node that Redis may have lost; nil = nobody
	freshFor   time.Duration     // age up to which lastSeenMs of a replica is good enough for a snapshot
	batchEvery time.Duration     // between two batches of a room
	countEvery time.Duration     // between two counts of a room
	roomBytes  int               // of events per second and room; beyond it updates are collected; 0 = no limit
	log        *slog.Logger
	metrics    *metrics // nil = nobody counts

	heard   int // messages in the batch at work, and when it began; of the bridge's goroutine alone
	heardAt time.Time

	missedAt atomic.Pointer[time.Time] // of the last loss of data in any room; nil = none

	seated, occupied atomic.Int64 // local members, and rooms that have some

	mu    mutex[ofHub]
	rooms map[string]*room

	batch   batch
	pages   *flights      // of rooms that no local socket is in
	readers chan struct{} // holds a token for each read under way
	ctx     context.Context
	stop    context.CancelFunc
	work    sync.WaitGroup
}

// lossListener learns what rooms notice. Its methods do not wait, and lock nothing that is held by who calls into a room.
type lossListener interface {
	toldOfKick(r *room, conn string, epoch int64) // of a member of this node, which hears nothing of the room any more
	lostMembers(r *room)                          // some of this node are not in the room any more, or as an older copy
	lostData()                                    // Redis is another one, or it has lost the room's counter: other rooms will not have fared better
}

// batch is what waits for the end of a batch of messages.
type batch struct {
	mu      mutex[ofBatch]
	dirty   []receiver // have frames that are not yet written
	touched []*room    // may have waiters to answer
}

// newHub makes a hub. Its bridge must be set before the first room is acquired.
func newHub(source roomSource, encode encoders, freshFor time.Duration, log *slog.Logger) *hub {
	h := &hub{source: source, encode: encode, freshFor: freshFor, batchEvery: 250 * time.Millisecond, countEvery: time.Second, log: log,
		rooms: map[string]*room{}, pages: newFlights(log), readers: make(chan struct{}, roomReaders)}
	h.ctx, h.stop = context.WithCancel(context.Background())
	h.work.Go(func() { keepRunning(h.ctx, log, "rooms", h.sweepLoop, nil) })
	return h
}

// close ends reading and sweeping, and waits for both.
func (h *hub) close() {
	h.stop()
	h.work.Wait()
}

// acquire gives the room for one more local member, who is to be released once.
func (h *hub) acquire(id string) *room {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rooms[id]
	if r == nil {
		r = newRoom(h, id)
		h.rooms[id] = r
		h.bridge.subscribe(id)
	}
	r.members++
	return r
}

func (h *hub) release(r *room) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.members--; r.members == 0 {
		r.indexedAt = time.Time{}
		r.emptySince = time.Now()
	}
}

func (h *hub) find(id string) *room {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rooms[id]
}

// all are the rooms at this moment, in no order, or at most so many of them, others each time.
func (h *hub) all(most int) (list []*room) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.rooms {
		if len(list) == most {
			break
		}
		list = append(list, r)
	}
	return list
}

// receivers are the local sockets in any of these rooms.
func (h *hub) receivers(rooms []string) map[receiver]bool {
	set := map[receiver]bool{}
	for _, id := range rooms {
		if r := h.find(id); r != nil {
			r.collect(set)
		}
	}
	return set
}

func (h *hub) sweepLoop() {
	tick := time.NewTicker(roomLinger / 2)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
			h.sweep()
		}
	}
}

// sweep gives up rooms that have had no local member for a while.
func (h *hub) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, r := range h.rooms {
		if r.members == 0 && time.Since(r.emptySince) >= r.linger() {
			delete(h.rooms, id)
			h.bridge.unsubscribe(id)
			r.stop()
			if h.deserted != nil {
				h.deserted(id)
			}
			continue
		}
		r.forget()
	}
}

// subscribed is told by the bridge: what was published before may be missing, so the room is read.
func (h *hub) subscribed(id string) {
	if r := h.find(id); r != nil {
		r.check()
	}
}

// message is told by the bridge.
func (h *hub) message(id, payload string) {
	if h.heard == 0 {
		h.heardAt = time.Now()
	}
	h.heard++
	r := h.find(id)
	if r == nil {
		return
	}
	m, ok := parseMessage(payload)
	if !ok || m.RoomID != id {
		h.log.Warn("a message on a room's channel is none of ours", "room", id)
		return
	}
	m.State = h.source.legible(m.ConnID, m.State)
	r.receive(m)
}

// size is how many rooms have members on this node, and how many these are. Who only watches a room, or reads it, is none.
func (h *hub) size() (rooms, members int) { return int(h.occupied.Load()), int(h.seated.Load()) }

// settled is told by the bridge after a batch.
func (h *hub) settled() {
	h.settle()
	if h.heard > 0 {
		h.metrics.batch(h.heard, time.Since(h.heardAt))
		h.heard = 0
	}
}

// settle comes after a batch of messages, and after a read: joins that waited for the messages before are answered, and
// everything is written.
func (h *hub) settle() {
	h.batch.mu.Lock()
	touched := h.batch.touched
	h.batch.touched = nil
	h.batch.mu.Unlock()
	for _, r := range touched {
		r.try(r.settle)
	}
	h.flush()
}

// later calls f after a while, unless the hub is closed before; close waits for it.
func (h *hub) later(wait time.Duration, f func()) {
	if h.ctx.Err() != nil {
		return
	}
	h.work.Go(func() {
		pause(h.ctx, wait)
		if h.ctx.Err() == nil {
			f()
		}
	})
}

func (h *hub) touch(r *room) {
	h.batch.mu.Lock()
	defer h.batch.mu.Unlock()
	h.batch.touched = append(h.batch.touched, r)
}

// cast queues a frame for receivers. It is written at the next flush.
func (h *hub) cast(f frame, to []receiver) { h.castUpdate(f, memberUpdate{}, to) }

// castUpdate is cast for an update of a member: a receiver that is behind may be sent a later one in its place.
func (h *hub) castUpdate(f frame, of memberUpdate, to []receiver) {
	h.metrics.handed(len(to))
	h.batch.mu.Lock()
	defer h.batch.mu.Unlock()
	for _, receiver := range to {
		if receiver.queue(f, of) {
			h.batch.dirty = append(h.batch.dirty, receiver)
		}
	}
}

func (h *hub) flush() {
	h.batch.mu.Lock()
	dirty := h.batch.dirty
	h.batch.dirty = nil
	h.batch.mu.Unlock()
	for _, receiver := range dirty {
		h.write(receiver)
	}
}

// write has a receiver write what is queued for it. A panic leaves the other receivers alone.
func (h *hub) write(to receiver) {
	defer logPanic(h.log, "rooms")
	to.flush()
}

// room is the replica of one room and the local sockets that get its events.
type room struct {
	id   string
	hub  *hub
	ctx  context.Context
	stop context.CancelFunc

	// Guarded by hub.mu.
	members    int // local members, and those on their way in
	emptySince time.Time
	indexedAt  time.Time     // when the room was written into the reaper's index for them, zero = not yet
	indexing   turn[ofToken] // who has it may write the index

	mu        mutex[ofRoom]
	replica   replica
	loaded    chan struct{} // closed once the replica is there
	loadOnce  sync.Once
	readAt    time.Time
	reading   bool
	readAgain bool
	distrust  bool      // readAgain because messages may be lost
	doubt     bool      // messages may be lost: the read tells what they told
	returned  int64     // what compare was given last
	comparing bool      // a timer looks at a difference
	pending   []message // came while the room was read
	touched   bool      // the hub will settle this room
	listeners listeners
	waiters   []*waiter
	view      *view                  // of the last answers, nil = none
	owned     map[string]*membership // the members that this node put in, by connection
	repair    repair

	freshFirst int       // members on the first page of a large room that freshen asked for last
	freshAt    time.Time // and when
}

func newRoom(h *hub, id string) *room {
	r := &room{id: id, hub: h, loaded: make(chan struct{}), indexing: newTurn[ofToken](), emptySince: time.Now(),
		owned: map[string]*membership{}}
	r.replica = newReplica(id)
	r.listeners.room = r
	r.ctx, r.stop = context.WithCancel(h.ctx)
	return r
}

// index calls write, unless that has succeeded lately and the node has had a member in the room since. Lately, because the
// reaper forgets a room that it found empty for a lookback, members here whom it culled or not. One call holds the others
// back, so that none is in the room before its index entry.
func (r *room) index(ctx context.Context, write func(context.Context) error) error {
	if err := r.indexing.LockBefore(ctx); err != nil {
		return unavailable(err)
	}
	defer r.indexing.Unlock()
	now := time.Now()
	r.hub.mu.Lock()
	done := now.Sub(r.indexedAt) <= r.hub.freshFor
	r.hub.mu.Unlock()
	if done {
		return nil
	}
	if err := write(ctx); err != nil {
		return err
	}
	r.hub.mu.Lock()
	r.indexedAt = now
	r.hub.mu.Unlock()
	return nil
}

// linger is how long the room is kept without local members.
func (r *room) linger() time.Duration {
	select {
	case <-r.loaded:
		return roomLinger
	default:
		return loadLinger
	}
}

// ready waits until the replica is there, and gives its revision.
func (r *room) ready(ctx context.Context) (rev int64, err error) {
	select {
	case <-r.loaded:
	case <-ctx.Done():
		return 0, unavailable(ctx.Err())
	}
	return r.revision(), nil
}

// revision is the highest one that this node knows.
func (r *room) revision() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replica.rev
}

// waiter is a receiver that waits for the replica to reach a revision.
type waiter struct {
	rev      int64
	to       receiver // nil = nobody, who waits has what it wants with the answer
	as       role
	mode     eventMode
	after    string                 // the page that it wants begins behind this connection
	limit    int                    // and has so many members; 0 = all
	glances  bool                   // it is given a page only
	answer   func(*view) frameParts // what it is sent before the events; it is called by admit, and may take its time
	answered chan struct{}
	view     *view                  // once it is answered
	release  func(first frameParts) // of the receiver
}

// newWaiter is for a receiver that joins or watches: answer is given the room as it is when it begins.
func newWaiter(rev int64, to receiver, as role, mode eventMode, answer func(*view) frameParts) *waiter {
	return &waiter{rev: rev, to: to, as: as, mode: mode, answer: answer, answered: make(chan struct{})}
}

// newGlance is for who is given a page, and hears nothing more.
func newGlance(rev int64, after string, limit int, by receiver, answer func(page) frameParts) *waiter {
	w := newWaiter(rev, by, asMember, modeNone, func(v *view) frameParts { return answer(v.page(after, limit)) })
	w.after, w.limit, w.glances = after, limit, true
	return w
}

// show gives the waiter the room. What its receiver is sent from now on waits for finish.
func (w *waiter) show(v *view) {
	w.view = v
	if w.to != nil && w.release == nil { // it is shown the room again after a panic
		w.release = w.to.hold()
	}
}

// finish sends the receiver what it waited for, and what was held back behind that.
func (w *waiter) finish() {
	var first frameParts
	if w.release != nil {
		defer func() { w.release(first) }()
	}
	first = w.answer(w.view)
}

// abandon ends the hold of a receiver that was shown the room, but not answered because of a panic.
func (w *waiter) abandon() {
	if w.release != nil {
		w.release(nil)
	}
}

// admit waits until the replica has reached the waiter's revision. Then, in one step, it takes a view of the room and makes the
// receiver one of the room's, whose events wait behind the answer that is made of the view (G2: the acknowledgement precedes the
// events, and none between them is missing). It is made by the goroutine that called admit, so that nobody else waits for it.
func (r *room) admit(ctx context.Context, w *waiter) error {
	if _, err := r.ready(ctx); err != nil {
		return err
	}
	if err := r.freshen(ctx, w); err != nil {
		return err
	}
	r.enqueue(w)
	impatient := r.after(joinPatience, r.hurry)
	defer impatient.Stop()
	return r.await(ctx, w)
}

// await waits until the waiter is shown the room, and sends its receiver the answer. The error is that of a waiter that gave up.
func (r *room) await(ctx context.Context, w *waiter) error {
	select {
	case <-w.answered:
	case <-ctx.Done():
		if err := r.giveUp(w, ctx.Err()); err != nil {
			w.abandon()
			return err
		}
	}
	w.finish()
	return nil
}

// enqueue has a waiter answered as soon as its revision is there.
func (r *room) enqueue(w *waiter) {
	queued := false
	defer func() {
		if !queued { // a panic: nobody waits any more
			_ = r.giveUp(w, nil)
		}
	}()
	defer r.hub.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiters = append(r.waiters, w)
	if time.Since(r.readAt) > r.hub.freshFor && !r.inPages(w) {
		r.look()
	}
	if !r.touched {
		r.welcome()
	}
	queued = true
}

// inPages tells whether the waiter wants a part of a room that is too large to be read for it. r.mu is held.
func (r *room) inPages(w *waiter) bool { return w.limit > 0 && r.replica.entries.len() > readBatch }

// freshen asks when the members on the page that the waiter wants were last heard of, if the room is not read for that.
func (r *room) freshen(ctx context.Context, w *waiter) error {
	r.mu.Lock()
	now := time.Now()
	first := w.after == ""
	stale := r.inPages(w) && now.Sub(r.readAt) > r.hub.freshFor && !(first && w.limit <= r.freshFirst && now.Sub(r.freshAt) <= r.hub.freshFor)
	var conns []string
	if stale {
		conns = r.replica.ids(w.after, w.limit)
	}
	r.mu.Unlock()
	if !stale {
		return nil
	}
	times, err := r.hub.source.lastSeen(ctx, r.id, conns)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, conn := range conns {
		r.replica.heard(conn, times[i])
	}
	if first {
		r.freshFirst, r.freshAt = w.limit, now
	}
	return nil
}

// hurry reads the room if somebody still waits for it. A read that is under way may have looked before the join.
func (r *room) hurry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.waiters {
		if w.rev > r.replica.rev {
			r.reread()
			return
		}
	}
}

// reach waits until the replica has reached rev, and all events up to there are told.
func (r *room) reach(ctx context.Context, rev int64) error {
	return r.admit(ctx, newWaiter(rev, nil, asMember, modeNone, func(*view) frameParts { return nil }))
}

// tellKicked tells of a kick whose message this node has not got, although the replica is past it: a reading keeps a member whose
// request is at work.
func (r *room) tellKicked(conn string, epoch, ts int64) {
	defer r.hub.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	old, there := r.replica.entries.get(conn)
	if !there || old.Epoch > epoch {
		return
	}
	r.replica.drop(conn)
	e := r.replica.event(EventLeave, old, ts)
	e.Reason = ReasonKicked
	r.tellAll(r.replica.stored, []change{{e, old, true}})
	r.listeners.settle()
}

// giveUp takes back a waiter, unless it was answered in the meantime.
func (r *room) giveUp(w *waiter, cause error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, other := range r.waiters {
		if other == w {
			r.waiters = append(r.waiters[:i], r.waiters[i+1:]...)
			return unavailable(cause)
		}
	}
	return nil
}

// welcome answers the waiters whose revision the replica has reached, after the read that is under way. r.mu is held.
func (r *room) welcome() {
	if !r.reading {
		r.answer()
	}
}

func (r *room) answer() {
	var rest, open []*waiter
	rest = r.waiters[:0]
	defer func() { // after a panic some are open: they go on waiting, also the one whose answer panicked
		all := r.waiters
		r.waiters = append(rest, open...)
		clear(all[len(r.waiters):])
	}()
	for i, w := range r.waiters {
		open = r.waiters[i:]
		if w.rev > r.replica.rev {
			rest = append(rest, w)
			continue
		}
		r.listeners.catchUp(w.to)
		w.show(r.current())
		switch {
		case w.glances:
			r.listeners.paged(w.to)
		case w.to != nil:
			r.listeners.admit(w.to, w.as, w.mode)
		}
		close(w.answered)
	}
	open = nil
}

// current is a view of the room as it is. All who are answered before it changes share it. r.mu is held.
func (r *room) current() *view {
	if !r.view.shows(&r.replica) {
		r.view = r.replica.view()
	}
	return r.view
}

// forget gives up the view, which keeps what was sent in memory.
func (r *room) forget() {
	if r.mu.TryLock() {
		r.view = nil
		r.mu.Unlock()
	}
}

// leave ends what the receiver gets in a role. Frames that are queued for it stay.
func (r *room) leave(to receiver, as role) {
	defer r.hub.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners.dismiss(to, as)
}

// own makes a connection's membership one that is put back when the room loses it.
func (r *room) own(conn string, m *membership) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owned[conn] = m
}

// disown ends that.
func (r *room) disown(conn string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.owned, conn)
}

// toHeal are the members that this node owns. The reaper's index may be lost as well, so that the next join writes it.
func (r *room) toHeal() []*membership {
	r.hub.mu.Lock()
	r.indexedAt = time.Time{}
	r.hub.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.owned))
}

// collect adds the room's local members to a set.
func (r *room) collect(set map[receiver]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners.collect(set)
}

// windowOver sends what was kept until a time.
func (r *room) windowOver(p *pace) {
	defer r.hub.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	p.armed = false
	r.listeners.settle()
}

// receive takes a message of the room's channel. It is applied if it follows the replica; one that is already in it is
// dropped; anything else means that messages, or the room's counter, were lost.
func (r *room) receive(m message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.reading:
		r.keep(m)
	case r.replica.precedes(m), r.beginsAnew(m):
		r.apply(m.Event)
	case m.Rev <= r.replica.stored:
		r.overtake(m)
	default:
		r.hub.metrics.gap()
		r.hub.log.Info("messages of a room were lost", "room", r.id, "have", r.replica.stored, "prev", m.prev, "rev", m.Rev)
		if m.prev < r.replica.stored {
			r.missData()
		}
		r.keep(m)
		r.reread()
	}
}

func (r *room) keep(m message) {
	if len(r.pending) == maxPending {
		r.pending, r.readAgain, r.distrust = nil, true, true
	}
	r.pending = append(r.pending, m)
}

// apply changes the replica and tells the receivers. r.mu is held.
func (r *room) apply(e Event) {
	if r.replica.stored == 0 {
		r.repair.signs.origin = e.Rev
	}
	if e.Reason == ReasonKicked {
		r.listeners.hasten(e.ConnID)
	}
	stored, told := r.replica.stored, false
	c := r.replica.apply(e)
	defer func() {
		if !told {
			r.replica.takeBack(stored, c)
		}
	}()
	c.UserConns = r.replica.users[e.UserID] // Redis does not count those who are spared here
	delete(r.repair.spared, e.ConnID)
	r.listeners.tell(c)
	told = true
	if m := r.owned[e.ConnID]; m != nil && e.Reason == ReasonKicked {
		m.kicked.Store(e.Epoch)
	}
	if (e.Reason == ReasonTimeout || e.Reason == ReasonNodeLost) && r.hub.loss != nil && r.owned[e.ConnID] != nil {
		r.hub.loss.lostMembers(r) // somebody took it for lost, though its socket lives
	}
	if e.Reason == ReasonKicked && r.hub.loss != nil && r.owned[e.ConnID] != nil {
		r.hub.loss.toldOfKick(r, e.ConnID, max(e.Epoch, c.before.Epoch))
	}
	if !r.touched {
		r.touched = true
		r.hub.touch(r)
	}
}

func (r *room) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.touched = false
	r.listeners.settle()
	r.welcome()
}

// compare takes a revision of the room that a script returned. When the replica does not come to it, messages were lost
// and none came after them; when the replica stays above it, the room's counter was.
func (r *room) compare(rev int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.returned = rev
	r.doubtLater()
}

// doubtLater looks after a while at a difference between the replica and what was returned. In a busy room there is always
// one, and only one that the replica has not overcome by then counts. r.mu is held.
func (r *room) doubtLater() {
	rev, had := r.returned, r.replica.stored
	if rev == had || r.comparing {
		return
	}
	r.comparing = true
	r.after(replicaPatience, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.comparing = false
		switch {
		case r.replica.stored < rev, r.replica.stored == had && r.returned != had:
			r.reread()
		case r.replica.stored < r.returned:
			r.doubtLater()
		}
	})
}

// reread has the room read because messages may be lost. r.mu is held.
func (r *room) reread() {
	r.doubt, r.distrust = true, true
	r.look()
}

// look has the room read, once more if that is already under way. r.mu is held.
func (r *room) look() {
	if r.reading {
		r.readAgain = true
		return
	}
	if r.ctx.Err() != nil {
		return
	}
	r.reading = true
	r.hub.work.Go(func() { keepRunning(r.ctx, r.hub.log, "rooms", r.readLoop, r.check) })
}

func (r *room) readLoop() {
	for wait := 20 * time.Millisecond; r.ctx.Err() == nil; {
		s, known, err := r.read()
		if err != nil {
			r.hub.log.Debug("a room cannot be read", "error", err)
			pause(r.ctx, wait)
			wait = min(2*wait, 500*time.Millisecond)
			continue
		}
		done := r.adopt(s, known, r.compareWith(s))
		r.hub.settle()
		if done {
			return
		}
	}
}

// read gives what the store holds, and how many messages came before that.
func (r *room) read() (s Snapshot, known int, err error) {
	select {
	case r.hub.readers <- struct{}{}:
	case <-r.ctx.Done():
		return Snapshot{}, 0, r.ctx.Err()
	}
	defer func() { <-r.hub.readers }()
	ctx, cancel := context.WithTimeout(r.ctx, readPatience)
	defer cancel()
	known = r.beginRead()
	if s, err = r.hub.source.read(ctx, r.id); err == nil && s.until > s.Rev {
		s, err = r.complete(ctx, s)
	}
	return s, known, err
}

// complete makes what was read in parts the room at one moment, by the messages of what changed meanwhile.
func (r *room) complete(ctx context.Context, s Snapshot) (Snapshot, error) {
	for ctx.Err() == nil {
		changes, whole, err := r.since(s)
		if err != nil {
			return s, err
		}
		if whole {
			return s.after(changes), nil
		}
		pause(ctx, followPause)
	}
	return s, ctx.Err()
}

// since gives the messages that follow the beginning of a read, and whether they reach its end.
func (r *room) since(s Snapshot) (changes []Event, whole bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev := s.Rev
	for _, m := range r.pending {
		switch {
		case m.Rev <= rev:
		case m.prev != rev:
			return nil, false, errors.New("messages were lost while a large room was read")
		default:
			rev = m.Rev
			changes = append(changes, m.Event)
		}
	}
	return changes, rev >= s.until, nil
}

// after is the room after these events. What was read of a connection may be newer than an event.
func (s Snapshot) after(changes []Event) Snapshot {
	members := make(map[string]Entry, len(s.Entries))
	for _, e := range s.Entries {
		members[e.ConnID] = e
	}
	for _, e := range changes {
		s.Rev, s.until = e.Rev, e.Rev
		switch old, there := members[e.ConnID]; {
		case there && old.Rev >= e.Rev:
		case e.Type == EventLeave:
			delete(members, e.ConnID)
		default:
			members[e.ConnID] = entryOfEvent(e)
		}
	}
	s.Entries = slices.SortedFunc(maps.Values(members), func(a, b Entry) int { return cmp.Compare(a.ConnID, b.ConnID) })
	return s
}

// compared is a reading of the room beside the replica, which does not change while the room is read. In a large room it takes a
// while to find, and nobody must wait for that.
type compared struct {
	comparison
	first   *replica // of a room that had none, nil = it has one
	missing []string // members of this node that were not found, or as an older copy
}

func (r *room) compareWith(s Snapshot) compared {
	c := compared{missing: r.missingIn(s)}
	select {
	case <-r.loaded:
	default:
		p := newReplica(r.id)
		p.adopt(s, nobody)
		c.first = &p
	}
	r.mu.Lock()
	had := r.replica.entries.view()
	r.mu.Unlock()
	c.comparison = had.compare(s.Entries)
	return c
}

// beginRead gives the number of messages that came before the read.
func (r *room) beginRead() (known int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readAgain, r.distrust = false, false
	r.repair.readBegan = time.Now()
	return len(r.pending)
}

// adopt takes over what was read, and applies what came in meanwhile. The known messages before the read are in it, or the
// store has lost them. It is false when the room must be read again.
//
// Messages that follow the replica come first: a read must not take the place of events that are there, or that are on
// their way (G1). What it has beyond them is told as the difference, if messages may be lost.
func (r *room) adopt(s Snapshot, known int, found compared) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.examine(s, found.missing)
	had, kept := r.replica.stored, len(r.pending)
	for _, m := range r.pending { // which may be applied before the reading is
		found.differ[m.ConnID] = true
	}
	r.doubt = !r.applyPending() || r.doubt
	known -= kept - len(r.pending)
	overtaken := had <= s.Rev && s.Rev < r.replica.stored
	onTheirWay := r.replica.stored < s.Rev && !r.doubt
	switch {
	case overtaken || onTheirWay && found.first == nil:
		r.replica.hear(found.comparison)
		r.tellGone(s)
	case found.first != nil && r.replica.stored == 0 && r.replica.entries.len() == 0:
		r.replica = *found.first
	default:
		r.hastenKicked(found.comparison)
		stored := r.replica.stored
		changes := r.replica.adoptOnly(s, found.comparison, r.sparer(s))
		if !r.readAt.IsZero() {
			r.hub.metrics.repaired(len(changes))
		}
		r.tellAll(stored, changes)
	}
	r.readAt = time.Now()
	r.loadOnce.Do(func() { close(r.loaded) })
	known = min(max(known, 0), len(r.pending))
	for _, m := range r.pending[:known] {
		r.overtake(m)
	}
	r.pending = r.pending[known:]
	r.doubt = !r.applyPending() || r.distrust
	r.checkLater()
	r.listeners.settle()
	r.answer()
	r.reading = r.doubt || r.readAgain // the last step: a read that panics is repeated by who began it
	return !r.reading
}

// hastenKicked is for members that were kicked, if the message was lost: a read is going to tell that they left. r.mu is held.
func (r *room) hastenKicked(found comparison) {
	for conn := range found.differ {
		if m := r.owned[conn]; m != nil && m.isOver() {
			r.listeners.hasten(conn)
		}
	}
}

// applyPending is false when one of the messages does not follow the replica. Then it and those after it stay.
func (r *room) applyPending() bool {
	for i, m := range r.pending {
		switch {
		case r.replica.precedes(m), r.beginsAnew(m):
			r.apply(m.Event)
		case m.Rev > r.replica.stored:
			r.pending = r.pending[i:]
			return false
		default:
			r.overtake(m)
		}
	}
	r.pending = nil
	return true
}

// replica is a room as this node knows it.
type replica struct {
	room    string
	rev     int64 // the highest that receivers were told
	stored  int64 // that of the store, as far as is known: below rev only when the store has lost its counter
	entries members
	users   map[string]int // connections of each user
	version uint64         // raised by each change
}

func newReplica(room string) replica {
	return replica{room: room, users: map[string]int{}}
}

// precedes tells whether m is the next change. Receivers never see a revision go back.
func (p *replica) precedes(m message) bool { return m.prev == p.stored && m.Rev > p.rev }

// change is an event, and what the replica had of the connection before it.
type change struct {
	Event
	before Entry
	had    bool
}

func (p *replica) apply(e Event) change {
	p.rev, p.stored = e.Rev, e.Rev
	c := change{Event: e}
	if e.Type == EventLeave {
		c.before, c.had = p.drop(e.ConnID)
		return c
	}
	c.before, c.had = p.put(entryOfEvent(e))
	return c
}

// entryOfEvent is the member after a join or an update.
func entryOfEvent(e Event) Entry {
	return Entry{ConnID: e.ConnID, UserID: e.UserID, State: e.State, LastSeenMs: e.TS, Epoch: e.Epoch, Rev: e.Rev}
}

func (p *replica) put(e Entry) (before Entry, had bool) {
	p.version++
	before, had = p.entries.get(e.ConnID)
	if had && before.UserID == e.UserID {
		e.ConnID, e.UserID = before.ConnID, before.UserID
	} else { // parts of a message, which they would keep in memory
		e.ConnID, e.UserID = strings.Clone(e.ConnID), strings.Clone(e.UserID)
		p.users[e.UserID]++
		if had {
			p.release(before.UserID)
		}
	}
	p.entries.put(e)
	return before, had
}

func (p *replica) drop(conn string) (before Entry, had bool) {
	before, had = p.entries.get(conn)
	if !had {
		return before, false
	}
	p.version++
	p.entries.drop(conn)
	p.release(before.UserID)
	return before, true
}

// release takes a connection off a user.
func (p *replica) release(user string) {
	if p.users[user]--; p.users[user] == 0 {
		delete(p.users, user)
	}
}

func (p *replica) tally() tally { return tally{p.entries.len(), len(p.users)} }

// ids are the connections after one, in order, at most limit.
func (p *replica) ids(after string, limit int) (ids []string) {
	for e := range p.entries.after(after) {
		if len(ids) == limit {
			break
		}
		ids = append(ids, e.ConnID)
	}
	return ids
}

// heard notes when a member was last heard of.
func (p *replica) heard(conn string, ms int64) {
	if e, there := p.entries.get(conn); there && e.LastSeenMs < ms {
		p.version++
		e.LastSeenMs = ms
		p.entries.put(e)
	}
}

// hear notes when the members of a reading were last heard of.
func (p *replica) hear(c comparison) {
	p.version++
	p.entries.hear(c)
}

// adopt makes the replica equal to what was read and gives the difference: joins and updates, then leaves, all of the
// revision that was read. A replica never goes back: where Redis has lost its counter, the higher revision stays, and so do
// entries that spare is true for, although they were not found, or only as an older copy.
func (p *replica) adopt(s Snapshot, spare func(Entry) bool) []change {
	return p.adoptOnly(s, p.entries.compare(s.Entries), spare)
}

// adoptOnly is adopt where the comparison is known. It takes as long as there are differences.
func (p *replica) adoptOnly(s Snapshot, found comparison, spare func(Entry) bool) []change {
	p.rev, p.stored = max(p.rev, s.Rev), s.Rev
	p.hear(found)
	var changes []change
	differ := slices.Sorted(maps.Keys(found.differ))
	var missing []Entry
	for _, conn := range differ {
		old, had := p.entries.get(conn)
		e, present := s.entry(conn)
		if !present {
			if had && !spare(old) {
				missing = append(missing, old)
			}
			continue
		}
		if had && e.olderThan(old.Epoch, old.Rev) && spare(old) {
			continue
		}
		kind := difference(old, had, e)
		p.put(e)
		if kind != "" {
			changes = append(changes, change{p.event(kind, e, s.TS), old, had})
		}
	}
	for _, old := range missing {
		p.drop(old.ConnID)
		changes = append(changes, change{p.event(EventLeave, old, s.TS), old, true})
	}
	return changes
}

// entry finds a connection in what was read.
func (s Snapshot) entry(conn string) (Entry, bool) {
	at, found := slices.BinarySearchFunc(s.Entries, conn, byConn)
	if !found {
		return Entry{}, false
	}
	return s.Entries[at], true
}

// nobody of those who were not found stays.
func nobody(Entry) bool { return false }

// olderThan tells whether the entry is of an earlier incarnation or change.
func (e *Entry) olderThan(epoch, rev int64) bool {
	return e.Epoch < epoch || e.Epoch == epoch && e.Rev < rev
}

// difference is the event that turns one entry into another, "" if none is needed. The same state under another
// revision is a connection that was put back.
func difference(old Entry, had bool, e Entry) EventType {
	switch {
	case !had || old.UserID != e.UserID || old.Epoch != e.Epoch:
		return EventJoin
	case old.Rev == e.Rev:
		return ""
	case bytes.Equal(old.State, e.State):
		return EventJoin
	default:
		return EventUpdate
	}
}

func (p *replica) event(kind EventType, e Entry, ts int64) Event {
	event := Event{Type: kind, RoomID: p.room, UserID: e.UserID, ConnID: e.ConnID, State: e.State, TS: ts, Epoch: e.Epoch,
		Rev: p.rev, UserConns: p.users[e.UserID]}
	if kind == EventLeave {
		event.State = nil
	}
	return event
}
