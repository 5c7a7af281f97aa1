package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestDueTimes(t *testing.T) {
	const lookback = 60 * time.Second
	s, moveTo := clockedService(t, Options{TTL: 30 * time.Second, Lookback: lookback})
	room := uniqueRoom(t)
	start := now(t, s)
	at := func(since time.Duration) float64 { return float64(start + since.Milliseconds()) }
	steps := []struct {
		name string
		at   time.Duration
		do   func()
		due  float64
		in   int // members afterwards
	}{
		{"first join", 0, func() { mustJoin(t, s, room, "ann", "a", `{}`) }, at(lookback), 1},
		{"second join changes nothing", 10 * time.Second, func() { mustJoin(t, s, room, "bob", "b", `{}`) }, at(lookback), 2},
		{"a pass before it is due", 59 * time.Second, func() {}, at(lookback), 2},
		{"a is overdue, b is next", 60 * time.Second, func() {}, at(70 * time.Second), 1},
		{"b heartbeats", 65 * time.Second, func() {
			if _, _, err := s.Heartbeat(t.Context(), room, "b", nil, 0); err != nil {
				t.Fatal(err)
			}
		}, at(70 * time.Second), 1},
		{"so it is not overdue", 70 * time.Second, func() {}, at(125 * time.Second), 1},
		{"until now", 125 * time.Second, func() {}, at(125*time.Second+lookback) + emptyMark, 0},
		{"a lookback later the empty room leaves the index", 185*time.Second + time.Millisecond, func() {}, 0, 0},
	}
	for _, step := range steps {
		moveTo(step.at)
		step.do()
		mustPass(t, s)
		if score, _ := due(t, s, room); score != step.due {
			t.Errorf("%s: the room is due at %.2f, want %.2f", step.name, score-float64(start), step.due-float64(start))
		}
		if n := len(mustRead(t, s, room).Entries); n != step.in {
			t.Errorf("%s: the room has %d members, want %d", step.name, n, step.in)
		}
		assertAgree(t, s, room)
	}
}

func TestAnEmptyRoomStaysInTheIndexWhenAJoinBegan(t *testing.T) {
	const lookback = 60 * time.Second
	cases := map[string]struct {
		between func(s *Service, room string) error
		stays   bool
	}{
		"nothing": {func(*Service, string) error { return nil }, false},
		"a join that has written the index only": {func(s *Service, room string) error {
			return s.indexRoom(t.Context(), room, s.options.Lookback)
		}, true},
		"a whole join": {func(s *Service, room string) error {
			_, err := s.Join(t.Context(), room, "bob", "b", nil)
			return err
		}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, moveTo := clockedService(t, Options{Lookback: lookback})
			room := uniqueRoom(t)
			mustJoin(t, s, room, "ann", "a", `{}`)
			moveTo(lookback)
			mustPass(t, s)
			if score, _ := due(t, s, room); score-math.Floor(score) != emptyMark {
				t.Fatalf("the emptied room has score %.2f, without the mark", score)
			}
			moveTo(2 * lookback)
			if err := c.between(s, room); err != nil {
				t.Fatal(err)
			}
			moveTo(2*lookback + time.Second)
			mustPass(t, s)
			if _, there := due(t, s, room); there != c.stays {
				t.Errorf("the room is in the index: %t, want %t", there, c.stays)
			}
		})
	}
}

// The dangerous order: a reaper claims the empty room, a join begins, the reaper settles the room as empty.
func TestAJoinDuringAClaimIsNotForgotten(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		r := newTrustingReaper(s)
		for name, next := range map[string]string{"as empty": "", "for another time": "99999999999999"} {
			if err := s.rdb.ZAdd(t.Context(), activeRoomsKey, redis.Z{Score: 1 + emptyMark, Member: room}).Err(); err != nil {
				t.Fatal(err)
			}
			claim, rooms, err := r.claim(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			for i := range rooms {
				rooms[i].next, rooms[i].seen = next, rooms[i].id == room
				if rooms[i].seen && !rooms[i].wasEmpty {
					t.Error("the mark of an empty room was not seen")
				}
			}
			if err := s.indexRoom(t.Context(), room, time.Minute); err != nil {
				t.Fatal(err)
			}
			before, _ := due(t, s, room)
			_ = r.settle(t.Context(), claim, rooms) // it tells that other rooms were not looked at
			if score, there := due(t, s, room); !there || score != before {
				t.Errorf("settled %s: the room is in the index: %t, at %f, want %f", name, there, score, before)
			}
			s.rdb.ZRem(t.Context(), activeRoomsKey, room)
		}
	})
}

