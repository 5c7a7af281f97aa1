package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

const (
	crowdRoom     = "crowd"
	crowdChangers = 10 // members that change their state
	crowdFolders  = 8  // members that keep the whole room
)

// crowdModes have one room of many members, in which few change.
func crowdModes() []mode {
	quiet := []string{"PRESENCE_TTL_MS=600000"}
	return []mode{
		// A connection is a descriptor, and a process has 20,000 where this was made.
		{name: "crowd-batch", operation: "change", clients: 19_500, perRoom: 19_500, rate: 1000, seconds: 10, env: quiet, attempt: measureCrowd,
			events: "batch"},
		{name: "crowd-all", operation: "change", clients: 1000, perRoom: 1000, rate: 50, seconds: 10, env: quiet, attempt: measureCrowd,
			events: "all"},
	}
}

// crowd is a room whose members are told of it in the same mode.
//
// They join with events "none" and watch then, as members do that change their mind: else each would be told of each join
// after its own, which is another load than this one.
type crowd struct {
	mode    mode
	members []*crowdMember
	readers sync.WaitGroup
	closing atomic.Bool
	broken  chan error

	frames, bytes, answers, asked atomic.Int64
	refused                       atomic.Int64
}

// crowdMember is one connection.
type crowdMember struct {
	crowd   *crowd
	number  int
	frames  *frames
	epoch   int64
	updates atomic.Int64
	cursor  string       // of the next page of the room
	rev     atomic.Int64 // the highest that it was told of

	mu   sync.Mutex // guards fold
	fold *fold      // nil = it only counts
}

// fold is a room by snapshot and events: for each member its last update and the revision of that.
type fold struct {
	revs    map[string]int64
	updates map[string]int64
	sum     int64
}

func newFold() *fold { return &fold{revs: map[string]int64{}, updates: map[string]int64{}} }

// page takes entries of a snapshot with its revision.
func (f *fold) page(rev int64, entries []crowdEvent) {
	for _, e := range entries {
		e.Rev, e.Type = rev, "update"
		f.event(e)
	}
}

// event takes what is newer than what is known.
func (f *fold) event(e crowdEvent) {
	if e.Rev < f.revs[e.UserID] {
		return
	}
	f.sum -= f.updates[e.UserID]
	f.revs[e.UserID] = e.Rev
	if e.Type == "leave" {
		delete(f.updates, e.UserID)
		return
	}
	f.updates[e.UserID] = e.State.N
	f.sum += e.State.N
}

// missing counts the members and updates by which the fold differs from the truth.
func (f *fold) missing(members []*crowdMember) (n int64) {
	for _, m := range members {
		known, here := f.updates[m.user()]
		if is := m.updates.Load(); !here {
			n++
		} else {
			n += max(is-known, known-is)
		}
	}
	return n + max(0, int64(len(f.updates)-len(members)))
}

// crowdEvent is an event, or an entry of a snapshot.
type crowdEvent struct {
	Type   string `json:"type"`
	UserID string `json:"userId"`
	Rev    int64  `json:"rev"`
	State  struct {
		N int64 `json:"n"`
	} `json:"state"`
}

// crowdPage is what an acknowledgement of presence:get, or a batch, tells of the room.
type crowdPage struct {
	OK       bool         `json:"ok"`
	Rev      int64        `json:"rev"`
	Cursor   string       `json:"cursor"`
	Snapshot []crowdEvent `json:"snapshot"`
	Events   []crowdEvent `json:"events"`
}

// measureCrowd is the trial of such a mode.
func measureCrowd(ctx context.Context, t trial) (r result, err error) {
	var s site
	defer s.close()
	if err := s.open(ctx, t); err != nil {
		return r, err
	}
	c := &crowd{mode: t.mode, broken: make(chan error, 1)}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.gather(ctx, s.nodes); err != nil {
		return r, err
	}
	return c.measure(ctx, &s)
}

// gather brings all members into the room.
func (c *crowd) gather(ctx context.Context, nodes []string) error {
	for i := range c.mode.clients {
		c.members = append(c.members, &crowdMember{crowd: c, number: i})
	}
	if err := each(ctx, len(c.members), func(i int) error { return c.members[i].join(ctx, nodes[i%len(nodes)]) }); err != nil {
		return err
	}
	return each(ctx, len(c.members), func(i int) error {
		m := c.members[i]
		ask := fmt.Sprintf(`["presence:watch",{"roomId":"%s","events":"%s","limit":1}]`, crowdRoom, c.mode.events)
		if _, err := m.ask(2, ask); err != nil {
			return err
		}
		c.readers.Go(m.read)
		return nil
	})
}

