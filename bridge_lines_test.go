package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

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
	return b.lines[lineEnd{master: master}]
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
