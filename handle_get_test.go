package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

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
