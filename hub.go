package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
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

// subscriptions are asked for the messages of rooms; the dispatchers of a hub are told of them as bridgeSinks.
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

// hub holds the rooms that local sockets are in, spread over its dispatchers.
//
// Locks are taken in the order dispatcher, room, batch, receiver.
type hub struct {
	*background
	hubOptions
	bridge      subscriptions
	loss        lossListener // nil = nobody
	dispatchers []*dispatcher

	missedAt atomic.Pointer[time.Time] // of the last loss of data in any room; nil = none

	seated, occupied atomic.Int64 // local members, and rooms that have some

	pages   *flights      // of rooms that no local socket is in
	readers chan struct{} // holds a token for each read under way
}

// lossListener learns what rooms notice. Its methods do not wait, and lock nothing that is held by who calls into a room.
type lossListener interface {
	toldOfKick(m *membership, conn string, epoch int64, reason Reason) // of a member of this node, which hears nothing of the room any more
	lostMembers(r *room)                                               // some of this node are not in the room any more, or as an older copy
	lostData()                                                         // Redis is another one, or it has lost the room's counter: other rooms will not have fared better
}

// hubOptions are what a hub needs. The two functions are called once, by newHub.
type hubOptions struct {
	source          roomSource
	encode          encoders
	dispatcherCount int                              // goroutines that bring messages, at least 1
	connect         func([]bridgeSink) subscriptions // to the channels of rooms
	losses          func(*hub) lossListener          // who is told of members of this node that Redis may have lost; nil = nobody
	deserted        func(room string)                // is told of rooms that this node has no members in any more; nil = nobody
	freshFor        time.Duration                    // age up to which lastSeenMs of a replica is good enough for a snapshot
	batchEvery      time.Duration                    // between two batches of a room
	countEvery      time.Duration                    // between two counts of a room
	roomBytes       int                              // of events per second and room; beyond it updates are collected; 0 = no limit
	log             *slog.Logger
	metrics         *metrics // nil = nobody counts
}

func newHub(o hubOptions) *hub {
	h := &hub{background: newBackground(), hubOptions: o, pages: newFlights(o.log), readers: make(chan struct{}, roomReaders)}
	sinks := []bridgeSink{}
	for range max(o.dispatcherCount, 1) {
		d := newDispatcher(h)
		h.dispatchers = append(h.dispatchers, d)
		sinks = append(sinks, d)
	}
	h.bridge = o.connect(sinks)
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

// dispatcherOf is the one that has the room, or is going to.
func (h *hub) dispatcherOf(room string) *dispatcher {
	return h.dispatchers[spread(room, len(h.dispatchers))]
}

// acquire gives the room for one more local member, who is to be released once.
func (h *hub) acquire(id string) *room { return h.dispatcherOf(id).acquire(id) }

func (h *hub) release(r *room) { r.dispatcher.release(r) }

func (h *hub) find(id string) *room { return h.dispatcherOf(id).find(id) }

// all are the rooms at this moment, in no order, or at most so many of them, others each time.
func (h *hub) all(most int) (list []*room) {
	for _, i := range rand.Perm(len(h.dispatchers)) {
		list = h.dispatchers[i].appendRooms(list, most)
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

// send writes a frame that is of no room.
func (h *hub) send(f frame, to []receiver) {
	b := batch{hub: h}
	b.cast(f, memberUpdate{}, to)
	b.flush()
}

// sweep gives up rooms that have had no local member for a while.
func (h *hub) sweep() {
	for _, d := range h.dispatchers {
		d.sweep()
	}
}

// size is how many rooms have members on this node, and how many these are. Who only watches a room, or reads it, is none.
func (h *hub) size() (rooms, members int) { return int(h.occupied.Load()), int(h.seated.Load()) }

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
