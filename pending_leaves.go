package main

import (
	"container/heap"
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"time"
	"unique"
)

const (
	// Pause after failures, and between two looks for a join that may still run.
	owedPause = 200 * time.Millisecond

	// Leaves that are tried at the same time.
	owedWorkers = 16

	// Failures without a success between them after which Redis is left alone for a pause.
	owedFailures = 16

	// A join that was given up may still run so long after Redis has answered again.
	owedWatch = 2 * time.Second
)

// pendingLeave is a leave that Redis has not confirmed, or that is due later. An outage may leave many, so it holds what is
// needed and no more. Times count from pendingLeaves.began.
type pendingLeave struct {
	next   *pendingLeave // of the same connection, in another room
	conn   string
	room   unique.Handle[string]
	reason Reason
	epoch  int64         // 0 = it takes back a join of which nobody knows whether it happened
	when   time.Duration // when ready: until when the member is to be held back, 0 = it leaves at once; when waiting: when it is ready
	absent time.Duration // since when Redis answers that a member without an epoch is not there; 0 = it does not
	at     int32         // index in ready or waiting, -1 = a worker has it

	waits  bool // it is in waiting
	held   bool // Redis holds the member back: nothing is to be done until its time
	silent bool // the connection was silent before its end
}

// pendingLeaves repeats leaves until Redis confirms them, so that an outage keeps nobody in a room who left it. What it does while
// Redis is silent does not depend on how many leaves there are.
type pendingLeaves struct {
	*background
	service *Service
	began   time.Time

	mu      mutex[ofNone]
	conns   map[string]*pendingLeave // the leaves by connection: of each room the latest, which covers those before it
	count   int                      // in conns
	ready   []*pendingLeave          // to be tried now
	untried int                      // of ready, those before it have not failed since try began
	waiting waitingLeaves
	dice    *rand.Rand
	chances int    // failures until the next pause
	workers int    // that run
	wake    wakeup // there is something new
}

func newPendingLeaves(s *Service) *pendingLeaves {
	o := newIdlePendingLeaves(s)
	o.work.Go(o.loop)
	return o
}

// newIdlePendingLeaves makes a list that tries nothing by itself. Its choices are the same each time.
func newIdlePendingLeaves(s *Service) *pendingLeaves {
	o := &pendingLeaves{
		background: newBackground(),
		service:    s, began: time.Now(), conns: map[string]*pendingLeave{}, wake: newWakeup(),
		dice: rand.New(rand.NewPCG(1, 1)), chances: owedFailures,
	}
	return o
}

// close tries what is left, as long as ctx allows, and stops. It returns how many leaves stay unconfirmed. Who is
// held back stays so, for a reaper.
func (o *pendingLeaves) close(ctx context.Context) (unconfirmed int) {
	o.end()
	for {
		o.try(ctx)
		if unconfirmed = o.size(); unconfirmed == 0 || ctx.Err() != nil {
			return unconfirmed
		}
		pause(ctx, owedPause)
	}
}

// size is the number of leaves that Redis has not confirmed.
func (o *pendingLeaves) size() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

func newPendingLeave(m Member, reason Reason) *pendingLeave {
	return &pendingLeave{conn: m.Conn, room: unique.Make(m.Room), epoch: m.Epoch, reason: reason, at: -1}
}

func (l *pendingLeave) member() Member {
	return Member{Conn: l.conn, Room: l.room.Value(), Epoch: l.epoch}
}

func (o *pendingLeaves) add(m Member, reason Reason) { o.put(newPendingLeave(m, reason)) }

// hold has Redis hold a member back whose connection broke, and ends that in time. silent says that the connection was
// silent before: then its user may be back already, and the member leaves at once. An error says that Redis has not
// confirmed it yet.
func (o *pendingLeaves) hold(ctx context.Context, m Member, until time.Time, silent bool) error {
	l := newPendingLeave(m, ReasonDisconnected)
	l.when, l.silent = max(until.Sub(o.began), 1), silent
	held, err := o.holdBack(ctx, l)
	if !held {
		o.put(l)
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.keep(l)
	o.wake.send() // it may be the first whose time comes
	return nil
}

// holdBack reports whether Redis holds the member back. If it does not, and there is no error, the member has to leave now.
func (o *pendingLeaves) holdBack(ctx context.Context, l *pendingLeave) (held bool, err error) {
	back, err := o.service.hold(ctx, l.member(), l.when-time.Since(o.began), l.silent)
	if back {
		l.when = 0
	}
	return err == nil && !back, err
}

// keep leaves l alone until the end of its hold. o.mu is held.
func (o *pendingLeaves) keep(l *pendingLeave) {
	l.held = true
	o.wait(l)
}

func (o *pendingLeaves) put(l *pendingLeave) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.putLocked(l)
}

