package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/redis/go-redis/v9"
)

// startNodeFor starts a node on a free port, with a variable of the environment for each setting that matters to the
// test. It stops with the test.
func startNodeFor(t testing.TB, b backend, settings ...string) *node {
	t.Helper()
	n, err := startNode(testConfig(t, b.testURL(), settings...), testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	return n
}

// startNodeOn starts a node on a client of Redis that the test controls.
func startNodeOn(t testing.TB, rdb redis.UniversalClient, settings ...string) *node {
	t.Helper()
	config := testConfig(t, "", settings...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{log: testLogger(t), serving: make(chan struct{}), listener: listener, redis: rdb, scripts: rdb}
	n.wire(config)
	go n.serve()
	t.Cleanup(n.stop)
	return n
}

func testConfig(t testing.TB, redisURL string, settings ...string) Config {
	t.Helper()
	environ := append([]string{"PORT=0", "REDIS_URL=" + redisURL, "PRESENCE_RATE_PER_SECOND=0", "PRESENCE_DRAIN_MS=0"}, settings...)
	config, warnings, errs := loadConfig(environ)
	if len(warnings) > 0 || len(errs) > 0 {
		t.Fatal(warnings, errs)
	}
	return config
}

func (n *node) port() string {
	_, port, _ := net.SplitHostPort(n.listener.Addr().String())
	return port
}

// user is a Socket.IO client that sends what it is told, byte for byte.
type user struct {
	*wsClient
	id     string
	calls  int
	events []wireEvent // that came in so far
	others []wireBatch // batches and counts that came in so far
}

// wireEvent is a presence:event as the protocol describes it.
type wireEvent struct {
	Type, RoomID, UserID, ConnID, Reason string
	State                                json.RawMessage
	TS, Epoch, Rev                       int64
	UserConns                            int
}

// wireEntry is a member in a snapshot as the protocol describes it.
type wireEntry struct {
	ConnID, UserID    string
	State             json.RawMessage
	LastSeenMs, Epoch int64
}

// wireAck is any acknowledgement of the protocol.
type wireAck struct {
	OK, Retryable bool
	Error, Code   string
	Changed       *bool
	Epoch         *int64
	Self          struct {
		ConnID string
		Epoch  int64
	}
	Snapshot     []wireEntry
	Rev, TTLMs   int64
	Count, Users int
	Cursor       *string
	text         string
}

func (n *node) user(t testing.TB) *user {
	t.Helper()
	return dialUser(t, "127.0.0.1:"+n.port())
}

func dialUser(t testing.TB, addr string) *user {
	t.Helper()
	u := &user{wsClient: (&testSockets{addr: addr}).dial(t, direct4)}
	u.wantPrefix(`0{"sid":`)
	u.send("40")
	var connected struct{ SID string }
	if err := json.Unmarshal([]byte(u.wantPrefix("40")[2:]), &connected); err != nil || connected.SID == "" {
		t.Fatalf("no id: %v", err)
	}
	u.id = connected.SID
	return u
}

// member is a user in a room.
func (n *node) member(t testing.TB, room, name, state string) *user {
	t.Helper()
	u := n.user(t)
	u.join(room, name, state)
	return u
}

// tell sends an event for which no acknowledgement is wanted. payload is JSON, or a list of it.
func (u *user) tell(event, payload string) {
	u.t.Helper()
	u.send(`42["` + event + `"` + strings.TrimSuffix(","+payload, ",") + `]`)
}

// ask sends an event and returns the id of the acknowledgement that is wanted.
func (u *user) ask(event, payload string) (id string) {
	u.t.Helper()
	u.calls++
	id = strconv.Itoa(u.calls)
	u.send(`42` + id + `["` + event + `"` + strings.TrimSuffix(","+payload, ",") + `]`)
	return id
}

// call sends an event and waits for its acknowledgement. What comes before it is kept in events.
func (u *user) call(event, payload string) wireAck {
	u.t.Helper()
	return u.answer(u.ask(event, payload))
}

func (u *user) answer(id string) wireAck {
	u.t.Helper()
	prefix := "43" + id + "["
	for {
		packet := u.text()
		if text, ok := strings.CutPrefix(packet, prefix); ok {
			text = strings.TrimSuffix(text, "]")
			ack := wireAck{text: text}
			if err := json.Unmarshal([]byte(text), &ack); err != nil {
				u.t.Fatalf("an acknowledgement that nobody can read: %v: %s", err, text)
			}
			return ack
		}
		u.keep(packet)
	}
}

func (u *user) keep(packet string) {
	u.t.Helper()
	if u.keepCollected(packet) {
		return
	}
	text, ok := strings.CutPrefix(packet, `42["presence:event",`)
	if !ok {
		u.t.Fatalf("unexpected packet %q", packet)
	}
	var e wireEvent
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "]")), &e); err != nil {
		u.t.Fatalf("an event that nobody can read: %v: %s", err, text)
	}
	u.events = append(u.events, e)
}

// ok is call for a request that has to work.
func (u *user) ok(event, payload string) wireAck {
	u.t.Helper()
	ack := u.call(event, payload)
	if !ack.OK {
		u.t.Fatalf("%s %s is answered with %s", event, short80(payload), ack.text)
	}
	return ack
}

// refused is call for a request that must not work.
func (u *user) refused(event, payload string, code Code) wireAck {
	u.t.Helper()
	ack := u.call(event, payload)
	if ack.OK || ack.Code != string(code) || ack.Error == "" {
		u.t.Fatalf("%s %s is answered with %s, want %s", event, short80(payload), short80(ack.text), code)
	}
	return ack
}

func short80(text string) string {
	if len(text) > 80 {
		return fmt.Sprintf("%s… (%d bytes)", text[:80], len(text))
	}
	return text
}

func joinPayloadOf(room, name, state string) string {
	return fmt.Sprintf(`{"roomId":%s,"userId":%s,"state":%s}`, quoted(room), quoted(name), state)
}

