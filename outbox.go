package main

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// outbox is the writing half of a WebSocket: a bounded queue of ready frames, handed to the kernel by whoever added one,
// in one writev that does not wait. Only while the kernel refuses some does a goroutine wait for it.
type outbox struct {
	conn    net.Conn
	raw     syscall.RawConn
	attempt func(fd uintptr) bool // writeOnce, bound once: a write then allocates nothing
	limit   int                   // bytes that may wait, 0 = any number
	timeout time.Duration         // for the client to accept a byte
	take    time.Duration         // for the client to accept all that waits at one moment
	total   *unsent               // counts what the kernel did not take

	mu       mutex[ofOutbox] // only that of unsent is locked under it
	queued   [][]byte        // the first one may be partly written
	waiting  waitingFrames   // behind those in queued, while draining
	backlog  backlog         // in queued and waiting
	promised bool            // somebody is going to flush
	draining chan struct{}
	mark     int       // bytes of the queue that the client has to accept
	markBy   time.Time // by then
	deadline time.Time // of all that is queued, once no more is accepted
	ended    bool      // no more frames are accepted
	gone     bool      // the connection is closed
	cause    error     // of a failed write
}

// send writes f, or what the kernel takes of it.
func (o *outbox) send(f frame) {
	if o.queue(f, memberUpdate{}) {
		o.flush()
	}
}

// queue adds f and reports whether the caller has to flush. A client that has let more than limit bytes pile up is cut. One
// message alone may be larger, and does not count against what comes behind it. An update takes the place of one of the same
// incarnation that waits for a kernel that was full.
func (o *outbox) queue(f frame, of memberUpdate) bool { return o.add(frameParts{f}, of) }

// queueParts is queue for a frame in parts.
func (o *outbox) queueParts(f frameParts) bool { return o.add(f, memberUpdate{}) }

func (o *outbox) add(f frameParts, of memberUpdate) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.skip(of)
	}
	size := f.size()
	if !o.fits(size) {
		return false
	}
	large := o.backlog.add(size, o.limit)
	if o.draining != nil {
		o.total.add(o, f...)
		if o.waiting.add(f, of); large {
			o.waiting.pin()
		}
		return false
	}
	o.queued = append(o.queued, f...)
	first := !o.promised
	o.promised = true
	return first
}

// skip removes the update that waits of an incarnation, if there is one: a later one is added. Call it under mu.
func (o *outbox) skip(of memberUpdate) {
	if f, found := o.waiting.skip(of); found {
		o.backlog.skip(f.size())
		o.mark = min(o.mark, o.backlog.bytes)
		o.total.remove(o, f...)
	}
}

// refill takes the next frames that wait into an empty queue, and tells whether there is something to write. It takes about as
// many as the kernel takes at once, because those in the queue are not skipped any more. Call it under mu.
func (o *outbox) refill() bool {
	if len(o.queued) > 0 {
		return true
	}
	for bytes := 0; bytes < refillBytes && len(o.queued) < maxGather && o.waiting.len() > 0; {
		f := o.waiting.next()
		o.queued = append(o.queued, f...)
		bytes += f.size()
	}
	return len(o.queued) > 0
}

// fits tells whether a message of n bytes is to be queued, and cuts the client if it reads too slowly for that. Call it under mu.
func (o *outbox) fits(n int) bool {
	if !o.ended && o.backlog.exceeds(n, o.limit) {
		o.write() // the kernel has perhaps not been asked yet
		if !o.ended && o.backlog.exceeds(n, o.limit) {
			o.abortLocked(errTooSlow)
		}
	}
	return !o.ended
}

func (o *outbox) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.promised = false
	o.write()
}

// write hands the kernel what it takes and leaves the rest to a goroutine. Call it under mu.
func (o *outbox) write() {
	if o.gone || o.draining != nil || len(o.queued) == 0 {
		return
	}
	if o.raw != nil {
		if err := o.raw.Write(o.attempt); err != nil || o.cause != nil {
			o.abortLocked(err)
			return
		}
	}
	if len(o.queued) > 0 {
		o.draining = make(chan struct{})
		o.total.add(o, o.queued...)
		o.setMark()
		go o.drain(o.draining)
	}
}

// writeOnce writes until the queue is empty or the kernel takes no more. Call it under mu.
func (o *outbox) writeOnce(fd uintptr) bool {
	for o.refill() {
		n, err := writev(fd, o.queued[:min(len(o.queued), maxGather)])
		switch {
		case err == nil:
			o.taken(n)
		case errors.Is(err, syscall.EAGAIN):
			return true
		case !errors.Is(err, syscall.EINTR):
			o.cause = err
			return true
		}
	}
	return true
}

