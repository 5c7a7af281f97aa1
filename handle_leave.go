package main

import (
	"cmp"
	"context"
	"time"
)

func (c *connection) leave(ctx context.Context, payload []byte, _ ackID) ([]byte, error) {
	p, refused := decodeLeave(payload, c.service.options.Limits)
	if refused != nil {
		return nil, refused
	}
	members := c.pendingLeaves.take(c.client.ID(), p.RoomID)
	for room, m := range c.rooms {
		if p.RoomID == "" || p.RoomID == room {
			members = append(members, c.forget(m))
		}
	}
	if err := c.confirmAll(ctx, members); err != nil {
		return nil, err
	}
	return []byte(`{"ok":true}`), nil
}

// confirmAll has Redis remove members that have left, and gives the first failure.
func (c *connection) confirmAll(ctx context.Context, members []Member) (first error) {
	for _, m := range members {
		first = cmp.Or(first, c.confirm(ctx, m, removal{reason: ReasonLeft}))
	}
	return first
}

// forget ends the events of a room for this connection, and gives the member that is to be removed: nobody puts it back
// from here on.
func (c *connection) forget(m *membership) Member {
	m.room.leave(c.client, asMember)
	m.room.disown(c.client.ID())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended, c.wasMember = true, true
	c.hub.release(m.room)
	delete(c.rooms, m.Room)
	return m.present()
}

// confirm has Redis remove a member that has left. A failure is made good later; the client may ask again.
func (c *connection) confirm(ctx context.Context, m Member, how removal) error {
	stored, err := c.pendingLeaves.known(ctx, m)
	switch {
	case err == nil:
		how.indexedAt = m.indexedAt
		_, _, err = c.service.remove(ctx, m.Room, how, []incarnation{{m.Conn, stored.Epoch}})
	case hasCode(err, CodeNotJoined):
		err = nil
	}
	if err != nil || m.Epoch == 0 { // a join of unknown outcome may still run
		c.pendingLeaves.add(m, how.reason)
	}
	return err
}

// ended is called once, after the last event.
func (c *connection) ended(reason endReason) {
	c.expiry.stop()
	c.bequeath()
	ctx := c.deadlines.next()
	c.unwatchAll()
	grace := c.service.options.Grace
	until := time.Now().Add(grace)
	for _, m := range c.rooms {
		member := c.forget(m)
		var err error
		if (reason == endAbrupt || reason == endSilent) && grace > 0 {
			err = c.pendingLeaves.hold(ctx, member, until, reason == endSilent)
		} else {
			err = c.confirm(ctx, member, removal{reason: ReasonDisconnected, floor: m.room.revision()})
		}
		if err != nil {
			c.log.Warn("leave of a closed connection is not confirmed", "room", m.Room, "conn", m.Conn, "error", err)
		}
	}
}
