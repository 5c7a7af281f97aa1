package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

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
