package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	modelSeed      = flag.Uint64("seed", 0, "run the one schedule of the model with this seed, and tell its steps")
	modelSchedules = flag.Int("schedules", 0, "how many schedules the model runs, chosen anew each time; 0 = the 10,000 of CI, a tenth of them with the race detector")
)

// The settings of the model. Its time is virtual.
const (
	modelNodes          = 3
	modelTTL            = 4 * time.Second
	modelLookback       = 8 * time.Second
	modelReaperInterval = time.Second
	modelLease          = 6 * time.Second

	// Keys in Redis grow older in steps of this size.
	modelAging = 50 * time.Millisecond

	// Schedules that run at the same time.
	modelParallel = 4

	// What timers that fire at the same moment as a deadline may add to an answer's time.
	modelTolerance = 5 * time.Millisecond
)

// model is three nodes on one Redis, a few clients, and a judge who sees all that happens. It lives in a bubble of synctest:
// whenever all goroutines wait, a random number says what happens next, so that a seed is a schedule.
//
// It judges after each step what the clients have heard (G1, G2, G3), what Redis has published (G4, G5, G7, G8), and now and
// then and in each quiet moment all that Redis has (G6).
type model struct {
	ctx         context.Context
	config      Config
	random      *rand.Rand
	redis       *modelRedis
	scripts     scripts
	scriptNames map[string]string

	calm     bool // no call, no message gets lost, and nothing takes long
	lossy    bool // messages and subscriptions get lost
	troubled bool // calls get lost, or are late
	lost     bool // Redis has lost its data
	flushed  bool // Redis has lost the scripts
	resting  bool // nothing fails for now
	hung     bool // Redis has not answered since it hung
	culled   bool // a member has left whose client lives: its node may take that for a loss of data

	rooms   []*ledger
	nodes   []*modelNode
	clients []*modelClient
	born    int // clients so far
	patches int

	mu      sync.Mutex
	arrived []*heldCall
	errors  []string // of the nodes

	pending []*heldCall
	ticked  int64 // the time that Redis knows
	aged    int64 // virtual milliseconds up to which the keys have aged
	steps   []modelStep
	wrongs  []string
}

// clock is the time of Redis.
func (m *model) clock() int64 { return time.Now().UnixMilli() }

// modelStep is a line of the trace, which is made only when it is wanted.
type modelStep struct {
	at     time.Time
	format string
	args   []any
}

func (s modelStep) String() string {
	for i, arg := range s.args {
		if later, ok := arg.(func() string); ok {
			s.args[i] = later()
		}
	}
	return s.at.Format("05.0000 ") + fmt.Sprintf(s.format, s.args...)
}

// note adds a line to the trace. Its arguments must not change, but functions are called only when it is wanted.
func (m *model) note(format string, args ...any) {
	m.steps = append(m.steps, modelStep{time.Now(), format, args})
}

func (m *model) wrong(format string, args ...any) {
	m.wrongs = append(m.wrongs, fmt.Sprintf(format, args...))
	m.note("WRONG %s", m.wrongs[len(m.wrongs)-1])
}

func (m *model) chance(percent int) bool { return m.random.IntN(100) < percent }

func (m *model) arrive(c *heldCall) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arrived = append(m.arrived, c)
}

// modelNode is what a server has between Redis and its sockets.
type modelNode struct {
	*model
	node
	index int

	subs     sync.Mutex
	wants    map[string]bool // rooms: true once Redis has confirmed the subscription
	messages []bridgeItem    // on their way
}

func (m *model) startNode(i int) {
	n := &modelNode{model: m, index: i, wants: map[string]bool{}}
	n.log = slog.New(slog.NewTextHandler(modelLog{m}, &slog.HandlerOptions{Level: slog.LevelError}))
	n.service = newService(m.redis.clients[i], Options{TTL: modelTTL, Lookback: modelLookback, ReaperInterval: -1, Grace: m.config.Grace,
		NodeLease: m.config.NodeLease, Logger: n.log}, m.scripts)
	n.service.options.ReaperInterval = modelReaperInterval
	newReaper(n.service).start()
	n.wireRooms(m.config)
	n.hub.bridge = n
	n.lease.node = fmt.Sprint("node", i) // a random name would make each run another one
	n.lease.start(n.healer.lostData)
	m.nodes = append(m.nodes, n)
	m.collect()
}

