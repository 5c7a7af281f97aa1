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
	DeviceID                             string
	State                                json.RawMessage
	TS, Epoch, Rev                       int64
	UserConns                            int
}

// wireEntry is a member in a snapshot as the protocol describes it.
type wireEntry struct {
	ConnID, UserID    string
	DeviceID          string
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
