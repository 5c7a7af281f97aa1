package main

import (
	"fmt"
	"slices"
	"time"
)

// device draws the device of a join, "" = none.
func (m *model) device() string {
	if m.about&aboutDevices == 0 || m.chance(30) {
		return ""
	}
	return fmt.Sprint("d", m.random.IntN(2))
}

// isTwin tells whether two members are of one user and one device.
func (f fact) isTwin(other fact) bool {
	return f.device != "" && f.device == other.device && f.user == other.user
}

// twinOf is another connection in the room with the user and the device of this one, "" if there is none.
func (f facts) twinOf(conn string) string {
	for other, member := range f {
		if other != conn && member.isTwin(f[conn]) {
			return other
		}
	}
	return ""
}

// enterReplaced notes, before a message is entered, that it is the leave of the member whose device the one before it has.
func (m *model) enterReplaced(l *ledger, e message) {
	twin := l.twin
	if l.twin = ""; twin == "" {
		return
	}
	if e.Type != EventLeave || e.ConnID != twin || e.Reason != ReasonReplaced {
		m.wrong("after another one came with the device of %s follows a %s of %s", twin, e.Type, e.ConnID)
		return
	}
	l.kicked[placeID{e.ConnID, e.Epoch}] = time.Now()
	m.culled = m.culled || !m.calm // if the message is lost
}

// enterDevice notes, after a message was entered, whom it replaces: somebody in the room, whose leave has to follow, or somebody who was lost
// or silent, and is not put back as long as the newer one is there.
func (m *model) enterDevice(l *ledger, e message) {
	own := l.facts[e.ConnID]
	l.devices[placeID{e.ConnID, e.Epoch}] = own
	delete(l.displaced, placeID{e.ConnID, e.Epoch})
	l.twin = l.facts.twinOf(e.ConnID)
	for id, other := range l.devices {
		mayComeBack := slices.Contains([]Reason{reasonLost, ReasonTimeout, ReasonNodeLost}, l.gone[id])
		if id.conn != e.ConnID && id.epoch < e.Epoch && own.isTwin(other) && mayComeBack {
			l.displaced[id], l.left[id] = true, true
		}
	}
}

// judgeTwins checks, after a call, that nobody is there twice.
func (m *model) judgeTwins(l *ledger) {
	if l.twin != "" {
		m.wrong("%s stays although another one has come with its device", l.twin)
	}
	l.twin = ""
}

// isFinal tells whether the client of an incarnation that left for this reason has to join anew.
func (l *ledger) isFinal(id placeID, reason Reason) bool {
	return reason == ReasonKicked || reason == ReasonReplaced && (!l.kicked[id].IsZero() || l.displaced[id])
}
