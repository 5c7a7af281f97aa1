package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// joinFrom joins with a device.
func joinFrom(user, conn, device string) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error {
		m, err := s.find(ctx, room, conn)
		if err != nil && !hasCode(err, CodeNotJoined) {
			return err
		}
		_, err = s.join(ctx, Member{Room: room, User: user, Conn: conn, Device: device, Epoch: m.Epoch, State: raw(`{}`)}, 0)
		return err
	}
}

// TestADeviceHasOneMember_G5_G6 goes from service to service, each step on the next one.
func TestADeviceHasOneMember_G5_G6(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name   string
		do     func(ctx context.Context, s *Service, room string) error
		events []string
	}{
		{"join", joinFrom("ann", "a", "d"), []string{`join a ann 1  {} d`}},
		{"join without a device", joinFrom("ann", "x", ""), []string{`join x ann 2  {}`}},
		{"another device", joinFrom("ann", "b", "e"), []string{`join b ann 3  {} e`}},
		{"the same one of another user", joinFrom("bob", "c", "d"), []string{`join c bob 1  {} d`}},
		{"the same one", joinFrom("ann", "a2", "d"), []string{`join a2 ann 4  {} d`, `leave a ann 3 replaced null d`}},
		{"join again", joinFrom("ann", "a2", "d"), []string{`join a2 ann 3  {} d`}},
		{"a patch keeps it", beat("a2", `{"n":1}`), []string{`update a2 ann 3  {"n":1} d`}},
		{"the replaced one again", joinFrom("ann", "a", "d"), []string{`join a ann 4  {} d`, `leave a2 ann 3 replaced null d`}},
		{"join again without it", joinFrom("ann", "a", ""), []string{`join a ann 3  {}`}},
		{"nobody has it", joinFrom("ann", "a3", "d"), []string{`join a3 ann 4  {} d`}},
		{"leave", leave("a3"), []string{`leave a3 ann 3 left null d`}},
		{"nobody has it any more", joinFrom("ann", "a3", "d"), []string{`join a3 ann 4  {} d`}},
		{"another device of the same one", joinFrom("ann", "a3", "e"), []string{`join a3 ann 4  {} e`, `leave b ann 3 replaced null e`}},
		{"the one before is free", joinFrom("ann", "b", "d"), []string{`join b ann 4  {} d`}},
		{"as another user", joinFrom("bob", "b", "d"), []string{`leave b ann 3 replaced null d`, `join b bob 2  {} d`, `leave c bob 1 replaced null d`}},
		{"kick", func(ctx context.Context, s *Service, room string) error { return s.Kick(ctx, room, "b") }, []string{`leave b bob 0 kicked null d`}},
		{"after it", joinFrom("bob", "c", "d"), []string{`join c bob 1  {} d`}},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		for _, grace := range []time.Duration{0, time.Hour} {
			o := Options{Grace: grace, Lookback: 2 * time.Hour}
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
					got = append(got, strings.TrimSpace(short(m)+" "+m.DeviceID))
				}
				told = len(all)
				if !slices.Equal(got, step.events) {
					t.Errorf("%s: got events %q, want %q", step.name, got, step.events)
				}
				assertAgree(t, s, room)
				assertDevices(t, s, room)
			}
			assertChain(t, events.all())
			assertOneLeave(t, events.all())
		}
	})
}

// assertDevices checks that the index of devices is that of the members, and that it expires.
func assertDevices(t testing.TB, s *Service, room string) {
	t.Helper()
	want := map[string]string{}
	for conn, value := range s.rdb.HGetAll(t.Context(), keysOf(room).meta()).Val() {
		if m, ok := parseMeta(value); ok && m.Device != "" {
			want[m.User+"\x01"+literal(m.Device)] = conn
		}
	}
	if got := s.rdb.HGetAll(t.Context(), keysOf(room).devices()).Val(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("devices is %q, want %q", got, want)
	}
	if life := s.rdb.PTTL(t.Context(), keysOf(room).devices()).Val(); len(want) > 0 && (life <= 0 || life > time.Duration(s.fenceLife())*time.Millisecond) {
		t.Errorf("devices lives %v", life)
	}
}

