package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestEachOperationTellsItsEventsAndKeepsTheIndicesEqual_G6(t *testing.T) {
	steps := []struct {
		name   string
		do     func(ctx context.Context, s *Service, room string) error
		events []string
	}{
		{"join", join("ann", "a", `{"n":1}`), []string{`join a ann 1  {"n":1}`}},
		{"second connection of the user", join("ann", "b", `{}`), []string{`join b ann 2  {}`}},
		{"join without state", join("bob", "c", ""), []string{`join c bob 1  {}`}},
		{"heartbeat", beat("a", ""), nil},
		{"patch", beat("a", `{"m":[ 2 ]}`), []string{`update a ann 2  {"n":1,"m":[2]}`}},
		{"patch without effect", beat("a", `{"n":1}`), nil},
		{"join again", join("ann", "a", `{"x":true}`), []string{`join a ann 2  {"x":true}`}},
		{"join again as another user", join("bob", "a", `{"y":0}`), []string{`leave a ann 1 replaced null`, `join a bob 2  {"y":0}`}},
		{"the last of a user as another user", join("bob", "b", `{}`), []string{`leave b ann 0 replaced null`, `join b bob 3  {}`}},
		{"leave", leave("a"), []string{`leave a bob 2 left null`}},
		{"leave a second time", leave("a"), nil},
		{"leave of one that was never there", leave("z"), nil},
		{"leave of all others", leave("b"), []string{`leave b bob 1 left null`}},
		{"leave of the last", leave("c"), []string{`leave c bob 0 left null`}},
		{"join after the room was empty", join("ann", "a", `{}`), []string{`join a ann 1  {}`}},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, noScriptFlags := range map[string]bool{"with flags": false, "without flags, as before Redis 7": true} {
			t.Run(name, func(t *testing.T) {
				s.noScriptFlags.Store(noScriptFlags)
				room := uniqueRoom(t)
				events := record(t, s.rdb, room)
				told := 0
				for _, step := range steps {
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
				}
				assertChain(t, events.all())
				assertOneLeave(t, events.all())
			})
		}
	})
}

func TestSubscribeDeliversWhatThePublisherSent(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		var mu sync.Mutex
		var got []Event
		err := s.Subscribe(t.Context(), func(e Event) {
			if e.RoomID == room {
				mu.Lock()
				got = append(got, e)
				mu.Unlock()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		events := record(t, s.rdb, room)
		mustJoin(t, s, room, "ann", "a", `{"n":1}`)
		mustLeave(t, s, room, "a")
		var want []Event
		for _, m := range events.upTo(t, s, room) {
			want = append(want, m.Event)
		}
		eventually(t, 5*time.Second, "both events", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) == 2
		})
		mu.Lock()
		defer mu.Unlock()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestAnEpochGrowsWithEachJoin(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		var before int64
		for range 5 {
			joined, err := s.Join(t.Context(), room, "ann", "a", nil)
			if err != nil {
				t.Fatal(err)
			}
			if joined.Epoch <= before {
				t.Fatalf("epoch %d after %d", joined.Epoch, before)
			}
			before = joined.Epoch
			mustLeave(t, s, room, "a")
		}
	})
}

