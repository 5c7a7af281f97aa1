package main

import (
	"cmp"
	"slices"
	"sync"
)

// slotBytes is what a queue holds for each part of a frame, besides the part.
const slotBytes = 128

// backlog counts the bytes that wait for one client. One message alone may be larger than the limit, and does not count against
// what comes behind it.
type backlog struct {
	bytes int
	large int // those up to the end of a message that is larger than the limit
}

// exceeds tells whether a message of n bytes is too much; a limit of 0 = nothing is.
func (b *backlog) exceeds(n, limit int) bool {
	if limit == 0 || b.bytes == 0 {
		return false
	}
	if n > limit {
		return b.large > 0 || b.bytes > limit
	}
	return b.bytes-b.large+n > limit
}

// add counts a message, and tells whether it is larger than the limit. Those before it must not be skipped any more.
func (b *backlog) add(n, limit int) (large bool) {
	b.bytes += n
	if n > limit {
		b.large = b.bytes
	}
	return limit > 0 && n > limit
}

func (b *backlog) sub(n int) {
	b.bytes -= n
	b.large = max(0, b.large-n)
}

// skip takes back a message of n bytes that waits behind all that are larger than the limit.
func (b *backlog) skip(n int) { b.bytes -= n }

// slowClient is a client that has frames waiting.
type slowClient interface {
	// held gives the bytes that wait for the client, frames shared with others included.
	held() int
	// tooSlow closes the client. It may be called from any goroutine, and more than once.
	tooSlow()
}

// unsent counts what waits in memory for all clients of the node that do not take it as fast as it comes. A frame that
// waits for several clients counts once. Beyond the limit the clients with the most are closed.
type unsent struct {
	limit int // bytes; 0 = any number

	mu      mutex[ofNone] // a leaf: nothing is locked under it
	total   int
	frames  map[*byte]sharedFrame // by the address of the last byte, which stays when a frame is partly written
	clients map[slowClient]int    // frames that wait for each
	cutting bool                  // a goroutine closes clients
	work    sync.WaitGroup        // that goroutine
}

// sharedFrame is a frame that waits for at least one client.
type sharedFrame struct {
	bytes   int
	waiting int // clients
}

func newUnsent(limit int) *unsent {
	return &unsent{limit: limit, frames: map[*byte]sharedFrame{}, clients: map[slowClient]int{}}
}

// add counts frames, or parts of one, that wait for a client from now on. None is empty.
func (u *unsent) add(c slowClient, frames ...[]byte) {
	if u == nil || u.limit == 0 || len(frames) == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range frames {
		last := &f[len(f)-1]
		shared, known := u.frames[last]
		if !known {
			shared.bytes = len(f)
			u.total += len(f)
		}
		shared.waiting++
		u.frames[last] = shared
	}
	u.total += slotBytes * len(frames)
	u.clients[c] += len(frames)
	if u.total > u.limit && !u.cutting {
		u.cutting = true
		u.work.Go(u.cutSlowest)
	}
}

// remove takes back what add counted, when the client has taken the frames or is gone. Frames that were not added do not
// count.
func (u *unsent) remove(c slowClient, frames ...[]byte) {
	if u == nil || u.limit == 0 || len(frames) == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range frames {
		if last := &f[len(f)-1]; u.frames[last].waiting > 0 {
			u.removeFrame(c, last)
		}
	}
}

// removeFrame is remove for one frame that was added. u.mu is held.
func (u *unsent) removeFrame(c slowClient, last *byte) {
	shared := u.frames[last]
	shared.waiting--
	u.frames[last] = shared
	if shared.waiting == 0 {
		delete(u.frames, last)
		u.total -= shared.bytes
	}
	u.total -= slotBytes
	if u.clients[c]--; u.clients[c] == 0 {
		delete(u.clients, c)
	}
}

// close waits until no client is being closed any more.
func (u *unsent) close() {
	if u != nil {
		u.work.Wait()
	}
}

// cutSlowest closes the clients with the most until the total is an eighth below the limit, so that it does not run for
// every frame.
func (u *unsent) cutSlowest() {
	for {
		for _, c := range u.slowest() {
			if !u.above(u.limit - u.limit/8) {
				break
			}
			c.tooSlow()
		}
		if u.finished() {
			return
		}
	}
}

// slowest are the clients by what they hold, the one with the most first.
func (u *unsent) slowest() []slowClient {
	u.mu.Lock()
	clients := make([]slowClient, 0, len(u.clients))
	for c := range u.clients {
		clients = append(clients, c)
	}
	u.mu.Unlock()
	held := make(map[slowClient]int, len(clients)) // asked for without mu: clients call add and remove under locks of theirs
	for _, c := range clients {
		held[c] = c.held()
	}
	slices.SortFunc(clients, func(a, b slowClient) int { return cmp.Compare(held[b], held[a]) })
	return clients
}

func (u *unsent) above(bytes int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total > bytes
}

// finished tells cutSlowest that the total is within the limit, and that the next add over it starts another one.
func (u *unsent) finished() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cutting = u.total > u.limit && len(u.clients) > 0
	return !u.cutting
}
