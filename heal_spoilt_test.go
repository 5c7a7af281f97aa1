package main

import (
	"fmt"
	"maps"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// spoiltRooms are what somebody else may do to the keys of a room.
func spoiltRooms() map[string]func(t *testing.T, rdb redis.UniversalClient, c *audience) {
	all := map[string]func(t *testing.T, rdb redis.UniversalClient, c *audience){
		"a fence of a member": func(t *testing.T, rdb redis.UniversalClient, c *audience) {
			keys := fencedKeys(c.room, c.observers()[0].user.id)
			must(t, rdb.Set(t.Context(), keys[len(keys)-1], "9007199254740990", 0).Err())
		},
	}
	for name, key := range map[string]func(roomKeys) string{
		"conn_meta": roomKeys.meta, "members": roomKeys.members, "conns": roomKeys.conns, "last_seen": roomKeys.lastSeen, "rev": roomKeys.revision,
	} {
		all["no "+name] = func(t *testing.T, rdb redis.UniversalClient, c *audience) {
			must(t, rdb.Del(t.Context(), key(keysOf(c.room))).Err())
		}
	}
	for _, rev := range []string{
		"1000000000000000", "9007199254740990", "9007199254740991", "9007199254740992", "9223372036854775807", "99999999999999999999999",
		"1e300", "inf", "nan", "-5", "1.5", "0x20", " 7", "007", "junk", "",
	} {
		all["rev "+strconv.Quote(rev)] = func(t *testing.T, rdb redis.UniversalClient, c *audience) {
			must(t, rdb.Set(t.Context(), keysOf(c.room).revision(), rev, 0).Err())
		}
	}
	return all
}

// agree tells whether the indices of a room agree with conn_meta, in which the last healing may still be at work.
func agree(t *testing.T, rdb redis.UniversalClient, room string) bool {
	k := keysOf(room)
	meta := rdb.HGetAll(t.Context(), k.meta()).Val()
	return maps.Equal(countUsers(t, meta), rdb.HGetAll(t.Context(), k.members()).Val()) &&
		rdb.SCard(t.Context(), k.conns()).Val() == int64(len(meta)) && rdb.ZCard(t.Context(), k.lastSeen()).Val() == int64(len(meta))
}

// startAudience has clients of two nodes join a room of a Redis that the test may spoil.
func startAudience(t *testing.T) (c *audience, nodes []*node, rdb redis.UniversalClient) {
	t.Helper()
	server := spawnRedis(t)
	b := backend{url: server.url, real: true}
	nodes = []*node{startNodeFor(t, b), startNodeFor(t, b)}
	c = newAudience(t, uniqueRoom(t))
	for i := range 6 {
		c.join("127.0.0.1:"+nodes[i%2].port(), `{"n":0}`)
	}
	c.eventuallyConverged(nodes[0].service, 5*time.Second)
	return c, nodes, b.open(t)
}

// TestARoomWhoseKeysAreSpoiltHeals_G3_G6_G8 with clients that do nothing meanwhile, and with some that change the room.
func TestARoomWhoseKeysAreSpoiltHeals_G3_G6_G8(t *testing.T) {
	t.Parallel()
	for name, spoil := range spoiltRooms() {
		for _, changing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/changing %t", name, changing), func(t *testing.T) {
				if short := changing && (name == "no conn_meta" || name == `rev "1e300"`); !short {
					takesLong(t)
				}
				t.Parallel()
				c, nodes, rdb := startAudience(t)
				addr, service := "127.0.0.1:"+nodes[0].port(), nodes[0].service
				spoil(t, rdb, c)
				if changing {
					stop := c.busy(20 * time.Millisecond)
					c.join(addr, `{"n":0}`)
					c.observers()[1].close()
					stop()
				}
				c.eventuallyConverged(service, healedWithin)
				for i, o := range c.observers() {
					if ack, err := o.patch(t.Context(), i); err != nil || !ack.OK {
						t.Error(ack.text, err)
					}
				}
				c.join(addr, `{"n":0}`)
				c.observers()[1].close()
				c.eventuallyConverged(service, removedWithin)
				c.afterTheHold(nodes...)
				c.eventuallyConverged(service, 2*time.Second)
				c.assertNoFalseLeave()
				eventually(t, 5*time.Second, "the indices agree", func() bool { return agree(t, rdb, c.room) })
				text := rdb.Get(t.Context(), keysOf(c.room).revision()).Val()
				if rev, err := strconv.ParseInt(text, 10, 64); err != nil || rev > maxRevision || strconv.FormatInt(rev, 10) != text {
					t.Errorf("the counter is %q", text)
				}
			})
		}
	}
}

// forge publishes a leave of a member that has not left.
func (c *audience) forge(rdb redis.UniversalClient, victim *observer, reason Reason) {
	c.t.Helper()
	k := keysOf(c.room)
	rev, err := rdb.Get(c.t.Context(), k.revision()).Int64()
	must(c.t, err)
	m, _ := parseMeta(rdb.HGet(c.t.Context(), k.meta(), victim.user.id).Val())
	text := fmt.Sprintf(`{"prev":%d,"rev":%d,"ts":%d,"epoch":%d,"userConns":0,"type":"leave","connId":%q,"userId":%q,"roomId":%q,"reason":%q,"state":null}`,
		rev, rev+1, time.Now().UnixMilli(), m.Epoch, victim.user.id, m.User, c.room, reason)
	must(c.t, rdb.Publish(c.t.Context(), k.events(), text).Err())
	eventually(c.t, busy, "it was told", func() bool { return victim.heard(EventLeave) > 0 })
}

// TestAForgedLeaveHeals_G3: a message on the room's channel tells that a member left. It comes back, unless it was kicked.
func TestAForgedLeaveHeals_G3(t *testing.T) {
	for _, reason := range []Reason{ReasonLeft, ReasonDisconnected, ReasonTimeout, ReasonNodeLost, ReasonReplaced} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			c, nodes, rdb := startAudience(t)
			victim := c.observers()[0]
			c.forge(rdb, victim, reason)
			if ack, err := victim.patch(t.Context(), 1); err != nil || !ack.OK {
				t.Error(ack.text, err)
			}
			c.eventuallyConverged(nodes[0].service, healedWithin)
		})
	}
}

// TestAForgedKickBecomesOne_G3: the socket of the member hears nothing of the room any more, so it does not stay in it.
func TestAForgedKickBecomesOne_G3(t *testing.T) {
	t.Parallel()
	c, nodes, rdb := startAudience(t)
	victim := c.observers()[0]
	c.forge(rdb, victim, ReasonKicked)
	eventually(t, 5*time.Second, "the member is removed", func() bool {
		ack, err := victim.patch(t.Context(), 1)
		return err == nil && ack.Code == string(CodeNotJoined)
	})
	victim.close() // of which the others need not hear
	c.eventuallyConverged(nodes[0].service, healedWithin)
	c.join("127.0.0.1:"+nodes[0].port(), `{"n":0}`)
	c.eventuallyConverged(nodes[0].service, 2*time.Second)
}
