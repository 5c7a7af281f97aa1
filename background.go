package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// A loop starts anew so long after a panic. The pause doubles, up to the maximum, with each panic that comes before the loop
// has run for the maximum: what panics every time must not keep the process busy.
const (
	restartPause    = 100 * time.Millisecond
	maxRestartPause = 5 * time.Second
)

// background are the goroutines of a part, and a context that ends with them.
type background struct {
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

// newBackground is for a part that is being made. The part calls end when it is closed.
func newBackground() *background {
	b := &background{}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// keep starts a loop, which keepRunning keeps until end.
func (b *background) keep(log *slog.Logger, name string, run, reset func()) {
	b.work.Go(func() { keepRunning(b.ctx, log, name, run, reset) })
}

// every calls f each period, until end.
func (b *background) every(period time.Duration, f func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// end ends the context and waits for the goroutines.
func (b *background) end() {
	b.stop()
	b.work.Wait()
}

// keepRunning calls run until it returns or ctx ends, and anew after each panic, which it logs: a mistake in one loop stops
// neither the process nor the loop. Before each further call, reset restores what the panic may have left half done; nil =
// there is no such state.
func keepRunning(ctx context.Context, log *slog.Logger, name string, run, reset func()) {
	wait := restartPause
	for began := time.Now(); panics(log, name, run) && ctx.Err() == nil; began = time.Now() {
		if time.Since(began) >= maxRestartPause {
			wait = restartPause
		}
		pause(ctx, wait)
		wait = min(2*wait, maxRestartPause)
		if reset != nil {
			panics(log, name, reset)
		}
	}
}

// panics calls f, and logs and tells whether it panicked.
func panics(log *slog.Logger, name string, f func()) (panicked bool) {
	panicked = true
	defer logPanic(log, name)
	f()
	return false
}

// logPanic is to be deferred. It ends a panic and logs it.
func logPanic(log *slog.Logger, name string) {
	if p := recover(); p != nil {
		log.Error("panic in the background", "in", name, "panic", p, "stack", string(debug.Stack()))
	}
}

// crew are goroutines that share a piece of work. A panic of one of them comes up in who waits for them.
type crew struct {
	work sync.WaitGroup
	fell atomic.Pointer[string] // the first panic and its stack
}

func (c *crew) Go(f func()) { c.work.Go(func() { c.do(f) }) }

// do calls f in the calling goroutine, which goes on after a panic of f.
func (c *crew) do(f func()) {
	defer func() {
		if p := recover(); p != nil {
			c.fell.CompareAndSwap(nil, new(fmt.Sprintf("%v\n%s", p, debug.Stack())))
		}
	}()
	f()
}

// Wait returns once all have. It panics if one of them did.
func (c *crew) Wait() {
	c.work.Wait()
	if p := c.fell.Load(); p != nil {
		panic(*p)
	}
}

// wakeup wakes one goroutine. It is remembered while nobody waits; more than one at a time are one.
type wakeup chan struct{}

func newWakeup() wakeup { return make(wakeup, 1) }

func (w wakeup) send() {
	select {
	case w <- struct{}{}:
	default:
	}
}
