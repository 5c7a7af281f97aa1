package main

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

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

// TestOneThatWasRemovedHearsOfItAndIsPutBack_G8 has another process remove a connection whose client lives.
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
