package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
)

// heardSink keeps what a bridge tells it.
type heardSink struct {
	mu        sync.Mutex
	confirmed map[string]int
	messages  map[string][]string
	run       int // messages since the last settled
	longest   int // run of messages
}

func newHeardSink() *heardSink {
	return &heardSink{confirmed: map[string]int{}, messages: map[string][]string{}}
}

func (s *heardSink) subscribed(room string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.confirmed[room]++
}

func (s *heardSink) message(room, payload string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages[room] = append(s.messages[room], payload)
	s.run++
	s.longest = max(s.longest, s.run)
}

func (s *heardSink) settled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run = 0
}

func (s *heardSink) confirmations(room string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.confirmed[room]
}

func (s *heardSink) heard(room string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages[room])
}

// quiet tells whether everything that was heard has been settled.
func (s *heardSink) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run == 0
}

// wire is one kind of Redis and of Pub/Sub.
type wire struct {
	backend
	rdb     redis.UniversalClient
	sharded bool
}

// eachWire runs the test on every backend, and with sharded Pub/Sub where there is one.
func eachWire(t *testing.T, body func(t *testing.T, w wire)) {
	t.Helper()
	eachBackend(t, func(t *testing.T, b backend) { body(t, wire{backend: b, rdb: b.open(t)}) })
	for name, start := range map[string]func(testing.TB) backend{"redis sharded": realRedis, "cluster sharded": redisCluster} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			body(t, wire{backend: b, rdb: b.open(t), sharded: true})
		})
	}
}

// bridge starts a bridge that ends with the test.
func (w wire) bridge(t testing.TB) (*bridge, *heardSink) {
	sink := newHeardSink()
	b := newBridge(w.rdb, w.sharded, aboutRooms, sink, testLogger(t))
	t.Cleanup(b.close)
	return b, sink
}

// publish sends a payload over a room's channel as the room's scripts do.
func (w wire) publish(t testing.TB, room, payload string) {
	t.Helper()
	command := "PUBLISH"
	if w.sharded {
		command = "SPUBLISH"
	}
	keys := keysOf(room)
	err := w.rdb.Eval(t.Context(), "return redis.call(ARGV[1], ARGV[2], ARGV[3])", []string{keys.meta()}, command, keys.events(), payload).Err()
	if err != nil {
		t.Fatal(err)
	}
}

