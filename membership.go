package main

import (
	"sync/atomic"
	"time"
)

// membership is a connection's place in one room.
type membership struct {
	room *room

	mu turn // held by who works on the member in Redis: a request of the client, or the healer
	Member
	silentAt time.Time // when the lookback ends after the last join or valid heartbeat
	unsure   bool      // a join again has an unknown outcome: Redis may have a newer incarnation
	over     bool      // the connection is not in the room any more

	entered atomic.Bool  // its first join has worked
	kicked  atomic.Int64 // the highest epoch of it that this node knows to be kicked
}

// turn is a mutex whose holder may wait for Redis. It is a channel so that synctest takes who waits for it for blocked.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) Lock() { t <- struct{}{} }

func (t turn) Unlock() { <-t }

func (t turn) TryLock() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

// present is the member as it is to be removed: whatever its epoch, if that is not sure. m.mu is held.
func (m *membership) present() Member {
	member := m.Member
	if m.unsure || m.late {
		member.Epoch = 0
	}
	return member
}
