package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// clockedService is a service without a reaper of its own on a miniredis whose clock stands still until the test moves it.
func clockedService(t testing.TB, o Options) (s *Service, moveTo func(since time.Duration)) {
	t.Helper()
	b := miniRedis(t)
	start := time.Now().Truncate(time.Millisecond)
	b.mini.SetTime(start)
	return startService(t, b.open(t), o), func(since time.Duration) { b.mini.SetTime(start.Add(since)) }
}

// newTrustingReaper is a reaper that judges without having been in contact.
func newTrustingReaper(s *Service) *reaper {
	r := newReaper(s)
	r.silence.need, r.loss.need = 0, 0
	return r
}

func mustPass(t testing.TB, s *Service) {
	t.Helper()
	if err := newTrustingReaper(s).pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// due is the room's score in the reaper's index.
func due(t testing.TB, s *Service, room string) (ms float64, there bool) {
	t.Helper()
	score, err := s.rdb.ZScore(t.Context(), activeRoomsKey, room).Result()
	return score, err == nil
}

func now(t testing.TB, s *Service) int64 {
	t.Helper()
	return mustRead(t, s, "any").TS
}

func TestSilentMembersLeaveOnceWhoeverReaps_G5(t *testing.T) {
	t.Parallel()
	const members, rooms = 100, 5
	eachBackend(t, func(t *testing.T, b backend) {
		o := Options{TTL: 200 * time.Millisecond, Lookback: 400 * time.Millisecond, ReaperInterval: 20 * time.Millisecond}
		services := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o), startService(t, b.open(t), o)}
		s, unique := services[0], uniqueRoom(t)
		events := map[string]*recorder{}
		for i := range rooms {
			room := fmt.Sprint(unique, i)
			events[room] = record(t, s.rdb, room)
		}
		var work sync.WaitGroup
		for i := range members {
			work.Go(func() {
				_, err := services[i%3].Join(t.Context(), fmt.Sprint(unique, i%rooms), "ann of "+unique, fmt.Sprint("c", i), nil)
				if err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		for room, recorded := range events {
			eventually(t, 10*time.Second, room+" is empty", func() bool { return len(mustRead(t, s, room).Entries) == 0 })
			all := recorded.upTo(t, s, room)
			assertChain(t, all)
			assertOneLeave(t, all)
			joined := map[string]message{}
			for _, m := range all {
				if m.Type == EventJoin {
					joined[m.ConnID] = m
					continue
				}
				if silent := m.TS - joined[m.ConnID].TS; m.Reason != ReasonTimeout || silent < o.Lookback.Milliseconds() {
					t.Errorf("%s left with reason %q after %d ms, want %q after the lookback", m.ConnID, m.Reason, silent, ReasonTimeout)
				}
			}
			if len(joined) != members/rooms || len(all) != 2*len(joined) {
				t.Errorf("%d joins in %d events, want one leave for each", len(joined), len(all))
			}
			assertAgree(t, s, room)
		}
		eventually(t, 5*time.Second, "the user's index is empty", func() bool {
			return s.rdb.Exists(t.Context(), userKey("ann of "+unique)).Val() == 0
		})
	})
}

func TestAMemberThatHeartbeatsIsNotCulled(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		o := Options{TTL: 200 * time.Millisecond, Lookback: 500 * time.Millisecond, ReaperInterval: 20 * time.Millisecond}
		s, room := startService(t, b.open(t), o), uniqueRoom(t)
		events := record(t, s.rdb, room)
		joined, err := s.Join(t.Context(), room, "ann", "alive", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 { // three lookbacks long
			silent := fmt.Sprint("silent", i)
			if _, err := s.Join(t.Context(), room, "bob", silent, nil); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, silent+" is culled", func() bool {
				if _, _, err := s.Heartbeat(t.Context(), room, "alive", nil, joined.Epoch); err != nil {
					t.Fatal(err)
				}
				return stateOf(t, s, room, silent) == ""
			})
		}
		for _, m := range events.upTo(t, s, room) {
			if m.ConnID == "alive" && m.Type == EventLeave {
				t.Error("the living member was culled")
			}
		}
	})
}

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
		t.Error("the member was not culled once Redis answered")
	}
}

