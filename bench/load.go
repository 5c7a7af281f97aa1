package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	connecting = 64               // clients that connect, or join, at the same time
	settleTime = 10 * time.Second // for what was sent to arrive everywhere
)

// room is what the clients of one room know of each other.
type room struct {
	id      string
	members []*client
}

// tally counts what was done.
type tally struct{ answers, joins, events int64 }

// load is all clients of a trial.
type load struct {
	mode    mode
	clients []*client
	rooms   []*room
	meter   *meter
	epoch   time.Time // of now

	answers, joins, events atomic.Int64
	open                   atomic.Int64 // requests without an answer yet
	driving                atomic.Bool  // the next request follows the answer
	refused                atomic.Int64
	answer, delivery       histogram

	refusal sync.Once
	closing atomic.Bool
	broken  chan error // holds the first failure of a connection
	readers sync.WaitGroup

	measured measurement
	found    faults
}

// newLoad lays out the clients: neighbours in the list are in different rooms.
func newLoad(m mode, meter *meter) *load {
	l := &load{mode: m, meter: meter, epoch: time.Now(), broken: make(chan error, 1)}
	run := rand.Text()[:8]
	for i := range m.rooms() {
		l.rooms = append(l.rooms, &room{id: fmt.Sprintf("bench-%s-%d", run, i)})
	}
	for i := range m.clients {
		r := l.rooms[i%len(l.rooms)]
		c := &client{load: l, room: r, index: len(r.members)}
		r.members = append(r.members, c)
		l.clients = append(l.clients, c)
	}
	for _, c := range l.clients {
		c.view = newView(c.index, len(c.room.members))
	}
	return l
}

// now is in nanoseconds.
func (l *load) now() int64 { return int64(time.Since(l.epoch)) }

// fail ends the load, unless it is ending.
func (l *load) fail(err error) {
	if l.closing.Load() {
		return
	}
	select {
	case l.broken <- fmt.Errorf("a connection failed: %w", err):
	default: // not the first
	}
}

// refuse notes an answer that is not ok.
func (l *load) refuse(answer []byte) {
	l.refused.Add(1)
	l.refusal.Do(func() {
		l.fail(fmt.Errorf("a request was refused: %s", answer[:min(len(answer), 300)]))
	})
}

// each calls f with every client, for some at the same time.
func (l *load) each(ctx context.Context, f func(int, *client) error) error {
	return each(ctx, len(l.clients), func(i int) error { return f(i, l.clients[i]) })
}

// each calls f with every number below n, for some at the same time, until the first error.
func each(ctx context.Context, n int, f func(int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var work sync.WaitGroup
	for range connecting {
		work.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					stop(err)
				}
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// connect connects all clients, in turn to each of the nodes. The rooms are so spread over the nodes.
func (l *load) connect(ctx context.Context, nodes []string) error {
	d := newDialer(l.mode.upgraded)
	if l.mode.connect != nil {
		d.connect = func(i int) string { return l.mode.connect(fmt.Sprint("u", l.clients[i].index)) }
	}
	defer d.close()
	return l.each(ctx, func(i int, c *client) error {
		f, err := d.dial(ctx, nodes[c.index%len(nodes)], i)
		if err != nil {
			return err
		}
		c.frames = f
		l.readers.Go(c.read)
		return nil
	})
}

// joinAll has the clients join, and waits until each knows its room.
func (l *load) joinAll(ctx context.Context) error {
	err := l.each(ctx, func(_ int, c *client) error {
		c.act((*client).join)
		if !poll(ctx, settleTime, func() bool { return c.truth() != absent }) {
			return l.unsettled(ctx)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.settle(ctx)
}

// settle waits until every request is answered, and every client knows its room as it is.
func (l *load) settle(ctx context.Context) error {
	if !poll(ctx, settleTime, l.settled) {
		return l.unsettled(ctx)
	}
	return nil
}

func (l *load) settled() bool {
	if l.open.Load() > 0 {
		return false
	}
	for _, r := range l.rooms {
		if !r.settled() {
			return false
		}
	}
	return true
}

func (r *room) settled() bool {
	var present int
	var sum int64
	for _, c := range r.members {
		if n := c.truth(); n != absent {
			present++
			sum += n
		}
	}
	for _, c := range r.members {
		if p, s := c.progress(); present != p || sum != s {
			return false
		}
	}
	return true
}

// unsettled is why not, or nil if something is missing: that will be found.
func (l *load) unsettled(ctx context.Context) error {
	select {
	case err := <-l.broken:
		return err
	default:
	}
	if n := l.open.Load(); n > 0 && ctx.Err() == nil {
		return fmt.Errorf("%d requests are not answered", n)
	}
	return ctx.Err()
}

// faults are those of all clients. No request may be open.
func (l *load) faults() (sum faults) {
	for _, r := range l.rooms {
		truth := make([]int64, len(r.members))
		for i, c := range r.members {
			truth[i] = c.truth()
		}
		for i, c := range r.members {
			c.mu.Lock()
			sum.add(c.view.faults)
			if truth[i] != absent {
				sum.lost += c.view.missing(truth)
			}
			c.mu.Unlock()
		}
	}
	return sum
}

// close ends all connections, and waits for their readers.
func (l *load) close() error {
	l.closing.Store(true)
	var errs []error
	for _, c := range l.clients {
		if c.frames != nil {
			errs = append(errs, c.frames.conn.Close())
		}
	}
	l.readers.Wait()
	return errors.Join(errs...)
}

func (l *load) tally() tally {
	return tally{answers: l.answers.Load(), joins: l.joins.Load(), events: l.events.Load()}
}
