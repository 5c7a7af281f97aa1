package main

import "time"

// role is why a receiver is told of a room. It may have several at once.
type role uint8

const (
	asMember  role = iota // it is in the room
	asWatcher             // it only looks
	roles
)

// subscription is a receiver's place among the listeners: for each role the mode that it chose, plus one; 0 = not in that role.
type subscription struct {
	chosen [roles]eventMode
	at     int   // in the list of its mode
	span   int64 // of the window in which it began, if it gets batches or each event
}

// mode is the one of its roles that tells most.
func (s subscription) mode() eventMode { return max(s.chosen[asMember], s.chosen[asWatcher]) - 1 }

func (s subscription) empty() bool { return s.chosen == [roles]eventMode{} }

// listeners are the local sockets that are told of one room, each once and in its mode. The room's lock guards it.
//
// Collected events come in windows: the first change after a quiet time is told at once, what follows within the time of
// a window goes out together at its end, in one frame for all who waited from its beginning. So a window costs what changed
// in it and one write for each socket, however many events there were. Who begins within a window gets a frame of what
// changed since then; the window of the others does not end sooner for that.
type listeners struct {
	room          *room
	subscriptions map[receiver]subscription
	members       int // subscriptions of members
	lists         [modeAll + 1][]receiver
	withoutEvents map[string]receiver // members that hear of no single member, by connection id: only of their own removal
	window        window
	batch         pace
	rate          pace   // of updates to those who get each event
	collected     window // updates that wait for that
	count         pace
	told          tally              // the last count that went out
	others        map[receiver]tally // receivers of counts that were told another one last
}

// pace keeps the time between two batches, or two counts.
type pace struct {
	next  time.Time // nothing goes out before
	armed bool      // a timer will settle the room
}

// tally is how many are in a room.
type tally struct{ count, users int }

// unknown is no tally of any room.
var unknown = tally{-1, -1}

// admit has a receiver begin in a role, or anew in it: it has been told the room as it is now.
func (l *listeners) admit(to receiver, as role, mode eventMode) {
	s, here := l.subscriptions[to]
	if here {
		l.unlist(to, s)
	}
	if l.subscriptions == nil {
		l.subscriptions = map[receiver]subscription{}
	}
	if as == asMember && s.chosen[as] == 0 {
		l.countMember(1)
	}
	s.chosen[as] = mode + 1
	l.list(to, s, l.room.replica.tally())
	l.forget()
}

// dismiss ends a role of a receiver. Its other role goes on, and what waits for it there is not lost.
func (l *listeners) dismiss(to receiver, as role) {
	s, here := l.subscriptions[to]
	if !here || s.chosen[as] == 0 {
		return
	}
	if as == asMember {
		l.countMember(-1)
	}
	rest := s
	rest.chosen[as] = 0
	switch {
	case rest.empty():
		l.unlist(to, s)
		delete(l.subscriptions, to)
	case rest.mode() == s.mode():
		l.subscriptions[to] = rest
		l.hush(to, rest)
	default:
		l.catchUp(to)
		s = l.subscriptions[to]
		told := l.knownTo(s)
		l.unlist(to, s)
		l.list(to, rest, told)
	}
	l.forget()
}

// countMember counts members of the room, and those of the hub.
func (l *listeners) countMember(n int) {
	h, was := l.room.hub, min(l.members, 1)
	l.members += n
	h.seated.Add(int64(n))
	h.occupied.Add(int64(min(l.members, 1) - was))
}

// forget empties the window when nobody is left who waits for it.
func (l *listeners) forget() {
	if len(l.lists[modeBatch]) == 0 {
		l.window.stop()
	}
}

// list enters a receiver into the list of its mode. It was told last that the room is of that size.
func (l *listeners) list(to receiver, s subscription, told tally) {
	mode := s.mode()
	s.at = len(l.lists[mode])
	l.lists[mode] = append(l.lists[mode], to)
	switch mode {
	case modeAll:
		if s.span = l.collected.last; !l.collected.empty() {
			s.span = l.collected.begin(tally{})
		}
	case modeBatch:
		s.span = l.window.begin(l.room.replica.tally())
	case modeCount:
		l.know(to, told)
		if told != l.room.replica.tally() {
			l.arm(&l.count, time.Until(l.count.next))
		}
	}
	l.subscriptions[to] = s
	l.hush(to, s)
}

