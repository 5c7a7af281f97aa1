package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// modelClient is a client and what it may expect. It is also the link that its node writes to.
type modelClient struct {
	id     string
	node   *modelNode
	socket *client
	places map[string]*place
	views  map[string]*sight // of the rooms that it is told of
	op     *modelRequest     // under way, nil if there is none
	over   bool
	calls  int

	mu       sync.Mutex
	frames   []frame // queued, not yet judged
	came     []time.Time
	unsaid   bool
	returned bool // the node is done with the packet
	failed   error
	shutdown bool
}

// place is what a client may expect of a room.
type place struct {
	in          bool // it joined, and has not left since
	unsure      bool // a join or leave has an unknown outcome
	loose       bool // its state is not known
	busy        bool // something is under way that may refresh it
	joining     bool
	leaving     bool
	user        string
	others      []string // users of joins with an unknown outcome
	epoch       int64
	heard       int64   // when the last heartbeat was begun that is acknowledged
	mayBeHeard  int64   // when the last one ended that may have been heard of
	heartbeats  []int64 // like heard
	state       map[string]int
	maybe       map[string][]int // of patches with unknown outcome
	kickedEarly bool             // before the acknowledgement of its join
}

func (c *modelClient) queue(f frame, _ memberUpdate) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames, c.came = append(c.frames, f), append(c.came, time.Now())
	first := !c.unsaid
	c.unsaid = true
	return first
}

func (c *modelClient) queueParts(f frameParts) bool {
	return c.queue(bytes.Join(f, nil), memberUpdate{})
}

func (c *modelClient) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsaid = false
}

func (c *modelClient) finish(closeError) { c.shut(closeError{}) }

func (c *modelClient) shut(closeError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shutdown = true
}

// modelPlace is a connection in a room.
type modelPlace struct{ room, conn string }

// place finds what is known of a connection, wherever it is or was.
func (m *model) place(room, conn string) *place {
	for _, c := range m.clients {
		if c.id == conn {
			return c.places[room]
		}
	}
	return &place{}
}

// modelRequest is a request under way.
type modelRequest struct {
	what    string
	began   time.Time
	acked   bool
	judge   func(m *model, ack wireAck)
	unknown func(m *model)
	places  []*place
}

// connect brings a new client onto a node.
func (m *model) connect() *modelClient {
	m.born++
	n := m.nodes[m.random.IntN(len(m.nodes))]
	c := &modelClient{id: fmt.Sprint("c", m.born), node: n, places: map[string]*place{}, views: map[string]*sight{}}
	for _, l := range m.rooms {
		c.places[l.room] = &place{}
	}
	c.socket = &client{id: c.id, app: n.handlers, log: slog.New(slog.DiscardHandler), link: c}
	if err := c.socket.receive([]byte("0")); err != nil {
		m.wrong("%s cannot connect: %v", c.id, err)
	}
	c.frames, c.came, c.unsaid = nil, nil, false
	m.note("%s connects to n%d", c.id, n.index)
	return c
}

// begin starts a request of a client.
func (m *model) begin(c *modelClient, op *modelRequest, event, payload string) {
	c.calls++
	m.note("%s %s %s", c.id, event, payload)
	c.op, op.began = op, time.Now()
	op.what = event
	for _, p := range op.places {
		p.busy = true
	}
	packet := []byte("2" + strconv.Itoa(c.calls) + `["` + event + `",` + payload + `]`)
	go func() {
		err := c.socket.receive(packet)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.returned, c.failed = true, err
	}()
}

// end closes a client's connection.
func (m *model) end(c *modelClient) {
	goodbye := m.about&aboutGrace != 0 && m.chance(30)
	m.note("%s is gone, with a goodbye: %v", c.id, goodbye)
	c.over = true
	clear(c.views)
	c.op = &modelRequest{what: "end", began: time.Now(), acked: true}
	for room, p := range c.places {
		if m.grace > 0 && !goodbye && p.in {
			m.broken[modelPlace{room, c.id}] = time.Now()
		}
		p.leaving = true
		c.op.places = append(c.op.places, p)
	}
	go func() {
		if goodbye {
			_ = c.socket.receive([]byte{socketDisconnect})
		}
		c.socket.end()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.returned = true
	}()
}

func (m *model) judgeFrames(c *modelClient) {
	c.mu.Lock()
	frames, came, unsaid := c.frames, c.came, c.unsaid
	c.frames, c.came = nil, nil
	c.mu.Unlock()
	if unsaid {
		m.wrong("%s has frames that nobody writes", c.id)
	}
	for i, f := range frames {
		packet := string(f.packet())
		ack, isAck := strings.CutPrefix(packet, "43"+strconv.Itoa(c.calls)+"[")
		name, text, isEvent := strings.Cut(strings.TrimPrefix(packet, `42["`), `",`)
		text = strings.TrimSuffix(text, "]")
		switch {
		case isAck:
			m.judgeAck(c, strings.TrimSuffix(ack, "]"), came[i])
		case !isEvent || !slices.Contains([]string{eventPresence, eventBatch, eventCount}, name):
			m.wrong("%s gets %s", c.id, packet)
		case c.over:
		case name == eventPresence:
			var e wireEvent
			if err := json.Unmarshal([]byte(text), &e); err != nil {
				m.wrong("%s gets an event that nobody can read: %s", c.id, text)
			}
			m.see(c, &e)
		default:
			m.collected(c, name, text)
		}
	}
}

func (m *model) finishOperation(c *modelClient) {
	c.mu.Lock()
	returned := c.returned
	c.returned = false
	c.mu.Unlock()
	if !returned {
		return
	}
	if !c.op.acked || c.failed != nil {
		m.wrong("%s of %s ends without an answer: %v", c.op.what, c.id, c.failed)
	}
	for _, p := range c.op.places {
		p.busy, p.joining, p.leaving = false, false, false
		p.mayBeHeard = max(p.mayBeHeard, m.clock())
	}
	if c.over {
		m.judgeEnd(c)
		for _, p := range c.places {
			p.in = false
		}
	}
	c.op = nil
}

// mayStill tells whether a script that was given up waits for a client in a Redis that hangs.
func (m *model) mayStill(script string, c *modelClient) bool {
	return slices.ContainsFunc(m.pending, func(call *heldCall) bool {
		args := call.cmds[0].Args()
		return call.abandoned() && m.script(args) == script && slices.Contains(args, any(c.id))
	})
}

// abandoned is how many calls are under way whose callers have given them up.
func (m *model) abandoned() (n int) {
	for _, c := range m.pending {
		if c.abandoned() {
			n++
		}
	}
	return n
}
