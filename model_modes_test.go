package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// telling draws how a client is to be told of a room.
func (m *model) telling() (how tellingPayload, text string) {
	how.Mode = modeAll
	if m.about&aboutModes == 0 {
		return how, ""
	}
	if m.chance(70) {
		how.Mode = eventMode(m.random.IntN(len(eventModes)))
		text = fmt.Sprintf(`,"events":%q`, eventModes[how.Mode])
	}
	if m.chance(40) {
		how.Limit = 1 + m.random.IntN(3)
		text += fmt.Sprintf(`,"limit":%d`, how.Limit)
	}
	return how, text
}

// look has a client watch a room, end that, or read a page.
func (m *model) look(c *modelClient, l *ledger) {
	switch dice := m.random.IntN(10); {
	case dice < 4:
		m.watch(c, l)
	case dice < 6:
		m.unwatch(c, l)
	default:
		m.turn(c, l)
	}
}

func (m *model) watch(c *modelClient, l *ledger) {
	how, text := m.telling()
	m.begin(c, &modelRequest{
		judge: func(m *model, ack wireAck) {
			m.judgePage(l, ack, "", how.Limit)
			m.begins(c, l, ack, asWatcher, how)
		},
		unknown: func(*model) {},
	}, eventWatch, fmt.Sprintf(`{"roomId":%q%s}`, l.room, text))
}

func (m *model) unwatch(c *modelClient, l *ledger) {
	if v := c.views[l.room]; v != nil {
		v.ending[asWatcher] = true
	}
	m.begin(c, &modelRequest{
		judge: func(m *model, ack wireAck) {
			if !ack.OK {
				m.wrong("%s cannot end its watch: %s", c.id, ack.Code)
			}
			c.ends(l, asWatcher)
		},
		unknown: func(m *model) { m.wrong("an unwatch of %s is unavailable", c.id) },
	}, eventUnwatch, fmt.Sprintf(`{"roomId":%q}`, l.room))
}

// turn has a client read the next page of its view, or another one.
func (m *model) turn(c *modelClient, l *ledger) {
	limit, cursor, next := 1+m.random.IntN(3), "", false
	if v := c.views[l.room]; v != nil && v.cursor != nil && m.chance(80) {
		cursor, next = *v.cursor, true
	}
	asked := c.views[l.room]
	m.begin(c, &modelRequest{
		judge: func(m *model, ack wireAck) {
			after, err := decodeCursor(cursor)
			if err != nil {
				m.wrong("%s has the cursor %q: %v", c.id, cursor, err)
			}
			if m.page(c, l, asked, ack) {
				m.judgePage(l, ack, after, limit)
			}
			if next && c.views[l.room] == asked {
				asked.cursor = ack.Cursor
			}
		},
		unknown: func(*model) {},
	}, eventGet, fmt.Sprintf(`{"roomId":%q,"limit":%d,"cursor":%q}`, l.room, limit, cursor))
}

// page has a client fold a page that it asked for while it saw the room so. It is false where it was not told of the room: then its node may
// not have it, and gives members in any order.
func (m *model) page(c *modelClient, l *ledger, asked *sight, ack wireAck) bool {
	v := c.views[l.room]
	if v == nil || v != asked {
		return false
	}
	if ack.Rev < v.rev {
		m.wrong("G2: %s is given a page of revision %d after %d", c.id, ack.Rev, v.rev)
	}
	v.fill(ack)
	if v.ahead = v.mode() != modeAll; !v.ahead {
		v.rev = ack.Rev // every event that follows is newer
	}
	return true
}

// judgePage checks that a page shows the room as it was at its revision, in the order of connections where that is known.
func (m *model) judgePage(l *ledger, ack wireAck, after string, limit int) {
	if !ack.OK {
		m.wrong("a page is refused: %s", ack.Code)
		return
	}
	room, known := l.at[ack.Rev]
	if m.losing() || !m.exact() || !known && len(l.revs) > 0 {
		return
	}
	if len(l.revs) == 0 {
		room = facts{}
	}
	if size := (tally{ack.Count, ack.Users}); size != room.size() {
		m.wrong("a page of revision %d tells that %v are in the room, there are %v", ack.Rev, size, room.size())
	}
	want := facts{}
	for _, conn := range slices.Sorted(maps.Keys(room)) {
		if conn > after && (limit == 0 || len(want) < limit) {
			want[conn] = room[conn]
		}
	}
	if got := entries(ack.Snapshot); got.String() != want.String() {
		m.wrong("G3: a page of revision %d behind %q is\n    %s\n  and not\n    %s", ack.Rev, after, got, want)
	}
}

// collected takes a batch or a count.
func (m *model) collected(c *modelClient, kind, text string) {
	var b wireBatch
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		m.wrong("%s gets a %s that nobody can read: %s", c.id, kind, text)
		return
	}
	v := c.views[b.RoomID]
	if v == nil {
		m.wrong("G2: %s gets a %s of a room of which it is not told", c.id, kind)
		return
	}
	m.note("  %s is told %s", c.id, text)
	if kind == eventCount {
		m.seeCount(c, v, b)
	} else {
		m.seeBatch(c, v, b)
	}
}

func (m *model) seeCount(c *modelClient, v *sight, b wireBatch) {
	size := tally{b.Count, b.Users}
	if !v.may(modeCount) || b.Rev < v.rev {
		m.wrong("%s gets a count at %d, as %s", c.id, b.Rev, v)
	}
	if want, known := m.ledger(b.RoomID).at[b.Rev]; m.exact() && !m.losing() && known && want.size() != size {
		m.wrong("G3: %s is told at %d that %v are in the room, there are %v", c.id, b.Rev, size, want.size())
	}
	v.rev, v.size = b.Rev, size
}

func (m *model) seeBatch(c *modelClient, v *sight, b wireBatch) {
	if !v.may(modeBatch) || len(b.Events) == 0 || b.Rev < v.rev || b.Rev == v.rev && m.exact() {
		m.wrong("G1: %s gets a batch of %d with %d events, as %s", c.id, b.Rev, len(b.Events), v)
	}
	of := map[string][]string{}
	for i := range b.Events {
		e := &b.Events[i]
		of[e.ConnID] = append(of[e.ConnID], e.Type)
		if e.Rev > b.Rev {
			m.wrong("G2: a batch of %d has an event of %d", b.Rev, e.Rev)
		}
		m.fold(c, v, e)
		if e.Type == string(EventLeave) && e.ConnID == c.id {
			m.seeOwnEnd(c, e)
		}
	}
	for conn, types := range of {
		if len(types) > 1 && !slices.Equal(types, []string{string(EventLeave), string(EventJoin)}) {
			m.wrong("G1: a batch tells %q of %s", types, conn)
		}
	}
	v.rev, v.ahead, v.size = b.Rev, false, tally{b.Count, b.Users}
	if v.cursor == nil && v.size != v.facts.size() && !m.losing() {
		m.wrong("G3: %s is told a batch of %d with %v, and has folded %v", c.id, b.Rev, v.size, v.facts.size())
	}
}
