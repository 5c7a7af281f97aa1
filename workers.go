package main

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// idleWorkers is how many goroutines are kept for the next job.
const idleWorkers = 128

// workers run jobs that need much stack on goroutines of their own. A stack doubles when it is too small and shrinks only
// with a garbage collection, so a client that joined would keep what its join needed as long as it is idle.
type workers struct {
	jobs chan job
	idle chan struct{} // holds a token for each goroutine that may wait
	quit chan struct{}
	work sync.WaitGroup
}

// job is a function, and where to tell that it has returned, or what it panicked with.
type job struct {
	run  func()
	done chan any
}

func newWorkers() *workers {
	return &workers{jobs: make(chan job), idle: make(chan struct{}, idleWorkers), quit: make(chan struct{})}
}

// close ends the goroutines that wait, when all jobs are over.
func (w *workers) close() {
	close(w.quit)
	w.work.Wait()
}

// do returns when f has. A panic of f is the caller's.
func (w *workers) do(f func()) {
	j := job{run: f, done: make(chan any)}
	select {
	case w.jobs <- j:
	default:
		w.work.Go(func() { w.serve(j) })
	}
	if p := <-j.done; p != nil {
		panic(p)
	}
}

func (w *workers) serve(j job) {
	for {
		j.done <- j.try()
		select {
		case w.idle <- struct{}{}:
		default:
			return // enough others wait
		}
		select {
		case j = <-w.jobs:
			<-w.idle
		case <-w.quit:
			return
		}
	}
}

// try gives what the job panicked with, and where.
func (j job) try() (panicked any) {
	defer func() {
		if p := recover(); p != nil {
			panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	j.run()
	return nil
}
