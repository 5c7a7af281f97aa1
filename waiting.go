package main

import (
	"container/list"
	"slices"
	"strings"
)

// memberUpdate tells whose update a frame is. Of one incarnation of a member a later update makes an earlier one needless: each
// has the whole state. The zero value is for every frame that must not be skipped.
type memberUpdate struct {
	room, conn string
	epoch      int64
}

// waitingFrames are the frames that wait for one client, in order. The zero value has none.
type waitingFrames struct {
	list    list.List
	updates map[memberUpdate]*list.Element // those that may be skipped
}

type waitingFrame struct {
	parts frameParts
	of    memberUpdate
}

func (w *waitingFrames) len() int { return w.list.Len() }

// add adds a frame at the end. An update of the same incarnation must have been skipped before.
func (w *waitingFrames) add(f frameParts, of memberUpdate) {
	of.conn = strings.Clone(of.conn) // part of a message
	at := w.list.PushBack(waitingFrame{slices.Clone(f), of})
	if of == (memberUpdate{}) {
		return
	}
	if w.updates == nil {
		w.updates = map[memberUpdate]*list.Element{}
	}
	w.updates[of] = at
}

// pin has all frames that wait stay.
func (w *waitingFrames) pin() { w.updates = nil }

// skip removes the update that waits of an incarnation, if there is one.
func (w *waitingFrames) skip(of memberUpdate) (f frameParts, found bool) {
	at, found := w.updates[of]
	if !found {
		return nil, false
	}
	return w.remove(at), true
}

// next removes the first frame. There must be one.
func (w *waitingFrames) next() frameParts { return w.remove(w.list.Front()) }

func (w *waitingFrames) remove(at *list.Element) frameParts {
	f := w.list.Remove(at).(waitingFrame)
	if w.updates[f.of] == at {
		delete(w.updates, f.of)
	}
	return f.parts
}

// takeAll removes all frames.
func (w *waitingFrames) takeAll() (all []frameParts) {
	for w.len() > 0 {
		all = append(all, w.next())
	}
	return all
}
