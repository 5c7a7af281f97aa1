package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// modelLoss is what Redis loses.
type modelLoss int

const (
	losesAll     modelLoss = iota // by FLUSHALL: no connection breaks
	losesProcess                  // it starts anew, empty and without scripts: all connections break
	losesCounter                  // of one room
)

const (
	// After a loss of data, clients have the room as it is within this time (G3).
	modelLossOver = lossPatience + time.Second

	// Losses in one schedule at most.
	modelLosses = 2

	// What the model notes as the reason why an incarnation is not there that has not left.
	reasonLost Reason = "lost"
)

// losing tells whether data were lost so lately that nodes may not agree with Redis.
func (m *model) losing() bool { return !m.lostAt.IsZero() && time.Since(m.lostAt) < modelLossOver }

// lostSince tells whether data were lost after a time.
func (m *model) lostSince(at time.Time) bool { return m.lostAt.After(at) }

// lose lets Redis lose data. A counter that was lost goes on at the clock: it is no test of the nodes where that is below the last
// revision.
func (m *model) lose() {
	if m.losses++; m.losses > modelLosses {
		return
	}
	for _, l := range m.rooms {
		for m.clock() <= l.rev && len(m.wrongs) == 0 {
			m.pass(time.Millisecond)
		}
	}
	l := m.rooms[m.random.IntN(len(m.rooms))]
	what := modelLoss(m.random.IntN(3))
	m.note("Redis loses %s", []string{"all data", "all, and starts anew", "the counter of " + l.room}[what])
	m.lostAt = time.Now()
	if what == losesCounter {
		m.do(redis.NewCmd(m.ctx, "DEL", keysOf(l.room).revision()))
		l.forgot = true
		return
	}
	if what == losesProcess {
		m.breakConnections()
		m.server++
		m.flushed = true
		m.do(redis.NewCmd(m.ctx, "SCRIPT", "FLUSH"))
	}
	m.do(redis.NewCmd(m.ctx, "FLUSHALL"))
	m.ticked = 0 // the clock is lost as well
	for _, l := range m.rooms {
		m.forget(l)
	}
}

// breakConnections loses what is under way between Redis and the nodes.
func (m *model) breakConnections() {
	for _, c := range m.pending {
		c.answered <- io.EOF
	}
	m.pending, m.hung = nil, false
	for _, n := range m.nodes {
		n.cut()
	}
}

// forget notes that Redis has lost a room, and which incarnations may come back.
func (m *model) forget(l *ledger) {
	for conn, member := range l.facts {
		l.gone[placeID{conn, member.epoch}] = reasonLost
	}
	for id, reason := range l.gone {
		if l.isFinal(id, reason) && (!l.told[id] || m.waits(id.conn)) { // its node may not know of the kick, and the fence is lost
			l.gone[id] = reasonLost
		}
	}
	for id := range l.joins {
		if p := m.place(l.room, id.conn); (p.unsure || p.joining) && id.epoch >= p.epoch { // its node may not know of the latest
			l.gone[id] = reasonLost
		}
	}
	l.facts, l.forgot = facts{}, true
	l.at[l.rev] = facts{}
	clear(l.held)
	clear(l.due)
}

// waits tells whether a client's node waits for Redis. It may be about to put somebody back.
func (m *model) waits(conn string) bool {
	return slices.ContainsFunc(m.clients, func(c *modelClient) bool {
		return c.id == conn && slices.ContainsFunc(m.pending, func(call *heldCall) bool { return call.node == c.node.index })
	})
}

// judgeTold checks that nobody is told as gone who has not left, and whose client lives.
func (m *model) judgeTold(c *modelClient, e *wireEvent) {
	if e.Type != string(EventLeave) || m.roomOf(e).left[placeID{e.ConnID, e.Epoch}] {
		return
	}
	if p := m.place(e.RoomID, e.ConnID); m.sureOf(p) && p.epoch == e.Epoch {
		m.wrong("G3: %s is told that %s has gone, which was heard of %d ms ago", c.id, e.ConnID, m.clock()-p.heard)
	}
}

// roomOf is the room of an event that a client of it has got.
func (m *model) roomOf(e *wireEvent) *ledger { return m.ledger(e.RoomID) }

func (m *model) ledger(room string) *ledger {
	return m.rooms[slices.IndexFunc(m.rooms, func(l *ledger) bool { return l.room == room })]
}

// unhealed names somebody who has to be in a room and whom Redis has lost, "" if there is nobody.
func (m *model) unhealed() string {
	for _, l := range m.rooms {
		for _, c := range m.clients {
			p := c.places[l.room]
			_, there := l.facts[c.id]
			if m.losing() && !there && m.sureOf(p) && !m.kickedOut(l, c) {
				return fmt.Sprintf("%s is not in the room", c.id)
			}
		}
	}
	return ""
}

// sureOf tells whether a place has to be one of a member that lives.
func (m *model) sureOf(p *place) bool {
	return p.in && !p.unsure && !p.joining && !p.leaving && m.clock()-p.heard < modelLookback.Milliseconds()
}

// needsHeartbeat tells whether a client has to send one before the model judges who is in a room: it makes a lost message known. Nodes put
// back what Redis has lost without being asked.
func (m *model) needsHeartbeat(p *place) bool {
	return !m.calm && (m.lossy || p.unsure || m.about&aboutLoss == 0)
}
