//go:build !lockorder

package main

import "sync"

// mutex is a sync.Mutex with a rank. Without the build tag lockorder nothing checks it, and it costs nothing.
type mutex[R ranked] struct{ sync.Mutex }

func waitsFor[R ranked]()  {}
func hasLocked[R ranked]() {}
func unlocks[R ranked]()   {}

// withLocks is f, to be run by a coroutine while the goroutine that resumes it keeps its locks.
func withLocks(f func()) func() { return f }
