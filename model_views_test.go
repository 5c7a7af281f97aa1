package main

import (
	"fmt"
	"maps"
	"slices"
)

// sight is a room as one client folds it.
type sight struct {
	chosen [roles]eventMode // plus one, 0 = not in that role
	ending [roles]bool      // a request that ends it is under way

	facts    facts
	rev      int64
	from     int64    // revision of the answer with which the fold began
	together []string // connections of the events with the last revision
	heard    []int64
	over     bool    // the client has got its own leave: it need not hear more
	judged   int64   // revision that judgeViews has seen
	cursor   *string // of the next page, nil = the view is whole
	ahead    bool    // a page has come after the last batch
	size     tally   // that it was told last
}

// wholeSight is of a client that is told each event of a whole room.
var wholeSight = &sight{chosen: [roles]eventMode{asMember: modeAll + 1}}

// mode is the one of its roles that tells most.
func (v *sight) mode() eventMode { return subscription{chosen: v.chosen}.mode() }

// may tells whether the client may be told in this way: a request that is under way may have ended a role.
func (v *sight) may(mode eventMode) bool {
	rest := v.chosen
	for as, ends := range v.ending {
		if ends {
			rest[as] = 0
		}
	}
	return mode == v.mode() || mode == subscription{chosen: rest}.mode()
}

func (v *sight) String() string {
	names := []string{"nothing", "none", "count", "batch", "all"}
	return fmt.Sprintf("member of %s, watcher of %s, at %d, page %v, ahead %v, size %v", names[v.chosen[asMember]], names[v.chosen[asWatcher]], v.rev, v.cursor, v.ahead, v.size)
}

// is tells whether seen, which is what the client has folded, and the room agree as far as the client can know.
func (v *sight) is(room, seen facts) bool {
	switch mode := v.mode(); {
	case mode == modeNone:
		return true
	case mode == modeCount:
		return v.size == room.size()
	case v.cursor == nil:
		return seen.String() == room.String()
	}
	after, _ := decodeCursor(*v.cursor)
	for conn, member := range seen {
		if is := room[conn]; is.user != member.user || is.epoch != member.epoch || is.state != member.state || is.device != member.device {
			return false
		}
	}
	for conn := range room {
		if _, known := seen[conn]; conn <= after && !known {
			return false
		}
	}
	return true
}

func (f facts) size() tally {
	users := map[string]bool{}
	for _, member := range f {
		users[member.user] = true
	}
	return tally{len(f), len(users)}
}

// begins has a client fold what an answer gave it, in a role that it has from now on. Where each event of the whole room comes before
// and after the answer, the fold goes on.
func (m *model) begins(c *modelClient, l *ledger, ack wireAck, as role, how tellingPayload) {
	v := c.views[l.room]
	if v == nil {
		v = &sight{over: true}
		c.views[l.room] = v
	}
	if ack.Rev < v.rev {
		m.wrong("G2: %s is answered with revision %d after %d", c.id, ack.Rev, v.rev)
	}
	goesOn := !v.over && v.mode() == modeAll && v.cursor == nil && how.Limit == 0
	v.chosen[as], v.ending[as] = how.Mode+1, false
	if goesOn && v.mode() == modeAll && !m.kickedOut(l, c) {
		return
	}
	*v = sight{chosen: v.chosen, ending: v.ending, facts: facts{}, rev: ack.Rev, from: ack.Rev, cursor: ack.Cursor}
	v.fill(ack)
}

// ends has a client have a role no more.
func (c *modelClient) ends(l *ledger, as role) {
	v := c.views[l.room]
	if v == nil {
		return
	}
	v.chosen[as], v.ending[as] = 0, false
	if v.chosen == [roles]eventMode{} {
		delete(c.views, l.room)
	}
}

// fill adds a page.
func (v *sight) fill(ack wireAck) {
	for conn, member := range entries(ack.Snapshot) {
		member.rev = ack.Rev
		v.facts[conn] = member
	}
	if ack.Count > 0 || len(ack.Snapshot) == 0 {
		v.size = tally{ack.Count, ack.Users}
	} else {
		v.size = v.facts.size() // the answer to a join gives the whole room
	}
}

