package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestARedisWithoutMemoryRefusesJoinsAndLetsMembersLeave also calls the scripts in the form for Redis 6, which Redis 7
// treats as Redis 6 does.
func TestARedisWithoutMemoryRefusesJoinsAndLetsMembersLeave(t *testing.T) {
	p := spawnRedis(t, "--maxmemory-policy", "noeviction")
	rdb := backend{url: p.url}.open(t)
	for _, noScriptFlags := range []bool{false, true} {
		t.Run(fmt.Sprintf("noScriptFlags=%v", noScriptFlags), func(t *testing.T) {
			s, room := startService(t, rdb, Options{}), uniqueRoom(t)
			s.noScriptFlags.Store(noScriptFlags)
			m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
			mustJoin(t, s, room, "cat", "silent", "{}")
			mustJoin(t, s, room, "dan", "ahead", "{}")
			mustJoin(t, s, room, "eve", "kicked", "{}")
			age(t, rdb, room, "silent", 1)
			age(t, rdb, room, "ahead", 1e15)
			rdb.ZAdd(t.Context(), activeRoomsKey, redis.Z{Score: 1, Member: room})
			rdb.HSet(t.Context(), connKey(room, "a"), "last_seen_ms", 1)
			renewLeaseOf(t, s, room, 1)
			setMaxMemory(t, rdb, "1mb")
			t.Cleanup(func() { setMaxMemory(t, rdb, "0") })

			keys := append(roomKeysOf(room, "a", "b"), userKey("bob"))
			before := dump(t, rdb, keys...)
			_, err := s.Join(t.Context(), room, "bob", "b", nil)
			wantCode(t, err, CodeUnavailable)
			_, err = s.join(t.Context(), m, 0)
			wantCode(t, err, CodeUnavailable)
			assertSame(t, "without memory", before, dump(t, rdb, keys...))

			refreshed := func(by string) {
				t.Helper()
				if seen := rdb.HGet(t.Context(), connKey(room, "a"), "last_seen_ms").Val(); seen == "1" {
					t.Errorf("%s has refreshed nothing", by)
				}
				rdb.HSet(t.Context(), connKey(room, "a"), "last_seen_ms", 1)
			}
			_, _, err = s.heartbeat(t.Context(), &m, raw(`{"n":2}`), 0)
			wantCode(t, err, CodeUnavailable)
			refreshed("the patch that was refused")
			if _, _, err := s.Heartbeat(t.Context(), room, "a", nil, m.Epoch); err != nil {
				t.Errorf("a heartbeat, which needs no memory: %v", err)
			}
			refreshed("the heartbeat")
			if err := newTrustingReaper(s).pass(t.Context()); err != nil {
				t.Errorf("the reaper: %v", err)
			}
			renewLeaseOf(t, s, room, 0)
			if v := mustRead(t, s, room); len(v.Entries) != 3 || string(v.Entries[0].State) != `{"n":1}` {
				t.Errorf("the room is %+v", v)
			}
			if err := s.Kick(t.Context(), room, "kicked"); err != nil {
				t.Errorf("a kick: %v", err)
			}
			mustLeave(t, s, room, "ahead")
			mustLeave(t, s, room, "a")
			if v := mustRead(t, s, room); len(v.Entries) != 0 {
				t.Errorf("after the leaves the room is %+v", v)
			}
			setMaxMemory(t, rdb, "0")
			assertAgree(t, s, room)
			if _, err := s.Join(t.Context(), room, "bob", "b", nil); err != nil {
				t.Errorf("a join after the shortage: %v", err)
			}
		})
	}
}

// renewLeaseOf begins or renews the lease of a node.
func renewLeaseOf(t *testing.T, s *Service, node string, begins int) {
	t.Helper()
	answer, err := s.run(t.Context(), s.scripts.renewLease, []string{leasesKey, nodeRoomsKey(node)}, node, 60_000, begins, 0, 60_000)
	if err != nil || answer.verdict() != "ok" {
		t.Errorf("a lease: %v, %v", answer, err)
	}
}

// age writes when a member was heard of last.
func age(t *testing.T, rdb redis.UniversalClient, room, conn string, seen float64) {
	t.Helper()
	if err := rdb.ZAdd(t.Context(), keysOf(room).lastSeen(), redis.Z{Score: seen, Member: conn}).Err(); err != nil {
		t.Fatal(err)
	}
}

