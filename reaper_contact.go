package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// How often a reaper writes to each master, and how soon again after a failure.
	contactPeriod = time.Second
	contactRetry  = 200 * time.Millisecond

	// Bound for the answer to such a write. It is below pipelineDoubt, so that a slow probe alone does not make a pipeline
	// refuse calls.
	contactWithin = 900 * time.Millisecond

	// What Redis' clock may gain or lose between two answers.
	clockTolerance = time.Second

	// How often a reaper looks for masters that are new in a cluster.
	layoutPeriod = 5 * time.Second

	// Names that are tried to find a room in the slots of a master: enough for a master with one slot.
	probeRooms = 1 << 17
)

// errNoSlots is why a master gets no probes any more.
var errNoSlots = errors.New("no room is in the slots of this master")

// contactTracker knows since when Redis has taken the writes that refresh members, by master. Only after a while of unbroken contact
// has everybody who lives had the time to be heard of, with a clock of Redis that went like ours.
//
// A master that answers and refuses writes is no contact. Neither is an answer to a call that only reads.
type contactTracker struct {
	need     time.Duration
	patience time.Duration // an answer that takes longer, or a silence of more than this and the period, breaks the contact

	mu       sync.Mutex
	contacts map[string]contact // by the name of a probeTarget
}

// contact with a master is unbroken since a time. The other fields are those of the last write that it took.
type contact struct {
	since, at time.Time
	clock     int64  // milliseconds, Redis' clock
	server    string // names the process of Redis, "" if that is not known
}

func newContactTracker(need, patience time.Duration) *contactTracker {
	return &contactTracker{need: need, patience: min(patience, time.Second), contacts: map[string]contact{}}
}

// wrote takes the answer of a master to a write that began at a time. It tells for how long the contact has lasted, and by
// how much Redis' clock was set since the answer before.
func (j *contactTracker) wrote(master string, began time.Time, clock int64, server string) (lasted, step time.Duration) {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	c, known := j.contacts[master]
	broken, step := j.breaks(c, began, now, clock)
	if !known || broken || isAnother(server, c.server) {
		c.since = now
	}
	j.contacts[master] = contact{since: c.since, at: now, clock: clock, server: server}
	return now.Sub(c.since), step
}

// read takes the answer of a master to a call that wrote nothing. It can break the contact, and does not extend it.
func (j *contactTracker) read(master string, began time.Time, clock int64) (lasted, step time.Duration) {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	c, known := j.contacts[master]
	if !known {
		return 0, 0
	}
	broken, step := j.breaks(c, began, now, clock)
	if broken {
		delete(j.contacts, master)
		return 0, step
	}
	return now.Sub(c.since), step
}

// breaks tells whether an answer shows that the contact was not whole. A contact that is not known has no meaning here.
func (j *contactTracker) breaks(c contact, began, now time.Time, clock int64) (broken bool, step time.Duration) {
	if c.at.IsZero() {
		return false, 0
	}
	silent := now.Sub(c.at)
	step = time.Duration(clock-c.clock)*time.Millisecond - silent
	return now.Sub(began) > j.patience || silent > contactPeriod+j.patience || step.Abs() > clockTolerance, step
}

// lost ends the contact with a master.
func (j *contactTracker) lost(master string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.contacts, master)
}

// clusterMasters is what clients of a cluster offer.
type clusterMasters interface {
	MasterForKey(ctx context.Context, key string) (*redis.Client, error)
	ForEachMaster(ctx context.Context, visit func(context.Context, *redis.Client) error) error
}

// masterOf is the address of the master of a key, by which contact with it is known.
func (r *reaper) masterOf(ctx context.Context, key string) (address string, err error) {
	return r.service.masterAddress(ctx, key)
}

// lostContact ends the contact with a master for both judges.
func (r *reaper) lostContact(master string) {
	r.contact.lost(master)
	r.loss.lost(master)
}

// stepped notes that Redis' clock was set back.
func (r *reaper) stepped(step time.Duration) {
	if step < -clockTolerance {
		r.fellBack.Store(true)
	}
}

