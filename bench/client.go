package main

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/gobwas/ws"
)

// What a client may ask for.
const (
	askJoin = iota
	askHeartbeat
	askLeave
)

// outstanding is how many requests of one client may wait for their answers at the same time, and how many updates back
// their time of sending is known.
const outstanding = 64

// client is one Socket.IO connection, the member of one room under the name of its number there. Its reader answers pings
// and checks events; requests may come from anybody.
type client struct {
	load  *load
	room  *room
	index int // in the room

	frames *frames

	mu      sync.Mutex // guards all below
	view    view
	epoch   int64
	joined  bool
	updates int64 // how many it has sent in this incarnation
	asked   int64 // requests so far
	asks    [outstanding]struct {
		kind int
		at   int64
	}
	payload, frame []byte // memory of the last request

	sentAt [outstanding]atomic.Int64 // of the updates, for those who receive them
}

// act runs one request.
func (c *client) act(request func(*client)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	request(c)
}

// join, leave, heartbeat and patch send a request; call them under mu.
func (c *client) join() {
	b := c.start(askJoin, `["presence:join",{"roomId":"`)
	b = append(append(b, c.room.id...), `","userId":"u`...)
	b = strconv.AppendInt(b, int64(c.index), 10)
	c.updates = 0
	c.send(append(b, `","state":{"n":0}}]`...))
}

func (c *client) leave() {
	b := c.start(askLeave, `["presence:leave",{"roomId":"`)
	c.send(append(append(b, c.room.id...), `"}]`...))
}

func (c *client) heartbeat() { c.send(append(c.startHeartbeat(), `}]`...)) }

func (c *client) patch() {
	b := append(c.startHeartbeat(), `,"patchState":{"n":`...)
	c.updates++
	c.sentAt[c.updates%outstanding].Store(c.load.now())
	c.send(append(strconv.AppendInt(b, c.updates, 10), `}}]`...))
}

func (c *client) startHeartbeat() []byte {
	b := c.start(askHeartbeat, `["presence:heartbeat",{"roomId":"`)
	b = append(append(b, c.room.id...), `","epoch":`...)
	return strconv.AppendInt(b, c.epoch, 10)
}

// start is the beginning of a packet that wants an answer.
func (c *client) start(kind int, text string) []byte {
	ask := &c.asks[c.asked%outstanding]
	ask.kind, ask.at = kind, c.load.now()
	b := strconv.AppendInt(append(c.payload[:0], `42`...), c.asked, 10)
	c.asked++
	c.load.open.Add(1)
	return append(b, text...)
}

func (c *client) send(payload []byte) {
	c.payload = payload
	c.write(ws.OpText, payload)
}

func (c *client) write(op ws.OpCode, payload []byte) {
	c.frame = appendFrame(c.frame[:0], op, payload)
	if _, err := c.frames.conn.Write(c.frame); err != nil {
		c.load.fail(fmt.Errorf("writing: %w", err))
	}
}

// read takes what the server sends, until the connection ends.
func (c *client) read() {
	for {
		if err := c.takeAll(); err != nil {
			c.load.fail(err)
			return
		}
		if err := c.frames.fill(); err != nil {
			c.load.fail(fmt.Errorf("reading: %w", err))
			return
		}
	}
}

// takeAll takes the frames of one read, which all came at the same time.
func (c *client) takeAll() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.load.now()
	for {
		op, payload, ok, err := c.frames.take()
		if err != nil || !ok {
			return err
		}
		switch op {
		case ws.OpText:
			err = c.packet(payload, now)
		case ws.OpPing:
			c.write(ws.OpPong, payload)
		case ws.OpClose:
			_, why := ws.ParseCloseFrameData(payload)
			err = fmt.Errorf("closed by the server: %s", why)
		}
		if err != nil {
			return err
		}
	}
}

func (c *client) packet(b []byte, now int64) error {
	switch {
	case bytes.HasPrefix(b, eventPrefix):
		return c.event(b, now)
	case bytes.HasPrefix(b, []byte("43")):
		return c.answer(b[2:], now)
	case len(b) == 1 && b[0] == '2':
		c.write(ws.OpText, []byte{'3'})
		return nil
	}
	return fmt.Errorf("unexpected packet %q", b[:min(len(b), 100)])
}

func (c *client) event(b []byte, now int64) error {
	e, ok := parseEvent(b)
	if !ok {
		return fmt.Errorf("not an event of this load: %q", b[:min(len(b), 300)])
	}
	c.load.events.Add(1)
	if c.view.event(e) && e.kind == eventUpdate {
		c.load.delivery.record(now - c.room.members[e.member].sentAt[e.n%outstanding].Load())
	}
	return nil
}

// answer takes an acknowledgement, and asks again if that is the mode.
func (c *client) answer(b []byte, now int64) error {
	id, digits := natural(b)
	ask := c.asks[id%outstanding]
	c.load.answers.Add(1)
	c.load.answer.record(now - ask.at)
	if !bytes.HasPrefix(b[digits:], []byte(`[{"ok":true`)) {
		c.load.refuse(b[digits:])
	}
	switch ask.kind {
	case askJoin:
		c.joined = true
		_, self, _ := bytes.Cut(b, []byte(`"self":`))
		c.epoch, _ = number(self, `"epoch":`)
		rev, _ := number(b, `"rev":`)
		c.view.joined(rev, parseMembers(b))
		c.load.joins.Add(1)
	case askLeave:
		c.joined, c.view.in = false, false
	}
	switch {
	case ask.kind == askLeave:
		c.join()
	case c.load.driving.Load():
		c.load.mode.request(c)
	}
	c.load.open.Add(-1)
	return nil
}

// progress is how much of its room the client knows.
func (c *client) progress() (present int, sum int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view.present, c.view.sum
}

// truth is what others should know of the client: its last update, or absent.
func (c *client) truth() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.joined {
		return absent
	}
	return c.updates
}
