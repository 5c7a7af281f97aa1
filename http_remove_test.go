package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// remove sends a request to remove a user, which has to work, and returns how many members it has removed.
func (n *node) remove(t testing.TB, user, query string) int {
	t.Helper()
	got := n.send(t, http.MethodDelete, "/v1/users/"+percent(user)+query, nil)
	var answer struct{ Removed *int }
	if err := json.Unmarshal([]byte(got.text), &answer); err != nil || got.status != http.StatusOK || answer.Removed == nil {
		t.Fatalf("removing %s%s is answered with %d %s", user, query, got.status, got.text)
	}
	return *answer.Removed
}

// endsForGood waits for the DISCONNECT, and for the end of the connection behind it.
func (u *user) endsForGood() {
	u.t.Helper()
	for packet := u.text(); packet != "41"; packet = u.text() {
		u.keep(packet)
	}
	u.closed()
}

// wantKicked waits until a witness has seen the leaves of all these connections in a room, each as kicked and once.
func (u *user) wantKicked(room string, conns ...string) {
	u.t.Helper()
	for _, conn := range conns {
		e := u.until(fmt.Sprintf("leave of %s in %s", conn, room), func(e wireEvent) bool {
			return e.Type == string(EventLeave) && e.ConnID == conn && e.RoomID == room
		})
		if e.Reason != string(ReasonKicked) {
			u.t.Errorf("%s leaves %s as %s", conn, room, e.Reason)
		}
	}
}

// TestARemovedUserLeavesEverywhere_G8 has a user with three connections in two rooms, on two nodes.
func TestARemovedUserLeavesEverywhere_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room, second := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)+"/é", uniqueRoom(t)
		name := `ann "/\" of ` + room
		witness, elsewhere := n.member(t, room, "bob", "{}"), other.member(t, second, "bob", "{}")
		near, far, both := n.member(t, room, name, "{}"), other.member(t, second, name, "{}"), other.member(t, room, name, "{}")
		epoch := both.join(second, name, "{}").Self.Epoch
		if removed := n.remove(t, name, ""); removed != 4 {
			t.Errorf("%d are removed", removed)
		}
		witness.wantKicked(room, near.id, both.id)
		elsewhere.wantKicked(second, far.id, both.id)
		for _, u := range []*user{near, both} {
			u.wantKicked(room, u.id)
		}
		far.wantKicked(second, far.id)
		both.wantKicked(second, both.id)
		for _, u := range []*user{near, far, both} {
			u.refused(eventHeartbeat, "", CodeNotJoined)
		}
		if removed := n.remove(t, name, "?disconnect=false"); removed != 0 {
			t.Errorf("then %d are removed", removed)
		}
		for _, at := range []string{room, second} {
			assertAgree(t, n.service, at)
		}
		if again := both.join(second, name, "{}"); again.Self.Epoch <= epoch {
			t.Errorf("the next join is answered with %s", again.text)
		}
		both.ok(eventHeartbeat, "")
		if removed := n.remove(t, name, ""); removed != 1 {
			t.Errorf("after a join %d are removed", removed)
		}
		witness.ok(eventHeartbeat, "")
		elsewhere.ok(eventHeartbeat, "")
	})
}

func TestARemovedUserWhoIsHeldBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room := startWithAPI(t, b), startNodeFor(t, b, "PRESENCE_GRACE_MS=60000"), uniqueRoom(t)
		name := "ann of " + room
		witness, u := n.member(t, room, "bob", "{}"), other.member(t, room, name, "{}")
		must(t, u.conn.Close())
		eventually(t, 5*time.Second, "the hold", func() bool {
			m, err := n.service.find(t.Context(), room, u.id)
			return err == nil && m.held()
		})
		if removed := n.remove(t, name, "?disconnect=true"); removed != 1 {
			t.Errorf("%d are removed", removed)
		}
		witness.wantKicked(room, u.id)
		assertAgree(t, n.service, room)
	})
}

// TestTheConnectionsOfARemovedUserEnd: each after it has left all its rooms as kicked, and nobody else's.
func TestTheConnectionsOfARemovedUserEnd(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other := startWithAPI(t, b), startNodeFor(t, b)
		rooms := make([]string, 8)
		for i := range rooms {
			rooms[i] = fmt.Sprint(uniqueRoom(t), " ", i)
		}
		name := "ann of " + rooms[0]
		witness, near, far := n.user(t), n.user(t), other.user(t)
		for _, room := range rooms {
			witness.join(room, "bob", "{}")
			near.join(room, name, "{}")
			far.join(room, name, "{}")
		}
		if removed := n.remove(t, name, "?disconnect=true"); removed != 2*len(rooms) {
			t.Errorf("%d are removed", removed)
		}
		near.endsForGood()
		far.endsForGood()
		for _, room := range rooms {
			witness.wantKicked(room, near.id, far.id)
			for _, u := range []*user{near, far} {
				u.wantKicked(room, u.id)
			}
		}
		for _, u := range []*user{near, far} {
			if got := witness.of(u.id); len(got) != 2*len(rooms) {
				t.Errorf("the witness saw %q", got)
			}
		}
		witness.ok(eventHeartbeat, "")
	})
}

