package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/golang-jwt/jwt/v5"
)

// wireBatch is a presence:batch or presence:count as the protocol describes it.
type wireBatch struct {
	RoomID       string
	Rev          int64
	Count, Users int
	Events       []wireEvent
}

// keepCollected keeps a batch or a count; false if the packet is neither.
func (u *user) keepCollected(packet string) bool {
	u.t.Helper()
	text, ok := strings.CutPrefix(packet, `42["presence:batch",`)
	if !ok {
		text, ok = strings.CutPrefix(packet, `42["presence:count",`)
	}
	if !ok {
		return false
	}
	var b wireBatch
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "]")), &b); err != nil {
		u.t.Fatalf("%v: %s", err, text)
	}
	u.others = append(u.others, b)
	return true
}

// collected reads batches or counts up to the first that satisfies cond.
func (u *user) collected(what string, cond func(wireBatch) bool) wireBatch {
	u.t.Helper()
	for read := 0; ; {
		for ; read < len(u.others); read++ {
			if cond(u.others[read]) {
				return u.others[read]
			}
		}
		op, packet, err := u.next()
		if err != nil {
			u.t.Fatalf("no batch or count %s: %v; got %+v", what, err, u.others)
		}
		if op == ws.OpText && packet != "2" {
			u.keep(packet)
		}
	}
}

func TestWatchingARoom_G1(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		near, far, room := startNodeFor(t, b), startNodeFor(t, b), uniqueRoom(t)
		ann := near.member(t, room, "ann", `{"n":1}`)
		for name, n := range map[string]*node{"on its node": near, "on another node": far} {
			w := n.user(t)
			ack := w.ok(eventWatch, inRoom(room, ""))
			if len(ack.Snapshot) != 1 || ack.Count != 1 || ack.Users != 1 || ack.Rev == 0 || ack.Cursor != nil {
				t.Fatalf("%s: the answer is %s", name, ack.text)
			}
			entryOf(t, ack, ann.id)
			if ack := ann.ok(eventGet, inRoom(room, "")); ack.Count != 1 || len(ack.Snapshot) != 1 {
				t.Errorf("%s: a watcher counts: %s", name, ack.text)
			}
			bob := far.member(t, room, "bob", "{}")
			if e := w.sees(EventJoin, bob.id); e.Rev <= ack.Rev {
				t.Errorf("%s: event %d after a snapshot of %d", name, e.Rev, ack.Rev)
			}
			bob.ok(eventLeave, "")
			w.sees(EventLeave, bob.id)
			w.settled(ann, room)
			w.wantEvents(bob.id, "join bob 1 {}", "leave bob 0 left null")
			w.wantEvents(w.id)
			w.ok(eventUnwatch, inRoom(room, ""))
			seen := len(w.events)
			ann.ok(eventHeartbeat, inRoom(room, fmt.Sprintf(`,"patchState":{"n":%q}`, name)))
			w.ok(eventGet, inRoom(room, ""))
			if len(w.events) != seen {
				t.Errorf("%s: events after unwatch", name)
			}
		}
		ann.settled(ann, room)
		ann.wantEvents(near.user(t).id)
	})
}

func TestWatchersAndMembersShareASubscription(t *testing.T) {
	t.Parallel()
	n, room := startNodeFor(t, realRedis(t)), uniqueRoom(t)
	ann := n.member(t, room, "ann", "{}")
	ann.ok(eventWatch, inRoom(room, `,"events":"count"`)) // is a member that wants each event
	w := n.user(t)
	w.ok(eventWatch, inRoom(room, ""))
	bob := n.member(t, room, "bob", "{}")
	bob.ok(eventHeartbeat, inRoom(room, `,"patchState":{"n":1}`))
	for _, u := range []*user{ann, w} {
		u.sees(EventUpdate, bob.id)
		u.wantEvents(bob.id, "join bob 1 {}", `update bob 1 {"n":1}`)
	}
	ann.ok(eventLeave, "") // and only counts from now on
	seen := len(ann.events)
	cid := n.member(t, room, "cid", "{}")
	ann.collected("of two", func(b wireBatch) bool { return b.Count == 2 && b.Users == 2 && b.RoomID == room && b.Events == nil })
	cid.ok(eventLeave, "")
	ann.collected("of one", func(b wireBatch) bool { return b.Count == 1 })
	if len(ann.events) != seen {
		t.Errorf("events to who only counts: %+v", ann.events[seen:])
	}
}

