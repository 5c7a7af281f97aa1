package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/gobwas/ws"
)

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
		x.abort(cause)
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
