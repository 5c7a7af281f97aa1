package main

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWorkersRunEveryJobOnce(t *testing.T) {
	w := newWorkers()
	var mu sync.Mutex
	ran := 0
	var callers sync.WaitGroup
	for range 500 {
		callers.Go(func() {
			done := false
			w.do(func() {
				mu.Lock()
				defer mu.Unlock()
				ran++
				done = true
			})
			if !done {
				t.Error("do returned before its job")
			}
		})
	}
	callers.Wait()
	if ran != 500 {
		t.Errorf("%d jobs ran", ran)
	}
	if n := len(w.idle); n > idleWorkers {
		t.Errorf("%d goroutines wait", n)
	}
	w.close() // the leak check of the whole run sees what stays
}

func TestAJobThatBlocksHoldsNoOther(t *testing.T) {
	w := newWorkers()
	defer w.close()
	release, blocked := make(chan struct{}), make(chan struct{})
	for range 2 * idleWorkers {
		go w.do(func() { blocked <- struct{}{}; <-release })
		<-blocked
	}
	defer close(release)
	done := make(chan struct{})
	go func() { w.do(func() {}); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("a job waits for others")
	}
}

func TestClosingWaitsForTheJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkers()
		over := false
		go w.do(func() { <-time.After(time.Second); over = true })
		synctest.Wait()
		w.close()
		if !over {
			t.Error("it did not")
		}
	})
}

func TestAPanicIsTheCallers(t *testing.T) {
	w := newWorkers()
	defer w.close()
	defer func() {
		if text, _ := recover().(string); !strings.Contains(text, "broken") || !strings.Contains(text, "workers_test.go") {
			t.Errorf("recovered %q", text)
		}
		w.do(func() {}) // and the worker goes on
	}()
	w.do(func() { panic("broken") })
}
