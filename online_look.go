package main

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// lookState is whether a user waits for a look.
type lookState uint8

const (
	lookIdle   lookState = iota
	lookQueued           // behind those of lookUrgent
	lookUrgent           // queued; a request waits for the user, or there is news of it
	lookBusy             // a worker looks
)

// lookAtNew asks with few calls who of the users that are not known has an index: the others are in no room. It does not wait
// for the subscription, which has each user looked at again. After an error that look tells.
func (o *userWatchers) lookAtNew(ctx context.Context, list []*watchedUser) {
	for some := range slices.Chunk(o.unknown(list), onlineTogether) {
		ids := make([]string, len(some))
		for i, w := range some {
			ids[i] = w.id
		}
		there, err := o.service.indexed(ctx, ids)
		if err != nil {
			return
		}
		o.mu.Lock() // once for all: others want it for each user
		for i, w := range some {
			if there[i].there {
				o.lookAt(w, causeDoubt)
			} else {
				o.takeOver(w, false, places{lastSeen: there[i].lastSeen}, causeDoubt, 0)
			}
		}
		o.mu.Unlock()
	}
}

// pulse asks for some users whether Redis still has their indices. Of who leaves it hears by a message in any case, but not
// of who is lost.
func (o *userWatchers) pulse() {
	var users []string
	o.mu.Lock()
	for id, w := range o.users { // which begins anywhere
		if len(users) < onlinePulseUsers && w.online && w.causes == 0 {
			users = append(users, id)
		}
	}
	o.mu.Unlock()
	if len(users) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(o.ctx, onlinePulse)
	defer cancel()
	there, err := o.service.indexed(ctx, users)
	if err != nil {
		return
	}
	o.mu.Lock()
	missing := 0
	for i, id := range users {
		if w := o.users[id]; w != nil && w.online && w.causes == 0 && !there[i].there {
			missing++
		}
	}
	o.mu.Unlock()
	if missing > 0 {
		o.log.Info("indices of watched users are missing", "users", missing)
		o.onDataLoss()
	}
}

// audit looks at the next users of the round, so many that it takes a lookback.
func (o *userWatchers) audit() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.owing += len(o.round); o.owing >= onlineSteps && len(o.round) > 0; {
		if o.at >= len(o.round) {
			o.at = 0
		}
		w := o.round[o.at]
		if o.users[w.id] != w { // given up: the last one takes the place
			last := len(o.round) - 1
			o.round[o.at], o.round[last] = o.round[last], nil
			o.round = o.round[:last]
			continue
		}
		o.lookAt(w, causeDoubt)
		o.at++
		o.owing -= onlineSteps
	}
}

func (o *userWatchers) lookAtAll(why cause) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.users {
		o.lookAt(w, why)
	}
}

// look has a user looked at, or once more if that is under way.
func (o *userWatchers) look(user string, why cause) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.users[user]; w != nil {
		o.lookAt(w, why)
	}
}

// lookAt is look. o.mu is held.
func (o *userWatchers) lookAt(w *watchedUser, why cause) {
	w.causes |= why
	w.fresh = true
	w.since, w.wait = time.Time{}, onlinePause
	w.stop()
	o.enqueue(w)
}

// enqueue has one of a few workers look at the user. o.mu is held.
func (o *userWatchers) enqueue(w *watchedUser) {
	at := lookQueued
	if !w.settled || w.causes&(causeComing|causeGone) != 0 {
		at = lookUrgent
	}
	if w.state >= at || o.ctx.Err() != nil {
		return
	}
	w.state = at // where it was before, it is passed over
	o.queues[at] = append(o.queues[at], w)
	most := onlineWorkers
	if at == lookQueued { // nobody waits: leave Redis and the processor to who does
		most /= 8
	}
	if o.workers < most {
		o.workers++
		o.work.Go(o.lookLoop)
	}
}

