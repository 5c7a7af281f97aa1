package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

const (
	readBuffer  = 256         // bytes; nearly every frame of a client fits, and an idle connection pays for no more
	readStep    = 4096        // bytes; a frame's announced length alone makes nobody allocate more than this
	linger      = time.Second // for a client to take the last frames before its connection is closed
	lingerFor   = 128 << 10   // bytes that it may still send meanwhile
	maxGather   = 1024        // frames of one writev: IOV_MAX of Linux
	partBytes   = 256         // that a message's fragments have on average at least, but for the first
	freeParts   = 4096        // those: a client may send a small message byte by byte
	refillBytes = 64 << 10    // of the frames that are handed to a kernel that was full
	keptQueue   = 16          // slots of an empty queue that are kept for the next frames
)

// closeError is why a WebSocket has to end, as its close frame tells the client.
type closeError struct {
	status ws.StatusCode
	why    string // at most 123 bytes
}

func (e closeError) Error() string {
	return fmt.Sprintf("WebSocket closed with %d: %s", e.status, e.why)
}

var (
	errClosed   = closeError{ws.StatusGoingAway, "closed by the server"}
	errLeft     = closeError{ws.StatusNormalClosure, ""}
	errProtocol = closeError{ws.StatusProtocolError, "not a frame of RFC 6455"}
	errBinary   = closeError{ws.StatusUnsupportedData, "text only"}
	errUTF8     = closeError{ws.StatusInvalidFramePayloadData, "not UTF-8"}
	errTooLarge = closeError{ws.StatusMessageTooBig, "message too large"}
	errTooSmall = closeError{ws.StatusPolicyViolation, "fragments too small"}

	errTooSlow = errors.New("client does not read what is sent to it")
)

// frame is one ready WebSocket text frame with an Engine.IO message packet, header included. All recipients share it;
// nobody changes it.
type frame []byte

// newFrame joins the parts of a Socket.IO packet to a frame.
func newFrame(packet ...[]byte) frame { return textFrame(packetMessage, packet...) }

// packet is the Engine.IO packet inside.
func (f frame) packet() []byte {
	switch f[1] {
	case 126:
		return f[4:]
	case 127:
		return f[10:]
	}
	return f[2:]
}

// textFrame is the frame of an Engine.IO packet of any kind.
func textFrame(kind byte, payload ...[]byte) frame {
	n := 1
	for _, p := range payload {
		n += len(p)
	}
	f := append(startFrame(ws.OpText, n), kind)
	for _, p := range payload {
		f = append(f, p...)
	}
	return f
}

func controlFrame(op ws.OpCode, payload []byte) frame {
	return append(startFrame(op, len(payload)), payload...)
}

func closeFrame(e closeError) frame {
	return controlFrame(ws.OpClose, ws.NewCloseFrameBody(e.status, e.why))
}

// frameParts is one frame, of which other receivers are sent parts as well. The header is in the first part, with what tells the
// kind of the packet.
type frameParts [][]byte

// What is smaller is cheaper to copy than to share.
const sharedBytes = 4096

// newFrameParts is the frame of a Socket.IO packet of which shared is sent to others as well. Nobody changes that.
func newFrameParts(before, shared, behind []byte) frameParts {
	if len(shared) < sharedBytes {
		return frameParts{newFrame(before, shared, behind)}
	}
	head := appendHeader(make([]byte, 0, ws.MaxHeaderSize+1+len(before)), ws.OpText, 1+len(before)+len(shared)+len(behind))
	return frameParts{append(append(head, packetMessage), before...), shared, behind}
}

// size is the number of bytes of all parts.
func (f frameParts) size() (n int) {
	for _, part := range f {
		n += len(part)
	}
	return n
}

// packetSize is the number of bytes of the Engine.IO packet inside.
func (f frameParts) packetSize() int { return f.size() - len(f[0]) + len(frame(f[0]).packet()) }

// pieces gives the Engine.IO packet inside, at most so many bytes at a time.
func (f frameParts) pieces(atMost int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i, part := range f {
			if i == 0 {
				part = frame(part).packet()
			}
			for piece := range slices.Chunk(part, atMost) {
				if !yield(piece) {
					return
				}
			}
		}
	}
}

