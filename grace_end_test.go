package main

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

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