// lookLoop looks at the users in the queue until there is none.
func (o *userWatchers) lookLoop() {
	for {
		w, why, began := o.nextLook()
		if w == nil {
			return
		}
		clear := false
		panics(o.log, "watched users", func() {
			online, p, err := o.check(w.id)
			if err != nil {
				o.log.Debug("a watched user cannot be looked at", "error", err)
			}
			clear = err == nil && o.conclude(w, online, p, why, time.Since(began))
		})
		o.looked(w, clear)
	}
}

// nextLook takes a user from the queues, why it is looked at, and since when; nil if there is none.
func (o *userWatchers) nextLook() (w *watchedUser, why cause, began time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w = o.takeNext(); w == nil || o.ctx.Err() != nil {
		o.workers--
		return nil, 0, began
	}
	if w.since.IsZero() {
		w.since = time.Now()
	}
	w.state, w.fresh = lookBusy, false
	return w, w.causes, w.since
}

// takeNext passes over users whom nobody watches any more. o.mu is held.
func (o *userWatchers) takeNext() *watchedUser {
	for at := lookUrgent; at > lookIdle; at-- {
		for len(o.queues[at]) > 0 {
			w := o.queues[at][0]
			o.queues[at][0] = nil
			o.queues[at] = o.queues[at][1:]
			if o.users[w.id] == w && w.state == at {
				return w
			}
		}
		o.queues[at] = nil
	}
	return nil
}

// looked is told after each look whether it is clear now whether the user is online. If not, or if something new came in
// between, there will be another one.
func (o *userWatchers) looked(w *watchedUser, clear bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.state = lookIdle
	switch {
	case o.users[w.id] != w || o.ctx.Err() != nil:
	case w.fresh:
		o.enqueue(w)
	case clear:
		w.causes = 0
	default:
		w.next = time.AfterFunc(w.wait, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.enqueue(w)
		})
		w.wait = min(2*w.wait, onlineMaxPause)
	}
}

func (o *userWatchers) check(user string) (online bool, p places, err error) {
	ctx, cancel := context.WithTimeout(o.ctx, answerWithin)
	defer cancel()
	if p, err = o.service.places(ctx, user); err != nil {
		return false, p, err
	}
	online, err = o.service.online(ctx, user, p)
	return online, p, err
}

// conclude takes over what a look found, and tells of a change. It is false when a later look has to confirm it.
func (o *userWatchers) conclude(w *watchedUser, online bool, p places, why cause, missing time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeOver(w, online, p, why, missing)
}

// takeOver is conclude. o.mu is held.
func (o *userWatchers) takeOver(w *watchedUser, online bool, p places, why cause, missing time.Duration) bool {
	if isAnother(p.server, w.server) {
		w.lostAt = time.Now()
	}
	w.server = cmp.Or(p.server, w.server)
	if online {
		w.onlineAt = p.ts
	}
	switch {
	case o.users[w.id] != w:
		return true
	case !online && w.online && (missing < why.hold() || o.healing(w)):
		return false
	case !online && !w.settled && missing < noteWithin && o.service.mayNote(p):
		return false
	}
	if !online && o.service.options.LastSeen > 0 {
		w.noteSeen(p, missing)
	}
	if online != w.online && w.settled {
		o.notifyWatchers(w, online, p.ts)
	}
	w.online = online
	if !w.settled {
		w.settled = true
		close(w.known)
	}
	return online || why&causeComing == 0 || missing >= onlineComing
}

// noteSeen takes over when the last connection of a user who is offline went. Where Redis does not know of that leave, as after
// a loss of data, it is when the user was first missing.
func (w *watchedUser) noteSeen(p places, missing time.Duration) {
	seen := p.lastSeen
	if w.online && seen < w.onlineAt {
		seen = p.ts - missing.Milliseconds()
	}
	if seen > w.lastSeen {
		w.lastSeen, w.seenAt = seen, time.Now()
	}
}

// healing tells whether the user may be about to be put back. o.mu is held.
func (o *userWatchers) healing(w *watchedUser) bool {
	return time.Since(w.lostAt) < lossPatience || o.hub.missedLately()
}