func TestHeartbeatOfOneThatIsNotInTheRoom(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		_, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"n":1}`), 0)
		wantCode(t, err, CodeNotJoined)
		if got := dump(t, s.rdb, roomKeysOf(room, "a")...); len(got) != 0 {
			t.Errorf("it wrote %v", got)
		}
	})
}

func TestBadArgumentsWriteNothing_G9(t *testing.T) {
	rdb := miniRedis(t).open(t)
	s := startService(t, rdb, Options{Limits: Limits{IDBytes: 10, StateBytes: 20}})
	cases := []struct {
		name, room, user, conn, state string
		code                          Code
	}{
		{"no room", "", "u", "c", "{}", CodeInvalidPayload},
		{"no user", "r", "", "c", "{}", CodeInvalidPayload},
		{"no connection", "r", "u", "", "{}", CodeInvalidPayload},
		{"long room", "12345678901", "u", "c", "{}", CodeInvalidPayload},
		{"control character in the room", "a\nb", "u", "c", "{}", CodeInvalidPayload},
		{"colon in the connection", "r", "u", "a:b", "{}", CodeInvalidPayload},
		{"array for a state", "r", "u", "c", "[]", CodeInvalidPayload},
		{"broken state", "r", "u", "c", "{", CodeInvalidPayload},
		{"large state", "r", "u", "c", `{"a":"12345678901234567890"}`, CodeStateTooLarge},
	}
	for _, c := range cases {
		_, err := s.Join(t.Context(), c.room, c.user, c.conn, raw(c.state))
		wantCode(t, err, c.code)
	}
	if keys := rdb.Keys(t.Context(), "*").Val(); len(keys) != 0 {
		t.Errorf("keys were written: %q", keys)
	}
}

func TestARoomIsFullWhenTheScriptSaysSo(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		room, o := uniqueRoom(t), Options{MaxMembers: 3}
		services := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o), startService(t, b.open(t), o)}
		var entered sync.Map
		var work sync.WaitGroup
		for i := range 24 {
			work.Go(func() {
				conn := fmt.Sprint("c", i)
				joined, err := services[i%3].Join(t.Context(), room, "ann", conn, nil)
				if err == nil {
					entered.Store(conn, joined.Epoch)
					return
				}
				var refused *Error
				if !errors.As(err, &refused) || refused.Code != CodeRoomFull {
					t.Errorf("a join ended with %v, want %s", err, CodeRoomFull)
				}
			})
		}
		work.Wait()
		var inside []string
		entered.Range(func(conn, _ any) bool {
			inside = append(inside, conn.(string))
			return true
		})
		if len(inside) != 3 || len(mustRead(t, services[0], room).Entries) != 3 {
			t.Fatalf("%q entered a room for 3", inside)
		}
		if _, err := services[1].Join(t.Context(), room, "bob", inside[0], nil); err != nil {
			t.Errorf("a member cannot join its full room again: %v", err)
		}
		lost := Member{Room: room, User: "ann", Conn: "lost", Epoch: 1, Rev: 1, State: raw("{}")}
		if err := services[2].restore(t.Context(), &lost, 0, 0); err != nil {
			t.Errorf("a full room does not take back one that it lost: %v", err)
		}
		assertAgree(t, services[0], room)
	})
}

func TestStatesComeBackEqualAsJSON(t *testing.T) {
	states := map[string]string{
		"empty":                  `{}`,
		"empty array and object": `{"a":[],"b":{}}`,
		"nested empties":         `{"a":[[],{},[{}]]}`,
		"64-bit digits":          `{"n":1234567890123456789,"m":-9223372036854775808}`,
		"long fractions":         `{"n":0.1000000000000000055511151231257827,"e":1e400}`,
		"null":                   `{"a":null}`,
		"odd keys":               `{"":1,"__proto__":{"x":1},"constructor":2," ":3}`,
		"Unicode":                `{"š":"日本語 🏳️‍🌈","a":"\u2028"}`,
		"escapes":                `{"a":"\u0000\u001f\"\\\/\b\f\n\r\t"}`,
		"lone surrogates":        `{"a":"\ud800","b":"\udfff\ud800"}`,
		"like Lua's patterns":    `{"a":"%d+%1%%","b":"\\1"}`,
		"like our own fields":    `{"a":",\"state\":","epoch":7,"userId":"x","rev":1}`,
		"deep nesting":           `{"a":` + strings.Repeat("[", 62) + strings.Repeat("]", 62) + `}`,
		"large":                  `{"a":"` + strings.Repeat("x", 16000) + `"}`,
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, state := range states {
			t.Run(name, func(t *testing.T) {
				room := uniqueRoom(t)
				events := record(t, s.rdb, room)
				m := mustJoin(t, s, room, "ann", "a", state)
				if got := stateOf(t, s, room, "a"); got != state {
					t.Errorf("after the join the room has %s, want %s", got, state)
				}
				if _, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"patched":[]}`), m.Epoch); err != nil {
					t.Fatal(err)
				}
				all := events.upTo(t, s, room)
				want := strings.TrimSuffix(state, "}") + `,"patched":[]}`
				want = strings.Replace(want, "{,", "{", 1)
				if got := stateOf(t, s, room, "a"); got != want || string(all[1].State) != want {
					t.Errorf("after the patch the room has %s, the event %s, want %s", got, all[1].State, want)
				}
				if string(all[0].State) != state {
					t.Errorf("the join's event has %s, want %s", all[0].State, state)
				}
				if got, err := s.find(t.Context(), room, "a"); err != nil || string(got.State) != want {
					t.Errorf("one connection reads as %s, %v, want %s", got.State, err, want)
				}
				assertAgree(t, s, room)
			})
		}
	})
}