func inRoom(room, more string) string {
	return fmt.Sprintf(`{"roomId":%s%s}`, quoted(room), more)
}

func quoted(text string) string {
	literal, _ := json.Marshal(text) // cannot fail
	return string(literal)
}

func (u *user) join(room, name, state string) wireAck {
	u.t.Helper()
	return u.ok(eventJoin, joinPayloadOf(room, name, state))
}

// until reads events up to the first that satisfies cond, and returns it.
func (u *user) until(what string, cond func(wireEvent) bool) wireEvent {
	u.t.Helper()
	for read := 0; ; {
		for ; read < len(u.events); read++ {
			if cond(u.events[read]) {
				return u.events[read]
			}
		}
		op, packet, err := u.next()
		if err != nil {
			u.t.Fatalf("no event %s: %v; got %+v", what, err, u.events)
		}
		if op == ws.OpText && packet != "2" {
			u.keep(packet)
		}
	}
}

// sees waits for an event of a connection.
func (u *user) sees(kind EventType, conn string) wireEvent {
	u.t.Helper()
	return u.until(fmt.Sprintf("%s of %s", kind, conn), func(e wireEvent) bool { return e.Type == string(kind) && e.ConnID == conn })
}

// of are the events of a connection so far, in the form "join ann 1 {…}", "leave ann 0 left null".
func (u *user) of(conn string) []string {
	var list []string
	for _, e := range u.events {
		if e.ConnID == conn {
			text := fmt.Sprintf("%s %s %d %s %s", e.Type, e.UserID, e.UserConns, e.Reason, e.State)
			list = append(list, strings.Join(strings.Fields(text), " "))
		}
	}
	return list
}

func (u *user) wantEvents(conn string, want ...string) {
	u.t.Helper()
	if got := u.of(conn); !slices.Equal(got, want) {
		u.t.Fatalf("events of %s are\n%q, want\n%q", conn, got, want)
	}
}

// settled has a witness in the room change its state, and waits until u has that event: whatever happened before
// in the room has reached u by then.
func (u *user) settled(witness *user, room string) {
	u.t.Helper()
	mark := strconv.Itoa(witness.calls)
	witness.ok(eventHeartbeat, inRoom(room, `,"patchState":{"mark":`+mark+`}`))
	u.until("mark "+mark, func(e wireEvent) bool {
		return e.ConnID == witness.id && bytes.Contains(e.State, []byte(`"mark":`+mark+`}`))
	})
}

func entryOf(t testing.TB, ack wireAck, conn string) wireEntry {
	t.Helper()
	for _, e := range ack.Snapshot {
		if e.ConnID == conn {
			return e
		}
	}
	t.Fatalf("%s is not in %s", conn, short80(ack.text))
	return wireEntry{}
}

// badField is a value that a field must not have.
type badField struct {
	value string // JSON; "" = the field is missing
	code  Code
}

func invalids(values ...string) (list []badField) {
	for _, v := range values {
		list = append(list, badField{v, CodeInvalidPayload})
	}
	return list
}

// badOptionalIDs are wrong wherever an id may stand; badIDs where one has to.
func badOptionalIDs() []badField {
	return invalids(`7`, `0`, `true`, `[]`, `["a"]`, `{}`, `{"a":1}`, `""`, quoted(strings.Repeat("x", 201)), quoted(strings.Repeat("é", 101)),
		`"a\u0000b"`, `"\n"`, `"a\u007f"`, `"\u009f"`, `"\ud800"`, `"\udc00 a"`)
}

func badIDs() []badField { return append(badOptionalIDs(), invalids("", "null")...) }

func badStates() []badField {
	tooLarge := []badField{
		{`{"text":"` + strings.Repeat("x", 17<<10) + `"}`, CodeStateTooLarge},
		{`{"deep":` + nested(9_000) + `}`, CodeStateTooLarge},
	}
	return append(invalids(`"text"`, `""`, `7`, `true`, `false`, `[]`, `[{}]`), tooLarge...)
}

// plus is a JSON object with one more field.
func plus(object, field, value string) string {
	text := "{" + quoted(field) + ":" + value
	if object != "{}" {
		text += ","
	}
	return text + object[1:]
}

func nested(levels int) string {
	return strings.Repeat("[", levels) + strings.Repeat("]", levels)
}

// badFields lists every field of every event. The first name in each payload is what the others are tried with.
func badFields() []struct {
	event, field, valid string
	bad                 []badField
} {
	return []struct {
		event, field, valid string
		bad                 []badField
	}{
		{eventJoin, "roomId", `{"userId":"ann","state":{"a":1}}`, badIDs()},
		{eventJoin, "userId", `{"roomId":"home","state":{"a":1}}`, badIDs()},
		{eventJoin, "userId", `{"roomId":"another","state":{"a":1}}`, badIDs()},
		{eventJoin, "state", `{"roomId":"home","userId":"ann"}`, badStates()},
		{eventJoin, "state", `{"roomId":"another","userId":"ann"}`, badStates()},
		{eventHeartbeat, "roomId", `{"patchState":{"a":2}}`, badOptionalIDs()},
		{eventHeartbeat, "patchState", `{"roomId":"home"}`, badStates()},
		{eventHeartbeat, "patchState", `{}`, badStates()},
		{eventHeartbeat, "epoch", `{"patchState":{"a":2}}`, invalids(`-1`, `1.5`, `"1.5"`, `""`, `"soon"`, `"-1"`, `" 1"`, `true`, `[]`, `{}`)},
		{eventLeave, "roomId", `{}`, badOptionalIDs()},
		{eventGet, "roomId", `{}`, badIDs()},
		{eventGet, "limit", `{"roomId":"home"}`, invalids(`0`, `-1`, `1.5`, `"1"`, `"many"`, `true`, `[]`, `{}`)},
		{eventGet, "cursor", `{"roomId":"home"}`, invalids(`7`, `true`, `[]`, `{}`, `"!"`, `"YSBi"`, `"\ud800"`, quoted(strings.Repeat("A", 9_000)))},
	}
}