// measure has some members change while others read the room, and then the window.
func (c *crowd) measure(ctx context.Context, s *site) (r result, err error) {
	pacing, stop := context.WithCancel(ctx)
	defer stop()
	var pacer sync.WaitGroup
	pacer.Go(func() { c.pace(pacing) })
	defer pacer.Wait()
	defer stop()
	for _, m := range c.folders() {
		if err := m.get(); err != nil {
			return r, err
		}
	}
	if !poll(ctx, time.Minute, func() bool { return c.known() || len(c.broken) > 0 }) {
		return r, errors.Join(ctx.Err(), errors.New("the room could not be read"))
	}
	if r, err = c.window(ctx, s); err != nil {
		return r, err
	}
	stop()
	pacer.Wait()
	_ = poll(ctx, settleTime, func() bool { return c.settled() || len(c.broken) > 0 }) // what is missing then is lost
	for _, m := range c.folders() {
		m.mu.Lock()
		r.Lost += m.fold.missing(c.members)
		m.mu.Unlock()
	}
	r.Lost += c.behind()
	return r, c.failure(ctx)
}

func (c *crowd) window(ctx context.Context, s *site) (r result, err error) {
	before, err := s.meter.read()
	if err != nil {
		return r, err
	}
	frames, size, answers := c.frames.Load(), c.bytes.Load(), c.answers.Load()
	_ = poll(ctx, c.mode.window(), func() bool { return len(c.broken) > 0 })
	after, err := s.meter.read()
	if err != nil {
		return r, err
	}
	seconds, receivers := after.at.Sub(before.at).Seconds(), float64(len(c.members))
	r = result{Mode: c.mode.name, Operation: c.mode.operation, Clients: len(c.members), Rooms: 1, Nodes: len(s.nodes), Seconds: round(seconds, 4),
		Operations: c.answers.Load() - answers, Refused: c.refused.Load(),
		FramesPerReceiver: round(float64(c.frames.Load()-frames)/seconds/receivers, 3),
		BytesPerReceiver:  round(float64(c.bytes.Load()-size)/seconds/receivers, 3)}
	r.PerSecond = round(float64(r.Operations)/seconds, 3)
	if len(s.meter.servers) > 0 {
		r.Server = newCost(after.server-before.server, r, 0)
	}
	if len(s.meter.redis) > 0 {
		r.Redis = newCost(after.redis-before.redis, r, 0)
	}
	return r, c.failure(ctx)
}

// changers and folders are the first members and the last ones.
func (c *crowd) changers() []*crowdMember { return c.members[:min(crowdChangers, len(c.members))] }

func (c *crowd) folders() []*crowdMember { return c.members[max(0, len(c.members)-crowdFolders):] }

// pace has the changers change in turn.
func (c *crowd) pace(ctx context.Context) {
	changers := c.changers()
	began, tick := time.Now(), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		due := time.Duration(float64(i) / c.mode.rate * float64(time.Second))
		for due > time.Since(began) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err := changers[i%len(changers)].patch(); err != nil {
			c.fail(err)
			return
		}
	}
}

// known tells whether all folders have read the room to its end.
func (c *crowd) known() bool {
	for _, m := range c.folders() {
		m.mu.Lock()
		size := len(m.fold.updates)
		m.mu.Unlock()
		if size < len(c.members) {
			return false
		}
	}
	return true
}

// settled tells whether all is answered, and everybody was told of the last change.
func (c *crowd) settled() bool {
	if c.answers.Load() < c.asked.Load() || c.behind() > 0 {
		return false
	}
	var truth int64
	for _, m := range c.changers() {
		truth += m.updates.Load()
	}
	for _, m := range c.folders() {
		m.mu.Lock()
		sum := m.fold.sum
		m.mu.Unlock()
		if sum != truth {
			return false
		}
	}
	return true
}

// behind counts the members that were not told of the last change that anybody knows of.
func (c *crowd) behind() (n int64) {
	var last int64
	for _, m := range c.members {
		last = max(last, m.rev.Load())
	}
	for _, m := range c.members {
		if m.rev.Load() < last {
			n++
		}
	}
	return n
}

func (c *crowd) fail(err error) {
	if c.closing.Load() {
		return
	}
	select {
	case c.broken <- err:
	default: // not the first
	}
}

func (c *crowd) failure(ctx context.Context) error {
	select {
	case err := <-c.broken:
		return err
	default:
		return ctx.Err()
	}
}

func (c *crowd) close() error {
	c.closing.Store(true)
	var errs []error
	for _, m := range c.members {
		if m.frames != nil {
			errs = append(errs, m.frames.conn.Close())
		}
	}
	c.readers.Wait()
	return errors.Join(errs...)
}

func (m *crowdMember) user() string { return fmt.Sprintf("u%d", m.number) }

