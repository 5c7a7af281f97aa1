package main

import "context"

// lockRank is the place of a lock in the order of all locks. Who holds a lock may wait for locks of higher ranks only, so that no
// two goroutines ever wait for each other. TryLock does not wait, and may be called whatever is held.
//
// This is the whole order. docs/code.md says what each lock protects. With the build tag lockorder each wait is checked.
type lockRank int

const (
	rankClient       lockRank = iota // client.in
	rankMembership                   // membership.mu
	rankToken                        // lease.renewing, room.indexing
	rankUserWatchers                 // userWatchers.mu
	rankDispatcher                   // dispatcher.mu
	rankRoom                         // room.mu
	rankBatch                        // batch.mu
	rankHeld                         // heldFrames.mu
	rankPolled                       // polled.mu
	rankOutbox                       // outbox.mu
	rankLeaf                         // all others
)

// ranked is the type of a lock's rank: the parameter of the lock's own type, so that a lock needs no setting up.
type ranked interface{ rank() lockRank }

type (
	ofClient       struct{}
	ofMembership   struct{}
	ofToken        struct{}
	ofUserWatchers struct{}
	ofDispatcher   struct{}
	ofRoom         struct{}
	ofBatch        struct{}
	ofHeld         struct{}
	ofPolled       struct{}
	ofOutbox       struct{}
	ofNone         struct{} // a leaf
)

func (ofClient) rank() lockRank       { return rankClient }
func (ofMembership) rank() lockRank   { return rankMembership }
func (ofToken) rank() lockRank        { return rankToken }
func (ofUserWatchers) rank() lockRank { return rankUserWatchers }
func (ofDispatcher) rank() lockRank   { return rankDispatcher }
func (ofRoom) rank() lockRank         { return rankRoom }
func (ofBatch) rank() lockRank        { return rankBatch }
func (ofHeld) rank() lockRank         { return rankHeld }
func (ofPolled) rank() lockRank       { return rankPolled }
func (ofOutbox) rank() lockRank       { return rankOutbox }
func (ofNone) rank() lockRank         { return rankLeaf }

// operationLock is a mutex that may be held during a call to Redis. It is a channel, because synctest counts a goroutine that waits
// for a sync.Mutex as running.
type operationLock[R ranked] chan struct{}

func newOperationLock[R ranked]() operationLock[R] { return make(operationLock[R], 1) }

func (t operationLock[R]) Lock() {
	waitsFor[R]()
	t <- struct{}{}
	hasLocked[R]()
}

// LockBefore is Lock, unless ctx ends first. The error is that of ctx.
func (t operationLock[R]) LockBefore(ctx context.Context) error {
	waitsFor[R]()
	select {
	case t <- struct{}{}:
		hasLocked[R]()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t operationLock[R]) TryLock() bool {
	select {
	case t <- struct{}{}:
		hasLocked[R]()
		return true
	default:
		return false
	}
}

func (t operationLock[R]) Unlock() {
	unlocks[R]()
	<-t
}
