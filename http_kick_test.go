package main

import (
	"net/http"
	"testing"
	"time"
)

// kicked sends the request for a kick.
func (n *node) kick(t testing.TB, room, conn string) int {
	t.Helper()
	got := n.http(t, http.MethodDelete, "/v1/rooms/"+percent(room)+"/conns/"+conn)
	if got.status == http.StatusNoContent != (got.text == "") {
		t.Errorf("a kick is answered with %d %q", got.status, got.text)
	}
	return got.status
}

// TestAKickIsFinal_G8 kicks a connection of another node. Its own heartbeats must not bring it back, and nothing of the room
// may reach it any more.
func TestAKickIsFinal_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)+"/é"
		witness, u := n.member(t, room, "witness", "{}"), other.user(t)
		twin := other.member(t, room, "ann", "{}")
		u.join(room+" 2", "ann", "{}")
		epoch := u.join(room, "ann", "{}").Self.Epoch
		if status := n.kick(t, room, u.id); status != http.StatusNoContent {
			t.Fatalf("the kick is answered with %d", status)
		}
		for _, each := range []*user{witness, twin, u} {
			if e := each.sees(EventLeave, u.id); e.Reason != string(ReasonKicked) || e.UserConns != 1 || e.Epoch != epoch {
				t.Errorf("the kick is seen as %+v", e)
			}
		}
		if status := n.kick(t, room, u.id); status != http.StatusNotFound {
			t.Errorf("a second kick is answered with %d", status)
		}
		before := len(u.events)
		twin.settled(witness, room)
		u.refused(eventHeartbeat, inRoom(room, `,"patchState":{"a":1}`), CodeNotJoined)
		u.refused(eventHeartbeat, inRoom(room, ""), CodeNotJoined)
		u.ok(eventHeartbeat, "") // for the other room
		if len(u.events) != before {
			t.Errorf("after its leave it got %+v", u.events[before:])
		}
		if got := n.get(t, "/v1/users/ann"); b.mini != nil && len(got.Conns) != 2 {
			t.Errorf("the user is %s", got.text)
		}
		assertAgree(t, n.service, room)

		if again := u.join(room, "ann", "{}"); again.Self.Epoch <= epoch || again.Count != 0 && again.Count != 3 {
			t.Errorf("the next join is answered with %s", again.text)
		}
		u.ok(eventHeartbeat, inRoom(room, ""))
		witness.until("the next join", func(e wireEvent) bool { return e.ConnID == u.id && e.Epoch > epoch })
		if left := b.open(t).PTTL(t.Context(), kickKey(room, u.id)).Val(); left <= 0 || left > 2*time.Hour {
			t.Errorf("the fence stays for %v", left)
		}
	})
}

// TestAKickIsFinalThoughItsMessageIsLost_G8: the socket gets its leave before the answer that tells it so.
func TestAKickIsFinalThoughItsMessageIsLost_G8(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		u := n.member(t, room, "ann", "{}")
		silently := startService(t, b.open(t), Options{})
		m, err := silently.find(t.Context(), room, u.id)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := silently.run(t.Context(), silently.scripts.kick, fencedKeys(room, u.id), "elsewhere", "PUBLISH", literal(room), 0, u.id, 60_000, "", "kicked")
		if err != nil || answer.verdict() != "ok" {
			t.Fatal(answer, err)
		}
		u.refused(eventHeartbeat, "", CodeNotJoined)
		u.wantEvents(u.id, "leave ann 0 null")
		for _, restored := range []Member{m, {Room: room, User: "ann", Conn: u.id, Epoch: m.Epoch - 1, Rev: m.Rev, State: m.State}} {
			if err := silently.restore(t.Context(), &restored, 0, 0); !hasCode(err, CodeNotJoined) {
				t.Errorf("a restore of epoch %d ends with %v", restored.Epoch, err)
			}
		}
		if s := mustRead(t, silently, room); len(s.Entries) != 0 {
			t.Errorf("the room holds %+v", s.Entries)
		}
		u.join(room, "ann", "{}")
		u.ok(eventHeartbeat, "")
	})
}

// TestAFenceOfAnotherTypeIsNone: neither a kick nor a restore may fail because of it, and rebuilding must not take a true one.
func TestAFenceOfAnotherTypeIsNone(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, room := b.open(t), uniqueRoom(t)
		s := startService(t, rdb, Options{})
		m := mustJoin(t, s, room, "ann", "c1", "{}")
		mustJoin(t, s, room, "bob", "c2", "{}")
		if err := rdb.LPush(t.Context(), kickKey(room, "c1"), "x").Err(); err != nil {
			t.Fatal(err)
		}
		mustLeave(t, s, room, "c1")
		if err := s.restore(t.Context(), &m, 0, 0); err != nil {
			t.Errorf("a restore ends with %v", err)
		}
		if err := s.Kick(t.Context(), room, "c1"); err != nil {
			t.Errorf("a kick ends with %v", err)
		}
		if err := rdb.Set(t.Context(), keysOf(room).members(), "x", 0).Err(); err != nil {
			t.Fatal(err)
		}
		m.Rev++ // so that the script comes to the key that is to be rebuilt
		if err := s.restore(t.Context(), &m, 0, 0); !hasCode(err, CodeNotJoined) {
			t.Errorf("after rebuilding a restore ends with %v", err)
		}
		assertAgree(t, s, room)
	})
}

// TestASilentClientLearnsOfAKickWhoseMessageIsLost: nothing of the room may reach it afterwards, although it asks for nothing.
func TestASilentClientLearnsOfAKickWhoseMessageIsLost(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		witness, u := n.member(t, room, "witness", "{}"), n.member(t, room, "ann", "{}")
		s := startService(t, b.open(t), Options{})
		answer, err := s.run(t.Context(), s.scripts.kick, fencedKeys(room, u.id), "elsewhere", "PUBLISH", literal(room), 0, u.id, 60_000, "", "kicked")
		if err != nil || answer.verdict() != "ok" {
			t.Fatal(answer, err)
		}
		witness.ok(eventHeartbeat, "") // the node compares the revision
		u.sees(EventLeave, u.id)
		witness.sees(EventLeave, u.id)
		witness.settled(witness, room)
		before := len(u.events)
		u.ok(eventGet, inRoom(room, ""))
		if len(u.events) != before {
			t.Errorf("after its leave it got %+v", u.events[before:])
		}
		u.refused(eventHeartbeat, "", CodeNotJoined)
	})
}