// startFrame is the header of an unfragmented, unmasked frame, which is what a server sends, with room for n bytes.
func startFrame(op ws.OpCode, n int) frame {
	return appendHeader(make([]byte, 0, ws.HeaderSize(ws.Header{Length: int64(n)})+n), op, n)
}

func appendHeader(f frame, op ws.OpCode, n int) frame {
	f = append(f, 0x80|byte(op))
	switch {
	case n < 126:
		return append(f, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(f, 126), uint16(n))
	}
	return binary.BigEndian.AppendUint64(append(f, 127), uint64(n))
}

// webSocket is one connection: reading is for the goroutine that owns it, writing and closing for anybody.
type webSocket struct {
	outbox
	from  quietReader
	in    frameReader
	meter meter
}

// accept answers the WebSocket handshake and takes the connection from the HTTP server, whose buffers go with the
// request. On an error the answer has been given.
func accept(w http.ResponseWriter, r *http.Request, o *socketOptions) (*webSocket, error) {
	conn, buffered, _, err := ws.HTTPUpgrader{
		Timeout:  o.WriteTimeout,
		Protocol: func(string) bool { return true }, // the first one that is offered: some clients fail without an answer
	}.Upgrade(r, w)
	if err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("WebSocket handshake: %w", err)
	}
	early, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("WebSocket handshake: %w", err)
	}
	x := &webSocket{meter: o.Input.newMeter(r.RemoteAddr)}
	x.init(conn, bytes.Clone(early), o)
	return x, nil
}

// init makes x ready for conn; early is what the client sent in the same segment as its handshake.
func (x *webSocket) init(conn net.Conn, early []byte, o *socketOptions) {
	var from io.Reader = conn
	if x.from.start(conn) {
		from = &x.from
	}
	if len(early) > 0 {
		from = io.MultiReader(bytes.NewReader(early), from)
	}
	x.in = frameReader{in: bufio.NewReaderSize(from, readBuffer), max: o.MaxMessageBytes, state: ws.StateServerSide}
	if o.Input != nil {
		x.in.admit = x.admit
	}
	x.outbox = outbox{conn: conn, limit: o.MaxUnsentBytes, timeout: o.WriteTimeout, take: o.TakeTimeout, total: o.Unsent}
	x.raw = rawConn(conn) // without one, a goroutine writes
	x.attempt = x.writeOnce
}

// admit counts a frame, and waits while the client has sent too much.
func (x *webSocket) admit(bytes int) error {
	wait, err := x.meter.take(bytes)
	holdBack(wait, x.closing)
	return err
}

// receive returns the next text message, and answers control frames on the way. At most the first readBuffer bytes of
// a message are valid only until the next call: longer ones have memory of their own.
func (x *webSocket) receive() ([]byte, error) {
	for {
		op, payload, err := x.in.next()
		if err != nil {
			return nil, err
		}
		switch op {
		case ws.OpText:
			return payload, nil
		case ws.OpPing:
			if !x.in.pingFollows() {
				x.send(controlFrame(ws.OpPong, payload))
			}
		case ws.OpClose:
			return nil, closeReply(payload)
		}
	}
}

// closeReply is the status that answers a client's close frame: its own, or that it is none.
func closeReply(payload []byte) closeError {
	if len(payload) == 0 {
		return errLeft
	}
	code, reason := ws.ParseCloseFrameData(payload)
	if ws.CheckCloseFrameData(code, reason) != nil {
		return errProtocol
	}
	return closeError{code, ""}
}

// end closes the connection after its reader stopped with cause, and returns when nothing of it is left. A client that
// broke the protocol is told so; one that went away is not waited for.
func (x *webSocket) end(cause error) {
	x.meter.end()
	var told closeError
	switch {
	case errors.As(cause, &told):
		x.finish(told)
	case !x.closing():
		x.cut(cause)
	}
	x.awaitEnd()
}

// kept is a message that may outlive the next call of receive. Packets without data need no memory.
func kept(message []byte) []byte {
	if 1 < len(message) && len(message) <= readBuffer {
		return bytes.Clone(message)
	}
	return message
}

// frameReader takes apart what a client sends, as RFC 6455 wants it from a server without extensions.
type frameReader struct {
	in      *bufio.Reader
	max     int                   // bytes of one message, all its fragments together
	admit   func(bytes int) error // is asked before a frame's payload is read, and may wait; nil = every frame is welcome
	state   ws.State
	message []byte                     // the fragments so far
	parts   int                        // how many
	scratch [ws.MaxHeaderSize - 2]byte // for ReadHeaderBuffer
}

