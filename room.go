package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// receiver is a local socket as a room sees it. Its methods do not wait, and lock nothing that is held by who calls
// into a room.
type receiver interface {
	ID() string                                      // of the connection
	queue(f frame, of memberUpdate) (mustFlush bool) // an update takes the place of one of the same incarnation, if the socket is behind
	flush()
	hold() (release func(first frameParts)) // keeps back what is queued from now on, until it is released behind first
}

// room is the replica of one room and the local sockets that get its events.
type room struct {
	id         string
	hub        *hub
	dispatcher *dispatcher
	ctx        context.Context
	stop       context.CancelFunc

	// Guarded by dispatcher.mu.
	members    int // local members, and those on their way in
	emptySince time.Time
	indexedAt  time.Time              // when the room was written into the reaper's index for them, zero = not yet
	indexing   operationLock[ofToken] // who has it may write the index

	mu           mutex[ofRoom]
	replica      replica
	loaded       chan struct{} // closed once the replica is there
	loadOnce     sync.Once
	readAt       time.Time
	reading      bool
	readAgain    bool
	readMayMiss  bool      // readAgain because messages may be lost
	gapSuspected bool      // messages may be lost: the read tells what they told
	returned     int64     // what compare was given last
	comparing    bool      // a timer looks at a difference
	pending      []message // came while the room was read
	touched      bool      // the hub will settle this room
	listeners    listeners
	waiters      []*waiter
	view         *view                  // of the last answers, nil = none
	owned        map[string]*membership // the members that this node put in, by connection
	repair       repair

	freshFirst int       // members on the first page of a large room that freshen asked for last
	freshAt    time.Time // and when
}

func newRoom(d *dispatcher, id string) *room {
	r := &room{id: id, hub: d.hub, dispatcher: d, loaded: make(chan struct{}), indexing: newOperationLock[ofToken](), emptySince: time.Now(),
		owned: map[string]*membership{}}
	r.replica = newReplica(id)
	r.listeners.room = r
	r.ctx, r.stop = context.WithCancel(d.hub.ctx)
	return r
}

// index calls write, unless that has succeeded lately and the node has had a member in the room since. Lately, because the
// reaper forgets a room that it found empty for a lookback, whether it removed members of this node or not. One call holds the others
// back, so that none is in the room before its index entry.
func (r *room) index(ctx context.Context, write func(context.Context) error) error {
	if err := r.indexing.LockBefore(ctx); err != nil {
		return unavailable(err)
	}
	defer r.indexing.Unlock()
	now := time.Now()
	if r.isIndexed() {
		return nil
	}
	if err := write(ctx); err != nil {
		return err
	}
	r.dispatcher.mu.Lock()
	r.indexedAt = now
	r.dispatcher.mu.Unlock()
	return nil
}

// isIndexed tells whether index would have nothing to do.
func (r *room) isIndexed() bool {
	r.dispatcher.mu.Lock()
	defer r.dispatcher.mu.Unlock()
	return time.Since(r.indexedAt) <= r.hub.freshFor
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

// tellKicked tells of a removal for good whose message this node has not got, although the replica is past it: a reading keeps a
// member whose request is at work.
func (r *room) tellKicked(conn string, epoch, ts int64, reason Reason) {
	defer r.dispatcher.batch.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	old, there := r.replica.entries.get(conn)
	if !there || old.Epoch > epoch {
		return
	}
	r.replica.drop(conn)
	e := r.replica.event(EventLeave, old, ts)
	e.Reason = reason
	r.tellAll(r.replica.stored, []change{{Event: e, before: old, had: true, final: true}})
	r.listeners.settle()
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
	defer r.dispatcher.batch.flush()
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
	r.dispatcher.mu.Lock()
	r.indexedAt = time.Time{}
	r.dispatcher.mu.Unlock()
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
	defer r.dispatcher.batch.flush()
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
		r.dropStale(m)
	default:
		r.hub.metrics.gap()
		r.hub.log.Info("messages of a room were lost", "room", r.id, "have", r.replica.stored, "prev", m.prev, "rev", m.Rev)
		if m.prev < r.replica.stored {
			r.onDataLoss()
		}
		r.keep(m)
		r.reread()
	}
}

func (r *room) keep(m message) {
	if len(r.pending) == maxPending {
		r.pending, r.readAgain, r.readMayMiss = nil, true, true
	}
	r.pending = append(r.pending, m)
}

// apply changes the replica and tells the receivers. r.mu is held.
func (r *room) apply(e Event) {
	if r.replica.stored == 0 && r.replica.entries.len() == 0 { // with members, the counter was lost
		r.repair.signs.origin = e.Rev
	}
	final := (e.Reason == ReasonKicked || r.owned[e.ConnID] != nil) && r.replica.isFinal(e)
	if final {
		r.listeners.hasten(e.ConnID)
	}
	stored, told := r.replica.stored, false
	c := r.replica.apply(e)
	defer func() {
		if !told {
			r.replica.takeBack(stored, c)
		}
	}()
	c.final = final
	c.UserConns = r.replica.users[e.UserID] // Redis does not count those who are kept here
	delete(r.repair.keptMissing, e.ConnID)
	r.listeners.tell(c)
	told = true
	if m := r.owned[e.ConnID]; m != nil && c.final {
		m.expel(e.Epoch, e.Reason)
	}
	if (e.Reason == ReasonTimeout || e.Reason == ReasonNodeLost) && r.hub.loss != nil && r.owned[e.ConnID] != nil {
		r.hub.loss.lostMembers(r) // somebody took it for lost, though its socket lives
	}
	if m := r.owned[e.ConnID]; m != nil && c.final && r.hub.loss != nil {
		r.hub.loss.toldOfKick(m, e.ConnID, max(e.Epoch, c.before.Epoch), e.Reason)
	}
	if !r.touched {
		r.touched = true
		r.dispatcher.batch.touch(r)
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
	r.suspectGapLater()
}