func TestBatchesOverTheWire_G3(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		near, far, room := startNodeFor(t, b, "PRESENCE_BATCH_MS=50"), startNodeFor(t, b), uniqueRoom(t)
		ann := far.member(t, room, "ann", "{}")
		listener := near.user(t)
		ack := listener.ok(eventJoin, `{"roomId":`+quoted(room)+`,"userId":"bob","events":"batch"}`)
		fold := newReplica(room)
		for _, e := range ack.Snapshot {
			fold.put(Entry{ConnID: e.ConnID, UserID: e.UserID, State: e.State, Epoch: e.Epoch})
		}
		fold.rev = ack.Rev
		for n := range 100 {
			ann.ok(eventHeartbeat, inRoom(room, fmt.Sprintf(`,"patchState":{"n":%d}`, n)))
		}
		cid := far.member(t, room, "cid", "{}")
		cid.ok(eventLeave, "")
		last := ann.ok(eventJoin, joinPayloadOf(room, "ann", `{"last":true}`))
		listener.collected("up to the last change", func(b wireBatch) bool {
			if b.Rev < fold.rev {
				t.Errorf("a batch of revision %d after %d", b.Rev, fold.rev)
			}
			for _, e := range b.Events {
				if e.Rev <= ack.Rev || e.Rev < fold.rev || e.Rev > b.Rev {
					t.Errorf("event %d in a batch of %d after %d", e.Rev, b.Rev, fold.rev)
				}
				fold.apply(Event{Type: EventType(e.Type), ConnID: e.ConnID, UserID: e.UserID, State: e.State, Epoch: e.Epoch, Rev: e.Rev})
			}
			fold.rev = b.Rev
			return b.Rev >= last.Rev
		})
		if fold.entries.len() != 2 || fold.entry(ann.id).Epoch != last.Self.Epoch || string(fold.entry(ann.id).State) != `{"last":true}` {
			t.Errorf("the fold is %v", fold.view().page("", 0))
		}
		if n := len(listener.others); n >= 100 {
			t.Errorf("%d batches for 103 changes", n)
		}
		if len(listener.events) != 0 {
			t.Errorf("single events: %+v", listener.events)
		}
	})
}

func TestPagesOfALargeRoom(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startNodeFor(t, b), uniqueRoom(t)
		for i := range 25 {
			mustJoin(t, n.service, room, fmt.Sprint("user", i%20), fmt.Sprint("conn", i), "{}")
		}
		u := n.user(t)
		first := u.ok(eventJoin, `{"roomId":`+quoted(room)+`,"userId":"me","limit":7}`)
		if first.Count != 26 || first.Users != 21 {
			t.Errorf("the answer is %s", first.text)
		}
		seen := map[string]bool{}
		for ack := first; ; {
			if len(ack.Snapshot) > 7 {
				t.Fatalf("a page of %d", len(ack.Snapshot))
			}
			for _, e := range ack.Snapshot {
				if seen[e.ConnID] {
					t.Errorf("%s is on two pages", e.ConnID)
				}
				seen[e.ConnID] = true
			}
			if ack.Cursor == nil {
				break
			}
			ack = u.ok(eventGet, inRoom(room, `,"limit":7,"cursor":`+quoted(*ack.Cursor)))
		}
		if len(seen) != 26 || !seen[u.id] {
			t.Errorf("the pages have %d members", len(seen))
		}
	})
}

func TestAWatchCountsAgainstTheLimitOfRooms(t *testing.T) {
	t.Parallel()
	n, room := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_ROOMS_PER_SOCKET=2"), uniqueRoom(t)
	u := n.member(t, room, "ann", "{}")
	u.ok(eventWatch, inRoom("w1", ""))
	u.ok(eventWatch, inRoom("w1", `,"events":"none"`)) // again is no other one
	u.refused(eventWatch, inRoom("w2", ""), CodeTooManyRooms)
	u.refused(eventJoin, joinPayloadOf("other", "ann", "{}"), CodeTooManyRooms)
	u.ok(eventUnwatch, "")
	u.ok(eventWatch, inRoom("w2", ""))
	_ = u.conn.Close()
	eventually(t, 5*time.Second, "all rooms are given up", func() bool {
		return len(n.hub.all(1)) == 0
	})
}

func TestWatchingWhileRedisIsAwayIsUnavailable_G7(t *testing.T) {
	t.Parallel()
	server := spawnRedis(t)
	n := startNodeFor(t, backend{url: server.url})
	u := n.member(t, "r", "ann", "{}")
	server.stop()
	u.refused(eventWatch, inRoom("r", ""), CodeUnavailable)
	u.refused(eventWatch, inRoom("other", ""), CodeUnavailable)
	u.refused(eventGet, inRoom("r", ""), CodeUnavailable)
}

func TestATokenHasToAllowTheWatchedRoom(t *testing.T) {
	n := startNodeWithTokens(t, miniRedis(t))
	u := n.bearer(t, hs256.token(jwt.MapClaims{"rooms": []string{"open-*"}}))
	u.ok(eventWatch, inRoom("open-1", ""))
	u.refused(eventWatch, inRoom("closed", ""), CodeForbidden)
	u.ok(eventAuth, `{"token":`+quoted(hs256.token(jwt.MapClaims{"rooms": []string{"closed"}}))+`}`)
	mustJoin(t, n.service, "open-1", "bob", "b", "{}")
	u.ok(eventWatch, inRoom("closed", ""))
	if len(u.events) > 0 {
		t.Errorf("events of a room that the new token does not allow: %+v", u.events)
	}
}

func TestWhoOnlyWatchesOrReadsIsNoMemberOfTheNode(t *testing.T) {
	n, room := startNodeFor(t, miniRedis(t)), uniqueRoom(t)
	n.member(t, room, "ann", "{}").ok(eventWatch, inRoom(room, ""))
	w := n.user(t)
	w.ok(eventWatch, inRoom("other", ""))
	defer n.hub.release(n.hub.acquire("large")) // as for who reads its pages
	if rooms, members := n.hub.size(); rooms != 1 || members != 1 {
		t.Errorf("%d members in %d rooms, want 1 in 1", members, rooms)
	}
}
