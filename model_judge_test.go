package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fact is what is known of a connection in a room.
type fact struct {
	user       string
	epoch, rev int64
	state      string
	device     string
}

// facts are a room, by connection.
type facts map[string]fact

// String is the room as its members can see it.
func (f facts) String() string {
	var b []byte
	for _, conn := range slices.Sorted(maps.Keys(f)) {
		b = append(append(append(append(b, conn...), '='), f[conn].user...), '/')
		b = append(append(strconv.AppendInt(b, f[conn].epoch, 10), f[conn].state...), f[conn].device...)
		b = append(b, ' ')
	}
	return string(b)
}

func (f facts) count(user string) (n int) {
	for _, member := range f {
		if member.user == user {
			n++
		}
	}
	return n
}

// ledger is a room as the messages tell it that Redis has published: the truth of the model.
type ledger struct {
	room       string
	rev        int64
	facts      facts
	at         map[int64]facts // the room at each revision
	revs       []int64
	gone       map[placeID]Reason // why incarnations left
	joins      map[placeID]bool
	left       map[placeID]bool      // incarnations that left, whatever came then
	kicked     map[placeID]time.Time // when incarnations were kicked
	kicks      map[string]int        // kicks of connections that may still come
	kickLeaves int                   // so far
	held       map[string]bool       // connections that Redis holds back
	due        map[string]bool       // those of them whose user has just joined
	joined     message               // the last message, if it was a join, or a leave that comes with one
	told       map[placeID]bool      // incarnations that were kicked, whose clients know it
	devices    map[placeID]fact      // incarnations as they came
	displaced  map[placeID]bool      // incarnations that are not in the room, while a newer one has their device
	twin       string                // connection that has to leave with the next message, because the last one has its device
	forgot     bool                  // Redis has lost the counter: the next message may follow any
}

// placeID is an incarnation.
type placeID struct {
	conn  string
	epoch int64
}

func newLedger(room string) *ledger {
	return &ledger{room: room, facts: facts{}, at: map[int64]facts{0: {}}, gone: map[placeID]Reason{}, joins: map[placeID]bool{},
		left: map[placeID]bool{}, kicked: map[placeID]time.Time{}, kicks: map[string]int{}, held: map[string]bool{}, due: map[string]bool{},
		told: map[placeID]bool{}, devices: map[placeID]fact{}, displaced: map[placeID]bool{}}
}

// published enters a message of Redis and checks it.
func (m *model) published(l *ledger, payload string) {
	e, ok := parseMessage(payload)
	if !ok {
		m.wrong("a message that nobody can read: %s", payload)
		return
	}
	m.note("  → %s %s %s/%d @%d←%d %d %s%s", e.Type, e.ConnID, e.UserID, e.Epoch, e.Rev, e.prev, e.UserConns, e.Reason, e.State)
	if e.prev != l.rev && !l.forgot {
		m.wrong("G2: revision %d names %d as the one before, which was %d", e.Rev, e.prev, l.rev)
	}
	if e.Rev <= l.rev || e.TS != m.clock() || e.RoomID != l.room {
		m.wrong("revision %d after %d, at %d in %q; it is %d", e.Rev, l.rev, e.TS, e.RoomID, m.clock())
	}
	l.rev, l.forgot = e.Rev, false
	m.enter(l, e)
	if n := l.facts.count(e.UserID); n != e.UserConns {
		m.wrong("revision %d says that %s has %d connections, it has %d", e.Rev, e.UserID, e.UserConns, n)
	}
	l.at[l.rev] = maps.Clone(l.facts)
	l.revs = append(l.revs, l.rev)
	for _, n := range m.nodes {
		n.hear(l.room, payload)
	}
}

// enter checks that a message may follow what was there, and why it came.
func (m *model) enter(l *ledger, e message) {
	m.enterReplaced(l, e)
	old, there := l.facts[e.ConnID]
	id := placeID{e.ConnID, e.Epoch}
	reason, left := l.gone[id]
	if strings.Contains(string(e.State), "evil") {
		m.wrong("G4: a fenced patch became state: %s", e.State)
	}
	if (e.Type == EventLeave) != (e.Reason != "") || (e.Type == EventLeave) != (string(e.State) == "null") {
		m.wrong("a %s with reason %q and state %s", e.Type, e.Reason, e.State)
	}
	switch {
	case e.Type == EventJoin && there && old.user != e.UserID:
		m.wrong("%s joins as %s and was not seen to leave as %s", e.ConnID, e.UserID, old.user)
	case e.Type == EventJoin && there && old.epoch >= e.Epoch:
		m.wrong("G8: a join of %s with epoch %d, which is there with epoch %d", e.ConnID, e.Epoch, old.epoch)
	case e.Type == EventJoin && left && reason != ReasonTimeout && reason != ReasonNodeLost && reason != reasonLost:
		m.wrong("G5: %s with epoch %d comes back after it has left (%s)", e.ConnID, e.Epoch, reason)
	case e.Type == EventJoin && l.joins[id] && !left:
		m.wrong("G5: %s joins twice with epoch %d", e.ConnID, e.Epoch)
	case e.Type == EventJoin && !l.joins[id] && e.Epoch != e.Rev:
		m.wrong("a new incarnation of %s has epoch %d at revision %d", e.ConnID, e.Epoch, e.Rev)
	case e.Type == EventUpdate && (!there || old.epoch != e.Epoch):
		m.wrong("an update of %s with epoch %d, which is not there", e.ConnID, e.Epoch)
	case e.Type == EventUpdate && old.state == string(e.State):
		m.wrong("an update of %s that changes nothing", e.ConnID)
	case e.Type == EventLeave && (!there || old.epoch != e.Epoch || old.user != e.UserID):
		m.wrong("G5: a leave of %s with epoch %d, which is not there", e.ConnID, e.Epoch)
	}
	if e.Type == EventLeave {
		m.judgeLeave(l, e)
		delete(l.facts, e.ConnID)
		l.gone[id] = e.Reason
		m.enterLeave(l, e)
		return
	}
	m.enterJoin(l, e)
	delete(l.gone, id)
	l.joins[id] = true
	l.facts[e.ConnID] = fact{user: e.UserID, epoch: e.Epoch, rev: e.Rev, state: string(e.State), device: e.DeviceID}
	m.enterDevice(l, e)
}

