package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// fillOwnedRoom puts members of a node with large states into a room, as the scripts would.
func fillOwnedRoom(t testing.TB, rdb redis.UniversalClient, room, node string, members, stateBytes int) {
	t.Helper()
	fillRoom(t, rdb, room, members)
	k, ctx := keysOf(room), t.Context()
	state := `{"s":"` + strings.Repeat("x", stateBytes-8) + `"}`
	for from := 0; from < members; from += 1000 {
		values := []any{}
		for i := from; i < min(from+1000, members); i++ {
			user := fmt.Sprintf("user-%06d", i)
			values = append(values, fmt.Sprintf("connection-of-%06d", i),
				fmt.Sprintf(`{"epoch":1,"rev":1,"node":"%s","userLen":%d,"userId":"%s","state":%s}`, node, len(user)+2, user, state))
		}
		if err := rdb.HSet(ctx, k.meta(), values...).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// slowScripts are the scripts that held Redis for longer than 10 ms.
func slowScripts(t testing.TB, rdb redis.UniversalClient) (slow []redis.SlowLog) {
	t.Helper()
	list, err := rdb.(*redis.Client).SlowLogGet(t.Context(), -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if strings.HasPrefix(strings.ToLower(l.Args[0]), "eval") {
			slow = append(slow, l)
		}
	}
	return slow
}

// logSlowScripts tells of them. It is no failure: on a busy machine any of them may wait for the processor.
func logSlowScripts(t testing.TB, rdb redis.UniversalClient, s *Service) {
	t.Helper()
	known := map[string]string{}
	for _, sc := range s.scripts.all() {
		known[sc.redis7.sha] = sc.name
	}
	names, longest := map[string]int{}, time.Duration(0)
	for _, l := range slowScripts(t, rdb) {
		names[known[l.Args[1]]]++
		longest = max(longest, l.Duration)
	}
	t.Logf("scripts that took longer than 10 ms: %v, the longest %v", names, longest)
}

// callCounter counts the calls of each script.
type callCounter struct {
	mu    sync.Mutex
	calls map[string]int
}

func (c *callCounter) called(script string, _ time.Duration, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == nil {
		c.calls = map[string]int{}
	}
	c.calls[script]++
}

// wantParts fails when a script has gone through members in fewer calls than small ones need.
func (c *callCounter) wantParts(t testing.TB, script string, members int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Logf("%d calls of %s for %d members", c.calls[script], script, members)
	if c.calls[script] < members/sweepMembers {
		t.Errorf("%d calls of %s, one of them reads more than %d members", c.calls[script], script, sweepMembers)
	}
	c.calls[script] = 0
}

func sluggish() []string {
	return []string{"--slowlog-log-slower-than", "10000", "--slowlog-max-len", "1000"}
}

// TestALostNodeInALargeRoomIsRemoved_G5: in parts, by two reapers, each member once.
func TestALostNodeInALargeRoomIsRemoved_G5(t *testing.T) {
	takesLong(t)
	const members, others = 20_000, 100
	for _, stateBytes := range []int{2048, 16384} {
		t.Run(fmt.Sprint(stateBytes), func(t *testing.T) {
			members := members
			if stateBytes > 2048 {
				members = 3000
			}
			p := spawnRedis(t, sluggish()...)
			admin := backend{url: p.url}.open(t)
			var counter callCounter
			o := Options{OnCall: counter.called, TTL: time.Hour, NodeLease: time.Second, ReaperInterval: 200 * time.Millisecond}
			var left sync.Map
			var twice atomic.Int64
			o.OnChange = func(_ string, changes []Change) {
				for _, c := range changes {
					if _, already := left.LoadOrStore(c.Conn, true); already && c.Type == EventLeave {
						twice.Add(1)
					}
				}
			}
			var services []*Service
			for range 2 {
				rdb := newPipelines(backend{url: p.url}.open(t))
				t.Cleanup(func() { _ = rdb.Close() })
				services = append(services, startService(t, rdb, o))
			}
			s, room := services[0], uniqueRoom(t)
			fillOwnedRoom(t, admin, room, "dead", members, stateBytes)
			for i := range others {
				mustJoin(t, s, room, "bob", fmt.Sprint("other", i), "{}")
			}
			left.Clear()
			admin.HSet(t.Context(), nodeRoomsKey("dead"), room, 1)
			admin.ZAdd(t.Context(), leasesKey, redis.Z{Score: float64(now(t, s) + 1000), Member: "dead"})
			began := time.Now()
			admin.Do(t.Context(), "SLOWLOG", "RESET")
			eventually(t, 30*time.Second, "all have left", func() bool {
				return admin.HLen(t.Context(), keysOf(room).meta()).Val() == others
			})
			t.Logf("%d members of %d bytes left %v after the last renewal", members, stateBytes, time.Since(began))
			eventually(t, 10*time.Second, "each has left once", func() bool {
				n := 0
				left.Range(func(any, any) bool { n++; return true })
				return n == members
			})
			if n := twice.Load(); n > 0 {
				t.Errorf("%d of %d members left twice", n, members)
			}
			logSlowScripts(t, admin, s)
			counter.wantParts(t, "owned", members)
			eventually(t, 10*time.Second, "the node is forgotten", func() bool {
				return admin.Exists(t.Context(), nodeRoomsKey("dead")).Val() == 0
			})
			assertAgree(t, s, room)
		})
	}
}

// assertSizesAgree compares the indices of a large room by their sizes (G6).
func assertSizesAgree(t *testing.T, rdb redis.UniversalClient, room string, members int) {
	t.Helper()
	k, ctx := keysOf(room), t.Context()
	counted := 0
	for _, count := range rdb.HVals(ctx, k.members()).Val() {
		n, _ := strconv.Atoi(count)
		counted += n
	}
	sizes := []int{int(rdb.HLen(ctx, k.meta()).Val()), int(rdb.SCard(ctx, k.conns()).Val()), int(rdb.ZCard(ctx, k.lastSeen()).Val()), counted}
	if !slices.Equal(sizes, slices.Repeat([]int{members}, 4)) {
		t.Errorf("conn_meta, conns, last_seen and members have %v, want %d", sizes, members)
	}
}

// TestALargeRoomIsMendedInParts_G6: whichever index is lost, while members join, leave and send heartbeats.
func TestALargeRoomIsMendedInParts_G6(t *testing.T) {
	takesLong(t)
	const members = 20_000
	p := spawnRedis(t, sluggish()...)
	admin := backend{url: p.url}.open(t)
	var counter callCounter
	s := startService(t, backend{url: p.url}.open(t), Options{OnCall: counter.called, Grace: time.Minute, Lookback: 24 * time.Hour, TTL: 12 * time.Hour})
	room := uniqueRoom(t)
	k := keysOf(room)
	fillOwnedRoom(t, admin, room, "node", members, 2048)
	for name, key := range map[string]string{
		"members": k.members(), "last_seen": k.lastSeen(), "rev": k.revision(), "conns": k.conns(), "held": k.held(),
	} {
		t.Run(name, func(t *testing.T) {
			before := mustRead(t, s, room)
			spoil(t, admin, key)
			admin.Do(t.Context(), "SLOWLOG", "RESET")
			var work sync.WaitGroup
			for i := range 8 {
				work.Go(func() {
					conn := fmt.Sprint("new", name, i)
					if _, err := s.join(t.Context(), Member{Room: room, User: "ann", Conn: conn, State: raw("{}")}, 0); err != nil {
						t.Error(err)
					}
					if _, _, err := s.Heartbeat(t.Context(), room, conn, nil, 0); err != nil {
						t.Error(err)
					}
					if i%2 == 0 {
						mustLeave(t, s, room, conn)
					}
				})
			}
			work.Wait()
			logSlowScripts(t, admin, s)
			counter.wantParts(t, "rebuild", members)
			after := mustRead(t, s, room)
			if len(after.Entries) != len(before.Entries)+4 || after.Rev <= before.Rev {
				t.Errorf("%d members at %d, want %d above %d", len(after.Entries), after.Rev, len(before.Entries)+4, before.Rev)
			}
			assertSizesAgree(t, admin, room, len(after.Entries))
		})
	}
}
