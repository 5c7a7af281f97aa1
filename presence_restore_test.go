package main

import (
	"slices"
	"testing"
	"time"
)

// restoreCase is something that a room may have lost, or have otherwise than the member's node knows it.
type restoreCase struct {
	name   string
	spoil  func(t *testing.T, s *Service, m *Member)
	events []string // after the restore
	code   Code
	state  string

	unseen bool // a heartbeat without a patch does not look at it
}

func restoreCases() []restoreCase {
	return []restoreCase{
		{"hash gone", func(t *testing.T, s *Service, m *Member) {
			s.rdb.Del(t.Context(), connKey(m.Room, m.Conn))
		}, nil, "", `{"n":1}`, false},
		{"nothing gone", func(*testing.T, *Service, *Member) {}, nil, "", `{"n":1}`, false},
		{"left falsely", func(t *testing.T, s *Service, m *Member) {
			mustLeave(t, s, m.Room, m.Conn)
		}, []string{`join a ann 2  {"n":1}`}, "", `{"n":1}`, false},
		{"whole room gone", func(t *testing.T, s *Service, m *Member) {
			for _, key := range roomKeysOf(m.Room, "a", "b") {
				s.rdb.Del(t.Context(), key)
			}
		}, []string{`join a ann 1  {"n":1}`}, "", `{"n":1}`, false},
		{"older copy of the state", func(t *testing.T, s *Service, m *Member) {
			copied := dumpHashes(t, s, m)
			if _, _, err := s.heartbeat(t.Context(), m, raw(`{"n":2}`), 0); err != nil {
				t.Fatal(err)
			}
			copied()
		}, []string{`update a ann 2  {"n":2}`}, "", `{"n":2}`, false},
		{"older incarnation", func(t *testing.T, s *Service, m *Member) {
			copied := dumpHashes(t, s, m)
			*m = mustJoin(t, s, m.Room, m.User, m.Conn, `{"n":3}`)
			copied()
		}, []string{`join a ann 2  {"n":3}`}, "", `{"n":3}`, false},
		{"older incarnation of another user", func(t *testing.T, s *Service, m *Member) {
			copied := dumpHashes(t, s, m)
			*m = mustJoin(t, s, m.Room, "cleo", m.Conn, `{"n":4}`)
			copied()
		}, []string{`join a cleo 1  {"n":4}`}, "", `{"n":4}`, false},
		{"newer incarnation", func(t *testing.T, s *Service, m *Member) {
			mustJoin(t, s, m.Room, m.User, m.Conn, `{"n":5}`)
		}, nil, CodeStaleEpoch, `{"n":5}`, false},
		{"newer state", func(t *testing.T, s *Service, m *Member) {
			late := *m
			if _, _, err := s.heartbeat(t.Context(), &late, raw(`{"n":6}`), 0); err != nil {
				t.Fatal(err)
			}
		}, nil, "", `{"n":6}`, false},
		{"user not counted", func(t *testing.T, s *Service, m *Member) {
			s.rdb.HDel(t.Context(), keysOf(m.Room).members(), m.User)
			s.rdb.HDel(t.Context(), keysOf(m.Room).meta(), "b")
			s.rdb.SRem(t.Context(), keysOf(m.Room).conns(), "b")
			s.rdb.ZRem(t.Context(), keysOf(m.Room).lastSeen(), "b")
			s.rdb.Del(t.Context(), connKey(m.Room, "b"))
		}, []string{`update a ann 1  {"n":1}`}, "", `{"n":1}`, true},
		{"not in conns", func(t *testing.T, s *Service, m *Member) {
			s.rdb.SRem(t.Context(), keysOf(m.Room).conns(), m.Conn)
		}, []string{`update a ann 2  {"n":1}`}, "", `{"n":1}`, true},
		{"not in last_seen", func(t *testing.T, s *Service, m *Member) {
			s.rdb.ZRem(t.Context(), keysOf(m.Room).lastSeen(), m.Conn)
		}, []string{`update a ann 2  {"n":1}`}, "", `{"n":1}`, false},
	}
}

func TestRestore_G8(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		for _, c := range restoreCases() {
			for _, way := range []string{"restore", "heartbeat"} {
				if way == "heartbeat" && c.unseen {
					continue
				}
				t.Run(c.name+", "+way, func(t *testing.T) {
					s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
					mustJoin(t, s, room, "ann", "b", `{}`)
					m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
					c.spoil(t, s, &m)
					epoch := m.Epoch
					events := record(t, s.rdb, room)
					var err error
					if way == "restore" {
						err = s.restore(t.Context(), &m, 0, m.Rev)
					} else {
						_, _, err = s.heartbeat(t.Context(), &m, nil, m.Rev)
					}
					if c.code != "" {
						wantCode(t, err, c.code)
					} else if err != nil || m.Epoch != epoch || string(m.State) != c.state {
						t.Errorf("got %v, epoch %d, state %s, want epoch %d, state %s", err, m.Epoch, m.State, epoch, c.state)
					}
					if got := stateOf(t, s, room, "a"); got != c.state {
						t.Errorf("the room has state %s, want %s", got, c.state)
					}
					mustLeave(t, s, room, "a") // an event after which nothing is on its way
					all := events.upTo(t, s, room)
					var got []string
					for _, e := range all[:len(all)-1] {
						got = append(got, short(e))
					}
					if !slices.Equal(got, c.events) {
						t.Errorf("got events %q, want %q", got, c.events)
					}
					assertChain(t, all)
					assertAgree(t, s, room)
				})
			}
		}
	})
}

func TestARestoreWritesTheAgeNotNow_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		m := mustJoin(t, s, room, "ann", "a", `{}`)
		mustLeave(t, s, room, "a")
		const age = 20 * time.Second
		if err := s.restore(t.Context(), &m, age, 0); err != nil {
			t.Fatal(err)
		}
		v := mustRead(t, s, room)
		if silent := v.TS - v.Entries[0].LastSeenMs; silent < age.Milliseconds() || silent > age.Milliseconds()+5000 {
			t.Errorf("the member counts as silent for %d ms, want %v", silent, age)
		}
		if life := s.rdb.PTTL(t.Context(), connKey(room, "a")).Val(); life <= 0 || life > s.options.TTL-age {
			t.Errorf("the hash lives %v, want what is left of the TTL", life)
		}
		due := s.rdb.ZScore(t.Context(), activeRoomsKey, room).Val()
		if late := int64(due) - v.TS; late > (s.options.Lookback - age).Milliseconds() {
			t.Errorf("the reaper looks in %d ms, after the member is overdue", late)
		}
	})
}
