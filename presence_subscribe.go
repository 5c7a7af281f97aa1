package main

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// Subscribe calls handler for every event of every room, one at a time, until Stop or the end of ctx. It returns once Redis
// has confirmed or refused the subscription. While the connection to Redis is lost later on, events are missed: Snapshot
// tells what became of the rooms. A panic of handler is logged and loses the subscription in the same way. With sharded Pub/Sub,
// which has no patterns, it is an error.
func (s *Service) Subscribe(ctx context.Context, handler func(Event)) error {
	if s.options.Sharded {
		return errors.New("sharded Pub/Sub has no pattern subscription")
	}
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(s.ctx, cancel)
	first := make(chan error, 1) // what became of the first try that Redis answered
	s.work.Go(func() {
		defer detach()
		defer cancel()
		for ctx.Err() == nil {
			var err error
			panics(s.options.Logger, "subscription", func() {
				err = receive(ctx, s.rdb.PSubscribe(ctx, eventsPattern), func(item any) { s.handle(item, handler, first) })
			})
			s.options.Logger.Debug("subscription lost", "error", err)
			if errors.As(err, new(redis.Error)) {
				tryTell(first, err)
			}
			pause(ctx, subscriptionPause)
		}
	})
	select {
	case err := <-first:
		if err == nil {
			return nil
		}
		cancel()
		return unavailable(err)
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (s *Service) handle(item any, handler func(Event), first chan<- error) {
	switch m := item.(type) {
	case *redis.Subscription:
		tryTell(first, nil)
	case *redis.Message:
		if event, ok := parseMessage(m.Payload); ok {
			event.State = s.legible(event.ConnID, event.State)
			handler(event.Event)
		}
	}
}

// tryTell tells whoever still waits for it.
func tryTell(first chan<- error, err error) {
	select {
	case first <- err:
	default:
	}
}

// receive hands over what a subscription brings until it fails, does not answer a probe, or ctx ends. It closes it.
func receive(ctx context.Context, ps *redis.PubSub, deliver func(item any)) error {
	var heard atomic.Bool
	ctx, cancel := context.WithCancel(ctx)
	var watch crew
	watch.Go(func() { probe(ctx, ps, &heard) })
	defer watch.Wait()
	defer cancel()
	for {
		item, err := ps.Receive(ctx)
		if err != nil {
			return err
		}
		heard.Store(true)
		deliver(item)
	}
}
