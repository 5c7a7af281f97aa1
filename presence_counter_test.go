package main

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// emptyings are the ways in which a room loses its last member "a".
var emptyings = map[string]func(t *testing.T, s *Service, room string){
	"leave": func(t *testing.T, s *Service, room string) { mustLeave(t, s, room, "a") },
	"kick":  func(t *testing.T, s *Service, room string) { must(t, s.Kick(t.Context(), room, "a")) },
}

// setBack makes a key of a room what it would be after so long.
func setBack(t *testing.T, s *Service, key string, by time.Duration) {
	t.Helper()
	must(t, s.rdb.Set(t.Context(), key, now(t, s)-by.Milliseconds(), redis.KeepTTL).Err())
}

// stored is the revision that Redis has of a room, 0 for none. A snapshot has the clock in its place.
func stored(t *testing.T, s *Service, room string) int64 {
	t.Helper()
	rev, _, err := s.size(t.Context(), room)
	must(t, err)
	return rev
}

// assertLife checks in how long the keys of a room expire that stay when it is empty. Time goes on meanwhile.
func assertLife(t *testing.T, s *Service, room string, want time.Duration) {
	t.Helper()
	k := keysOf(room)
	for _, key := range []string{k.revision(), k.origin()} {
		life := s.rdb.PTTL(t.Context(), key).Val()
		gone := life == -2 && key == k.origin() // it is allowed to have expired before
		if !gone && (life > want+2*time.Second || life < want-30*time.Second || life > time.Hour) {
			t.Errorf("%s expires in %v, want %v", key, life, want)
		}
	}
}

// TestTheCounterOfAnEmptyRoomLivesAsLongAsItHasLived within a minute and an hour. The time is that since the room's counter began.
func TestTheCounterOfAnEmptyRoomLivesAsLongAsItHasLived(t *testing.T) {
	lived := func(time time.Duration) func(*testing.T, *Service, roomKeys) {
		return func(t *testing.T, s *Service, k roomKeys) { setBack(t, s, k.origin(), time) }
	}
	origin := func(value string) func(*testing.T, *Service, roomKeys) {
		return func(t *testing.T, s *Service, k roomKeys) {
			must(t, s.rdb.Set(t.Context(), k.origin(), value, redis.KeepTTL).Err())
		}
	}
	cases := map[string]struct {
		before func(t *testing.T, s *Service, k roomKeys) // what happens before the last member goes
		want   time.Duration
	}{
		"1 s":        {lived(time.Second), time.Minute},
		"10 min":     {lived(10 * time.Minute), 10 * time.Minute},
		"2 h":        {lived(2 * time.Hour), time.Hour},
		"not begun":  {lived(-10 * time.Minute), time.Minute},
		"unknown":    {func(t *testing.T, s *Service, k roomKeys) { must(t, s.rdb.Del(t.Context(), k.origin()).Err()) }, time.Hour},
		"no number":  {origin("junk"), time.Hour},
		"infinite":   {origin("inf"), time.Hour},
		"beyond all": {origin("9007199254740993"), time.Hour},
		"another type": {func(t *testing.T, s *Service, k roomKeys) {
			must(t, s.rdb.Del(t.Context(), k.origin()).Err())
			must(t, s.rdb.HSet(t.Context(), k.origin(), "a", "b").Err())
		}, time.Hour},
		"ahead of the clock":     {func(t *testing.T, s *Service, k roomKeys) { setBack(t, s, k.revision(), -10*time.Minute) }, 11 * time.Minute},
		"far ahead of the clock": {func(t *testing.T, s *Service, k roomKeys) { setBack(t, s, k.revision(), -24*time.Hour) }, time.Hour},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, c := range cases {
			for how, empty := range emptyings {
				t.Run(name+"/"+how, func(t *testing.T) {
					room := uniqueRoom(t)
					mustJoin(t, s, room, "ann", "a", "{}")
					c.before(t, s, keysOf(room))
					empty(t, s, room)
					assertLife(t, s, room, c.want)
				})
			}
		}
	})
}

// TestTheCounterOfARebuiltRoomLivesShortly has a room lose its members, and be rebuilt by who reads it.
func TestTheCounterOfARebuiltRoomLivesShortly(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", "{}")
		must(t, s.rdb.Del(t.Context(), keysOf(room).meta()).Err())
		mustRead(t, s, room)
		assertLife(t, s, room, time.Minute)
		assertAgree(t, s, room)
	})
}

// TestACounterThatIsUsedAgainKeepsItsAge_G2 has a room fill again while its counter is there.
func TestACounterThatIsUsedAgainKeepsItsAge_G2(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		k := keysOf(room)
		mustJoin(t, s, room, "ann", "a", "{}")
		setBack(t, s, k.origin(), 10*time.Minute)
		began := s.rdb.Get(t.Context(), k.origin()).Val()
		mustLeave(t, s, room, "a")
		mustJoin(t, s, room, "ann", "a", "{}")
		if life := s.rdb.PTTL(t.Context(), k.revision()).Val(); life != -1 {
			t.Errorf("the counter of a room with a member expires in %v", life)
		}
		if got, life := s.rdb.Get(t.Context(), k.origin()).Val(), s.rdb.PTTL(t.Context(), k.origin()).Val(); got != began || life < 50*time.Minute {
			t.Errorf("the counter began at %q, want %q; it is forgotten in %v, want an hour", got, began, life)
		}
		mustLeave(t, s, room, "a")
		assertLife(t, s, room, 10*time.Minute)
	})
}

// TestACounterBeginsAboveTheOneThatExpired_G2 also where the room changed faster than the clock.
func TestACounterBeginsAboveTheOneThatExpired_G2(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"at the clock": 0, "ahead of the clock": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			s, moveTo := clockedService(t, Options{})
			room := uniqueRoom(t)
			k := keysOf(room)
			mustJoin(t, s, room, "ann", "a", "{}")
			if ahead > 0 {
				setBack(t, s, k.revision(), -ahead)
			}
			mustLeave(t, s, room, "a")
			last, expires := stored(t, s, room), ahead+leastCounterLife
			moveTo(expires - time.Second)
			if rev := stored(t, s, room); rev != last {
				t.Errorf("the counter is %d before it expires, want %d", rev, last)
			}
			moveTo(expires + time.Second)
			if rev := stored(t, s, room); rev != 0 {
				t.Errorf("the counter is %d, want it to have expired", rev)
			}
			if m := mustJoin(t, s, room, "ann", "a", "{}"); m.Epoch-last < leastCounterLife.Milliseconds() {
				t.Errorf("the counter begins at %d, %d ms after the one before", m.Epoch, m.Epoch-last)
			}
		})
	}
}