// TestAConnectionEndsThoughItIsSomebodyElseToo: it is not kept by a room from which nobody kicks it, or by one that it joins at
// once.
func TestAConnectionEndsThoughItIsSomebodyElseToo(t *testing.T) {
	t.Parallel()
	b := miniRedis(t)
	n, other, room := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)
	witness, u := n.user(t), other.member(t, room, "ann", "{}")
	for _, at := range []string{room, room + " 2"} {
		witness.join(at, "bob", "{}")
	}
	u.join(room+" 2", "somebody else", "{}")
	if removed := n.remove(t, "ann", "?disconnect=true"); removed != 1 {
		t.Errorf("%d are removed", removed)
	}
	u.wantKicked(room, u.id)
	u.join(room, "ann", "{}")
	u.endsForGood()
	witness.wantKicked(room, u.id)
	e := witness.until("the end", func(e wireEvent) bool {
		return e.RoomID == room+" 2" && e.ConnID == u.id && e.Type == string(EventLeave)
	})
	if e.Reason != string(ReasonDisconnected) {
		t.Errorf("it leaves its other room as %s", e.Reason)
	}
}

// kickSilently kicks a connection, and has its node end it, without a message.
func kickSilently(t *testing.T, rdb redis.UniversalClient, room, conn string) {
	t.Helper()
	s := startService(t, rdb, Options{})
	answer, err := s.run(t.Context(), s.scripts.kick, fencedKeys(room, conn), "elsewhere", "PUBLISH", literal(room), 0, conn, 60_000, "", "kicked", true)
	if err != nil || answer.verdict() != "ok" {
		t.Fatal(answer, err)
	}
}

// TestAConnectionEndsThoughTheMessageOfItsKickIsLost: its heartbeat tells its node, or that of another member.
func TestAConnectionEndsThoughTheMessageOfItsKickIsLost(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		u := n.member(t, room, "ann", "{}")
		kickSilently(t, b.open(t), room, u.id)
		u.tell(eventHeartbeat, "")
		u.endsForGood()
		u.wantEvents(u.id, "leave ann 0 null")

		witness, silent := n.member(t, room, "witness", "{}"), n.member(t, room, "bob", "{}")
		kickSilently(t, b.open(t), room, silent.id)
		witness.ok(eventHeartbeat, "") // the node compares the revision
		silent.endsForGood()
		silent.sees(EventLeave, silent.id)
		witness.sees(EventLeave, silent.id)
	})
}

// TestAFenceSaysWhetherAConnectionIsToEnd, and to nodes that look at its epoch only, what it would say else.
func TestAFenceSaysWhetherAConnectionIsToEnd(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, room := b.open(t), uniqueRoom(t)
		s := startService(t, rdb, Options{})
		ends := func(newest int64) bool {
			t.Helper()
			ends, err := s.kick(t.Context(), room, "c1", kicking{newest: newest})
			if !hasCode(err, CodeNotJoined) {
				t.Errorf("a kick ends with %v", err)
			}
			return ends
		}
		first := mustJoin(t, s, room, "ann", "c1", "{}")
		if _, err := s.kick(t.Context(), room, "c1", kicking{}); err != nil || ends(first.Epoch) {
			t.Errorf("a kick alone ends the connection, %v", err)
		}
		second := mustJoin(t, s, room, "ann", "c1", "{}")
		if _, err := s.kick(t.Context(), room, "c1", kicking{newest: first.Epoch, ends: true}); !hasCode(err, CodeNotJoined) || ends(first.Epoch) {
			t.Errorf("a kick of an older incarnation ends with %v", err)
		}
		if _, err := s.kick(t.Context(), room, "c1", kicking{newest: second.Epoch, ends: true}); err != nil {
			t.Fatal(err)
		}
		if !ends(first.Epoch) || !ends(second.Epoch) || ends(second.Epoch+1) || ends(0) {
			t.Error("it does not say which incarnations it was about")
		}
		if err := s.restore(t.Context(), &second, 0, 0); !hasCode(err, CodeNotJoined) || !second.kickEnds {
			t.Errorf("a restore ends with %v", err)
		}
		third := mustJoin(t, s, room, "ann", "c1", "{}")
		must(t, s.restore(t.Context(), &third, 0, 0))
		if !ends(second.Epoch) {
			t.Error("a join takes back that the connection is to end")
		}
		if _, err := s.kick(t.Context(), room, "c1", kicking{}); err != nil || !ends(second.Epoch) {
			t.Errorf("a kick takes back that the connection is to end, %v", err)
		}
		assertAgree(t, s, room)
	})
}

