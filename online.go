package main

import (
	"context"
	"log/slog"
	"strconv"
	"time"
)

const (
	// A user who went is told of after so long, unless they are back by then: a page that is loaded anew makes no event.
	onlineGone = 700 * time.Millisecond

	// Who is not found although nothing told that they went may have been lost with Redis' data. Rooms notice that within
	// this time, and members are put back within lossPatience.
	onlineDoubt = 1500 * time.Millisecond

	// How often it is asked whether users who are online still have an index, and for how many at most: others each time.
	onlinePulse      = time.Second
	onlinePulseUsers = 16

	// A user who is about to join is looked for during this time.
	onlineComing = 4 * time.Second

	// Between two looks at a user, at first and at most.
	onlinePause    = 50 * time.Millisecond
	onlineMaxPause = time.Second

	// Looks at users at the same time: as many as fill the round trips to Redis.
	onlineWorkers = 2 * pipelineBatch

	// Users whom one call asks about at most.
	onlineTogether = 256

	// Every user is looked at once per lookback, some in each of so many steps.
	onlineSteps = 60
)

// cause is why a user is looked at; several may come together.
type cause uint8

const (
	causeComing cause = 1 << iota // the index tells of a place that is new
	causeGone                     // and of one that is no more
	causeDoubt                    // something may have been missed
	causeLoss                     // a lost node may not have told who left
)

// hold is how long a user has to be missing before that is told.
func (c cause) hold() time.Duration {
	if c&(causeGone|causeLoss) != 0 {
		return onlineGone
	}
	return onlineDoubt
}

// userWatchers tell clients of this node whether users are online: in any room, on any node. What they hear from Redis only
// makes them look; the rooms say what is true. The cost follows the changes, and each user is looked at once per lookback
// in any case, because who told of a change may have died before it was told.
//
// Locks are taken in the order userWatchers, client.
type userWatchers struct {
	*background
	service *Service
	hub     *hub // knows when Redis lost data
	open    func(sink bridgeSink) *bridge
	log     *slog.Logger

	mu      mutex[ofUserWatchers]
	bridge  *bridge // once somebody watches a user
	users   map[string]*watchedUser
	round   []*watchedUser           // all users, in the order of the audit; some may be given up
	at      int                      // the next one in the round
	owing   int                      // users that the next step looks at, in parts of one: so many onlineSteps make a user
	queues  [lookBusy][]*watchedUser // are to be looked at, by state
	workers int                      // that look at them
}

// watchedUser is a user whom somebody here watches. The lock of userWatchers guards it.
type watchedUser struct {
	id       string
	by       map[*client]struct{} // who is told
	waiting  int                  // requests that are going to be in by
	known    chan struct{}        // closed once it is known whether the user is online
	settled  bool                 // that it is closed
	online   bool
	onlineAt int64     // milliseconds, Redis' clock, of the last look that found the user online
	lastSeen int64     // milliseconds, Redis' clock, when the last connection went before the user was offline last; 0 = not known
	seenAt   time.Time // when this node learnt that
	server   string    // the process of Redis that had the index at the last look
	lostAt   time.Time // when data of the user were found to be lost

	causes cause // why it is looked at; 0 = it is not
	fresh  bool  // a cause came after the last look began
	state  lookState
	since  time.Time     // when the first look for these causes began
	wait   time.Duration // between the last look and the next one
	next   *time.Timer   // puts it into the queue; nil if none is set
}

// newUserWatchers is for the clients of one node; open makes a bridge about users, once it is needed.
func newUserWatchers(s *Service, h *hub, open func(bridgeSink) *bridge, log *slog.Logger) *userWatchers {
	o := &userWatchers{background: newBackground(), service: s, hub: h, open: open, log: log, users: map[string]*watchedUser{}}
	o.keep(log, "watched users", o.watchLoop, nil)
	return o
}

// close ends the looking and waits for it.
func (o *userWatchers) close() {
	o.stop()
	o.mu.Lock()
	b := o.bridge
	o.mu.Unlock()
	if b != nil {
		b.close()
	}
	o.work.Wait()
}

// watch has a client told of users from now on. answer is called with what is known of each, in one step with the
// beginning, so that nothing is missed and nothing comes before it.
func (o *userWatchers) watch(ctx context.Context, c *client, ids []string, answer func([]userOnline)) error {
	list := o.await(ids)
	err := o.learn(ctx, list)
	o.mu.Lock()
	defer o.mu.Unlock()
	known := make([]userOnline, len(list))
	for i, w := range list {
		w.waiting--
		known[i] = o.tell(w, w.online)
		if err == nil {
			w.by[c] = struct{}{}
		}
		o.forget(w)
	}
	if err == nil {
		answer(known)
	}
	return err
}

