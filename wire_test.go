package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

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
	b := newBridge(w.rdb, w.sharded, aboutRooms, testLogger(t), sink)
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
