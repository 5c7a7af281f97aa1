package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// BenchmarkDispatch brings updates of 100 rooms with 50 local sockets each to the dispatchers of a node, one for each processor,
// as their subscription connections do, without Redis and without the writes to the sockets:
//
//	go test -run '^$' -bench Dispatch -cpu 1,2 .
func BenchmarkDispatch(b *testing.B) {
	const rooms, sockets = 100, 50
	all := &bridge{background: newBackground()}
	defer all.end()
	h := newHub(hubOptions{
		source: &fakeSource{}, encode: encoders{event: presenceFrame}, dispatcherCount: runtime.GOMAXPROCS(0),
		connect: func(sinks []bridgeSink) subscriptions {
			for _, sink := range sinks {
				d := bridgeDispatcher{sink, make(chan bridgeItem, bridgeBuffer)}
				all.dispatchers = append(all.dispatchers, d)
				all.work.Go(func() { d.loop(all.ctx) })
			}
			return &fakeSubscriptions{}
		},
		log: testLogger(b),
	})
	defer h.close()
	var receivers []*countedReceiver
	feeds := make([][]string, len(all.dispatchers))
	for i := range rooms {
		id := fmt.Sprint("room", i)
		feeds[all.dispatcherOf(id)] = append(feeds[all.dispatcherOf(id)], id)
		r := h.acquire(id)
		r.check()
		for range sockets {
			to := &countedReceiver{}
			receivers = append(receivers, to)
			if err := r.admit(b.Context(), newWaiter(0, to, asWatcher, modeAll, func(*view) frameParts { return nil })); err != nil {
				b.Fatal(err)
			}
		}
	}
	begin := cpu(b)
	b.ResetTimer()
	var feeding sync.WaitGroup
	for i, mine := range feeds {
		feeding.Go(func() { feedUpdates(all.dispatchers[i], mine, b.N*len(mine)/rooms) })
	}
	feeding.Wait()
	eventually(b, patience, "all is dispatched", func() bool {
		for _, d := range all.dispatchers {
			if len(d.incoming) > 0 {
				return false
			}
		}
		return true
	})
	b.StopTimer()
	used := cpu(b) - begin
	delivered := 0
	for _, to := range receivers {
		to.mu.Lock()
		delivered += to.frames
		to.mu.Unlock()
	}
	b.ReportMetric(float64(delivered)/b.Elapsed().Seconds(), "deliveries/s")
	b.ReportMetric(float64(used)/float64(delivered), "cpu-ns/delivery")
}

// feedUpdates brings so many updates of the rooms in turn.
func feedUpdates(d bridgeDispatcher, rooms []string, updates int) {
	state := json.RawMessage(fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", 200)))
	for i := range updates {
		room, rev := rooms[i%len(rooms)], int64(i/len(rooms)+1)
		d.incoming <- bridgeItem{room: room, payload: payloadOf(message{rev - 1, Event{Type: EventUpdate, RoomID: room,
			ConnID: "c", UserID: "u", Rev: rev, Epoch: 1, TS: rev, UserConns: 1, State: state}})}
	}
}

// countedReceiver queues frames as an outbox does, and drops them instead of writing them.
type countedReceiver struct {
	mu       sync.Mutex
	queued   [][]byte
	promised bool
	frames   int
}

func (c *countedReceiver) ID() string { return "" }

func (c *countedReceiver) queue(f frame, _ memberUpdate) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queued = append(c.queued, f)
	first := !c.promised
	c.promised = true
	return first
}

func (c *countedReceiver) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames += len(c.queued)
	clear(c.queued)
	c.queued, c.promised = c.queued[:0], false
}

func (c *countedReceiver) hold() func(frameParts) { return func(frameParts) {} }