// modelLog takes errors, which no node should have, into the trace.
type modelLog struct{ *model }

func (l modelLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, string(line))
	return len(line), nil
}

func (n *modelNode) stop() {
	n.workers.close()
	n.owed.close(n.ctx)
	n.healer.close()
	n.hub.close()
	n.lease.close(n.ctx, true)
	n.service.Stop()
}

func (n *modelNode) subscribe(room string) {
	n.subs.Lock()
	defer n.subs.Unlock()
	n.wants[room] = false
}

func (n *modelNode) unsubscribe(room string) {
	n.subs.Lock()
	defer n.subs.Unlock()
	delete(n.wants, room)
}

// hear puts a message on its way to the node, if it is subscribed.
func (n *modelNode) hear(room, payload string) {
	n.subs.Lock()
	defer n.subs.Unlock()
	if n.wants[room] {
		n.messages = append(n.messages, bridgeItem{room: room, payload: payload})
	}
}

// unconfirmed are the rooms whose subscription Redis has yet to confirm.
func (n *modelNode) unconfirmed() (rooms []string) {
	n.subs.Lock()
	defer n.subs.Unlock()
	for room, confirmed := range n.wants {
		if !confirmed {
			rooms = append(rooms, room)
		}
	}
	slices.Sort(rooms)
	return rooms
}

func (n *modelNode) confirm(room string) {
	n.subs.Lock()
	n.wants[room] = true
	n.messages = append(n.messages, bridgeItem{room: room, subscribed: true})
	n.subs.Unlock()
	n.note("n%d is subscribed to %s", n.index, room)
}

// deliver hands over the next messages, as the bridge does.
func (n *modelNode) deliver(count int) {
	for range min(count, len(n.messages)) {
		item := n.messages[0]
		n.messages = n.messages[1:]
		if item.subscribed {
			n.note("n%d reads %s anew", n.index, item.room)
			n.hub.subscribed(item.room)
			continue
		}
		n.note("n%d hears %.40s", n.index, item.payload)
		n.hub.message(item.room, item.payload)
	}
	n.hub.settled()
}

// cut loses the subscription's connection, and what was on its way.
func (n *modelNode) cut() {
	n.note("n%d loses its subscriptions", n.index)
	n.subs.Lock()
	defer n.subs.Unlock()
	n.messages = nil
	for room := range n.wants {
		n.wants[room] = false
	}
}

// modelClient is a client and what it may expect. It is also the link that its node writes to.
type modelClient struct {
	id     string
	node   *modelNode
	socket *client
	places map[string]*place
	op     *modelRequest // under way, nil if there is none
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
	in         bool // it joined, and has not left since
	unsure     bool // a join or leave has an unknown outcome
	loose      bool // its state is not known
	busy       bool // something is under way that may refresh it
	joining    bool
	leaving    bool
	user       string
	others     []string // users of joins with an unknown outcome
	epoch      int64
	heard      int64   // when the last heartbeat was begun that is acknowledged
	mayBeHeard int64   // when the last one ended that may have been heard of
	heartbeats []int64 // like heard
	state      map[string]int
	maybe      map[string][]int // of patches with unknown outcome
	view       *sight           // nil before the acknowledgement of a join and after that of a leave
}

func (c *modelClient) queue(f frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames, c.came = append(c.frames, f), append(c.came, time.Now())
	first := !c.unsaid
	c.unsaid = true
	return first
}

func (c *modelClient) queueParts(f frameParts) bool { return c.queue(bytes.Join(f, nil)) }

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
	c := &modelClient{id: fmt.Sprint("c", m.born), node: n, places: map[string]*place{}}
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
	m.note("%s is gone", c.id)
	c.over = true
	c.op = &modelRequest{what: "end", began: time.Now(), acked: true}
	for _, p := range c.places {
		p.leaving, p.view = true, nil
		c.op.places = append(c.op.places, p)
	}
	go func() {
		c.socket.end()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.returned = true
	}()
}

