package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
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

	// How often a reaper asks each master for its TIME.
	contactPeriod = time.Second

	// What Redis' clock may gain or lose between two answers.
	clockTolerance = time.Second

	// How often it looks for masters that are new in a cluster.
	layoutPeriod = 5 * time.Second

	// When a room is due again that its reaper may not judge yet: another one may.
	unjudgedPause = 250 * time.Millisecond
)

var (
	errNoContact = errors.New("contact with a master of Redis was too short to judge who is lost")
	errSpared    = errors.New("connections of a lost node were not removed")
)

// reaper removes connections that have been silent for longer than the lookback, and those of nodes whose lease is over. Any
// number of reapers share the work: rooms and nodes are claimed, and each removal is decided again inside its script.
//
// Outages cull nobody: it judges by what a master says only after unbroken contact with it.
type reaper struct {
	service  *Service
	silence  *judge      // of connections
	loss     *judge      // of nodes
	fellBack atomic.Bool // Redis' clock, since the last pass
}

func newReaper(s *Service) *reaper {
	o := s.options
	return &reaper{
		service: s,
		silence: newJudge(o.TTL, o.TTL/2),
		loss:    newJudge(o.NodeLease, o.NodeLease/3),
	}
}

// start has the service's goroutines look for who is overdue or lost until it stops.
func (r *reaper) start() {
	s := r.service
	s.work.Go(r.keepContact)
	s.work.Go(func() { r.repeat(r.pass) })
	s.work.Go(func() { r.repeat(r.passNodes) })
}

func (r *reaper) repeat(pass func(context.Context) error) {
	ctx := r.service.ctx
	tick := time.NewTicker(r.service.options.ReaperInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := pass(ctx); err != nil && ctx.Err() == nil {
			r.service.options.Logger.Warn("reaper could not look everywhere", "error", err)
		}
	}
}

// judge knows since when there is contact with each master. One may judge after a while of it, in which whoever lives has
// been able to say so, and in which Redis' clock went like ours.
type judge struct {
	need     time.Duration
	patience time.Duration // an answer that takes longer, or silence that is longer than this and the period, breaks the contact

	mu       sync.Mutex
	contacts map[string]contact // by address of the master
}

// contact with a master is unbroken since a time. at and clock are those of its last answer.
type contact struct {
	since, at time.Time
	clock     int64 // milliseconds
}

func newJudge(need, patience time.Duration) *judge {
	return &judge{need: need, patience: min(patience, time.Second), contacts: map[string]contact{}}
}

// heard takes an answer that a master gave at its clock's time to what was asked when it began. It tells whether one may
// judge by the answer, and how far the clock was set since the one before.
func (j *judge) heard(master string, began time.Time, clock int64) (trusted bool, step time.Duration) {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	c, known := j.contacts[master]
	silent := now.Sub(c.at)
	if known {
		step = time.Duration(clock-c.clock)*time.Millisecond - silent
	}
	if !known || now.Sub(began) > j.patience || silent > contactPeriod+j.patience || step.Abs() > clockTolerance {
		c.since = now
	}
	c.at, c.clock = now, clock
	j.contacts[master] = c
	return now.Sub(c.since) >= j.need, step
}

// lasted is for how long there has been contact with a master.
func (j *judge) lasted(master string) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.contacts[master]
	return c.at.Sub(c.since)
}

// lost ends the contact with a master.
func (j *judge) lost(master string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.contacts, master)
}

// clusterMasters is what clients of a cluster offer.
type clusterMasters interface {
	MasterForKey(ctx context.Context, key string) (*redis.Client, error)
	ForEachMaster(ctx context.Context, visit func(context.Context, *redis.Client) error) error
}

// timer is what can be asked for its TIME.
type timer interface {
	Time(ctx context.Context) *redis.TimeCmd
}