func TestBadFieldsAreRefusedAndNothingIsWritten_G9(t *testing.T) {
	b := miniRedis(t)
	n := startNodeFor(t, b)
	witness, u := n.member(t, "home", "witness", "{}"), n.member(t, "home", "ann", `{"a":1}`)
	for _, f := range badFields() {
		for _, bad := range f.bad {
			payload := f.valid
			if bad.value != "" {
				payload = plus(f.valid, f.field, bad.value)
			}
			t.Run(f.event+" "+f.field+" "+short80(bad.value), func(t *testing.T) {
				before := b.mini.Dump()
				if ack := u.refused(f.event, payload, bad.code); !strings.Contains(ack.Error, f.field) {
					t.Errorf("the error does not name %s: %s", f.field, ack.Error)
				}
				if after := b.mini.Dump(); after != before {
					t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
				}
				if ack := u.ok(eventHeartbeat, `{}`); *ack.Changed {
					t.Error("the state has changed")
				}
			})
		}
	}
	witness.settled(u, "home")
	witness.wantEvents(u.id, "join ann 1 {\"a\":1}", witness.of(u.id)[1])
}

func TestPayloadsThatAreNoObject_G9(t *testing.T) {
	b := miniRedis(t)
	u := startNodeFor(t, b).member(t, "home", "ann", "{}")
	for _, event := range []string{eventJoin, eventHeartbeat, eventLeave, eventGet} {
		for _, payload := range []string{`"text"`, `7`, `true`, `false`, `[]`, `[{"roomId":"home","userId":"ann"}]`, nested(30_000)} {
			before := b.mini.Dump()
			if ack := u.refused(event, payload, CodeInvalidPayload); !strings.Contains(ack.Error, "object") {
				t.Errorf("%s %s: %s", event, short80(payload), ack.Error)
			}
			if b.mini.Dump() != before {
				t.Errorf("%s %s: something was written", event, short80(payload))
			}
			u.ok(eventHeartbeat, "")
		}
	}
}

// TestDeepJSON_G9 sends nesting that a recursive decoder would die of, in a payload's state and where nobody looks.
func TestDeepJSON_G9(t *testing.T) {
	t.Parallel()
	n := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_MESSAGE_BYTES=4000000", "PRESENCE_MAX_STATE_BYTES=3000000")
	witness, u := n.member(t, "home", "witness", "{}"), n.member(t, "home", "ann", "{}")
	for _, levels := range []int{10_001, 1_000_000} {
		deep := nested(levels)
		if ack := u.refused(eventJoin, joinPayloadOf("home", "ann", `{"deep":`+deep+`}`), CodeInvalidPayload); !strings.Contains(ack.Error, "state") {
			t.Error(ack.Error)
		}
		u.refused(eventHeartbeat, `{"patchState":{"deep":`+deep+`}}`, CodeInvalidPayload)
		u.refused(eventHeartbeat, deep, CodeInvalidPayload)
		u.ok(eventHeartbeat, `{"unknown":`+deep+`}`)
		u.ok(eventHeartbeat, `{},`+deep)
	}
	deepest := `{"deep":` + nested(63) + `}`
	u.ok(eventHeartbeat, `{"patchState":`+deepest+`}`)
	if e := witness.sees(EventUpdate, u.id); string(e.State) != deepest {
		t.Errorf("a deep state comes as %s", short80(string(e.State)))
	}
}

// TestPayloadForms checks that a payload may be omitted, null, or followed by anything, and an acknowledgement unwanted.
func TestPayloadForms(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	const room = "home"
	valid := map[string]string{
		eventJoin:      joinPayloadOf(room, "ann", `{"a":1}`),
		eventHeartbeat: `{}`,
		eventLeave:     inRoom(room, ""),
		eventGet:       inRoom(room, ""),
	}
	needsFields := map[string]bool{eventJoin: true, eventGet: true}
	for _, event := range []string{eventGet, eventJoin, eventHeartbeat, eventLeave} {
		u := n.member(t, room, "ann", `{}`)
		for _, absent := range []string{"", "null", "null,7", "{}", `{"unknown":1,"state ":2}`} {
			if needsFields[event] {
				u.refused(event, absent, CodeInvalidPayload)
			} else {
				u.ok(event, absent)
				u.join(room, "ann", "{}")
			}
		}
		for _, junk := range []string{``, `,null`, `,"text",7`, `,{},[]`} {
			u.ok(event, valid[event]+junk)
			u.join(room, "ann", "{}")
		}
	}
	u, witness := n.member(t, room, "ann", "{}"), n.member(t, room, "witness", "{}")
	for _, payload := range []string{"", "null", "7", `{"roomId":7}`} {
		for _, event := range []string{eventJoin, eventHeartbeat, eventLeave, eventGet} {
			u.tell(event, payload)
		}
		u.tell(eventJoin, valid[eventJoin])
		u.tell(eventHeartbeat, `{"patchState":{"b":2}}`)
	}
	u.tell("another:event", `{}`)
	u.ok(eventHeartbeat, `{}`) // the first acknowledgement that comes
	witness.until("the patch", func(e wireEvent) bool { return string(e.State) == `{"a":1,"b":2}` })
}

func TestNullIsAnAbsentField(t *testing.T) {
	u := startNodeFor(t, miniRedis(t)).user(t)
	ack := u.join("home", "ann", `null`)
	if e := entryOf(t, ack, u.id); string(e.State) != "{}" {
		t.Errorf("no state is %s", e.State)
	}
	u.ok(eventHeartbeat, `{"roomId":null,"patchState":null,"epoch":null}`)
	u.ok(eventGet, `{"roomId":"home","limit":null,"cursor":null}`)
	u.ok(eventLeave, `{"roomId":null}`)
	u.refused(eventHeartbeat, "", CodeNotJoined)
}