// next returns a control frame or a whole text message, good until the next call. A violation is a closeError.
func (r *frameReader) next() (ws.OpCode, []byte, error) {
	for {
		h, err := r.header()
		if err != nil {
			return 0, nil, err
		}
		if r.admit != nil {
			if err := r.admit(int(h.Length)); err != nil {
				return 0, nil, err
			}
		}
		if h.OpCode.IsControl() {
			payload, err := r.small(h)
			return h.OpCode, payload, err
		}
		payload, err := r.fragment(h)
		if err != nil {
			return 0, nil, err
		}
		if h.Fin {
			if !utf8.Valid(payload) {
				return 0, nil, errUTF8
			}
			return ws.OpText, payload, nil
		}
	}
}

// header reads and checks one frame's header; the frame is then known to fit.
func (r *frameReader) header() (ws.Header, error) {
	start, err := r.in.Peek(2)
	if err != nil {
		return ws.Header{}, err
	}
	form := start[1] & 0x7f
	h, err := ws.ReadHeaderBuffer(r.in, r.scratch[:])
	if errors.Is(err, ws.ErrHeaderLengthMSB) {
		return h, errProtocol
	}
	if err != nil {
		return h, err
	}
	minimal := form < 126 || form == 126 && h.Length > 125 || form == 127 && h.Length > 0xffff
	switch {
	case !minimal || ws.CheckHeader(h, r.state) != nil:
		return h, errProtocol
	case h.OpCode == ws.OpBinary:
		return h, errBinary
	case h.OpCode.IsData() && h.Length > int64(r.max-len(r.message)):
		return h, errTooLarge
	}
	return h, nil
}

// fragment reads the payload of a data frame: with the last one it returns the message.
func (r *frameReader) fragment(h ws.Header) ([]byte, error) {
	if h.Fin && !r.state.Fragmented() && h.Length <= readBuffer {
		return r.small(h)
	}
	start := len(r.message)
	if err := r.grow(int(h.Length)); err != nil {
		return nil, err
	}
	ws.Cipher(r.message[start:], h.Mask, 0)
	if r.parts++; r.parts > freeParts+len(r.message)/partBytes {
		return nil, errTooSmall
	}
	if !h.Fin {
		r.state = r.state.Set(ws.StateFragmented)
		return nil, nil
	}
	message := r.message
	r.message, r.parts, r.state = nil, 0, r.state.Clear(ws.StateFragmented)
	return message, nil
}

// pingFollows tells whether another ping has come in whole. Only the last one needs a pong (RFC 6455, section 5.5.3).
func (r *frameReader) pingFollows() bool {
	head, _ := r.in.Peek(min(2, r.in.Buffered()))
	return len(head) == 2 && head[0] == 0x80|byte(ws.OpPing) && r.in.Buffered() >= ws.MinHeaderSize+4+int(head[1]&0x7f)
}

// small unmasks a payload where it lies, in the read buffer.
func (r *frameReader) small(h ws.Header) ([]byte, error) {
	payload, err := r.in.Peek(int(h.Length))
	if err != nil {
		return nil, err
	}
	ws.Cipher(payload, h.Mask, 0)
	_, err = r.in.Discard(len(payload))
	return payload, err
}

// grow appends n bytes of the connection to the message, with memory for what has come and not for what is announced.
func (r *frameReader) grow(n int) error {
	for n > 0 {
		have := len(r.message)
		step := min(n, max(readStep, have))
		r.message = slices.Grow(r.message, step)[:have+step]
		if _, err := io.ReadFull(r.in, r.message[have:]); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

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

	mu       sync.Mutex    // only that of unsent is locked under it
	queued   [][]byte      // the first one may be partly written
	waiting  waitingFrames // behind those in queued, while draining
	backlog  backlog       // in queued and waiting
	promised bool          // somebody is going to flush
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
			o.kill(errTooSlow)
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
			o.kill(err)
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
func (o *outbox) tooSlow() { o.cut(errTooSlow) }

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
			o.kill(err)
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
		o.kill(errClosed)
	}
}

// cut closes the connection now.
func (o *outbox) cut(cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kill(cause)
}

// kill is cut under mu.
func (o *outbox) kill(cause error) {
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
	o.cut(errClosed)
}
