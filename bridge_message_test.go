package main

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// payloadOf writes a message as lua/room.lua does.
func payloadOf(m message) string {
	reason := ""
	if m.Reason != "" {
		reason = fmt.Sprintf(`,"reason":"%s"`, m.Reason)
	}
	return fmt.Sprintf(`{"prev":%d,"rev":%d,"ts":%d,"epoch":%d,"userConns":%d,"type":"%s","connId":"%s","userId":%s,"roomId":%s%s,"state":%s}`,
		m.prev, m.Rev, m.TS, m.Epoch, m.UserConns, m.Type, m.ConnID, literal(m.UserID), literal(m.RoomID), reason, m.State)
}

// What the scripts write is read, and is what payloadOf writes: the tests with payloadOf speak of real messages.
func TestMessagesOfTheScriptsAreRead(t *testing.T) {
	t.Parallel()
	texts := []string{"plain", `q"u\o\"te`, `{}[],:"`, `","state":{}}`, "ünï 漢字 😀", `\u0041`, "ends with \\"}
	states := []string{"{}", `{"a":[],"b":{}}`, `{"n":1234567890123456789}`, `{"x":"}"}`, `{"s":"\\\"\u0000\ud800","state":{"state":null}}`}
	eachWire(t, func(t *testing.T, w wire) {
		s := startService(t, w.rdb, Options{Sharded: w.sharded})
		b, sink := w.bridge(t)
		for i, text := range texts {
			room := uniqueRoom(t) + text
			subscribeAll(t, b, sink, []string{room})
			m := mustJoin(t, s, room, text, "conn_-1", states[i%len(states)])
			if _, _, err := s.heartbeat(t.Context(), &m, raw(`{"more":1}`), 0); err != nil {
				t.Fatal(err)
			}
			mustLeave(t, s, room, "conn_-1")
			eventually(t, 5*time.Second, "three messages", func() bool { return len(sink.heard(room)) == 3 })
			for j, payload := range sink.heard(room) {
				parsed, ok := parseMessage(payload)
				if !ok || payloadOf(parsed) != payload {
					t.Errorf("read as %+v: %s", parsed, payload)
				}
				state := []string{string(raw(states[i%len(states)])), string(m.State), "null"}[j]
				if parsed.RoomID != room || parsed.UserID != text || parsed.ConnID != "conn_-1" || string(parsed.State) != state {
					t.Errorf("room %q user %q conn %q state %s", parsed.RoomID, parsed.UserID, parsed.ConnID, parsed.State)
				}
			}
		}
	})
}

func TestParseMessage(t *testing.T) {
	good := payloadOf(gone(10, 11, "a"))
	cases := map[string]struct {
		payload string
		ok      bool
	}{
		"as written":            {good, true},
		"the state is opaque":   {strings.Replace(good, "null", `{"a":"}}"}`, 1), true},
		"without a reason":      {strings.Replace(good, `,"reason":"left"`, "", 1), true},
		"the first of a room":   {strings.Replace(good, `"prev":10`, `"prev":0`, 1), true},
		"empty":                 {"", false},
		"cut off":               {good[:len(good)-1], false},
		"with more behind":      {good + " ", false},
		"with space":            {strings.Replace(good, ":", ": ", 1), false},
		"another order":         {`{"rev":11,"prev":10}`, false},
		"no number":             {strings.Replace(good, `"rev":11`, `"rev":x`, 1), false},
		"a negative number":     {strings.Replace(good, `"rev":11`, `"rev":-11`, 1), false},
		"beyond 64 bits":        {strings.Replace(good, `"rev":11`, `"rev":99999999999999999999`, 1), false},
		"an unknown type":       {strings.Replace(good, `"leave"`, `"jump"`, 1), false},
		"going back":            {strings.Replace(good, `"prev":10`, `"prev":12`, 1), false},
		"going nowhere":         {strings.Replace(good, `"prev":10`, `"prev":11`, 1), false},
		"a literal without end": {strings.Replace(good, `"A"`, `"A`, 1), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m, ok := parseMessage(c.payload)
			if ok != c.ok {
				t.Fatalf("read %v: %s", ok, c.payload)
			}
			if ok && payloadOf(m) != c.payload {
				t.Errorf("read as %s, was %s", payloadOf(m), c.payload)
			}
		})
	}
}

// FuzzParseMessage reads arbitrary bytes; what it takes for a message survives being written and read again.
func FuzzParseMessage(f *testing.F) {
	f.Add(payloadOf(joined(1, 2, "a")))
	f.Add(payloadOf(gone(10, 11, "a")))
	f.Add(`{"prev":0,"rev":1,"ts":2,"epoch":3,"userConns":4,"type":"update","connId":"c","userId":"\"\\","roomId":"\\","state":{"a":"}"}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		m, ok := parseMessage(payload)
		if !ok || !utf8.ValidString(payload) || strings.ContainsFunc(payload, unicode.IsControl) {
			return
		}
		again, ok := parseMessage(payloadOf(m))
		if !ok || !reflect.DeepEqual(again, m) {
			t.Errorf("%q is read as %+v, and then as %+v", payload, m, again)
		}
	})
}

// FuzzMessageRoundTrip writes a message of any ids and state, and reads it.
func FuzzMessageRoundTrip(f *testing.F) {
	f.Add(int64(1), int64(2), "ann", "room", `{"a":1}`)
	f.Add(int64(1), int64(2), `a"n\n`, `","reason":"left","state":`, `{"}":"{"}`)
	f.Fuzz(func(t *testing.T, prev, rev int64, user, room, state string) {
		if checkID("userId", user, 1000) != nil || checkID("roomId", room, 1000) != nil || prev < 0 || rev <= prev || state == "" {
			return // no state is empty: it is JSON
		}
		want := message{prev, Event{Type: EventUpdate, RoomID: room, UserID: user, ConnID: "c", State: raw(state), TS: rev, Epoch: rev, Rev: rev, UserConns: 3}}
		if got, ok := parseMessage(payloadOf(want)); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("written %+v, read %+v", want, got)
		}
	})
}
