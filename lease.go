package main

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"time"
)

const (
	// The keys of leases live for so long after the last renewal, or four leases if that is longer.
	leaseKeysTTL = time.Hour

	// Pause before a renewal that failed is tried again; a tenth of the lease if that is shorter.
	leasePause = 200 * time.Millisecond

	// Rooms that one script notes or forgets.
	leaseBatch = 500
)

// lease tells the other nodes that this one lives, and lets them find its rooms if it does not. It costs the same for any
// number of connections: one script each third of the lease, and one when the node enters a room.
//
// A node that was declared lost goes on under another name. What those who declared it lost still have under way is meant
// for connections of the old name, and spares those that it has put back since.
type lease struct {
	*background
	service *Service
	length  time.Duration
	log     *slog.Logger
	lost    func() // has the node put its members back, under its new name

	renewing operationLock[ofToken]

	mu         mutex[ofNone]
	node       string           // the present name
	begun      bool             // Redis has it
	generation int64            // counts declarations
	declared   map[string]int64 // room → generation in which Redis was told of it
	dropped    map[string]int64 // rooms that Redis is to forget, unless they were declared in a later generation
}

// newLease makes a lease under a new name. It is kept after start. lost is called each time that it was lost.
func newLease(s *Service, length time.Duration, lost func(), log *slog.Logger) *lease {
	l := &lease{background: newBackground(), service: s, length: length, lost: lost, log: log, renewing: newOperationLock[ofToken]()}
	l.rename()
	return l
}

// start begins the lease and keeps it until close.
func (l *lease) start() {
	l.keep(l.log, "lease", l.loop, nil)
}

// close ends the renewals. A node that is in no room any more gives its lease up; else others find its members when it is over.
func (l *lease) close(ctx context.Context, empty bool) {
	l.end()
	if !empty {
		return
	}
	s := l.service
	if _, err := s.run(ctx, s.scripts.forgetNode, l.keys(), l.name()); err != nil {
		l.log.Debug("lease not given up", "error", err)
	}
}

func (l *lease) rename() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.node, l.begun = rand.Text(), false
	l.declared, l.dropped = map[string]int64{}, map[string]int64{}
}

// name is what this node is called at present.
func (l *lease) name() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.node
}

// keys are the KEYS of the scripts.
func (l *lease) keys() []string { return []string{leasesKey, nodeRoomsKey(l.name())} }

func (l *lease) ttl() int64 { return max(leaseKeysTTL, 4*l.length).Milliseconds() }

func (l *lease) loop() {
	for l.ctx.Err() == nil {
		wait := l.length / 3
		ctx, cancel := context.WithTimeout(l.ctx, answerWithin)
		if err := l.renew(ctx); err != nil {
			l.log.Debug("lease not renewed", "error", err)
			wait = min(leasePause, l.length/10)
		} else if l.behind() {
			wait = 0
		}
		cancel()
		pause(l.ctx, wait)
	}
}

// behind tells whether so many rooms wait to be forgotten that the next renewal may not wait: nodes whose clients go through many
// rooms leave them faster than one batch for each renewal.
func (l *lease) behind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.dropped) >= leaseBatch
}

// renew renews the lease, or begins it. If it was lost, another begins, and the node's members are put back.
func (l *lease) renew(ctx context.Context) error {
	if err := l.renewing.LockBefore(ctx); err != nil {
		return unavailable(err)
	}
	defer l.renewing.Unlock()
	verdict, err := l.tryRenew(ctx)
	if err != nil || verdict != "lost" {
		return err
	}
	l.log.Warn("the lease of this node was lost: its members are put back", "node", l.name())
	l.rename()
	_, err = l.tryRenew(ctx)
	l.work.Go(l.lost)
	return err
}

// tryRenew runs the script, and tells Redis anew of rooms that it has lost.
func (l *lease) tryRenew(ctx context.Context) (verdict string, err error) {
	l.mu.Lock()
	begins, declared := 0, len(l.declared)
	if !l.begun {
		begins = 1
	}
	left := firstOf(l.dropped, leaseBatch)
	l.mu.Unlock()
	args := append([]any{l.name(), l.length.Milliseconds(), begins, declared, l.ttl()}, pairs(left)...)
	answer, err := l.service.run(ctx, l.service.scripts.renewLease, l.keys(), args...)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.begun = true
	for room, generation := range left {
		if l.dropped[room] == generation {
			delete(l.dropped, room)
		}
	}
	again := maps.Clone(l.declared)
	l.mu.Unlock()
	if answer.verdict() == "short" {
		err = l.noteAll(ctx, again)
	}
	return answer.verdict(), err
}

// hosts tells whether host has nothing to do for a room, and the node's name.
func (l *lease) hosts(room string) (node string, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.node, l.declared[room] != 0
}

// host makes sure that whoever calls this node lost looks into the room. Called before a member is written to it; gives the
// node's name to write.
func (l *lease) host(ctx context.Context, room string) (node string, err error) {
	for ctx.Err() == nil {
		l.mu.Lock()
		node, declared := l.node, l.declared[room]
		l.generation++
		generation := l.generation
		l.mu.Unlock()
		if declared != 0 {
			return node, nil
		}
		verdict, err := l.declareRooms(ctx, node, map[string]int64{room: generation})
		switch {
		case err != nil:
			return "", err
		case verdict == "ok":
			l.remember(node, room, generation)
		default: // not begun yet, or lost
			err = l.renew(ctx)
		}
		if err != nil {
			return "", err
		}
	}
	return "", unavailable(ctx.Err())
}

// remember keeps that Redis was told of a room, unless the node has another name by now.
func (l *lease) remember(node, room string, generation int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.node == node {
		l.declared[room] = max(l.declared[room], generation)
	}
}

// leave is told that the node has no members in a room any more. Redis forgets it with the next renewal.
func (l *lease) leave(room string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if generation, ok := l.declared[room]; ok {
		delete(l.declared, room)
		l.dropped[room] = generation
	}
}

func (l *lease) noteAll(ctx context.Context, rooms map[string]int64) error {
	for len(rooms) > 0 {
		some := firstOf(rooms, leaseBatch)
		if _, err := l.declareRooms(ctx, l.name(), some); err != nil {
			return err
		}
		maps.DeleteFunc(rooms, func(room string, _ int64) bool { return some[room] != 0 })
	}
	return nil
}

func (l *lease) declareRooms(ctx context.Context, node string, rooms map[string]int64) (verdict string, err error) {
	args := append([]any{node, l.ttl()}, pairs(rooms)...)
	answer, err := l.service.run(ctx, l.service.scripts.noteRooms, []string{leasesKey, nodeRoomsKey(node)}, args...)
	return answer.verdict(), err
}

// firstOf gives some of the rooms.
func firstOf(rooms map[string]int64, atMost int) map[string]int64 {
	some := make(map[string]int64, min(len(rooms), atMost))
	for room, generation := range rooms {
		if len(some) == atMost {
			break
		}
		some[room] = generation
	}
	return some
}

// pairs are rooms and turns as a script takes them.
func pairs(rooms map[string]int64) []any {
	args := make([]any, 0, 2*len(rooms))
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		args = append(args, room, rooms[room])
	}
	return args
}