// states that have to come back as they are.
func preciousStates() []string {
	return []string{
		`{}`,
		`{"list":[],"object":{},"nested":{"a":[{"b":[[],{}]},null]},"nothing":null,"yes":true,"no":false}`,
		`{"n":[1234567890123456789,-9007199254740993,0.1234567890123456789012345,1e21,1E-7,-0]}`,
		`{"__proto__":{"admin":true},"constructor":1,"":"empty key","toString":null}`,
		`{"lone":"\ud800 and \udc00","quoted":"\"\\\/\b\f\n\r\t","zero":"\u0000","html":"<b>&amp;</b>"}`,
		`{"ключ 🐎":"žluťoučký 👩‍👩‍👧 שלום","separators":"` + "\u2028\u2029" + `"}`,
		`{"deep":` + nested(63) + `}`,
	}
}

func TestStatesComeBackOnEveryWayOfTheWire(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		near, far := startNodeFor(t, b), startNodeFor(t, b)
		for i, state := range preciousStates() {
			room := uniqueRoom(t)
			witness, u := far.member(t, room, "witness", "{}"), near.user(t)
			same := func(way string, got json.RawMessage) {
				t.Helper()
				if string(got) != state {
					t.Errorf("state %d comes by %s as %s", i, way, short80(string(got)))
				}
			}
			same("the acknowledgement of its join", entryOf(t, u.join(room, "ann", state), u.id).State)
			same("a join event", witness.sees(EventJoin, u.id).State)
			same("presence:get", entryOf(t, witness.ok(eventGet, inRoom(room, "")), u.id).State)
			same("a later join", entryOf(t, far.user(t).join(room, "cat", "{}"), u.id).State)
			u.join(room, "ann", "{}")
			u.ok(eventHeartbeat, `{"patchState":`+state+`}`)
			if state == "{}" {
				continue
			}
			same("an update event", witness.sees(EventUpdate, u.id).State)
			if ack := u.ok(eventHeartbeat, `{"patchState":`+state+`}`); *ack.Changed {
				t.Errorf("state %d differs from itself", i)
			}
		}
	})
}

func TestJoinIsAnswered(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b, "PRESENCE_TTL_MS=20000"), uniqueRoom(t)
		u := n.user(t)
		ack := u.join(room, "ann", `{"mic":true}`)
		e := entryOf(t, ack, u.id) // rule 7
		if ack.Self.ConnID != u.id || ack.Self.Epoch <= 0 || e.Epoch != ack.Self.Epoch || e.UserID != "ann" || string(e.State) != `{"mic":true}` {
			t.Errorf("answered with %s", ack.text)
		}
		if ack.Rev < ack.Self.Epoch || ack.TTLMs != 20000 || time.Since(time.UnixMilli(e.LastSeenMs)).Abs() > time.Minute {
			t.Errorf("answered with %s", ack.text)
		}
	})
}

func TestAPatchIsMergedAtTheTopLevel(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), startNodeFor(t, b).member(t, room, "ann", `{"a":{"x":1},"b":[1],"c":2}`)
		changes := []struct {
			patch   string
			changed bool
		}{
			{`{"a":{"y":2},"b":null}`, true},
			{`{"b":null}`, false},
			{`{}`, false},
			{`{"c":2,"a":{"y":2}}`, false},
			{`{ "a" : {"\u0079":2} }`, false},
			{`{"c":2.0}`, true},
			{`{"c":"2"}`, true},
			{`{"d":[]}`, true},
			{`{"d":{}}`, true},
		}
		updates := 0
		for _, c := range changes {
			if ack := u.ok(eventHeartbeat, `{"patchState":`+c.patch+`}`); *ack.Changed != c.changed {
				t.Errorf("patch %s: changed is %v", c.patch, *ack.Changed)
			} else if c.changed {
				updates++
			}
		}
		witness.settled(u, room) // one more
		if got := witness.of(u.id); len(got) != updates+2 || got[1] != `update ann 1 {"a":{"y":2},"b":null,"c":2}` {
			t.Errorf("the others got %q", got)
		}
	})
}

func TestPatchesAtTheSameTimeLoseNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		u := startNodeFor(t, b).member(t, room, "ann", `{}`)
		const patches = 50
		var asked []string
		for i := range patches {
			asked = append(asked, u.ask(eventHeartbeat, fmt.Sprintf(`{"patchState":{"k%d":%d,"same":%d}}`, i, i, i)))
		}
		for _, id := range asked {
			if ack := u.answer(id); !ack.OK || !*ack.Changed {
				t.Fatal(ack.text)
			}
		}
		var state map[string]int
		if err := json.Unmarshal(entryOf(t, u.ok(eventGet, inRoom(room, "")), u.id).State, &state); err != nil || len(state) != patches+1 || state["same"] != patches-1 {
			t.Errorf("the state is %v, %v", state, err)
		}
	})
}

func TestAPatchThatMakesTheStateTooLargeKeepsIt(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_STATE_BYTES=100")
	witness, u := n.member(t, "home", "witness", "{}"), n.member(t, "home", "ann", `{"a":"`+strings.Repeat("x", 60)+`"}`)
	tooLarge := `{"patchState":{"b":"` + strings.Repeat("y", 60) + `"}}`
	if ack := u.refused(eventHeartbeat, tooLarge, CodeStateTooLarge); !strings.Contains(ack.Error, "patchState") {
		t.Error(ack.Error)
	}
	u.ok(eventHeartbeat, `{"patchState":{"b":1}}`)
	witness.sees(EventUpdate, u.id)
	witness.wantEvents(u.id, `join ann 1 {"a":"`+strings.Repeat("x", 60)+`"}`, `update ann 1 {"a":"`+strings.Repeat("x", 60)+`","b":1}`)
}

