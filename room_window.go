package main

import (
	"bytes"
	"cmp"
	"slices"
)

// window is what changed in a room since its last batch. It consists of spans: one begins with the window, another each
// time that a receiver begins after a change. A receiver is told the net effect of all changes since its span began, so
// that nothing of its snapshot is told again, and nothing after it is missing.
//
// The zero value has no span: nobody gets batches.
type window struct {
	spans   []span
	last    int64 // number of the last span
	changes int64 // so far
	paged   int64 // number of the change before the last page that a receiver of batches has read; 0 = none in this window
}

// span is what changed from the beginning of a receiver to that of the next one.
type span struct {
	number  int64 // of spans of one window, a later one has a higher number
	starts  int   // receivers that began with it; not counted of the first span
	before  tally // of the room at its beginning
	touched changes
}

func (w *window) empty() bool { return len(w.spans) == 0 || len(w.spans[0].touched) == 0 }

// begin gives the number of the span of a receiver that begins now, in a room of that size.
func (w *window) begin(now tally) (number int64) {
	if len(w.spans) == 0 {
		w.restart(now)
	}
	if len(w.spans[len(w.spans)-1].touched) > 0 {
		w.last++
		w.spans = append(w.spans, span{number: w.last, before: now})
	}
	newest := &w.spans[len(w.spans)-1]
	newest.starts++
	return newest.number
}

// restart begins an empty window. All receivers are in its first span.
func (w *window) restart(now tally) {
	w.last++
	clear(w.spans)
	w.spans = append(w.spans[:0], span{number: w.last, before: now})
	w.paged = 0
}

// stop forgets everything: nobody gets batches any more.
func (w *window) stop() { w.spans, w.paged = nil, 0 }

// find is the index of a receiver's span. One that began before the window is in the first.
func (w *window) find(number int64) int {
	at, _ := slices.BinarySearchFunc(w.spans, number, func(s span, n int64) int { return cmp.Compare(s.number, n) })
	return at
}

// end is told that a receiver does not wait for its span any more. A span that nobody waits for goes into the one before.
func (w *window) end(number int64) {
	at := w.find(number)
	if w.spans[at].starts--; at > 0 && w.spans[at].starts == 0 {
		w.spans[at-1].touched.add(w.spans[at].touched)
		w.spans = slices.Delete(w.spans, at, at+1)
	}
}

// known is the size of the room that a receiver was told last. After it has read a page in the window that is not known.
func (w *window) known(number int64) (t tally, sure bool) {
	return w.spans[w.find(number)].before, w.paged == 0
}

// page is told that a receiver of batches has read a page.
func (w *window) page() { w.paged = w.changes }

// note takes a change.
func (w *window) note(c change) {
	w.changes++
	newest := &w.spans[len(w.spans)-1]
	if newest.touched == nil {
		newest.touched = changes{}
	}
	newest.touched.note(c, w.changes, w.paged)
}

// since is what changed from a receiver's beginning on.
func (w *window) since(number int64) changes {
	all := changes{}
	for _, s := range w.spans[w.find(number):] {
		all.add(s.touched)
	}
	return all
}

// changes are connections that changed, by id.
type changes map[string]*touched

// touched is a connection before its first change, and what came then.
type touched struct {
	before Entry
	had    bool
	first  int64  // number of the first change
	latest Event  // the last change
	paged  int64  // number of the change before the last page that was read before the last change
	joined bool   // one of the changes was a join
	left   *Event // the last leave of the user who was there before
}

// note takes a change and its number. The last page was read after the change number paged.
func (all changes) note(c change, number, paged int64) {
	t := all[c.ConnID]
	if t == nil {
		t = &touched{before: c.before, had: c.had, first: number}
		all[c.ConnID] = t
	}
	t.latest, t.paged = c.Event, paged
	t.joined = t.joined || c.Type == EventJoin
	if c.Type == EventLeave && t.had && c.UserID == t.before.UserID {
		t.left = &c.Event
	}
}

// add adds changes that came after these. They are copied.
func (all changes) add(later changes) {
	for conn, l := range later {
		t := all[conn]
		if t == nil {
			copied := *l
			all[conn] = &copied
			continue
		}
		t.latest, t.paged = l.latest, l.paged
		t.joined = t.joined || l.joined
		if l.left != nil && t.had && l.left.UserID == t.before.UserID {
			t.left = l.left
		}
	}
}

// net gives the effect of the changes as events: at most one of each connection, or a leave and a join where the user is
// another one. A connection that is as it was before is not mentioned, unless a page may show it as it was in between. userConns is counted as if the events came one by one.
func (all changes) net(p *replica) []Event {
	var events []Event
	added := map[string]int{} // to each user's connections
	for conn, t := range all {
		now, has := p.entries.get(conn)
		if t.had {
			added[t.before.UserID]--
		}
		if has {
			added[now.UserID]++
		}
		shown := t.paged >= t.first // on a page, as it was between two changes
		switch {
		case !has && (t.had || shown):
			events = append(events, t.gone())
		case has && t.had && t.before.UserID != now.UserID && t.left != nil:
			events = append(events, *t.left)
		}
		if has && (t.joined || shown || !bytes.Equal(t.before.State, now.State)) {
			events = append(events, t.now(p, now))
		}
	}
	slices.SortFunc(events, byRevision)
	all.count(events, p, added)
	return events
}

// gone is the last change, a leave, as one of the user who was there before. Its revision is above that of any page that
// shows the connection.
func (t *touched) gone() Event {
	e := t.latest
	if t.had && t.before.UserID != e.UserID {
		e.UserID, e.DeviceID, e.Reason = t.before.UserID, t.before.DeviceID, ""
		if t.left != nil {
			e.Reason = t.left.Reason
		}
	}
	return e
}

// now is the event that brings a fold up to what the connection is.
func (t *touched) now(p *replica, now Entry) Event {
	kind := EventUpdate
	if t.joined {
		kind = EventJoin
	}
	e := p.event(kind, now, t.latest.TS)
	e.Rev = t.latest.Rev
	return e
}

// count sets userConns of each event.
func (all changes) count(events []Event, p *replica, added map[string]int) {
	conns := map[string]int{}
	for _, e := range events {
		conns[e.UserID] = p.users[e.UserID] - added[e.UserID]
	}
	for i := range events {
		e := &events[i]
		t := all[e.ConnID]
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
