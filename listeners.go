package main

import (
	"bytes"
	"cmp"
	"slices"
	"time"
)

// role is why a receiver is told of a room. It may have several at once.
type role uint8

const (
	asMember  role = iota // it is in the room
	asWatcher             // it only looks
	roles
)

// seat is a receiver's place among the listeners: for each role the mode that it chose, plus one; 0 = not in that role.
type seat struct {
	chosen [roles]eventMode
	at     int // in the list of its mode
}

// mode is the one of its roles that tells most.
func (s seat) mode() eventMode { return max(s.chosen[asMember], s.chosen[asWatcher]) - 1 }

func (s seat) empty() bool { return s.chosen == [roles]eventMode{} }

// listeners are the local sockets that are told of one room, each once and in its mode. The room's lock guards it.
//
// Collected events come in windows: the first change after a quiet time is told at once, what follows within the time of
// a window goes out together at its end, in one frame for all. So a window costs what changed in it and one write for
// each socket, however many events there were.
type listeners struct {
	room   *room
	seats  map[receiver]seat
	lists  [modeAll + 1][]receiver
	quiet  map[string]receiver // members that hear of no single member, by connection id: only of their own removal
	window window
	paged  int64     // highest revision of a page that was given out
	batch  time.Time // until then no batch goes out
	count  time.Time // until then no count goes out
	told   tally     // the last count that went out
	armed  bool      // a timer is going to call due
}

// tally is how many are in a room.
type tally struct{ count, users int }

func (l *listeners) admit(to receiver, as role, mode eventMode) {
	s, here := l.seats[to]
	if here {
		l.unlist(to, s)
	}
	if l.seats == nil {
		l.seats = map[receiver]seat{}
	}
	if mode == modeCount && len(l.lists[modeCount]) == 0 {
		l.told = l.room.replica.tally()
	}
	s.chosen[as] = mode + 1
	l.list(to, s)
	l.forget()
}

func (l *listeners) dismiss(to receiver, as role) {
	s, here := l.seats[to]
	if !here {
		return
	}
	l.unlist(to, s)
	s.chosen[as] = 0
	if s.empty() {
		delete(l.seats, to)
	} else {
		if s.mode() == modeBatch {
			l.sendBatch(time.Now()) // what it holds, the receiver has been told
		}
		l.list(to, s)
	}
	l.forget()
}

// forget empties the window when nobody is left who waits for it.
func (l *listeners) forget() {
	if len(l.lists[modeBatch]) == 0 {
		l.window.clear()
	}
}

// list enters a receiver into the list of its mode.
func (l *listeners) list(to receiver, s seat) {
	mode := s.mode()
	s.at = len(l.lists[mode])
	l.lists[mode] = append(l.lists[mode], to)
	l.seats[to] = s
	if mode < modeBatch && s.chosen[asMember] != 0 {
		if l.quiet == nil {
			l.quiet = map[string]receiver{}
		}
		l.quiet[to.ID()] = to
	}
}

func (l *listeners) unlist(to receiver, s seat) {
	list := l.lists[s.mode()]
	last := list[len(list)-1]
	moved := l.seats[last]
	moved.at = s.at
	l.seats[last], list[s.at], list[len(list)-1] = moved, last, nil
	l.lists[s.mode()] = list[:len(list)-1]
	delete(l.quiet, to.ID())
}

// members adds the receivers that are in the room to a set.
func (l *listeners) members(set map[receiver]bool) {
	for to, s := range l.seats {
		if s.chosen[asMember] != 0 {
			set[to] = true
		}
	}
}

// tell passes a change on to those who want each, and keeps it for the others.
func (l *listeners) tell(c change) {
	h := l.room.hub
	if list := l.lists[modeAll]; len(list) > 0 {
		h.cast(h.encode.event(c.Event), list)
	}
	if len(l.lists[modeBatch]) > 0 {
		l.window.note(c)
	}
	if c.Type != EventLeave {
		return
	}
	if to := l.quiet[c.ConnID]; to != nil {
		h.cast(h.encode.event(c.Event), []receiver{to})
	}
	if c.Reason == ReasonKicked {
		l.expel(c.Event)
	}
}

// expel ends the membership of a local socket that was kicked, whatever its connection knows as yet. One that gets batches
// would not get this one, and is told now.
func (l *listeners) expel(e Event) {
	for to, s := range l.seats {
		if to.ID() != e.ConnID || s.chosen[asMember] == 0 {
			continue
		}
		if s.mode() == modeBatch {
			l.room.hub.cast(l.room.hub.encode.event(e), []receiver{to})
		}
		l.dismiss(to, asMember)
		return
	}
}

// admits tells whether a receiver may begin in this mode now. Those who get batches begin between two windows, so that
// none of them is sent an event that its snapshot holds already.
func (l *listeners) admits(mode eventMode) bool { return mode != modeBatch || l.window.empty() }

