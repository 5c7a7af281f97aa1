package main

import (
	"context"
	"errors"
	"time"
)

const (
	// A join that waits so long for its own event reads the room instead.
	joinPatience = 100 * time.Millisecond

	// A replica that differs for so long from a revision that Redis returned is read anew.
	replicaPatience = time.Second

	// A read of a room that takes so long is given up and repeated. A room of 100,000 takes half a second.
	readPatience = 10 * time.Second

	// Pause while a read waits for the messages of what changed meanwhile.
	followPause = 5 * time.Millisecond

	// Rooms that are read at the same time: after an outage all of them want to be.
	roomReaders = 64

	// A room without local members is given up after this time.
	roomLinger = time.Second

	// One that is still being read is kept for so long, because who gave up waiting for it will ask again.
	loadLinger = 30 * time.Second

	// Messages kept while a room is read. When more come, the room is read once more instead.
	maxPending = 10_000
)

// waiter is a receiver that waits for the replica to reach a revision.
type waiter struct {
	rev      int64
	to       receiver // nil = nobody, who waits has what it wants with the answer
	as       role
	mode     eventMode
	after    string                 // the page that it wants begins behind this connection
	limit    int                    // and has so many members; 0 = all
	glances  bool                   // it is given a page only
	epoch    int64                  // it is answered only if the room has its receiver with this epoch or a later one, or it was kicked; 0 = in any case
	missing  bool                   // once it is answered: the room does not have its receiver, which is told nothing
	answer   func(*view) frameParts // what it is sent before the events; it is called by admit, and may take its time
	answered chan struct{}
	view     *view                  // once it is answered
	release  func(first frameParts) // of the receiver
}

// errMissing is why a join is not answered: the replica has reached its revision, and does not have the member.
var errMissing = errors.New("the room does not have the member that joined")

// newWaiter is for a receiver that joins or watches: answer is given the room as it is when it begins.
func newWaiter(rev int64, to receiver, as role, mode eventMode, answer func(*view) frameParts) *waiter {
	return &waiter{rev: rev, to: to, as: as, mode: mode, answer: answer, answered: make(chan struct{})}
}

// newGlance is for who is given a page, and hears nothing more.
func newGlance(rev int64, after string, limit int, by receiver, answer func(page) frameParts) *waiter {
	w := newWaiter(rev, by, asMember, modeNone, func(v *view) frameParts { return answer(v.page(after, limit)) })
	w.after, w.limit, w.glances = after, limit, true
	return w
}

// show gives the waiter the room. What its receiver is sent from now on waits for finish.
func (w *waiter) show(v *view) {
	w.view = v
	if w.to != nil && w.release == nil { // it is shown the room again after a panic
		w.release = w.to.hold()
	}
}

// finish sends the receiver what it waited for, and what was held back behind that.
func (w *waiter) finish() {
	var first frameParts
	if w.release != nil {
		defer func() { w.release(first) }()
	}
	first = w.answer(w.view)
}

// abandon ends the hold of a receiver that was shown the room, but not answered because of a panic.
func (w *waiter) abandon() {
	if w.release != nil {
		w.release(nil)
	}
}

// admit waits until the replica has reached the waiter's revision. Then, in one step, it takes a view of the room and makes the
// receiver one of the room's, whose events wait behind the answer that is made of the view (G2: the acknowledgement precedes the
// events, and none between them is missing). It is made by the goroutine that called admit, so that nobody else waits for it.
func (r *room) admit(ctx context.Context, w *waiter) error {
	if _, err := r.ready(ctx); err != nil {
		return err
	}
	if err := r.freshen(ctx, w); err != nil {
		return err
	}
	r.enqueue(w)
	impatient := r.after(joinPatience, r.hurry)
	defer impatient.Stop()
	return r.await(ctx, w)
}