// A removal that waited in a stopped Redis runs before the heartbeats that wait behind it.
func TestARemovalThatWaitedDoesNothing(t *testing.T) {
	const lookback = 60 * time.Second
	for name, c := range map[string]struct {
		waited time.Duration
		gone   int
	}{"in time": {time.Second, 1}, "too late": {time.Second + time.Millisecond, 0}} {
		t.Run(name, func(t *testing.T) {
			s, moveTo := clockedService(t, Options{Lookback: lookback})
			room, r := uniqueRoom(t), newTrustingReaper(s)
			mustJoin(t, s, room, "ann", "a", `{}`)
			moveTo(lookback)
			found, err := r.overdue(t.Context(), room)
			if err != nil || len(found.list) != 1 {
				t.Fatalf("overdue are %v, %v", found.list, err)
			}
			moveTo(lookback + c.waited)
			if gone, err := r.cull(t.Context(), room, found); err != nil || gone != c.gone {
				t.Errorf("%d were removed, %v, want %d", gone, err, c.gone)
			}
			if next, err := strconv.ParseFloat(r.next(found, false), 64); err != nil || int64(next) <= found.now {
				t.Errorf("the room is looked at again at %f, %v, want later than %d", next, err, found.now)
			}
		})
	}
}

func TestAMemberThatIsHeardOfAtTheLastMomentStays(t *testing.T) {
	const lookback = 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room, r := uniqueRoom(t), newTrustingReaper(s)
	m := mustJoin(t, s, room, "ann", "a", `{}`)
	moveTo(lookback)
	found, err := r.overdue(t.Context(), room)
	if err != nil || len(found.list) != 1 {
		t.Fatalf("overdue are %v, %v", found.list, err)
	}
	if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil {
		t.Fatal(err)
	}
	if gone, err := r.cull(t.Context(), room, found); err != nil || gone != 0 {
		t.Errorf("%d were removed, %v, want none", gone, err)
	}
	assertAgree(t, s, room)
}

// Redis' clock fell back, as by a failover: a heartbeat in the future counts as one of now.
func TestAHeartbeatInTheFutureCountsAsNow(t *testing.T) {
	const lookback = 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room := uniqueRoom(t)
	moveTo(time.Hour)
	mustJoin(t, s, room, "ann", "a", `{}`)
	moveTo(0)
	mustJoin(t, s, room, "bob", "b", `{}`)
	moveTo(lookback)
	mustPass(t, s)
	if v := mustRead(t, s, room); len(v.Entries) != 1 || v.Entries[0].ConnID != "a" {
		t.Fatalf("the room has %+v, want a only", v.Entries)
	}
	moveTo(2 * lookback)
	mustPass(t, s)
	if v := mustRead(t, s, room); len(v.Entries) != 0 {
		t.Errorf("a silent member stays until the clock has caught up: %+v", v.Entries)
	}
}

func TestMoreOverdueMembersThanOneScriptRemoves(t *testing.T) {
	const members, lookback = 2*removeBatch + 1, 60 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback})
	room := uniqueRoom(t)
	for i := range members {
		mustJoin(t, s, room, "ann", fmt.Sprint("c", i), `{}`)
	}
	moveTo(lookback)
	mustPass(t, s)
	if n := len(mustRead(t, s, room).Entries); n != 0 {
		t.Errorf("%d overdue members stay after a pass", n)
	}
	assertAgree(t, s, room)
}

