package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// hold holds a connection back, as its node does when it broke.
func hold(conn string) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error {
		return s.holdBack(ctx, Member{Room: room, Conn: conn}, s.options.Grace)
	}
}

// holdBack holds a member back whose connection was not silent before its end.
func (s *Service) holdBack(ctx context.Context, m Member, within time.Duration) error {
	_, err := s.hold(ctx, m, within, false)
	return err
}

// take removes a connection for a reason.
func take(conn string, reason Reason) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error {
		_, _, err := s.remove(ctx, room, removal{reason: reason}, []incarnation{{conn: conn}})
		return err
	}
}

// refusedWith expects a refusal.
func refusedWith(code Code, do func(context.Context, *Service, string) error) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error {
		if err := do(ctx, s, room); !hasCode(err, code) {
			return fmt.Errorf("got %v, want %s", err, code)
		}
		return nil
	}
}

// TestAHeldConnectionLeavesRightAfterItsUsersNextJoin_G5_G6 goes from service to service, each step on the next one.
func TestAHeldConnectionLeavesRightAfterItsUsersNextJoin_G5_G6(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name   string
		do     func(ctx context.Context, s *Service, room string) error
		events []string
	}{
		{"join", join("ann", "a", `{"n":1}`), []string{`join a ann 1  {"n":1}`}},
		{"hold", hold("a"), nil},
		{"hold again", hold("a"), nil},
		{"hold of one that was never there", hold("z"), nil},
		{"heartbeat of the held one", refusedWith(CodeNotJoined, beat("a", "")), nil},
		{"patch of the held one", refusedWith(CodeNotJoined, beat("a", `{"m":2}`)), nil},
		{"another user's join", join("bob", "c", `{}`), []string{`join c bob 1  {}`}},
		{"join", join("ann", "b", `{}`), []string{`join b ann 2  {}`, `leave a ann 1 disconnected null`}},
		{"next join", join("ann", "d", `{}`), []string{`join d ann 2  {}`}},

		{"hold of one of two", hold("b"), nil},
		{"join again of the living one", join("ann", "d", `{}`), []string{`join d ann 2  {}`, `leave b ann 1 disconnected null`}},

		{"hold of the last", hold("d"), nil},
		{"join again of the held one", join("ann", "d", `{}`), []string{`join d ann 1  {}`}},
		{"it lives", beat("d", `{"m":3}`), []string{`update d ann 1  {"m":3}`}},
		{"hold of it", hold("d"), nil},
		{"join after that", join("ann", "e", `{}`), []string{`join e ann 2  {}`, `leave d ann 1 disconnected null`}},

		{"one more", join("ann", "f", `{}`), []string{`join f ann 2  {}`}},
		{"hold of one", hold("e"), nil},
		{"hold of both", hold("f"), nil},
		{"join after several holds", join("ann", "g", `{}`),
			[]string{`join g ann 3  {}`, `leave e ann 2 disconnected null`, `leave f ann 1 disconnected null`}},

		{"hold of bob", hold("c"), nil},
		{"join of another connection as another user", join("bob", "g", `{}`),
			[]string{`leave g ann 0 replaced null`, `join g bob 2  {}`, `leave c bob 1 disconnected null`}},
		{"hold of the new bob", hold("g"), nil},
		{"kick of a held one", take("g", ReasonKicked), []string{`leave g bob 0 kicked null`}},
		{"join after it", join("bob", "h", `{}`), []string{`join h bob 1  {}`}},
		{"hold of h", hold("h"), nil},
		{"leave of a held one", leave("h"), []string{`leave h bob 0 left null`}},
		{"hold of one that left", hold("h"), nil},
		{"the last join", join("bob", "i", `{}`), []string{`join i bob 1  {}`}},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		o := Options{Grace: time.Hour, Lookback: 2 * time.Hour}
		services := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o), startService(t, b.open(t), o)}
		room := uniqueRoom(t)
		events := record(t, services[0].rdb, room)
		told := 0
		for i, step := range steps {
			s := services[i%3]
			if err := step.do(t.Context(), s, room); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			all := events.upTo(t, s, room)
			var got []string
			for _, m := range all[told:] {
				got = append(got, short(m))
			}
			told = len(all)
			if !slices.Equal(got, step.events) {
				t.Errorf("%s: got events %q, want %q", step.name, got, step.events)
			}
			assertAgree(t, s, room)
			assertHeldIndex(t, s, room)
		}
		assertChain(t, events.all())
		assertOneLeave(t, events.all())
	})
}

