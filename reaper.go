package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A claim of a reaper that died is over after this time, so that another one is not late by more.
	claimLease = 2 * time.Second

	// Rooms in one claim, and how many of them are looked at concurrently.
	claimBatch   = 200
	claimWorkers = 16

	// Connections that one script removes.
	removeBatch = 100

	// The fraction of a score that says: the room was empty when a reaper set this.
	emptyMark = 0.25

	// When a room is due again that its reaper may not judge yet: another one may.
	unjudgedPause = 250 * time.Millisecond
)

// reaper removes connections that have been silent for longer than the lookback, and those of nodes whose lease is over. Any
// number of reapers share the work: rooms and nodes are claimed, and each removal is decided again inside its script.
//
// Nobody is removed for an outage, nor while a Redis answers and refuses writes: see contactTracker.
type reaper struct {
	service  *Service
	contact  *contactTracker // of connections
	loss     *contactTracker // of nodes
	fellBack atomic.Bool     // Redis' clock, since the last pass
	probed   sync.Map        // addresses of masters
}

func newReaper(s *Service) *reaper {
	o := s.options
	return &reaper{
		service: s,
		contact: newContactTracker(o.TTL, o.TTL/2),
		loss:    newContactTracker(o.NodeLease, o.NodeLease/3),
	}
}

// start has the service's goroutines look for who is overdue or lost until it stops.
func (r *reaper) start() {
	s := r.service
	s.reaper.Store(r)
	run := func(loop, reset func()) { s.keep(s.options.Logger, "reaper", loop, reset) }
	run(r.keepContact, nil)
	run(func() { r.keepProbing(r.leaseTarget) }, nil)
	run(func() { r.repeat(r.pass) }, func() { r.fellBack.Store(true) }) // which has it look into every room
	run(func() { r.repeat(r.passNodes) }, nil)
}

func (r *reaper) repeat(pass func(context.Context) error) {
	s := r.service
	s.every(s.options.ReaperInterval, func() {
		if err := pass(s.ctx); err != nil && s.ctx.Err() == nil {
			s.options.Logger.Warn("reaper could not look everywhere", "error", err)
		}
	})
}

// pass looks at every room that is due. An error means that some were left for the next pass.
func (r *reaper) pass(ctx context.Context) error {
	all := r.fellBack.Swap(false)
	for ctx.Err() == nil {
		claim, rooms, err := r.claim(ctx, all)
		if err == nil && len(rooms) == 0 {
			return nil
		}
		if err == nil {
			err = r.settle(ctx, claim, r.lookAt(ctx, rooms))
		}
		if err != nil {
			r.fellBack.CompareAndSwap(false, all)
			return err
		}
	}
	return ctx.Err()
}

// claimedRoom is a room that this reaper looks at, and its place in the index before and after.
type claimedRoom struct {
	id       string
	wasEmpty bool
	next     string // score; "" = leave the index
	seen     bool   // next is decided
}

// claim takes rooms that are due, and with all also those that are due so late that the clock must have fallen back since.
func (r *reaper) claim(ctx context.Context, all bool) (claim string, rooms []claimedRoom, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimLease)
	defer cancel()
	latest := ""
	if all {
		latest = strconv.FormatInt(max(r.service.options.Lookback, claimLease).Milliseconds()+r.answerWithin(), 10)
	}
	answer, err := r.service.run(ctx, r.service.scripts.claimRooms, []string{activeRoomsKey}, claimLease.Milliseconds(), claimBatch, latest)
	if err != nil {
		return "", nil, err
	}
	due := answer.list(1)
	for i := 0; i+1 < len(due); i += 2 {
		_, fraction := math.Modf(due.float(i + 1))
		rooms = append(rooms, claimedRoom{id: due.text(i), wasEmpty: fraction == emptyMark})
	}
	return answer.text(0), rooms, nil
}

// lookAt decides the next time of each room. Rooms that Redis did not answer for stay claimed until the claim is over.
func (r *reaper) lookAt(ctx context.Context, rooms []claimedRoom) []claimedRoom {
	ctx, cancel := context.WithTimeout(ctx, claimLease)
	defer cancel()
	each(rooms, func(room *claimedRoom) {
		next, err := r.reap(ctx, room.id, room.wasEmpty)
		room.next, room.seen = next, err == nil
	})
	return rooms
}

// each calls do for everything in a list, a few at a time.
func each[T any](list []T, do func(*T)) {
	work := make(chan *T)
	var workers crew
	for range min(claimWorkers, len(list)) {
		workers.Go(func() {
			for item := range work {
				workers.do(func() { do(item) })
			}
		})
	}
	for i := range list {
		work <- &list[i]
	}
	close(work)
	workers.Wait()
}