// collect takes what happened since the last time: calls that wait, frames, requests that are over.
func (m *model) collect() {
	pause(m.ctx, time.Duration(1+m.random.IntN(9))*time.Microsecond) // so that hardly ever two timers end at once
	synctest.Wait()
	m.mu.Lock()
	arrived, errors := m.arrived, m.errors
	m.arrived, m.errors = nil, nil
	m.mu.Unlock()
	for _, line := range errors {
		m.wrong("a node complains: %s", line)
	}
	if len(arrived) > 1 {
		slices.SortFunc(arrived, func(a, b *heldCall) int { return cmp.Compare(m.names(a), m.names(b)) })
	}
	m.pending = append(m.pending, arrived...)
	for _, c := range m.clients {
		m.judgeFrames(c)
		m.finishOperation(c)
	}
	m.judgeViews()
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
		text, isEvent := strings.CutPrefix(packet, `42["presence:event",`)
		switch {
		case isAck:
			m.judgeAck(c, strings.TrimSuffix(ack, "]"), came[i])
		case isEvent && !c.over:
			var e wireEvent
			if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "]")), &e); err != nil {
				m.wrong("%s gets an event that nobody can read: %s", c.id, text)
			}
			m.see(c, &e)
		case !isEvent:
			m.wrong("%s gets %s", c.id, packet)
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
		for _, p := range c.places {
			p.in = false
		}
	}
	c.op = nil
}