func TestIndexingARoom(t *testing.T) {
	const life = 60 * time.Second
	s, _ := clockedService(t, Options{})
	start := float64(now(t, s))
	cases := []struct {
		name         string
		stored, want float64 // relative to now in ms; NaN = not there
	}{
		{"new", math.NaN(), 60_000},
		{"due earlier", 10_000, 10_000},
		{"overdue", -10_000, -10_000},
		{"due later than the new member", 90_000, 60_000},
		{"claimed", 1_000.5, 0},
		{"marked as empty", 30_000.25, 0},
		{"marked as empty, due later", 90_000.25, 60_000},
		{"overdue and marked", -10_000.75, 0},
	}
	for _, c := range cases {
		room := uniqueRoom(t)
		if !math.IsNaN(c.stored) {
			s.rdb.ZAdd(t.Context(), activeRoomsKey, redis.Z{Score: start + c.stored, Member: room})
		}
		if err := s.indexRoom(t.Context(), room, life); err != nil {
			t.Fatal(err)
		}
		if score, _ := due(t, s, room); score != start+c.want {
			t.Errorf("%s: due in %.2f ms, want %.2f", c.name, score-start, c.want)
		}
	}
}

func TestTheClaimOfADeadReaperIsSoonOver(t *testing.T) {
	const lookback = 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room := uniqueRoom(t)
	mustJoin(t, s, room, "ann", "a", `{}`)
	moveTo(lookback)
	if _, rooms, err := newReaper(s).claim(t.Context(), false); err != nil || len(rooms) != 1 {
		t.Fatalf("claimed %v, %v", rooms, err)
	}
	moveTo(lookback + claimLease)
	mustPass(t, s)
	if len(mustRead(t, s, room).Entries) != 1 {
		t.Error("a second reaper looked at a room while it was claimed")
	}
	moveTo(lookback + claimLease + time.Millisecond)
	mustPass(t, s)
	if len(mustRead(t, s, room).Entries) != 0 {
		t.Error("the room stays claimed by a reaper that died")
	}
	if claimLease > 2*time.Second {
		t.Errorf("a claim lasts %v, want 2 s at most", claimLease)
	}
}

func TestRoomsWithoutAnAnswerStayClaimed(t *testing.T) {
	const lookback = 60 * time.Second
	b := miniRedis(t)
	start := time.Now()
	b.mini.SetTime(start)
	rdb := &faultyRedis{UniversalClient: b.open(t)}
	s, room := startService(t, rdb, Options{Lookback: lookback}), uniqueRoom(t)
	mustJoin(t, s, room, "ann", "a", `{}`)
	loadEverywhere(t, s, b)
	b.mini.SetTime(start.Add(lookback + time.Second))
	rdb.start(map[int]string{1: "request"}) // after the claim
	if err := newTrustingReaper(s).pass(t.Context()); err == nil || !strings.Contains(err.Error(), "1 rooms did not answer") {
		t.Errorf("the pass ended with %v", err)
	}
	if score, _ := due(t, s, room); score != math.Floor(score)+0.5 {
		t.Errorf("the room has score %.2f, want a claim", score)
	}
	rdb.start(nil)
	b.mini.SetTime(start.Add(lookback + time.Second + claimLease + time.Millisecond))
	mustPass(t, s)
	if len(mustRead(t, s, room).Entries) != 0 {
		t.Error("the member was not removed once Redis answered")
	}
}

