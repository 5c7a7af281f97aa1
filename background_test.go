package main

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// trap panics when it is stepped on the first time, and counts the steps.
type trap struct{ steps atomic.Int64 }

func (tr *trap) step() {
	if tr.steps.Add(1) == 1 {
		panic("injected")
	}
}

// goesOn waits until what has panicked works again.
func (tr *trap) goesOn(t *testing.T) {
	t.Helper()
	eventually(t, patience, "it panicked and went on", func() bool { return tr.steps.Load() > 1 })
}

func TestALoopThatPanicsStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &lockedBuffer{}
		log := slog.New(slog.NewTextHandler(out, nil))
		var runs, resets int
		began := time.Now()
		keepRunning(t.Context(), log, "loop", func() {
			if runs++; runs <= 3 {
				panic("injected")
			}
		}, func() {
			if resets++; resets == 2 {
				panic("the state is bad as well")
			}
		})
		if took := time.Since(began); runs != 4 || resets != 3 || took != (1+2+4)*restartPause {
			t.Errorf("%d runs and %d resets in %v", runs, resets, took)
		}
		if text := out.String(); strings.Count(text, "injected") != 3 || !strings.Contains(text, "in=loop") || !strings.Contains(text, "background_test.go") {
			t.Errorf("the log has %s", text)
		}
		began, runs = time.Now(), 0
		keepRunning(t.Context(), log, "loop", func() {
			switch runs++; {
			case runs == 20:
				pause(t.Context(), maxRestartPause) // it works for a while
				panic("injected")
			case runs < 22:
				panic("injected")
			}
		}, nil)
		full := 14 // pauses of maxRestartPause, after 6 that double, and with the time that it worked
		if took := time.Since(began); took != (1+2+4+8+16+32)*restartPause+time.Duration(full)*maxRestartPause+(1+2)*restartPause {
			t.Errorf("21 panics took %v", took)
		}
		ctx, stop := context.WithCancel(t.Context())
		keepRunning(ctx, log, "loop", func() { stop(); panic("at the end") }, func() { t.Error("it starts anew after its end") })
	})
}

func TestAPanicOfACrewComesUpInWhoWaits(t *testing.T) {
	var did atomic.Int64
	panicked := panics(testLogger(t), "crew", func() {
		var c crew
		c.Go(func() {
			for i := range 3 {
				c.do(func() {
					did.Add(1)
					if i == 1 {
						panic("injected")
					}
				})
			}
		})
		c.Go(func() { did.Add(1) })
		c.Wait()
		t.Error("it returned")
	})
	if !panicked || did.Load() != 4 {
		t.Errorf("panicked %t, %d of 4", panicked, did.Load())
	}
	each([]int{1, 2, 3}, func(*int) { did.Add(1) })
	if did.Load() != 7 {
		t.Error("a crew that does not panic")
	}
	for name, f := range map[string]func(){
		"each":       func() { each(make([]int, 100), func(*int) { panic("injected") }) }, // more than the crew
		"inParallel": func() { _ = inParallel(8, 100, func(int) error { panic("injected") }) },
	} {
		if !panics(testLogger(t), name, f) {
			t.Errorf("%s did not panic", name)
		}
	}
}

// TestTheNodesLoopsGoOnAfterAPanic in the call of a script, each where it is made.
func TestTheNodesLoopsGoOnAfterAPanic(t *testing.T) {
	t.Parallel()
	takesLong(t)
	for _, script := range []string{"probe", "claim_rooms", "overdue", "claim_nodes", "renew_lease", "pulse", "read", "restore", "unindex_user"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			b := miniRedis(t)
			rdb := &troubledRedis{UniversalClient: b.open(t)}
			n := startNodeOn(t, rdb, "PRESENCE_TTL_MS=1000", "PRESENCE_REAPER_LOOKBACK_MS=1500", "PRESENCE_REAPER_INTERVAL_MS=100", "PRESENCE_NODE_LEASE_MS=1000")
			u := n.member(t, "room", "ann", `{"a":1}`)
			n.member(t, "room", "silent", "{}")
			var tr trap
			rdb.meets(script, func(ctx context.Context, call func(context.Context) *redis.Cmd) *redis.Cmd {
				tr.step()
				return call(ctx)
			})
			switch script {
			case "read":
				u.join("another", "ann", "{}")
			case "restore":
				b.mini.FlushAll()
			case "unindex_user":
				n.member(t, "another", "bob", "{}").ok(eventLeave, "")
			}
			tr.goesOn(t)
			eventually(t, 3*patience, "the silent one has left, and the other is there", func() bool {
				u.call(eventHeartbeat, "{}")
				ack := u.call(eventGet, inRoom("room", ""))
				return ack.OK && ack.Count == 1 && len(ack.Snapshot) == 1 && ack.Snapshot[0].ConnID == u.id
			})
		})
	}
}

