package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// refusedState is a state in which Redis answers and refuses writes.
type refusedState struct {
	begin, end [][]any // commands of the administrator
	goesOn     bool    // members can be refreshed all the same, so the silent leave meanwhile
	prepare    func(t *testing.T, p *redisProcess)
}

func acl(rules ...any) [][]any {
	return [][]any{append([]any{"ACL", "SETUSER", "presence"}, rules...)}
}

// refusalsOfRedis are one of each kind. The user of the tests is the one that the documents publish.
func refusalsOfRedis() map[string]refusedState {
	mayAll, patterns := acl("resetkeys", "~prs:*"), []any{"~prs:active_rooms", "~prs:user:*"}
	pattern := func(more ...any) [][]any { return acl(slices.Concat([]any{"resetkeys"}, patterns, more)...) }
	set := func(name, value string) []any { return []any{"CONFIG", "SET", name, value} }
	// A directory in the place of the file makes every save fail.
	dump := func(p *redisProcess) string { return filepath.Join(p.dir, "dump.rdb") }
	return map[string]refusedState{
		"too few replicas":        {begin: [][]any{set("min-replicas-to-write", "1")}, end: [][]any{set("min-replicas-to-write", "0")}},
		"a replica":               {begin: [][]any{{"REPLICAOF", "127.0.0.1", "1"}}, end: [][]any{{"REPLICAOF", "NO", "ONE"}}},
		"a replica without data":  {begin: [][]any{set("replica-serve-stale-data", "no"), {"REPLICAOF", "127.0.0.1", "1"}}, end: [][]any{{"REPLICAOF", "NO", "ONE"}}},
		"paused writes":           {begin: [][]any{{"CLIENT", "PAUSE", 60000, "WRITE"}}, end: [][]any{{"CLIENT", "UNPAUSE"}}},
		"no scripts":              {begin: acl("-evalsha", "-eval"), end: acl("+evalsha", "+eval")},
		"no command of a script":  {begin: acl("-hset"), end: acl("+hset")},
		"the last command":        {begin: acl("-pexpire"), end: acl("+pexpire")},
		"no channels":             {begin: acl("resetchannels"), end: acl("allchannels"), goesOn: true},
		"keys that may be read":   {begin: acl("resetkeys", "%R~prs:*"), end: mayAll},
		"no keys of rooms":        {begin: pattern("~prs:{nodes}:*"), end: mayAll},
		"no hashes":               {begin: pattern("~prs:{nodes}:*", "~prs:{room:*"), end: mayAll},
		"leases that may be read": {begin: pattern("~prs:{room:*", "~prs:conn:*", "%R~prs:{nodes}:*"), end: mayAll, goesOn: true},
		"no memory":               {begin: [][]any{set("maxmemory", "1")}, end: [][]any{set("maxmemory", "0")}, goesOn: true},
		"a save that failed": {begin: [][]any{set("save", "3600 100000"), {"BGSAVE"}}, end: [][]any{set("save", "")},
			prepare: func(t *testing.T, p *redisProcess) {
				if err := os.Mkdir(dump(p), 0o700); err != nil {
					t.Fatal(err)
				}
			}},
	}
}

// stableRoom is a room with members that send heartbeats, one that is silent, and one whose node has died.
type stableRoom struct {
	*Service
	room  string
	alive []string
	dead  *lease
	beats sync.WaitGroup
}

// hearOfAll has the two who are going to leave heard of now.
func (r *stableRoom) hearOfAll(t *testing.T) {
	t.Helper()
	if err := r.dead.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustOwn(t, r.dead, r.room, "dead")
	mustJoin(t, r.Service, r.room, "sid", "silent", "{}")
}

// startStableRoom has the living send heartbeats until the test ends.
func startStableRoom(t *testing.T, services [2]*Service) *stableRoom {
	t.Helper()
	r := &stableRoom{Service: services[0], room: uniqueRoom(t)}
	living := newHeldLease(t, services[1])
	r.dead = newHeldLease(t, r.Service)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); r.beats.Wait() })
	living.start()
	for i := range 6 {
		conn := fmt.Sprint("alive", i)
		if i%2 == 0 {
			mustOwn(t, living, r.room, conn)
		} else {
			mustJoin(t, r.Service, r.room, "user of "+conn, conn, "{}")
		}
		r.alive = append(r.alive, conn)
		r.beats.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				ctx, cancel := context.WithTimeout(ctx, answerWithin)
				patch := raw(fmt.Sprintf(`{"n":%d}`, n)) // of half of them: each heartbeat has one
				if i < 3 {
					patch = nil
				}
				_, _, _ = services[i%2].Heartbeat(ctx, r.room, conn, patch, 0)
				cancel()
				pause(ctx, 100*time.Millisecond)
			}
		})
	}
	r.hearOfAll(t)
	return r
}

// hasJudges tells whether the reaper of a service may judge everybody.
func (s *Service) hasJudges() bool {
	r := s.reaper.Load()
	for _, j := range []*contactTracker{r.contact, r.loss} {
		j.mu.Lock()
		n := 0
		for _, c := range j.contacts {
			if c.at.Sub(c.since) >= j.need {
				n++
			}
		}
		j.mu.Unlock()
		if n < 2 { // rooms and leases
			return false
		}
	}
	return true
}