func TestAJoinAgainIsANewIncarnation_G4(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), n.user(t)
		first := u.join(room, "ann", `{"a":1}`)
		again := u.join(room, "ann", `{"b":2}`)
		if again.Self.Epoch <= first.Self.Epoch || again.Self.ConnID != u.id || len(again.Snapshot) != 2 {
			t.Errorf("answered with %s after %s", again.text, first.text)
		}
		other := u.join(room, "bob", `{}`)
		ack := u.ok(eventHeartbeat, `{}`)
		if other.Self.Epoch <= again.Self.Epoch || *ack.Epoch != other.Self.Epoch {
			t.Errorf("epoch %d after %d, the heartbeat says %d", other.Self.Epoch, again.Self.Epoch, *ack.Epoch)
		}
		u.ok(eventLeave, "")
		witness.sees(EventLeave, u.id)
		last := u.join(room, "bob", `{}`)
		if last.Self.Epoch <= other.Self.Epoch {
			t.Errorf("epoch %d after %d", last.Self.Epoch, other.Self.Epoch)
		}
		witness.settled(u, room)
		witness.wantEvents(u.id, `join ann 1 {"a":1}`, `join ann 1 {"b":2}`, `leave ann 0 replaced null`, `join bob 1 {}`,
			`leave bob 0 left null`, `join bob 1 {}`, witness.of(u.id)[6])
		assertAgree(t, n.service, room)
	})
}

func TestAnotherEpochIsFenced_G4(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		u := n.user(t)
		old := u.join(room, "ann", `{"a":1}`).Self.Epoch
		now := u.join(room, "ann", `{"a":2}`).Self.Epoch
		before := dump(t, n.redis, scriptKeys(room, u.id)...)
		for _, epoch := range []string{fmt.Sprint(old), fmt.Sprint(now - 1), fmt.Sprint(now + 1), "0", "1", "9007199254740991", "1e+21",
			fmt.Sprintf(`"%d"`, old), fmt.Sprintf(`"%d"`, now+1), `"0"`, `"99999999999999999999999999"`} {
			for _, payload := range []string{`{"epoch":%s}`, `{"epoch":%s,"patchState":{"a":3}}`, `{"epoch":%s,"roomId":` + quoted(room) + `}`} {
				ack := u.refused(eventHeartbeat, fmt.Sprintf(payload, epoch), CodeStaleEpoch)
				if ack.Epoch == nil || *ack.Epoch != now {
					t.Errorf("epoch %s is answered with %s", epoch, ack.text)
				}
			}
		}
		assertSame(t, "after another epoch", before, dump(t, n.redis, scriptKeys(room, u.id)...))
		for _, epoch := range []string{fmt.Sprint(now), fmt.Sprintf(`"%d"`, now)} {
			u.ok(eventHeartbeat, `{"epoch":`+epoch+`}`)
		}
	})
}

// roomsOf are the keys of a miniredis without those that nodes write for themselves.
func roomsOf(b backend) string {
	keys := slices.DeleteFunc(b.mini.Keys(), func(key string) bool { return strings.HasPrefix(key, keyPrefix+"{nodes}:") })
	return strings.Join(keys, " ")
}

func TestAHeartbeatWithoutAJoin(t *testing.T) {
	b := miniRedis(t)
	n := startNodeFor(t, b)
	u := n.user(t)
	before := roomsOf(b)
	for _, payload := range []string{"", `{}`, `{"patchState":{"a":1}}`, `{"epoch":1}`, `{"roomId":"home"}`} {
		u.refused(eventHeartbeat, payload, CodeNotJoined)
	}
	if roomsOf(b) != before {
		t.Error("something was written")
	}
	u.join("home", "ann", "{}")
	u.refused(eventHeartbeat, `{"roomId":"another"}`, CodeNotJoined)
	u.ok(eventLeave, `{}`)
	u.refused(eventHeartbeat, "", CodeNotJoined)
}

func TestSeveralRooms(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n := startNodeFor(t, b)
		a, z := uniqueRoom(t), uniqueRoom(t)
		inA, inZ, u := n.member(t, a, "witness", "{}"), n.member(t, z, "witness", "{}"), n.user(t)
		u.join(a, "ann", `{"in":"a"}`)
		epoch := u.join(z, "ann", `{"in":"z"}`).Self.Epoch
		if ack := u.refused(eventHeartbeat, `{"patchState":{}}`, CodeInvalidPayload); !strings.Contains(ack.Error, "roomId") {
			t.Error(ack.Error)
		}
		if ack := u.ok(eventHeartbeat, ""); ack.Epoch != nil || *ack.Changed {
			t.Errorf("a heartbeat for two rooms is answered with %s", ack.text)
		}
		if ack := u.ok(eventHeartbeat, inRoom(z, `,"patchState":{"x":1},"epoch":`+fmt.Sprint(epoch))); *ack.Epoch != epoch || !*ack.Changed {
			t.Errorf("a heartbeat for one of two rooms is answered with %s", ack.text)
		}
		u.ok(eventLeave, inRoom(z+" other", "")) // rule 8
		u.ok(eventLeave, inRoom(a, ""))
		u.refused(eventHeartbeat, inRoom(a, ""), CodeNotJoined)
		if ack := u.ok(eventHeartbeat, ""); *ack.Epoch != epoch {
			t.Errorf("a heartbeat for the room that is left is answered with %s", ack.text)
		}
		u.join(a, "ann", `{}`)
		u.ok(eventLeave, "")
		u.ok(eventLeave, "") // rule 8
		inA.until("second leave", func(wireEvent) bool { return len(inA.of(u.id)) == 4 })
		inZ.sees(EventLeave, u.id)
		inA.wantEvents(u.id, `join ann 1 {"in":"a"}`, `leave ann 0 left null`, `join ann 1 {}`, `leave ann 0 left null`)
		inZ.wantEvents(u.id, `join ann 1 {"in":"z"}`, `update ann 1 {"in":"z","x":1}`, `leave ann 0 left null`)
		for _, e := range inA.events {
			if e.RoomID != a {
				t.Errorf("an event of another room: %+v", e)
			}
		}
	})
}