// TestAHeldBackMemberIsReplaced, and those without the device leave as ever. A full room has a place for who replaces.
func TestAHeldBackMemberIsReplaced_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Grace: time.Minute, Lookback: time.Hour, MaxMembers: 2}), uniqueRoom(t)
		events := record(t, s.rdb, room)
		for _, m := range []Member{mustJoinFrom(t, s, room, "ann", "a", "d", "{}"), mustJoinFrom(t, s, room, "ann", "b", "e", "{}")} {
			must(t, s.holdBack(t.Context(), m, time.Minute))
		}
		mustJoinFrom(t, s, room, "ann", "c", "d", "{}")
		all := events.upTo(t, s, room)
		var got []string
		for _, m := range all[len(all)-3:] {
			got = append(got, short(m)+" "+m.DeviceID)
		}
		if want := []string{"join c ann 3  {} d", "leave a ann 2 replaced null d", "leave b ann 1 disconnected null e"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		mustJoinFrom(t, s, room, "ann", "x", "", "{}")
		mustJoinFrom(t, s, room, "ann", "y", "d", "{}") // the room has its two
		if _, err := s.join(t.Context(), Member{Room: room, User: "ann", Conn: "z", Device: "f", State: raw("{}")}, 0); !hasCode(err, CodeRoomFull) {
			t.Errorf("one too many: %v", err)
		}
		assertAgree(t, s, room)
		assertDevices(t, s, room)
	})
}

// TestAReplacedMemberStaysAway_G8, whatever its node does. Its own next join is a new one.
func TestAReplacedMemberStaysAway_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		first := mustJoinFrom(t, s, room, "ann", "a", "d", `{"n":1}`)
		second := mustJoinFrom(t, s, room, "ann", "b", "d", "{}")
		before := mustRead(t, s, room).Rev
		for what, do := range map[string]func(m *Member) error{
			"heartbeat": func(m *Member) error { _, _, err := s.heartbeat(t.Context(), m, nil, 0); return err },
			"patch":     func(m *Member) error { _, _, err := s.heartbeat(t.Context(), m, raw(`{"n":2}`), 0); return err },
			"healer":    func(m *Member) error { return s.restore(t.Context(), m, 0, 0) },
		} {
			m := first
			if err := do(&m); !hasCode(err, CodeNotJoined) || m.kickReason != ReasonReplaced {
				t.Errorf("%s: %v, %s", what, err, m.kickReason)
			}
		}
		if _, gone, err := s.remove(t.Context(), room, removal{reason: ReasonLeft}, []incarnation{{"a", first.Epoch}}); len(gone) > 0 || err != nil {
			t.Errorf("its leave removed %v, %v", gone, err)
		}
		must(t, s.holdBack(t.Context(), first, time.Minute))
		if now := mustRead(t, s, room).Rev; now != before {
			t.Errorf("the room has changed from %d to %d", before, now)
		}
		if life := s.rdb.PTTL(t.Context(), kickKey(room, "a")).Val(); life <= 0 || life > 2*time.Hour {
			t.Errorf("the fence lives %v", life)
		}
		m := mustJoinFrom(t, s, room, "ann", "a", "d", "{}")
		if _, _, err := s.heartbeat(t.Context(), &second, nil, 0); !hasCode(err, CodeNotJoined) {
			t.Errorf("who was replaced in turn: %v", err)
		}
		dumpHashes(t, s, &m)
		if _, _, err := s.heartbeat(t.Context(), &m, nil, 0); err != nil {
			t.Errorf("a restore after a new join: %v", err)
		}
		assertAgree(t, s, room)
		assertDevices(t, s, room)
	})
}

