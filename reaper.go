package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"
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
)

// reaper removes connections that have been silent for longer than the lookback. Any number of them share the work: rooms
// are claimed when they are due, and each removal is decided again inside its script.
type reaper struct {
	service *Service
}

func newReaper(s *Service) *reaper {
	return &reaper{service: s}
}

func (r *reaper) loop() {
	tick := time.NewTicker(r.service.options.ReaperInterval)
	defer tick.Stop()
	for {
		select {
		case <-r.service.ctx.Done():
			return
		case <-tick.C:
		}
		if err := r.pass(r.service.ctx); err != nil && r.service.ctx.Err() == nil {
			r.service.options.Logger.Warn("reaper could not look at every room", "error", err)
		}
	}
}

// pass looks at every room that is due. An error means that some were left for the next pass.
func (r *reaper) pass(ctx context.Context) error {
	for ctx.Err() == nil {
		claim, rooms, err := r.claim(ctx)
		if err != nil || len(rooms) == 0 {
			return err
		}
		if err := r.settle(ctx, claim, r.lookAt(ctx, rooms)); err != nil {
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

func (r *reaper) claim(ctx context.Context) (claim string, rooms []claimedRoom, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimLease)
	defer cancel()
	answer, err := r.service.run(ctx, r.service.scripts.claimRooms, []string{activeRoomsKey}, claimLease.Milliseconds(), claimBatch)
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
	work := make(chan *claimedRoom)
	var workers sync.WaitGroup
	for range min(claimWorkers, len(rooms)) {
		workers.Go(func() {
			for room := range work {
				next, err := r.reap(ctx, room.id, room.wasEmpty)
				room.next, room.seen = next, err == nil
			}
		})
	}
	for i := range rooms {
		work <- &rooms[i]
	}
	close(work)
	workers.Wait()
	return rooms
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
		gone, err := r.cull(ctx, room, found)
		if err != nil {
			return "", err
		}
		if gone == 0 {
			return r.next(found, wasEmpty), nil
		}
	}
}

// silence is what a reaper finds in a room.
type silence struct {
	now    int64 // milliseconds, Redis' clock
	oldest int64 // heartbeat of the most silent connection, 0 = the room is empty
	list   []incarnation
}

func (r *reaper) overdue(ctx context.Context, room string) (silence, error) {
	s := r.service
	answer, err := s.run(ctx, s.scripts.overdue, scriptKeys(room), s.options.Lookback.Milliseconds(), removeBatch)
	if err != nil {
		return silence{}, err
	}
	found := silence{now: answer.int(0), oldest: int64(answer.float(1))}
	for i := 2; i < len(answer); i++ {
		found.list = append(found.list, incarnation{conn: answer.text(i)})
	}
	return found, nil
}

// cull removes who is still overdue when the script runs. One that waited in a stopped Redis does nothing: its clients'
// heartbeats wait there as well.
func (r *reaper) cull(ctx context.Context, room string, found silence) (gone int, err error) {
	if len(found.list) == 0 {
		return 0, nil
	}
	o := r.service.options
	_, removed, err := r.service.remove(ctx, room, removal{
		reason:   ReasonTimeout,
		silent:   o.Lookback,
		notAfter: found.now + r.patience(),
	}, found.list)
	if len(removed) > 0 {
		o.Logger.Info("silent connections removed", "room", room, "connections", len(removed))
	}
	return len(removed), err
}

// patience is how long, in milliseconds, a removal may wait for Redis, and a room for another try.
func (r *reaper) patience() int64 {
	return max(r.service.options.ReaperInterval, time.Second).Milliseconds()
}

// next is the score of a room in the index. An empty room leaves the index only when its entry has stayed for a lookback
// as a reaper left it: every join that begins meanwhile changes it.
func (r *reaper) next(found silence, wasEmpty bool) string {
	lookback := r.service.options.Lookback.Milliseconds()
	switch due := found.oldest + lookback; {
	case found.oldest == 0 && wasEmpty:
		return ""
	case found.oldest == 0:
		return strconv.FormatFloat(float64(found.now+lookback)+emptyMark, 'f', 2, 64)
	case due > found.now:
		return strconv.FormatInt(due, 10)
	default:
		return strconv.FormatInt(found.now+r.patience(), 10)
	}
}
