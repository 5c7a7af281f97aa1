package main

import "testing"

// TestAnIndexThatWasPerhapsTidiedIsWrittenAnew: the call that takes a user out of the index may work although it fails. The next join
// must not rely on the entry.
func TestAnIndexThatWasPerhapsTidiedIsWrittenAnew(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		for _, loss := range []string{"request", "answer"} {
			rdb := &faultyRedis{UniversalClient: b.open(t)}
			s, room := startService(t, rdb, Options{}), uniqueRoom(t)
			user := "user of " + room
			m := mustJoin(t, s, room, user, "a", `{}`)
			s.unindexNow(t.Context(), []Member{{Room: room, User: user, Conn: "nobody"}}) // loads the script
			s.stale.busy = true                                                           // the test tidies
			if _, _, err := s.remove(t.Context(), room, removal{reason: ReasonLeft, indexedAt: m.indexedAt}, []incarnation{{"a", m.Epoch}}); err != nil {
				t.Fatal(err)
			}
			users, _ := s.stale.takeAll()
			rdb.start(map[int]string{0: loss})
			failed := s.unindexAll(users)
			if len(failed) != 1 {
				t.Fatalf("the index is tidied although the %s is lost", loss)
			}
			s.stale.putBack(failed)
			if _, err := s.join(t.Context(), Member{Room: room, User: user, Conn: "a", State: raw(`{}`)}, m.Epoch); err != nil {
				t.Fatal(err)
			}
			if n := rdb.HLen(t.Context(), userKey(user)).Val(); n != 1 {
				t.Errorf("after a lost %s and a join the index has %d places of the user", loss, n)
			}
		}
	})
}
