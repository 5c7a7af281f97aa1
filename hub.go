package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"
)

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
	*background
	hubOptions
	bridge subscriptions
	loss   lossListener // nil = nobody

	heard   int // messages in the batch at work, and when it began; of the bridge's goroutine alone
	heardAt time.Time

	missedAt atomic.Pointer[time.Time] // of the last loss of data in any room; nil = none

	seated, occupied atomic.Int64 // local members, and rooms that have some

	mu    mutex[ofHub]
	rooms map[string]*room

	batch   batch
	pages   *flights      // of rooms that no local socket is in
	readers chan struct{} // holds a token for each read under way
}

// lossListener learns what rooms notice. Its methods do not wait, and lock nothing that is held by who calls into a room.
type lossListener interface {
	toldOfKick(r *room, conn string, epoch int64, reason Reason) // of a member of this node, which hears nothing of the room any more
	lostMembers(r *room)                                         // some of this node are not in the room any more, or as an older copy
	lostData()                                                   // Redis is another one, or it has lost the room's counter: other rooms will not have fared better
}

// batch is what waits for the end of a batch of messages.
type batch struct {
	mu      mutex[ofBatch]
	dirty   []receiver // have frames that are not yet written
	touched []*room    // may have waiters to answer
}

// hubOptions are what a hub needs. The two functions are called once, by newHub.
type hubOptions struct {
	source     roomSource
	encode     encoders
	connect    func(bridgeSink) subscriptions // to the channels of rooms
	losses     func(*hub) lossListener        // who is told of members of this node that Redis may have lost; nil = nobody
	deserted   func(room string)              // is told of rooms that this node has no members in any more; nil = nobody
	freshFor   time.Duration                  // age up to which lastSeenMs of a replica is good enough for a snapshot
	batchEvery time.Duration                  // between two batches of a room
	countEvery time.Duration                  // between two counts of a room
	roomBytes  int                            // of events per second and room; beyond it updates are collected; 0 = no limit
	log        *slog.Logger
	metrics    *metrics // nil = nobody counts
}

func newHub(o hubOptions) *hub {
	h := &hub{background: newBackground(), hubOptions: o, rooms: map[string]*room{}, pages: newFlights(o.log), readers: make(chan struct{}, roomReaders)}
	h.bridge = o.connect(h)
	if o.losses != nil {
		h.loss = o.losses(h)
	}
	h.keep(o.log, "rooms", func() { h.every(roomLinger/2, h.sweep) }, nil)
	return h
}

// close ends reading and sweeping, and waits for both.
func (h *hub) close() {
	h.end()
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