// masterOf gives the master of a key, and the address that contact with it goes by.
func (r *reaper) masterOf(ctx context.Context, key string) (address string, master timer, err error) {
	cluster, ok := r.service.rdb.(clusterMasters)
	if !ok {
		return "", r.service.rdb, nil
	}
	node, err := cluster.MasterForKey(ctx, key)
	if err != nil {
		return "", nil, err
	}
	return node.Options().Addr, node, nil
}

// ask asks a master for its TIME. It tells whether one may judge now which nodes are lost.
func (r *reaper) ask(ctx context.Context, address string, master timer) (clock int64, trusted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	began := time.Now()
	answer, err := master.Time(ctx).Result()
	if err != nil {
		r.silence.lost(address)
		r.loss.lost(address)
		return 0, false, err
	}
	clock = answer.UnixMilli()
	r.hear(r.silence, address, began, clock)
	return clock, r.hear(r.loss, address, began, clock), nil
}

func (r *reaper) hear(j *judge, address string, began time.Time, clock int64) (trusted bool) {
	trusted, step := j.heard(address, began, clock)
	if step < -clockTolerance {
		r.fellBack.Store(true)
	}
	return trusted
}

// keepContact asks every master again and again, each by a goroutine of its own, so that one that hangs holds up no other.
func (r *reaper) keepContact() {
	s := r.service
	cluster, ok := s.rdb.(clusterMasters)
	if !ok {
		r.keepAsking("", s.rdb)
		return
	}
	var mu sync.Mutex
	asked := map[*redis.Client]bool{}
	visit := func(_ context.Context, master *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		if asked[master] {
			return nil
		}
		asked[master] = true
		s.work.Go(func() {
			r.keepAsking(master.Options().Addr, master)
			mu.Lock()
			defer mu.Unlock()
			delete(asked, master)
		})
		return nil
	}
	for s.ctx.Err() == nil {
		_ = cluster.ForEachMaster(s.ctx, visit) // without the layout there is no contact, which says enough
		pause(s.ctx, layoutPeriod)
	}
}

