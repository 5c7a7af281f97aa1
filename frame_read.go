package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
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
