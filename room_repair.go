package main

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"time"
)

const (
	// When Redis has lost data of a room, who is missing from it has so long to be put back by its node (G3).
	lossPatience = 5 * time.Second

	// The least time until a room is read again for members that were missing and are due to be told as gone.
	checkPause = 50 * time.Millisecond

	// Members of this node that are listed while others wait for the room's lock.
	ownAtOnce = 256
)

// repair is what a room knows of losses of data in Redis. The room's lock guards it.
//
// Members of other nodes, and those of this one whose first join is at work, that a reading does not find after a loss may be
// about to be put back. They are kept, and told as gone when they are still missing lossPatience after the loss was
// noticed. Each has its own deadline, which no later sign of a loss prolongs.
type repair struct {
	signs       lossSigns            // of the last reading
	readBegan   time.Time            // when the last reading began
	heldUntil   time.Time            // who is first found missing until then is kept
	keptMissing map[string]time.Time // connections that were not found, or only as an older copy; until when they are kept
	missing     map[string]bool      // members of this node that the last reading did not find
	checking    bool                 // a timer is going to have the room read for those who are kept
}

// missingIn gives the members of this node that are not in what was read, or only as an older copy.
func (r *room) missingIn(s Snapshot) (conns []string) {
	if r.hub.loss == nil {
		return nil
	}
	for _, mine := range r.ownMembers() {
		if mine.missingIn(s) {
			conns = append(conns, mine.conn)
		}
	}
	return conns
}

// ownMember is a member of this node.
type ownMember struct {
	conn string
	*membership
}

// ownMembers lists the members of this node. It holds the room's lock for a part of them at a time.
func (r *room) ownMembers() (list []ownMember) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn, m := range r.owned {
		if list = append(list, ownMember{conn, m}); len(list)%ownAtOnce == 0 {
			r.mu.Unlock()
			runtime.Gosched()
			r.mu.Lock()
		}
	}
	return list
}

// examine looks in what was read for signs that Redis has lost data of the room. Those members of this node are perhaps missing.
// r.mu is held.
func (r *room) examine(s Snapshot, missing []string) {
	if r.foundExpired(s) {
		r.beginAnew()
	}
	had, before := r.replica.stored, r.repair.signs
	r.repair.signs = s.loss
	r.repair.signs.server = cmp.Or(s.loss.server, before.server)
	if s.loss.origin == 0 && s.Rev >= had {
		r.repair.signs.origin = before.origin // it has expired
	}
	switch {
	case s.Rev < had, isAnother(s.loss.server, before.server), had > 0 && s.loss.origin > had:
		r.onDataLoss()
	case had > 0 && s.loss.lostSince(before):
		r.keepMissing()
		r.healOwn()
	}
	r.lookForOwn(s, missing)
}

// lookForOwn has the members of this node put back that are missing. Only one that was there before is a sign of a loss:
// one that stays away must not make others wait again. r.mu is held.
func (r *room) lookForOwn(s Snapshot, missing []string) {
	before := r.repair.missing
	r.repair.missing = nil
	for _, conn := range missing {
		if m := r.owned[conn]; m == nil || !m.missingIn(s) { // no more
			continue
		}
		if r.repair.missing == nil {
			r.repair.missing = map[string]bool{}
		}
		r.repair.missing[conn] = true
		if !before[conn] {
			r.keepMissing()
		}
	}
	if len(r.repair.missing) > 0 {
		r.healOwn()
	}
}

// onDataLoss notes that Redis has lost data of the room, and so perhaps of others. r.mu is held.
func (r *room) onDataLoss() {
	r.hub.log.Debug("Redis has lost data of a room", "room", r.id)
	r.keepMissing()
	if r.hub.loss != nil {
		r.hub.loss.lostData()
	}
}

// healOwn has the members of this node put back. r.mu is held.
func (r *room) healOwn() {
	if r.hub.loss != nil {
		r.hub.loss.lostMembers(r)
	}
}

// keepMissing has members kept that a reading does not find from now on. r.mu is held.
func (r *room) keepMissing() {
	now := time.Now()
	r.repair.heldUntil = now.Add(lossPatience)
	r.hub.missedAt.Store(&now)
}

// holds tells whether the room may have members that Redis does not have. r.mu is held.
func (r *room) holds() bool {
	return len(r.repair.keptMissing) > 0 || time.Now().Before(r.repair.heldUntil)
}

// check has the room read.
func (r *room) check() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reread()
}

// checkLater has the room read when the first of those who are kept is due. r.mu is held.
func (r *room) checkLater() {
	if r.repair.checking || len(r.repair.keptMissing) == 0 {
		return
	}
	r.repair.checking = true
	due := slices.MinFunc(slices.Collect(maps.Values(r.repair.keptMissing)), time.Time.Compare)
	r.after(max(time.Until(due), checkPause), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.repair.checking = false
		r.reread()
	})
}

// known gives the revision that the store must have at least, 0 before the first read, and the signs of the last reading.
func (r *room) known() (rev int64, signs lossSigns) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replica.stored, r.repair.signs
}

// sparer tells of each member that was not found in s, or only as an older copy, whether it stays. r.mu is held.
func (r *room) sparer(s Snapshot) func(Entry) bool {
	before := r.repair.keptMissing
	r.repair.keptMissing = nil
	same := s.Rev == r.replica.stored // no change was missed, so who is missing was lost
	return func(e Entry) bool {
		if m := r.owned[e.ConnID]; m != nil && !m.entering() {
			return m.stands() && !m.standsIn(s) // else the newer copy is of a join of unknown outcome that was lost
		}
		until, already := before[e.ConnID]
		if !already {
			if same {
				r.keepMissing()
				r.healOwn()
			}
			until = r.repair.heldUntil
		}
		if !until.After(r.repair.readBegan) {
			return false
		}
		if r.repair.keptMissing == nil {
			r.repair.keptMissing = map[string]time.Time{}
		}
		r.repair.keptMissing[e.ConnID] = until
		return true
	}
}

// tellGone ends the sparing of those who are in what was read, and tells that those have left whose time is over. r.mu is held.
func (r *room) tellGone(s Snapshot) {
	for conn, until := range r.repair.keptMissing {
		now, found := s.entry(conn)
		e, there := r.replica.entries.get(conn)
		switch {
		case !there, found && !now.olderThan(e.Epoch, e.Rev), r.owned[conn] != nil && r.owned[conn].stands():
			delete(r.repair.keptMissing, conn)
		case !found && !until.After(r.repair.readBegan):
			r.applyAside(r.replica.event(EventLeave, e, s.TS))
		}
	}
}

// dropStale takes a message that a read came before. Of a member that was kept in that read it tells that it left: one that Redis may have
// lost, or one of this node whose request was at work. r.mu is held.
func (r *room) dropStale(m message) {
	e, there := r.replica.entries.get(m.ConnID)
	kept := r.holds() || r.owned[m.ConnID] != nil
	if m.Type != EventLeave || !kept || !there || e.Epoch > m.Epoch || e.Rev >= m.Rev {
		return
	}
	m.Rev = r.replica.rev
	r.applyAside(m.Event)
}

// applyAside applies an event that is no change of the store after the replica's revision. r.mu is held.
func (r *room) applyAside(e Event) {
	stored := r.replica.stored
	r.apply(e)
	r.replica.stored = stored
}

// missedLately tells whether data of a room were lost so lately that its members may not be back yet.
func (h *hub) missedLately() bool {
	at := h.missedAt.Load()
	return at != nil && time.Since(*at) < lossPatience
}