// keepAsking ends with the service, or when the client is closed because its server has left the cluster.
func (r *reaper) keepAsking(address string, master timer) {
	ctx := r.service.ctx
	for ctx.Err() == nil {
		if _, _, err := r.ask(ctx, address, master); errors.Is(err, redis.ErrClosed) {
			return
		}
		pause(ctx, min(contactPeriod, r.silence.need/3, r.loss.need/3))
	}
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
		latest = strconv.FormatInt(max(r.service.options.Lookback, claimLease).Milliseconds()+r.patience(), 10)
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
	var workers sync.WaitGroup
	for range min(claimWorkers, len(list)) {
		workers.Go(func() {
			for item := range work {
				do(item)
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
	now     int64 // milliseconds, Redis' clock
	oldest  int64 // heartbeat of the most silent connection, 0 = the room is empty
	list    []incarnation
	trusted bool // contact was long enough to judge by this
	holds   bool // it was for those that are held back: nothing can be heard of them, but the clock may have been set
}

// look runs a script that finds something in a room, with its TIME first. It tells whether one may judge by the answer.
func (r *reaper) look(ctx context.Context, j *judge, sc *script, room string, args ...any) (answer reply, trusted bool, err error) {
	address, _, err := r.masterOf(ctx, keysOf(room).meta())
	if err != nil {
		return nil, false, err
	}
	began := time.Now()
	if answer, err = r.service.run(ctx, sc, scriptKeys(room), args...); err != nil {
		j.lost(address)
		return nil, false, err
	}
	return answer, r.hear(j, address, began, answer.int(0)), nil
}

func (r *reaper) overdue(ctx context.Context, room string) (silence, error) {
	s := r.service
	answer, trusted, err := r.look(ctx, r.silence, s.scripts.overdue, room, s.options.Lookback.Milliseconds(), removeBatch)
	if err != nil {
		return silence{}, err
	}
	address, _, err := r.masterOf(ctx, keysOf(room).meta())
	if err != nil {
		return silence{}, err
	}
	found := silence{now: answer.int(0), oldest: int64(answer.float(1)), trusted: trusted}
	found.holds = s.options.Grace > 0 && r.silence.lasted(address) >= s.options.Grace
	for i := 2; i < len(answer); i++ {
		found.list = append(found.list, incarnation{conn: answer.text(i)})
	}
	return found, nil
}

// cull removes who is still overdue when the script runs. One that waited in a stopped Redis does nothing: its clients'
// heartbeats wait there as well.
func (r *reaper) cull(ctx context.Context, room string, found silence) (gone int, err error) {
	if len(found.list) == 0 || !found.trusted && !found.holds {
		return 0, nil
	}
	o := r.service.options
	how := removal{reason: ReasonTimeout, silent: o.Lookback, notAfter: found.now + r.patience()}
	if !found.trusted {
		how.node = heldNode
	}
	_, removed, err := r.service.remove(ctx, room, how, found.list)
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
	case !found.trusted:
		return strconv.FormatInt(found.now+unjudgedPause.Milliseconds(), 10)
	default:
		return strconv.FormatInt(found.now+r.patience(), 10)
	}
}

// passNodes removes the connections of every node whose lease is over.
func (r *reaper) passNodes(ctx context.Context) error {
	address, master, err := r.masterOf(ctx, leasesKey)
	if err != nil {
		return err
	}
	clock, trusted, err := r.ask(ctx, address, master)
	if err != nil || !trusted {
		return nil // others may judge, or we later
	}
	s := r.service
	answer, err := s.run(ctx, s.scripts.claimNodes, []string{leasesKey}, claimLease.Milliseconds(), clock+r.loss.patience.Milliseconds())
	if err != nil {
		return err
	}
	for i := range answer {
		err = errors.Join(err, r.bury(ctx, answer.text(i)))
	}
	return err
}

// bury removes all connections of a lost node. When some cannot be removed now, the node is claimed again later.
func (r *reaper) bury(ctx context.Context, node string) error {
	s := r.service
	rooms, err := s.rdb.HKeys(ctx, nodeRoomsKey(node)).Result()
	if err != nil {
		return err
	}
	s.options.Logger.Warn("a node is lost", "node", node, "rooms", len(rooms))
	var failed atomic.Pointer[error]
	each(rooms, func(room *string) {
		if err := r.evict(ctx, *room, node); err != nil {
			failed.Store(&err)
		}
	})
	if err := failed.Load(); err != nil {
		return *err
	}
	_, err = s.run(ctx, s.scripts.forgetNode, []string{leasesKey, nodeRoomsKey(node)}, node)
	return err
}

// evict removes the connections of a lost node from a room.
func (r *reaper) evict(ctx context.Context, room, node string) error {
	for {
		found, err := r.owned(ctx, room, node)
		if err != nil || len(found.list) == 0 {
			return err
		}
		if !found.trusted {
			return errNoContact
		}
		how := removal{reason: ReasonNodeLost, node: node, notAfter: found.now + r.patience()}
		for list := range slices.Chunk(found.list, removeBatch) {
			_, gone, err := r.service.remove(ctx, room, how, list)
			if err != nil {
				return err
			}
			if len(gone) == 0 {
				return errSpared
			}
		}
		r.service.options.Logger.Info("connections of a lost node removed", "room", room, "connections", len(found.list))
	}
}

// owned finds the connections of a node in a room.
func (r *reaper) owned(ctx context.Context, room, node string) (found silence, err error) {
	answer, trusted, err := r.look(ctx, r.loss, r.service.scripts.owned, room, node)
	if err != nil {
		return silence{}, err
	}
	found = silence{now: answer.int(0), trusted: trusted}
	for i := 1; i+1 < len(answer); i += 2 {
		found.list = append(found.list, incarnation{answer.text(i), answer.int(i + 1)})
	}
	return found, nil
}