func (r *reaper) settle(ctx context.Context, claim string, rooms []claimedRoom) error {
	args := []any{claim}
	for _, room := range rooms {
		if room.seen {
			args = append(args, room.id, room.next)
		}
	}
	_, err := r.service.run(ctx, r.service.scripts.settleRooms, []string{activeRoomsKey}, args...)
	if unseen := len(rooms) - len(args)/2; err == nil && unseen > 0 {
		return fmt.Errorf("%d rooms did not answer", unseen)
	}
	return err
}

// reap removes who is overdue in a room and gives the room's next score in the index.
func (r *reaper) reap(ctx context.Context, room string, wasEmpty bool) (next string, err error) {
	for {
		found, err := r.overdue(ctx, room)
		if err != nil {
			return "", err
		}
		gone, err := r.removeSilent(ctx, room, found)
		if err != nil {
			return "", err
		}
		if gone == 0 && !found.more {
			return r.next(found, wasEmpty), nil
		}
	}
}

// overdueScan is what a reaper finds in a room.
type overdueScan struct {
	now          int64 // milliseconds, Redis' clock
	oldest       int64 // heartbeat of the most silent connection, 0 = the room is empty
	list         []incarnation
	more         bool // it is to be asked again at once
	trusted      bool // contact was long enough to judge by this
	holdsTrusted bool // it was for those that are held back: nothing can be heard of them, but the clock may have been set
}

// look runs a script that only reads a room, with Redis' TIME first in its answer. It tells for how long contact with the
// room's master has lasted.
func (r *reaper) look(ctx context.Context, j *contactTracker, sc *script, keys []string, args ...any) (answer reply, lasted time.Duration, err error) {
	master, err := r.masterOf(ctx, keys[0])
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	if answer, err = r.service.run(ctx, sc, keys, args...); err != nil {
		r.lostContact(master)
		return nil, 0, err
	}
	lasted, step := j.read(master, began, answer.int(0))
	r.stepped(step)
	return answer, lasted, nil
}

func (r *reaper) overdue(ctx context.Context, room string) (overdueScan, error) {
	s := r.service
	keys := append(scriptKeys(room), keysOf(room).devices())
	answer, lasted, err := r.look(ctx, r.contact, s.scripts.overdue, keys, s.options.Lookback.Milliseconds(), removeBatch, s.fenceLife())
	if err != nil {
		return overdueScan{}, err
	}
	found := overdueScan{now: answer.int(0), oldest: int64(answer.float(1)), trusted: lasted >= r.contact.need,
		more: answer.text(2) == "more"}
	found.holdsTrusted = s.options.Grace > 0 && lasted >= s.options.Grace
	for i := 3; i < len(answer); i++ {
		found.list = append(found.list, incarnation{conn: answer.text(i)})
	}
	return found, nil
}

// removeSilent removes who is still overdue when the script runs. One that waited in a stopped Redis does nothing: its clients'
// heartbeats wait there as well.
func (r *reaper) removeSilent(ctx context.Context, room string, found overdueScan) (gone int, err error) {
	if len(found.list) == 0 || !found.trusted && !found.holdsTrusted {
		return 0, nil
	}
	o := r.service.options
	how := removal{reason: ReasonTimeout, silent: o.Lookback, notAfter: found.now + r.answerWithin()}
	if !found.trusted {
		how.node = heldNode
	}
	_, removed, err := r.service.remove(ctx, room, how, found.list)
	r.refused(ctx, room, err)
	if len(removed) > 0 {
		o.Logger.Info("silent connections removed", "room", room, "connections", len(removed))
	}
	return len(removed), err
}

// answerWithin is how long, in milliseconds, a removal may wait for Redis, and a room for another try.
func (r *reaper) answerWithin() int64 {
	return max(r.service.options.ReaperInterval, time.Second).Milliseconds()
}

// next is the score of a room in the index. An empty room leaves the index only when its entry has stayed for a lookback
// as a reaper left it: every join that begins meanwhile changes it.
func (r *reaper) next(found overdueScan, wasEmpty bool) string {
	lookback := r.service.options.Lookback.Milliseconds()
	switch due := found.oldest + lookback; {
	case found.oldest == 0 && wasEmpty:
		return ""
	case found.oldest == 0:
		return strconv.FormatFloat(float64(found.now+lookback)+emptyMark, 'f', 2, 64)
	case due > found.now:
		return strconv.FormatInt(due, 10)
	case !found.trusted:
		return strconv.FormatInt(found.now+unjudgedPause.Milliseconds(), 10)
	default:
		return strconv.FormatInt(found.now+r.answerWithin(), 10)
	}
}
