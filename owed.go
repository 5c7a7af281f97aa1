package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// Pause between two tries of what Redis did not confirm.
	owedPause = 200 * time.Millisecond

	// Leaves that are tried at the same time.
	owedWorkers = 16
)

// owedLeave is a leave that Redis has not confirmed. Without an epoch it takes back a join of which nobody knows whether
// it happened.
type owedLeave struct {
	member Member
	reason Reason
}

// owed repeats leaves until Redis confirms them, so that an outage keeps nobody in a room who left it.
type owed struct {
	service *Service

	mu   sync.Mutex
	list []owedLeave

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

func newOwed(s *Service) *owed {
	o := &owed{service: s}
	o.ctx, o.stop = context.WithCancel(context.Background())
	o.work.Go(o.loop)
	return o
}

// close tries once more what is left, as long as ctx allows, and stops. It returns how many leaves stay unconfirmed.
func (o *owed) close(ctx context.Context) int {
	o.stop()
	o.work.Wait()
	o.try(ctx)
	return len(o.list)
}

func (o *owed) add(m Member, reason Reason) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, owedLeave{m, reason})
}

func (o *owed) loop() {
	for o.ctx.Err() == nil {
		pause(o.ctx, owedPause)
		o.try(o.ctx)
	}
}

// try repeats every leave once. Those that fail stay.
func (o *owed) try(ctx context.Context) {
	o.mu.Lock()
	list := o.list
	o.list = nil
	o.mu.Unlock()
	work := make(chan owedLeave)
	var workers sync.WaitGroup
	for range min(owedWorkers, len(list)) {
		workers.Go(func() {
			for leave := range work {
				if err := o.settle(ctx, leave); err != nil {
					o.add(leave.member, leave.reason)
				}
			}
		})
	}
	for _, leave := range list {
		work <- leave
	}
	close(work)
	workers.Wait()
}

// settle removes the incarnation that is owed. One that is not known is read first, so that a newer one, of which the
// client was told in the meantime, stays.
func (o *owed) settle(ctx context.Context, leave owedLeave) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	m := leave.member
	if m.Epoch == 0 {
		found, err := o.service.find(ctx, m.Room, m.Conn)
		var refused *Error
		if errors.As(err, &refused) && refused.Code == CodeNotJoined {
			return nil
		}
		if err != nil {
			return err
		}
		m = found
	}
	_, _, err := o.service.remove(ctx, m.Room, removal{reason: leave.reason}, []incarnation{{m.Conn, m.Epoch}})
	return err
}
