package main

import (
	"cmp"
	"context"
)

// kicked forgets a membership that Redis does not put back, once the socket has been told of its leave.
func (c *connection) kicked(ctx context.Context, m *membership) error {
	if err := m.room.reach(ctx, m.kickRev); err != nil {
		return err
	}
	m.room.tellKicked(m.Conn, m.Epoch, m.kickRev, cmp.Or(m.kickReason, m.expelledFor()))
	c.forget(m)
	if m.kickEnds {
		c.endAfterKick()
	}
	return notJoined()
}

// endAfterKick ends the connection, one of whose members was kicked with the order to do so. Whoever kicks a user does it room
// by room: the connection waits until it has no member left, so that none leaves as disconnected instead, and not for longer
// than a request takes. It is told of each kick, so one of the calls finds no member left.
func (c *connection) endAfterKick() {
	c.hub.later(0, func() {
		panics(c.log, "kicks", func() {
			if c.hasMembers() {
				c.hub.later(answerWithin, c.client.disconnect)
			} else {
				c.client.disconnect()
			}
		})
	})
}

// hasMembers tells whether the connection is in a room from which it was not kicked. It waits for the client's request at work.
func (c *connection) hasMembers() bool {
	c.client.in.Lock()
	defer c.client.in.Unlock()
	for _, m := range c.rooms {
		m.mu.Lock()
		in := !m.ended && !m.expelled()
		m.mu.Unlock()
		if in {
			return true
		}
	}
	return false
}
