package main

import (
	"strconv"
	"testing"
	"time"
)

func TestWhereAUserIs(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{Lookback: time.Minute}), uniqueRoom(t)
		user := "user of " + room
		index := func() map[string]string { return rdb.HGetAll(t.Context(), userKey(user)).Val() }
		m := mustJoin(t, s, room, user, "a", `{}`)
		if stored, _ := strconv.ParseInt(index()[userField(room, "a")], 10, 64); stored <= 0 || stored > m.Epoch {
			t.Errorf("the index has %v, want an epoch up to %d", index(), m.Epoch)
		}
		if life := rdb.PTTL(t.Context(), userKey(user)).Val(); life <= time.Minute || life > 2*time.Minute {
			t.Errorf("the index lives %v, want two lookbacks", life)
		}

		mustLeave(t, s, room, "a")
		if len(index()) != 0 {
			t.Errorf("after the leave the index has %v", index())
		}

		if err := s.restore(t.Context(), &m, 0, m.Rev); err != nil {
			t.Fatal(err)
		}
		if len(index()) != 1 {
			t.Errorf("after the restore the index has %v", index())
		}
		mustLeave(t, s, room, "a")
		if len(index()) != 0 {
			t.Errorf("after the leave of one that was put back the index has %v", index())
		}
	})
}

// An index holds too much, never too little: a join between a leave and the leave's clean-up stays in it.
func TestAJoinRightAfterALeaveStaysInTheUserIndex(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		other := startService(t, rdb.UniversalClient, Options{})
		user := "user of " + room
		for name, between := range map[string]int{"after the removal": 1, "before the removal": 0} {
			mustJoin(t, s, room, user, "a", `{}`)
			rdb.start(nil)
			rdb.before = func(n int) {
				if n != between {
					return
				}
				if _, err := other.Join(t.Context(), room, user, "a", nil); err != nil {
					t.Error(err)
				}
			}
			m, err := s.find(t.Context(), room, "a")
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err = s.remove(t.Context(), room, removal{reason: ReasonLeft}, []incarnation{{"a", m.Epoch}}); err != nil {
				t.Fatal(err)
			}
			rdb.before = nil
			if stateOf(t, s, room, "a") == "" {
				t.Fatalf("%s: the second incarnation is gone", name)
			}
			if rdb.HLen(t.Context(), userKey(user)).Val() != 1 {
				t.Errorf("%s: the user is in a room, and the index does not say so", name)
			}
		}
	})
}

// A member that leaves by its owner and comes back at once costs the user index nothing, and stays in it. One that does not
// come back is taken out.
func TestTheUserIndexOutlivesAShortAbsence(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		user := "user of " + room
		m := mustJoin(t, s, room, user, "a", `{}`)
		s.stale.busy = true // the test tidies
		for range 3 {
			own := removal{reason: ReasonLeft, indexedAt: m.indexedAt}
			if _, gone, err := s.remove(t.Context(), room, own, []incarnation{{"a", m.Epoch}}); err != nil || len(gone) != 1 {
				t.Fatalf("removed %v, %v", gone, err)
			}
			rdb.start(nil)
			var err error
			if m, err = s.join(t.Context(), Member{Room: room, User: user, Conn: "a", State: raw(`{}`)}, m.Epoch); err != nil {
				t.Fatal(err)
			}
			if rdb.count() != 1 {
				t.Errorf("a join right after a leave was %d scripts, want its own only", rdb.count())
			}
		}
		users, busy := s.stale.takeAll()
		s.unindexAll(users)
		if index := rdb.HGetAll(t.Context(), userKey(user)).Val(); len(index) != 1 {
			t.Errorf("the user is in a room, and the index has %v", index)
		}
		if busy {
			t.Error("there is something to tidy")
		}
		own := removal{reason: ReasonLeft, indexedAt: m.indexedAt}
		if _, _, err := s.remove(t.Context(), room, own, []incarnation{{"a", m.Epoch}}); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, "the index is empty", func() bool { return rdb.Exists(t.Context(), userKey(user)).Val() == 0 })
	})
}

// What a service still has to take out of the indices is done at its end.
func TestStopTidiesTheUserIndices(t *testing.T) {
	b := miniRedis(t)
	rdb := b.open(t)
	s, room := startService(t, rdb, Options{}), uniqueRoom(t)
	for _, user := range []string{"ann", "bob"} {
		m := mustJoin(t, s, room, user, "c-"+user, `{}`)
		if _, _, err := s.remove(t.Context(), room, removal{reason: ReasonLeft, indexedAt: m.indexedAt}, []incarnation{{m.Conn, m.Epoch}}); err != nil {
			t.Fatal(err)
		}
	}
	s.Stop()
	if left := rdb.Exists(t.Context(), userKey("ann"), userKey("bob")).Val(); left != 0 {
		t.Errorf("%d indices still tell of users who left", left)
	}
}
