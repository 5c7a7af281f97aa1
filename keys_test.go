package main

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestKeysAreThoseOfTheProtocol(t *testing.T) {
	k := keysOf("lobby")
	cases := map[string]string{
		activeRoomsKey:           "prs:active_rooms",
		leasesKey:                "prs:{nodes}:leases",
		nodeRoomsKey("n1"):       "prs:{nodes}:n1:rooms",
		k.meta():                 "prs:{room:lobby}:conn_meta",
		k.members():              "prs:{room:lobby}:members",
		k.lastSeen():             "prs:{room:lobby}:last_seen",
		k.revision():             "prs:{room:lobby}:rev",
		k.conns():                "prs:{room:lobby}:conns",
		k.origin():               "prs:{room:lobby}:origin",
		k.held():                 "prs:{room:lobby}:held",
		k.devices():              "prs:{room:lobby}:devices",
		k.events():               "prs:{room:lobby}:events",
		connKey("lobby", "c1"):   "prs:conn:{room:lobby}:c1",
		kickKey("lobby", "c1"):   "prs:kick:{room:lobby}:c1",
		userKey("ann"):           "prs:user:ann:conns",
		userField("lobby", "c1"): "c1:lobby",
		lastSeenKey("ann"):       "prs:last_seen:{prs:user:ann:conns}",
		lastSeenKey("{ann}"):     "prs:user:{ann}:last_seen",
		lastSeenKey("ann}"):      "prs:user:ann}:last_seen:0G8",
		probeChannel("p1"):       "prs:probe:p1",
		eventsPattern:            "prs:{room:*}:events",
		strings.Join(scriptKeys("r", "a", "b"), " "): "prs:{room:r}:conn_meta prs:{room:r}:members prs:{room:r}:last_seen " +
			"prs:{room:r}:rev prs:{room:r}:conns prs:{room:r}:origin prs:conn:{room:r}:a prs:conn:{room:r}:b",
	}
	for got, want := range cases {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestRoomOfKeys(t *testing.T) {
	for _, room := range []string{"lobby", "}:conn_meta", "{room:x}:conn_meta", "{", "a:b"} {
		if got := roomOfKeys(scriptKeys(room, "c1")); got != room {
			t.Errorf("%q: got %q", room, got)
		}
	}
}

func TestRoomOfChannel(t *testing.T) {
	cases := []struct {
		channel, room string
		ok            bool
	}{
		{"prs:{room:lobby}:events", "lobby", true},
		{"prs:{room:}:events}:events", "}:events", true},
		{"prs:{room:{x}}:events", "{x}", true},
		{"prs:{room:lobby}:conns", "lobby", false},
		{"prs:{user:lobby}:events", "", false},
		{"", "", false},
	}
	for _, c := range cases {
		if room, ok := roomOfChannel(c.channel); ok != c.ok || ok && room != c.room {
			t.Errorf("%q: got %q, %t, want %q, %t", c.channel, room, ok, c.room, c.ok)
		}
	}
}

// hashSlot is the slot of a key in a cluster, as the specification of Redis Cluster has it: CRC16 (XMODEM) of what stands
// between the first { and the next }, if that is not empty, else of the whole key.
func hashSlot(key string) uint16 {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	var crc uint16
	for _, c := range []byte(key) {
		crc ^= uint16(c) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return crc % 16384
}

func TestHashSlotIsThatOfRedis(t *testing.T) {
	if got := hashSlot("123456789"); got != 0x31C3 {
		t.Fatalf("the specification's example is in slot %#x, want 0x31C3", got)
	}
	rdb := redisCluster(t).open(t)
	for _, room := range []string{"lobby", "", "{", "}", "}{", "{}", "{a}", "日本語", `"\`} {
		key := keysOf(room).meta()
		if want := rdb.(*redis.ClusterClient).ClusterKeySlot(t.Context(), key).Val(); int64(hashSlot(key)) != want {
			t.Errorf("%q is in slot %d, Redis says %d", key, hashSlot(key), want)
		}
	}
}

func FuzzKeysOfOneRoomShareASlot(f *testing.F) {
	for _, room := range []string{"lobby", "{", "}", "}{", "{}", "}:conns", "{room:x}", "日本語", `"\`, ":"} {
		f.Add(room)
	}
	f.Fuzz(func(t *testing.T, room string) {
		if checkID("roomId", room, 200) != nil {
			return
		}
		k := keysOf(room)
		want := hashSlot(k.events())
		for _, key := range append(fencedKeys(room, "c1", "c2"), k.held()) {
			if got := hashSlot(key); got != want {
				t.Errorf("%q is in slot %d, the room's channel in %d", key, got, want)
			}
		}
		if back, ok := roomOfChannel(k.events()); !ok || back != room {
			t.Errorf("the room of %q is %q, %t, want %q", k.events(), back, ok, room)
		}
	})
}

func FuzzKeysOfOneUserShareASlot(f *testing.F) {
	for _, user := range []string{"ann", "{", "}", "}{", "{}", "a}b{c}", "{a}{b}", "日本語", "prs:user:{x}:last_seen", "x:last_seen:00f"} {
		f.Add(user, "ann")
	}
	f.Add("{prs:user:ann:conns}", "ann")
	f.Fuzz(func(t *testing.T, user, other string) {
		if checkID("userId", user, 200) != nil || checkID("userId", other, 200) != nil {
			return
		}
		if index, key := userKey(user), lastSeenKey(user); hashSlot(index) != hashSlot(key) {
			t.Errorf("%q is in slot %d, %q in %d", index, hashSlot(index), key, hashSlot(key))
		}
		for _, key := range userKeys(other) {
			if user != other && (key == userKey(user) || key == lastSeenKey(user)) {
				t.Errorf("%q is a key of %q and of %q", key, user, other)
			}
		}
	})
}

// All keys of two different places differ, those of different kinds included.
func FuzzNoTwoPlacesShareAKey(f *testing.F) {
	f.Add("a", "c", "b", "c")
	f.Add("a", "c", "a", "d")
	f.Add("a}:c", "d", "a", "c}:d")
	f.Add("x}:conn_meta", "conns", "x", "conn_meta")
	f.Add("x", "rev", "x}:rev", "rev")
	f.Add("", "a", "a", "")
	f.Fuzz(func(t *testing.T, room1, conn1, room2, conn2 string) {
		if checkID("roomId", room1, 200) != nil || checkID("roomId", room2, 200) != nil ||
			checkConnID(conn1) != nil || checkConnID(conn2) != nil || room1 == room2 && conn1 == conn2 {
			return
		}
		if connKey(room1, conn1) == connKey(room2, conn2) {
			t.Errorf("the connections share %q", connKey(room1, conn1))
		}
		if userField(room1, conn1) == userField(room2, conn2) {
			t.Errorf("the connections share the field %q", userField(room1, conn1))
		}
		owner := map[string]string{}
		for _, room := range []string{room1, room2} {
			for _, key := range append(keysOf(room).indices(), keysOf(room).held(), keysOf(room).devices(), keysOf(room).events()) {
				if other, taken := owner[key]; taken && other != room {
					t.Errorf("rooms %q and %q share %q", other, room, key)
				}
				owner[key] = room
			}
		}
		for _, key := range []string{connKey(room1, conn1), connKey(room2, conn2), userKey(room1), userKey(conn1), activeRoomsKey} {
			if room, taken := owner[key]; taken {
				t.Errorf("%q is a key of room %q and of something else", key, room)
			}
		}
	})
}

func TestHashTag(t *testing.T) {
	for key, want := range map[string]string{
		"prs:{room:a}:rev": "room:a", "prs:{room:a}b}:rev": "room:a", "prs:{room:{a}:rev": "room:{a", "prs:user:u:conns": "prs:user:u:conns",
		"prs:user:{}:conns": "prs:user:{}:conns", "prs:user:{u:conns": "prs:user:{u:conns", "": "",
	} {
		if got := hashTag(key); got != want {
			t.Errorf("of %q is %q, want %q", key, got, want)
		}
	}
}
