package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
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

// TestAReaperEndsAHoldWhoseNodeDied, whatever is left of the lookback, not before the deadline, and with the reason of a
// broken connection.
func TestAReaperEndsAHoldWhoseNodeDied_G5(t *testing.T) {
	t.Parallel()
	const grace, interval = 300 * time.Millisecond, 50 * time.Millisecond
	for name, lives := range map[string]struct{ ttl, lookback time.Duration }{
		"reapers that may not judge yet": {time.Hour, 2 * time.Hour}, // as after a restart of all nodes
		"lookback as long":               {grace, grace},
		"lookback shorter":               {grace, grace / 2},
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, b backend) {
				var counted atomic.Int64
				o := Options{TTL: lives.ttl, Lookback: lives.lookback, Grace: grace, OnLeave: func(reason Reason, members int) {
					if reason == ReasonDisconnected {
						counted.Add(int64(members))
					}
				}}
				dying := startService(t, b.open(t), o)
				room := uniqueRoom(t)
				events := record(t, dying.rdb, room)
				for i := range 10 {
					mustJoin(t, dying, room, fmt.Sprint("u", i), fmt.Sprint("c", i), "{}")
				}
				at := now(t, dying)
				for i := range 10 {
					if err := dying.holdBack(t.Context(), Member{Room: room, Conn: fmt.Sprint("c", i)}, dying.options.Grace); err != nil {
						t.Fatal(err)
					}
				}
				for _, e := range mustRead(t, dying, room).Entries {
					if e.LastSeenMs < at || e.LastSeenMs > now(t, dying) {
						t.Errorf("%s was last seen %d ms after it broke", e.ConnID, e.LastSeenMs-at)
					}
				}
				assertAgree(t, dying, room)
				o.ReaperInterval = interval
				reapers := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o)}
				eventually(t, 10*time.Second, "all have left", func() bool { return len(events.all()) == 20 })
				last := int64(0)
				for _, m := range events.all()[10:] {
					last = max(last, m.TS-at)
					if m.Type != EventLeave || m.Reason != ReasonDisconnected || m.TS-at < dying.options.Grace.Milliseconds() {
						t.Errorf("%s %d ms after it broke", short(m), m.TS-at)
					}
				}
				t.Logf("the last of 10 left %d ms after it broke; grace %v, reaper interval %v", last, dying.options.Grace, interval)
				eventually(t, 10*time.Second, "all leaves are counted for their reason", func() bool { return counted.Load() >= 10 }) // more where an earlier test left some
				assertOneLeave(t, events.all())
				assertAgree(t, reapers[0], room)
				if left := dying.rdb.Exists(t.Context(), keysOf(room).held()).Val(); left != 0 {
					t.Error("the index of those held back stays")
				}
			})
		})
	}
}

