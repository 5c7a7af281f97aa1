package main

import (
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"sync/atomic"
)

// leastGarbage is what may pile up before it is collected, in bytes, however little is in use. By itself Go collects a heap
// that has doubled, which for a server with some hundred connections is every few MB: a tenth of its time under load.
const leastGarbage = 16 << 20

// leastGrowth is how much a heap grows, in percent, before it is collected: with Go's own 100, 10,000 idle connections had
// 1 KB more each.
const leastGrowth = 75

// leaveGarbage has Go's collector wait for leastGrowth or for leastGarbage, whichever is more, until stop is called.
func leaveGarbage() (stop func()) {
	before := debug.SetGCPercent(garbagePercent(inUse()))
	var stopped atomic.Bool
	var collected func(*[16]byte)
	collected = func(sentinel *[16]byte) {
		if !stopped.Load() {
			debug.SetGCPercent(garbagePercent(inUse()))
			runtime.SetFinalizer(sentinel, collected) // called again after the next collection
		}
	}
	runtime.SetFinalizer(new([16]byte), collected)
	return func() {
		stopped.Store(true)
		debug.SetGCPercent(before)
	}
}

// garbagePercent is leastGarbage as a share of what is in use, and at least leastGrowth.
func garbagePercent(inUse uint64) int {
	return int(max(leastGrowth, leastGarbage*100/max(inUse, 1<<20)))
}

// inUse is what the last collection left, in bytes.
func inUse() uint64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}}
	runtimemetrics.Read(sample)
	return sample[0].Value.Uint64() + sample[1].Value.Uint64()
}
