package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

// Types of Socket.IO packets. A server with one namespace and no binary data needs no more.
const (
	socketConnect      = '0'
	socketDisconnect   = '1'
	socketEvent        = '2'
	socketAck          = '3'
	socketConnectError = '4'
)

// maxConnects is how many CONNECT packets, of this and other namespaces, one transport may bring. A client needs one for each
// namespace and token that it tries; more of them only keep the server busy.
const maxConnects = 16

// jsonSpaces are the characters that JSON allows between its tokens. Node's server takes them around ids and data, too.
const jsonSpaces = " \t\r\n"

var (
	errPacket = closeError{ws.StatusPolicyViolation, "not a Socket.IO packet that is allowed here"}
	errPanic  = closeError{ws.StatusInternalServerError, "internal error"}
)

// app is what the clients are for.
type app interface {
	// connect welcomes c or refuses it: then refusal is the JSON data of CONNECT_ERROR, {"message":…,"data":…}, and p is
	// nil. auth is the JSON object that came with CONNECT, or empty. It runs as events do.
	connect(c *client, auth []byte) (p peer, refusal []byte)
}

// peer is the application's side of one connected client. Its methods are never called at the same time.
type peer interface {
	// event is an event of the client, on the goroutine that reads from it: the next packet waits. args are JSON values
	// that may be kept.
	event(name string, args []json.RawMessage, id ackID)
	// pong is the client's answer to a ping of Engine.IO, as events come.
	pong()
	// ended comes exactly once, after the last event. A client that connects again after its DISCONNECT is another peer.
	ended(reason endReason)
}

// ackID is the id of an acknowledgement that the client waits for, digit by digit as it was sent; nil if it wants none.
type ackID []byte

// endReason tells a client that said goodbye from one that was lost.
type endReason int

const (
	endAbrupt   endReason = iota // the transport is gone: closed by either side, or failed
	endSilent                    // the client did not answer, or read, for so long that the server gave it up
	endByClient                  // the client sent DISCONNECT
	endByServer                  // disconnect was called
)

// link carries a client's packets: a WebSocket's outbox, or a session that began with polling. None of its methods waits for the network, and none
// calls the client back on the same goroutine.
type link interface {
	queue(f frame, of memberUpdate) (flush bool) // an update takes the place of one of the same incarnation, if the client is behind
	queueParts(f frameParts) (flush bool)
	flush()
	finish(why closeError) // closes after what is queued has left
	shut(why closeError)   // closes
}

// client is one Socket.IO client on namespace "/". Its methods may be called from any goroutine at any time, also inside
// of event; they never wait for the network.
type client struct {
	id     string
	addr   string
	bearer string // token of the handshake's Authorization header, "" = none
	app    app
	log    *slog.Logger
	link   link
	ending atomic.Int32 // 0, or 1 + the endReason of close or disconnect

	connected atomic.Bool // CONNECT was answered
	held      holding

	in       mutex[ofClient] // one packet, or the end, at a time; nothing that sends takes it
	peer     peer            // while connected
	over     bool
	silent   *time.Timer        // ends a client that does not connect; nil while connected
	startEnd func() *time.Timer // starts silent; nil where nothing bounds the time

	connects uint8 // CONNECT packets so far
}

