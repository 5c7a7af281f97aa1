//go:build lockorder

package main

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
)

// mutex is a sync.Mutex that checks its rank.
type mutex[R ranked] struct {
	mu     sync.Mutex
	holder *lockHolder // who has locked it
}

func (m *mutex[R]) Lock() {
	me := theLocks.me()
	me.waits(rankOf[R]())
	m.mu.Lock()
	m.holder = me
	me.locked(rankOf[R]())
}

func (m *mutex[R]) TryLock() bool {
	if !m.mu.TryLock() {
		return false
	}
	m.holder = theLocks.me()
	m.holder.locked(rankOf[R]())
	return true
}

// Unlock asks the holder and not the goroutine, whose number takes longer to find out than all else.
func (m *mutex[R]) Unlock() {
	holder := m.holder
	m.mu.Unlock()
	holder.unlocked(rankOf[R]())
}

func rankOf[R ranked]() lockRank { return (*new(R)).rank() }

func waitsFor[R ranked]()  { theLocks.me().waits(rankOf[R]()) }
func hasLocked[R ranked]() { theLocks.me().locked(rankOf[R]()) }
func unlocks[R ranked]()   { theLocks.me().unlocked(rankOf[R]()) }

// withLocks is f, to be run by a coroutine while the goroutine that resumes it keeps its locks.
func withLocks(f func()) func() {
	outer := theLocks.me()
	return func() {
		me := theLocks.me()
		for _, rank := range outer.held {
			me.locked(rank)
			defer me.unlocked(rank)
		}
		f()
	}
}

// lockFaults is how many faults are kept.
const lockFaults = 20

// lockBook knows which locks each goroutine holds, and where the order was broken. It does not see the locks under which a goroutine
// was started that its starter waits for, those of the embeddable files, and tokens of other channels.
type lockBook struct {
	holders sync.Map // number of a goroutine → its *lockHolder, while it holds a lock
	mu      sync.Mutex
	faults  []string
}

var theLocks lockBook

// lockHolder is a goroutine, which unlocks what it has locked itself. Nothing else touches its locks.
type lockHolder struct {
	id   string
	held []lockRank // in the order of locking
}

// me is the calling goroutine.
func (b *lockBook) me() *lockHolder {
	id := goroutine()
	if known, ok := b.holders.Load(id); ok {
		return known.(*lockHolder)
	}
	return &lockHolder{id: id}
}

// waits notes a fault if the goroutine holds a lock that it must not hold while it waits for one of this rank.
func (h *lockHolder) waits(rank lockRank) {
	if len(h.held) > 0 && slices.Max(h.held) >= rank {
		theLocks.fault(fmt.Sprintf("waits for rank %d and holds %d", rank, h.held))
	}
}

func (h *lockHolder) locked(rank lockRank) {
	if h.held = append(h.held, rank); len(h.held) == 1 {
		theLocks.holders.Store(h.id, h)
	}
}

func (h *lockHolder) unlocked(rank lockRank) {
	for i, r := range slices.Backward(h.held) {
		if r == rank {
			h.held = slices.Delete(h.held, i, i+1)
			break
		}
	}
	if len(h.held) == 0 {
		theLocks.holders.Delete(h.id)
	}
}

func (b *lockBook) fault(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) < lockFaults {
		b.faults = append(b.faults, fmt.Sprintf("%s:\n%s", what, debug.Stack()))
	}
}

// take gives the faults so far, and forgets them.
func (b *lockBook) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	faults := b.faults
	b.faults = nil
	return faults
}

// goroutine is the number of the calling goroutine, which Go tells in stack traces only.
func goroutine() string {
	var buf [64]byte
	fields := bytes.Fields(buf[:runtime.Stack(buf[:], false)])
	return string(fields[1])
}
