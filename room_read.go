package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"
)

// suspectGapLater looks after a while at a difference between the replica and what was returned. In a busy room there is always
// one, and only one that the replica has not overcome by then counts. r.mu is held.
func (r *room) suspectGapLater() {
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
			r.suspectGapLater()
		}
	})
}

// reread has the room read because messages may be lost. r.mu is held.
func (r *room) reread() {
	r.gapSuspected, r.readMayMiss = true, true
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
		r.dispatcher.settle()
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
	r.readAgain, r.readMayMiss = false, false
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
	r.gapSuspected = !r.applyPending() || r.gapSuspected
	known -= kept - len(r.pending)
	overtaken := had <= s.Rev && s.Rev < r.replica.stored
	onTheirWay := r.replica.stored < s.Rev && !r.gapSuspected
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
		r.dropStale(m)
	}
	r.pending = r.pending[known:]
	r.gapSuspected = !r.applyPending() || r.readMayMiss
	r.checkLater()
	r.listeners.settle()
	r.answer()
	r.reading = r.gapSuspected || r.readAgain // the last step: a read that panics is repeated by who began it
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
			r.dropStale(m)
		}
	}
	r.pending = nil
	return true
}
