package main

import (
	"fmt"
	"slices"
)

// request starts something that the client can do.
func (m *model) request(c *modelClient) {
	l := m.rooms[m.random.IntN(len(m.rooms))]
	p := c.places[l.room]
	if m.about&aboutModes != 0 && m.chance(35) {
		m.look(c, l)
		return
	}
	dice := m.random.IntN(100)
	if !p.in && dice < 60 {
		m.join(c, l)
		return
	}
	switch {
	case dice < 30:
		m.patch(c, l, 0)
	case dice < 45:
		m.beat(c, l)
	case dice < 53:
		m.stale(c, l, p.epoch-1)
	case dice < 60:
		m.stale(c, l, p.epoch+1+m.random.Int64N(1e6))
	case dice < 76:
		m.join(c, l)
	case dice < 85:
		m.leave(c, l)
	case dice < 90:
		m.get(c, l)
	default:
		m.end(c)
	}
}

func (m *model) join(c *modelClient, l *ledger) {
	p := c.places[l.room]
	m.patches++
	user, n := fmt.Sprint("u", m.random.IntN(3)), m.patches
	if p.in && m.chance(50) {
		user = p.user
	}
	device := ""
	if d := m.device(); d != "" {
		device = fmt.Sprintf(`"deviceId":%q,`, d)
	}
	p.joining = true
	began := m.clock()
	how, telling := m.telling()
	m.begin(c, &modelRequest{
		places: []*place{p},
		judge: func(m *model, ack wireAck) {
			if ack.Code == string(CodeRoomFull) && m.limit > 0 {
				return // judgeCall has seen why
			}
			if !ack.OK {
				m.wrong("%s cannot join: %s", c.id, ack.Code)
				return
			}
			if !l.joins[placeID{c.id, ack.Self.Epoch}] || ack.Self.Epoch <= p.epoch || ack.Self.ConnID != c.id {
				m.wrong("G7: %s is told of epoch %d after %d", c.id, ack.Self.Epoch, p.epoch)
			}
			if ack.Rev < ack.Self.Epoch || ack.TTLMs != modelTTL.Milliseconds() {
				m.wrong("the join of %s at %d is answered with revision %d, TTL %d", c.id, ack.Self.Epoch, ack.Rev, ack.TTLMs)
			}
			if how.Limit == 0 {
				m.judgeSnapshot(l, ack.Rev, ack.Snapshot, modelTTL/2)
			} else {
				m.judgePage(l, ack, "", how.Limit)
			}
			*p = place{in: true, busy: true, joining: true, user: user, epoch: ack.Self.Epoch, mayBeHeard: p.mayBeHeard,
				state: map[string]int{"n": n}, maybe: map[string][]int{}}
			p.kickedEarly = m.kickedOut(l, c)
			if self := entries(ack.Snapshot)[c.id]; self.epoch != p.epoch && !p.kickedEarly && how.Limit == 0 {
				m.wrong("G7: the join of %s at %d is answered without it: %+v", c.id, p.epoch, self)
			}
			p.heartbeat(began)
			m.begins(c, l, ack, asMember, how)
		},
		unknown: func(*model) {
			p.unsure, p.loose = true, true
			p.others = append(p.others, user)
		},
	}, eventJoin, fmt.Sprintf(`{"roomId":%q,"userId":%q,%s"state":{"n":%d}%s}`, l.room, user, device, n, telling))
}

func (p *place) heartbeat(began int64) {
	p.heard = began
	p.heartbeats = append(p.heartbeats, began)
}

// patch sends a heartbeat with a patch, and with the epoch if it is not 0.
func (m *model) patch(c *modelClient, l *ledger, epoch int64) {
	p := c.places[l.room]
	key := fmt.Sprint("k", m.random.IntN(2))
	value := p.state[key]
	if value == 0 || m.chance(75) {
		m.patches++
		value = m.patches
	}
	changes := p.state[key] != value
	m.heartbeat(c, l, fmt.Sprintf(`,"patchState":{%q:%d}`, key, value), func(m *model, ack wireAck) {
		if known := len(p.maybe[key]) == 0 && !p.loose; known && *ack.Changed != changes {
			m.wrong("a patch of %s answers changed: %v", c.id, *ack.Changed)
		}
		p.state[key] = value
		if changes || !m.mayStill("patch", c) { // a patch that changes nothing writes nothing that an earlier one could meet
			delete(p.maybe, key)
		}
	}, func(*model) {
		if p.maybe != nil {
			p.maybe[key] = append(p.maybe[key], value)
		}
	})
}

