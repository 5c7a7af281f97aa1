package main

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// theNodes are processes of the program on one Redis, with a short lease.
type theNodes struct {
	redis *redisProcess
	nodes []*program
}

const (
	shortLease    = time.Second
	shortInterval = 200 * time.Millisecond
)

// startNodes builds the program and starts so many nodes on a Redis of their own.
func startNodes(t *testing.T, n int, settings ...string) *theNodes {
	t.Helper()
	all := &theNodes{redis: spawnRedis(t)}
	binary := buildBinary(t)
	settings = append(settings, "PORT=0", "REDIS_URL="+all.redis.url, "PRESENCE_RATE_PER_SECOND=0", "PRESENCE_DRAIN_MS=0",
		fmt.Sprint("PRESENCE_NODE_LEASE_MS=", shortLease.Milliseconds()), fmt.Sprint("PRESENCE_REAPER_INTERVAL_MS=", shortInterval.Milliseconds()))
	for range n {
		all.nodes = append(all.nodes, startProcess(t, binary, settings...))
	}
	for _, node := range all.nodes {
		node.address()
	}
	return all
}

// trusted waits until nodes that started at that time have been in contact with Redis for long enough to judge.
func (n *theNodes) trusted(t *testing.T, started time.Time) {
	t.Helper()
	eventually(t, 10*time.Second, "contact for a lease", func() bool { return time.Since(started) > shortLease+2*contactPeriod })
}

// leaves are the leaves for a reason, by connection.
func (u *user) leaves(reason Reason) map[string]int {
	count := map[string]int{}
	for _, e := range u.events {
		if e.Type == string(EventLeave) && e.Reason == string(reason) {
			count[e.ConnID]++
		}
	}
	return count
}

// TestAThousandConnectionsOfAKilledNode_G5 kills a node with SIGKILL. On each other node its connections leave once each,
// within the lease, the reaper's interval and 2 s.
func TestAThousandConnectionsOfAKilledNode_G5(t *testing.T) {
	const members, rooms = 1000, 10
	all, unique, started := startNodes(t, 3), uniqueRoom(t), time.Now()
	victim, others := all.nodes[0], all.nodes[1:]
	room := func(i int) string { return fmt.Sprint(unique, " ", i%rooms) }
	mortal := make([]string, members)
	crowd(members, func(i int) {
		u := dialUser(t, victim.address())
		u.join(room(i), fmt.Sprint("user ", i), "{}")
		mortal[i] = u.id
	})
	witnesses := make([]*user, len(others)*rooms)
	for i := range witnesses {
		witnesses[i] = dialUser(t, others[i/rooms].address())
		witnesses[i].join(room(i), "witness", "{}")
	}
	all.trusted(t, started)
	victim.signal(syscall.SIGKILL)
	killed := time.Now()
	last := make([]time.Duration, len(witnesses))
	crowd(len(witnesses), func(i int) {
		left := 0
		witnesses[i].until("that the last one is gone", func(e wireEvent) bool {
			if e.Reason == string(ReasonNodeLost) {
				left++
			}
			return left == members/rooms
		})
		last[i] = time.Since(killed)
	})
	for i, w := range witnesses {
		w.settled(w, room(i))
		gone := w.leaves(ReasonNodeLost)
		for j := i % rooms; j < members; j += rooms {
			if gone[mortal[j]] != 1 {
				t.Fatalf("a witness was told %d times that %s is lost", gone[mortal[j]], mortal[j])
			}
		}
		if others := len(gone) - members/rooms + len(w.leaves(ReasonTimeout)) + len(w.leaves(ReasonDisconnected)); others != 0 {
			t.Errorf("a witness was told of %d false leaves", others)
		}
	}
	t.Logf("the last of %d connections left %v after the kill on each of %d nodes", members, slices.Max(last), len(others))
	if bound := shortLease + shortInterval + 2*time.Second; slices.Max(last) > bound {
		t.Errorf("want it within %v", bound)
	}
}