// await has users watched.
func (o *userWatchers) await(ids []string) []*watchedUser {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bridge == nil {
		o.bridge = o.open(o)
		o.bridge.subscribe(lostNodes)
	}
	list := make([]*watchedUser, len(ids))
	for i, id := range ids {
		w := o.users[id]
		if w == nil {
			w = &watchedUser{id: id, by: map[*client]struct{}{}, known: make(chan struct{})}
			o.users[id] = w
			o.round = append(o.round, w)
			o.bridge.subscribe(id)
		}
		w.waiting++
		list[i] = w
	}
	return list
}

// learn waits until each user is known.
func (o *userWatchers) learn(ctx context.Context, list []*watchedUser) error {
	o.lookAtNew(ctx, list)
	for _, w := range list {
		select {
		case <-w.known:
		case <-ctx.Done():
			return unavailable(ctx.Err())
		}
	}
	return nil
}

// unknown are those of the users of whom it is not known whether they are online.
func (o *userWatchers) unknown(list []*watchedUser) (some []*watchedUser) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range list {
		if !w.settled {
			some = append(some, w)
		}
	}
	return some
}

// unwatch ends what watch began.
func (o *userWatchers) unwatch(c *client, ids []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range ids {
		if w := o.users[id]; w != nil {
			delete(w.by, c)
			o.forget(w)
		}
	}
}

// forget gives up a user whom nobody watches. o.mu is held.
func (o *userWatchers) forget(w *watchedUser) {
	if len(w.by) == 0 && w.waiting == 0 && o.users[w.id] == w {
		delete(o.users, w.id)
		o.bridge.unsubscribe(w.id)
		w.stop()
	}
}

// subscribed is told by the bridge: what was published before is missed.
func (o *userWatchers) subscribed(user string) {
	if user == lostNodes {
		o.lookAtAll(causeDoubt)
		return
	}
	o.look(user, causeDoubt)
}

// message is told by the bridge.
func (o *userWatchers) message(user, payload string) {
	switch {
	case user == lostNodes: // it may not have told any more who left
		o.lookAtAll(causeLoss)
	case payload == "+":
		o.look(user, causeComing)
	case payload == "-":
		o.look(user, causeGone)
	}
}

func (o *userWatchers) settled() {}

// watchLoop looks at every user once per lookback, and for losses of data all the time.
func (o *userWatchers) watchLoop() {
	pulse, audit := time.NewTicker(onlinePulse), time.NewTicker(o.service.options.Lookback/onlineSteps)
	defer pulse.Stop()
	defer audit.Stop()
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-pulse.C:
			o.pulse()
		case <-audit.C:
			o.audit()
		}
	}
}

// onDataLoss has every user looked at after a loss of data. It takes a while until they are put back.
func (o *userWatchers) onDataLoss() {
	o.mu.Lock()
	for _, w := range o.users {
		w.lostAt = time.Now()
	}
	o.mu.Unlock()
	o.lookAtAll(causeDoubt)
}

// stop stops the timer.
func (w *watchedUser) stop() {
	if w.next != nil {
		w.next.Stop()
		w.next = nil
	}
}

// userOnline is what clients are told of a user.
type userOnline struct {
	id       string
	online   bool
	lastSeen int64 // milliseconds, Redis' clock, when the last connection of a user who is offline went; 0 = not known
}

// appendJSON appends the open beginning.
func (u userOnline) appendJSON(b []byte) []byte {
	b = appendText(b, `{"userId":`, u.id)
	b = strconv.AppendBool(append(b, `,"online":`...), u.online)
	if u.lastSeen > 0 {
		b = appendNumber(b, `,"lastSeenMs":`, u.lastSeen)
	}
	return b
}

// tell is what clients are told of a user who is online or not. o.mu is held.
func (o *userWatchers) tell(w *watchedUser, online bool) userOnline {
	u := userOnline{id: w.id, online: online}
	if !online && time.Since(w.seenAt) < o.service.options.LastSeen {
		u.lastSeen = w.lastSeen
	}
	return u
}

// notifyWatchers sends one frame to all who watch the user. o.mu is held.
func (o *userWatchers) notifyWatchers(w *watchedUser, online bool, ts int64) {
	b := append(appendNumber(o.tell(w, online).appendJSON(nil), `,"ts":`, ts), '}')
	f := eventFrame(eventUser, b)
	for c := range w.by {
		c.send(f)
	}
}
