package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
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
	return startNodesOn(t, spawnRedis(t), n, settings...)
}

func startNodesOn(t *testing.T, server *redisProcess, n int, settings ...string) *theNodes {
	t.Helper()
	all := &theNodes{redis: server}
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
	takesLong(t)
	t.Parallel()
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

// TestAStoppedNodeComesBack_G4_G5_G8 stops a node with SIGSTOP until it was declared lost. When it goes on, it puts its
// members back, and none that a kick, a newer join or the end of its socket has ended. Then it is killed: under its new name
// its members are found again.
func TestAStoppedNodeComesBack_G4_G5_G8(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const members = 100
	all, room, started := startNodes(t, 2, "PRESENCE_API_KEY=the-key"), uniqueRoom(t), time.Now()
	s := startService(t, backend{url: all.redis.url}.open(t), Options{})
	mortal, other := all.nodes[0], all.nodes[1]
	join := func(name string) (u *user, epoch int64) {
		u = dialUser(t, mortal.address())
		return u, u.join(room, name, quotedState(name)).Self.Epoch
	}
	epochs := map[string]int64{}
	for i := range members {
		u, epoch := join(fmt.Sprint("user ", i))
		epochs[u.id] = epoch
	}
	kicked, _ := join("kicked")
	again, old := join("again")
	leaver, _ := join("leaver")
	closer, _ := join("closer")
	witness := dialUser(t, other.address())
	witness.join(room, "witness", "{}")
	all.trusted(t, started)

	mortal.signal(syscall.SIGSTOP)
	kick(t, other.address(), "the-key", room, kicked.id)
	newer, err := s.join(t.Context(), Member{Room: room, User: "again", Conn: again.id, State: raw(`{"newer":true}`), Epoch: old}, 0)
	if err != nil {
		t.Fatal(err)
	}
	leaver.tell(eventLeave, "{}")
	_ = closer.conn.Close()
	witness.untilAll(epochs, EventLeave, func(e wireEvent) bool { return e.Reason == string(ReasonNodeLost) })

	mortal.signal(syscall.SIGCONT)
	resumed := time.Now()
	witness.untilAll(epochs, EventJoin, func(e wireEvent) bool {
		return e.Epoch == epochs[e.ConnID] && string(e.State) == quotedState(e.UserID)
	})
	took := time.Since(resumed)
	t.Logf("%d members of a node that was stopped are back %v after it goes on", members, took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Error("want it within 3 s")
	}
	eventually(t, 10*time.Second, "only who lives in the room", func() bool {
		return len(mustRead(t, s, room).Entries) == members+2
	})
	stays := time.Now()
	eventually(t, 10*time.Second, "a lease without losses", func() bool { return time.Since(stays) > shortLease+2*shortInterval })
	snapshot := mustRead(t, s, room)
	for _, e := range snapshot.Entries {
		if e.ConnID == again.id && (e.Epoch != newer.Epoch || string(e.State) != `{"newer":true}`) {
			t.Errorf("the newer join became %+v", e)
		}
	}
	if here := conns(snapshot); len(here) != members+2 || slices.Contains(here, kicked.id) || slices.Contains(here, leaver.id) || slices.Contains(here, closer.id) {
		t.Errorf("the room has %d members, those who left or were kicked among them", len(here))
	}
	witness.settled(witness, room)
	if lost := witness.leaves(ReasonNodeLost); len(lost) > members+2 {
		t.Errorf("%d were lost, want the %d members and at most the two who ended meanwhile", len(lost), members)
	}

	witness.events = nil
	mortal.signal(syscall.SIGKILL)
	killed := time.Now()
	witness.untilAll(epochs, EventLeave, func(e wireEvent) bool { return e.Reason == string(ReasonNodeLost) })
	if took := time.Since(killed); took > shortLease+shortInterval+2*time.Second {
		t.Errorf("killed under its new name, its last member left after %v", took)
	}
}

func quotedState(name string) string { return `{"name":` + quoted(name) + `}` }

// untilAll reads events until there was one of a kind that satisfies cond of each of these connections.
func (u *user) untilAll(conns map[string]int64, kind EventType, cond func(wireEvent) bool) {
	u.t.Helper()
	_ = u.conn.SetDeadline(time.Now().Add(30 * time.Second))
	missing := maps.Clone(conns)
	u.until(fmt.Sprintf("%s of each of %d connections", kind, len(conns)), func(e wireEvent) bool {
		if e.Type == string(kind) && cond(e) {
			delete(missing, e.ConnID)
		}
		return len(missing) == 0
	})
}

// kick removes a connection by the HTTP API.
func kick(t *testing.T, addr, key, room, conn string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete,
		"http://"+addr+"/v1/rooms/"+url.PathEscape(room)+"/conns/"+url.PathEscape(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		t.Fatalf("the kick is answered with %s", answer.Status)
	}
}
