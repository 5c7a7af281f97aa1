package main

import (
	"sync/atomic"
)

// holding keeps the frames for one receiver back while an answer that precedes them is made. The zero value holds nothing.
type holding struct {
	now atomic.Pointer[heldFrames] // nil = nothing is held
}

// heldFrames are those that wait for the end of a hold.
type heldFrames struct {
	mu     mutex[ofHeld] // one frame after the other is kept, or passed on
	frames []frame
	over   bool
}

// keeps takes a frame if there is a hold.
func (h *holding) keeps(f frame) bool {
	held := h.now.Load()
	if held == nil {
		return false
	}
	held.mu.Lock()
	defer held.mu.Unlock()
	if !held.over {
		held.frames = append(held.frames, f)
	}
	return !held.over
}

// begin begins a hold, while there is none. end ends it: it calls first, and then queue with each frame that was kept, and tells
// whether one of them asked for a flush. first may take its time: frames are kept until it returns.
func (h *holding) begin() (end func(first func() bool, queue func(frame) bool) (flush bool)) {
	held := &heldFrames{}
	h.now.Store(held)
	return func(first func() bool, queue func(frame) bool) bool {
		flush := first()
		held.mu.Lock()
		defer held.mu.Unlock()
		for _, f := range held.frames {
			flush = queue(f) || flush
		}
		held.frames, held.over = nil, true
		h.now.Store(nil)
		return flush
	}
}