func TestAPassEndsWithItsContext(t *testing.T) {
	s, _ := clockedService(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newReaper(s).pass(ctx); err == nil {
		t.Error("a pass without time has looked at every room")
	}
}

// fillRooms puts one member that was heard of so long ago into each of the rooms from…to, of a Redis of the test's own.
func fillRooms(t testing.TB, s *Service, from, to int, ago time.Duration) {
	t.Helper()
	ctx, seen := t.Context(), now(t, s)-ago.Milliseconds()
	pipe := s.rdb.Pipeline()
	for i := from; i < to; i++ {
		room := fmt.Sprint("room", i)
		k := keysOf(room)
		pipe.HSet(ctx, k.meta(), "c", fmt.Sprintf(`{"epoch":%d,"rev":%d,"node":"","userLen":3,"userId":"u","state":{}}`, seen, seen))
		pipe.HSet(ctx, k.members(), "u", 1)
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

// TestAJudgeWantsUnbrokenContact: who lives has had the time to say so, and the clock went right.
func TestAJudgeWantsUnbrokenContact(t *testing.T) {
	const need, patience = 10 * time.Second, 500 * time.Millisecond
	type answer struct {
		after, took, step time.Duration
		server            string
		reads             bool // it is that of a call which writes nothing
		lost              bool // it does not come
	}
	every := func(n int, a answer) []answer { return slices.Repeat([]answer{a}, n) }
	steady := answer{after: time.Second}
	then := func(a answer) []answer { return append(every(10, steady), a) }
	for name, c := range map[string]struct {
		before  []answer
		trusted bool
	}{
		"the first answer":           {nil, false},
		"nearly long enough":         {every(9, steady), false},
		"long enough":                {every(10, steady), true},
		"a late answer":              {then(answer{after: time.Second, took: patience + 1}), false},
		"an answer just in time":     {then(answer{after: time.Second, took: patience}), true},
		"a long silence":             {then(answer{after: contactPeriod + patience + 1}), false},
		"a silence just too short":   {then(answer{after: contactPeriod + patience}), true},
		"a clock set forward":        {then(answer{after: time.Second, step: time.Second + time.Millisecond}), false},
		"a clock set back":           {then(answer{after: time.Second, step: -time.Second - time.Millisecond}), false},
		"a clock that slews":         {every(10, answer{after: time.Second, step: 900 * time.Millisecond}), true},
		"again long enough":          {slices.Concat(every(10, steady), every(1, answer{after: time.Minute}), every(10, steady)), true},
		"a refused write":            {slices.Concat(every(10, steady), every(1, answer{lost: true}), every(1, steady)), false},
		"another process":            {slices.Concat(every(10, answer{after: time.Second, server: "a"}), every(1, answer{after: time.Second, server: "b"})), false},
		"a process without a name":   {slices.Concat(every(10, answer{after: time.Second, server: "a"}), every(1, steady)), true},
		"reads alone":                {append(every(1, answer{lost: true}), every(20, answer{after: time.Second, reads: true})...), false},
		"a read":                     {then(answer{after: time.Second, reads: true}), true},
		"reads while writes fail":    {slices.Concat(every(10, steady), every(1, answer{lost: true}), every(20, answer{after: time.Second, reads: true})), false},
		"reads do not stand in":      {then(answer{after: contactPeriod + patience + 1, reads: true}), false},
		"a late read":                {then(answer{after: time.Second, took: patience + 1, reads: true}), false},
		"a read by a clock set back": {then(answer{after: time.Second, step: -2 * time.Second, reads: true}), false},
		"a write after a late read":  {slices.Concat(every(10, steady), every(1, answer{after: time.Second, took: patience + 1, reads: true}), every(1, steady)), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, offset := newJudge(need, patience), time.Duration(0)
				lasted, _ := j.wrote("master", time.Now(), time.Now().UnixMilli(), "")
				for _, a := range c.before {
					<-time.After(a.after)
					offset += a.step
					began, clock := time.Now().Add(-a.took), time.Now().Add(offset).UnixMilli()
					switch {
					case a.lost:
						j.lost("master")
					case a.reads:
						lasted, _ = j.read("master", began, clock)
					default:
						lasted, _ = j.wrote("master", began, clock, a.server)
					}
				}
				if trusted := lasted >= need; trusted != c.trusted {
					t.Errorf("trusted: %t, want %t", trusted, c.trusted)
				}
				if other, _ := j.wrote("another master", time.Now(), 0, ""); other != 0 {
					t.Error("contact with one master counts for another")
				}
				j.lost("master")
				if again, _ := j.wrote("master", time.Now(), time.Now().Add(offset).UnixMilli(), ""); again != 0 {
					t.Error("contact that was lost counts")
				}
			})
		})
	}
}

