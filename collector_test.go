package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGarbagePercent(t *testing.T) {
	for inUse, want := range map[uint64]int{0: 1600, 1 << 20: 1600, 4 << 20: 400, 16 << 20: 100, 1 << 40: 75} {
		if got := garbagePercent(inUse); got != want {
			t.Errorf("with %d bytes in use the heap may grow by %d %%, want %d", inUse, got, want)
		}
	}
}

// After each collection the room for garbage is measured anew, until the end.
func TestRoomForGarbageFollowsTheHeap(t *testing.T) {
	stop := leaveGarbage()
	percent := func() int {
		now := debug.SetGCPercent(100)
		debug.SetGCPercent(now)
		return now
	}
	large := make([]*[1 << 20]byte, 2*leastGarbage>>20)
	for i := range large {
		large[i] = new([1 << 20]byte)
	}
	for range 3 {
		debug.SetGCPercent(150)
		runtime.GC()
		eventually(t, patience, "a large heap may grow by less", func() bool { return percent() == leastGrowth })
	}
	runtime.KeepAlive(large)
	stop()
	debug.SetGCPercent(150)
	runtime.GC()
	runtime.GC()
	if percent() != 150 {
		t.Errorf("after the end the heap may grow by %d %%, want what was set", percent())
	}
	debug.SetGCPercent(100)
}