func TestMistakesInRequestsToRemoveAUser(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	u := n.member(t, "room", "ann", "{}")
	for _, query := range []string{"disconnect", "disconnect=", "disconnect=1", "disconnect=yes", "disconnect=TRUE", "disconnect=true&disconnect=true",
		"disconnect=false&disconnect=true", "disconnect=%74rue%zz", "disconnect=true;x", "disconnect=%00"} {
		n.send(t, http.MethodDelete, "/v1/users/ann?"+query, nil).wantRefusal(t, query, http.StatusBadRequest, CodeInvalidPayload)
	}
	for _, id := range []string{"%00", "%ff", strings.Repeat("x", 201)} {
		n.send(t, http.MethodDelete, "/v1/users/"+id, nil).wantRefusal(t, id, http.StatusBadRequest, CodeInvalidPayload)
	}
	if got := n.send(t, http.MethodPost, "/v1/users/ann", nil); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET, DELETE" {
		t.Errorf("POST is answered with %d %v", got.status, got.header)
	}
	sendHTTP(t, "127.0.0.1:"+n.port(), http.MethodDelete, "/v1/users/ann", "", nil).wantRefusal(t, "without a key", http.StatusUnauthorized, CodeUnauthorized)
	u.ok(eventHeartbeat, "")
	if removed := n.remove(t, "nobody", ""); removed != 0 {
		t.Errorf("of nobody %d are removed", removed)
	}
	if removed := n.remove(t, "ann", "?%64isconnect=%74rue&more=1"); removed != 1 {
		t.Errorf("%d are removed", removed)
	}
	u.endsForGood()
}

// TestRemovingAUserWithoutRedis is unavailable, and may be repeated.
func TestRemovingAUserWithoutRedis(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	once := func(ctx context.Context, call func(context.Context) *redis.Cmd) *redis.Cmd {
		if calls.Add(1) == 1 {
			return call(ctx)
		}
		return lost(ctx)
	}
	for _, tc := range []struct {
		script string
		what   trouble
	}{{"places", refuse}, {"find", hang}, {"kick", once}, {"kick", loseAnswer}} {
		rdb := &troubledRedis{UniversalClient: miniRedis(t).open(t)}
		n := startNodeOn(t, rdb, "PRESENCE_API_KEY="+testAPIKey)
		rooms := []string{"room 1", "room 2", "room 3"}
		u, witness := n.user(t), n.user(t)
		for _, room := range rooms {
			u.join(room, "ann", "{}")
			witness.join(room, "bob", "{}")
		}
		rdb.meets(tc.script, tc.what)
		n.send(t, http.MethodDelete, "/v1/users/ann", nil).wantRefusal(t, tc.script, http.StatusServiceUnavailable, CodeUnavailable)
		rdb.recover()
		n.remove(t, "ann", "")
		for _, room := range rooms {
			witness.wantKicked(room, u.id)
		}
		if got := n.get(t, "/v1/users/ann"); len(got.Conns) > 0 {
			t.Errorf("%s: the user is %s", tc.script, got.text)
		}
		if got := witness.of(u.id); len(got) > 2*len(rooms) {
			t.Errorf("%s: the witness saw %q", tc.script, got)
		}
	}
}

// TestTheRealClientOfARemovedUserStaysAway on every transport.
func TestTheRealClientOfARemovedUserStaysAway(t *testing.T) {
	t.Parallel()
	takesLong(t)
	b, room := backend{url: spawnRedis(t).url, real: true}, uniqueRoom(t)
	n, other, c := startWithAPI(t, b), startNodeFor(t, b), startClients(t)
	url := func(n *node) string { return "http://127.0.0.1:" + n.port() }
	c.open("witness", url(n), room, "websocket")
	var gone []string
	for name, transports := range map[string][]string{"ann": {"websocket"}, "bea": {"polling"}, "cem": {"polling", "websocket"}} {
		conn := c.open(name, url(other), room, transports...).Self.ConnID
		if name == "cem" {
			c.await(name, "upgrade")
		}
		if removed := n.remove(t, name, "?disconnect=true"); removed != 1 {
			t.Errorf("%d of %s are removed", removed, name)
		}
		if reason := string(c.await(name, "disconnect")[0]); reason != `"io server disconnect"` {
			t.Errorf("%s is disconnected for %s", name, reason)
		}
		if events := c.events(name, conn); len(events) == 0 || events[len(events)-1] != "leave kicked" {
			t.Errorf("%s got %q before", name, events)
		}
		gone = append(gone, conn)
	}
	for _, conn := range gone {
		c.sees("witness", conn, "join", "leave kicked")
	}
	if got := n.get(t, "/v1/rooms/"+percent(room)); got.Count != 1 {
		t.Errorf("then the room is %s", got.text)
	}
}
