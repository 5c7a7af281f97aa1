package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// modelKick is a kick under way.
type modelKick struct {
	*ledger
	conn  string
	seen  int // leaves of kicks before it
	began time.Time
	done  atomic.Pointer[error] // what it returned
}

// kick has a node remove a connection for good, wherever that is. It may be one that is not there.
func (m *model) kick() {
	l := m.rooms[m.random.IntN(len(m.rooms))]
	conns := slices.Sorted(maps.Keys(l.facts))
	if len(conns) == 0 {
		conns = []string{m.clients[0].id}
	}
	k := &modelKick{ledger: l, conn: conns[m.random.IntN(len(conns))], seen: l.kickLeaves, began: time.Now()}
	n := m.nodes[m.random.IntN(len(m.nodes))]
	m.note("n%d kicks %s", n.index, k.conn)
	l.kicks[k.conn]++
	m.kicks = append(m.kicks, k)
	go func() {
		ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
		defer cancel()
		err := n.service.Kick(ctx, l.room, k.conn)
		k.done.Store(&err)
	}()
}

// finishKicks judges what kicks returned (G7).
func (m *model) finishKicks() {
	m.kicks = slices.DeleteFunc(m.kicks, func(k *modelKick) bool {
		done := k.done.Load()
		if done == nil {
			return false
		}
		_, there := k.facts[k.conn]
		switch err := *done; {
		case err == nil:
			if k.kickLeaves == k.seen {
				m.wrong("G7: a kick of %s worked, and nobody was kicked", k.conn)
			}
		case hasCode(err, CodeNotJoined):
			k.kicks[k.conn]--
			if there && !m.lostSince(k.began) {
				m.wrong("a kick does not find %s", k.conn)
			}
		case !isUnavailable(err) || m.calm:
			m.wrong("a kick of %s fails: %v", k.conn, err)
		}
		return true
	})
}

// kickedOut tells whether the client's incarnation in a room was kicked, or replaced.
func (m *model) kickedOut(l *ledger, c *modelClient) bool {
	id := placeID{c.id, c.places[l.room].epoch}
	return !l.kicked[id].IsZero() || l.displaced[id]
}

// seeOwnEnd ends what a client may see of a room from which it was kicked.
func (m *model) seeOwnEnd(c *modelClient, e *wireEvent) {
	p := c.places[e.RoomID]
	if e.Type != string(EventLeave) || e.ConnID != c.id {
		return
	}
	if e.Epoch != p.epoch && p.in {
		c.views[e.RoomID].ending[asMember] = m.roomOf(e).isFinal(placeID{e.ConnID, e.Epoch}, Reason(e.Reason)) // of a join that is under way
		return
	}
	l, v := m.roomOf(e), c.views[e.RoomID]
	v.over = v.chosen[asWatcher] == 0
	v.ending[asMember] = m.kickedOut(l, c) // where the message was lost, its node may know the reason all the same
	if l.isFinal(placeID{e.ConnID, e.Epoch}, Reason(e.Reason)) {
		c.ends(l, asMember)
		l.told[placeID{e.ConnID, e.Epoch}] = true
	}
}

// judgeExpelled checks that a client has got the leave of the incarnation that was kicked before it is told so in another way.
func (m *model) judgeExpelled(l *ledger, c *modelClient) {
	p, v := c.places[l.room], c.views[l.room]
	if v == nil || v.chosen[asMember] == 0 || p.unsure || !m.kickedOut(l, c) {
		return
	}
	if member, there := v.facts[c.id]; there && member.epoch == p.epoch {
		m.wrong("%s was kicked and has not got its own leave", c.id)
	}
}

// judgeExpulsions checks, where no message gets lost, that who was kicked hears nothing any more.
func (m *model) judgeExpulsions() {
	for _, c := range m.clients {
		for _, l := range m.rooms {
			p, v := c.places[l.room], c.views[l.room]
			if m.kickedOut(l, c) && !l.displaced[placeID{c.id, p.epoch}] && p.in && v != nil && v.chosen[asMember] != 0 && !p.unsure && !p.kickedEarly && !v.over && !c.over {
				m.wrong("%s was kicked and still hears of the room", c.id)
			}
		}
	}
}

// enterLeave notes what a leave ends.
func (m *model) enterLeave(l *ledger, e message) {
	delete(l.held, e.ConnID)
	delete(l.due, e.ConnID)
	l.left[placeID{e.ConnID, e.Epoch}] = true
	if e.Reason == ReasonKicked {
		l.kickLeaves++
		l.kicked[placeID{e.ConnID, e.Epoch}] = time.Now()
		m.culled = m.culled || !m.calm // if the message is lost
	}
}

// noteOvertaking notes that a node reads a room while it has yet to hear that a member was kicked: it takes that for a loss of data,
// until it knows of the kick.
func (m *model) noteOvertaking(c *heldCall) {
	if m.script(c.cmds[0].Args()) != "read" {
		return
	}
	for _, item := range m.nodes[c.node].messages {
		if strings.Contains(item.payload, `"reason":"kicked"`) || strings.Contains(item.payload, `"reason":"replaced"`) && m.about&aboutDevices != 0 {
			m.culled, m.blurred = true, true
		}
	}
}
