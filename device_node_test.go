package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// joinFrom joins with a device.
func (u *user) joinFrom(room, name, device string) wireAck {
	u.t.Helper()
	return u.ok(eventJoin, fmt.Sprintf(`{"roomId":%s,"userId":%s,"deviceId":%s}`, quoted(room), quoted(name), quoted(device)))
}

// TestADeviceReplacesItsMember_G5_G8 has the next connection on another node. The socket that was replaced gets its own leave
// in each mode, and nothing of the room after it; nobody is told that its user went.
func TestADeviceReplacesItsMember_G5_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		near, far, room := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)+"/é"
		for _, mode := range modeNames() {
			room := room + mode
			ann, witness := room+"ann", near.member(t, room, "witness", "{}")
			watcher, _ := near.watchUsers(t, ann)
			old, next := far.user(t), near.user(t)
			old.ok(eventJoin, joinWith(room, ann, `,"deviceId":"d","events":"`+mode+`"`))
			watcher.hears(ann, true)
			epoch := entryOf(t, near.user(t).ok(eventGet, `{"roomId":`+quoted(room)+`}`), old.id).Epoch
			joined := next.joinFrom(room, ann, "d")
			if e := entryOf(t, joined, next.id); e.DeviceID != "d" {
				t.Errorf("%s: the snapshot has %+v", mode, e)
			}
			for _, u := range []*user{witness, old} {
				if mode == "batch" && u == old {
					continue // it may come as a part of a batch
				}
				if e := u.sees(EventLeave, old.id); e.Reason != string(ReasonReplaced) || e.UserConns != 1 || e.DeviceID != "d" || e.Epoch != epoch {
					t.Errorf("%s: the leave is %+v", mode, e)
				}
			}
			if mode == "batch" {
				old.untilLeft(old.id, ReasonReplaced)
			}
			if e := witness.sees(EventJoin, next.id); e.UserConns != 2 || e.DeviceID != "d" {
				t.Errorf("%s: the join is %+v", mode, e)
			}
			before := len(old.events) + len(old.others)
			next.settled(witness, room)
			old.refused(eventHeartbeat, inRoom(room, `,"patchState":{"a":1}`), CodeNotJoined)
			old.refused(eventHeartbeat, "", CodeNotJoined)
			old.ok(eventLeave, "")
			if got := len(old.events) + len(old.others); got != before {
				t.Errorf("%s: after its leave it got %+v %+v", mode, old.events, old.others)
			}
			if got := near.get(t, "/v1/users/"+percent(ann)); len(got.Conns) != 1 || !strings.Contains(got.text, `"deviceId":"d"`) {
				t.Errorf("%s: the user is %s", mode, got.text)
			}
			assertAgree(t, near.service, room)
			assertDevices(t, near.service, room)

			old.joinFrom(room, ann, "d") // a new join is allowed, and replaces in its turn
			next.sees(EventLeave, next.id)
			next.refused(eventHeartbeat, inRoom(room, ""), CodeNotJoined)
			old.ok(eventHeartbeat, inRoom(room, ""))
			old.ok(eventLeave, "")
			watcher.hears(ann, false)
			watcher.wantTold(ann, true, false)
		}
	})
}

// untilLeft waits for a leave of a connection, alone or in a batch.
func (u *user) untilLeft(conn string, reason Reason) {
	u.t.Helper()
	is := func(e wireEvent) bool { return e.ConnID == conn && e.Reason == string(reason) }
	eventually(u.t, patience, "the leave", func() bool {
		for _, e := range u.events {
			if is(e) {
				return true
			}
		}
		for _, b := range u.others {
			for _, e := range b.Events {
				if is(e) {
					return true
				}
			}
		}
		u.call(eventGet, `{"roomId":"elsewhere","limit":1}`)
		return false
	})
}

// joinWith is the payload of a join with more fields.
func joinWith(room, name, more string) string {
	return `{"roomId":` + quoted(room) + `,"userId":` + quoted(name) + more + `}`
}

// modeNames are the modes that a client may choose.
func modeNames() []string { return eventModes[:] }

// TestWhoWatchesTheRoomGoesOnAfterItsDeviceReplacedIt.
func TestAReplacedMemberGoesOnWatching(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	witness, u := n.member(t, "r", "witness", "{}"), n.user(t)
	u.joinFrom("r", "ann", "d")
	u.ok(eventWatch, `{"roomId":"r"}`)
	n.user(t).joinFrom("r", "ann", "d")
	u.sees(EventLeave, u.id)
	u.settled(witness, "r")
	u.refused(eventHeartbeat, "", CodeNotJoined)
	u.settled(witness, "r")
}

// TestAMoveToAnotherUserIsNoReplacementByADevice: the connection stays in the room, and hears of it.
func TestAMoveToAnotherUserIsNoReplacementByADevice(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	witness, u := n.member(t, "r", "witness", "{}"), n.user(t)
	u.joinFrom("r", "ann", "d")
	u.joinFrom("r", "bob", "d")
	if e := witness.sees(EventLeave, u.id); e.Reason != string(ReasonReplaced) || e.UserID != "ann" || e.UserConns != 0 {
		t.Errorf("the leave is %+v", e)
	}
	u.settled(witness, "r")
	u.ok(eventHeartbeat, `{"patchState":{"a":1}}`)
	witness.until("the patch", func(e wireEvent) bool { return e.ConnID == u.id && e.Type == "update" && e.DeviceID == "d" })
}