// newID is what others see of a client: 20 random characters. The Engine.IO sid is none of their business, because whoever
// knows it can speak for the client.
func newID() string {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// begin gives the client its time to connect, now and after each DISCONNECT: start starts a timer that ends it.
func (c *client) begin(start func() *time.Timer) {
	c.in.Lock()
	defer c.in.Unlock()
	c.startEnd = start
	c.startWaiting()
}

func (c *client) startWaiting() {
	if !c.over && c.startEnd != nil {
		c.silent = c.startEnd()
	}
}

// ID is the Socket.IO id, the connId of presence.
func (c *client) ID() string { return c.id }

// remoteAddr is the address of the peer of the connection, with port.
func (c *client) remoteAddr() string { return c.addr }

// send sends one packet.
func (c *client) send(f frame) {
	if c.queue(f, memberUpdate{}) {
		c.flush()
	}
}

// queue puts f behind what was sent before. It reports whether the client needs a flush now: so that the frames of a batch
// leave in one write.
func (c *client) queue(f frame, of memberUpdate) bool {
	return !c.held.keeps(f) && c.link.queue(f, of)
}

// hold keeps back what is queued from now on, until release is called, once, with what goes before it; nil = nothing does.
// There is one hold at a time.
func (c *client) hold() (release func(first frameParts)) {
	end := c.held.begin()
	keep := func(f frame) bool { return c.link.queue(f, memberUpdate{}) } // updates too: they are few
	return func(first frameParts) {
		if end(func() bool { return first != nil && c.link.queueParts(first) }, keep) {
			c.flush()
		}
	}
}

// flush writes what is queued.
func (c *client) flush() { c.link.flush() }

// ack acknowledges an event with one JSON argument; without an id nobody waits for it.
func (c *client) ack(id ackID, payload []byte) {
	if id != nil {
		c.send(newFrame([]byte{socketAck}, id, []byte{'['}, payload, []byte{']'}))
	}
}

// ackOf is the acknowledgement with one JSON argument in three parts, the second of which others are sent as well; nil without an id.
func ackOf(id ackID, before, shared, behind []byte) frameParts {
	if id == nil {
		return nil
	}
	head := append(append(append([]byte{socketAck}, id...), '['), before...)
	return newFrameParts(head, shared, append(behind, ']'))
}

// close closes the transport without a word: socket.io-client comes back by itself.
func (c *client) close() { c.closeFor(errClosed) }

// closeFor is close, for a reason that the close frame tells.
func (c *client) closeFor(why closeError) {
	c.ending.CompareAndSwap(0, 1+int32(endAbrupt))
	c.link.shut(why)
}

// giveUp is close for a client that is silent.
func (c *client) giveUp() {
	c.wasSilent()
	c.close()
}

// wasSilent notes why the connection ends, if no other reason is known.
func (c *client) wasSilent() { c.ending.CompareAndSwap(0, 1+int32(endSilent)) }

// disconnect says goodbye for good: after a DISCONNECT socket.io-client stays away.
func (c *client) disconnect() {
	if !c.ending.CompareAndSwap(0, 1+int32(endByServer)) {
		return // its end is under way
	}
	if c.link.queue(newFrame([]byte{socketDisconnect}), memberUpdate{}) { // whatever is held back
		c.flush()
	}
	c.link.finish(errLeft)
}

// receive takes one Socket.IO packet, whose memory it may keep. After an error the link has to close.
func (c *client) receive(packet []byte) (err error) {
	c.in.Lock()
	defer c.in.Unlock()
	if c.over || c.ending.Load() != 0 {
		return errClosed
	}
	defer c.recovered(&err)
	return c.packet(packet)
}

// pong tells the application that the client answered a ping.
func (c *client) pong() (err error) {
	c.in.Lock()
	defer c.in.Unlock()
	if c.peer != nil && !c.over {
		defer c.recovered(&err)
		c.peer.pong()
	}
	return nil
}

// end is the end, once the link takes no more packets.
func (c *client) end() {
	reason := endAbrupt
	if n := c.ending.Load(); n != 0 {
		reason = endReason(n - 1)
	}
	c.in.Lock()
	defer c.in.Unlock()
	c.endLocked(reason)
}

func (c *client) endLocked(reason endReason) {
	if c.over {
		return
	}
	c.over = true
	c.stopWaiting()
	c.endPeer(reason)
}

// endPeer tells the application that its peer is gone, if there is one.
func (c *client) endPeer(reason endReason) {
	if c.peer == nil {
		return
	}
	var err error // logged
	defer c.recovered(&err)
	p := c.peer
	c.peer = nil
	c.connected.Store(false)
	p.ended(reason)
}

func (c *client) stopWaiting() {
	if c.silent != nil {
		c.silent.Stop()
		c.silent = nil
	}
}

// recovered keeps a panic of the application to this client.
func (c *client) recovered(err *error) {
	if p := recover(); p != nil {
		c.log.Error("panic while serving a client", "conn", c.id, "panic", p, "stack", string(debug.Stack()))
		*err = errPanic
	}
}

// packet takes one packet: its type, a namespace, an id, and JSON.
func (c *client) packet(b []byte) error {
	if len(b) == 0 {
		return errPacket
	}
	kind, rest := b[0], b[1:]
	if len(rest) > 0 && rest[0] == '/' {
		name, after, _ := bytes.Cut(rest, []byte{','})
		if len(name) > 1 {
			return c.otherNamespace(kind, name)
		}
		rest = after
	}
	id, data := cutID(rest)
	switch {
	case kind == socketConnect && c.peer == nil:
		return c.welcome(data)
	case c.peer == nil:
		return errPacket
	case kind == socketEvent:
		return c.event(id, data)
	case kind == socketAck:
		return nil // this server asks for none
	case kind == socketDisconnect && len(data) == 0:
		c.endPeer(endByClient) // the client closes the transport, or connects again
		c.startWaiting()
		return nil
	}
	return errPacket // a second CONNECT, binary packets, unknown ones
}

// cutID takes the id off a packet whose type and namespace are off already. What remains is JSON without spaces around it.
func cutID(b []byte) (id ackID, data []byte) {
	b = bytes.Trim(b, jsonSpaces)
	digits := 0
	for digits < len(b) && '0' <= b[digits] && b[digits] <= '9' {
		digits++
	}
	if digits > 0 {
		id = ackID(b[:digits:digits])
	}
	return id, bytes.TrimLeft(b[digits:], jsonSpaces)
}

func (c *client) otherNamespace(kind byte, name []byte) error {
	if kind != socketConnect {
		return errPacket
	}
	if err := c.countConnect(); err != nil {
		return err
	}
	c.send(newFrame([]byte{socketConnectError}, name, []byte(`,{"message":"Invalid namespace"}`)))
	return nil
}

// countConnect has a client closed that sends CONNECT over and over.
func (c *client) countConnect() error {
	if c.connects == maxConnects {
		return errPacket
	}
	c.connects++
	return nil
}

// welcome handles CONNECT. A client that is refused may try again until its time is over.
func (c *client) welcome(auth []byte) error {
	if len(auth) > 0 && (auth[0] != '{' || !json.Valid(auth)) {
		return errPacket
	}
	if err := c.countConnect(); err != nil {
		return err
	}
	p, refusal := c.app.connect(c, auth)
	if p == nil {
		c.send(newFrame([]byte{socketConnectError}, refusal))
		return nil
	}
	c.peer = p
	c.stopWaiting()
	flush := c.queue(newFrame([]byte{socketConnect}, fmt.Appendf(nil, `{"sid":%q}`, c.id)), memberUpdate{})
	c.connected.Store(true) // between the two: nothing precedes the answer, and who has the answer is known
	if flush {
		c.flush()
	}
	return nil
}

func (c *client) event(id ackID, data []byte) error {
	args, ok := splitArray(data)
	if !ok || len(args) == 0 {
		return errPacket
	}
	name, ok := eventName(args[0])
	if !ok {
		return errPacket
	}
	c.peer.event(name, args[1:], id)
	return nil
}

// eventName decodes the first element of an EVENT: a number, or a string that Socket.IO does not reserve for itself.
func eventName(raw json.RawMessage) (string, bool) {
	if first := raw[0]; first == '-' || '0' <= first && first <= '9' {
		return string(raw), true
	}
	if raw[0] != '"' {
		return "", false
	}
	name := string(unquote(raw))
	switch name {
	case "connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener":
		return "", false
	}
	return name, true
}

// eventFrame is an event with arguments that are JSON.
func eventFrame(name string, args ...[]byte) frame {
	b := appendString([]byte{socketEvent, '['}, name)
	for _, a := range args {
		b = append(append(b, ','), a...)
	}
	return newFrame(b, []byte{']'})
}