// TestAHeartbeatRefreshes looks at last_seen: without roomId in all rooms, with it in that one.
func TestAHeartbeatRefreshes(t *testing.T) {
	b := miniRedis(t)
	start := time.Now()
	b.mini.SetTime(start)
	n := startNodeFor(t, b)
	u := n.member(t, "a", "ann", "{}")
	u.join("z", "ann", "{}")
	for i, step := range []struct {
		payload string
		a, z    int // milliseconds after the start
	}{{`{}`, 100, 100}, {inRoom("z", ""), 100, 200}, {inRoom("a", `,"epoch":1`), 100, 200}, {``, 400, 400}} {
		b.mini.SetTime(start.Add(time.Duration(i+1) * 100 * time.Millisecond))
		u.call(eventHeartbeat, step.payload)
		for room, want := range map[string]int{"a": step.a, "z": step.z} {
			score, err := n.redis.ZScore(t.Context(), keysOf(room).lastSeen(), u.id).Result()
			if got := int64(score) - start.UnixMilli(); err != nil || got != int64(want) {
				t.Errorf("after %s, last seen in %s at %d, %v, want %d", step.payload, room, got, err, want)
			}
		}
	}
}

// The index of a user has a TTL of two lookbacks, so three of them pass here.
func TestHeartbeatsKeepTheUserIndex(t *testing.T) {
	t.Parallel()
	n := startNodeFor(t, realRedis(t), "PRESENCE_TTL_MS=200", "PRESENCE_REAPER_LOOKBACK_MS=400",
		"PRESENCE_REAPER_INTERVAL_MS=100", "PRESENCE_NODE_LEASE_MS=300")
	room, name := uniqueRoom(t), uniqueRoom(t)
	u := n.user(t)
	u.join(room, name, "{}")
	for began := time.Now(); time.Since(began) < 1200*time.Millisecond; {
		u.ok(eventHeartbeat, "{}")
		if held, err := n.redis.HExists(t.Context(), userKey(name), userField(room, u.id)).Result(); err != nil || !held {
			t.Fatalf("after %v the index has no entry: %v", time.Since(began), err)
		}
	}
}

func TestGet(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room := startNodeFor(t, b), startNodeFor(t, b), uniqueRoom(t)
		reader := n.user(t)
		if ack := reader.ok(eventGet, inRoom(room, "")); ack.Count != 0 || ack.Users != 0 || ack.Cursor != nil || !strings.Contains(ack.text, `"snapshot":[]`) {
			t.Errorf("an empty room is %s", ack.text)
		}
		n.member(t, room, "ann", `{"a":1}`)
		other.member(t, room, "ann", `{}`)
		last := n.user(t)
		joined := last.join(room, "bob", `{}`)
		ack := reader.ok(eventGet, inRoom(room, ""))
		if ack.Rev != joined.Rev || ack.Count != 3 || ack.Users != 2 || len(ack.Snapshot) != 3 || ack.Cursor != nil {
			t.Errorf("the room is %s after %s", ack.text, joined.text)
		}
		for _, e := range ack.Snapshot {
			if want := entryOf(t, joined, e.ConnID); want.Epoch != e.Epoch || want.UserID != e.UserID || !bytes.Equal(want.State, e.State) {
				t.Errorf("an entry is %+v, at the join %+v", e, want)
			}
		}
		last.ok(eventHeartbeat, `{"patchState":{"a":2}}`)
		if later := reader.ok(eventGet, inRoom(room, "")); later.Rev <= ack.Rev {
			t.Errorf("revision %d after %d", later.Rev, ack.Rev)
		}
		if len(reader.events) != 0 {
			t.Errorf("who only reads got %+v", reader.events)
		}
	})
}

func TestPages(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	reader := n.user(t)
	const members = 10
	ids := map[string]bool{}
	for range members {
		ids[n.member(t, "home", "ann", "{}").id] = true
	}
	for limit := range members + 2 {
		more, found := fmt.Sprintf(`,"limit":%d`, limit+1), map[string]bool{}
		for page := ""; ; {
			ack := reader.ok(eventGet, inRoom("home", more+page))
			if len(ack.Snapshot) > limit+1 || ack.Count != members || ack.Users != 1 {
				t.Fatalf("a page is %s", ack.text)
			}
			for _, e := range ack.Snapshot {
				if found[e.ConnID] || !ids[e.ConnID] {
					t.Fatalf("%s is twice there, or nobody", e.ConnID)
				}
				found[e.ConnID] = true
			}
			if ack.Cursor == nil {
				break
			}
			page = `,"cursor":` + quoted(*ack.Cursor)
		}
		if len(found) != members {
			t.Errorf("pages of %d have %d members", limit+1, len(found))
		}
	}
	for _, clamped := range []string{`1000`, `1001`, `99999999999999999999`} {
		if ack := reader.ok(eventGet, inRoom("home", `,"limit":`+clamped)); len(ack.Snapshot) != members || ack.Cursor != nil {
			t.Errorf("limit %s gives %s", clamped, ack.text)
		}
	}
}

// TestACursorOutlivesItsMember reads on after the last one of the page before has left.
func TestACursorOutlivesItsMember(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	reader := n.user(t)
	all := map[string]*user{}
	for range 4 {
		u := n.member(t, "home", "ann", "{}")
		all[u.id] = u
	}
	first := reader.ok(eventGet, inRoom("home", `,"limit":2`))
	all[first.Snapshot[1].ConnID].ok(eventLeave, "")
	rest := reader.ok(eventGet, inRoom("home", `,"cursor":`+quoted(*first.Cursor)))
	if len(rest.Snapshot) != 2 || rest.Cursor != nil || rest.Count != 3 {
		t.Errorf("the second page is %s", rest.text)
	}
}