// TestOfTwoMembersOfADeviceTheNewerIsRestored_G8: after a loss of data, in whatever order their nodes put them back, and whether
// the index of devices is there or not.
func TestOfTwoMembersOfADeviceTheNewerIsRestored_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		for _, order := range []string{"ab", "ba", "aba", "bab"} {
			s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
			members := map[rune]Member{'a': mustJoinFrom(t, s, room, "ann", "a", "d", `{"n":1}`), 'b': mustJoinFrom(t, s, room, "ann", "b", "d", `{"n":2}`)}
			other := mustJoinFrom(t, s, room, "ann", "c", "e", "{}")
			for _, key := range append(fencedKeys(room, "a", "b", "c"), keysOf(room).held()) {
				must(t, s.rdb.Del(t.Context(), key).Err())
			}
			must(t, s.restore(t.Context(), &other, 0, other.Rev))
			events := record(t, s.rdb, room)
			for _, conn := range order {
				m := members[conn]
				err := s.restore(t.Context(), &m, 0, other.Rev)
				if err != nil && (conn == 'b' || !hasCode(err, CodeNotJoined) || m.kickReason != ReasonReplaced) {
					t.Errorf("%s: %v", order, err)
				}
			}
			v := mustRead(t, s, room)
			if len(v.Entries) != 2 || v.Entries[0].ConnID != "b" || v.Entries[0].DeviceID != "d" || v.Entries[0].Epoch != members['b'].Epoch || string(v.Entries[0].State) != `{"n":2}` {
				t.Errorf("%s: the room has %+v", order, v.Entries)
			}
			all := events.upTo(t, s, room)
			assertChain(t, all)
			if order[0] == 'a' && (len(all) != 3 || strings.TrimSpace(short(all[2])) != "leave a ann 2 replaced null") {
				t.Errorf("%s: events %+v", order, all)
			}
			assertAgree(t, s, room)
			assertDevices(t, s, room)
		}
	})
}

// TestTheIndexOfDevices is renewed by the reaper, rebuilt with the others, and believed only as far as conn_meta agrees.
func TestTheIndexOfDevices(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		mustJoinFrom(t, s, room, "ann", "a", "d", "{}")
		devices := keysOf(room).devices()
		must(t, s.rdb.PExpire(t.Context(), devices, time.Minute).Err())
		if _, err := newReaper(s).overdue(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		if life := s.rdb.PTTL(t.Context(), devices).Val(); life < 50*time.Minute {
			t.Errorf("after a look of the reaper it lives %v", life)
		}
		must(t, s.rdb.Del(t.Context(), devices, keysOf(room).conns()).Err())
		must(t, s.rebuildRoom(t.Context(), scriptKeys(room)))
		assertDevices(t, s, room)
		mustJoin(t, s, room, "bob", "b", "{}")
		must(t, s.rdb.HSet(t.Context(), devices, "ann\x01"+literal("e"), "a", "ann\x01"+literal("f"), "gone", "ann\x01"+literal("g"), "b").Err())
		for _, device := range []string{"e", "f", "g"} {
			mustJoinFrom(t, s, room, "ann", "c"+device, device, "{}")
		}
		if v := mustRead(t, s, room); len(v.Entries) != 5 {
			t.Errorf("the room has %+v", v.Entries)
		}
		assertDevices(t, s, room)
	})
}