// masters runs do on every server that holds data.
func (w wire) masters(t testing.TB, do func(ctx context.Context, rdb *redis.Client) error) {
	t.Helper()
	var err error
	switch rdb := w.rdb.(type) {
	case *redis.ClusterClient:
		err = rdb.ForEachMaster(t.Context(), do)
	case *redis.Client:
		err = do(t.Context(), rdb)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// listeners counts the subscriptions to the rooms' channels on all servers.
func (w wire) listeners(t testing.TB, rooms []string) map[string]int {
	t.Helper()
	channels := make([]string, len(rooms))
	for i, room := range rooms {
		channels[i] = keysOf(room).events()
	}
	var mu sync.Mutex
	sum := map[string]int{}
	w.masters(t, func(ctx context.Context, rdb *redis.Client) error {
		count := rdb.PubSubNumSub
		if w.sharded {
			count = rdb.PubSubShardNumSub
		}
		found, err := count(ctx, channels...).Result()
		mu.Lock()
		defer mu.Unlock()
		for i, channel := range channels {
			sum[rooms[i]] += int(found[channel])
		}
		return err
	})
	return sum
}

// cut ends the subscription connections of these bridges: by the server where it can, else by this side.
func (w wire) cut(t testing.TB, bridges ...*bridge) {
	t.Helper()
	if w.real {
		w.masters(t, func(ctx context.Context, rdb *redis.Client) error {
			return rdb.ClientKillByFilter(ctx, "TYPE", "pubsub").Err()
		})
		return
	}
	for _, b := range bridges {
		b.mu.Lock()
		for _, l := range b.lines {
			l.ps.Close()
		}
		b.mu.Unlock()
	}
}

// names gives n rooms of this test.
func names(t testing.TB, n int) []string {
	base := uniqueRoom(t)
	rooms := make([]string, n)
	for i := range rooms {
		rooms[i] = fmt.Sprintf("%s/%d", base, i)
	}
	return rooms
}

func subscribeAll(t testing.TB, b *bridge, sink *heardSink, rooms []string) {
	t.Helper()
	for _, room := range rooms {
		b.subscribe(room)
	}
	eventuallyConfirmed(t, sink, rooms, 0)
}

// eventuallyConfirmed waits until each room was confirmed more than so many times.
func eventuallyConfirmed(t testing.TB, sink *heardSink, rooms []string, more int) {
	t.Helper()
	eventually(t, 10*time.Second, "every room confirmed", func() bool {
		return !slices.ContainsFunc(rooms, func(room string) bool { return sink.confirmations(room) <= more })
	})
}

// assertFlows publishes a message in each room and waits until each of them was heard there, once.
func (w wire) assertFlows(t testing.TB, sink *heardSink, rooms []string, payload string) {
	t.Helper()
	for _, room := range rooms {
		w.publish(t, room, payload+room)
	}
	count := func(room string) (n int) {
		for _, heard := range sink.heard(room) {
			if heard == payload+room {
				n++
			}
		}
		return n
	}
	eventually(t, 10*time.Second, "a message of every room", func() bool {
		return sink.quiet() && !slices.ContainsFunc(rooms, func(room string) bool { return count(room) == 0 })
	})
	for _, room := range rooms {
		if n := count(room); n != 1 {
			t.Errorf("%d copies of a message of %q", n, room)
		}
	}
}

func TestABridgeBringsTheMessagesOfItsRooms_G1(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		b, sink := w.bridge(t)
		rooms := names(t, 3)
		mine, unknown, left := rooms[0], rooms[1], rooms[2]
		subscribeAll(t, b, sink, []string{mine, left})
		b.unsubscribe(left)
		eventually(t, 5*time.Second, "no subscription of the room that was left", func() bool { return w.listeners(t, rooms)[left] == 0 })
		var want []string
		for i := range 200 {
			w.publish(t, unknown, "of a room that nobody asked for")
			w.publish(t, left, "of a room that was left")
			w.publish(t, mine, fmt.Sprint(i))
			want = append(want, fmt.Sprint(i))
		}
		eventually(t, 5*time.Second, "the last message", func() bool { return len(sink.heard(mine)) >= len(want) && sink.quiet() })
		if got := sink.heard(mine); !slices.Equal(got, want) {
			t.Errorf("heard %q", got)
		}
		if len(sink.messages) != 1 {
			t.Errorf("messages of %d rooms, want 1", len(sink.messages))
		}
		if n := sink.confirmations(mine); n != 1 {
			t.Errorf("%d confirmations of one subscription", n)
		}
	})
}

// A room that is given up and wanted again at once is confirmed again: whoever wants it now has to hear that.
func TestASubscriptionThatIsWantedAgainIsConfirmedAgain_G3(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		b, sink := w.bridge(t)
		rooms := names(t, 50)
		subscribeAll(t, b, sink, rooms)
		for _, room := range rooms {
			before := sink.confirmations(room)
			b.unsubscribe(room)
			b.subscribe(room)
			eventuallyConfirmed(t, sink, []string{room}, before)
		}
		w.assertFlows(t, sink, rooms, "after that: ")
	})
}

func TestSubscribingAndUnsubscribingConcurrently(t *testing.T) {
	eachWire(t, func(t *testing.T, w wire) {
		b, sink := w.bridge(t)
		rooms := names(t, 60)
		wanted := make([]bool, len(rooms))
		var work sync.WaitGroup
		for from := range 4 {
			work.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(from)))
				for range 500 {
					i := from + 4*random.IntN(len(rooms)/4)
					if wanted[i] = random.IntN(2) == 0; wanted[i] {
						b.subscribe(rooms[i])
					} else {
						b.unsubscribe(rooms[i])
					}
				}
			})
		}
		work.Wait()
		var want []string
		for i, room := range rooms {
			if wanted[i] {
				want = append(want, room)
			}
		}
		eventually(t, 10*time.Second, "one subscription of each wanted room", func() bool {
			got := w.listeners(t, rooms)
			for i, room := range rooms {
				if (got[room] == 1) != wanted[i] || got[room] > 1 {
					return false
				}
			}
			return true
		})
		eventuallyConfirmed(t, sink, want, 0)
		w.assertFlows(t, sink, want, "after that: ")
	})
}