// TestARedisThatRefusesWritesLosesNobody_G5: neither the living members nor those of a living node, for as long as it lasts,
// and those who are silent or whose node has died leave within the bounds after it.
func TestARedisThatRefusesWritesLosesNobody_G5(t *testing.T) {
	t.Parallel()
	takesLong(t)
	const lasts = 4 * time.Second // two lookbacks, four leases
	o := Options{TTL: time.Second, Lookback: 2 * time.Second, NodeLease: time.Second, ReaperInterval: 100 * time.Millisecond}
	for name, state := range refusalsOfRedis() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := spawnRedis(t)
			if state.prepare != nil {
				state.prepare(t, p)
			}
			admin := redis.NewClient(&redis.Options{Addr: p.addr})
			t.Cleanup(func() { admin.Close() })
			do := func(commands [][]any) {
				t.Helper()
				for _, c := range commands {
					if err := admin.Do(context.Background(), c...).Err(); err != nil {
						t.Fatal(c, err)
					}
				}
			}
			var services [2]*Service
			for i := range services {
				rdb := newPipelines(backend{url: asUser("presence", p.url)}.open(t))
				t.Cleanup(func() { _ = rdb.Close() })
				services[i] = startService(t, rdb, o)
			}
			r := startStableRoom(t, services)
			is := func(conn string) bool { return admin.HExists(t.Context(), keysOf(r.room).meta(), conn).Val() }
			eventually(t, 10*time.Second, "both reapers may judge", func() bool { return services[0].hasJudges() && services[1].hasJudges() })
			r.hearOfAll(t) // else the silent leave at once

			do(state.begin)
			lost := ""
			poll(lasts, func() bool {
				members, err := admin.HKeys(t.Context(), keysOf(r.room).meta()).Result()
				for _, conn := range r.alive {
					if err == nil && !slices.Contains(members, conn) {
						lost = conn
					}
				}
				if err == nil && !state.goesOn && len(members) != len(r.alive)+2 {
					lost = "one of the silent"
				}
				return lost != ""
			})
			if lost != "" {
				t.Errorf("%s left while Redis refused writes", lost)
			}
			do(state.end)
			ended := time.Now()
			bound := o.Lookback + o.ReaperInterval + busy
			gone := map[string]time.Duration{}
			eventually(t, bound, "the silent and the dead have left", func() bool {
				for _, conn := range []string{"silent", "dead"} {
					if _, known := gone[conn]; !known && !is(conn) {
						gone[conn] = time.Since(ended)
					}
				}
				return len(gone) == 2
			})
			t.Logf("left after the end: %v", gone)
			if !state.goesOn && (gone["silent"] < o.TTL-contactRetry || gone["dead"] < o.NodeLease-contactRetry) {
				t.Errorf("who left had no time to be heard of: %v", gone)
			}
			poll(o.Lookback, func() bool { return !slices.ContainsFunc(r.alive, is) }) // those who live have no reason to leave now
			if got := conns(mustRead(t, r.Service, r.room)); !slices.Equal(got, r.alive) {
				t.Errorf("the room has %q, want %q", got, r.alive)
			}
		})
	}
}

// TestAProbeDoesWhatAHeartbeatDoes: whatever an ACL keeps from a heartbeat it keeps from the probe as well.
func TestAProbeDoesWhatAHeartbeatDoes(t *testing.T) {
	command := regexp.MustCompile(`redis\.call\('([A-Z]+)'`)
	does := func(script string) (commands []string) {
		for _, m := range command.FindAllStringSubmatch(luaText("calls", script), -1) {
			commands = append(commands, m[1])
		}
		return commands
	}
	probe := does("probe")
	for _, c := range does("heartbeat") {
		if !slices.Contains(probe, c) {
			t.Errorf("a heartbeat uses %s, the probe does not", c)
		}
	}
}

func TestAProbeLeavesNothingBehind(t *testing.T) {
	for name, url := range map[string]string{"miniredis": miniRedis(t).url, "redis": spawnRedis(t).url} {
		t.Run(name, func(t *testing.T) {
			rdb := backend{url: url}.open(t)
			s := startService(t, rdb, Options{})
			l, r := newHeldLease(t, s), newReaper(s)
			before := dump(t, rdb, rdb.Keys(t.Context(), "*").Val()...)
			lease, err := r.leaseTarget(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, noScriptFlags := range []bool{false, true} {
				s.noScriptFlags.Store(noScriptFlags)
				for _, target := range []probeTarget{{"", probeKeys(probeRoom(0))}, lease} {
					if _, _, err := r.probe(t.Context(), target); err != nil {
						t.Errorf("%s: %v", target.contact, err)
					}
				}
			}
			if after := rdb.Keys(t.Context(), "*").Val(); len(after) != len(before) {
				t.Errorf("the keys are %q", after)
			}
			for _, key := range []string{leasesKey, nodeRoomsKey(l.name())} {
				if life := rdb.PTTL(t.Context(), key).Val(); life <= 0 && rdb.Exists(t.Context(), key).Val() == 1 {
					t.Errorf("%s lives %v", key, life)
				}
			}
		})
	}
}