// join connects, and comes into the room without being told of it.
func (m *crowdMember) join(ctx context.Context, node string) (err error) {
	if m.number >= m.crowd.mode.clients-crowdFolders {
		m.fold = newFold()
	}
	if m.frames, err = newDialer(false).dial(ctx, node, m.number); err != nil {
		return err
	}
	ack, err := m.ask(1, fmt.Sprintf(`["presence:join",{"roomId":"%s","userId":"%s","state":{"n":0},"events":"none","limit":1}]`, crowdRoom, m.user()))
	if err != nil {
		return err
	}
	_, self, _ := bytes.Cut(ack, []byte(`"self":`))
	m.epoch, _ = number(self, `"epoch":`)
	return nil
}

func (m *crowdMember) send(packet string) error { return sendText(m.frames.conn, packet) }

// ask sends a request and waits for its answer; it reads for that, and so comes before read.
func (m *crowdMember) ask(id int, request string) (ack []byte, err error) {
	if err := m.send(fmt.Sprintf("42%d%s", id, request)); err != nil {
		return nil, err
	}
	prefix := fmt.Sprintf("43%d[", id)
	for {
		_, payload, err := m.frames.next()
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(payload, []byte(prefix)) {
			if !bytes.HasPrefix(payload[len(prefix):], []byte(`{"ok":true`)) {
				return nil, fmt.Errorf("refused: %s", payload[:min(len(payload), 200)])
			}
			return payload, nil
		}
		if err := m.packet(payload); err != nil {
			return nil, err
		}
	}
}

func (m *crowdMember) patch() error {
	m.crowd.asked.Add(1)
	return m.send(fmt.Sprintf(`429["presence:heartbeat",{"roomId":"%s","epoch":%d,"patchState":{"n":%d}}]`, crowdRoom, m.epoch, m.updates.Add(1)))
}

// read takes what the server sends, until the connection ends.
func (m *crowdMember) read() {
	for {
		op, payload, err := m.frames.next()
		if err == nil && op == ws.OpText {
			err = m.packet(payload)
		}
		if err != nil {
			m.crowd.fail(fmt.Errorf("member %d: %w", m.number, err))
			return
		}
	}
}

var batchPrefix = []byte(`42["presence:batch",`)

func (m *crowdMember) packet(b []byte) error {
	switch {
	case bytes.HasPrefix(b, batchPrefix), bytes.HasPrefix(b, eventPrefix):
		m.crowd.frames.Add(1)
		m.crowd.bytes.Add(int64(len(b)))
		return m.told(b)
	case bytes.HasPrefix(b, []byte("43")):
		return m.answer(b)
	case len(b) == 1 && b[0] == '2':
		return m.send("3")
	}
	return fmt.Errorf("unexpected packet %q", b[:min(len(b), 100)])
}

// told takes an event or a batch. Their own rev is the first in a batch and the only one in an event.
func (m *crowdMember) told(b []byte) error {
	rev, ok := number(b, `"rev":`)
	if !ok || rev < m.rev.Load() {
		return fmt.Errorf("revision %d after %d: %q", rev, m.rev.Load(), b[:min(len(b), 100)])
	}
	m.rev.Store(rev)
	if m.fold == nil {
		return nil
	}
	var batch crowdPage
	var one crowdEvent
	body := bytes.TrimSuffix(b[bytes.IndexByte(b, ',')+1:], []byte("]"))
	if bytes.HasPrefix(b, batchPrefix) {
		if err := json.Unmarshal(body, &batch); err != nil {
			return err
		}
	} else if err := json.Unmarshal(body, &one); err != nil {
		return err
	} else {
		batch.Events = []crowdEvent{one}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range batch.Events {
		m.fold.event(e)
	}
	return nil
}

// answer counts that of a patch, and goes on to the next page of the room.
func (m *crowdMember) answer(b []byte) error {
	_, body, _ := strings.Cut(string(b), "[")
	if bytes.HasPrefix(b, []byte("433[")) && strings.Contains(body, `"retryable":true`) {
		return m.get() // a busy machine
	}
	if !strings.HasPrefix(body, `{"ok":true`) {
		m.crowd.refused.Add(1)
		return fmt.Errorf("refused: %s", body[:min(len(body), 200)])
	}
	if !bytes.HasPrefix(b, []byte("433[")) {
		m.crowd.answers.Add(1)
		return nil
	}
	var page crowdPage
	if err := json.Unmarshal([]byte(strings.TrimSuffix(body, "]")), &page); err != nil {
		return err
	}
	m.mu.Lock()
	m.fold.page(page.Rev, page.Snapshot)
	m.mu.Unlock()
	if m.cursor = page.Cursor; m.cursor == "" {
		return nil
	}
	return m.get()
}

// get asks for the next page of the room.
func (m *crowdMember) get() error {
	cursor := ""
	if m.cursor != "" {
		cursor = fmt.Sprintf(`,"cursor":"%s"`, m.cursor)
	}
	return m.send(fmt.Sprintf(`423["presence:get",{"roomId":"%s"%s}]`, crowdRoom, cursor))
}