func TestAWatchedUserIsLookedAtAgainAfterAPanic(t *testing.T) {
	rdb := &troubledRedis{UniversalClient: miniRedis(t).open(t)}
	n := startNodeOn(t, rdb)
	w, _ := n.watchUsers(t, "ann")
	var tr trap
	rdb.meets("places", func(ctx context.Context, call func(context.Context) *redis.Cmd) *redis.Cmd {
		tr.step()
		return call(ctx)
	})
	n.member(t, "room", "ann", "{}")
	w.hears("ann", true)
	tr.goesOn(t)
}

// trappedSink is a sink whose parts may panic.
type trappedSink struct {
	onMessage func()
	mu        sync.Mutex
	times     int
	heard     []string
}

func TestABridgeGoesOnAfterAPanic(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		for _, where := range []string{"sink", "reader", "placing"} {
			t.Run(where, func(t *testing.T) {
				rdb, room := b.open(t), uniqueRoom(t)
				var tr trap
				at := func(place string) {
					if place == where {
						tr.step()
					}
				}
				sink := &trappedSink{onMessage: func() { at("sink") }}
				about := topic{
					channel: func(room string) string { at("placing"); return aboutRooms.channel(room) },
					id: func(channel string) (string, bool) {
						id, ok := aboutRooms.id(channel)
						if ok && sink.subscriptions() > 0 {
							at("reader")
						}
						return id, ok
					},
				}
				bridge := newBridge(rdb, false, about, testLogger(t), sink)
				t.Cleanup(bridge.close)
				bridge.subscribe(room)
				publish := func(text string) { must(t, rdb.Publish(t.Context(), aboutRooms.channel(room), text).Err()) }
				eventually(t, patience, "subscribed", func() bool { return sink.subscriptions() > 0 })
				publish("first")
				if where != "placing" {
					eventually(t, patience, "the room is to be read anew", func() bool { return sink.subscriptions() > 1 })
				}
				publish("second")
				eventually(t, patience, "it hears again", func() bool { return sink.has("second") })
				tr.goesOn(t)
			})
		}
	})
}

func (s *trappedSink) subscribed(string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times++
}

func (s *trappedSink) message(_, payload string) {
	s.onMessage()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, payload)
}

func (s *trappedSink) settled() {}

func (s *trappedSink) subscriptions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.times
}

func (s *trappedSink) has(payload string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.heard {
		if text == payload {
			return true
		}
	}
	return false
}

// trappedSockets panic at the first broadcast.
type trappedSockets struct{ trap }

func (s *trappedSockets) broadcast(_, _ []string, _ frame) { s.step() }

func TestTheBroadcasterGoesOnAfterAPanic(t *testing.T) {
	rdb, local := miniRedis(t).open(t), &trappedSockets{}
	b, other := newBroadcaster(rdb, local, testLogger(t)), newBroadcaster(rdb, &trappedSockets{}, testLogger(t))
	t.Cleanup(func() { b.close(); other.close() })
	eventually(t, patience, "it delivers again", func() bool {
		message, err := encodeMessage(other.uid, []string{"room"}, "event", nil)
		must(t, err)
		must(t, rdb.Publish(t.Context(), adapterChannel+"room#", message).Err())
		return local.steps.Load() > 1
	})
}

// trappedTransport panics at the first request.
type trappedTransport struct {
	trap
	http.RoundTripper
}

func (tr *trappedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.step()
	return tr.RoundTripper.RoundTrip(r)
}

func TestTheWebhookGoesOnAfterAPanic(t *testing.T) {
	t.Parallel()
	receiver := receiveHooks(t)
	h := newWebhook(receiver.URL, hookSecret, usualHookTimes(), nil, testLogger(t))
	tr := &trappedTransport{RoundTripper: http.DefaultTransport}
	h.client.Transport = tr
	h.changed("room", []Change{{Type: EventJoin, User: "ann", Rev: 1, TS: 1, UserChanged: true}})
	eventually(t, patience, "the event is told", func() bool { return len(receiver.of("room")) == 1 })
	tr.goesOn(t)
	if lost := h.close(t.Context()); lost != 0 {
		t.Errorf("%d events are lost", lost)
	}
}
