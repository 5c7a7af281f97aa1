package main

import "runtime"

// heavyBytes is the size of a payload from which on reading it is heavy work.
const heavyBytes = 4 << 10

// heavyWork bounds how much work that needs a processor for long is done at the same time: half of the processors stay free
// for all other requests. Those that wait take turns.
type heavyWork struct {
	turns chan struct{}
}

func newHeavyWork() *heavyWork {
	return &heavyWork{make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// do runs f, which must not wait for anything.
func (h *heavyWork) do(f func()) {
	h.turns <- struct{}{}
	defer func() { <-h.turns }()
	f()
}

// read runs f, which reads a payload of so many bytes.
func (h *heavyWork) read(bytes int, f func()) {
	if bytes < heavyBytes {
		f()
		return
	}
	h.do(f)
}
