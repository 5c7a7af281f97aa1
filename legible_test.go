package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
)

// nestedState has so many levels, itself included. The even ones are arrays.
func nestedState(levels int) string {
	if levels == 1 {
		return "{}"
	}
	pairs := (levels - 2) / 2
	inside := "[]"
	if levels%2 == 1 {
		inside = "[{}]"
	}
	return `{"a":` + strings.Repeat(`[{"b":`, pairs) + inside + strings.Repeat(`}]`, pairs) + `}`
}

func digits(n int) string { return strings.Repeat("7", n) }

// TestStatesThatSomeCannotReadAreRefused: a parser that recurses fails on depth, one that makes integers on their digits.
func TestStatesThatSomeCannotReadAreRefused(t *testing.T) {
	wide := strings.TrimSuffix(wideObject(200, "[[[]]]"), "}")
	for _, tc := range []struct {
		state, fault string // no fault = it is taken
		depth        int
	}{
		{nestedState(1), "", 1}, {nestedState(2), "1 levels", 1}, {nestedState(64), "", 64}, {nestedState(65), "64 levels", 64}, {nestedState(1100), "64 levels", 64},
		{nestedState(1100), "", 10_000}, {`{"a":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, "64 levels", 64},
		{wide + "}", "", 4}, {wide + `,"z":[[[[]]]]}`, "4 levels", 4}, {`{"a":"` + strings.Repeat(`[{\"`, 200) + `"}`, "", 1}, {`{"` + strings.Repeat(`[{\\`, 200) + `":1}`, "", 1},
		{`{"n":` + digits(400) + `}`, "", 64}, {`{"n":` + digits(401) + `}`, "400 characters", 64}, {`{"n":-` + digits(399) + `}`, "", 64}, {`{"n":-` + digits(400) + `}`, "400 characters", 64},
		{`{"n":0.` + digits(398) + `}`, "", 64}, {`{"n":0.` + digits(399) + `}`, "400 characters", 64}, {`{"n":1E+` + digits(397) + `}`, "", 64}, {`{"n":1e` + digits(399) + `}`, "400 characters", 64},
		{`{"n":[{"m":[1,` + digits(4301) + `]}]}`, "400 characters", 64}, {`{"n":[` + digits(400) + `,` + digits(400) + `]}`, "", 64},
		{`{"n":"` + digits(4301) + `","` + digits(4301) + `":1}`, "", 64},
	} {
		lim := Limits{StateBytes: 1 << 20, StateDepth: tc.depth}
		_, err := lim.checkState("patchState", []byte(tc.state))
		switch {
		case tc.fault == "" && err != nil:
			t.Errorf("%.60s: %v", tc.state, err)
		case tc.fault != "" && (err == nil || err.Code != CodeInvalidPayload || !strings.HasPrefix(err.Message, "patchState may ") || !strings.Contains(err.Message, tc.fault)):
			t.Errorf("%.60s: %v, want %q", tc.state, err, tc.fault)
		}
	}
}

func FuzzUnreadable(f *testing.F) {
	for _, text := range jsonSeeds {
		f.Add([]byte(`{"k":` + text + "}"))
	}
	f.Add([]byte(nestedState(65)))
	f.Add([]byte(`{"n":` + digits(401) + `}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		compact, ok := compactObject(b)
		lim := Limits{StateDepth: 3}
		_ = lim.unreadable(b) // must not panic, whatever the text
		if !ok {
			return
		}
		deepest, longest := 0, 0
		for s := (scanner{text: compact}); s.next(); {
			deepest = max(deepest, s.depth)
			if c := s.token()[0]; c == '-' || '0' <= c && c <= '9' {
				longest = max(longest, len(s.token()))
			}
		}
		if fault := lim.unreadable(compact); (fault != "") != (deepest > 3 || longest > maxNumberChars) {
			t.Errorf("%q: %q, %d levels, %d characters", compact, fault, deepest, longest)
		}
	})
}

