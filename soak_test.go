package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

var soakFor = flag.Duration("soak", 0, "for how long TestSoak lets real nodes meet faults, 0 = not at all")

const (
	soakNodes   = 3
	soakClients = 12
	soakEvery   = 20 * time.Second // a fault
	soakTTL     = 6 * time.Second
	soakLease   = 2 * time.Second

	// Time in which all is well again: what is lost is put back within 5 s, and removals are told within 6 s.
	soakBound = 15 * time.Second
)

// soak is nodes that run as processes, on a Redis that fails, and clients in one room.
type soak struct {
	*testing.T
	random  *rand.Rand
	redis   *redisProcess
	rdb     redis.UniversalClient
	service *Service // reads the room
	binary  string
	ports   []string
	nodes   []*program
	crowd   *audience
	homes   map[*observer]int // the node of each client
}

func (s *soak) start(i int) {
	s.nodes[i] = startProcess(s.T, s.binary, "PORT="+s.ports[i], "REDIS_URL="+s.redis.url, "PRESENCE_RATE_PER_SECOND=0",
		fmt.Sprint("PRESENCE_TTL_MS=", soakTTL.Milliseconds()), fmt.Sprint("PRESENCE_NODE_LEASE_MS=", soakLease.Milliseconds()),
		"PRESENCE_REAPER_INTERVAL_MS=500")
	s.nodes[i].address()
}

// come has a client join at a node.
func (s *soak) come(i int) { s.homes[s.crowd.join("127.0.0.1:"+s.ports[i], `{"n":0}`)] = i }

// at are the clients of a node.
func (s *soak) at(i int) (list []*observer) {
	for _, o := range s.crowd.observers() {
		if s.homes[o] == i {
			list = append(list, o)
		}
	}
	return list
}

// expect tells whether leaves of these clients are false from now on.
func (s *soak) expect(list []*observer, living bool) {
	s.crowd.mu.Lock()
	defer s.crowd.mu.Unlock()
	for _, o := range list {
		if living {
			s.crowd.living[o.user.id] = true
		} else {
			delete(s.crowd.living, o.user.id)
		}
	}
}

// command is one that excuses nobody.
func (s *soak) command(args ...any) (excused []*observer) {
	ctx, cancel := context.WithTimeout(s.Context(), 5*time.Second)
	defer cancel()
	if err := s.rdb.Do(ctx, args...).Err(); err != nil {
		s.Errorf("%v: %v", args, err)
	}
	return nil
}

// soakFault is something that goes wrong, with all that it takes until it is over. It returns clients of whom others may be
// told that they left.
type soakFault struct {
	name string
	do   func(s *soak) (excused []*observer)
}

var soakFaults = []soakFault{
	{"a node is killed", func(s *soak) []*observer {
		i := s.random.IntN(soakNodes)
		gone := s.at(i)
		s.expect(gone, false)
		s.nodes[i].signal(syscall.SIGKILL)
		s.nodes[i].wait(5 * time.Second)
		for _, o := range gone {
			o.close()
		}
		s.start(i)
		for range gone {
			s.come(i)
		}
		return nil
	}},
	{"a node stands still for two leases", func(s *soak) []*observer {
		i := s.random.IntN(soakNodes)
		still := s.at(i)
		s.expect(still, false)
		s.nodes[i].signal(syscall.SIGSTOP)
		pause(s.Context(), 2*soakLease)
		s.nodes[i].signal(syscall.SIGCONT)
		return still
	}},
	{"Redis is restarted empty", func(s *soak) []*observer {
		s.redis.restart()
		return nil
	}},
	{"Redis stands still for 5 s", func(s *soak) []*observer {
		s.redis.signal(syscall.SIGSTOP)
		pause(s.Context(), 5*time.Second)
		s.redis.signal(syscall.SIGCONT)
		return nil
	}},
	{"subscriptions are cut", func(s *soak) []*observer {
		for range 10 {
			s.command("CLIENT", "KILL", "TYPE", "pubsub")
			pause(s.Context(), 100*time.Millisecond)
		}
		return nil
	}},
	{"SCRIPT FLUSH", func(s *soak) []*observer { return s.command("SCRIPT", "FLUSH") }},
	{"FLUSHALL", func(s *soak) []*observer { return s.command("FLUSHALL") }},
	{"clients vanish", func(s *soak) []*observer {
		all := s.crowd.observers()
		for _, i := range s.random.Perm(len(all))[:len(all)/2] {
			all[i].close()
			s.come(s.homes[all[i]])
		}
		return nil
	}},
}

// TestSoak lets a random fault happen every 20 s while clients come, go and change their states, and checks at every quiet
// point that each client has seen the room as it is (G3), that nobody was told of a leave of a living member (G5, G8), and that
// the indices agree (G6).
func TestSoak_G3_G5_G6_G8(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("it takes -soak=10m")
	}
	seed := rand.Uint64()
	if *modelSeed != 0 {
		seed = *modelSeed
	}
	t.Logf("go test -run Soak -soak=%v -seed=%d", *soakFor, seed)
	s := &soak{T: t, random: rand.New(rand.NewPCG(seed, 0)), redis: spawnRedis(t), binary: buildBinary(t),
		nodes: make([]*program, soakNodes), crowd: newAudience(t, uniqueRoom(t)), homes: map[*observer]int{}}
	s.rdb = backend{url: s.redis.url}.open(t)
	s.service = startService(t, s.rdb, Options{TTL: soakTTL})
	for i := range s.nodes {
		s.ports = append(s.ports, freePort())
		s.start(i)
	}
	for i := range soakClients {
		s.come(i % soakNodes)
	}
	for end := time.Now().Add(*soakFor); time.Now().Before(end) && !t.Failed(); {
		s.round(soakFaults[s.random.IntN(len(soakFaults))])
	}
	s.crowd.assertNoFalseLeave()
}

// round lets one fault happen under load, and judges in the quiet after it.
func (s *soak) round(f soakFault) {
	began := time.Now()
	stop := s.crowd.busy(50 * time.Millisecond)
	pause(s.Context(), time.Second)
	excused := f.do(s)
	over := time.Now()
	stop()
	s.crowd.eventuallyConverged(s.service, soakBound)
	s.Logf("%s: whole again %v after it", f.name, time.Since(over).Round(time.Millisecond))
	s.expect(excused, true)
	for range 3 { // coming and going
		all := s.crowd.observers()
		o := all[s.random.IntN(len(all))]
		o.close()
		s.come(s.homes[o])
	}
	s.crowd.eventuallyConverged(s.service, soakBound)
	assertAgree(s.T, s.service, s.crowd.room)
	s.crowd.mu.Lock()
	wrongly := slices.Clone(s.crowd.wrongly)
	s.crowd.mu.Unlock()
	if len(wrongly) > 0 {
		s.Errorf("%s: %d false leaves, the first: %s", f.name, len(wrongly), wrongly[0])
	}
	// Those who stay are heard of until the next fault.
	stop = s.crowd.busy(time.Second)
	pause(s.Context(), soakEvery-time.Since(began))
	stop()
}