// oddDevices are ids that could be taken for something else.
var oddDevices = []string{"d", `"`, `\`, `\"`, `},"deviceId":"x`, `","deviceId":"x"}`, "{}", "é😀", " ", `,"deviceId":"`, "%s%d%", "a:b", strings.Repeat("d", 200)}

// TestDevicesComeBackAsTheyWere, whatever they and the state hold.
func TestDevicesComeBackAsTheyWere(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
		events := record(t, s.rdb, room)
		states := []string{`{}`, `{"a":"},\"deviceId\":\"x\""}`, `{"deviceId":"y"}`, `{"a":[{"deviceId":"y"}]}`}
		for i, device := range append(oddDevices, "") {
			for k, state := range states {
				conn := fmt.Sprint("c", i, "-", k)
				m := mustJoinFrom(t, s, room, fmt.Sprint("ann", k), conn, device, state)
				if _, _, err := s.heartbeat(t.Context(), &m, raw(`{"p":1}`), 0); err != nil {
					t.Fatal(err)
				}
				patched := string(m.State)
				must(t, s.holdBack(t.Context(), m, time.Minute))
				found, err := s.find(t.Context(), room, conn)
				if err != nil || found.Device != device || string(found.State) != patched || !json.Valid(found.State) {
					t.Errorf("%q with %s is stored as %+v, %v", device, state, found, err)
				}
				mustLeave(t, s, room, conn)
			}
		}
		for _, m := range events.upTo(t, s, room) {
			if i := slices.Index(oddDevices, m.DeviceID); m.DeviceID != "" && i < 0 || i >= 0 && !strings.HasPrefix(m.ConnID, fmt.Sprint("c", i, "-")) {
				t.Errorf("%s of %s has the device %q", m.Type, m.ConnID, m.DeviceID)
			}
			if m.Type == EventLeave != (string(m.State) == "null") {
				t.Errorf("%s of %s has the state %s", m.Type, m.ConnID, m.State)
			}
		}
	})
}

// TestNodesOfTheVersionBeforeReadMembersWithDevices: they take all that is between "state": and the last brace for the state, keep
// it as it is, and put it into events and snapshots, where it is then a state and a device.
func TestNodesOfTheVersionBeforeReadMembersWithDevices(t *testing.T) {
	s, room := startService(t, miniRedis(t).open(t), Options{}), uniqueRoom(t)
	for i, device := range oddDevices {
		m := mustJoinFrom(t, s, room, "ann", fmt.Sprint("c", i), device, `{"a":1}`)
		value := s.rdb.HGet(t.Context(), keysOf(room).meta(), m.Conn).Val()
		_, behind, ok := strings.Cut(value, `,"userId":"ann","state":`)
		if !ok || !json.Valid([]byte(value)) {
			t.Fatalf("the member is %s", value)
		}
		state := strings.TrimSuffix(behind, "}")
		told := (&Event{Type: EventJoin, ConnID: m.Conn, State: raw(state)}).appendJSON(nil)
		var e wireEvent
		if err := json.Unmarshal(told, &e); err != nil || e.DeviceID != device || string(e.State) != `{"a":1}` {
			t.Errorf("they tell %s", told)
		}
	}
}

// FuzzParseMetaWithDevice: what is written is what is read.
func FuzzParseMetaWithDevice(f *testing.F) {
	for _, device := range oddDevices {
		f.Add(device, `{"a":"},\"deviceId\":\"x\""}`)
	}
	f.Add("", "{}")
	f.Fuzz(func(t *testing.T, device, state string) {
		compact, err := testLimits.checkState("state", raw(state))
		if err != nil || device != "" && checkID("deviceId", device, 200) != nil {
			return
		}
		tail := ""
		if device != "" {
			tail = `,"deviceId":` + literal(device)
		}
		m, ok := parseMeta(`{"epoch":1,"rev":2,"node":"n","userLen":3,"userId":"u","state":` + string(compact) + tail + "}")
		if !ok || m.Device != device || string(m.State) != string(compact) {
			t.Errorf("read %+v, %t", m, ok)
		}
		e, ok := parseMessage(`{"prev":1,"rev":2,"ts":3,"epoch":1,"userConns":1,"type":"leave","connId":"c","userId":"u","roomId":"r","reason":"left","state":null` + tail + "}")
		if !ok || e.DeviceID != device || string(e.State) != "null" {
			t.Errorf("heard %+v, %t", e, ok)
		}
	})
}