// TestWhatRunsLateDoesNotBringBackWhoIsHeld_G4: scripts of its node that were given up and run after the hold.
func TestWhatRunsLateDoesNotBringBackWhoIsHeld_G4(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
		m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
		if err := hold("a")(t.Context(), s, room); err != nil {
			t.Fatal(err)
		}
		before := dump(t, s.rdb, s.keysWithHeld(room, "a")...)
		for name, late := range map[string]func(m Member) error{
			"heartbeat": func(m Member) error { _, err := s.refresh(t.Context(), &m); return err },
			"patch":     func(m Member) error { _, _, err := s.patch(t.Context(), &m, raw(`{"n":2}`), 0); return err },
			"restore":   func(m Member) error { return s.restore(t.Context(), &m, 0, 0) },
			"hold":      func(m Member) error { return s.holdBack(t.Context(), m, time.Hour) },
			"hold of an older incarnation": func(m Member) error {
				m.Epoch--
				return s.holdBack(t.Context(), m, time.Hour)
			},
			"leave of an older incarnation": func(m Member) error {
				m.Epoch--
				return removeOwn(t.Context(), s, m)
			},
		} {
			if err := late(m); err != nil && !hasCode(err, CodeNotJoined) {
				t.Errorf("%s: %v", name, err)
			}
			assertSame(t, name, before, dump(t, s.rdb, s.keysWithHeld(room, "a")...))
		}
		again := mustJoin(t, s, room, "ann", "b", "{}")
		again.Epoch--
		before = dump(t, s.rdb, s.keysWithHeld(room, "a", "b")...)
		if err := errors.Join(s.holdBack(t.Context(), again, time.Minute), s.holdBack(t.Context(), m, time.Minute)); err != nil {
			t.Fatal(err)
		}
		assertSame(t, "late holds", before, dump(t, s.rdb, s.keysWithHeld(room, "a", "b")...))
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

// TestWhichEndsAreHeldBack_G5: a broken connection leaves after the grace, in time, and whoever says goodbye or is sent away at
// once.
func TestWhichEndsAreHeldBack_G5(t *testing.T) {
	t.Parallel()
	ends := []struct {
		how  string
		do   func(n *node, room string, u *user)
		held bool
		want string
	}{
		{"connection closed", func(_ *node, _ string, u *user) { _ = u.conn.Close() }, true, "disconnected"},
		{"connection reset", func(_ *node, _ string, u *user) { _ = u.conn.(*net.TCPConn).SetLinger(0); _ = u.conn.Close() }, true, "disconnected"},
		{"WebSocket closed", func(_ *node, _ string, u *user) { u.raw(masked(true, ws.OpClose, "\x03\xe8")) }, true, "disconnected"},
		{"Engine.IO close", func(_ *node, _ string, u *user) { u.send("1") }, true, "disconnected"},
		{"no Socket.IO", func(_ *node, _ string, u *user) { u.send("4nonsense") }, true, "disconnected"},
		{"closed by the server", func(n *node, _ string, u *user) { n.clientOf(u).close() }, true, "disconnected"},
		{"Socket.IO DISCONNECT", func(_ *node, _ string, u *user) { u.send("41") }, false, "disconnected"},
		{"sent away by the server", func(n *node, _ string, u *user) { n.clientOf(u).disconnect() }, false, "disconnected"},
		{"leave", func(_ *node, _ string, u *user) { u.ok(eventLeave, ""); _ = u.conn.Close() }, false, "left"},
		{"kick", func(n *node, room string, u *user) {
			_ = take(u.id, ReasonKicked)(t.Context(), n.service, room)
			_ = u.conn.Close()
		}, false, "kicked"},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		n, far, room := startNodeFor(t, b, graceSetting()), startNodeFor(t, b, graceSetting()), uniqueRoom(t)
		witness := far.member(t, room, "witness", "{}")
		users := make([]*user, len(ends))
		for i := range ends {
			users[i] = n.member(t, room, fmt.Sprint("u", i), "{}")
		}
		began := make([]int64, len(ends))
		for i, end := range ends {
			began[i] = now(t, n.service)
			end.do(n, room, users[i])
		}
		for i, end := range ends {
			took := time.Duration(witness.sees(EventLeave, users[i].id).TS-began[i]) * time.Millisecond
			t.Logf("%s: left after %v; the grace is %v", end.how, took, graceOfTests)
			if end.held != (took >= graceOfTests) || took > graceOfTests+busy {
				t.Errorf("%s: left after %v; the grace is %v", end.how, took, graceOfTests)
			}
		}
		witness.settled(witness, room)
		for i, end := range ends {
			witness.wantEvents(users[i].id, fmt.Sprintf("join u%d 1 {}", i), fmt.Sprintf("leave u%d 0 %s null", i, end.want))
		}
		assertAgree(t, n.service, room)
	})
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
				eventually(t, busy, "the end is owed", func() bool { return !n.owed.idle() })
				if name == "the grace is over soon" {
					eventually(t, busy, "the grace is over", func() bool { return time.Since(ended) > 100*time.Millisecond })
				}
				rdb.recover()
				eventually(t, 5*time.Second, "the end is not owed any more", n.owed.idle)
				far.member(t, room, "ann", "{}")
				witness.sees(EventLeave, u.id)
				witness.settled(witness, room)
				witness.wantEvents(u.id, tc.want...)
			})
		})
	}
}