// mayStillJoin tells whether a join that was given up waits in a Redis that hangs.
func (m *model) mayStillJoin(c *modelClient) bool {
	return slices.ContainsFunc(m.pending, func(call *heldCall) bool {
		args := call.cmds[0].Args()
		return call.abandoned() && m.script(args) == "join" && slices.Contains(args, any(c.id))
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

// hang lets Redis do nothing for longer than anybody waits for it. What has reached it before runs soon after it answers again, in
// any order.
func (m *model) hang() {
	if !m.hung {
		m.drain()
	}
	m.hung = true
	m.note("Redis hangs")
	m.pass(answerWithin + 100*time.Millisecond)
}

// request starts something that the client can do.
func (m *model) request(c *modelClient) {
	l := m.rooms[m.random.IntN(len(m.rooms))]
	p := c.places[l.room]
	dice := m.random.IntN(100)
	if !p.in && dice < 60 {
		m.join(c, l)
		return
	}
	switch {
	case dice < 30:
		m.patch(c, l, 0)
	case dice < 45:
		m.beat(c, l)
	case dice < 53:
		m.stale(c, l, p.epoch-1)
	case dice < 60:
		m.stale(c, l, p.epoch+1+m.random.Int64N(1e6))
	case dice < 76:
		m.join(c, l)
	case dice < 85:
		m.leave(c, l)
	case dice < 90:
		m.get(c, l)
	case dice < 94:
		m.visit(l)
	default:
		m.end(c)
	}
}

func (m *model) join(c *modelClient, l *ledger) {
	p := c.places[l.room]
	m.patches++
	user, n := fmt.Sprint("u", m.random.IntN(3)), m.patches
	if p.in && m.chance(50) {
		user = p.user
	}
	p.joining = true
	began := m.clock()
	m.begin(c, &modelRequest{
		places: []*place{p},
		judge: func(m *model, ack wireAck) {
			if !ack.OK {
				m.wrong("%s cannot join: %s", c.id, ack.Code)
				return
			}
			if !l.joins[placeID{c.id, ack.Self.Epoch}] || ack.Self.Epoch <= p.epoch || ack.Self.ConnID != c.id {
				m.wrong("G7: %s is told of epoch %d after %d", c.id, ack.Self.Epoch, p.epoch)
			}
			if ack.Rev < ack.Self.Epoch || ack.TTLMs != modelTTL.Milliseconds() {
				m.wrong("the join of %s at %d is answered with revision %d, TTL %d", c.id, ack.Self.Epoch, ack.Rev, ack.TTLMs)
			}
			m.judgeSnapshot(l, ack.Rev, ack.Snapshot, modelTTL/2)
			*p = place{in: true, busy: true, joining: true, user: user, epoch: ack.Self.Epoch, mayBeHeard: p.mayBeHeard,
				state: map[string]int{"n": n}, maybe: map[string][]int{}, view: p.view}
			p.heartbeat(began)
			if p.view == nil {
				p.view = &sight{facts: entries(ack.Snapshot), rev: ack.Rev, from: ack.Rev}
			}
		},
		unknown: func(*model) {
			p.unsure, p.loose = true, true
			p.others = append(p.others, user)
		},
	}, eventJoin, fmt.Sprintf(`{"roomId":%q,"userId":%q,"state":{"n":%d}}`, l.room, user, n))
}

func (p *place) heartbeat(began int64) {
	p.heard = began
	p.heartbeats = append(p.heartbeats, began)
}

// patch sends a heartbeat with a patch, and with the epoch if it is not 0.
func (m *model) patch(c *modelClient, l *ledger, epoch int64) {
	p := c.places[l.room]
	key := fmt.Sprint("k", m.random.IntN(2))
	value := p.state[key]
	if value == 0 || m.chance(75) {
		m.patches++
		value = m.patches
	}
	changes := p.state[key] != value
	m.heartbeat(c, l, fmt.Sprintf(`,"patchState":{%q:%d}`, key, value), func(m *model, ack wireAck) {
		if known := len(p.maybe[key]) == 0 && !p.loose; known && *ack.Changed != changes {
			m.wrong("a patch of %s answers changed: %v", c.id, *ack.Changed)
		}
		p.state[key] = value
		delete(p.maybe, key)
	}, func(*model) {
		if p.maybe != nil {
			p.maybe[key] = append(p.maybe[key], value)
		}
	})
}

// beat sends a heartbeat without a patch.
func (m *model) beat(c *modelClient, l *ledger) {
	more := ""
	if p := c.places[l.room]; p.in && !p.unsure && m.chance(50) {
		more = fmt.Sprintf(`,"epoch":%d`, p.epoch)
	}
	m.heartbeat(c, l, more, func(m *model, ack wireAck) {
		if *ack.Changed {
			m.wrong("a heartbeat of %s answers that it changed something", c.id)
		}
	}, func(*model) {})
}

func (m *model) heartbeat(c *modelClient, l *ledger, more string, judge func(*model, wireAck), unknown func(*model)) {
	p := c.places[l.room]
	began := m.clock()
	m.begin(c, &modelRequest{
		places: []*place{p},
		judge: func(m *model, ack wireAck) {
			switch {
			case !ack.OK && ack.Code == string(CodeNotJoined) && (!p.in || p.unsure):
				*p = place{busy: true, epoch: p.epoch}
			case !ack.OK || !p.in:
				m.wrong("a heartbeat of %s is answered with %v %s", c.id, ack.OK, ack.Code)
			default:
				member, there := l.facts[c.id]
				if p.unsure && *ack.Epoch >= p.epoch && slices.Contains(append(p.others, p.user), member.user) {
					if *ack.Epoch > p.epoch && !m.mayStillJoin(c) {
						p.unsure, p.others = false, nil
					}
					p.epoch, p.user = *ack.Epoch, member.user
				}
				if *ack.Epoch != p.epoch || !there || member.epoch != p.epoch || member.user != p.user {
					m.wrong("G7: %s has epoch %d, %d is acknowledged, the room has %d", c.id, p.epoch, *ack.Epoch, member.epoch)
				}
				p.heartbeat(began)
				judge(m, ack)
			}
		},
		unknown: unknown,
	}, eventHeartbeat, fmt.Sprintf(`{"roomId":%q%s}`, l.room, more))
}

// stale sends a heartbeat with an epoch that is not the connection's.
func (m *model) stale(c *modelClient, l *ledger, epoch int64) {
	p := c.places[l.room]
	began := m.clock()
	patch := ""
	if m.chance(50) {
		patch = `,"patchState":{"evil":1}`
	}
	op := &modelRequest{
		judge: func(m *model, ack wireAck) {
			want := CodeNotJoined
			if p.in {
				want = CodeStaleEpoch
			}
			if ack.OK || ack.Code != string(want) || p.in && !p.unsure && *ack.Epoch != p.epoch {
				m.wrong("G4: the epoch %d of %s is answered with %+v, it has %d", max(epoch, 1), c.id, ack, p.epoch)
			}
		},
		unknown: func(*model) {},
	}
	_ = began
	m.begin(c, op, eventHeartbeat, fmt.Sprintf(`{"roomId":%q,"epoch":%d%s}`, l.room, max(epoch, 1), patch))
}

func (m *model) leave(c *modelClient, l *ledger) {
	p := c.places[l.room]
	p.leaving = true
	m.begin(c, &modelRequest{
		places: []*place{p},
		judge: func(m *model, ack wireAck) {
			if _, there := l.facts[c.id]; there || !ack.OK {
				m.wrong("G7: %s has left: %v, and is there: %v", c.id, ack.OK, there)
			}
			*p = place{busy: true, leaving: true, epoch: p.epoch}
		},
		unknown: func(*model) {
			*p = place{busy: true, leaving: true, unsure: true, epoch: p.epoch, view: nil}
		},
	}, eventLeave, fmt.Sprintf(`{"roomId":%q}`, l.room))
}

func (m *model) get(c *modelClient, l *ledger) {
	m.begin(c, &modelRequest{
		judge: func(m *model, ack wireAck) {
			if !ack.OK || ack.Count != len(ack.Snapshot) {
				m.wrong("a get is answered with %+v", ack)
			}
			m.judgeSnapshot(l, ack.Rev, ack.Snapshot, modelTTL/2)
		},
		unknown: func(*model) {},
	}, eventGet, fmt.Sprintf(`{"roomId":%q}`, l.room))
}

// visit uses the library from a process that owns nothing: a stale heartbeat for whoever is there.
func (m *model) visit(*ledger) {}

// serve lets one thing happen that the nodes wait for.
func (m *model) serve(c *heldCall) {
	f := itArrives
	if m.troubled && !m.resting && m.chance(6) {
		f = fate(1 + m.random.IntN(2))
	}
	m.run(c, f)
	m.collect()
	if m.chance(25) {
		m.judgeRooms()
	}
}

func (m *model) judgeRooms() {
	for _, l := range m.rooms {
		m.judgeStore(l)
	}
}

// step lets one thing happen.
func (m *model) step() {
	idle := m.idle()
	type choice struct {
		weight int
		do     func()
	}
	var choices []choice
	may := func(weight int, do func()) { choices = append(choices, choice{weight, do}) }
	if len(idle) > 0 {
		may(4, func() { m.request(idle[m.random.IntN(len(idle))]) })
	}
	if len(m.pending) > 0 {
		may(10, func() { m.serve(m.pending[m.pick()]) })
	}
	for _, n := range m.nodes {
		if len(n.messages) > 0 {
			may(4, func() { n.deliver(1 + m.random.IntN(4)) })
			if m.lossy {
				may(1, func() { m.note("n%d loses a message", n.index); n.messages = n.messages[1:] })
			}
		}
		for _, room := range n.unconfirmed() {
			may(3, func() { n.confirm(room) })
		}
	}
	m.addFaults(may)
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	dice := m.random.IntN(total)
	for _, c := range choices {
		if dice -= c.weight; dice < 0 {
			c.do()
			break
		}
	}
	m.collect()
}

// pick chooses a call that waits: where calls may be late, rather one of the latest.
func (m *model) pick() int {
	n := len(m.pending)
	if m.troubled && m.chance(70) {
		return n - 1
	}
	return m.random.IntN(n)
}

func (m *model) addFaults(may func(weight int, do func())) {
	if m.resting {
		may(1, func() { m.pass(time.Millisecond) })
		return
	}
	if m.calm {
		may(1, func() { m.pass(100 * time.Microsecond) })
		if m.chance(5) {
			may(2, func() { m.elapse(1500 * time.Millisecond) })
		}
		return
	}
	may(1, func() { m.pass(time.Duration(1+m.random.IntN(30)) * time.Millisecond) })
	if m.lossy && m.chance(20) {
		may(1, func() { m.nodes[m.random.IntN(len(m.nodes))].cut() })
	}
	if m.troubled && len(m.pending) > 0 && m.chance(40) {
		may(1, m.hang)
	}
	if m.chance(5) {
		may(1, func() { m.elapse(time.Duration(1+m.random.IntN(9)) * time.Second) })
	}
	if m.chance(2) {
		may(1, func() {
			m.note("SCRIPT FLUSH")
			m.flushed = true
			m.do(redis.NewCmd(m.ctx, "SCRIPT", "FLUSH"))
		})
	}
}

func (m *model) idle() (list []*modelClient) {
	for _, c := range m.clients {
		if c.op == nil && !c.over {
			list = append(list, c)
		}
	}
	return list
}

// pass lets time go by, in which Redis does nothing.
func (m *model) pass(d time.Duration) {
	pause(m.ctx, d)
	m.collect()
}

// elapse lets time go by, in which all goes well.
func (m *model) elapse(d time.Duration) {
	m.note("%v go by", d)
	for end := time.Now().Add(d); time.Now().Before(end) && len(m.wrongs) == 0; {
		m.drain()
		m.pass(min(100*time.Millisecond, time.Until(end)))
	}
	m.drain()
	if d < modelLookback || m.resting {
		return
	}
	m.resting = true // who is overdue by now may be heard of while a reaper comes
	for range 10 {
		m.pass(100 * time.Millisecond)
		for range 3 {
			m.step()
		}
	}
	m.resting = false
}

// drain lets everything happen that waits.
func (m *model) drain() {
	for len(m.wrongs) == 0 {
		if len(m.pending) > 0 {
			m.run(m.pending[0], itArrives)
			m.collect()
			continue
		}
		busy := false
		for _, n := range m.nodes {
			for _, room := range n.unconfirmed() {
				n.confirm(room)
			}
			if len(n.messages) > 0 {
				busy = true
				n.deliver(len(n.messages))
				m.collect()
			}
		}
		if !busy {
			return
		}
	}
}

// quiet ends all trouble, and judges when everything has come to rest.
func (m *model) quiet() {
	m.note("quiet")
	m.resting = true
	defer func() { m.resting = false }()
	m.drain()
	for until := time.Now().Add(15 * time.Second); len(m.wrongs) == 0 && !m.settled(); {
		if time.Now().After(until) {
			m.wrong("something is under way for 15 s: %d calls, %d of %d clients idle", len(m.pending), len(m.idle()), len(m.clients))
		}
		m.elapse(100 * time.Millisecond)
	}
	for _, c := range m.clients {
		for _, l := range m.rooms {
			if p := c.places[l.room]; p.in && !c.over && len(m.wrongs) == 0 && !m.calm {
				m.beat(c, l)
				m.collect()
				m.drain()
			}
		}
	}
	within := 2 * time.Second
	if m.culled {
		within = lossPatience + time.Second
	}
	for end := time.Now().Add(within); len(m.wrongs) == 0 && m.converged() != ""; {
		if time.Now().After(end) {
			m.wrong("G3: not converged after %v: %s", within, m.converged())
		}
		m.elapse(100 * time.Millisecond)
	}
	m.judgeRooms()
	m.judgeMembers()
}

// settled tells whether no request is under way, and nothing is owed.
func (m *model) settled() bool {
	for _, n := range m.nodes {
		if !n.owed.idle() {
			return false
		}
	}
	for _, c := range m.clients {
		if c.op != nil {
			return false
		}
	}
	return true
}

// judgeMembers checks that those are in the room who should be, with the state that they sent.
func (m *model) judgeMembers() {
	for _, l := range m.rooms {
		for conn := range l.facts {
			if !slices.ContainsFunc(m.clients, func(c *modelClient) bool { return c.id == conn && c.places[l.room].in && !c.over }) {
				m.wrong("G5: %s is a ghost", conn)
			}
		}
		for _, c := range m.clients {
			p := c.places[l.room]
			if !p.in || c.over {
				continue
			}
			member, there := l.facts[c.id]
			if !there || !p.unsure && (member.user != p.user || member.epoch != p.epoch) {
				m.wrong("G8: %s is not in the room, or as another: %+v", c.id, member)
				continue
			}
			m.judgeState(c, p, member)
		}
	}
}

func (m *model) judgeState(c *modelClient, p *place, member fact) {
	var state map[string]int
	if err := json.Unmarshal([]byte(member.state), &state); err != nil || p.loose {
		return
	}
	for key, value := range p.state {
		if state[key] != value && !slices.Contains(p.maybe[key], state[key]) {
			m.wrong("G7: %s has %s = %d, it set %d", c.id, key, state[key], value)
		}
	}
}

// play runs the schedule of a seed.
func (m *model) play(length int) {
	m.born = 0
	for range 3 + m.random.IntN(3) {
		m.clients = append(m.clients, m.connect())
	}
	for range 2 {
		for range length {
			if len(m.wrongs) > 0 {
				return
			}
			m.step()
			m.replaceGone()
		}
		m.quiet()
	}
	for _, c := range m.clients {
		if !c.over && len(m.wrongs) == 0 {
			m.end(c)
		}
	}
	m.collect()
	m.quiet()
}

// replaceGone has a new client come for each whose end is over.
func (m *model) replaceGone() {
	for i, c := range m.clients {
		if c.over && c.op == nil {
			m.clients[i] = m.connect()
		}
	}
}

// load has the nodes run the scripts as change leaves them.
func (r *modelRunner) load(t testing.TB, change func(text string) string) {
	t.Helper()
	r.scripts, r.names = modelScripts(t, change)
	r.flushed = true
}

// prepare has Redis know every script, so that all schedules begin alike.
func (r *modelRunner) prepare() {
	if !r.flushed {
		return
	}
	r.flushed = false
	var loads []redis.Cmder
	for _, sc := range r.scripts.all() {
		loads = append(loads, redis.NewCmd(context.Background(), "SCRIPT", "LOAD", sc.flagged.source))
	}
	r.redis.do(loads...)
}

// run runs the schedule of a seed, and returns what was wrong, and the steps.
func (r *modelRunner) run(t *testing.T, seed uint64) (wrong []string, steps []modelStep) {
	r.prepare()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 0))
		m := &model{ctx: t.Context(), config: r.config, random: random, redis: r.redis, scripts: r.scripts, scriptNames: r.names, aged: time.Now().UnixMilli()}
		r.redis.model = m
		m.rooms = []*ledger{newLedger("r")}
		if m.chance(15) {
			m.rooms = append(m.rooms, newLedger("r/2"))
		}
		m.calm, m.lossy, m.troubled = m.chance(30), m.chance(50), m.chance(40)
		if m.calm {
			m.lossy, m.troubled = false, false
		}
		for i := range modelNodes {
			m.startNode(i)
		}
		m.play(16)
		m.stop()
		wrong, steps, r.flushed = m.wrongs, m.steps, m.flushed
	})
	return wrong, steps
}

