package main

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// replica is a room as this node knows it.
type replica struct {
	room    string
	rev     int64 // the highest that receivers were told
	stored  int64 // that of the store, as far as is known: below rev only when the store has lost its counter
	entries members
	users   map[string]int // connections of each user
	version uint64         // raised by each change
	latest  arrival        // of the last join or update that came as a message, if it has a device
}

func newReplica(room string) replica {
	return replica{room: room, users: map[string]int{}}
}

// precedes tells whether m is the next change. Receivers never see a revision go back.
func (p *replica) precedes(m message) bool { return m.prev == p.stored && m.Rev > p.rev }

// change is an event, and what the replica had of the connection before it.
type change struct {
	Event
	before Entry
	had    bool
	final  bool // only a new join brings the connection back
}

// arrival is a member as far as its device matters.
type arrival struct {
	user, device, conn string
	epoch              int64
}

// isFinal tells whether an event ends a membership for good: the member was kicked, or replaced by a later one with its device, which
// comes just before. A leave as ReasonReplaced precedes the join of the same connection otherwise.
func (p *replica) isFinal(e Event) bool {
	if e.Type != EventLeave || e.Reason != ReasonReplaced || e.DeviceID == "" {
		return e.Type == EventLeave && e.Reason == ReasonKicked
	}
	if isTwin := e.DeviceID == p.latest.device && e.UserID == p.latest.user; isTwin && e.ConnID != p.latest.conn && e.Epoch < p.latest.epoch {
		return true
	}
	for other := range p.entries.all() { // a reading came before, or the message of the join was lost
		if other.DeviceID == e.DeviceID && other.UserID == e.UserID && other.ConnID != e.ConnID && other.Epoch > e.Epoch {
			return true
		}
	}
	return false
}

// noteLatest keeps who came or changed last, if it has a device.
func (p *replica) noteLatest(e Event) {
	p.latest = arrival{}
	if e.DeviceID != "" { // parts of a message, which they would keep in memory
		p.latest = arrival{strings.Clone(e.UserID), strings.Clone(e.DeviceID), strings.Clone(e.ConnID), e.Epoch}
	}
}

func (p *replica) apply(e Event) change {
	p.rev, p.stored = e.Rev, e.Rev
	c := change{Event: e, final: e.Type == EventLeave && e.Reason == ReasonKicked}
	if e.Type == EventLeave {
		c.before, c.had = p.drop(e.ConnID)
		return c
	}
	p.noteLatest(e)
	c.before, c.had = p.put(entryOfEvent(e))
	return c
}

// entryOfEvent is the member after a join or an update.
func entryOfEvent(e Event) Entry {
	return Entry{ConnID: e.ConnID, UserID: e.UserID, State: e.State, DeviceID: e.DeviceID, LastSeenMs: e.TS, Epoch: e.Epoch, Rev: e.Rev}
}

func (p *replica) put(e Entry) (before Entry, had bool) {
	p.version++
	before, had = p.entries.get(e.ConnID)
	if had && before.UserID == e.UserID {
		e.ConnID, e.UserID = before.ConnID, before.UserID
	} else { // parts of a message, which they would keep in memory
		e.ConnID, e.UserID = strings.Clone(e.ConnID), strings.Clone(e.UserID)
		p.users[e.UserID]++
		if had {
			p.release(before.UserID)
		}
	}
	if had && before.DeviceID == e.DeviceID {
		e.DeviceID = before.DeviceID
	} else {
		e.DeviceID = strings.Clone(e.DeviceID)
	}
	p.entries.put(e)
	return before, had
}

func (p *replica) drop(conn string) (before Entry, had bool) {
	before, had = p.entries.get(conn)
	if !had {
		return before, false
	}
	p.version++
	p.entries.drop(conn)
	p.release(before.UserID)
	return before, true
}

// release takes a connection off a user.
func (p *replica) release(user string) {
	if p.users[user]--; p.users[user] == 0 {
		delete(p.users, user)
	}
}