func TestAStateThatIsRefusedChangesNothing(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_STATE_DEPTH=3")
	u := dialUser(t, "127.0.0.1:"+n.port())
	u.refused(eventJoin, `{"roomId":"home","userId":"ann","state":`+nestedState(4)+`}`, CodeInvalidPayload)
	u.join("home", "ann", nestedState(3))
	for _, patch := range []string{nestedState(4), `{"n":` + digits(401) + `}`} {
		if ack := u.refused(eventHeartbeat, `{"patchState":`+patch+`}`, CodeInvalidPayload); !strings.Contains(ack.text, "patchState") {
			t.Errorf("answered with %s", ack.text)
		}
	}
	if entry := entryOf(t, u.ok(eventGet, `{"roomId":"home"}`), u.id); string(entry.State) != nestedState(3) {
		t.Errorf("its state is %s", entry.State)
	}
}

// TestWhatRedisHoldsIsToldLegibly has one node that takes what the other one must not tell.
func TestWhatRedisHoldsIsToldLegibly(t *testing.T) {
	b := miniRedis(t)
	deep, long := nestedState(65), `{"n":`+digits(401)+`}`
	writer := startNodeFor(t, b, "PRESENCE_MAX_STATE_DEPTH=100")
	reader := startNodeFor(t, b, "PRESENCE_API_KEY=k")
	author := dialUser(t, "127.0.0.1:"+writer.port())
	author.join("home", "ann", deep)

	u := dialUser(t, "127.0.0.1:"+reader.port())
	if entry := entryOf(t, u.join("home", "bob", "{}"), author.id); string(entry.State) != "{}" {
		t.Errorf("the snapshot has %.100s", entry.State)
	}
	author.ok(eventHeartbeat, `{"patchState":{"b":1}}`)
	if e := u.sees(EventUpdate, author.id); string(e.State) != "{}" {
		t.Errorf("the event has %.100s", e.State)
	}
	if entry := entryOf(t, u.ok(eventGet, `{"roomId":"home"}`), author.id); string(entry.State) != "{}" {
		t.Errorf("the page has %.100s", entry.State)
	}
	for _, path := range []string{"/v1/rooms/home", "/v1/users/ann"} {
		request, _ := http.NewRequest(http.MethodGet, "http://127.0.0.1:"+reader.port()+path, nil)
		request.Header.Set("Authorization", "Bearer k")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var body json.RawMessage
		if err := json.NewDecoder(answer.Body).Decode(&body); err != nil || !strings.Contains(string(body), author.id) || strings.Contains(string(body), "[[[") || strings.Contains(string(body), `"a":`) {
			t.Errorf("%s: %.300s, %v", path, body, err)
		}
		_ = answer.Body.Close()
	}
	if got := reader.service.legible("c", json.RawMessage(long)); string(got) != "{}" {
		t.Errorf("a long number is told: %.100s", got)
	}
}

// TestAStateMayNotBecomeIllegible: a patch is merged into what is stored, which may be worse than what this process takes.
func TestAStateMayNotBecomeIllegible(t *testing.T) {
	rdb := miniRedis(t).open(t)
	lax := NewService(rdb, Options{Limits: Limits{StateDepth: 100}, ReaperInterval: -1})
	strict := NewService(rdb, Options{ReaperInterval: -1})
	t.Cleanup(lax.Stop)
	t.Cleanup(strict.Stop)
	joined, err := lax.Join(t.Context(), "home", "ann", "c", json.RawMessage(nestedState(65)))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = strict.Heartbeat(t.Context(), "home", "c", json.RawMessage(`{"b":1}`), joined.Epoch)
	var refused *Error
	if !errors.As(err, &refused) || refused.Code != CodeInvalidPayload || !strings.Contains(refused.Message, "after patchState") {
		t.Errorf("a patch beside the deep value: %v", err)
	}
	if changed, _, err := strict.Heartbeat(t.Context(), "home", "c", json.RawMessage(`{"a":1}`), joined.Epoch); err != nil || !changed {
		t.Errorf("a patch in its place: %v, %v", changed, err)
	}
}