func TestLimitsOfMembership(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n := startNodeFor(t, b, "PRESENCE_MAX_ROOMS_PER_SOCKET=2", "PRESENCE_MAX_ROOM_MEMBERS=2")
		rooms := []string{uniqueRoom(t), uniqueRoom(t), uniqueRoom(t)}
		u := n.member(t, rooms[0], "ann", "{}")
		u.join(rooms[1], "ann", "{}")
		u.refused(eventJoin, joinPayloadOf(rooms[2], "ann", "{}"), CodeTooManyRooms)
		u.join(rooms[0], "ann", `{"again":1}`)
		u.ok(eventLeave, inRoom(rooms[0], ""))
		u.join(rooms[2], "ann", "{}")

		n.member(t, rooms[2], "bob", "{}")
		third := n.user(t)
		third.refused(eventJoin, joinPayloadOf(rooms[2], "cat", "{}"), CodeRoomFull)
		third.refused(eventHeartbeat, inRoom(rooms[2], ""), CodeNotJoined)
		u.join(rooms[2], "ann", `{"again":1}`)
		if got := dump(t, n.redis, keysOf(rooms[2]).members()); !strings.Contains(fmt.Sprint(got), "map[ann:1 bob:1]") {
			t.Errorf("members of the full room: %v", got)
		}
		u.ok(eventLeave, inRoom(rooms[2], ""))
		third.join(rooms[2], "cat", "{}")
	})
}

func TestWhatIsNoSocketIOClosesThatConnectionOnly_G9(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	witness := n.member(t, "home", "witness", "{}")
	for _, packet := range []string{
		`4`, `42`, `42{}`, `42[]`, `42[null]`, `42["presence:heartbeat"`, `42["presence:heartbeat",]`, `42["presence:heartbeat",{]`,
		`42["disconnect"]`, `45`, `450-["presence:heartbeat"]`, `461-[]`, `47`, `40`, `4x`, `x`, `4` + strings.Repeat("[", 60_000),
		"42[\"presence:heartbeat\",\"\xff\"]", strings.Repeat("4", 70_000),
	} {
		u := n.member(t, "home", "ann", "{}")
		u.send(packet)
		u.closed()
		if e := witness.sees(EventLeave, u.id); e.Reason != string(ReasonDisconnected) {
			t.Errorf("%s: left with %q", short80(packet), e.Reason)
		}
		witness.ok(eventHeartbeat, "")
	}
}

func TestAfterTheAckOfItsLeaveASocketGetsNoMoreEvents(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		u, near, far := n.member(t, room, "ann", "{}"), n.member(t, room, "near", "{}"), startNodeFor(t, b).member(t, room, "far", "{}")
		for i := range 20 {
			far.tell(eventHeartbeat, fmt.Sprintf(`{"patchState":{"n":%d}}`, i))
		}
		u.ok(eventLeave, "")
		before := len(u.events)
		near.settled(far, room)                      // which are queued for all receivers of this node at once
		u.refused(eventHeartbeat, "", CodeNotJoined) // and written before this answer
		if late := u.events[before:]; len(late) != 0 {
			t.Errorf("after its leave it got %+v", late)
		}
		if e := near.sees(EventLeave, u.id); e.Reason != string(ReasonLeft) {
			t.Errorf("left with %q", e.Reason)
		}
	})
}

// TestTheAckOfAJoinPrecedesItsEvents_G2 joins a room in which something happens all the time.
func TestTheAckOfAJoinPrecedesItsEvents_G2(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		nodes := []*node{startNodeFor(t, b), startNodeFor(t, b)}
		busy := nodes[0].member(t, room, "busy", `{"n":-1}`)
		const changes, joins = 400, 20
		for i := range changes {
			busy.tell(eventHeartbeat, fmt.Sprintf(`{"patchState":{"n":%d}}`, i))
		}
		users, acks := make([]*user, joins), make([]wireAck, joins)
		for i := range joins {
			users[i] = nodes[i%2].user(t)
			if acks[i] = users[i].join(room, "ann", "{}"); len(users[i].events) != 0 {
				t.Fatalf("events before the acknowledgement: %+v", users[i].events)
			}
		}
		for i, u := range users {
			assertFollows(t, u, acks[i], busy.id, changes-1)
		}
	})
}

// assertFollows checks that the events of a connection that counts up to last go on where the snapshot of a join ends, each
// once, in order.
func assertFollows(t *testing.T, u *user, ack wireAck, conn string, last int) {
	t.Helper()
	at, rev := countOf(t, entryOf(t, ack, conn).State), ack.Rev
	if at < last {
		u.until("the last change", func(e wireEvent) bool { return e.ConnID == conn && countOf(t, e.State) == last })
	}
	for _, e := range u.events {
		if e.Rev <= rev && e.ConnID != u.id {
			t.Fatalf("revision %d after %d", e.Rev, rev)
		}
		rev = max(rev, e.Rev)
		if e.ConnID != conn {
			continue
		}
		if at++; countOf(t, e.State) != at {
			t.Fatalf("got %s, want %d", e.State, at)
		}
	}
	if at != last {
		t.Fatalf("the last change that came was %d, want %d", at, last)
	}
}

func countOf(t *testing.T, state json.RawMessage) int {
	t.Helper()
	var count struct{ N int }
	if err := json.Unmarshal(state, &count); err != nil {
		t.Fatal(err)
	}
	return count.N
}

func TestEveryKindOfEndIsOneLeave_G5(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		for _, end := range []struct {
			how string
			do  func(*user)
		}{
			{"connection closed", func(u *user) { _ = u.conn.Close() }},
			{"connection reset", func(u *user) { _ = u.conn.(*net.TCPConn).SetLinger(0); _ = u.conn.Close() }},
			{"WebSocket closed", func(u *user) { u.raw(masked(true, ws.OpClose, "\x03\xe8")) }},
			{"Engine.IO close", func(u *user) { u.send("1") }},
			{"Socket.IO DISCONNECT", func(u *user) { u.send("41") }},
		} {
			t.Run(end.how, func(t *testing.T) {
				n, far := startNodeFor(t, b), startNodeFor(t, b)
				rooms := []string{uniqueRoom(t), uniqueRoom(t)}
				u := n.member(t, rooms[0], "ann", "{}")
				u.join(rooms[1], "ann", "{}")
				witnesses := []*user{far.member(t, rooms[0], "witness", "{}"), n.member(t, rooms[1], "witness", "{}")}
				end.do(u)
				for i, w := range witnesses {
					w.sees(EventLeave, u.id)
					w.settled(w, rooms[i])
					w.wantEvents(u.id, "leave ann 0 disconnected null")
					assertAgree(t, n.service, rooms[i])
				}
			})
		}
	})
}