func TestABridgeCarriesThousandsOfRooms(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		b, sink := w.bridge(t)
		rooms := names(t, 2000)
		subscribeAll(t, b, sink, rooms)
		w.assertFlows(t, sink, rooms, "")
		for _, room := range rooms {
			b.unsubscribe(room)
		}
		eventually(t, 10*time.Second, "no subscription", func() bool {
			for _, n := range w.listeners(t, rooms) {
				if n > 0 {
					return false
				}
			}
			return true
		})
	})
}

func TestALostSubscriptionIsOpenedAgain_G3(t *testing.T) {
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		b, sink := w.bridge(t)
		rooms := names(t, 30)
		subscribeAll(t, b, sink, rooms)
		for round := range 5 {
			before := sink.confirmations(rooms[0])
			for _, room := range rooms {
				before = max(before, sink.confirmations(room))
			}
			w.cut(t, b)
			eventuallyConfirmed(t, sink, rooms, before)
			w.assertFlows(t, sink, rooms, fmt.Sprintf("round %d: ", round))
		}
	})
}

func TestRoomsOnEveryMasterHaveALineThere(t *testing.T) {
	w := wire{backend: redisCluster(t), sharded: true}
	w.rdb = w.open(t)
	b, sink := w.bridge(t)
	rooms := names(t, 60)
	subscribeAll(t, b, sink, rooms)
	b.mu.Lock()
	lines, at := len(b.lines), map[*line]int{}
	for _, l := range b.placed {
		at[l]++
	}
	b.mu.Unlock()
	if lines != 3 || len(at) != 3 {
		t.Errorf("%d lines, %d of them with rooms, want one to each of 3 masters", lines, len(at))
	}
}

func TestABridgeOutlivesARestartOfRedis_G3(t *testing.T) {
	p := spawnRedis(t)
	w := wire{backend: backend{url: p.url, real: true}}
	w.rdb = w.open(t)
	b, sink := w.bridge(t)
	rooms := names(t, 20)
	subscribeAll(t, b, sink, rooms)
	p.stop()
	late := rooms[0] + "/late"
	b.subscribe(late) // while there is nobody to ask
	b.unsubscribe(rooms[19])
	p.restart()
	eventuallyConfirmed(t, sink, rooms[:19], 1)
	eventuallyConfirmed(t, sink, []string{late}, 0)
	w.assertFlows(t, sink, append(rooms[:19:19], late), "")
	if n := w.listeners(t, rooms)[rooms[19]]; n != 0 {
		t.Errorf("%d subscriptions of a room that was left during the outage", n)
	}
}

// A server that hangs keeps its connections open: only silence tells.
func TestAServerThatHangsIsNoticed_G3(t *testing.T) {
	takesLong(t)
	t.Parallel()
	p := spawnRedis(t)
	w := wire{backend: backend{url: p.url, real: true}}
	w.rdb = w.open(t)
	b, sink := w.bridge(t)
	rooms := names(t, 5)
	subscribeAll(t, b, sink, rooms)
	first := b.openLine("")
	p.signal(syscall.SIGSTOP)
	eventually(t, 4*subscriptionProbe, "the line given up", func() bool { return b.openLine("") != first })
	p.signal(syscall.SIGCONT)
	eventuallyConfirmed(t, sink, rooms, 1)
	w.assertFlows(t, sink, rooms, "")
}

// openLine is the line to a master at this moment.
func (b *bridge) openLine(master string) *line {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines[master]
}

func TestAProbedSubscriptionStaysOpen(t *testing.T) {
	takesLong(t)
	t.Parallel()
	p := spawnRedis(t)
	w := wire{backend: backend{url: p.url, real: true}}
	w.rdb = w.open(t)
	ps := w.rdb.Subscribe(t.Context())
	confirmed, ponged := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		pongs := 0
		ended <- receive(ctx, ps, func(item any) {
			switch item.(type) {
			case *redis.Subscription:
				close(confirmed)
			case *redis.Pong:
				if pongs++; pongs == 2 {
					close(ponged)
				}
			}
		})
	}()
	if err := ps.Subscribe(t.Context(), keysOf(uniqueRoom(t)).events()); err != nil {
		t.Fatal(err)
	}
	<-confirmed
	select {
	case <-ponged:
	case err := <-ended:
		t.Fatalf("a silent subscription ended: %v", err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("it ended without an error")
	}
}