// hush notes whether a receiver is a member that hears of no single member.
func (l *listeners) hush(to receiver, s subscription) {
	if s.mode() >= modeBatch || s.chosen[asMember] == 0 {
		delete(l.withoutEvents, to.ID())
		return
	}
	if l.withoutEvents == nil {
		l.withoutEvents = map[string]receiver{}
	}
	l.withoutEvents[to.ID()] = to
}

func (l *listeners) unlist(to receiver, s subscription) {
	list := l.lists[s.mode()]
	last := list[len(list)-1]
	moved := l.subscriptions[last]
	moved.at = s.at
	l.subscriptions[last], list[s.at], list[len(list)-1] = moved, last, nil
	l.lists[s.mode()] = list[:len(list)-1]
	switch s.mode() {
	case modeAll:
		if !l.collected.empty() {
			l.collected.end(s.span)
		}
	case modeBatch:
		l.window.end(s.span)
	case modeCount:
		delete(l.others, to)
	}
	delete(l.withoutEvents, to.ID())
}

// again has a receiver of batches, or of each event, begin anew: it has been told everything.
func (l *listeners) again(to receiver) {
	s := l.subscriptions[to]
	l.unlist(to, s)
	l.list(to, s, tally{})
}

// knownTo is the size of the room as a receiver was told it last.
func (l *listeners) knownTo(s subscription) tally {
	if s.mode() == modeBatch {
		if t, sure := l.window.known(s.span); sure {
			return t
		}
	}
	return unknown // who gets events of a room that it has not read whole may not have counted
}

// know notes which count a receiver of counts was told last.
func (l *listeners) know(to receiver, t tally) {
	switch {
	case len(l.lists[modeCount]) == 1:
		l.told, l.others = t, nil
	case t == l.told:
		delete(l.others, to)
	case l.others == nil:
		l.others = map[receiver]tally{to: t}
	default:
		l.others[to] = t
	}
}

// paged is told that somebody is given a page of the room as it is now.
func (l *listeners) paged(by receiver) {
	s, here := l.subscriptions[by]
	switch {
	case !here:
	case s.mode() == modeBatch:
		l.window.page()
	case s.mode() == modeCount:
		l.know(by, l.room.replica.tally())
	}
}

// collect adds the receivers that are in the room to a set.
func (l *listeners) collect(set map[receiver]bool) {
	for to, s := range l.subscriptions {
		if s.chosen[asMember] != 0 {
			set[to] = true
		}
	}
}

// cast queues a frame that no later one takes the place of.
func (l *listeners) cast(f frame, to ...receiver) {
	l.room.dispatcher.batch.cast(f, memberUpdate{}, to)
}

// tell passes a change on to those who want each, and keeps it for the others.
func (l *listeners) tell(c change) {
	l.tellEach(c)
	if len(l.lists[modeBatch]) > 0 {
		l.window.note(c)
	}
	if c.Type != EventLeave {
		return
	}
	if to := l.withoutEvents[c.ConnID]; to != nil {
		l.cast(l.room.hub.encode.event(c.Event), to)
	}
	if c.final {
		l.tellRemoved(c.Event)
	}
}

// member is the local receiver of a connection that is in the room, nil if there is none.
func (l *listeners) member(conn string) receiver {
	if m := l.room.owned[conn]; m != nil && l.subscriptions[m.to].chosen[asMember] != 0 {
		return m.to
	}
	for to, s := range l.subscriptions {
		if to.ID() == conn && s.chosen[asMember] != 0 {
			return to
		}
	}
	return nil
}

// hasten tells a member that gets batches what waits for it, because the next change ends its membership. It is called
// before that change.
func (l *listeners) hasten(conn string) {
	to := l.member(conn)
	if s := l.subscriptions[to]; to != nil && s.mode() == modeBatch {
		l.castBatch(l.window.since(s.span), []receiver{to})
		l.again(to)
	}
}

