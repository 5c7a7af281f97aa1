package main

import (
	"time"
)

// dispatcher has a part of the rooms of a hub. One goroutine brings it the messages of all of them, so the events of a room
// keep their order, and no other dispatcher waits for it.
type dispatcher struct {
	hub *hub

	heard   int // messages in the batch at work, and when it began; of the goroutine that brings them alone
	heardAt time.Time

	mu    mutex[ofDispatcher]
	rooms map[string]*room

	batch batch
}

// batch is what waits for the end of a batch of messages.
type batch struct {
	hub     *hub
	mu      mutex[ofBatch]
	dirty   []receiver // have frames that are not yet written
	touched []*room    // may have waiters to answer
}

func newDispatcher(h *hub) *dispatcher {
	return &dispatcher{hub: h, rooms: map[string]*room{}, batch: batch{hub: h}}
}

func (d *dispatcher) acquire(id string) *room {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.rooms[id]
	if r == nil {
		r = newRoom(d, id)
		d.rooms[id] = r
		d.hub.bridge.subscribe(id)
	}
	r.members++
	return r
}

func (d *dispatcher) release(r *room) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.members--; r.members == 0 {
		r.indexedAt = time.Time{}
		r.emptySince = time.Now()
	}
}

func (d *dispatcher) find(id string) *room {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rooms[id]
}

// appendRooms adds rooms to a list until it has so many.
func (d *dispatcher) appendRooms(list []*room, most int) []*room {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.rooms {
		if len(list) == most {
			break
		}
		list = append(list, r)
	}
	return list
}

// sweep gives up rooms that have had no local member for a while.
func (d *dispatcher) sweep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, r := range d.rooms {
		if r.members == 0 && time.Since(r.emptySince) >= r.linger() {
			delete(d.rooms, id)
			d.hub.bridge.unsubscribe(id)
			r.stop()
			if d.hub.deserted != nil {
				d.hub.deserted(id)
			}
			continue
		}
		r.forget()
	}
}

// subscribed is told by the bridge: what was published before may be missing, so the room is read.
func (d *dispatcher) subscribed(id string) {
	if r := d.find(id); r != nil {
		r.check()
	}
}

// message is told by the bridge.
func (d *dispatcher) message(id, payload string) {
	if d.heard == 0 {
		d.heardAt = time.Now()
	}
	d.heard++
	r := d.find(id)
	if r == nil {
		return
	}
	m, ok := parseMessage(payload)
	if !ok || m.RoomID != id {
		d.hub.log.Warn("a message on a room's channel is none of ours", "room", id)
		return
	}
	m.State = d.hub.source.legible(m.ConnID, m.State)
	r.receive(m)
}

// settled is told by the bridge after a batch.
func (d *dispatcher) settled() {
	d.settle()
	if d.heard > 0 {
		d.hub.metrics.batch(d.heard, time.Since(d.heardAt))
		d.heard = 0
	}
}

// settle comes after a batch of messages, and after a read: joins that waited for the messages before are answered, and
// everything is written.
func (d *dispatcher) settle() {
	for _, r := range d.batch.takeTouched() {
		r.try(r.settle)
	}
	d.batch.flush()
}

func (b *batch) touch(r *room) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.touched = append(b.touched, r)
}

func (b *batch) takeTouched() []*room {
	b.mu.Lock()
	defer b.mu.Unlock()
	touched := b.touched
	b.touched = nil
	return touched
}

// cast queues a frame for receivers. It is written at the next flush, of this batch or of another one that had queued before.
// If it is an update of a member, a receiver that is behind may be sent a later one in its place.
func (b *batch) cast(f frame, of memberUpdate, to []receiver) {
	b.hub.metrics.handed(len(to))
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, receiver := range to {
		if receiver.queue(f, of) {
			b.dirty = append(b.dirty, receiver)
		}
	}
}

func (b *batch) flush() {
	b.mu.Lock()
	dirty := b.dirty
	b.dirty = nil
	b.mu.Unlock()
	for _, receiver := range dirty {
		b.write(receiver)
	}
}

// write has a receiver write what is queued for it. A panic leaves the other receivers alone.
func (b *batch) write(to receiver) {
	defer logPanic(b.hub.log, "rooms")
	to.flush()
}
