package main

import (
	"encoding/binary"
	"iter"
	"slices"

	"github.com/gobwas/ws"
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
