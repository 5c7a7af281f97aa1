package main

import (
	"context"
	"errors"
	"log/slog"
)

// flights has equal reads at the same time done once. Nobody is given what was read before he asked: who comes while a read is
// under way shares the next one.
type flights struct {
	log *slog.Logger

	mu      mutex[ofNone]
	flying  map[string]*flight // under way
	waiting map[string]*flight // to begin when that is over
}

type flight struct {
	read func(context.Context) (page, error)
	over chan struct{} // closed when the rest is there
	page page
	err  error
}

func newFlights(log *slog.Logger) *flights {
	return &flights{log: log, flying: map[string]*flight{}, waiting: map[string]*flight{}}
}

// do gives what read returns, called once for all who wait for the same.
func (f *flights) do(ctx context.Context, what string, read func(context.Context) (page, error)) (page, error) {
	mine := f.board(what, read)
	select {
	case <-mine.over:
		return mine.page, mine.err
	case <-ctx.Done():
		return page{}, unavailable(ctx.Err())
	}
}

func (f *flights) board(what string, read func(context.Context) (page, error)) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if mine := f.waiting[what]; mine != nil {
		return mine
	}
	mine := &flight{read: read, over: make(chan struct{}), err: unavailable(errors.New("reading a page panicked"))}
	if f.flying[what] != nil {
		f.waiting[what] = mine
	} else {
		f.flying[what] = mine
		go f.fly(what, mine)
	}
	return mine
}

func (f *flights) fly(what string, now *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	panics(f.log, "pages", func() { now.page, now.err = now.read(ctx) })
	close(now.over)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.flying, what)
	if next := f.waiting[what]; next != nil {
		delete(f.waiting, what)
		f.flying[what] = next
		go f.fly(what, next)
	}
}
