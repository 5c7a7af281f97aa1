package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

// fencingAttempt is a write with an epoch that is not the current one, or that comes too late. old is the member before its
// last join.
type fencingAttempt struct {
	name string
	do   func(ctx context.Context, s *Service, old Member, current int64) error
	code Code // "" = no error
}

func fencingAttempts() []fencingAttempt {
	return []fencingAttempt{
		{"heartbeat with an older epoch", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, nil, old.Epoch)
			return err
		}, CodeStaleEpoch},
		{"patch with an older epoch", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, raw(`{"evil":1}`), old.Epoch)
			return err
		}, CodeStaleEpoch},
		{"patch with an epoch that was never issued", func(ctx context.Context, s *Service, old Member, current int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, raw(`{"evil":1}`), current+1)
			return err
		}, CodeStaleEpoch},
		{"heartbeat with the largest number", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, nil, 1<<63-1)
			return err
		}, CodeStaleEpoch},
		{"heartbeat of a node that missed the join", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.heartbeat(ctx, &old, nil, 0)
			return err
		}, CodeStaleEpoch},
		{"patch of a node that missed the join", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.heartbeat(ctx, &old, raw(`{"evil":1}`), 0)
			return err
		}, CodeStaleEpoch},
		{"restore of the older incarnation", func(ctx context.Context, s *Service, old Member, _ int64) error {
			return s.restore(ctx, &old, 0, 0)
		}, CodeStaleEpoch},
		{"removal of the older incarnation", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.remove(ctx, old.Room, removal{reason: ReasonDisconnected}, []incarnation{{old.Conn, old.Epoch}})
			return err
		}, ""},
		{"removal that waited for too long", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.remove(ctx, old.Room, removal{reason: ReasonTimeout, notAfter: 1}, []incarnation{{conn: old.Conn}})
			return err
		}, ""},
		{"removal of the silent, who is not", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.remove(ctx, old.Room, removal{reason: ReasonTimeout, silent: s.options.Lookback}, []incarnation{{conn: old.Conn}})
			return err
		}, ""},
	}
}

func TestFencing_G4(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		old := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
		now := mustJoin(t, s, room, "ann", "a", `{"n":2}`)
		keys := roomKeysOf(room, "a")
		hash := connKey(room, "a")
		for _, attempt := range fencingAttempts() {
			const life = 10 * time.Second // shorter than what a heartbeat gives
			s.rdb.PExpire(t.Context(), hash, life)
			before := dump(t, s.rdb, keys...)
			err := attempt.do(t.Context(), s, old, now.Epoch)
			if attempt.code != "" {
				if refused := wantCode(t, err, attempt.code); refused.Epoch != now.Epoch {
					t.Errorf("%s: the refusal carries epoch %d, want the current one %d", attempt.name, refused.Epoch, now.Epoch)
				}
			} else if err != nil {
				t.Errorf("%s: %v", attempt.name, err)
			}
			assertSame(t, attempt.name, before, dump(t, s.rdb, keys...))
			if left := s.rdb.PTTL(t.Context(), hash).Val(); left > life {
				t.Errorf("%s: the hash lives %v, as if it had been refreshed", attempt.name, left)
			}
		}
	})
}

// A request that was given up may wait in a stopped Redis, and run after the one that repeated it.
func TestARequestThatRunsLateWritesNothing_G4(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name        string
		early, then func(ctx context.Context, s *Service, m Member) error
	}{
		{"join, then another", rejoin, rejoin},
		{"first join, then the same", func(ctx context.Context, s *Service, m Member) error {
			_, err := s.join(ctx, Member{Room: m.Room, User: "bob", Conn: "first", State: raw("{}")}, 0)
			return err
		}, func(ctx context.Context, s *Service, m Member) error {
			_, err := s.join(ctx, Member{Room: m.Room, User: "bob", Conn: "first", State: raw(`{"n":2}`)}, 0)
			return err
		}},
		{"patch, then another", patch(`{"late":1}`), patch(`{"n":2}`)},
		{"patch, then a join", patch(`{"late":1}`), rejoin},
		{"heartbeat, then a join", patch(""), rejoin},
		{"removal, then a join", removeOwn, rejoin},
		{"restore, then a join", func(ctx context.Context, s *Service, m Member) error { return s.restore(ctx, &m, 0, 0) }, rejoin},
		{"heartbeat, then a leave", patch(""), removeOwn},
		{"patch, then a leave", patch(`{"late":1}`), removeOwn},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				rdb := &faultyRedis{UniversalClient: b.open(t)}
				s, room := startService(t, rdb, Options{}), uniqueRoom(t)
				m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
				loadEverywhere(t, s, b)
				rdb.start(nil)
				rdb.holdRoomScripts = true
				if err := c.early(t.Context(), s, m); !errors.Is(err, errLost) {
					t.Fatalf("the early request ended with %v", err)
				}
				rdb.holdRoomScripts = false
				if err := c.then(t.Context(), s, m); err != nil {
					t.Fatal(err)
				}
				keys := roomKeysOf(room, "a", "first")
				before := dump(t, rdb, keys...)
				if err := rdb.held().Err(); err != nil {
					t.Fatal(err)
				}
				assertSame(t, c.name, before, dump(t, rdb, keys...))
				assertAgree(t, s, room)
			})
		}
	})
}

func TestAHeartbeatOfAnyProcessBringsNobodyBackWhoLeft_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		other := startService(t, rdb.UniversalClient, Options{})
		joined, err := s.Join(t.Context(), room, "ann", "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		events := record(t, rdb, room)
		rdb.start(nil)
		rdb.before = func(n int) {
			if n == 0 {
				mustLeave(t, other, room, "a")
			}
		}
		_, _, err = s.Heartbeat(t.Context(), room, "a", raw(`{"n":1}`), joined.Epoch)
		wantCode(t, err, CodeNotJoined)
		if all := events.upTo(t, s, room); len(all) != 1 || all[0].Type != EventLeave {
			t.Errorf("got %+v, want the leave only", all)
		}
		assertAgree(t, s, room)
	})
}