// settle sends what is due, and has the rest sent in time.
func (l *listeners) settle() {
	now := time.Now()
	if !l.window.empty() && l.due(now, l.batch) {
		l.sendBatch(now)
	}
	if t := l.room.replica.tally(); len(l.lists[modeCount]) > 0 && t != l.told && l.due(now, l.count) {
		l.sendCount(now, t)
	}
}

// sendBatch ends the window.
func (l *listeners) sendBatch(now time.Time) {
	h, p := l.room.hub, &l.room.replica
	if events := l.window.net(p, l.paged); len(events) > 0 {
		l.batch = now.Add(h.batchEvery)
		b := Batch{RoomID: p.room, Rev: p.rev, Count: len(p.entries), Users: len(p.users), Events: events}
		h.cast(h.encode.batch(b), l.lists[modeBatch])
	}
	l.window.clear()
	if l.paged <= p.rev {
		l.paged = 0
	}
}

func (l *listeners) sendCount(now time.Time, t tally) {
	h, p := l.room.hub, &l.room.replica
	l.told, l.count = t, now.Add(h.countEvery)
	h.cast(h.encode.count(Batch{RoomID: p.room, Rev: p.rev, Count: t.count, Users: t.users}), l.lists[modeCount])
}

// due tells whether a time has come. If not, the room is settled then.
func (l *listeners) due(now, at time.Time) bool {
	wait := at.Sub(now)
	if wait <= 0 {
		return true
	}
	if !l.armed {
		l.armed = true
		l.room.hub.later(wait, l.room.windowOver)
	}
	return false
}

// window is what became of the connections that changed since the last batch.
type window struct {
	touched map[string]*touched // by connection id
}

// touched is a connection before its first change in a window, and its latest changes.
type touched struct {
	before Entry
	had    bool
	first  int64  // revision of the first change
	last   Event  // the latest change
	joined bool   // one of the changes was a join
	left   *Event // the leave of what was there before
}

func (w *window) empty() bool { return len(w.touched) == 0 }

func (w *window) clear() { w.touched = nil }

func (w *window) note(c change) {
	t := w.touched[c.ConnID]
	if t == nil {
		if w.touched == nil {
			w.touched = map[string]*touched{}
		}
		t = &touched{before: c.before, had: c.had, first: c.Rev}
		w.touched[c.ConnID] = t
	}
	t.last = c.Event
	t.joined = t.joined || c.Type == EventJoin
	if c.Type == EventLeave && t.had && t.left == nil && c.UserID == t.before.UserID {
		t.left = &c.Event
	}
}

// net gives the effect of the window as events: at most one of each connection, or a leave and a join where the user is
// another one. A connection that came and went in it is not mentioned, unless a page of a revision up to paged may have
// shown it. userConns is counted as if the events came one by one.
func (w *window) net(p *replica, paged int64) []Event {
	var events []Event
	added := map[string]int{} // to each user's connections
	for conn, t := range w.touched {
		now, has := p.entries[conn]
		if t.had {
			added[t.before.UserID]--
		}
		if has {
			added[now.UserID]++
		}
		switch {
		case !has && t.had:
			events = append(events, t.gone(p))
		case !has && t.first <= paged:
			events = append(events, t.last)
		case has && t.had && t.before.UserID != now.UserID && t.left != nil:
			events = append(events, *t.left)
		}
		if has && (t.joined || !bytes.Equal(t.before.State, now.State)) {
			events = append(events, t.latest(p, now))
		}
	}
	slices.SortFunc(events, byRevision)
	w.count(events, p, added)
	return events
}

// gone is the leave of what was there before.
func (t *touched) gone(p *replica) Event {
	if t.left != nil {
		return *t.left
	}
	e := p.event(EventLeave, t.before, t.last.TS) // a reading showed another user in between
	e.Rev = t.last.Rev
	return e
}

// latest is the event that brings a fold up to what the connection is now.
func (t *touched) latest(p *replica, now Entry) Event {
	kind := EventUpdate
	if t.joined {
		kind = EventJoin
	}
	e := p.event(kind, now, t.last.TS)
	e.Rev = t.last.Rev
	return e
}

// count sets userConns of each event.
func (w *window) count(events []Event, p *replica, added map[string]int) {
	conns := map[string]int{}
	for _, e := range events {
		conns[e.UserID] = p.users[e.UserID] - added[e.UserID]
	}
	for i := range events {
		e := &events[i]
		t := w.touched[e.ConnID]
		switch {
		case e.Type == EventLeave && t.had:
			conns[e.UserID]--
		case e.Type == EventJoin && !t.had:
			conns[e.UserID]++
		case e.Type == EventJoin && t.before.UserID != e.UserID:
			conns[e.UserID]++
			if t.left == nil { // a reading showed the new user only
				conns[t.before.UserID]--
			}
		}
		e.UserConns = conns[e.UserID]
	}
}

// byRevision orders events; of one revision, which a room has that was read anew, leaves are last.
func byRevision(a, b Event) int {
	rank := func(e Event) int {
		if e.Type == EventLeave {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Rev, b.Rev), cmp.Compare(rank(a), rank(b)), cmp.Compare(a.ConnID, b.ConnID))
}
