package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// healedWithin is how soon members are back after Redis is (G8).
	healedWithin = 5 * time.Second

	// removedWithin is how soon a removal is told after a loss of data (G3).
	removedWithin = 6 * time.Second
)

// standing are the incarnation and state of each member.
func standing(s Snapshot) map[string]string {
	members := map[string]string{}
	for _, e := range s.Entries {
		members[e.ConnID] = fmt.Sprint(e.UserID, " ", e.Epoch, " ", string(e.State))
	}
	return members
}

// lossesOfData are the ways in which a Redis loses what it had. lose returns when it answers again.
var lossesOfData = map[string]struct {
	before func(t *testing.T, server *redisProcess, rdb redis.UniversalClient) // halfway through the changes
	lose   func(t *testing.T, server *redisProcess, rdb redis.UniversalClient)
}{
	"FLUSHALL": {lose: func(t *testing.T, _ *redisProcess, rdb redis.UniversalClient) {
		must(t, rdb.FlushAll(t.Context()).Err())
	}},
	"restart": {lose: func(_ *testing.T, server *redisProcess, _ redis.UniversalClient) { server.restart() }},
	"older copy": { // what a fail-over to a replica that misses the last writes looks like
		before: func(t *testing.T, _ *redisProcess, rdb redis.UniversalClient) { must(t, rdb.Save(t.Context()).Err()) },
		lose:   func(_ *testing.T, server *redisProcess, _ redis.UniversalClient) { server.restart() },
	},
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMembersComeBackAfterALossOfData_G3_G8 has clients that do nothing while Redis loses all or the last changes.
func TestMembersComeBackAfterALossOfData_G3_G8(t *testing.T) {
	t.Parallel()
	for name, loss := range lossesOfData {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := spawnRedis(t)
			b := backend{url: server.url, real: true}
			nodes := []*node{startNodeFor(t, b), startNodeFor(t, b)}
			rdb, service := b.open(t), nodes[0].service
			c := newAudience(t, uniqueRoom(t))
			for i := range 20 {
				c.join("127.0.0.1:"+nodes[i%2].port(), `{"n":0}`)
			}
			if loss.before != nil {
				c.eventuallyConverged(service, 5*time.Second)
				loss.before(t, server, rdb)
			}
			for i := range 20 {
				c.join("127.0.0.1:"+nodes[i%2].port(), `{"n":0}`)
			}
			for i, o := range c.observers() {
				if ack, err := o.patch(t.Context(), i); err != nil || !ack.OK {
					t.Fatal(ack.text, err)
				}
			}
			c.eventuallyConverged(service, 5*time.Second)
			before := standing(mustRead(t, service, c.room))
			loss.lose(t, server, rdb)
			took := c.eventuallyConverged(service, healedWithin)
			t.Logf("%s: %d members back after %v", name, len(before), took.Round(time.Millisecond))
			assertSame(t, "members", before, standing(mustRead(t, service, c.room)))

			mortal := c.observers()[0]
			mortal.close()
			took = c.eventuallyConverged(service, 2*time.Second) // an ordinary leave does not wait
			t.Logf("%s: an ordinary leave was told after %v", name, took.Round(time.Millisecond))
			c.afterTheHold(nodes...)
			c.assertNoFalseLeave()
			assertAgree(t, service, c.room)
			for _, n := range nodes {
				assertIndexed(t, n, c)
			}
		})
	}
}

// afterTheHold waits until nodes tell removals again, and have read the room for those who were spared.
func (c *audience) afterTheHold(nodes ...*node) {
	c.t.Helper()
	for _, n := range nodes {
		r := n.hub.find(c.room)
		eventually(c.t, 2*lossPatience, "the room is read without sparing anybody", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return !r.holds() && !r.reading
		})
	}
}

// assertIndexed checks that the outer indices know the room and where its users are.
func assertIndexed(t *testing.T, n *node, c *audience) {
	t.Helper()
	if _, there := due(t, n.service, c.room); !there {
		t.Error("the reaper's index has lost the room")
	}
	for _, o := range c.observers() {
		ok, err := n.service.rdb.HExists(t.Context(), userKey("user of "+o.user.id), userField(c.room, o.user.id)).Result()
		if err != nil || !ok {
			t.Errorf("the index of the user of %s does not know it, %v", o.user.id, err)
		}
	}
}