// fillRooms puts one member that was heard of so long ago into each of the rooms from…to, of a Redis of the test's own.
func fillRooms(t testing.TB, s *Service, from, to int, ago time.Duration) {
	t.Helper()
	ctx, seen := t.Context(), now(t, s)-ago.Milliseconds()
	pipe := s.rdb.Pipeline()
	for i := from; i < to; i++ {
		room, user := fmt.Sprint("room", i), fmt.Sprint("user", i)
		k := keysOf(room)
		pipe.HSet(ctx, k.meta(), "c", fmt.Sprintf(`{"epoch":%d,"rev":%d,"node":"","userLen":%d,"userId":%q,"state":{}}`, seen, seen, len(user)+2, user))
		pipe.HSet(ctx, k.members(), user, 1)
		pipe.SAdd(ctx, k.conns(), "c")
		pipe.ZAdd(ctx, k.lastSeen(), redis.Z{Score: float64(seen), Member: "c"})
		pipe.Set(ctx, k.revision(), seen, 0)
		pipe.ZAdd(ctx, activeRoomsKey, redis.Z{Score: float64(seen + s.options.Lookback.Milliseconds()), Member: room})
		if pipe.Len() > 10_000 || i == to-1 {
			if _, err := pipe.Exec(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// calls is the number of commands that the server has run, those within scripts included, and without those that a client
// sends whenever it opens a connection.
func calls(t testing.TB, rdb redis.UniversalClient) (n int) {
	t.Helper()
	stats, err := rdb.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(stats) {
		name, rest, _ := strings.Cut(line, ":calls=")
		count, _, ok := strings.Cut(rest, ",")
		switch command, _, _ := strings.Cut(strings.TrimPrefix(name, "cmdstat_"), "|"); command {
		case "info", "script", "hello", "client", "select", "auth":
			ok = false
		}
		if ok {
			add, err := strconv.Atoi(count)
			if err != nil {
				t.Fatal(err)
			}
			n += add
		}
	}
	return n
}

// The reaper's cost follows what expires, not how many rooms there are.
func TestAPassCostsTheSameInFewAndInManyRooms(t *testing.T) {
	cost := map[int]int{}
	for _, living := range []int{100, 2000} {
		b := backend{url: spawnRedis(t).url}
		rdb := b.open(t)
		s := startService(t, rdb, Options{Lookback: time.Hour})
		loadEverywhere(t, s, b)
		fillRooms(t, s, 0, living, 0)
		fillRooms(t, s, living, living+10, time.Hour)
		before := calls(t, rdb)
		mustPass(t, s)
		cost[living] = calls(t, rdb) - before
		if n := len(mustRead(t, s, fmt.Sprint("room", living)).Entries); n != 0 {
			t.Errorf("the overdue member stays")
		}
	}
	if cost[100] != cost[2000] || cost[100] == 0 {
		t.Errorf("a pass costs %d commands among 100 rooms and %d among 2,000, want the same", cost[100], cost[2000])
	}
}

// TestRoomsThatAreDueTooLateAreLookedAt: Redis' clock fell back, and nobody is to stay until it has caught up.
func TestRoomsThatAreDueTooLateAreLookedAt(t *testing.T) {
	const lookback, step = 60 * time.Second, 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room, r := uniqueRoom(t), newTrustingReaper(s)
	moveTo(step)
	mustJoin(t, s, room, "ann", "ghost", `{}`)
	hear := func() {
		t.Helper()
		if _, _, err := r.probe(t.Context(), probeTarget{"", probeKeys(probeRoom(0))}); err != nil {
			t.Fatal(err)
		}
	}
	hear()
	moveTo(0)
	hear()
	if err := r.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if score, _ := due(t, s, room); score != float64(now(t, s)+lookback.Milliseconds()) {
		t.Errorf("the room is due in %f ms, want %v", score-float64(now(t, s)), lookback)
	}
	moveTo(lookback)
	if err := r.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(mustRead(t, s, room).Entries); n != 0 {
		t.Error("a ghost stays until the clock has caught up")
	}
}