// stop ends the nodes, whose last calls Redis runs.
func (m *model) stop() {
	var stopped atomic.Int32
	for _, n := range m.nodes {
		go func() {
			n.stop()
			stopped.Add(1)
		}()
	}
	for stopped.Load() < modelNodes {
		m.collect()
		for len(m.pending) > 0 {
			m.run(m.pending[0], itArrives)
			m.collect()
		}
		pause(m.ctx, time.Millisecond)
	}
	for _, c := range m.clients {
		if c.op != nil {
			m.wrong("%s is still under way", c.op.what)
		}
	}
	m.do(redis.NewCmd(m.ctx, "FLUSHDB"))
}

// modelRunner runs schedules one after the other.
type modelRunner struct {
	redis   *modelRedis
	config  Config
	scripts scripts
	names   map[string]string
	flushed bool // Redis does not have the scripts
}

// startRunners starts as many as may work at the same time, each with a Redis of its own.
func startRunners(t testing.TB) (runners []*modelRunner) {
	t.Helper()
	for range modelParallel {
		runners = append(runners, &modelRunner{
			redis:  newModelRedis(t, spawnRedis(t).addr, modelNodes),
			config: testConfig(t, "", fmt.Sprint("PRESENCE_TTL_MS=", modelTTL.Milliseconds()), fmt.Sprint("PRESENCE_NODE_LEASE_MS=", modelLease.Milliseconds())),
		})
	}
	return runners
}

