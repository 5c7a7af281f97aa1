package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// fillRoom puts members into a room, all with the state {}, as the scripts would.
func fillRoom(t testing.TB, rdb redis.UniversalClient, room string, members int) {
	t.Helper()
	now := rdb.Time(t.Context()).Val().UnixMilli()
	k := keysOf(room)
	for from := 0; from < members; from += 5000 {
		_, err := rdb.Pipelined(t.Context(), func(pipe redis.Pipeliner) error {
			for i := from; i < min(from+5000, members); i++ {
				conn, user := fmt.Sprintf("connection-of-%06d", i), fmt.Sprintf("user-%06d", i)
				meta := fmt.Sprintf(`{"epoch":%d,"rev":%d,"node":"","userLen":%d,"userId":"%s","state":{}}`, now, now, len(user)+2, user)
				pipe.HSet(t.Context(), k.meta(), conn, meta)
				pipe.HSet(t.Context(), k.members(), user, 1)
				pipe.SAdd(t.Context(), k.conns(), conn)
				pipe.ZAdd(t.Context(), k.lastSeen(), redis.Z{Score: float64(now), Member: conn})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := rdb.Set(t.Context(), k.revision(), now, 0).Err(); err != nil {
		t.Fatal(err)
	}
}

// A room of 100,000 is joined with a page of it. No step holds Redis for 5 ms, the replica takes at most 400 bytes for each
// member, and events of other rooms go on while it is loaded.
func TestARoomOfAHundredThousand(t *testing.T) {
	takesLong(t)
	const members = 100_000
	server := spawnRedis(t, "--slowlog-log-slower-than", "5000", "--slowlog-max-len", "1000")
	rdb := backend{url: server.url}.open(t)
	n := startNodeFor(t, backend{url: server.url})
	ann, bob := n.member(t, "small", "ann", "{}"), n.member(t, "small", "bob", "{}")
	fillRoom(t, rdb, "large", members)
	if err := rdb.Do(t.Context(), "SLOWLOG", "RESET").Err(); err != nil {
		t.Fatal(err)
	}
	before := heapInUse()

	ctx, stop := context.WithCancel(t.Context())
	var meanwhile sync.WaitGroup
	updates, slowest := 0, time.Duration(0)
	meanwhile.Go(func() {
		for ; ctx.Err() == nil; updates++ {
			began := time.Now()
			ann.ok(eventHeartbeat, fmt.Sprintf(`{"patchState":{"n":%d}}`, updates))
			bob.until("the update", func(e wireEvent) bool { return string(e.State) == fmt.Sprintf(`{"n":%d}`, updates) })
			slowest = max(slowest, time.Since(began))
		}
	})
	u, began := n.user(t), time.Now()
	var ack wireAck
	eventually(t, 30*time.Second, "the room is joined", func() bool { // a slow machine answers unavailable first
		ack = u.call(eventJoin, `{"roomId":"large","userId":"me","limit":1000,"events":"batch"}`)
		return ack.OK
	})
	took := time.Since(began)
	stop()
	meanwhile.Wait()
	perMember := float64(heapInUse()-before) / members
	t.Logf("joined in %v with %d KB; %d updates of another room meanwhile, the slowest took %v; %.0f bytes for each member",
		took.Round(time.Millisecond), len(ack.text)>>10, updates, slowest.Round(time.Millisecond), perMember)
	if ack.Count != members+1 || ack.Users != members+1 || len(ack.Snapshot) != 1000 || ack.Cursor == nil || len(ack.text) > 1<<20 {
		t.Errorf("the answer has %d of %d members and %d bytes", len(ack.Snapshot), ack.Count, len(ack.text))
	}
	if perMember > 400 && !raceDetector() {
		t.Errorf("the replica takes %.0f bytes for each member", perMember)
	}

	seen := map[string]bool{}
	for page := ack; ; page = u.ok(eventGet, inRoom("large", `,"cursor":`+quoted(*page.Cursor))) {
		for _, e := range page.Snapshot {
			seen[e.ConnID] = true
		}
		if page.Cursor == nil {
			break
		}
	}
	if len(seen) != members+1 || !seen[u.id] {
		t.Errorf("the pages have %d members", len(seen))
	}
	other := n.user(t)
	if ack := other.ok(eventWatch, `{"roomId":"large","events":"count","limit":1}`); ack.Count != members+1 || len(ack.Snapshot) != 1 {
		t.Errorf("the answer has %d of %d members", len(ack.Snapshot), ack.Count)
	}
	for _, slow := range rdb.SlowLogGet(t.Context(), 1000).Val() {
		if strings.HasPrefix(slow.Args[0], "eval") {
			t.Logf("a script took %v", slow.Duration)
			if slow.Duration > 50*time.Millisecond { // of wall time, on a machine that others load
				t.Errorf("a script took %v", slow.Duration)
			}
		}
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A large room that changes while it is read in parts is the room at one moment all the same (G3).
func TestALargeRoomThatChangesWhileItIsRead_G3(t *testing.T) {
	for _, b := range []func(testing.TB) backend{realRedis, redisCluster} {
		b := b(t)
		t.Run(b.name, func(t *testing.T) {
			near, far, room := startNodeFor(t, b), startNodeFor(t, b), uniqueRoom(t)
			fillRoom(t, b.open(t), room, 5000)
			ann, witness := far.member(t, room, "ann", "{}"), far.user(t)
			witness.join("elsewhere", "witness", "{}")
			ctx, stop := context.WithCancel(t.Context())
			var busy sync.WaitGroup
			busy.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					ann.ok(eventHeartbeat, inRoom(room, fmt.Sprintf(`,"patchState":{"n":%d}`, i)))
					witness.ok(eventJoin, joinPayloadOf(room, "witness", fmt.Sprintf(`{"n":%d}`, i)))
					witness.ok(eventLeave, inRoom(room, ""))
					ann.events, witness.events = nil, nil
				}
			})
			u := near.user(t)
			ack := u.ok(eventWatch, inRoom(room, ""))
			stop()
			busy.Wait()
			fold := newReplica(room)
			for _, e := range ack.Snapshot {
				fold.put(Entry{ConnID: e.ConnID, UserID: e.UserID, State: e.State, Epoch: e.Epoch})
			}
			last := ann.ok(eventHeartbeat, inRoom(room, `,"patchState":{"last":true}`))
			if !last.OK {
				t.Fatal(last.text)
			}
			u.until("the last change", func(e wireEvent) bool { return strings.Contains(string(e.State), `"last":true`) })
			rev := ack.Rev
			for _, e := range u.events {
				if e.Rev <= rev {
					t.Fatalf("event %d after %d", e.Rev, rev)
				}
				rev = e.Rev
				fold.apply(Event{Type: EventType(e.Type), ConnID: e.ConnID, UserID: e.UserID, State: e.State, Epoch: e.Epoch, Rev: e.Rev})
				if n := fold.users[e.UserID]; n != e.UserConns {
					t.Fatalf("event %d says that %s has %d connections, the fold has %d", e.Rev, e.UserID, e.UserConns, n)
				}
			}
			s := mustRead(t, near.service, room)
			if len(s.Entries) != fold.entries.len() {
				t.Fatalf("the fold has %d members, the room %d", fold.entries.len(), len(s.Entries))
			}
			for _, e := range s.Entries {
				if have := fold.entry(e.ConnID); string(have.State) != string(e.State) || have.Epoch != e.Epoch {
					t.Errorf("%s is %s in the fold, %s in the room", e.ConnID, have.State, e.State)
				}
			}
		})
	}
}
