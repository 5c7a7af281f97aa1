package main

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"
)

func (c *connection) heartbeat(ctx context.Context, payload []byte, _ ackID) ([]byte, error) {
	var p heartbeatPayload
	var refused *Error
	c.heavy.read(len(payload), func() { p, refused = decodeHeartbeat(payload, c.service.options.Limits) })
	if refused != nil {
		return nil, refused
	}
	if p.RoomID == "" && len(c.rooms) > 1 {
		return c.heartbeatOfAll(ctx, p)
	}
	m := c.named(p.RoomID)
	if m == nil {
		return nil, c.absent(p.RoomID)
	}
	if p.HasEpoch && p.Epoch != m.Epoch {
		return nil, staleEpoch(m.Epoch)
	}
	changed, err := c.refresh(ctx, m, p.Patch, p.HasEpoch)
	if err != nil {
		return nil, err
	}
	b := append(heartbeatAck(changed), `,"epoch":`...)
	return append(strconv.AppendInt(b, m.Epoch, 10), '}'), nil
}

// named is the membership in a room, or the only one if no room is named; nil if there is none.
func (c *connection) named(room string) *membership {
	if room != "" {
		return c.rooms[room]
	}
	for _, m := range c.rooms {
		return m
	}
	return nil
}

// absent is the answer to a heartbeat for a room that the connection is not in, "" = any. It costs nothing, unless the token
// has ended it.
func (c *connection) absent(room string) error {
	if room != "" && !c.grant.allows(room) {
		return c.grant.checkRoom(room)
	}
	if c.rate != nil && len(c.rooms) > 0 {
		c.budget.others.giveBack(c.rate)
	}
	return notJoined()
}

// heartbeatOfAll answers a heartbeat without roomId of a connection that is in several rooms. An epoch names the room that
// it is current in.
func (c *connection) heartbeatOfAll(ctx context.Context, p heartbeatPayload) ([]byte, error) {
	named, same := c.ofEpoch(p)
	if p.HasEpoch && same == 0 {
		return nil, &Error{Code: CodeStaleEpoch, Message: "the epoch is current in none of the connection's rooms"}
	}
	var patch json.RawMessage
	if named != nil {
		patch = p.Patch
	}
	changed, err := c.refreshAll(ctx, named, patch)
	if err == nil && p.Patch != nil && named == nil {
		err = &Error{Code: CodeInvalidPayload, Message: "roomId is needed for this patchState: the connection is in several rooms"}
	}
	if err != nil {
		return nil, err
	}
	b := heartbeatAck(changed)
	if p.HasEpoch {
		b = appendNumber(b, `,"epoch":`, p.Epoch)
	}
	if named != nil {
		b = appendText(b, `,"roomId":`, named.Room)
	}
	return append(b, '}'), nil
}

// ofEpoch gives the membership whose epoch a heartbeat carries, nil if same, their number, is not 1.
func (c *connection) ofEpoch(p heartbeatPayload) (named *membership, same int) {
	for _, m := range c.rooms {
		if p.HasEpoch && p.Epoch == m.Epoch {
			named = m
			same++
		}
	}
	if same > 1 {
		return nil, same
	}
	return named, same
}

// refreshAll refreshes the connection in all its rooms, and patches its state in the one that is named, if one is. changed is
// about that state. The error is the first one.
func (c *connection) refreshAll(ctx context.Context, named *membership, patch json.RawMessage) (changed bool, err error) {
	for _, m := range slices.Collect(maps.Values(c.rooms)) {
		var failed error
		if m == named {
			changed, failed = c.refresh(ctx, m, patch, true)
		} else {
			_, failed = c.refresh(ctx, m, nil, false)
		}
		err = cmp.Or(err, failed)
	}
	return changed, err
}

func (c *connection) pong() {
	if !c.pongs {
		return
	}
	ctx := c.deadlines.next()
	for _, m := range c.rooms {
		if _, err := c.refresh(ctx, m, nil, false); err != nil {
			c.log.Debug("a pong has not refreshed a member", "room", m.Room, "conn", m.Conn, "error", err)
		}
	}
}

// heartbeatAck is the open beginning of an acknowledgement.
func heartbeatAck(changed bool) []byte {
	b := make([]byte, 0, 64)
	b = append(b, `{"ok":true,"changed":`...)
	return strconv.AppendBool(b, changed)
}

// refresh refreshes the incarnation that Redis has, unless the client has named another (fenced).
func (c *connection) refresh(ctx context.Context, m *membership, patch json.RawMessage, fenced bool) (changed bool, err error) {
	changed, err = c.beat(ctx, m, patch, fenced)
	if hasCode(err, CodeNotJoined) {
		err = c.kicked(ctx, m)
	}
	return changed, err
}

func (c *connection) beat(ctx context.Context, m *membership, patch json.RawMessage, fenced bool) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended || m.expelled() {
		m.ended = true
		return false, notJoined()
	}
	m.expiresAt = time.Now().Add(c.service.options.Lookback)
	m.noRestore = m.rejoinInFlight // a newer incarnation may have been there, and left: this one does not come back (G4)
	changed, rev, err := c.service.heartbeat(ctx, &m.Member, patch, m.room.revision())
	if hasCode(err, CodeStaleEpoch) {
		switch lost := c.follow(ctx, m); {
		case fenced:
		case lost != nil:
			err = lost
		default:
			changed, rev, err = c.service.heartbeat(ctx, &m.Member, patch, m.room.revision())
		}
	}
	if err == nil {
		m.keepOut()
		m.room.compare(rev)
		_ = c.service.indexIfDue(ctx, &m.Member, m.Epoch) // after two lookbacks the index would forget it: the next heartbeat tries again
	}
	m.ended = hasCode(err, CodeNotJoined)
	return changed, err
}

// follow takes over an incarnation that is newer than the one in memory: a join whose answer did not come in time.
func (c *connection) follow(ctx context.Context, m *membership) error {
	stored, err := c.service.find(ctx, m.Room, m.Conn)
	if err == nil {
		stored.restoreInFlight = m.restoreInFlight
		m.Member, m.rejoinInFlight = stored, false
	}
	return err
}