// has tells whether a connection is in the room, as this incarnation or a later one.
func (p *replica) has(conn string, epoch int64) bool {
	e, there := p.entries.get(conn)
	return there && e.Epoch >= epoch
}

func (p *replica) tally() tally { return tally{p.entries.len(), len(p.users)} }

// ids are the connections after one, in order, at most limit.
func (p *replica) ids(after string, limit int) (ids []string) {
	for e := range p.entries.after(after) {
		if len(ids) == limit {
			break
		}
		ids = append(ids, e.ConnID)
	}
	return ids
}

// heard notes when a member was last heard of.
func (p *replica) heard(conn string, ms int64) {
	if e, there := p.entries.get(conn); there && e.LastSeenMs < ms {
		p.version++
		e.LastSeenMs = ms
		p.entries.put(e)
	}
}

// hear notes when the members of a reading were last heard of.
func (p *replica) hear(c comparison) {
	p.version++
	p.entries.hear(c)
}

// adopt makes the replica equal to what was read and gives the difference: joins and updates, then leaves, all of the
// revision that was read. A replica never goes back: where Redis has lost its counter, the higher revision stays, and so do
// entries that spare is true for, although they were not found, or only as an older copy.
func (p *replica) adopt(s Snapshot, spare func(Entry) bool) []change {
	return p.adoptOnly(s, p.entries.compare(s.Entries), spare)
}

// adoptOnly is adopt where the comparison is known. It takes as long as there are differences.
func (p *replica) adoptOnly(s Snapshot, found comparison, spare func(Entry) bool) []change {
	p.rev, p.stored = max(p.rev, s.Rev), s.Rev
	p.hear(found)
	var changes []change
	differ := slices.Sorted(maps.Keys(found.differ))
	var missing []Entry
	for _, conn := range differ {
		old, had := p.entries.get(conn)
		e, present := s.entry(conn)
		if !present {
			if had && !spare(old) {
				missing = append(missing, old)
			}
			continue
		}
		if had && e.olderThan(old.Epoch, old.Rev) && spare(old) {
			continue
		}
		kind := difference(old, had, e)
		p.put(e)
		if kind != "" {
			changes = append(changes, change{Event: p.event(kind, e, s.TS), before: old, had: had})
		}
	}
	for _, old := range missing {
		p.drop(old.ConnID)
		changes = append(changes, change{Event: p.event(EventLeave, old, s.TS), before: old, had: true})
	}
	return changes
}

// entry finds a connection in what was read.
func (s Snapshot) entry(conn string) (Entry, bool) {
	at, found := slices.BinarySearchFunc(s.Entries, conn, byConn)
	if !found {
		return Entry{}, false
	}
	return s.Entries[at], true
}

// nobody of those who were not found stays.
func nobody(Entry) bool { return false }

// olderThan tells whether the entry is of an earlier incarnation or change.
func (e *Entry) olderThan(epoch, rev int64) bool {
	return e.Epoch < epoch || e.Epoch == epoch && e.Rev < rev
}

// difference is the event that turns one entry into another, "" if none is needed. The same state under another
// revision is a connection that was put back.
func difference(old Entry, had bool, e Entry) EventType {
	switch {
	case !had || old.UserID != e.UserID || old.Epoch != e.Epoch:
		return EventJoin
	case old.Rev == e.Rev:
		return ""
	case bytes.Equal(old.State, e.State):
		return EventJoin
	default:
		return EventUpdate
	}
}

func (p *replica) event(kind EventType, e Entry, ts int64) Event {
	event := Event{Type: kind, RoomID: p.room, UserID: e.UserID, ConnID: e.ConnID, State: e.State, DeviceID: e.DeviceID, TS: ts, Epoch: e.Epoch,
		Rev: p.rev, UserConns: p.users[e.UserID]}
	if kind == EventLeave {
		event.State = nil
	}
	return event
}
