package main

import (
	"context"
	"time"
)

// deadlineStep is how much earlier than answerWithin a request may have to end.
const deadlineStep = 50 * time.Millisecond

// deadlines gives requests a context that ends answerWithin after it was made. What comes within deadlineStep shares one: a
// timer for each would be a twentieth of what a heartbeat costs.
type deadlines struct {
	mu      mutex[ofNone]
	current context.Context
	until   time.Time // when it is given out no more
}

func (d *deadlines) next() context.Context {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil || !now.Before(d.until) {
		ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
		context.AfterFunc(ctx, cancel)
		d.current, d.until = ctx, now.Add(deadlineStep)
	}
	return d.current
}
