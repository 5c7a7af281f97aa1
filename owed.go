package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Pause between two tries of what Redis did not confirm.
	owedPause = 200 * time.Millisecond

	// Leaves that are tried at the same time.
	owedWorkers = 16

	// A join that was given up may still run so long after Redis has answered again.
	owedWatch = 2 * time.Second
)

// owedLeave is a leave that Redis has not confirmed. Without an epoch it takes back a join of which nobody knows whether
// it happened.
type owedLeave struct {
	member Member
	reason Reason
	until  time.Time // up to which the member is held back; zero = it leaves at once
	absent time.Time // since when Redis answers that a member without an epoch is not there
}

// owed repeats leaves until Redis confirms them, so that an outage keeps nobody in a room who left it.
type owed struct {
	service *Service

	mu   sync.Mutex
	list map[string]map[string]*owedLeave // by connection and room: the latest covers those before it
	wake chan struct{}                    // there is something new

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

func newOwed(s *Service) *owed {
	o := &owed{service: s, list: map[string]map[string]*owedLeave{}, wake: make(chan struct{}, 1)}
	o.ctx, o.stop = context.WithCancel(context.Background())
	o.work.Go(o.loop)
	return o
}

// close tries what is left, as long as ctx allows, and stops. It returns how many leaves stay unconfirmed. Who is
// held back stays so, for a reaper.
func (o *owed) close(ctx context.Context) (unconfirmed int) {
	o.stop()
	o.work.Wait()
	for {
		unconfirmed = o.try(ctx)
		if unconfirmed == 0 || ctx.Err() != nil {
			return unconfirmed
		}
		pause(ctx, owedPause)
	}
}

func (o *owed) add(m Member, reason Reason) { o.put(&owedLeave{member: m, reason: reason}) }

// hold has Redis hold a member back whose connection broke, and ends that in time. An error says that Redis has not
// confirmed it yet.
func (o *owed) hold(ctx context.Context, m Member, until time.Time) error {
	m.State = nil // there may be many
	leave := &owedLeave{member: m, reason: ReasonDisconnected, until: until}
	err := o.holdBack(ctx, leave)
	if err != nil {
		o.put(leave)
	}
	return err
}

func (o *owed) holdBack(ctx context.Context, leave *owedLeave) error {
	err := o.service.hold(ctx, leave.member, time.Until(leave.until))
	if err == nil {
		time.AfterFunc(time.Until(leave.until), func() { o.add(leave.member, leave.reason) })
	}
	return err
}

func (o *owed) put(leave *owedLeave) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := leave.member
	if o.list[m.Conn] == nil {
		o.list[m.Conn] = map[string]*owedLeave{}
	}
	o.list[m.Conn][m.Room] = leave
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take hands over what is owed for a connection in a room, "" = all its rooms, to a request of the client that is about to
// be sent and answers for it from here on.
func (o *owed) take(conn, room string) (taken []Member) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for at, leave := range o.list[conn] {
		if room == "" || room == at {
			taken = append(taken, leave.member)
		}
	}
	for _, m := range taken {
		o.strike(m)
	}
	return taken
}

// strike deletes what is owed for a place. o.mu is held.
func (o *owed) strike(m Member) {
	delete(o.list[m.Conn], m.Room)
	if len(o.list[m.Conn]) == 0 {
		delete(o.list, m.Conn)
	}
}

func (o *owed) loop() {
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-o.wake:
		}
		for o.try(o.ctx) > 0 && o.ctx.Err() == nil {
			pause(o.ctx, owedPause)
		}
	}
}

// try repeats every leave once. Those that fail stay; it returns how many.
func (o *owed) try(ctx context.Context) (failed int) {
	o.mu.Lock()
	list := make([]*owedLeave, 0, len(o.list))
	for _, rooms := range o.list {
		list = slices.AppendSeq(list, maps.Values(rooms))
	}
	o.mu.Unlock()
	work := make(chan *owedLeave)
	var workers sync.WaitGroup
	var settled atomic.Int64
	for range min(owedWorkers, len(list)) {
		workers.Go(func() {
			for leave := range work {
				if o.settle(ctx, leave) {
					settled.Add(1)
					o.done(leave)
				}
			}
		})
	}
	for _, leave := range list {
		work <- leave
	}
	close(work)
	workers.Wait()
	return len(list) - int(settled.Load())
}

func (o *owed) done(leave *owedLeave) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.owes(leave) {
		o.strike(leave.member)
	}
}

// owes tells whether nobody took the leave or added a later one. o.mu is held.
func (o *owed) owes(leave *owedLeave) bool {
	return o.list[leave.member.Conn][leave.member.Room] == leave
}

// settle removes the incarnation that is owed, or holds it back, and tells whether nothing is left to do.
func (o *owed) settle(ctx context.Context, leave *owedLeave) bool {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if time.Now().Before(leave.until) {
		return o.holdBack(ctx, leave) == nil
	}
	m, err := o.known(ctx, leave.member)
	if hasCode(err, CodeNotJoined) {
		return leave.watched()
	}
	if err != nil {
		return false
	}
	// What is still owed after the find was not found of a later join, of which the client knows.
	o.mu.Lock()
	taken := !o.owes(leave)
	o.mu.Unlock()
	if taken {
		return false
	}
	_, _, err = o.service.remove(ctx, m.Room, removal{reason: leave.reason, own: true}, []incarnation{{m.Conn, m.Epoch}})
	return err == nil
}

// known is the member with the epoch that Redis has for it, if its own is not known. It is CodeNotJoined if Redis has none.
func (o *owed) known(ctx context.Context, m Member) (Member, error) {
	if m.Epoch != 0 {
		return m, nil
	}
	return o.service.find(ctx, m.Room, m.Conn)
}

// watched tells whether the member has been absent for so long that a late join of it need not be feared any more.
func (l *owedLeave) watched() bool {
	if l.absent.IsZero() {
		l.absent = time.Now()
	}
	return time.Since(l.absent) >= owedWatch
}