func setMaxMemory(t *testing.T, rdb redis.UniversalClient, size string) {
	t.Helper()
	if err := rdb.ConfigSet(context.Background(), "maxmemory", size).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAUserOfAnACLThroughTheURL(t *testing.T) {
	// PSUBSCRIBE wants its pattern literally among the allowed ones.
	p := spawnRedis(t, strings.Fields("--user default off --user other on >p@ss:w/rd ~prs:* &prs:{room:*}:events &prs:user:*:conns -@all +@read +@write +@pubsub +@scripting +@connection +time")...)
	b := backend{url: strings.Replace(p.url, "redis://", "redis://other:p%40ss%3Aw%2Frd@", 1)}
	s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Subscribe(ctx, func(Event) {}); err != nil {
		t.Fatal(err)
	}
	for _, op := range operations() {
		_, m := prepared(t, s)
		if err := op.do(t.Context(), s, &m); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
	}
	if err := newReaper(s).pass(t.Context()); err != nil {
		t.Errorf("the reaper: %v", err)
	}
	if _, err := openRedis(t.Context(), strings.Replace(p.url, "redis://", "redis://presence:wrong@", 1), redisLogin{}); err == nil {
		t.Error("a wrong password is let in")
	}
	assertAgree(t, s, room)
}

func TestASubscriptionThatRedisRefusesIsAnError(t *testing.T) {
	p := spawnRedis(t, strings.Fields("--user default off --user deaf on nopass ~* resetchannels +@all")...)
	s := startService(t, backend{url: strings.Replace(p.url, "redis://", "redis://deaf:any@", 1)}.open(t), Options{})
	if err := s.Subscribe(t.Context(), func(Event) {}); err == nil || !strings.Contains(errors.Unwrap(err).Error(), "NOPERM") {
		t.Errorf("the error is %v", err)
	}
}

func TestARoomWhoseSlotMovesStaysUsable(t *testing.T) {
	t.Parallel()
	needRedis(t)
	c, err := startCluster()
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove()
	rdb := backend{url: c.url}.open(t)
	s, room := startService(t, rdb, Options{}), uniqueRoom(t)
	events := record(t, rdb, room)
	m := mustJoin(t, s, room, "ann", "a", `{"n":0}`)
	stop, done := make(chan struct{}), make(chan struct{})
	patched := 0
	go func() {
		defer close(done)
		for n := 1; ; n++ {
			_, _, err := s.heartbeat(t.Context(), &m, raw(fmt.Sprintf(`{"n":%d}`, n)), 0)
			if err == nil {
				patched = n
				select {
				case <-stop:
					return
				default:
				}
				continue
			}
			var refused *Error
			if !errors.As(err, &refused) || refused.Code != CodeUnavailable {
				t.Errorf("while the slot moves: %v", err)
				return
			}
		}
	}()
	moveSlot(t, c, keysOf(room).meta())
	close(stop)
	<-done
	if got, want := stateOf(t, s, room, "a"), fmt.Sprintf(`{"n":%d}`, patched); got != want {
		t.Errorf("the state is %s, want the last one that was confirmed, %s", got, want)
	}
	assertAgree(t, s, room)
	assertChain(t, events.upTo(t, s, room))
}

// moveSlot hands the slot of a key to another master, with the keys in it.
func moveSlot(t *testing.T, c *testCluster, key string) {
	t.Helper()
	ctx := t.Context()
	slot := int64(hashSlot(key))
	nodes := make([]*redis.Client, len(c.nodes))
	ids := make([]string, len(c.nodes))
	from := int(slot) * len(nodes) / 16384
	for i, p := range c.nodes {
		nodes[i] = redis.NewClient(&redis.Options{Addr: p.addr})
		defer nodes[i].Close()
		ids[i] = nodes[i].Do(ctx, "CLUSTER", "MYID").Val().(string)
	}
	if n := nodes[from].ClusterCountKeysInSlot(ctx, int(slot)).Val(); n == 0 {
		t.Fatalf("slot %d is not on the master that it should be on", slot)
	}
	to := (from + 1) % len(nodes)
	do := func(node int, args ...any) {
		if err := nodes[node].Do(ctx, args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	do(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from])
	do(from, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
	host, port, _ := strings.Cut(c.nodes[to].addr, ":")
	for {
		keys := nodes[from].ClusterGetKeysInSlot(ctx, int(slot), 100).Val()
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", host, port, "", 0, 5000, "REPLACE", "KEYS"}
		for _, key := range keys {
			args = append(args, key)
		}
		do(from, args...)
	}
	do(to, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
	do(from, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
}