func (o *pendingLeaves) putLocked(l *pendingLeave) {
	for other := o.conns[l.conn]; other != nil; other = other.next {
		if other.room == l.room {
			o.strike(other)
			break
		}
	}
	l.next, o.conns[l.conn] = o.conns[l.conn], l
	o.count++
	o.makeReady(l)
	o.wake.send()
}

// take hands over the leaves of a connection in a room, "" = all its rooms, to a request of the client that is about to
// be sent and answers for it from here on.
func (o *pendingLeaves) take(conn, room string) (taken []Member) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for l := o.conns[conn]; l != nil; {
		next := l.next
		if room == "" || room == l.room.Value() {
			taken = append(taken, l.member())
			o.strike(l)
		}
		l = next
	}
	return taken
}

// strike takes a leave off the list if it is there. o.mu is held.
func (o *pendingLeaves) strike(l *pendingLeave) {
	first := o.conns[l.conn]
	if first == l && l.next == nil {
		delete(o.conns, l.conn)
	} else if first == l {
		o.conns[l.conn] = l.next
	} else {
		for first != nil && first.next != l {
			first = first.next
		}
		if first == nil {
			return // it was taken, or a later one is in its place
		}
		first.next = l.next
	}
	l.next = nil
	o.count--
	switch {
	case l.waits:
		heap.Remove(&o.waiting, int(l.at))
	case l.at >= 0:
		o.unready(l)
	}
}

// isPending tells whether nobody took the leave or added a later one. o.mu is held.
func (o *pendingLeaves) isPending(l *pendingLeave) bool {
	for other := o.conns[l.conn]; other != nil; other = other.next {
		if other == l {
			return true
		}
	}
	return false
}

func (o *pendingLeaves) makeReady(l *pendingLeave) {
	o.putAside(l)
	o.swap(int(l.at), o.untried)
	o.untried++
}

// putAside is makeReady for a leave that has failed: the next one to try it is another call of try.
func (o *pendingLeaves) putAside(l *pendingLeave) {
	l.at = int32(len(o.ready))
	o.ready = append(o.ready, l)
}

func (o *pendingLeaves) unready(l *pendingLeave) {
	at, last := int(l.at), len(o.ready)-1
	if at < o.untried {
		o.untried--
		o.swap(at, o.untried)
		at = o.untried
	}
	o.swap(at, last)
	o.ready[last] = nil
	o.ready = o.ready[:last]
	l.at = -1
}

func (o *pendingLeaves) swap(i, j int) {
	o.ready[i], o.ready[j] = o.ready[j], o.ready[i]
	o.ready[i].at, o.ready[j].at = int32(i), int32(j)
}

// wait leaves l alone until its time.
func (o *pendingLeaves) wait(l *pendingLeave) { heap.Push(&o.waiting, l) }

func (o *pendingLeaves) loop() {
	for o.ctx.Err() == nil {
		if o.try(o.ctx) {
			o.sleep()
		} else {
			pause(o.ctx, owedPause) // whatever is added meanwhile
		}
	}
}

// sleep waits until there is something to try.
func (o *pendingLeaves) sleep() {
	timer := time.NewTimer(o.idleFor())
	defer timer.Stop()
	select {
	case <-o.ctx.Done():
	case <-o.wake:
	case <-timer.C:
	}
}

func (o *pendingLeaves) idleFor() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.ready) > 0:
		return 0
	case len(o.waiting) > 0:
		return max(o.waiting[0].when-time.Since(o.began), 0)
	default:
		return math.MaxInt64
	}
}

// try tries each leave that is ready once. It reports false if some of them are still to be confirmed, because Redis does
// not answer or ctx is done.
func (o *pendingLeaves) try(ctx context.Context) bool {
	o.mu.Lock()
	o.release()
	o.untried, o.chances, o.workers = len(o.ready), owedFailures, 0
	o.mu.Unlock()
	var work sync.WaitGroup
	o.addWorker(ctx, &work)
	work.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.ready) == 0 && ctx.Err() == nil
}

