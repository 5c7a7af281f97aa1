package main

import (
	"slices"
	"time"
)

// try calls f. If that panics, the room is read again, which does what f left undone. r.mu is not held.
func (r *room) try(f func()) {
	if panics(r.hub.log, "rooms", f) {
		r.check()
	}
}

// after is time.AfterFunc for try.
func (r *room) after(wait time.Duration, f func()) *time.Timer {
	return time.AfterFunc(wait, func() { r.try(f) })
}

// tellAll tells what a read found. What a panic keeps from being told is found again by the next read. stored is the replica's
// before. r.mu is held.
func (r *room) tellAll(stored int64, changes []change) {
	told := 0
	defer func() {
		if told < len(changes) {
			r.replica.takeBack(stored, changes[told:]...)
		}
	}()
	var removed []Event
	for _, c := range changes {
		r.listeners.tell(c)
		m := r.owned[c.ConnID]
		switch over := c.Type == EventLeave && m != nil && m.isOver(); { // kicked, and the message was lost
		case over && r.listeners.inBatches(c.ConnID):
			removed = append(removed, c.Event)
		case over:
			r.listeners.tellRemoved(c.Event)
		}
		told++
	}
	for _, e := range removed { // a batch tells the room as it is after all changes
		r.listeners.tellRemoved(e)
	}
}

// takeBack undoes changes, so that the next read finds them again.
func (p *replica) takeBack(stored int64, changes ...change) {
	p.stored = stored
	for _, c := range slices.Backward(changes) {
		if c.had {
			p.put(c.before)
		} else {
			p.drop(c.ConnID)
		}
	}
}