// see folds an event into what a client has seen.
func (m *model) see(c *modelClient, e *wireEvent) {
	v := c.views[e.RoomID]
	own := e.Type == string(EventLeave) && e.ConnID == c.id
	m.note("  %s is told %s %s/%d @%d %d %s", c.id, e.Type, e.ConnID, e.Epoch, e.Rev, e.UserConns, e.Reason)
	switch {
	case v == nil:
		m.wrong("G2: %s gets event %d of a room in which it is not", c.id, e.Rev)
		return
	case !v.may(modeAll) && !own:
		m.wrong("%s gets event %d, as %s", c.id, e.Rev, v)
	case e.Rev < v.rev:
		m.wrong("G2: %s gets event %d after %d", c.id, e.Rev, v.rev)
	case e.Rev > v.rev:
		v.together = nil
	case m.losing(): // what is found to be lost is told with a revision that was told before
	case slices.Contains(v.together, e.ConnID) || v.together == nil && !m.culled:
		m.wrong("G1: %s gets event %d of %s again", c.id, e.Rev, e.ConnID)
	}
	v.rev = e.Rev
	v.together = append(v.together, e.ConnID)
	v.heard = append(v.heard, e.Rev)
	m.fold(c, v, e)
	if own {
		delete(v.facts, c.id) // in every mode
	}
	m.seeOwnEnd(c, e)
}

// fold takes an event, by itself or in a batch, as clients do.
func (m *model) fold(c *modelClient, v *sight, e *wireEvent) {
	m.judgeTold(c, e)
	if v.mode() < modeBatch || e.Rev < v.facts[e.ConnID].rev {
		return
	}
	if e.Type == string(EventLeave) {
		delete(v.facts, e.ConnID)
	} else {
		v.facts[e.ConnID] = fact{user: e.UserID, epoch: e.Epoch, rev: e.Rev, state: string(e.State), device: e.DeviceID}
	}
	if n := v.facts.count(e.UserID); n != e.UserConns && v.cursor == nil && !v.ahead {
		m.wrong("%s hears with event %d that %s has %d connections, and has seen %d", c.id, e.Rev, e.UserID, e.UserConns, n)
	}
}

// judgeViews checks that each client has seen the room as it was at the revision that it has reached, and if nothing got
// lost, every event on the way there.
func (m *model) judgeViews() {
	for _, c := range m.clients {
		for _, l := range m.rooms {
			v := c.views[l.room]
			if v == nil || m.losing() || v.judged == v.rev || v.ahead || v.mode() < modeBatch {
				continue
			}
			v.judged = v.rev
			if want, known := l.at[v.rev]; !known || !m.same(l, v, v.facts, want) {
				m.wrong("G3: %s has at revision %d seen\n    %s, as %s\n  and not\n    %s", c.id, v.rev, v.facts, v, want)
			}
			if m.exact() && v.mode() == modeAll {
				m.judgeHeard(c.id, l, v)
			}
		}
	}
}

// same tells whether a client has seen what it should. Where messages get lost, its node may take its time with members whose
// clients are about to change something, and with removals where it misses members of its own.
func (m *model) same(l *ledger, v *sight, seen, want facts) bool {
	if v.is(want, seen) || m.culled && !m.exact() {
		return true
	}
	seen, want = maps.Clone(seen), maps.Clone(want)
	for _, c := range m.clients {
		if c.places[l.room].busy && !m.exact() {
			delete(seen, c.id)
			delete(want, c.id)
		}
	}
	return v.is(want, seen)
}

// judgeHeard checks that every event after the acknowledgement came, and came alone.
func (m *model) judgeHeard(client string, l *ledger, v *sight) {
	first, _ := slices.BinarySearch(l.revs, v.from+1)
	last, _ := slices.BinarySearch(l.revs, v.rev+1)
	last = max(first, last)
	if !slices.Equal(v.heard, l.revs[first:last]) {
		m.wrong("G1: after revision %d %s has heard %d, published were %d", v.from, client, v.heard, l.revs[first:last])
	}
}