// await waits until the waiter is shown the room, and sends its receiver the answer. The error is that of a waiter that gave up.
func (r *room) await(ctx context.Context, w *waiter) error {
	select {
	case <-w.answered:
	case <-ctx.Done():
		if err := r.giveUp(w, ctx.Err()); err != nil {
			w.abandon()
			return err
		}
	}
	if w.missing {
		return errMissing
	}
	w.finish()
	return nil
}

// enqueue has a waiter answered as soon as its revision is there.
func (r *room) enqueue(w *waiter) {
	queued := false
	defer func() {
		if !queued { // a panic: nobody waits any more
			_ = r.giveUp(w, nil)
		}
	}()
	defer r.dispatcher.batch.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiters = append(r.waiters, w)
	if time.Since(r.readAt) > r.hub.freshFor && !r.inPages(w) {
		r.look()
	}
	if !r.touched {
		r.welcome()
	}
	queued = true
}

// inPages tells whether the waiter wants a part of a room that is too large to be read for it. r.mu is held.
func (r *room) inPages(w *waiter) bool { return w.limit > 0 && r.replica.entries.len() > readBatch }

// freshen asks when the members on the page that the waiter wants were last heard of, if the room is not read for that.
func (r *room) freshen(ctx context.Context, w *waiter) error {
	r.mu.Lock()
	now := time.Now()
	first := w.after == ""
	stale := r.inPages(w) && now.Sub(r.readAt) > r.hub.freshFor && !(first && w.limit <= r.freshFirst && now.Sub(r.freshAt) <= r.hub.freshFor)
	var conns []string
	if stale {
		conns = r.replica.ids(w.after, w.limit)
	}
	r.mu.Unlock()
	if !stale {
		return nil
	}
	times, err := r.hub.source.lastSeen(ctx, r.id, conns)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, conn := range conns {
		r.replica.heard(conn, times[i])
	}
	if first {
		r.freshFirst, r.freshAt = w.limit, now
	}
	return nil
}

// hurry reads the room if somebody still waits for it. A read that is under way may have looked before the join.
func (r *room) hurry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.waiters {
		if w.rev > r.replica.rev {
			r.reread()
			return
		}
	}
}

// reach waits until the replica has reached rev, and all events up to there are told.
func (r *room) reach(ctx context.Context, rev int64) error {
	return r.admit(ctx, newWaiter(rev, nil, asMember, modeNone, func(*view) frameParts { return nil }))
}

// giveUp takes back a waiter, unless it was answered in the meantime.
func (r *room) giveUp(w *waiter, cause error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, other := range r.waiters {
		if other == w {
			r.waiters = append(r.waiters[:i], r.waiters[i+1:]...)
			return unavailable(cause)
		}
	}
	return nil
}

// welcome answers the waiters whose revision the replica has reached, after the read that is under way. r.mu is held.
func (r *room) welcome() {
	if !r.reading {
		r.answer()
	}
}

// knowsKick tells whether a member of this node was kicked with this epoch or a later one. r.mu is held.
func (r *room) knowsKick(conn string, epoch int64) bool {
	m := r.owned[conn]
	return m != nil && m.kicked.Load() >= epoch
}

func (r *room) answer() {
	var rest, open []*waiter
	rest = r.waiters[:0]
	defer func() { // after a panic some are open: they go on waiting, also the one whose answer panicked
		all := r.waiters
		r.waiters = append(rest, open...)
		clear(all[len(r.waiters):])
	}()
	for i, w := range r.waiters {
		open = r.waiters[i:]
		if w.rev > r.replica.rev {
			rest = append(rest, w)
			continue
		}
		if w.epoch != 0 && !r.replica.has(w.to.ID(), w.epoch) && !r.knowsKick(w.to.ID(), w.epoch) {
			w.missing = true
			close(w.answered)
			continue
		}
		r.listeners.catchUp(w.to)
		w.show(r.current())
		switch {
		case w.glances:
			r.listeners.paged(w.to)
		case w.to != nil:
			r.listeners.admit(w.to, w.as, w.mode)
		}
		close(w.answered)
	}
	open = nil
}
