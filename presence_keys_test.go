package main

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestIDsOfAnyText(t *testing.T) {
	t.Parallel()
	ids := []string{
		"plain", "{", "}", "}{", "{room:x}", "}:conn_meta", `"`, `\`, `\"`, `\\`, `a\`, ":", "a:b:c", "*", "[a]", "?", "%d%1",
		"日本語", "🏳️‍🌈", "\u2028", "\u00a0", " ", "'", `","state":{}`, "é", "e\u0301", "</script>", "null", "__proto__",
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s, unique := startService(t, b.open(t), Options{}), uniqueRoom(t)
		for _, id := range ids {
			room, user := unique+id, id+unique
			events := record(t, s.rdb, room)
			mustJoin(t, s, room, user, "a", `{"n":1}`)
			if _, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"n":2}`), 0); err != nil {
				t.Fatalf("%q: %v", id, err)
			}
			if v := mustRead(t, s, room); len(v.Entries) != 1 || v.Entries[0].UserID != user || v.Users != 1 {
				t.Errorf("%q: the room is %+v", id, v)
			}
			assertAgree(t, s, room)
			mustLeave(t, s, room, "a")
			all := events.upTo(t, s, room)
			if len(all) != 3 {
				t.Fatalf("%q: got %d events, want 3", id, len(all))
			}
			for _, m := range all {
				if m.RoomID != room || m.UserID != user {
					t.Errorf("event of room %q and user %q, want %q and %q", m.RoomID, m.UserID, room, user)
				}
			}
			if left := dump(t, s.rdb, append(roomKeysOf(room, "a"), userKey(user))...); len(left) != 2 {
				t.Errorf("%q: after the leave there is not just the counter, and where it began: %v", id, left)
			}
		}
	})
}

func TestKeysOfAnotherTypeAreMended(t *testing.T) {
	t.Parallel()
	keys := map[string]func(room string) string{
		"conn_meta": func(r string) string { return keysOf(r).meta() },
		"members":   func(r string) string { return keysOf(r).members() },
		"last_seen": func(r string) string { return keysOf(r).lastSeen() },
		"rev":       func(r string) string { return keysOf(r).revision() },
		"conns":     func(r string) string { return keysOf(r).conns() },
		"held":      func(r string) string { return keysOf(r).held() },
		"devices":   func(r string) string { return keysOf(r).devices() },
		"conn hash": func(r string) string { return connKey(r, "a") },
		"user":      func(string) string { return userKey("ann-of-another-type") },
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{Grace: time.Minute})
		for _, op := range operations() {
			for name, key := range keys {
				t.Run(op.name+", "+name, func(t *testing.T) {
					room := uniqueRoom(t)
					mustJoin(t, s, room, "bob", "b", `{"other":1}`)
					m := mustJoinFrom(t, s, room, "ann-of-another-type", "a", "d", `{"n":1}`)
					before := mustRead(t, s, room).Rev
					spoil(t, s.rdb, key(room))
					if err := op.do(t.Context(), s, &m); err != nil {
						t.Fatal(err)
					}
					v := mustRead(t, s, room) // reads whatever the operation has not met
					if name != "user" {
						if kind := s.rdb.Type(t.Context(), key(room)).Val(); kind == "list" && name != "conn hash" && name != "held" && name != "devices" {
							t.Errorf("%s is still a list", name)
						}
					}
					if name != "conn_meta" && v.Rev < before {
						t.Errorf("the revision fell from %d to %d", before, v.Rev)
					}
					if name != "conn_meta" && stateOf(t, s, room, "b") != `{"other":1}` {
						t.Errorf("another member was lost with %s", name)
					}
					if _, err := s.Join(t.Context(), room, "ann-of-another-type", "a", nil); err != nil {
						t.Errorf("a join afterwards: %v", err)
					}
					if name == "last_seen" || name == "conn hash" { // b's hash is as old as it was
						if _, _, err := s.Heartbeat(t.Context(), room, "b", nil, 0); err != nil {
							t.Errorf("a heartbeat afterwards: %v", err)
						}
					}
					assertAgree(t, s, room)
				})
			}
		}
	})
}

// spoil puts a list in the place of a key.
func spoil(t testing.TB, rdb redis.UniversalClient, key string) {
	t.Helper()
	if err := errors.Join(rdb.Del(t.Context(), key).Err(), rdb.RPush(t.Context(), key, "of", "another", "type").Err()); err != nil {
		t.Fatal(err)
	}
}

func TestTheCounterOfARoomThatLostItsMembersExpires(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", `{}`)
		spoil(t, s.rdb, keysOf(room).meta())
		if v := mustRead(t, s, room); len(v.Entries) != 0 {
			t.Fatalf("the room has %+v", v.Entries)
		}
		assertAgree(t, s, room)
	})
}

func TestAnIndexOfAnotherTypeIsReplaced(t *testing.T) {
	for name, url := range map[string]string{"miniredis": miniRedis(t).url, "redis": spawnRedis(t).url} {
		t.Run(name, func(t *testing.T) {
			rdb := backend{url: url}.open(t)
			s, room := startService(t, rdb, Options{}), uniqueRoom(t)
			for _, op := range []func() error{
				func() error { return s.indexRoom(t.Context(), room, time.Hour) },
				func() error { return newReaper(s).pass(t.Context()) },
				func() error { return newReaper(s).settle(t.Context(), "1", []claimedRoom{{id: room, seen: true}}) },
			} {
				spoil(t, rdb, activeRoomsKey)
				if err := op(); err != nil {
					t.Error(err)
				}
				if kind := rdb.Type(t.Context(), activeRoomsKey).Val(); kind == "list" {
					t.Error("the index is still a list")
				}
			}
		})
	}
}

func TestLivesOfKeys(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{TTL: 40 * time.Second}), uniqueRoom(t)
		m := mustJoin(t, s, room, "ann", "a", `{}`)
		assertAgree(t, s, room)
		s.rdb.PExpire(t.Context(), connKey(room, "a"), time.Second)
		if _, _, err := s.Heartbeat(t.Context(), room, "a", nil, m.Epoch); err != nil {
			t.Fatal(err)
		}
		if life := s.rdb.PTTL(t.Context(), connKey(room, "a")).Val(); life <= time.Second {
			t.Errorf("after a heartbeat the hash lives %v", life)
		}
		mustLeave(t, s, room, "a")
		assertAgree(t, s, room)
		emptied := mustRead(t, s, room).Rev
		again := mustJoin(t, s, room, "ann", "a", `{}`)
		if again.Epoch <= emptied || emptied <= m.Epoch {
			t.Errorf("join %d, emptied %d, join %d: the counter must grow", m.Epoch, emptied, again.Epoch)
		}
		assertAgree(t, s, room)
	})
}

func TestARoomOutlivesTheHashesOfItsMembers(t *testing.T) {
	b := miniRedis(t)
	s, room := startService(t, b.open(t), Options{TTL: 30 * time.Second}), uniqueRoom(t)
	start := time.Now()
	b.mini.SetTime(start)
	m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
	b.mini.SetTime(start.Add(40 * time.Second))
	if b.mini.Exists(connKey(room, "a")) {
		t.Fatal("the hash outlived the TTL")
	}
	if got := stateOf(t, s, room, "a"); got != `{"n":1}` {
		t.Errorf("the snapshot has state %q", got)
	}
	if changed, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"m":2}`), m.Epoch); err != nil || !changed {
		t.Errorf("the patch: %t, %v", changed, err)
	}
	if got := stateOf(t, s, room, "a"); got != `{"n":1,"m":2}` {
		t.Errorf("the patched state is %s", got)
	}
	assertAgree(t, s, room)
}