// TestAReplacementIsFinalThoughItsMessageIsLost_G8: the socket gets its leave before the answer that tells it so.
func TestAReplacementIsFinalThoughItsMessageIsLost_G8(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		u := n.user(t)
		u.joinFrom(room, "ann", "d")
		silently := startService(t, b.open(t), Options{})
		keys := append(keysOfOthers(scriptKeys(room, "next"), room, []string{u.id}), keysOf(room).devices())
		answer, err := silently.run(t.Context(), silently.scripts.join, keys, "elsewhere", "PUBLISH", literal(room), 0, "next", "ann", `"ann"`, "{}", "", "",
			60_000, 0, room, `"d"`, 60_000, u.id)
		if err != nil || answer.verdict() != "ok" || len(answer) != 7 {
			t.Fatal(answer, err)
		}
		u.refused(eventHeartbeat, "", CodeNotJoined)
		if e := u.sees(EventLeave, u.id); e.Reason != string(ReasonReplaced) && e.Reason != "" {
			t.Errorf("it is told %+v", e)
		}
		u.refused(eventHeartbeat, "", CodeNotJoined)
		if v := mustRead(t, silently, room); len(v.Entries) != 1 || v.Entries[0].ConnID != "next" {
			t.Errorf("the room has %+v", v.Entries)
		}
	})
}

// TestAfterALossOfDataADeviceHasOneMember_G3_G8: FLUSHALL takes the fence and the index as well.
func TestAfterALossOfDataADeviceHasOneMember_G3_G8(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(t *testing.T, server *redisProcess, b backend){
		"FLUSHALL":        func(t *testing.T, _ *redisProcess, b backend) { flushAll(t, b.open(t)) },
		"restarted empty": func(_ *testing.T, server *redisProcess, _ backend) { server.restart() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := spawnRedis(t)
			b := backend{url: server.url}
			near, far := startNodeFor(t, b), startNodeFor(t, b)
			witness, old, next := near.member(t, "r", "witness", "{}"), far.user(t), near.user(t)
			old.joinFrom("r", "ann", "d")
			epoch := next.joinFrom("r", "ann", "d").Self.Epoch
			old.sees(EventLeave, old.id)
			fault(t, server, b)
			eventually(t, 10*time.Second, "the members are back", func() bool {
				v, err := near.service.Snapshot(t.Context(), "r")
				return err == nil && len(v.Entries) == 2
			})
			eventually(t, 10*time.Second, "the node of the one that was replaced answers", func() bool {
				ack := old.call(eventHeartbeat, "")
				if ack.OK {
					t.Fatal("it is refreshed")
				}
				return ack.Code == string(CodeNotJoined)
			})
			again := far.user(t)
			ack := again.joinFrom("r", "ann", "d")
			if len(ack.Snapshot) != 2 || entryOf(t, ack, again.id).Epoch <= epoch {
				t.Errorf("the next join is answered with %s", ack.text)
			}
			if e := next.sees(EventLeave, next.id); e.Reason != string(ReasonReplaced) {
				t.Errorf("who came back is told %+v", e)
			}
			for _, e := range witness.events {
				if e.ConnID == old.id && e.Type == "join" && e.Rev > epoch {
					t.Errorf("the one that was replaced is told to be back: %+v", e)
				}
			}
			assertAgree(t, near.service, "r")
		})
	}
}

// TestAHeldBackConnectionIsReplaced: the page is loaded anew, or the network is another one, before the server notices the end.
func TestAHeldBackConnectionIsReplaced(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		near, far, room := startNodeFor(t, b, "PRESENCE_GRACE_MS=60000"), startNodeFor(t, b, "PRESENCE_GRACE_MS=60000"), uniqueRoom(t)
		witness, old := near.member(t, room, "witness", "{}"), far.user(t)
		old.joinFrom(room, "ann", "d")
		_ = old.conn.Close()
		eventually(t, patience, "it is held back", func() bool {
			m, err := near.service.find(t.Context(), room, old.id)
			return err == nil && m.held() && m.Device == "d"
		})
		next := near.user(t)
		next.joinFrom(room, "ann", "d")
		witness.sees(EventLeave, old.id)
		witness.wantEvents(old.id, "join ann 1 {}", "leave ann 1 replaced null")
		witness.wantEvents(next.id, "join ann 2 {}")
		assertAgree(t, near.service, room)
	})
}

// TestWebhooksTellNoUserToBeGoneWhoIsReplaced.
func TestAReplacementIsNoChangeOfUsers(t *testing.T) {
	var all []Change
	s := startService(t, miniRedis(t).open(t), Options{OnChange: func(_ string, changes []Change) { all = append(all, changes...) }})
	mustJoinFrom(t, s, "r", "ann", "a", "d", "{}")
	all = nil
	mustJoinFrom(t, s, "r", "ann", "b", "d", "{}")
	if len(all) != 2 || all[0].Type != EventJoin || all[1].Type != EventLeave || all[1].Reason != ReasonReplaced || all[1].Conn != "a" {
		t.Fatalf("told of %+v", all)
	}
	for _, c := range all {
		if c.UserChanged || c.RoomChanged {
			t.Errorf("told %+v", c)
		}
	}
}