// addWorker starts one worker more if there is a leave for it. Each worker calls it before each try, so leaves that are
// added during a try that takes long get workers too.
func (o *pendingLeaves) addWorker(ctx context.Context, work *sync.WaitGroup) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.untried == 0 || o.workers == owedWorkers {
		return
	}
	o.workers++
	work.Go(func() {
		for l := o.next(ctx); l != nil; l = o.next(ctx) {
			o.addWorker(ctx, work)
			o.settle(ctx, l)
		}
	})
}

// release makes ready what waited for a time that has come. o.mu is held.
func (o *pendingLeaves) release() {
	for len(o.waiting) > 0 && o.waiting[0].when <= time.Since(o.began) {
		l := heap.Pop(&o.waiting).(*pendingLeave)
		l.when = 0
		if l.held {
			l.held = false
			o.putLocked(l)
		} else {
			o.makeReady(l)
		}
	}
}

// next gives a worker a leave to try, nil if there is none or Redis is silent. It is any of them, so that those for a
// master that is away do not stand before the others.
func (o *pendingLeaves) next(ctx context.Context) *pendingLeave {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.untried == 0 || o.chances <= 0 || ctx.Err() != nil {
		o.workers--
		return nil
	}
	l := o.ready[o.dice.IntN(o.untried)]
	o.unready(l)
	return l
}

// outcome is what became of a try.
type outcome int

const (
	owedFailed outcome = iota
	owedDone
	owedHeld   // Redis holds the member back
	owedAbsent // Redis has no such member, and may yet get one
)

// settle tries a leave once.
func (o *pendingLeaves) settle(ctx context.Context, l *pendingLeave) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	result := o.attempt(ctx, l)
	o.mu.Lock()
	defer o.mu.Unlock()
	if result == owedFailed {
		o.chances--
	} else {
		o.chances = owedFailures
	}
	switch {
	case !o.isPending(l):
	case result == owedFailed:
		o.putAside(l)
	case result == owedAbsent:
		l.when = time.Since(o.began) + owedPause
		o.wait(l)
	default:
		o.strike(l)
		if result == owedHeld {
			o.keep(l)
		}
	}
}

// attempt removes the incarnation of a leave, or has it held back.
func (o *pendingLeaves) attempt(ctx context.Context, l *pendingLeave) outcome {
	if time.Since(o.began) < l.when {
		held, err := o.holdBack(ctx, l)
		switch {
		case err != nil:
			return owedFailed
		case held:
			return owedHeld
		}
	}
	m, err := o.known(ctx, l.member())
	if hasCode(err, CodeNotJoined) {
		return l.notFound(time.Since(o.began))
	}
	if err != nil {
		return owedFailed
	}
	// If a request took this leave while known ran, known may have returned that request's newer incarnation.
	o.mu.Lock()
	taken := !o.isPending(l)
	o.mu.Unlock()
	if taken {
		return owedDone
	}
	_, _, err = o.service.remove(ctx, m.Room, removal{reason: l.reason, own: true}, []incarnation{{m.Conn, m.Epoch}})
	if err != nil {
		return owedFailed
	}
	return owedDone
}

// known is the member with the epoch that Redis has for it, if its own is not known. It is CodeNotJoined if Redis has none.
func (o *pendingLeaves) known(ctx context.Context, m Member) (Member, error) {
	if m.Epoch != 0 {
		return m, nil
	}
	return o.service.find(ctx, m.Room, m.Conn)
}

// notFound tells whether the member has been absent for so long that a late join of it need not be feared any more.
func (l *pendingLeave) notFound(now time.Duration) outcome {
	if l.absent == 0 {
		l.absent = max(now, 1)
	}
	if now-l.absent >= owedWatch {
		return owedDone
	}
	return owedAbsent
}

// waitingLeaves are a heap by the time at which each is ready.
type waitingLeaves []*pendingLeave

func (w waitingLeaves) Len() int           { return len(w) }
func (w waitingLeaves) Less(i, j int) bool { return w[i].when < w[j].when }

func (w waitingLeaves) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].at, w[j].at = int32(i), int32(j)
}

func (w *waitingLeaves) Push(x any) {
	l := x.(*pendingLeave)
	l.at, l.waits = int32(len(*w)), true
	*w = append(*w, l)
}

func (w *waitingLeaves) Pop() any {
	last := len(*w) - 1
	l := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	l.at, l.waits = -1, false
	return l
}