// assertHeldIndex checks that whoever is held back is found by the next join, and that the index expires.
func assertHeldIndex(t *testing.T, s *Service, room string) {
	t.Helper()
	index := s.rdb.ZRange(t.Context(), keysOf(room).held(), 0, -1).Val()
	for conn, value := range s.rdb.HGetAll(t.Context(), keysOf(room).meta()).Val() {
		if m, _ := parseMeta(value); m.held() && !slices.Contains(index, m.User+"\x01"+conn) {
			t.Errorf("%s is held back and not in the index %q", conn, index)
		}
	}
	life := s.rdb.PTTL(t.Context(), keysOf(room).held()).Val()
	if len(index) > 0 && (life < time.Hour || life > time.Hour+s.options.Lookback) {
		t.Errorf("the index of those held back expires in %v", life)
	}
}

// TestUsersWithNamesAlikeKeepTheirHeldConnections: the index is sorted by user and connection.
func TestUsersWithNamesAlikeKeepTheirHeldConnections(t *testing.T) {
	users := []string{"a", "ab", "a b", "b", "A", "a-", "ä", "a€", "日本", `a"`, `a\`, "a\u2028"}
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
		for i, user := range users {
			mustJoin(t, s, room, user, fmt.Sprint("held-", i), "{}")
			if err := s.holdBack(t.Context(), Member{Room: room, Conn: fmt.Sprint("held-", i)}, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		for i, user := range users {
			mustJoin(t, s, room, user, fmt.Sprint("new-", i), "{}")
			gone := conns(mustRead(t, s, room))
			for j := range users {
				if slices.Contains(gone, fmt.Sprint("held-", j)) != (j > i) {
					t.Errorf("after the join of %q the room has %q", user, gone)
				}
			}
			assertAgree(t, s, room)
		}
		if left := s.rdb.Exists(t.Context(), keysOf(room).held()).Val(); left != 0 {
			t.Error("the index stays")
		}
	})
}

// TestAHeldConnectionTakesNoPlaceFromItsUser: room_full counts it for everybody else.
func TestAHeldConnectionTakesNoPlaceFromItsUser(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{MaxMembers: 2, Grace: time.Minute}), uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", "{}")
		mustJoin(t, s, room, "bob", "b", "{}")
		if err := hold("a")(t.Context(), s, room); err != nil {
			t.Fatal(err)
		}
		before := dump(t, s.rdb, scriptKeys(room, "a", "b", "c")...)
		_, err := s.Join(t.Context(), room, "eve", "c", nil)
		wantCode(t, err, CodeRoomFull)
		_, err = s.Join(t.Context(), room, "bob", "c", nil)
		wantCode(t, err, CodeRoomFull)
		assertSame(t, "a refused join", before, dump(t, s.rdb, scriptKeys(room, "a", "b", "c")...))
		if _, err := s.Join(t.Context(), room, "ann", "c", nil); err != nil {
			t.Errorf("the user of the held connection: %v", err)
		}
		if got := conns(mustRead(t, s, room)); !slices.Equal(got, []string{"b", "c"}) {
			t.Errorf("the room has %q", got)
		}
		assertAgree(t, s, room)
	})
}

// TestConcurrentJoinsAndHoldsOfOneUser_G5_G6: a join may find one more held back than its first try did.
func TestConcurrentJoinsAndHoldsOfOneUser_G5_G6(t *testing.T) {
	t.Parallel()
	const users, rounds = 8, 15
	eachBackend(t, func(t *testing.T, b backend) {
		o := Options{Grace: time.Hour, Lookback: 2 * time.Hour, MaxMembers: users * users}
		services := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o)}
		room := uniqueRoom(t)
		events := record(t, services[0].rdb, room)
		done := make(chan error)
		for i := range users {
			go func() {
				s, conn := services[i%2], ""
				for n := range rounds {
					next := fmt.Sprint("c", i, "-", n)
					_, err := s.Join(t.Context(), room, fmt.Sprint("u", i/4), next, nil) // four connections share a user
					if err == nil && conn != "" {
						err = hold(conn)(t.Context(), s, room)
					}
					if conn = next; err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range users {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		all := events.upTo(t, services[0], room)
		assertChain(t, all)
		assertOneLeave(t, all)
		assertAgree(t, services[0], room)
		assertHeldIndex(t, services[0], room)
		for _, m := range all {
			if m.Type == EventLeave && m.UserConns == 0 {
				t.Errorf("%s although the user has others", short(m))
			}
		}
		for u := range users / 4 {
			mustJoin(t, services[0], room, fmt.Sprint("u", u), fmt.Sprint("last", u), "{}")
		}
		if got, want := len(mustRead(t, services[0], room).Entries), users+users/4; got != want {
			t.Errorf("the room has %d connections, want the %d that live", got, want)
		}
		assertAgree(t, services[0], room)
		t.Logf("%d joins and holds of 2 users: %d events, none says that a user went", users*rounds, len(all))
	})
}

// TestGraceCostsNothingWhereItIsOff counts the commands within the scripts.
func TestGraceCostsNothingWhereItIsOff(t *testing.T) {
	b := backend{url: spawnRedis(t).url}
	rdb := b.open(t)
	cost := map[time.Duration]int{}
	for _, grace := range []time.Duration{0, time.Minute} {
		s := startService(t, rdb, Options{Grace: grace})
		loadEverywhere(t, s, b)
		room := uniqueRoom(t)
		before := calls(t, rdb)
		m := mustJoin(t, s, room, "ann", "a", "{}")
		// A revision ahead of the clock costs a command more.
		eventually(t, time.Second, "the next millisecond", func() bool { return time.Now().UnixMilli() > m.Rev })
		mustLeave(t, s, room, "a")
		cost[grace] = calls(t, rdb) - before
	}
	if cost[time.Minute]-cost[0] != 2 { // one look at the index of held connections in each of the two scripts
		t.Errorf("join and leave take %d commands without a grace, %d with", cost[0], cost[time.Minute])
	}
	for _, key := range (&Service{}).keysWithHeld("r", "c") {
		if strings.HasSuffix(key, ":held") {
			t.Errorf("scripts get the key %s", key)
		}
	}
	t.Logf("join and leave take %d commands without a grace, %d with", cost[0], cost[time.Minute])
}

// TestARedisWithoutMemoryHoldsBack: a broken connection is what it was before.
func TestARedisWithoutMemoryHoldsBack(t *testing.T) {
	rdb := backend{url: spawnRedis(t).url}.open(t)
	s, room := startService(t, rdb, Options{Grace: time.Minute}), uniqueRoom(t)
	mustJoin(t, s, room, "ann", "a", "{}")
	if err := s.indexRoom(t.Context(), room, 0); err != nil {
		t.Fatal(err)
	}
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.run(t.Context(), s.scripts.hold, s.keysWithHeld(room, "a"), "a", "", 1000, 2000, 1000, room); err != nil {
		t.Error(err)
	}
	if m, err := s.find(t.Context(), room, "a"); err != nil || !m.held() {
		t.Errorf("found %+v, %v", m, err)
	}
}

// TestALostIndexOfHeldConnectionsIsBuiltAnew where a key of another type was in its place.
func TestALostIndexOfHeldConnectionsIsBuiltAnew(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
		for _, conn := range []string{"a", "b"} {
			mustJoin(t, s, room, "ann", conn, "{}")
			if err := hold(conn)(t.Context(), s, room); err != nil {
				t.Fatal(err)
			}
		}
		spoil(t, s.rdb, keysOf(room).held())
		mustJoin(t, s, room, "ann", "c", "{}")
		if got := conns(mustRead(t, s, room)); !slices.Equal(got, []string{"c"}) {
			t.Errorf("the room has %q", got)
		}
		assertAgree(t, s, room)
	})
}

const (
	graceOfTests = 500 * time.Millisecond

	// How much later than it should a timer may be on a busy machine.
	busy = 2 * time.Second
)

func graceSetting() string { return fmt.Sprint("PRESENCE_GRACE_MS=", graceOfTests.Milliseconds()) }

// clientOf is the server's side of a user.
func (n *node) clientOf(u *user) (found *client) {
	n.sockets.each(func(c *client) {
		if c.ID() == u.id {
			found = c
		}
	})
	return found
}

// TestAUserWhoComesBackWithinTheGraceNeverGoes, whichever node it comes back to, in each of its rooms.
func TestAUserWhoComesBackWithinTheGraceNeverGoes(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		long := "PRESENCE_GRACE_MS=20000"
		near, far := startNodeFor(t, b, long), startNodeFor(t, b, long)
		for name, back := range map[string]*node{"to the same node": near, "to another node": far} {
			t.Run(name, func(t *testing.T) {
				rooms := []string{uniqueRoom(t), uniqueRoom(t)}
				witnesses := []*user{near.member(t, rooms[0], "witness", "{}"), far.member(t, rooms[1], "witness", "{}")}
				first := near.member(t, rooms[0], "ann", "{}")
				first.join(rooms[1], "ann", "{}")
				_ = first.conn.Close()
				second := back.user(t)
				for i, room := range rooms {
					eventually(t, busy, "the connection is held back", func() bool {
						m, err := near.service.find(t.Context(), room, first.id)
						return err == nil && m.held()
					})
					ack := second.join(room, "ann", "{}")
					entryOf(t, ack, second.id)
					witnesses[i].sees(EventLeave, first.id)
					witnesses[i].settled(witnesses[i], room)
					witnesses[i].wantEvents(first.id, "join ann 1 {}", "leave ann 1 disconnected null")
					witnesses[i].wantEvents(second.id, "join ann 2 {}")
					assertAgree(t, near.service, room)
				}
			})
		}
	})
}

// TestAConnectionThatBreaksWithoutRedisIsHeldBackLater: within the grace its user comes back as if nothing had been, after it
// the leave is made good.
func TestAConnectionThatBreaksWithoutRedisIsHeldBackLater_G5(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		grace string
		want  []string
	}{
		"back within the grace":  {"PRESENCE_GRACE_MS=20000", []string{"join ann 1 {}", "leave ann 1 disconnected null"}},
		"the grace is over soon": {"PRESENCE_GRACE_MS=100", []string{"join ann 1 {}", "leave ann 0 disconnected null"}},
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, b backend) {
				rdb := &troubledRedis{UniversalClient: b.open(t)}
				n, far, room := startNodeOn(t, rdb, tc.grace), startNodeFor(t, b, tc.grace), uniqueRoom(t)
				witness, u := far.member(t, room, "witness", "{}"), n.member(t, room, "ann", "{}")
				rdb.meets("hold", refuse)
				ended := time.Now()
				_ = u.conn.Close()
				eventually(t, busy, "the end is pending", func() bool { return !n.pendingLeaves.idle() })
				if name == "the grace is over soon" {
					eventually(t, busy, "the grace is over", func() bool { return time.Since(ended) > 100*time.Millisecond })
				}
				rdb.recover()
				eventually(t, 5*time.Second, "the end is not pending any more", n.pendingLeaves.idle)
				far.member(t, room, "ann", "{}")
				witness.sees(EventLeave, u.id)
				witness.settled(witness, room)
				witness.wantEvents(u.id, tc.want...)
			})
		})
	}
}
