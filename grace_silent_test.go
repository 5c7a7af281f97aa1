package main

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestASilentConnectionIsHeldBackOnlyWhileItsUserIsAway: a user with another connection in the room, of whatever node, that is
// not held back itself, is not away.
func TestASilentConnectionIsHeldBackOnlyWhileItsUserIsAway(t *testing.T) {
	for name, tc := range map[string]struct {
		others []string // users of further connections
		held   []string // connections that are held back already
		back   bool
	}{
		"alone":                        {nil, nil, false},
		"beside another user":          {[]string{"bob", "an", "anna"}, nil, false},
		"beside its own":               {[]string{"bob", "ann"}, nil, true},
		"beside one that is held back": {[]string{"ann"}, []string{"c0"}, false},
		"beside one that is and one that is not held back": {[]string{"ann", "ann"}, []string{"c0"}, true},
		"held back already": {[]string{"ann"}, []string{"silent"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, b backend) {
				s, other, room := startService(t, b.open(t), Options{Grace: time.Minute}), startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
				m := mustJoin(t, s, room, "ann", "silent", "{}")
				for i, user := range tc.others {
					mustJoin(t, other, room, user, fmt.Sprint("c", i), "{}")
				}
				for _, conn := range tc.held {
					must(t, hold(conn)(t.Context(), other, room))
				}
				keys := s.keysWithHeld(room, "silent", "c0", "c1", "c2")
				before := dump(t, s.rdb, keys...)
				back, err := s.hold(t.Context(), m, time.Minute, true)
				if err != nil || back != tc.back {
					t.Errorf("back is %t (%v), want %t", back, err, tc.back)
				}
				if tc.back {
					assertSame(t, "a hold that was not needed", before, dump(t, s.rdb, keys...))
				} else if m, err := s.find(t.Context(), room, "silent"); err != nil || !m.held() {
					t.Errorf("it is %v (%v), want it held back", m, err)
				}
				assertAgree(t, s, room)
			})
		})
	}
}

// startImpatientNode starts a node that gives up clients soon which do not answer its pings.
func startImpatientNode(t *testing.T, rdb redis.UniversalClient, settings ...string) *node {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{log: testLogger(t), serving: make(chan struct{}), listener: listener, redis: rdb, scripts: rdb}
	n.wire(testConfig(t, "", settings...))
	n.sockets.PingInterval, n.sockets.PingTimeout = 100*time.Millisecond, 500*time.Millisecond
	go n.serve()
	t.Cleanup(n.stop)
	return n
}

// TestTheHalfOpenConnectionOfAUserWhoIsBackEndsAsWithoutAGrace, and that of a user who is not is held back.
func TestTheHalfOpenConnectionOfAUserWhoIsBackEndsAsWithoutAGrace_G5(t *testing.T) {
	t.Parallel()
	for name, lossy := range map[string]bool{"while Redis answers": false, "while Redis refuses": true} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, b backend) {
				const grace = "PRESENCE_GRACE_MS=20000"
				far, room := startNodeFor(t, b, grace), uniqueRoom(t)
				rdb := &troubledRedis{UniversalClient: b.open(t)}
				near := startImpatientNode(t, rdb, grace)
				witness := far.member(t, room, "witness", "{}")
				first, alone := near.member(t, room, "ann", "{}"), near.member(t, room, "bob", "{}")
				far.member(t, room, "ann", "{}")
				if lossy {
					rdb.meets("hold", refuse)
					eventually(t, busy, "both ends are pending", func() bool { return near.pendingLeaves.size() == 2 })
					rdb.recover()
				}
				witness.sees(EventLeave, first.id)
				eventually(t, busy, "the connection of the other user is held back", func() bool {
					m, err := far.service.find(t.Context(), room, alone.id)
					return err == nil && m.held()
				})
				witness.settled(witness, room)
				witness.wantEvents(first.id, "join ann 1 {}", "leave ann 1 disconnected null")
				witness.wantEvents(alone.id, "join bob 1 {}")
				assertAgree(t, far.service, room)
			})
		})
	}
}

// TestClientsThatAreGivenUpEndAsSilent on each transport, because they do not answer a ping, or do not read.
func TestClientsThatAreGivenUpEndAsSilent(t *testing.T) {
	t.Parallel()
	ping := func(o *socketOptions) { o.PingInterval, o.PingTimeout = 20*time.Millisecond, 500*time.Millisecond }
	limit := func(o *socketOptions) { o.MaxUnsentBytes = 1000 }
	nothing := func(*testPeer) {}
	for name, tc := range map[string]struct {
		change func(*socketOptions)
		do     func(*testPeer)
	}{
		"no answer to a ping": {ping, nothing},
		"too much that it does not read": {limit, func(p *testPeer) {
			for p.app.ends.Load() == 0 {
				p.client.send(newFrame([]byte(`2["`), []byte(strings.Repeat("x", 64<<10)), []byte(`"]`)))
			}
		}},
	} {
		for _, transport := range []string{"websocket", "polling", "upgraded"} {
			t.Run(name+"/"+transport, func(t *testing.T) {
				app := &testApp{}
				x := startSockets(t, app, tc.change).talker(t, transport)
				x.say("40")
				x.hear()
				p := app.only(t)
				tc.do(p)
				eventually(t, patience, "it ended", func() bool { return app.ends.Load() == 1 })
				if got := endReason(p.reason.Load()); got != endSilent {
					t.Errorf("ended with %d, want %d", got, endSilent)
				}
			})
		}
	}
}
