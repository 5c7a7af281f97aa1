//go:build lockorder

package main

import (
	"context"
	"strings"
	"testing"
)

// brokenLockOrder is where the program has broken the order of locks so far.
func brokenLockOrder() []string { return theLocks.take() }

// TestTheLockOrderIsChecked: not parallel to others, whose faults it would take for its own.
func TestTheLockOrderIsChecked(t *testing.T) {
	for _, fault := range brokenLockOrder() {
		t.Errorf("before: %s", fault)
	}
	var hub mutex[ofDispatcher]
	var room, other mutex[ofRoom]
	var leaf mutex[ofNone]
	member, token := newOperationLock[ofMembership](), newOperationLock[ofToken]()
	for name, tc := range map[string]struct {
		do   func()
		want string // in the fault; "" = there is none
	}{
		"in order": {func() {
			member.Lock()
			_ = token.LockBefore(t.Context())
			hub.Lock()
			leaf.Lock()
			leaf.Unlock()
			hub.Unlock()
			room.Lock()
			room.Unlock()
			token.Unlock()
			member.Unlock()
		}, ""},
		"inverted": {func() {
			room.Lock()
			hub.Lock()
			hub.Unlock()
			room.Unlock()
		}, "waits for rank 4 and holds [5]"},
		"two of one rank": {func() {
			room.Lock()
			other.Lock()
			other.Unlock()
			room.Unlock()
		}, "waits for rank 5 and holds [5]"},
		"a turn under a mutex": {func() {
			room.Lock()
			member.Lock()
			member.Unlock()
			room.Unlock()
		}, "waits for rank 1 and holds [5]"},
		"a turn that is given up": {func() {
			room.Lock()
			token.Lock()
			over, cancel := context.WithCancel(t.Context())
			cancel()
			_ = token.LockBefore(over)
			token.Unlock()
			room.Unlock()
		}, "waits for rank 2 and holds [5 2]"},
		"try only": {func() {
			room.Lock()
			_ = member.TryLock() && hub.TryLock()
			hub.Unlock()
			member.Unlock()
			room.Unlock()
			member.Lock()
			member.Unlock()
		}, ""},
		"under what was tried": {func() {
			_ = room.TryLock()
			hub.Lock()
			hub.Unlock()
			room.Unlock()
		}, "waits for rank 4 and holds [5]"},
		"unlocked in another order": {func() {
			hub.Lock()
			room.Lock()
			hub.Unlock()
			leaf.Lock()
			room.Unlock()
			leaf.Unlock()
			hub.Lock()
			hub.Unlock()
		}, ""},
		"in a coroutine": {func() {
			jobs := newWorkers()
			room.Lock()
			jobs.do(func() {
				hub.Lock()
				hub.Unlock()
			})
			room.Unlock()
			jobs.do(func() {
				hub.Lock()
				hub.Unlock()
			})
			jobs.close()
		}, "waits for rank 4 and holds [5]"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.do()
			faults := strings.Join(brokenLockOrder(), "\n")
			if tc.want == "" && faults != "" || !strings.Contains(faults, tc.want) {
				t.Errorf("found %q, want %q", faults, tc.want)
			}
			if held := theLocks.me().held; len(held) > 0 {
				t.Errorf("still holds %d", held)
			}
		})
	}
}
