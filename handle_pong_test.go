package main

import (
	"net"
	"testing"
	"time"
)

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
