package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

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

func TestAClosedBridgeLeavesNothing(t *testing.T) {
	eachWire(t, func(t *testing.T, w wire) {
		rooms := names(t, 20)
		before := goroutines()
		sink := newHeardSink()
		b := newBridge(w.rdb, w.sharded, aboutRooms, testLogger(t), sink)
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
	bridge := newBridge(b.open(t), false, aboutRooms, testLogger(t), sink)
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