// refused ends the contact with the master of a room if an error says that Redis refused to refresh a member.
func (r *reaper) refused(ctx context.Context, room string, err error) {
	if !isRefusal(err) {
		return
	}
	if master, err := r.masterOf(ctx, keysOf(room).meta()); err == nil {
		r.lostContact(master)
	}
}

// isRefusal tells whether Redis has answered with an error.
func isRefusal(err error) bool {
	var answered redis.Error
	return errors.As(err, &answered)
}

// probeTarget is where a reaper writes to see that Redis takes writes.
type probeTarget struct {
	contact string // what the judges call it
	keys    []string
}

// probe writes to a target as a heartbeat does. It tells whether one may judge now which nodes are lost.
func (r *reaper) probe(ctx context.Context, t probeTarget) (clock int64, trusted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, contactWithin)
	defer cancel()
	began := time.Now()
	answer, err := r.service.call(ctx, r.service.scripts.probe, t.keys, nil)
	if err == nil && answer.int(0) == 0 {
		err = answer.unexpected()
	}
	if err != nil {
		r.lostContact(t.contact)
		return 0, false, err
	}
	clock = answer.int(0)
	_, step := r.contact.wrote(t.contact, began, clock, answer.text(1))
	r.stepped(step)
	lasted, _ := r.loss.wrote(t.contact, began, clock, answer.text(1))
	return clock, lasted >= r.loss.need, nil
}

// keepContact writes to every master again and again, each by a goroutine of its own, so that one that hangs holds up no other.
func (r *reaper) keepContact() {
	s := r.service
	cluster, ok := s.rdb.(clusterMasters)
	if !ok {
		r.keepProbing(r.roomTarget(""))
		return
	}
	ended := make(chan struct{}, 1)
	visit := func(_ context.Context, master *redis.Client) error {
		address := master.Options().Addr
		if _, already := r.probed.LoadOrStore(address, true); already {
			return nil
		}
		s.work.Go(func() {
			keepRunning(s.ctx, s.options.Logger, "reaper", func() { r.keepProbing(r.roomTarget(address)) }, nil)
			r.probed.Delete(address)
			select {
			case ended <- struct{}{}:
			default:
			}
		})
		return nil
	}
	for s.ctx.Err() == nil {
		_ = cluster.ForEachMaster(s.ctx, visit) // without the layout there is no contact, which says enough
		select {
		case <-s.ctx.Done():
		case <-ended: // another master has its slots
		case <-time.After(layoutPeriod):
		}
	}
}

// keepProbing ends with the service, or with errNoSlots.
func (r *reaper) keepProbing(target func(context.Context) (probeTarget, error)) {
	ctx := r.service.ctx
	for ctx.Err() == nil {
		t, err := target(ctx)
		if errors.Is(err, errNoSlots) {
			return
		}
		if err == nil {
			_, _, err = r.probe(ctx, t)
		}
		wait := min(contactPeriod, r.contact.need/3, r.loss.need/3)
		if err != nil {
			wait = min(wait, contactRetry)
		}
		pause(ctx, wait)
	}
}

// roomTarget finds keys like those of a room in the slots of a master.
func (r *reaper) roomTarget(address string) func(context.Context) (probeTarget, error) {
	n := 0
	return func(ctx context.Context) (probeTarget, error) {
		for range probeRooms {
			room := probeRoom(n)
			master, err := r.masterOf(ctx, keysOf(room).meta())
			if err != nil {
				r.lostContact(address)
				return probeTarget{}, err
			}
			if master == address {
				return probeTarget{address, probeKeys(room)}, nil
			}
			n = (n + 1) % probeRooms
		}
		r.lostContact(address)
		return probeTarget{}, errNoSlots
	}
}

// leaseTarget has the keys of the leases. The contact is one of its own, because an ACL may know those keys from the rooms'.
func (r *reaper) leaseTarget(ctx context.Context) (probeTarget, error) {
	master, err := r.masterOf(ctx, leasesKey)
	return probeTarget{"leases at " + master, leaseProbeKeys()}, err
}
