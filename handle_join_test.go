package main

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// distant is a way to Redis on which each answer takes some time longer, however many are under way.
func distant(t *testing.T, addr string, by time.Duration) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		work.Wait()
	})
	work.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() { delay(t.Context(), near, addr, by) })
		}
	})
	return listener.Addr().String()
}

// delay carries what two ends of a connection say, and what the far one says later.
func delay(ctx context.Context, near net.Conn, addr string, by time.Duration) {
	defer near.Close()
	far, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	go func() {
		defer far.Close()
		_, _ = io.Copy(far, near)
	}()
	type part struct {
		at   time.Time
		text []byte
	}
	parts := make(chan part, 1024)
	go func() {
		defer close(parts)
		for {
			text := make([]byte, 1<<14)
			n, err := far.Read(text)
			if n > 0 {
				parts <- part{time.Now().Add(by), text[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range parts {
		pause(ctx, time.Until(p.at))
		if _, err := near.Write(p.text); err != nil {
			_ = far.Close()
		}
	}
}

// The first join of a node in a room takes two round trips to Redis, one after the other: its subscription and its indices, and
// then what it reads and the join itself.
func TestJoinTakesTwoRoundTrips(t *testing.T) {
	t.Parallel()
	const trip = 150 * time.Millisecond
	p := spawnRedis(t)
	url := "redis://" + distant(t, strings.TrimPrefix(p.url, "redis://"), trip)
	n := startNodeFor(t, backend{url: url, real: true})
	n.member(t, uniqueRoom(t), "first", "{}") // scripts are loaded, and connections open
	for try := range 5 {
		began := time.Now()
		n.member(t, uniqueRoom(t), "ann", "{}")
		took := time.Since(began)
		if took >= 2*trip && took < 5*trip/2 {
			return
		}
		t.Logf("try %d took %v", try, took)
	}
	t.Error("the first join of a room does not take two round trips")
}