func TestChangedTellsWhetherTheStoredStateDiffers(t *testing.T) {
	cases := []struct {
		name, state, patch string
		changed            bool
	}{
		{"same value", `{"a":1}`, `{"a":1}`, false},
		{"no key", `{"a":1}`, `{}`, false},
		{"other number text", `{"a":1}`, `{"a":1.0}`, true},
		{"other value", `{"a":1}`, `{"a":2}`, true},
		{"new key", `{"a":1}`, `{"b":1}`, true},
		{"null stored", `{"a":1}`, `{"a":null}`, true},
		{"null again", `{"a":null}`, `{"a":null}`, false},
		{"null for an absent key", `{}`, `{"a":null}`, true},
		{"key order and spacing", `{"a":{"x":1,"y":[2]}}`, ` { "a" : { "y" : [ 2 ], "x" : 1 } } `, false},
		{"array order", `{"a":[1,2]}`, `{"a":[2,1]}`, true},
		{"escaped text", `{"a":"é"}`, `{"a":"\u00e9"}`, false},
		{"normal forms of Unicode", `{"a":"é"}`, `{"a":"e\u0301"}`, true},
		{"lone surrogates", `{"a":"\ud800"}`, `{"a":"\ud801"}`, true},
		{"array and object", `{"a":[]}`, `{"a":{}}`, true},
		{"last 64-bit digit", `{"a":9007199254740993}`, `{"a":9007199254740992}`, true},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				room := uniqueRoom(t)
				mustJoin(t, s, room, "ann", "a", c.state)
				events := record(t, s.rdb, room)
				before := mustRead(t, s, room).Rev
				changed, _, err := s.Heartbeat(t.Context(), room, "a", raw(c.patch), 0)
				if err != nil || changed != c.changed {
					t.Errorf("changed is %t, %v, want %t", changed, err, c.changed)
				}
				if raised := mustRead(t, s, room).Rev > before; raised != c.changed {
					t.Errorf("the revision was raised: %t, want %t", raised, c.changed)
				}
				mustLeave(t, s, room, "a")
				if updates := len(events.upTo(t, s, room)) - 1; (updates == 1) != c.changed {
					t.Errorf("%d updates were told", updates)
				}
			})
		}
	})
}

func TestAStateThatWouldBeTooLargeKeepsTheOldOne(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Limits: Limits{StateBytes: 30}}), uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", `{"a":"1234567890"}`)
		before := dump(t, s.rdb, roomKeysOf(room, "a")...)
		_, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"b":"1234567890"}`), 0)
		wantCode(t, err, CodeStateTooLarge)
		assertSame(t, "patch over the limit", before, dump(t, s.rdb, roomKeysOf(room, "a")...))
		if _, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"b":"12345"}`), 0); err != nil {
			t.Errorf("exactly the limit: %v", err)
		}
		if got, want := stateOf(t, s, room, "a"), `{"a":"1234567890","b":"12345"}`; got != want || len(want) != 30 {
			t.Errorf("state is %s, want %s", got, want)
		}
	})
}

func TestARevisionIsAboveWhatTheCallerKnows(t *testing.T) {
	const known int64 = 1 << 49
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, op := range map[string]func(m *Member) error{
			"join": func(m *Member) error {
				_, err := s.join(t.Context(), *m, known)
				return err
			},
			"patch": func(m *Member) error {
				_, _, err := s.heartbeat(t.Context(), m, raw(`{"p":1}`), known)
				return err
			},
			"restore": func(m *Member) error {
				mustLeave(t, s, m.Room, m.Conn)
				return s.restore(t.Context(), m, 0, known)
			},
			"remove": func(m *Member) error {
				_, _, err := s.remove(t.Context(), m.Room, removal{reason: ReasonLeft, floor: known}, []incarnation{{conn: m.Conn}})
				return err
			},
		} {
			room, m := prepared(t, s)
			if err := op(&m); err != nil {
				t.Fatal(err)
			}
			if rev := mustRead(t, s, room).Rev; rev != known+1 {
				t.Errorf("%s: the revision is %d, want %d", name, rev, known+1)
			}
			mustLeave(t, s, room, "b")
			if rev := mustRead(t, s, room).Rev; rev != known+2 {
				t.Errorf("%s: the next revision is %d, want %d", name, rev, known+2)
			}
		}
	})
}
