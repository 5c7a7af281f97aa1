package main

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

func TestHalfOfTheProcessorsStayFreeOfHeavyWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, most := newHeavyWork(), max(1, runtime.GOMAXPROCS(0)/2)
		release := make(chan struct{})
		var mu sync.Mutex
		var running, done int
		for range 10 * most {
			go h.read(heavyBytes, func() {
				mu.Lock()
				running++
				mu.Unlock()
				<-release
				mu.Lock()
				running--
				done++
				mu.Unlock()
			})
		}
		synctest.Wait()
		if running != most {
			t.Errorf("%d run at the same time, want %d", running, most)
		}
		small := false
		h.read(heavyBytes-1, func() { small = true })
		if !small {
			t.Error("a small payload waits for large ones")
		}
		close(release)
		synctest.Wait()
		if done != 10*most {
			t.Errorf("%d are done", done)
		}
	})
}

func TestHeavyWorkThatPanicsGivesItsTurnBack(t *testing.T) {
	h := newHeavyWork()
	for range cap(h.turns) + 1 {
		func() {
			defer func() { _ = recover() }()
			h.do(func() { panic("bad") })
		}()
	}
	h.do(func() {})
}
