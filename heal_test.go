package main

import (
	"fmt"
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

// lossOfData are the ways in which a Redis loses what it had. lose returns when it answers again.
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

// afterTheHold waits until nodes tell removals again, and have read the room since.
func (c *audience) afterTheHold(nodes ...*node) {
	c.t.Helper()
	for _, n := range nodes {
		r := n.hub.find(c.room)
		eventually(c.t, 2*lossPatience, "the room is read without sparing anybody", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return !r.holds() && !r.reading && r.readAt.Sub(r.missedAt) >= lossPatience
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
