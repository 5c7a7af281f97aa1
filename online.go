package main

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
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

// lookState is whether a user waits for a look.
type lookState uint8

const (
	lookIdle   lookState = iota
	lookQueued           // behind those of lookUrgent
	lookUrgent           // queued; a request waits for the user, or there is news of it
	lookBusy             // a worker looks
)

// onlookers tell clients of this node whether users are online: in any room, on any node. What they hear from Redis only
// makes them look; the rooms say what is true. The cost follows the changes, and each user is looked at once per lookback
// in any case, because who told of a change may have died before it was told.
//
// Locks are taken in the order onlookers, client.
type onlookers struct {
	service *Service
	hub     *hub // knows when Redis lost data
	open    func(sink bridgeSink) *bridge
	log     *slog.Logger

	mu      sync.Mutex
	bridge  *bridge // once somebody watches a user
	users   map[string]*watched
	round   []*watched           // all users, in the order of the audit; some may be given up
	at      int                  // the next one in the round
	owing   int                  // users that the next step looks at, in parts of one: so many onlineSteps make a user
	queues  [lookBusy][]*watched // are to be looked at, by state
	workers int                  // that look at them

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

// watched is a user whom somebody here watches. The onlookers' lock guards it.
type watched struct {
	id      string
	by      map[*client]struct{} // who is told
	waiting int                  // requests that are going to be in by
	known   chan struct{}        // closed once it is known whether the user is online
	settled bool                 // that it is closed
	online  bool
	server  string    // the process of Redis that had the index at the last look
	lostAt  time.Time // when data of the user were found to be lost

	causes cause // why it is looked at; 0 = it is not
	fresh  bool  // a cause came after the last look began
	state  lookState
	since  time.Time     // when the first look for these causes began
	wait   time.Duration // between the last look and the next one
	next   *time.Timer   // puts it into the queue; nil if none is set
}

// newOnlookers is for the clients of one node; open makes a bridge about users, once it is needed.
func newOnlookers(s *Service, h *hub, open func(bridgeSink) *bridge, log *slog.Logger) *onlookers {
	o := &onlookers{service: s, hub: h, open: open, log: log, users: map[string]*watched{}}
	o.ctx, o.stop = context.WithCancel(context.Background())
	o.work.Go(func() { keepRunning(o.ctx, log, "watched users", o.watchLoop, nil) })
	return o
}

// close ends the looking and waits for it.
func (o *onlookers) close() {
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
func (o *onlookers) watch(ctx context.Context, c *client, ids []string, answer func(online []bool)) error {
	list := o.await(ids)
	err := o.learn(ctx, list)
	o.mu.Lock()
	defer o.mu.Unlock()
	online := make([]bool, len(list))
	for i, w := range list {
		w.waiting--
		online[i] = w.online
		if err == nil {
			w.by[c] = struct{}{}
		}
		o.forget(w)
	}
	if err == nil {
		answer(online)
	}
	return err
}

// await has users watched.
func (o *onlookers) await(ids []string) []*watched {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bridge == nil {
		o.bridge = o.open(o)
		o.bridge.subscribe(lostNodes)
	}
	list := make([]*watched, len(ids))
	for i, id := range ids {
		w := o.users[id]
		if w == nil {
			w = &watched{id: id, by: map[*client]struct{}{}, known: make(chan struct{})}
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
func (o *onlookers) learn(ctx context.Context, list []*watched) error {
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

// lookAtNew asks with few calls who of the users that are not known has an index: the others are in no room. It does not wait
// for the subscription, which has each user looked at again. After an error that look tells.
func (o *onlookers) lookAtNew(ctx context.Context, list []*watched) {
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
			if there[i] {
				o.lookAt(w, causeDoubt)
			} else {
				o.takeOver(w, false, places{}, causeDoubt, 0)
			}
		}
		o.mu.Unlock()
	}
}

// unknown are those of the users of whom it is not known whether they are online.
func (o *onlookers) unknown(list []*watched) (some []*watched) {
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
func (o *onlookers) unwatch(c *client, ids []string) {
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
func (o *onlookers) forget(w *watched) {
	if len(w.by) == 0 && w.waiting == 0 && o.users[w.id] == w {
		delete(o.users, w.id)
		o.bridge.unsubscribe(w.id)
		w.stop()
	}
}

// subscribed is told by the bridge: what was published before is missed.
func (o *onlookers) subscribed(user string) {
	if user == lostNodes {
		o.lookAtAll(causeDoubt)
		return
	}
	o.look(user, causeDoubt)
}

// message is told by the bridge.
func (o *onlookers) message(user, payload string) {
	switch {
	case user == lostNodes: // it may not have told any more who left
		o.lookAtAll(causeLoss)
	case payload == "+":
		o.look(user, causeComing)
	case payload == "-":
		o.look(user, causeGone)
	}
}

func (o *onlookers) settled() {}

// watchLoop looks at every user once per lookback, and for losses of data all the time.
func (o *onlookers) watchLoop() {
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

// pulse asks for some users whether Redis still has their indices. Of who leaves it hears by a message in any case, but not
// of who is lost.
func (o *onlookers) pulse() {
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
		if w := o.users[id]; w != nil && w.online && w.causes == 0 && !there[i] {
			missing++
		}
	}
	o.mu.Unlock()
	if missing > 0 {
		o.log.Info("indices of watched users are missing", "users", missing)
		o.lost()
	}
}

// audit looks at the next users of the round, so many that it takes a lookback.
func (o *onlookers) audit() {
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

// lost has every user looked at after a loss of data. It takes a while until they are put back.
func (o *onlookers) lost() {
	o.mu.Lock()
	for _, w := range o.users {
		w.lostAt = time.Now()
	}
	o.mu.Unlock()
	o.lookAtAll(causeDoubt)
}

func (o *onlookers) lookAtAll(why cause) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.users {
		o.lookAt(w, why)
	}
}

// look has a user looked at, or once more if that is under way.
func (o *onlookers) look(user string, why cause) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.users[user]; w != nil {
		o.lookAt(w, why)
	}
}

// lookAt is look. o.mu is held.
func (o *onlookers) lookAt(w *watched, why cause) {
	w.causes |= why
	w.fresh = true
	w.since, w.wait = time.Time{}, onlinePause
	w.stop()
	o.enqueue(w)
}

// stop stops the timer.
func (w *watched) stop() {
	if w.next != nil {
		w.next.Stop()
		w.next = nil
	}
}

// enqueue has one of a few workers look at the user. o.mu is held.
func (o *onlookers) enqueue(w *watched) {
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
func (o *onlookers) lookLoop() {
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
func (o *onlookers) nextLook() (w *watched, why cause, began time.Time) {
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
func (o *onlookers) takeNext() *watched {
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
func (o *onlookers) looked(w *watched, clear bool) {
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

func (o *onlookers) check(user string) (online bool, p places, err error) {
	ctx, cancel := context.WithTimeout(o.ctx, answerWithin)
	defer cancel()
	if p, err = o.service.places(ctx, user); err != nil {
		return false, p, err
	}
	online, err = o.service.online(ctx, user, p)
	return online, p, err
}

// conclude takes over what a look found, and tells of a change. It is false when a later look has to confirm it.
func (o *onlookers) conclude(w *watched, online bool, p places, why cause, missing time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeOver(w, online, p, why, missing)
}

// takeOver is conclude. o.mu is held.
func (o *onlookers) takeOver(w *watched, online bool, p places, why cause, missing time.Duration) bool {
	if isAnother(p.server, w.server) {
		w.lostAt = time.Now()
	}
	w.server = cmp.Or(p.server, w.server)
	switch {
	case o.users[w.id] != w:
		return true
	case !online && w.online && (missing < why.hold() || o.healing(w)):
		return false
	case online != w.online && w.settled:
		o.tell(w, online, p.ts)
	}
	w.online = online
	if !w.settled {
		w.settled = true
		close(w.known)
	}
	return online || why&causeComing == 0 || missing >= onlineComing
}

// healing tells whether the user may be about to be put back. o.mu is held.
func (o *onlookers) healing(w *watched) bool {
	return time.Since(w.lostAt) < lossPatience || o.hub.missedLately()
}

// tell sends one frame to all who watch the user. o.mu is held.
func (o *onlookers) tell(w *watched, online bool, ts int64) {
	b := appendText(nil, `{"userId":`, w.id)
	b = strconv.AppendBool(append(b, `,"online":`...), online)
	b = append(appendNumber(b, `,"ts":`, ts), '}')
	f := eventFrame(eventUser, b)
	for c := range w.by {
		c.send(f)
	}
}
