package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// join answers by itself when it worked: its acknowledgement has its place in the order of the room.
func (c *connection) join(ctx context.Context, payload []byte, id ackID) ([]byte, error) {
	var p joinPayload
	var refused *Error
	c.heavy.read(len(payload), func() { p, refused = decodeJoin(payload, c.service.options.Limits, c.grant.bearer()) })
	if refused != nil {
		return nil, refused
	}
	if err := cmp.Or(c.grant.checkUser(p.UserID), c.grant.checkRoom(p.RoomID)); err != nil {
		return nil, err
	}
	if c.draining.Load() {
		return nil, shuttingDown()
	}
	m, again := c.rooms[p.RoomID]
	if !again {
		if err := c.roomForOneMore(); err != nil {
			return nil, err
		}
		m = &membership{room: c.hub.acquire(p.RoomID), to: c.client, by: c, mu: newOperationLock[ofMembership]()}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var before []Member // what an earlier join or leave left open
	if !again {
		m.room.own(c.client.ID(), m)
		if before = c.pendingLeaves.take(c.client.ID(), p.RoomID); len(before) > 0 {
			m.Epoch, m.restoreInFlight = before[0].Epoch, before[0].Epoch == 0
		}
	}
	arrived := time.Now()
	wish := Member{Room: p.RoomID, User: p.UserID, Conn: c.client.ID(), Device: p.DeviceID, State: p.State, Epoch: m.Epoch, restoreInFlight: m.restoreInFlight}
	joined, err := c.enter(ctx, m.room, wish, p.tellingPayload, id)
	switch {
	case err == nil:
		if again && m.User != joined.User {
			c.metrics.countLeaves(ReasonReplaced, 1)
		}
		m.Member, m.rejoinInFlight, m.ended = joined, false, false
		m.joinedOnce.Store(true)
		m.expiresAt = arrived.Add(c.service.options.Lookback)
		c.rooms[p.RoomID] = m
		if m.indexedAt.IsZero() {
			c.indexLater(m)
		}
	case !again:
		m.ended, c.wasMember = true, true
		m.room.disown(c.client.ID())
		c.hub.release(m.room)
		if len(before) > 0 || isUnavailable(err) {
			c.pendingLeaves.add(joined, ReasonDisconnected)
		}
	case joined.Epoch > m.Epoch:
		m.Member = joined
	default:
		m.rejoinInFlight = m.rejoinInFlight || isUnavailable(err)
	}
	return nil, err
}

// roomForOneMore refuses what would be one room too many: a watched one counts as well.
func (c *connection) roomForOneMore() error {
	if c.maxRooms > 0 && len(c.rooms)+len(c.watched) >= c.maxRooms {
		return &Error{Code: CodeTooManyRooms, Message: fmt.Sprintf("a connection may be in %d rooms, or watch them", c.maxRooms)}
	}
	return nil
}

// enter writes a member and waits until this node's replica has it; then the acknowledgement goes out. When it fails, the
// epoch says what is known: that of the new incarnation, or 0 if there may be none.
func (c *connection) enter(ctx context.Context, r *room, wish Member, how tellingPayload, id ackID) (Member, error) {
	floor := r.revision() // 0 as long as the room is subscribed to and read for the first time, which takes place beside this
	if err := c.prepare(ctx, r, &wish, floor); err != nil {
		return wish, err
	}
	joined, err := c.service.join(ctx, wish, floor)
	if err == nil {
		err = c.keep(ctx, &joined, floor)
	}
	if err != nil {
		joined.Epoch = 0
		return joined, err
	}
	if floor == 0 && c.wasMember {
		joined.indexedAt = time.Time{} // without an epoch above that of an earlier incarnation: whoever removes that one may take this entry as well
	}
	err = c.admit(ctx, r, &joined, how, id)
	return joined, err
}

// admit has a member answered that is in Redis. If the replica gets past the join and does not have the member, Redis has lost the join,
// and its message was lost too. The member is then written again, once.
func (c *connection) admit(ctx context.Context, r *room, m *Member, how tellingPayload, id ackID) error {
	w := c.newJoinWaiter(*m, how, id)
	w.epoch = m.Epoch
	err := r.admit(ctx, w)
	if !errors.Is(err, errMissing) {
		return err
	}
	had := m.Rev
	if err = c.writeAgain(ctx, m, r.revision()); err != nil {
		m.Epoch = 0
		return err
	}
	if m.Rev == had { // it was there, so the replica is wrong
		r.check()
	}
	return r.admit(ctx, c.newJoinWaiter(*m, how, id))
}

func (c *connection) newJoinWaiter(m Member, how tellingPayload, id ackID) *waiter {
	w := newWaiter(m.Rev, c.client, asMember, how.Mode, func(v *view) frameParts {
		return c.joinAck(id, m, v.page("", how.Limit), how.Limit == 0)
	})
	w.limit = how.Limit
	return w
}

// indexLater writes a new member into its user's index once more, now that its epoch is known, beside the requests of the client. If it
// fails, the next heartbeat does it.
func (c *connection) indexLater(m *membership) {
	c.service.work.Go(func() {
		ctx, cancel := context.WithTimeout(c.service.ctx, answerWithin)
		defer cancel()
		if m.mu.LockBefore(ctx) != nil {
			return
		}
		defer m.mu.Unlock()
		if !m.ended {
			_ = c.service.indexIfDue(ctx, &m.Member, m.Epoch)
		}
	})
}

// prepare writes what has to be there before the member is: what leads a reaper to it, or whoever removes the members of a lost
// node, and its user's index. These are in different slots of Redis, so they are written at the same time.
func (c *connection) prepare(ctx context.Context, r *room, wish *Member, floor int64) error {
	var indexed, hosted, announced error
	var work crew
	node, done := c.lease.hosts(wish.Room)
	if !done {
		work.Go(func() { node, hosted = c.lease.host(ctx, wish.Room) })
	}
	if !r.isIndexed() {
		work.Go(func() {
			indexed = r.index(ctx, func(ctx context.Context) error {
				return c.service.indexRoom(ctx, wish.Room, c.service.options.Lookback)
			})
		})
	}
	work.do(func() { announced = c.service.announceJoin(ctx, wish, floor) })
	work.Wait()
	wish.Node = node
	return cmp.Or(indexed, hosted, announced)
}

// keep writes a new member once more if the node has lost its lease meanwhile: nobody puts back what was not there yet.
func (c *connection) keep(ctx context.Context, m *Member, floor int64) error {
	if m.Node == c.lease.name() {
		return nil
	}
	return c.writeAgain(ctx, m, floor)
}

// writeAgain writes a member that has just joined into Redis, where that does not have it. One that was kicked meanwhile has joined all the
// same: its client is told of the kick.
func (c *connection) writeAgain(ctx context.Context, m *Member, floor int64) error {
	var err error
	if m.Node, err = c.lease.host(ctx, m.Room); err != nil {
		return err
	}
	if err = c.service.restore(ctx, m, 0, floor); hasCode(err, CodeNotJoined) {
		return nil
	}
	return err
}

// joinAck is the acknowledgement of a join. The whole room needs no counts.
func (c *connection) joinAck(id ackID, m Member, first page, whole bool) frameParts {
	b := appendText(nil, `{"ok":true,"self":{"connId":`, m.Conn)
	b = append(appendNumber(b, `,"epoch":`, m.Epoch), '}')
	b = appendNumber(b, `,"ttlMs":`, c.service.options.TTL.Milliseconds())
	c.charge(&c.budget.joins, len(first.entries)/eventBytes)
	return ackOf(id, first.appendHead(b, "snapshot", whole), first.entries, []byte{'}'})
}
