package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// embeddedRedis is a Redis inside this process, for a first try on a machine that
// has none. Nothing of it is kept.
type embeddedRedis struct {
	url   string
	mini  *miniredis.Miniredis
	stop  context.CancelFunc
	ended chan struct{}
}

// startEmbeddedRedis listens on the address, such as "localhost:6379".
func startEmbeddedRedis(addr string) (*embeddedRedis, error) {
	mini := miniredis.NewMiniRedis()
	if err := mini.StartAddr(addr); err != nil {
		return nil, fmt.Errorf("embed a Redis: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	e := &embeddedRedis{url: "redis://" + mini.Addr(), mini: mini, stop: stop, ended: make(chan struct{})}
	mini.SetTime(time.Now())
	mini.ClockTTL(true)
	go func() {
		defer close(e.ended)
		e.driveClock(ctx)
	}()
	return e, nil
}

// driveClock moves TIME, and with it the age of the keys, in steps of 10 ms. A clock
// that runs by itself would cost a pass over all keys with every access instead of
// with every step, and would go on within a script, where that of Redis stands still.
func (e *embeddedRedis) driveClock(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.mini.SetTime(time.Now())
		}
	}
}

// close cuts all clients off and forgets everything.
func (e *embeddedRedis) close() {
	e.stop()
	<-e.ended
	e.mini.Close()
}

// redisListening tells whether anything accepts connections at the address.
func redisListening(ctx context.Context, addr string) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close() // it was only to see that somebody is there
	return true
}
