package main

import (
	"maps"
	"slices"
	"time"
)

// Who wants each event of a room gets its updates within a limit: so many bytes per second for all of them on this node, and those
// of one second at once. Beyond it updates are collected in a window, of each member the latest, and told in the order of their
// revisions as soon as the limit allows. Nothing else waits: joins and leaves are told at once, behind the updates that were
// collected before them. Who is given a page is told before it what was collected for it.

// tellEach tells a change to those who want each, or collects it.
func (l *listeners) tellEach(c change) {
	to := l.lists[modeAll]
	switch {
	case len(to) == 0:
	case l.room.hub.roomBytes == 0:
		l.castEvent(c.Event, to)
	case c.Type != EventUpdate:
		l.atOnce(func() {
			l.tellCollected()
			l.castEvent(c.Event, to)
		})
	case l.collected.empty() && !time.Now().Before(l.rate.next):
		l.castEvent(c.Event, to)
	default:
		if l.collected.empty() {
			l.collected.restart(tally{})
		}
		l.collected.note(c)
	}
}

// tellCollected tells all updates that were collected, to each receiver those since it began.
func (l *listeners) tellCollected() {
	if l.collected.empty() {
		return
	}
	l.bySpan(&l.collected, l.lists[modeAll], l.castUpdates)
	l.collected.stop()
}

// catchUp tells a receiver what was collected for it, because it is going to be told the room as it is now.
func (l *listeners) catchUp(to receiver) {
	s, here := l.subscriptions[to]
	if !here || s.mode() != modeAll || l.collected.empty() {
		return
	}
	l.atOnce(func() { l.castUpdates(l.collected.since(s.span), []receiver{to}) })
	l.again(to)
}

func (l *listeners) castUpdates(all changes, to []receiver) {
	latest := make([]Event, 0, len(all))
	for t := range maps.Values(all) {
		latest = append(latest, t.latest)
	}
	slices.SortFunc(latest, byRevision)
	for _, e := range latest {
		l.castEvent(e, to)
	}
}

// castEvent sends an event, and counts it against the limit.
func (l *listeners) castEvent(e Event, to []receiver) {
	h := l.room.hub
	f := h.encode.event(e)
	var of memberUpdate
	if e.Type == EventUpdate {
		of = memberUpdate{l.room.id, e.ConnID, e.Epoch}
	}
	l.room.dispatcher.batch.cast(f, of, to)
	if h.roomBytes > 0 {
		l.spend(float64(len(f)) * float64(len(to)) / float64(h.roomBytes))
	}
}

// spend has updates wait until the limit allows what was sent. What was not sent within the last second is not made up for.
func (l *listeners) spend(seconds float64) {
	if idle := time.Now().Add(-time.Second); l.rate.next.Before(idle) {
		l.rate.next = idle
	}
	l.rate.next = l.rate.next.Add(time.Duration(seconds * float64(time.Second)))
}

// atOnce sends what must not wait. It counts against what the limit allows now, and later updates need not wait for the rest.
func (l *listeners) atOnce(send func()) {
	before := l.rate.next
	send()
	if now := time.Now(); before.Before(now) {
		before = now
	}
	l.rate.next = earlier(l.rate.next, before)
}