// TestTenThousandMembersComeBack_G8 has one node put ten thousand members back, while a client's requests go on.
func TestTenThousandMembersComeBack_G8(t *testing.T) {
	takesLong(t)
	const members, perRoom = 10_000, 10
	server := spawnRedis(t)
	b := backend{url: server.url, real: true}
	n, rdb := startNodeFor(t, b), b.open(t)
	rooms := names(t, members/perRoom)
	began := time.Now()
	work := make(chan int)
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for i := range work {
				n.settle(t, rooms[i/perRoom], fmt.Sprint("c", i))
			}
		})
	}
	for i := range members {
		work <- i
	}
	close(work)
	workers.Wait()
	joining := time.Since(began) // on a machine where this takes as long, putting back may take longer too
	stored := func(rooms []string) (sum int64) {
		counts, err := rdb.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
			for _, room := range rooms {
				pipe.HLen(t.Context(), keysOf(room).meta())
			}
			return nil
		})
		must(t, err)
		for _, count := range counts {
			sum += count.(*redis.IntCmd).Val()
		}
		return sum
	}
	if n := stored(rooms); n != members {
		t.Fatalf("%d members before", n)
	}
	u := n.member(t, uniqueRoom(t), "ann", "{}")
	must(t, rdb.FlushAll(t.Context()).Err())
	start, longest := time.Now(), time.Duration(0)
	eventually(t, max(healedWithin, 3*joining), "all members are back", func() bool {
		asked := time.Now()
		u.ok(eventHeartbeat, "")
		longest = max(longest, time.Since(asked))
		some := rooms[:10] // asking for all again and again would be a load of its own
		return stored(some) == int64(len(some)*perRoom) && stored(rooms) == members
	})
	t.Logf("%d members back after %v; the longest heartbeat meanwhile took %v",
		members, time.Since(start).Round(time.Millisecond), longest.Round(time.Millisecond))
}