func TestASlotThatMovesTakesItsRoomsAlong_G3(t *testing.T) {
	t.Parallel()
	needRedis(t)
	c, err := startCluster()
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove()
	w := wire{backend: backend{url: c.url, real: true, cluster: true}, sharded: true}
	w.rdb = w.open(t)
	s := startService(t, w.rdb, Options{Sharded: true})
	b, sink := w.bridge(t)
	rooms := names(t, 20)
	subscribeAll(t, b, sink, rooms)
	moving := rooms[0]
	m := mustJoin(t, s, moving, "ann", "a", "{}")
	eventually(t, 5*time.Second, "the join", func() bool { return len(sink.heard(moving)) == 1 })
	confirmed := sink.confirmations(moving)
	moveSlot(t, c, keysOf(moving).meta())
	eventuallyConfirmed(t, sink, []string{moving}, confirmed)
	if _, _, err := s.heartbeat(t.Context(), &m, raw(`{"n":1}`), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the update", func() bool { return len(sink.heard(moving)) == 2 })
	w.assertFlows(t, sink, rooms[1:], "")
}

func TestAClosedBridgeLeavesNothing(t *testing.T) {
	eachWire(t, func(t *testing.T, w wire) {
		rooms := names(t, 20)
		before := goroutines()
		sink := newHeardSink()
		b := newBridge(w.rdb, w.sharded, aboutRooms, sink, testLogger(t))
		subscribeAll(t, b, sink, rooms)
		w.cut(t, b) // it may be closed at any moment
		b.close()
		if leaked := leakedGoroutines(before, 5*time.Second); leaked != "" {
			t.Errorf("left behind:\n%s", leaked)
		}
		eventually(t, 5*time.Second, "no subscription", func() bool { return w.listeners(t, rooms)[rooms[0]] == 0 })
	})
}

// stuckSink holds up the dispatcher until it may go on.
type stuckSink struct {
	*heardSink
	free chan struct{}
}

func (s stuckSink) subscribed(room string) {
	s.heardSink.subscribed(room)
	<-s.free
}

// However many messages wait, the joins among them are answered, and the frames written, after a bounded number.
func TestABatchOfMessagesIsBounded(t *testing.T) {
	b := miniRedis(t)
	sink := stuckSink{newHeardSink(), make(chan struct{})}
	bridge := newBridge(b.open(t), false, aboutRooms, sink, testLogger(t))
	defer bridge.close()
	for range bridgeBuffer {
		bridge.pass(bridgeItem{room: "r", payload: "x"})
	}
	bridge.pass(bridgeItem{room: "r", subscribed: true})
	for range bridgeBuffer - 1 {
		bridge.pass(bridgeItem{room: "r", payload: "x"})
	}
	close(sink.free)
	eventually(t, 5*time.Second, "all messages", func() bool { return len(sink.heard("r")) == 2*bridgeBuffer-1 && sink.quiet() })
	if sink.longest > dispatchBatch {
		t.Errorf("%d messages in a row", sink.longest)
	}
}

func TestALibrarySubscriptionGoesOnAfterACut(t *testing.T) {
	eachWire(t, func(t *testing.T, w wire) {
		if !w.real || w.sharded {
			return // miniredis cannot cut, sharded Pub/Sub has no patterns
		}
		s, room := startService(t, w.rdb, Options{}), uniqueRoom(t)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		heard := 0
		err := s.Subscribe(ctx, func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.RoomID == room {
				heard++
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		w.cut(t)
		n := 0
		eventually(t, 10*time.Second, "an event after the cut", func() bool {
			mustJoin(t, s, room, "ann", fmt.Sprint("c", n), "{}")
			n++
			mu.Lock()
			defer mu.Unlock()
			return heard > 0
		})
		cancel()
	})
}

func TestALibrarySubscriptionThatCannotBe(t *testing.T) {
	sharded := startService(t, miniRedis(t).open(t), Options{Sharded: true})
	if err := sharded.Subscribe(t.Context(), func(Event) {}); err == nil {
		t.Error("sharded Pub/Sub has no patterns, and says nothing")
	}
	b := miniRedis(t)
	s := startService(t, b.open(t), Options{})
	b.mini.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Subscribe(ctx, func(Event) {}); !isUnavailable(err) {
		t.Errorf("without Redis: %v", err)
	}
}

// payloadOf writes a message as lua/room.lua does.
func payloadOf(m message) string {
	reason := ""
	if m.Reason != "" {
		reason = fmt.Sprintf(`,"reason":"%s"`, m.Reason)
	}
	return fmt.Sprintf(`{"prev":%d,"rev":%d,"ts":%d,"epoch":%d,"userConns":%d,"type":"%s","connId":"%s","userId":%s,"roomId":%s%s,"state":%s}`,
		m.prev, m.Rev, m.TS, m.Epoch, m.UserConns, m.Type, m.ConnID, literal(m.UserID), literal(m.RoomID), reason, m.State)
}

// What the scripts write is read, and is what payloadOf writes: the tests with payloadOf speak of real messages.
func TestMessagesOfTheScriptsAreRead(t *testing.T) {
	t.Parallel()
	texts := []string{"plain", `q"u\o\"te`, `{}[],:"`, `","state":{}}`, "ünï 漢字 😀", `\u0041`, "ends with \\"}
	states := []string{"{}", `{"a":[],"b":{}}`, `{"n":1234567890123456789}`, `{"x":"}"}`, `{"s":"\\\"\u0000\ud800","state":{"state":null}}`}
	eachWire(t, func(t *testing.T, w wire) {
		s := startService(t, w.rdb, Options{Sharded: w.sharded})
		b, sink := w.bridge(t)
		for i, text := range texts {
			room := uniqueRoom(t) + text
			subscribeAll(t, b, sink, []string{room})
			m := mustJoin(t, s, room, text, "conn_-1", states[i%len(states)])
			if _, _, err := s.heartbeat(t.Context(), &m, raw(`{"more":1}`), 0); err != nil {
				t.Fatal(err)
			}
			mustLeave(t, s, room, "conn_-1")
			eventually(t, 5*time.Second, "three messages", func() bool { return len(sink.heard(room)) == 3 })
			for j, payload := range sink.heard(room) {
				parsed, ok := parseMessage(payload)
				if !ok || payloadOf(parsed) != payload {
					t.Errorf("read as %+v: %s", parsed, payload)
				}
				state := []string{string(raw(states[i%len(states)])), string(m.State), "null"}[j]
				if parsed.RoomID != room || parsed.UserID != text || parsed.ConnID != "conn_-1" || string(parsed.State) != state {
					t.Errorf("room %q user %q conn %q state %s", parsed.RoomID, parsed.UserID, parsed.ConnID, parsed.State)
				}
			}
		}
	})
}

func TestParseMessage(t *testing.T) {
	good := payloadOf(gone(10, 11, "a"))
	cases := map[string]struct {
		payload string
		ok      bool
	}{
		"as written":            {good, true},
		"the state is opaque":   {strings.Replace(good, "null", `{"a":"}}"}`, 1), true},
		"without a reason":      {strings.Replace(good, `,"reason":"left"`, "", 1), true},
		"the first of a room":   {strings.Replace(good, `"prev":10`, `"prev":0`, 1), true},
		"empty":                 {"", false},
		"cut off":               {good[:len(good)-1], false},
		"with more behind":      {good + " ", false},
		"with space":            {strings.Replace(good, ":", ": ", 1), false},
		"another order":         {`{"rev":11,"prev":10}`, false},
		"no number":             {strings.Replace(good, `"rev":11`, `"rev":x`, 1), false},
		"a negative number":     {strings.Replace(good, `"rev":11`, `"rev":-11`, 1), false},
		"beyond 64 bits":        {strings.Replace(good, `"rev":11`, `"rev":99999999999999999999`, 1), false},
		"an unknown type":       {strings.Replace(good, `"leave"`, `"jump"`, 1), false},
		"going back":            {strings.Replace(good, `"prev":10`, `"prev":12`, 1), false},
		"going nowhere":         {strings.Replace(good, `"prev":10`, `"prev":11`, 1), false},
		"a literal without end": {strings.Replace(good, `"A"`, `"A`, 1), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			m, ok := parseMessage(c.payload)
			if ok != c.ok {
				t.Fatalf("read %v: %s", ok, c.payload)
			}
			if ok && payloadOf(m) != c.payload {
				t.Errorf("read as %s, was %s", payloadOf(m), c.payload)
			}
		})
	}
}

// FuzzParseMessage reads arbitrary bytes; what it takes for a message survives being written and read again.
func FuzzParseMessage(f *testing.F) {
	f.Add(payloadOf(joined(1, 2, "a")))
	f.Add(payloadOf(gone(10, 11, "a")))
	f.Add(`{"prev":0,"rev":1,"ts":2,"epoch":3,"userConns":4,"type":"update","connId":"c","userId":"\"\\","roomId":"\\","state":{"a":"}"}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		m, ok := parseMessage(payload)
		if !ok || !utf8.ValidString(payload) || strings.ContainsFunc(payload, unicode.IsControl) {
			return
		}
		again, ok := parseMessage(payloadOf(m))
		if !ok || !reflect.DeepEqual(again, m) {
			t.Errorf("%q is read as %+v, and then as %+v", payload, m, again)
		}
	})
}

// FuzzMessageRoundTrip writes a message of any ids and state, and reads it.
func FuzzMessageRoundTrip(f *testing.F) {
	f.Add(int64(1), int64(2), "ann", "room", `{"a":1}`)
	f.Add(int64(1), int64(2), `a"n\n`, `","reason":"left","state":`, `{"}":"{"}`)
	f.Fuzz(func(t *testing.T, prev, rev int64, user, room, state string) {
		if checkID("userId", user, 1000) != nil || checkID("roomId", room, 1000) != nil || prev < 0 || rev <= prev || state == "" {
			return // no state is empty: it is JSON
		}
		want := message{prev, Event{Type: EventUpdate, RoomID: room, UserID: user, ConnID: "c", State: raw(state), TS: rev, Epoch: rev, Rev: rev, UserConns: 3}}
		if got, ok := parseMessage(payloadOf(want)); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("written %+v, read %+v", want, got)
		}
	})
}

// mutedRedis loses what is published, if it is told to.
type mutedRedis struct {
	redis.UniversalClient
	mute atomic.Bool
}

func (r *mutedRedis) Publish(ctx context.Context, channel string, message any) *redis.IntCmd {
	if r.mute.Load() {
		return redis.NewIntCmd(ctx)
	}
	return r.UniversalClient.Publish(ctx, channel, message)
}

func TestEveryLineHearsItsProbe_G3(t *testing.T) {
	eachWire(t, func(t *testing.T, w wire) {
		b, sink := w.bridge(t)
		subscribeAll(t, b, sink, names(t, 20))
		eventually(t, 10*time.Second, "every line has heard its probe", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, l := range b.lines {
				if !l.heardAt.After(l.opened) {
					return false
				}
			}
			return true
		})
	})
}

// TestASubscriptionThatBringsNothingIsNoticed_G3 has a connection that lives, and answers a PING, but brings no messages: silence
// is no proof of health.
func TestASubscriptionThatBringsNothingIsNoticed_G3(t *testing.T) {
	t.Parallel()
	rdb := &mutedRedis{UniversalClient: miniRedis(t).open(t)}
	n := startNodeOn(t, rdb)
	eventually(t, 10*time.Second, "the node without rooms is ready", func() bool {
		return n.unready(t.Context()) == nil && n.bridge.openLine("") != nil
	})
	first := n.bridge.openLine("")
	rdb.mute.Store(true)
	start := time.Now()
	eventually(t, 4*lineOverdue, "not ready", func() bool { return n.unready(t.Context()) != nil })
	t.Logf("noticed after %v", time.Since(start).Round(time.Millisecond))
	eventually(t, 4*lineOverdue, "another subscription", func() bool {
		l := n.bridge.openLine("")
		return l != nil && l != first
	})
	if n.unready(t.Context()) == nil {
		t.Error("a new subscription that has heard nothing counts as healthy")
	}
	rdb.mute.Store(false)
	eventually(t, 4*lineOverdue, "ready", func() bool { return n.unready(t.Context()) == nil })
}

// Who asked first is subscribed first, so that of many who come at once some are served in time.
func TestSubscriptionsAreMadeInTheOrderOfRequests(t *testing.T) {
	b := &bridge{wanted: map[string]bool{}, changed: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprint(i))
		b.subscribe(want[i])
	}
	b.unsubscribe(want[7])
	if got := b.takeChanged(); !slices.Equal(got, want) {
		t.Errorf("the order is %q", got)
	}
	if b.subscribe("more"); !slices.Equal(b.takeChanged(), []string{"more"}) {
		t.Error("what was taken is taken again")
	}
}