// tellRemoved ends the membership of a local socket that was removed for good, whatever its connection knows as yet. One that gets batches
// would not get this one, and is told now.
func (l *listeners) tellRemoved(e Event) {
	to := l.member(e.ConnID)
	if to == nil {
		return
	}
	before := l.subscriptions[to]
	batch := before.mode() == modeBatch
	if batch {
		l.tellRemovedInBatches(e, to, before.span)
	}
	l.dismiss(to, asMember)
	if s := l.subscriptions[to]; batch && !s.empty() && s.mode() == modeBatch {
		l.again(to)
	}
}

// inBatches tells whether a member of this node is told of the room in batches.
func (l *listeners) inBatches(conn string) bool {
	to := l.member(conn)
	return to != nil && l.subscriptions[to].mode() == modeBatch
}

// tellRemovedInBatches tells it by an event, or with what a reading has found besides.
func (l *listeners) tellRemovedInBatches(e Event, to receiver, span int64) {
	if untold := l.window.since(span); len(untold) > 1 {
		l.castBatch(untold, []receiver{to})
		return
	}
	l.cast(l.room.hub.encode.event(e), to)
}

// settle sends what is due, and has the rest sent in time.
func (l *listeners) settle() {
	now := time.Now()
	if !l.window.empty() && l.due(&l.batch, now) {
		l.sendBatch(now)
	}
	if !l.collected.empty() && l.due(&l.rate, now) {
		l.tellCollected()
	}
	t := l.room.replica.tally()
	if len(l.lists[modeCount]) > 0 && (t != l.told || len(l.others) > 0) && l.due(&l.count, now) {
		l.sendCount(now, t)
	}
}

// sendBatch ends the window.
func (l *listeners) sendBatch(now time.Time) {
	l.bySpan(&l.window, l.lists[modeBatch], func(all changes, to []receiver) {
		if l.castBatch(all, to) {
			l.batch.next = now.Add(l.room.hub.batchEvery)
		}
	})
	l.window.restart(l.room.replica.tally())
}

// bySpan tells receivers what changed since the span of the window in which they began. The window must end then.
func (l *listeners) bySpan(w *window, list []receiver, tell func(changes, []receiver)) {
	lists := [][]receiver{list}
	if len(w.spans) > 1 {
		lists = make([][]receiver, len(w.spans))
		for _, to := range list {
			i := w.find(l.subscriptions[to].span)
			lists[i] = append(lists[i], to)
		}
	}
	var all changes
	for i := len(lists) - 1; i >= 0; i-- {
		touched := w.spans[i].touched
		if all != nil {
			touched.add(all)
		}
		all = touched
		if len(lists[i]) > 0 {
			tell(all, lists[i])
		}
	}
}

// castBatch sends the net effect of changes, if there is one, as one frame.
func (l *listeners) castBatch(all changes, to []receiver) (sent bool) {
	h, p := l.room.hub, &l.room.replica
	events := all.net(p)
	if len(events) > 0 {
		l.cast(h.encode.batch(Batch{RoomID: p.room, Rev: p.rev, Count: p.entries.len(), Users: len(p.users), Events: events}), to...)
	}
	return len(events) > 0
}

// sendCount tells a count to all who were told another one last.
func (l *listeners) sendCount(now time.Time, t tally) {
	h, p := l.room.hub, &l.room.replica
	to := l.lists[modeCount]
	if len(l.others) > 0 {
		to = nil
		for _, r := range l.lists[modeCount] {
			told, other := l.others[r]
			if other && told != t || !other && l.told != t {
				to = append(to, r)
			}
		}
	}
	if len(to) > 0 {
		l.count.next = now.Add(h.countEvery)
		l.cast(h.encode.count(Batch{RoomID: p.room, Rev: p.rev, Count: t.count, Users: t.users}), to...)
	}
	l.told, l.others = t, nil
}

// due tells whether a time has come. If not, the room is settled then.
func (l *listeners) due(p *pace, now time.Time) bool {
	wait := p.next.Sub(now)
	if wait > 0 {
		l.arm(p, wait)
	}
	return wait <= 0
}

// arm has the room settled after a while, unless a timer is set already.
func (l *listeners) arm(p *pace, wait time.Duration) {
	if !p.armed {
		p.armed = true
		l.room.hub.later(wait, func() { l.room.try(func() { l.room.windowOver(p) }) })
	}
}