// settle makes a member that the node owns as that of a socket.
func (n *node) settle(t *testing.T, room, conn string) {
	m := &membership{room: n.hub.acquire(room), mu: newOperationLock[ofMembership](), expiresAt: time.Now().Add(n.service.options.Lookback)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room.own(conn, m)
	name, err := n.lease.host(t.Context(), room)
	if err == nil {
		m.Member, err = n.service.join(t.Context(), Member{Room: room, User: "user of " + conn, Conn: conn, Node: name, State: raw("{}")}, 0)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestWhoLeftDuringALossOfDataIsToldInTime_G3 has a client vanish while Redis is away, which then comes back empty.
func TestWhoLeftDuringALossOfDataIsToldInTime_G3(t *testing.T) {
	takesLong(t)
	t.Parallel()
	server := spawnRedis(t)
	b := backend{url: server.url, real: true}
	nodes := []*node{startNodeFor(t, b), startNodeFor(t, b)}
	c := newAudience(t, uniqueRoom(t))
	for i := range 10 {
		c.join("127.0.0.1:"+nodes[i%2].port(), "{}")
	}
	c.eventuallyConverged(nodes[0].service, 5*time.Second)
	server.stop()
	c.observers()[0].close()
	server.restart()
	for _, n := range nodes {
		eventually(t, 10*time.Second, "the loss is noticed", func() bool {
			r := n.hub.find(c.room)
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.holds()
		})
	}
	took := c.eventuallyConverged(nodes[0].service, removedWithin)
	t.Logf("the leave of who vanished was told after %v", took.Round(time.Millisecond))
	c.afterTheHold(nodes...)
	c.assertNoFalseLeave()
}

// TestProcessesRecoverFromLostSubscriptions_G3 cuts the subscriptions of two processes of the program again and again under load.
func TestProcessesRecoverFromLostSubscriptions_G3(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const cuts = 40
	server := spawnRedis(t)
	b := backend{url: server.url, real: true}
	rdb, binary := b.open(t), buildBinary(t)
	c := newAudience(t, uniqueRoom(t))
	for range 2 {
		p := startProcess(t, binary, "PORT=0", "REDIS_URL="+b.url, "PRESENCE_RATE_PER_SECOND=0")
		for range 10 {
			c.join(p.address(), "{}")
		}
	}
	stop := c.busy(10 * time.Millisecond)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	killed := int64(0)
	for range cuts {
		<-tick.C
		n, err := rdb.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Result()
		must(t, err)
		killed += n
	}
	last := time.Now()
	stop()
	c.eventuallyConverged(startService(t, rdb, Options{}), 2*time.Second)
	t.Logf("%d subscriptions cut; every view equal to the store %v after the last", killed, time.Since(last).Round(time.Millisecond))
	c.assertNoFalseLeave()
}

// withReplicas gives each master of a cluster a replica.
func (c *testCluster) withReplicas(t *testing.T) {
	t.Helper()
	host, port, _ := net.SplitHostPort(c.nodes[0].addr)
	for _, master := range c.nodes[:3] {
		p, err := startRedis([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0"})
		must(t, err)
		c.nodes = append(c.nodes, p)
		at, of := redis.NewClient(&redis.Options{Addr: p.addr}), redis.NewClient(&redis.Options{Addr: master.addr})
		defer at.Close()
		defer of.Close()
		id, err := of.Do(t.Context(), "CLUSTER", "MYID").Text()
		must(t, err)
		must(t, at.Do(t.Context(), "CLUSTER", "MEET", host, port, c.nodes[0].busPort).Err())
		eventually(t, startTimeout, "the replica knows its master", func() bool {
			return at.Do(t.Context(), "CLUSTER", "REPLICATE", id).Err() == nil
		})
	}
	for i, master := range c.nodes[:3] {
		of := redis.NewClient(&redis.Options{Addr: master.addr})
		defer of.Close()
		eventually(t, startTimeout, "a replica of each master", func() bool {
			info, _ := of.Info(t.Context(), "replication").Result()
			return strings.Contains(info, "state=online") && c.nodes[i].inCluster(t.Context(), 3)
		})
	}
}

// TestAMasterOfAClusterDies_G3_G8 kills the master of a room under load.
func TestAMasterOfAClusterDies_G3_G8(t *testing.T) {
	takesLong(t)
	t.Parallel()
	needRedis(t)
	cluster, err := startCluster()
	must(t, err)
	t.Cleanup(cluster.remove)
	cluster.withReplicas(t)
	b := backend{url: cluster.nodes[1].url, real: true, cluster: true}
	type side struct {
		nodes []*node
		*audience
		stop func()
	}
	var sides []side
	for _, sharded := range []string{"false", "true"} {
		s := side{audience: newAudience(t, roomAtFirstMaster(t))}
		for range 2 {
			s.nodes = append(s.nodes, startNodeFor(t, b, "PRESENCE_SHARDED_PUBSUB="+sharded))
		}
		for i := range 10 {
			s.join("127.0.0.1:"+s.nodes[i%2].port(), "{}")
		}
		s.stop = s.busy(20 * time.Millisecond)
		sides = append(sides, s)
	}
	killed := time.Now()
	cluster.nodes[0].stop()
	for _, s := range sides {
		eventually(t, startTimeout, "the replica is the master", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), answerWithin)
			defer cancel()
			_, err := s.nodes[0].service.read(ctx, s.room)
			return err == nil
		})
	}
	promoted := time.Now()
	for _, s := range sides {
		s.stop()
		s.eventuallyConverged(s.nodes[0].service, healedWithin)
	}
	t.Logf("the replica was the master %v after the kill, all views equal to the store %v after that",
		promoted.Sub(killed).Round(time.Millisecond), time.Since(promoted).Round(time.Millisecond))
	for _, s := range sides {
		s.afterTheHold(s.nodes...)
		s.assertNoFalseLeave()
	}
}

func roomAtFirstMaster(t *testing.T) string {
	for {
		if room := uniqueRoom(t); int(hashSlot(keysOf(room).meta())) < 16384/3 {
			return room
		}
	}
}
