package main

import (
	"fmt"
	"testing"
	"time"
)

// TestHeartbeatOfSeveralRooms without roomId: an epoch names the room that it is current in, and all rooms are refreshed.
func TestHeartbeatOfSeveralRooms(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n := startNodeFor(t, b)
		rooms := [2]string{uniqueRoom(t), uniqueRoom(t)}
		u := n.user(t)
		var epochs [2]int64
		for i, room := range rooms {
			epochs[i] = u.join(room, "ann", `{"n":0}`).Self.Epoch
			if i == 0 {
				eventually(t, patience, "a new millisecond", func() bool { return time.Now().UnixMilli() > epochs[0] })
			}
		}
		for i, room := range rooms {
			ack := u.ok(eventHeartbeat, fmt.Sprintf(`{"epoch":%d,"patchState":{"n":%d}}`, epochs[i], i+1))
			want := fmt.Sprintf(`{"ok":true,"changed":true,"epoch":%d,"roomId":%q}`, epochs[i], room)
			if ack.text != want {
				t.Errorf("answered %s, want %s", ack.text, want)
			}
			if ack = u.ok(eventHeartbeat, fmt.Sprintf(`{"epoch":%d}`, epochs[i])); *ack.Changed || *ack.Epoch != epochs[i] {
				t.Errorf("without a patch it is answered %s", ack.text)
			}
		}
		for i, room := range rooms {
			if got := string(mustRead(t, n.service, room).Entries[0].State); got != fmt.Sprintf(`{"n":%d}`, i+1) {
				t.Errorf("the state in room %d is %s", i, got)
			}
		}
		u.refused(eventHeartbeat, fmt.Sprintf(`{"epoch":%d,"patchState":{"n":9}}`, epochs[0]-1), CodeStaleEpoch)
		u.refused(eventHeartbeat, `{"patchState":{"n":9}}`, CodeInvalidPayload)
	})
}

// TestHeartbeatOfOneOfSeveralRoomsKeepsAllMembers: the client of the original knows one epoch, and sends no roomId.
func TestHeartbeatOfOneOfSeveralRoomsKeepsAllMembers(t *testing.T) {
	t.Parallel()
	for name, payload := range map[string]string{"epoch": `{"epoch":%d}`, "patch without epoch": `{"patchState":{"n":1},"was":%d}`} {
		t.Run(name, func(t *testing.T) {
			n := startNodeFor(t, miniRedis(t), "PRESENCE_TTL_MS=300", "PRESENCE_REAPER_LOOKBACK_MS=600", "PRESENCE_REAPER_INTERVAL_MS=100", "PRESENCE_NODE_LEASE_MS=600")
			u := n.user(t)
			u.join("one", "ann", "{}")
			epoch := u.join("two", "ann", "{}").Self.Epoch
			for until := time.Now().Add(2 * time.Second); time.Now().Before(until); pause(t.Context(), 100*time.Millisecond) {
				u.call(eventHeartbeat, fmt.Sprintf(payload, epoch))
			}
			for _, room := range []string{"one", "two"} {
				if members := mustRead(t, n.service, room).Entries; len(members) != 1 || members[0].ConnID != u.id {
					t.Errorf("room %s has %v", room, members)
				}
			}
		})
	}
}
