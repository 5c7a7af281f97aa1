package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// Members that are put back at the same time, so that ten thousand do not come as one blow.
	healWorkers = 64

	// A member that Redis does not take so long is left for later, and its client's requests wait no longer.
	healPatience = time.Second

	// Pause before members are tried again that could not be put back.
	healPause = 100 * time.Millisecond

	// How often Redis is asked whether it still has what it had, and for how many rooms at most. They are other rooms each
	// time, so that some of every master are among them.
	pulsePeriod = 500 * time.Millisecond
	pulseRooms  = 8
)

// lives tells whether the member was heard of within the lookback. m.mu is held.
func (m *membership) lives() bool {
	return !m.ended && !m.expelled() && m.Epoch != 0 && time.Now().Before(m.expiresAt)
}

// expelled tells whether the member was removed for good, by a kick or for its device, even if Redis has lost the fence. While a join of
// unknown outcome is under way, the removal of the incarnation before it says nothing: Redis may have a newer one. m.mu is held.
func (m *membership) expelled() bool {
	kicked := m.kicked.Load()
	return m.Epoch < kicked || m.Epoch == kicked && !m.rejoinInFlight
}

// stands tells, without waiting, whether the member has to be in its room.
func (m *membership) stands() bool {
	if !m.mu.TryLock() {
		return m.joinedOnce.Load() // a request of its client is at work, which keeps it there
	}
	defer m.mu.Unlock()
	return m.lives()
}

// standsIn tells, without waiting, whether a room that was read has the member as this node would put it back.
func (m *membership) standsIn(s Snapshot) bool {
	if !m.mu.TryLock() {
		return false
	}
	defer m.mu.Unlock()
	e, found := s.entry(m.Conn)
	return m.lives() && found && !e.olderThan(m.Epoch, m.Rev)
}

// entering tells, without waiting, whether the member's first join is at work, of which nobody knows how it ends.
func (m *membership) entering() bool {
	if !m.mu.TryLock() {
		return !m.joinedOnce.Load()
	}
	m.mu.Unlock()
	return false
}

// isOver tells, without waiting, whether the member is out of its room for good.
func (m *membership) isOver() bool {
	if !m.mu.TryLock() {
		return false // a request of its client is at work, which finds out
	}
	defer m.mu.Unlock()
	return m.ended
}

// missingIn tells, without waiting, whether a room that was read after the member's last change is without that.
func (m *membership) missingIn(s Snapshot) bool {
	if !m.mu.TryLock() {
		return false
	}
	defer m.mu.Unlock()
	if !m.lives() || m.Rev > s.Rev {
		return false
	}
	at, found := slices.BinarySearchFunc(s.Entries, m.Conn, func(e Entry, conn string) int { return cmp.Compare(e.ConnID, conn) })
	return !found || s.Entries[at].olderThan(m.Epoch, m.Rev)
}

// healer puts the members of this node back that Redis has lost: same connection, epoch and state (G8). Their clients need
// do nothing.
//
// It never waits for a request of a client: that may be a join that waits for its room to be read, and the room may be read
// because of the healing. Such a request sees to the member itself; the healer looks again later.
type healer struct {
	*background
	service *Service
	hub     *hub
	lease   *lease
	log     *slog.Logger

	mu      mutex[ofNone]
	rooms   map[*room]struct{} // to be looked at
	whole   bool               // all of them are
	healing bool               // that is under way
	wake    wakeup
}

// newHealer makes a healer that learns from the hub's rooms.
func newHealer(s *Service, hub *hub, lease *lease, log *slog.Logger) *healer {
	h := &healer{background: newBackground(), service: s, hub: hub, lease: lease, log: log, rooms: map[*room]struct{}{}, wake: newWakeup()}
	h.keep(log, "healer", h.loop, h.lostLease)
	h.keep(log, "healer", func() { h.every(pulsePeriod, h.pulse) }, nil)
	return h
}

// close stops the healing and waits for it.
func (h *healer) close() {
	h.end()
}

// lostMembers has the members of one room put back.
func (h *healer) lostMembers(r *room) {
	h.mu.Lock()
	h.rooms[r] = struct{}{}
	h.mu.Unlock()
	h.wake.send()
}

// lostData has the members of all rooms put back, unless that is under way: it ends with each room being read.
func (h *healer) lostData() {
	h.mu.Lock()
	h.whole = h.whole || !h.healing
	h.mu.Unlock()
	h.wake.send()
}