// raceDetector tells whether this test was built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func trace(steps []modelStep) string {
	var b strings.Builder
	for _, step := range steps {
		b.WriteString(step.String() + "\n")
	}
	return b.String()
}

func TestModel_G1_G2_G3_G4_G5_G6_G7_G8(t *testing.T) {
	t.Parallel()
	runners := startRunners(t)
	for _, r := range runners {
		r.load(t, func(text string) string { return text })
	}
	if *modelSeed != 0 {
		wrong, steps := runners[0].run(t, *modelSeed)
		t.Log(trace(steps), strings.Join(wrong, "\n"))
		if len(wrong) > 0 {
			t.Fail()
		}
		return
	}
	base, schedules := uint64(1), int64(cmp.Or(*modelSchedules, 10_000)) // the same ones every time
	if *modelSchedules != 0 {
		base = rand.Uint64()
	}
	if raceDetector() && *modelSchedules == 0 {
		schedules /= 10
	}
	var next, steps atomic.Int64
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		for i, r := range runners {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for n := next.Add(1); n <= schedules && !t.Failed(); n = next.Add(1) {
					seed := base + uint64(n)
					wrong, told := r.run(t, seed)
					steps.Add(int64(len(told)))
					if len(wrong) > 0 {
						t.Errorf("%s\ngo test -run Model_ -seed=%d\n%s", trace(told), seed, strings.Join(wrong, "\n"))
					}
				}
			})
		}
	})
	t.Logf("%d schedules, %d steps in %v", schedules, steps.Load(), time.Since(began))
}