// judgeLeave checks that whoever has left may be missed.
func (m *model) judgeLeave(l *ledger, e message) {
	p := m.place(l.room, e.ConnID)
	switch e.Reason {
	case ReasonTimeout:
		m.judgeContact(e.ConnID)
		m.culled = m.culled || p.in
		if silent := m.clock() - p.heard; p.in && p.epoch == e.Epoch && silent < modelLookback.Milliseconds() {
			m.wrong("false leave: %s was heard of %d ms ago", e.ConnID, silent)
		}
	case ReasonReplaced:
		if !l.isFinal(placeID{e.ConnID, e.Epoch}, e.Reason) && !p.joining && !m.troubled {
			m.wrong("%s is replaced without a join", e.ConnID)
		}
	case ReasonKicked:
		if !l.kicked[placeID{e.ConnID, e.Epoch}].IsZero() {
			break // after a loss, its node has repeated the kick
		}
		if l.kicks[e.ConnID]--; l.kicks[e.ConnID] < 0 {
			m.wrong("%s is kicked by nobody", e.ConnID)
		}
	case ReasonLeft, ReasonDisconnected:
		m.judgeHeld(l, e)
		if p.in && !p.leaving && p.epoch == e.Epoch {
			m.wrong("false leave: %s has not left (%s)", e.ConnID, e.Reason)
		}
	default:
		m.wrong("%s left with reason %q", e.ConnID, e.Reason)
	}
}

// converged tells what keeps clients from having the room as it is, and nodes from having put back who Redis has lost. It is empty if
// nothing does.
func (m *model) converged() (complaint string) {
	for _, l := range m.rooms {
		for _, c := range m.clients {
			if v := c.views[l.room]; v != nil && !v.over && !v.is(l.facts, v.facts) {
				return fmt.Sprintf("%s has seen\n    %s, as %s\n  the room is\n    %s", c.id, v.facts, v, l.facts)
			}
		}
	}
	return m.unhealed()
}

// judgeAck checks the answer to a request, and follows what it says.
func (m *model) judgeAck(c *modelClient, text string, came time.Time) {
	op := c.op
	var ack wireAck
	switch {
	case op == nil || op.acked:
		m.wrong("%s gets an answer that it does not wait for: %s", c.id, text)
		return
	case json.Unmarshal([]byte(text), &ack) != nil:
		m.wrong("%s gets an answer that nobody can read: %s", c.id, text)
		return
	}
	op.acked = true
	answer, _, _ := strings.Cut(text, `"snapshot"`)
	m.note("  %s is answered %s", c.id, answer)
	if took := came.Sub(op.began); took > answerWithin+modelTolerance {
		m.wrong("%s is answered after %v", op.what, took)
	}
	if !ack.OK && ack.Code == string(CodeUnavailable) {
		if m.calm {
			m.wrong("%s of %s is unavailable, although nothing fails", op.what, c.id)
		}
		op.unknown(m)
		return
	}
	op.judge(m, ack)
}

// entries are a snapshot as facts.
func entries(list []wireEntry) facts {
	f := facts{}
	for _, e := range list {
		f[e.ConnID] = fact{user: e.UserID, epoch: e.Epoch, state: string(e.State), device: e.DeviceID}
	}
	return f
}

// judgeSnapshot checks that a snapshot is the room at that revision, and has every heartbeat but those of the latest time.
func (m *model) judgeSnapshot(l *ledger, rev int64, list []wireEntry, latest time.Duration) {
	want, known := l.at[rev]
	if len(l.revs) == 0 {
		known = true // an empty room without a counter has any revision
	}
	if !m.losing() && (!known || !m.same(l, wholeSight, entries(list), want)) {
		m.wrong("G3: the snapshot of revision %d is\n    %s\n  and not\n    %s", rev, entries(list), want)
	}
	for _, e := range list {
		p := m.place(l.room, e.ConnID)
		if !p.in || p.epoch != e.Epoch || l.facts[e.ConnID].epoch != e.Epoch || m.losing() { // Redis may have lost when it was heard of
			continue
		}
		for _, heard := range p.heartbeats {
			if heard < m.clock()-latest.Milliseconds()-1 && e.LastSeenMs < heard { // clocks show whole milliseconds
				m.wrong("the snapshot has %s last seen at %d, it was heard of at %d, and it is %d", e.ConnID, e.LastSeenMs, heard, m.clock())
			}
		}
	}
}