// TestWithoutContactNobodyIsJudged: neither the silent nor lost nodes, and others may look at the rooms at once.
func TestWithoutContactNobodyIsJudged(t *testing.T) {
	const lookback, length = 60 * time.Second, 10 * time.Second
	s, moveTo := clockedService(t, Options{Lookback: lookback, NodeLease: length})
	room, l := uniqueRoom(t), newHeldLease(t, s)
	mustJoin(t, s, room, "ann", "silent", `{}`)
	mustOwn(t, l, room, "owned")
	moveTo(lookback)
	r := newReaper(s)
	for _, pass := range []func(context.Context) error{r.pass, r.passNodes} {
		if err := pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mustRead(t, s, room).Entries); n != 2 {
		t.Fatalf("%d members stay, want both", n)
	}
	if score, _ := due(t, s, room); score != float64(now(t, s)+unjudgedPause.Milliseconds()) {
		t.Errorf("the room is due in %f ms, want %v", score-float64(now(t, s)), unjudgedPause)
	}
	if claimed := s.rdb.ZScore(t.Context(), leasesKey, l.name()).Val(); claimed != math.Floor(claimed) {
		t.Error("the node was declared lost")
	}
	moveTo(lookback + time.Second)
	mustPass(t, s)
	mustPassNodes(t, s)
	if n := len(mustRead(t, s, room).Entries); n != 0 {
		t.Errorf("%d members stay, want none", n)
	}
}

// TestAClaimOfNodesThatWaitedDoesNothing: it ran in a Redis that hung, before the renewals that waited behind it.
func TestAClaimOfNodesThatWaitedDoesNothing(t *testing.T) {
	s, moveTo := clockedService(t, Options{NodeLease: time.Second})
	l, start := newHeldLease(t, s), now(t, s)
	moveTo(2 * time.Second)
	for notAfter, want := range map[int64]int{start + 1999: 0, start + 2000: 1} {
		claimed, err := s.run(t.Context(), s.scripts.claimNodes, []string{leasesKey}, 1000, notAfter)
		if err != nil || len(claimed) != want {
			t.Errorf("until %d: claimed %q, %v, want %d", notAfter-start, claimed, err, want)
		}
		s.rdb.ZAdd(t.Context(), leasesKey, redis.Z{Score: float64(start + 1000), Member: l.name()})
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

// TestManyHeartbeatsInTheFutureAreSetRightInOnePass, though one step takes a part of them only.
func TestManyHeartbeatsInTheFutureAreSetRightInOnePass(t *testing.T) {
	const members = 1200
	s, moveTo := clockedService(t, Options{})
	room := uniqueRoom(t)
	moveTo(time.Hour)
	fillRoom(t, s.rdb, room, members)
	moveTo(0)
	if _, err := newReaper(s).reap(t.Context(), room, false); err != nil {
		t.Fatal(err)
	}
	ahead := s.rdb.ZCount(t.Context(), keysOf(room).lastSeen(), fmt.Sprint("(", now(t, s)), "+inf").Val()
	if ahead != 0 {
		t.Errorf("%d of %d heartbeats stay in the future", ahead, members)
	}
}
