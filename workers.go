package main

import (
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
)

// idleWorkers is how many stacks are kept for the next job.
const idleWorkers = 32

// workers run jobs that need much stack on stacks of their own. A stack doubles when it is too small and shrinks only with a
// garbage collection, so a client that joined would keep what its join needed as long as it is idle.
//
// A worker is a coroutine and not a goroutine behind a channel: the scheduler has no part in it, and wakes nobody for it.
type workers struct {
	mu     mutex[ofNone]
	idle   []*worker
	closed bool
	jobs   sync.WaitGroup
}

// worker runs one job at a time, for whoever calls resume.
type worker struct {
	job    func()
	failed any // what the job panicked with, and where
	resume func() (struct{}, bool)
	stop   func()
}

func newWorkers() *workers { return &workers{} }

func newWorker() *worker {
	w := &worker{}
	w.resume, w.stop = iter.Pull(func(yield func(struct{}) bool) {
		for w.try(); yield(struct{}{}); w.try() {
		}
	})
	return w
}

func (w *worker) try() {
	defer func() {
		if p := recover(); p != nil {
			w.failed = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	w.job()
}

// close waits for all jobs, and has no stack kept from now on.
func (w *workers) close() {
	w.jobs.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, one := range w.idle {
		one.stop()
	}
	w.idle = nil
}

// do returns when f has. A panic of f is the caller's.
func (w *workers) do(f func()) {
	w.jobs.Add(1)
	defer w.jobs.Done()
	one := w.take()
	one.job, one.failed = withLocks(f), nil
	one.resume()
	failed := one.failed
	one.job, one.failed = nil, nil
	w.keep(one)
	if failed != nil {
		panic(failed)
	}
}

func (w *workers) take() *worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := len(w.idle) - 1
	if last < 0 {
		return newWorker()
	}
	one := w.idle[last]
	w.idle = w.idle[:last]
	return one
}

func (w *workers) keep(one *worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.idle) == idleWorkers {
		one.stop()
		return
	}
	w.idle = append(w.idle, one)
}