// TestOneThatWasRemovedHearsOfItAndIsPutBack_G8 has another process cull a connection whose client lives.
func TestOneThatWasRemovedHearsOfItAndIsPutBack_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		n, witness := startNodeFor(t, b), startNodeFor(t, b).member(t, room, "witness", "{}")
		u := n.user(t)
		epoch := u.join(room, "ann", `{"a":1}`).Self.Epoch
		other := startService(t, b.open(t), Options{})
		_, gone, err := other.remove(t.Context(), room, removal{reason: ReasonTimeout}, []incarnation{{u.id, epoch}})
		if err != nil || len(gone) != 1 {
			t.Fatal(gone, err)
		}
		if e := u.sees(EventLeave, u.id); e.Reason != string(ReasonTimeout) {
			t.Errorf("its own leave has reason %q", e.Reason)
		}
		if ack := u.ok(eventHeartbeat, fmt.Sprintf(`{"patchState":{"b":2},"epoch":%d}`, epoch)); *ack.Epoch != epoch || !*ack.Changed {
			t.Errorf("the next heartbeat is answered with %s", ack.text)
		}
		if e := witness.until("the join", func(e wireEvent) bool {
			return e.Type == "join" && e.ConnID == u.id && e.Epoch == epoch && len(witness.of(u.id)) > 2
		}); e.UserConns != 1 {
			t.Errorf("put back with %+v", e)
		}
		witness.settled(u, room)
		if e := entryOf(t, witness.ok(eventGet, inRoom(room, "")), u.id); e.Epoch != epoch || !strings.HasPrefix(string(e.State), `{"a":1,"b":2`) {
			t.Errorf("it is there again as %+v", e)
		}
		assertAgree(t, n.service, room)
	})
}

// panicky is the real application, but for one event.
type panicky struct{ *handlers }

type panickyPeer struct{ peer }

func (p panicky) connect(c *client, auth []byte) (peer, []byte) {
	inner, refusal := p.handlers.connect(c, auth)
	return panickyPeer{inner}, refusal
}

func (p panickyPeer) event(name string, args []json.RawMessage, id ackID) {
	if name == "panic" {
		panic("as the test wants")
	}
	p.peer.event(name, args, id)
}

func TestAPanicInAHandlerClosesThatConnectionOnly_G9(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	s := startSockets(t, &testApp{})
	s.sockets.app = panicky{n.handlers}
	victim, witness := dialUser(t, s.addr), dialUser(t, s.addr)
	witness.join("home", "witness", "{}")
	victim.join("home", "ann", "{}")
	victim.tell("panic", "")
	if status := victim.closed(); status != ws.StatusInternalServerError {
		t.Errorf("closed with %d", status)
	}
	if e := witness.sees(EventLeave, victim.id); e.Reason != string(ReasonDisconnected) {
		t.Errorf("left with %q", e.Reason)
	}
	witness.ok(eventHeartbeat, "")
}

// pingingNode pings its clients all the time.
func pingingNode(t *testing.T, settings ...string) *node {
	t.Helper()
	b := miniRedis(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rdb := b.open(t)
	n := &node{log: testLogger(t), serving: make(chan struct{}), listener: listener, redis: rdb, scripts: rdb}
	n.wire(testConfig(t, b.url, settings...))
	n.sockets.PingInterval = time.Millisecond
	go n.serve()
	t.Cleanup(n.stop)
	return n
}

// pinged waits for a ping.
func (u *user) pinged() {
	u.t.Helper()
	for {
		op, packet, err := u.next()
		switch {
		case err != nil || op != ws.OpText:
			u.t.Fatalf("no ping but op code %d, %q, %v", op, packet, err)
		case packet == "2":
			return
		}
		u.keep(packet)
	}
}

// TestAPongCountsAsAHeartbeatIfTheOperatorSaysSo refreshes two rooms, and brings back one that was lost (G8).
func TestAPongCountsAsAHeartbeatIfTheOperatorSaysSo(t *testing.T) {
	for setting, counts := range map[string]bool{"true": true, "false": false} {
		t.Run(setting, func(t *testing.T) {
			n := pingingNode(t, "PRESENCE_PONG_KEEPS_ALIVE="+setting)
			u := n.user(t)
			before := map[string]int64{}
			for _, room := range []string{"a", "b"} {
				u.join(room, "ann", "{}")
				before[room] = mustRead(t, n.service, room).Entries[0].LastSeenMs
			}
			refreshed := func() bool {
				u.send("3") // the ping before may have come while something else was waited for
				u.pinged()
				u.send("3")
				u.ok(eventGet, inRoom("a", "")) // the pong is handled
				for room, seen := range before {
					entries := mustRead(t, n.service, room).Entries
					if len(entries) != 1 || entries[0].LastSeenMs <= seen {
						return false
					}
				}
				return true
			}
			if counts {
				eventually(t, 10*time.Second, "both rooms are refreshed", refreshed)
				mustLeave(t, n.service, "a", u.id)
				eventually(t, 10*time.Second, "the lost one is back", refreshed)
				return
			}
			for range 2 {
				if refreshed() {
					t.Error("a pong has refreshed both rooms")
				}
			}
		})
	}
}

// TestAPongThatNobodyAskedForIsNoHeartbeat: else it would be one that no limit counts.
func TestAPongThatNobodyAskedForIsNoHeartbeat(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_PONG_KEEPS_ALIVE=true")
	u := n.member(t, "home", "ann", "{}")
	before := mustRead(t, n.service, "home").Entries[0].LastSeenMs
	for range 20 {
		u.send("3")
		u.ok(eventGet, inRoom("home", ""))
	}
	if after := mustRead(t, n.service, "home").Entries[0].LastSeenMs; after != before {
		t.Errorf("the last heartbeat was at %d and is at %d", before, after)
	}
}