// beat sends a heartbeat without a patch.
func (m *model) beat(c *modelClient, l *ledger) {
	more := ""
	if p := c.places[l.room]; p.in && !p.unsure && m.chance(50) {
		more = fmt.Sprintf(`,"epoch":%d`, p.epoch)
	}
	m.heartbeat(c, l, more, func(m *model, ack wireAck) {
		if *ack.Changed {
			m.wrong("a heartbeat of %s answers that it changed something", c.id)
		}
	}, func(*model) {})
}

func (m *model) heartbeat(c *modelClient, l *ledger, more string, judge func(*model, wireAck), unknown func(*model)) {
	p := c.places[l.room]
	began := m.clock()
	m.begin(c, &modelRequest{
		places: []*place{p},
		judge: func(m *model, ack wireAck) {
			switch {
			case !ack.OK && ack.Code == string(CodeNotJoined) && (!p.in || p.unsure || m.kickedOut(l, c)):
				m.judgeExpelled(l, c)
				c.ends(l, asMember)
				*p = place{busy: true, epoch: p.epoch}
			case ack.OK && l.kicked[placeID{c.id, p.epoch}].After(c.op.began): // it was refreshed before
			case ack.OK && m.lostSince(c.op.began): // it was refreshed before
				p.heartbeat(began)
				judge(m, ack)
			case !ack.OK || !p.in:
				m.wrong("a heartbeat of %s is answered with %v %s", c.id, ack.OK, ack.Code)
			default:
				member, there := l.facts[c.id]
				if p.unsure && *ack.Epoch >= p.epoch && slices.Contains(append(p.others, p.user), member.user) {
					if *ack.Epoch > p.epoch && !m.mayStill("join", c) {
						p.unsure, p.others = false, nil
					}
					p.epoch, p.user = *ack.Epoch, member.user
				}
				if *ack.Epoch != p.epoch || !there || member.epoch != p.epoch || member.user != p.user {
					m.wrong("G7: %s has epoch %d, %d is acknowledged, the room has %d", c.id, p.epoch, *ack.Epoch, member.epoch)
				}
				p.heartbeat(began)
				judge(m, ack)
			}
		},
		unknown: unknown,
	}, eventHeartbeat, fmt.Sprintf(`{"roomId":%q%s}`, l.room, more))
}

// stale sends a heartbeat with an epoch that is not the connection's.
func (m *model) stale(c *modelClient, l *ledger, epoch int64) {
	p := c.places[l.room]
	patch := ""
	if m.chance(50) {
		patch = `,"patchState":{"evil":1}`
	}
	op := &modelRequest{
		judge: func(m *model, ack wireAck) {
			want := CodeNotJoined
			if p.in {
				want = CodeStaleEpoch
			}
			if m.kickedOut(l, c) && ack.Code == string(CodeNotJoined) {
				return
			}
			if ack.OK || ack.Code != string(want) || p.in && !p.unsure && *ack.Epoch != p.epoch {
				m.wrong("G4: the epoch %d of %s is answered with %+v, it has %d", max(epoch, 1), c.id, ack, p.epoch)
			}
		},
		unknown: func(*model) {},
	}
	m.begin(c, op, eventHeartbeat, fmt.Sprintf(`{"roomId":%q,"epoch":%d%s}`, l.room, max(epoch, 1), patch))
}

func (m *model) leave(c *modelClient, l *ledger) {
	p := c.places[l.room]
	p.leaving = true
	if v := c.views[l.room]; v != nil {
		v.ending[asMember] = true
	}
	m.begin(c, &modelRequest{
		places: []*place{p},
		judge: func(m *model, ack wireAck) {
			if _, there := l.facts[c.id]; there || !ack.OK {
				m.wrong("G7: %s has left: %v, and is there: %v", c.id, ack.OK, there)
			}
			c.ends(l, asMember)
			*p = place{busy: true, leaving: true, epoch: p.epoch}
		},
		unknown: func(*model) {
			c.ends(l, asMember)
			*p = place{busy: true, leaving: true, unsure: true, epoch: p.epoch}
		},
	}, eventLeave, fmt.Sprintf(`{"roomId":%q}`, l.room))
}

func (m *model) get(c *modelClient, l *ledger) {
	asked := c.views[l.room]
	m.begin(c, &modelRequest{
		judge: func(m *model, ack wireAck) {
			if !ack.OK || ack.Count != len(ack.Snapshot) {
				m.wrong("a get is answered with %+v", ack)
			}
			m.judgeSnapshot(l, ack.Rev, ack.Snapshot, modelTTL/2)
			m.page(c, l, asked, ack)
		},
		unknown: func(*model) {},
	}, eventGet, fmt.Sprintf(`{"roomId":%q}`, l.room))
}