// taken removes the first n bytes from the queue.
func (o *outbox) taken(n int) {
	o.backlog.sub(n)
	done := 0
	o.mark -= n
	for done < len(o.queued) && n >= len(o.queued[done]) {
		n -= len(o.queued[done])
		done++
	}
	if o.draining != nil {
		o.total.remove(o, o.queued[:done]...)
	}
	clear(o.queued[:done])
	switch {
	case done < len(o.queued):
		o.queued = o.queued[done:]
		o.queued[0] = o.queued[0][n:]
	case cap(o.queued) <= keptQueue:
		o.queued = o.queued[:0]
	default:
		o.queued = nil
	}
	if o.draining != nil && o.mark <= 0 {
		o.setMark()
	}
}

// setMark gives the client its time for all that waits now. Call it under mu.
func (o *outbox) setMark() { o.mark, o.markBy = o.backlog.bytes, time.Now().Add(o.take) }

// held gives the bytes that wait for the client.
func (o *outbox) held() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.backlog.bytes
}

// tooSlow closes a client that does not take what is sent to it.
func (o *outbox) tooSlow() { o.abort(errTooSlow) }

// drain waits for the kernel to take the rest. A client is cut that accepts no byte for the timeout, or has not accepted
// all that waited at one moment when its time for that is over.
func (o *outbox) drain(done chan struct{}) {
	defer close(done)
	for {
		err := o.push()
		o.mu.Lock()
		if errors.Is(err, os.ErrDeadlineExceeded) && !o.ended {
			err = errTooSlow
		}
		if err != nil || o.cause != nil {
			o.abortLocked(err)
		}
		if o.backlog.bytes == 0 {
			_ = o.conn.SetWriteDeadline(time.Time{})
			o.draining = nil
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
	}
}

// push waits until the kernel has taken something, or somebody else is at the queue.
func (o *outbox) push() error {
	o.mu.Lock()
	deadline := o.deadline
	if deadline.IsZero() {
		deadline = earlier(time.Now().Add(o.timeout), o.markBy)
	}
	_ = o.conn.SetWriteDeadline(deadline)
	o.mu.Unlock()
	if o.raw == nil {
		return o.pushPlain()
	}
	return o.raw.Write(func(fd uintptr) bool {
		if !o.mu.TryLock() { // by whoever may be closing the connection, and waits for this function to end
			return true
		}
		defer o.mu.Unlock()
		before := o.backlog.bytes
		o.writeOnce(fd)
		return o.backlog.bytes < before || o.backlog.bytes == 0 || o.cause != nil
	})
}

// pushPlain is push for a connection that is no file descriptor.
func (o *outbox) pushPlain() error {
	o.mu.Lock()
	if !o.refill() {
		o.mu.Unlock()
		return nil
	}
	f := o.queued[0]
	o.mu.Unlock()
	n, err := o.conn.Write(f)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queued) > 0 {
		o.taken(n)
	}
	if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// finish accepts no further frame and has the connection closed by its reader: after what is queued, and a close frame
// that says why, have left, or after the timeout.
func (o *outbox) finish(why closeError) {
	o.send(closeFrame(why))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return // another one was first
	}
	o.ended = true
	o.deadline = time.Now().Add(o.timeout)
	o.write()
	if o.draining != nil {
		_ = o.conn.SetWriteDeadline(o.deadline)
	}
	_ = o.conn.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
}

// shut is finish without patience: what the kernel does not take at once is lost.
func (o *outbox) shut(why closeError) {
	o.finish(why)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.draining != nil {
		o.abortLocked(errClosed)
	}
}

// abort closes the connection now.
func (o *outbox) abort(cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.abortLocked(cause)
}

// abortLocked is abort under mu.
func (o *outbox) abortLocked(cause error) {
	if o.cause == nil {
		o.cause = cause
	}
	o.ended, o.gone = true, true
	if o.draining != nil {
		o.total.remove(o, o.queued...)
	}
	for _, f := range o.waiting.takeAll() {
		o.total.remove(o, f...)
	}
	o.queued, o.backlog = nil, backlog{}
	_ = o.conn.Close()
}

func (o *outbox) closing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ended
}

// reason is what the connection ended of, from the writing side; nil while that is well.
func (o *outbox) reason() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cause
}

// awaitEnd returns when the connection is closed and no goroutine writes to it. The client gets a while to take the last
// frames: to close at once, with input unread, would reset the connection and could destroy them on their way.
func (o *outbox) awaitEnd() {
	o.mu.Lock()
	draining := o.draining
	o.mu.Unlock()
	if draining != nil {
		<-draining
	}
	half, ok := o.conn.(interface{ CloseWrite() error })
	if ok && half.CloseWrite() == nil {
		_ = o.conn.SetReadDeadline(time.Now().Add(linger))
		_, _ = io.CopyN(io.Discard, o.conn, lingerFor) // ends with the client's side, or the deadline
	}
	o.abort(errClosed)
}
