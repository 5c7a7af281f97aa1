package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/gobwas/ws"
)

const readBuffer = 4096 // bytes; grows for a longer frame, and shrinks again

// maskKey is the same for every frame: only proxies need a surprise.
var maskKey = [4]byte{0x5a, 0xc3, 0x17, 0x88}

// appendFrame appends a client's frame.
func appendFrame(b []byte, op ws.OpCode, payload []byte) []byte {
	b = append(b, 0x80|byte(op))
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, maskKey[:]...)
	start := len(b)
	b = append(b, payload...)
	ws.Cipher(b[start:], maskKey, 0)
	return b
}

// frames takes apart what a server sends: whole frames without a mask. Many come with one read.
type frames struct {
	conn       net.Conn
	buf        []byte
	start, end int // of what was read and not yet taken
}

func newFrames(conn net.Conn, early []byte) *frames {
	f := &frames{conn: conn, buf: make([]byte, max(readBuffer, len(early)))}
	f.end = copy(f.buf, early)
	return f
}

// fill reads once, behind what is there.
func (f *frames) fill() error {
	if f.start == f.end {
		f.start, f.end = 0, 0
		if len(f.buf) > readBuffer {
			f.buf = make([]byte, readBuffer)
		}
	}
	if f.end == len(f.buf) {
		f.makeRoom()
	}
	n, err := f.conn.Read(f.buf[f.end:])
	f.end += n
	if n > 0 {
		return nil
	}
	return err
}

func (f *frames) makeRoom() {
	to := f.buf
	if f.start < len(f.buf)/2 {
		to = make([]byte, 2*len(f.buf))
	}
	f.end = copy(to, f.buf[f.start:f.end])
	f.buf, f.start = to, 0
}

var errFrame = errors.New("the server sent a frame that is fragmented or masked")

// take returns the next whole frame, or ok = false when it has to be filled first. The payload is good until then.
func (f *frames) take() (op ws.OpCode, payload []byte, ok bool, err error) {
	b := f.buf[f.start:f.end]
	if len(b) < 2 {
		return 0, nil, false, nil
	}
	if b[0]&0x80 == 0 || b[1]&0x80 != 0 {
		return 0, nil, false, errFrame
	}
	header, n := 2, uint64(b[1])
	switch {
	case n == 126:
		header = 4
	case n == 127:
		header = 10
	}
	switch {
	case len(b) < header:
		return 0, nil, false, nil
	case n == 126:
		n = uint64(binary.BigEndian.Uint16(b[2:]))
	case n == 127:
		n = binary.BigEndian.Uint64(b[2:])
	}
	if uint64(len(b)-header) < n {
		return 0, nil, false, nil
	}
	end := header + int(n)
	f.start += end
	return ws.OpCode(b[0] & 0x0f), b[header:end], true, nil
}

// next waits for a frame.
func (f *frames) next() (ws.OpCode, []byte, error) {
	for {
		op, payload, ok, err := f.take()
		if ok || err != nil {
			return op, payload, err
		}
		if err := f.fill(); err != nil {
			return 0, nil, err
		}
	}
}

var errUnexpected = errors.New("unexpected answer")

// expect waits for a text frame that begins so.
func (f *frames) expect(prefix string) error {
	op, payload, err := f.next()
	if err != nil {
		return fmt.Errorf("waiting for %q: %w", prefix, err)
	}
	if op != ws.OpText || !bytes.HasPrefix(payload, []byte(prefix)) {
		return fmt.Errorf("%w: %q instead of %q", errUnexpected, payload[:min(len(payload), 100)], prefix)
	}
	return nil
}

func sendText(to io.Writer, payload string) error {
	_, err := to.Write(appendFrame(nil, ws.OpText, []byte(payload)))
	return err
}

// What a client learns of an event.
type event struct {
	kind   byte // eventJoin, eventUpdate or eventLeave
	member int  // of the room, by its number
	rev    int64
	n      int64 // which update of the member
}

// Kinds of events, by their first letters.
const (
	eventJoin   = 'j'
	eventUpdate = 'u'
	eventLeave  = 'l'
)

var eventPrefix = []byte(`42["presence:event",`)

// parseEvent finds the fields that matter, wherever they stand. A state of this load has no field of another name.
func parseEvent(b []byte) (e event, ok bool) {
	_, kind, ok := bytes.Cut(b, []byte(`"type":"`))
	if !ok || len(kind) == 0 {
		return e, false
	}
	member, known := number(b, `"userId":"u`)
	rev, ordered := number(b, `"rev":`)
	n, counted := number(b, `"n":`)
	e = event{kind: kind[0], member: int(member), rev: rev, n: n}
	return e, known && ordered && (counted || e.kind == eventLeave)
}

// number is the natural number behind a key.
func number(b []byte, key string) (int64, bool) {
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return 0, false
	}
	n, digits := natural(b[i+len(key):])
	return n, digits > 0
}

func natural(b []byte) (n int64, digits int) {
	for digits < len(b) && '0' <= b[digits] && b[digits] <= '9' {
		n = 10*n + int64(b[digits]-'0')
		digits++
	}
	return n, digits
}

// parseMembers lists the members of a snapshot by their numbers.
func parseMembers(b []byte) (members []int) {
	key := []byte(`"userId":"u`)
	for {
		i := bytes.Index(b, key)
		if i < 0 {
			return members
		}
		b = b[i+len(key):]
		n, _ := natural(b)
		members = append(members, int(n))
	}
}