// lostLease has the members of all rooms put back under this node's new name: others took it for lost.
func (h *healer) lostLease() {
	h.mu.Lock()
	h.whole = true
	h.mu.Unlock()
	h.wake.send()
}

func (h *healer) loop() {
	var left []*membership
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-h.wake:
		}
		rooms, whole := h.take()
		if whole {
			left = nil // they are among those
		}
		for _, r := range rooms {
			left = append(left, r.toHeal()...)
		}
		left = h.pass(left)
		h.passed()
		for _, r := range rooms {
			r.check()
		}
		if len(left) > 0 {
			pause(h.ctx, healPause)
			h.wake.send()
		}
	}
}

// take gives the rooms to be looked at, and whether these are all.
func (h *healer) take() (rooms []*room, whole bool) {
	h.mu.Lock()
	whole = h.whole
	for r := range h.rooms {
		rooms = append(rooms, r)
	}
	h.whole, h.healing = false, whole
	clear(h.rooms)
	h.mu.Unlock()
	if whole {
		rooms = h.hub.all(math.MaxInt)
		h.log.Warn("Redis has lost data, or this node its lease: all members are put back", "rooms", len(rooms))
		for _, r := range rooms { // so that the wait for members of other nodes begins now, and not after the healing
			r.check()
		}
	}
	return rooms, whole
}

func (h *healer) passed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.healing = false
}

// pass tries to put each member back, and returns those that are to be tried again.
func (h *healer) pass(list []*membership) (left []*membership) {
	var restored, next atomic.Int64
	var failed atomic.Bool
	again := make([]bool, len(list))
	var workers crew
	for range min(healWorkers, len(list)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
				if failed.Load() { // Redis is away: the others need not try that too
					again[i] = true
					continue
				}
				changed, err := h.restore(list[i])
				again[i] = err != nil
				failed.Store(failed.Load() || isUnavailable(err))
				if changed {
					restored.Add(1)
				}
			}
		})
	}
	workers.Wait()
	for i, m := range list {
		if again[i] {
			left = append(left, m)
		}
	}
	if n := restored.Load(); n > 0 {
		h.log.Info("members put back", "members", n, "waiting", len(left))
	}
	return left
}

// errBusy is why a member is not put back now.
var errBusy = errors.New("a request of the member's client is at work")

// restore puts a member back, unless the room has it. One that is silent, or has left, stays away.
func (h *healer) restore(m *membership) (changed bool, err error) {
	if !m.mu.TryLock() {
		return false, errBusy
	}
	defer m.mu.Unlock()
	if !m.lives() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(h.ctx, healPatience)
	defer cancel()
	if m.Node, err = h.lease.host(ctx, m.Room); err != nil {
		return false, err
	}
	err = m.room.index(ctx, func(ctx context.Context) error {
		return h.service.indexRoom(ctx, m.Room, 0) // a reaper looks at once when the first of the room can be overdue
	})
	if err != nil {
		return false, err
	}
	had, age := m.Rev, h.service.options.Lookback-time.Until(m.expiresAt)
	err = h.service.putBack(ctx, &m.Member, age, m.room.revision())
	m.ended = hasCode(err, CodeNotJoined) // a kick is final
	if m.kickEnds {
		h.endKicked(m, m.Member)
	}
	if err == nil {
		m.keepOut()
	}
	if !isUnavailable(err) { // a newer incarnation is there: the next request of its client follows that
		return m.Rev != had, nil
	}
	return false, err
}

// pulse asks whether Redis has lost data. A flushed one breaks no connection, and in a cluster a master may be another one than
// that which has the subscriptions. It also finds changes that were never told, because Redis refused their messages: heartbeats do that
// only where the node has a member in the room.
func (h *healer) pulse() {
	ctx, cancel := context.WithTimeout(h.ctx, pulsePeriod)
	defer cancel()
	var asked crew
	for _, r := range h.hub.all(pulseRooms) {
		asked.Go(func() {
			known, before := r.known()
			rev, signs, err := h.service.pulse(ctx, r.id)
			switch {
			case err != nil:
			case known > 0 && (rev < known || signs.lostSince(before)):
				r.check()
			case rev > known:
				r.compare(rev)
			}
		})
	}
	asked.Wait()
}
