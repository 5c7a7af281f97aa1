package main

import "time"

// The counter of a room that has emptied is kept at least so long, by Redis' clock. LEAST_EMPTY_ROOM_TTL in lua/room.lua is the same.
const leastCounterLife = time.Minute

// expiredBy tells whether the room's counter may have expired, by Redis' clock, before the time or revision ms. The replica has to be
// that of an empty room: no counter of a room with members expires. Revisions are never behind the clock, and the counter stays
// until the clock is leastCounterLife past the last one. A counter that is gone earlier was lost.
func (p *replica) expiredBy(ms int64) bool {
	return p.stored > 0 && p.entries.len() == 0 && ms-p.stored >= leastCounterLife.Milliseconds()
}

// foundExpired tells whether the difference between a reading and the replica means that the counter has expired, and that no data
// were lost: there is no counter, or one that began after the old one expired.
func (r *room) foundExpired(s Snapshot) bool {
	if s.loss.torn || isAnother(s.loss.server, r.repair.signs.server) {
		return false
	}
	if s.Rev == 0 {
		return len(s.Entries) == 0 && r.replica.expiredBy(s.TS)
	}
	return s.Rev >= s.loss.origin && r.replica.expiredBy(s.loss.origin)
}

// beginsAnew tells whether m is the first change after the counter expired. If so, the replica begins anew, as that of a new room,
// and m follows it. r.mu is held.
func (r *room) beginsAnew(m message) bool {
	if m.prev != 0 || !r.replica.expiredBy(m.Rev) || m.Rev <= r.replica.rev {
		return false
	}
	r.beginAnew()
	return true
}

// beginAnew has the replica of an empty room follow a new counter. The highest revision that receivers were told stays. r.mu is held.
func (r *room) beginAnew() {
	r.replica.stored = 0
	r.repair.signs.origin = 0
}