func TestTheCounterOfAnEmptyRoomIsGoneAfterAnHour(t *testing.T) {
	b := miniRedis(t)
	s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
	start := time.Now()
	b.mini.SetTime(start)
	mustJoin(t, s, room, "ann", "a", `{}`)
	b.mini.Del(keysOf(room).origin()) // as in a room that has lived for so long
	mustLeave(t, s, room, "a")
	b.mini.SetTime(start.Add(time.Hour - time.Second))
	if !b.mini.Exists(keysOf(room).revision()) {
		t.Error("the counter of an empty room is gone too early")
	}
	b.mini.SetTime(start.Add(time.Hour + time.Second))
	if b.mini.Exists(keysOf(room).revision()) {
		t.Error("the counter of an empty room stays")
	}
}

// tableOfKeys are the keys that need not expire, as the protocol lists them.
var tableOfKeys = regexp.MustCompile(`^prs:(active_rooms|\{room:.*\}:(conns|conn_meta|members|last_seen|rev))$`)

func TestEveryKeyIsInTheProtocolsTableOrExpires(t *testing.T) {
	for name, url := range map[string]string{"miniredis": miniRedis(t).url, "redis": spawnRedis(t).url} {
		t.Run(name, func(t *testing.T) {
			rdb := backend{url: url}.open(t)
			s := startService(t, rdb, Options{Grace: time.Minute})
			for _, op := range operations() {
				_, m := prepared(t, s)
				if err := op.do(t.Context(), s, &m); err != nil {
					t.Fatal(err)
				}
			}
			if err := newReaper(s).pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, key := range rdb.Keys(t.Context(), "*").Val() {
				if life := rdb.PTTL(t.Context(), key).Val(); life <= 0 && !tableOfKeys.MatchString(key) {
					t.Errorf("%s is not in the table and lives %v", key, life)
				}
			}
		})
	}
}
