package main

import (
	"sync/atomic"
	"time"
)

// membership is a connection's place in one room.
type membership struct {
	room *room
	to   receiver // the socket
	by   *connection

	mu operationLock[ofMembership] // held by who works on the member in Redis: a request of the client, or the healer
	Member
	expiresAt      time.Time // when the lookback ends after the last join or valid heartbeat
	rejoinInFlight bool      // a join again has an unknown outcome: Redis may have a newer incarnation
	ended          bool      // the connection is not in the room any more

	joinedOnce atomic.Bool  // its first join has worked
	kicked     atomic.Int64 // the highest epoch of it that this node knows to be removed for good
	replaced   atomic.Bool  // that was for another member with its device, and no kick
}

// expel notes that an incarnation was removed for good.
func (m *membership) expel(epoch int64, reason Reason) {
	m.replaced.Store(reason == ReasonReplaced)
	m.kicked.Store(epoch)
}

// expelledFor is why it was.
func (m *membership) expelledFor() Reason {
	if m.replaced.Load() {
		return ReasonReplaced
	}
	return ReasonKicked
}

// present is the member as it is to be removed: whatever its epoch, if that is not sure. m.mu is held.
func (m *membership) present() Member {
	member := m.Member
	if m.rejoinInFlight || m.restoreInFlight {
		member.Epoch = 0
	}
	return member
}
