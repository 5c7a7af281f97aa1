package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// A subscription that was silent for so long is asked whether it lives, and given up after as long again.
	subscriptionProbe = 2 * time.Second

	// How often each line says something to itself, and when it is given up because it did not hear that.
	lineProbe   = time.Second
	lineOverdue = 3 * time.Second

	// Pause before lost subscriptions are opened again.
	subscriptionPause = 50 * time.Millisecond

	// Messages that wait for the dispatcher. When so many wait, Redis holds the rest.
	bridgeBuffer = 4096

	// Messages after which the sink is told to settle, although more wait.
	dispatchBatch = 256

	// Channels in one SUBSCRIBE.
	subscribeBatch = 500
)

// Subscribe calls handler for every event of every room, one at a time, until Stop or the end of ctx. It returns once Redis
// has confirmed or refused the subscription. While the connection to Redis is lost later on, events are missed: Snapshot
// tells what became of the rooms. A panic of handler is logged and loses the subscription in the same way. With sharded Pub/Sub,
// which has no patterns, it is an error.
func (s *Service) Subscribe(ctx context.Context, handler func(Event)) error {
	if s.options.Sharded {
		return errors.New("sharded Pub/Sub has no pattern subscription")
	}
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(s.ctx, cancel)
	first := make(chan error, 1) // what became of the first try that Redis answered
	s.work.Go(func() {
		defer detach()
		defer cancel()
		for ctx.Err() == nil {
			var err error
			panics(s.options.Logger, "subscription", func() {
				err = receive(ctx, s.rdb.PSubscribe(ctx, eventsPattern), func(item any) { s.handle(item, handler, first) })
			})
			s.options.Logger.Debug("subscription lost", "error", err)
			if errors.As(err, new(redis.Error)) {
				tryTell(first, err)
			}
			pause(ctx, subscriptionPause)
		}
	})
	select {
	case err := <-first:
		if err == nil {
			return nil
		}
		cancel()
		return unavailable(err)
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (s *Service) handle(item any, handler func(Event), first chan<- error) {
	switch m := item.(type) {
	case *redis.Subscription:
		tryTell(first, nil)
	case *redis.Message:
		if event, ok := parseMessage(m.Payload); ok {
			event.State = s.legible(event.ConnID, event.State)
			handler(event.Event)
		}
	}
}

// tryTell tells whoever still waits for it.
func tryTell(first chan<- error, err error) {
	select {
	case first <- err:
	default:
	}
}

// receive hands over what a subscription brings until it fails, does not answer a probe, or ctx ends. It closes it.
func receive(ctx context.Context, ps *redis.PubSub, deliver func(item any)) error {
	var heard atomic.Bool
	ctx, cancel := context.WithCancel(ctx)
	var watch crew
	watch.Go(func() { probe(ctx, ps, &heard) })
	defer watch.Wait()
	defer cancel()
	for {
		item, err := ps.Receive(ctx)
		if err != nil {
			return err
		}
		heard.Store(true)
		deliver(item)
	}
}

// probe closes a subscription at the end of ctx, or when nothing came in from it, not even an answer to a PING.
func probe(ctx context.Context, ps *redis.PubSub, heard *atomic.Bool) {
	defer func() { _ = ps.Close() }()
	tick := time.NewTicker(subscriptionProbe)
	defer tick.Stop()
	for asked := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch {
		case heard.Swap(false):
			asked = false
		case asked || ps.Ping(ctx) != nil:
			return
		default:
			asked = true
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// bridgeSink is told what a bridge hears, by one goroutine.
type bridgeSink interface {
	subscribed(room string)       // nothing is missed from here on, until the next call
	message(room, payload string) // a message of the room's channel
	settled()                     // the end of a batch
}

// bridge subscribes to the channels of single rooms: over one connection with classic Pub/Sub, over one to each
// master with sharded Pub/Sub.
type bridge struct {
	rdb     redis.UniversalClient
	sharded bool
	about   topic
	sink    bridgeSink
	log     *slog.Logger

	mu      sync.Mutex
	wanted  map[string]bool      // rooms
	placed  map[string]*line     // room → the line that carries it
	lines   map[string]*line     // open lines by the address of their master, "" with classic Pub/Sub
	changed map[string]struct{}  // rooms whose place is to be seen to
	order   []string             // those rooms, the first to change first: who waits for the first has waited longest
	deaf    map[string]time.Time // master whose line was lost → when that last heard its probe
	wake    chan struct{}

	incoming chan bridgeItem
	ctx      context.Context
	stop     context.CancelFunc
	work     sync.WaitGroup
}

// line is one subscription connection, from its opening until it fails.
type line struct {
	master string
	ps     *redis.PubSub
	probe  string // the channel that it speaks to itself on

	// Guarded by the bridge's mu.
	opened  time.Time
	heardAt time.Time // its probe, or by the line before it to the same master
}

// bridgeItem is a message, or with subscribed the confirmation of a subscription.
type bridgeItem struct {
	room, payload string
	subscribed    bool
}

// topic is what a bridge is about: each id has a channel.
type topic struct {
	channel func(id string) string
	id      func(channel string) (id string, ok bool)
}

var (
	aboutRooms = topic{func(room string) string { return keysOf(room).events() }, roomOfChannel}
	aboutUsers = topic{userChannel, userOfChannel}
)

func newBridge(rdb redis.UniversalClient, sharded bool, about topic, sink bridgeSink, log *slog.Logger) *bridge {
	b := &bridge{
		rdb: rdb, sharded: sharded, about: about, sink: sink, log: log,
		wanted:   map[string]bool{},
		placed:   map[string]*line{},
		lines:    map[string]*line{},
		changed:  map[string]struct{}{},
		deaf:     map[string]time.Time{},
		wake:     make(chan struct{}, 1),
		incoming: make(chan bridgeItem, bridgeBuffer),
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.keep(b.placeLoop, b.renew)
	b.keep(b.dispatchLoop, b.renew)
	b.keep(b.probeLoop, nil)
	b.nudge()
	return b
}

func (b *bridge) keep(loop, reset func()) {
	b.work.Go(func() { keepRunning(b.ctx, b.log, "subscriptions", loop, reset) })
}

// close ends all subscriptions and waits for them.
func (b *bridge) close() {
	b.stop()
	b.work.Wait()
}

// renew opens every line anew and places every room that is wanted, so that each is read again.
func (b *bridge) renew() {
	b.mu.Lock()
	for _, l := range b.lines {
		_ = l.ps.Close() // whoever carries it has its rooms placed anew
	}
	for room := range b.wanted {
		if b.placed[room] == nil {
			b.noteChange(room)
		}
	}
	for room := range b.placed {
		if !b.wanted[room] {
			b.noteChange(room)
		}
	}
	b.mu.Unlock()
	b.nudge()
}

// subscribe asks for the room's messages. It does not wait: the sink hears of it.
func (b *bridge) subscribe(room string) { b.want(room, true) }

// unsubscribe ends what subscribe asked for. Messages that are on their way may still come.
func (b *bridge) unsubscribe(room string) { b.want(room, false) }

func (b *bridge) want(room string, wanted bool) {
	b.mu.Lock()
	if wanted {
		b.wanted[room] = true
	} else {
		delete(b.wanted, room)
	}
	b.noteChange(room)
	b.mu.Unlock()
	b.nudge()
}

func (b *bridge) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// placeLoop is the only one that opens lines and changes what they carry.
func (b *bridge) placeLoop() {
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-b.wake:
		}
		if b.placeAll() {
			continue
		}
		pause(b.ctx, subscriptionPause)
		b.nudge()
	}
}

// placeAll sees to every changed room. It is false when some are left because Redis cannot be reached.
func (b *bridge) placeAll() bool {
	subscribe, unsubscribe := map[*line][]string{}, map[*line][]string{}
	lineOf := func(channel string) (*line, bool) {
		l, isNew, err := b.lineOf(channel)
		if err != nil {
			b.log.Debug("no subscription", "channel", channel, "error", err)
			return nil, false
		}
		if isNew {
			subscribe[l] = append(subscribe[l], l.probe)
		}
		return l, true
	}
	whole := true
	if b.isBare() { // a node without rooms, too, knows whether it could subscribe
		_, whole = lineOf(probeChannel(""))
	}
	for _, room := range b.takeChanged() {
		b.mu.Lock()
		wanted, at := b.wanted[room], b.placed[room]
		b.mu.Unlock()
		channel := b.about.channel(room)
		switch {
		case wanted && at == nil:
			l, ok := lineOf(channel)
			if !ok {
				b.change(room)
				whole = false
				continue
			}
			b.place(room, l)
			subscribe[l] = append(subscribe[l], channel)
		case wanted:
			// Given up and wanted again before this loop saw it: Redis has nothing to confirm, but who wants it now waits.
			b.pass(bridgeItem{room: room, subscribed: true})
		case at != nil:
			b.place(room, nil)
			unsubscribe[at] = append(unsubscribe[at], channel)
		}
	}
	for l, channels := range unsubscribe {
		whole = b.command(l, l.ps.Unsubscribe, l.ps.SUnsubscribe, channels) && whole
	}
	for l, channels := range subscribe {
		whole = b.command(l, l.ps.Subscribe, l.ps.SSubscribe, channels) && whole
	}
	return whole
}

func (b *bridge) takeChanged() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	rooms := b.order
	b.order = nil
	clear(b.changed)
	return rooms
}

func (b *bridge) change(room string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteChange(room)
}

// noteChange has the room's place seen to. b.mu is held.
func (b *bridge) noteChange(room string) {
	if _, noted := b.changed[room]; !noted {
		b.changed[room] = struct{}{}
		b.order = append(b.order, room)
	}
}

func (b *bridge) place(room string, l *line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l == nil {
		delete(b.placed, room)
		return
	}
	b.placed[room] = l
}

// command sends channels in batches; with sharded Pub/Sub one by one, because a command may name one slot only. When
// it fails, the line is given up.
func (b *bridge) command(l *line, classic, sharded func(context.Context, ...string) error, channels []string) bool {
	send, size := classic, subscribeBatch
	if b.sharded {
		send, size = sharded, 1
	}
	for len(channels) > 0 {
		n := min(size, len(channels))
		if err := send(b.ctx, channels[:n]...); err != nil {
			_ = l.ps.Close()
			b.drop(l)
			return false
		}
		channels = channels[n:]
	}
	return true
}

// lineOf is the open line for a channel, opened if need be. The probe of a new one is yet to be subscribed to.
func (b *bridge) lineOf(channel string) (l *line, isNew bool, err error) {
	master, open := "", b.rdb.Subscribe
	if b.sharded {
		if master, open, err = b.masterOf(channel); err != nil {
			return nil, false, err
		}
	}
	probe, err := b.probeAt(master)
	if err != nil {
		return nil, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.lines[master]; l != nil {
		return l, false, nil
	}
	l = &line{master: master, ps: open(b.ctx), probe: probe, opened: time.Now(), heardAt: time.Now()}
	if since, lost := b.deaf[master]; lost {
		l.heardAt = since
		delete(b.deaf, master)
	}
	b.lines[master] = l
	b.work.Go(func() { b.carry(l) })
	return l, true, nil
}

// masterOf gives the server that has a channel of sharded Pub/Sub, "" if it is the only one, and how to subscribe there.
func (b *bridge) masterOf(channel string) (addr string, open func(context.Context, ...string) *redis.PubSub, err error) {
	cluster, ok := b.rdb.(*redis.ClusterClient)
	if !ok {
		return "", b.rdb.SSubscribe, nil
	}
	node, err := cluster.MasterForKey(b.ctx, channel)
	if err != nil {
		return "", nil, fmt.Errorf("master of a channel: %w", err)
	}
	return node.Options().Addr, node.SSubscribe, nil
}

// probeAt gives a new channel for a probe, at that master.
func (b *bridge) probeAt(master string) (channel string, err error) {
	for b.ctx.Err() == nil {
		channel = probeChannel(rand.Text())
		if !b.sharded {
			return channel, nil
		}
		if addr, _, err := b.masterOf(channel); err != nil || addr == master {
			return channel, err
		}
	}
	return "", b.ctx.Err()
}

func (b *bridge) isBare() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lines) == 0
}

// probeLoop has every line say something to itself again and again. That a line is silent, or that Redis answers on it, does
// not show that it brings messages.
func (b *bridge) probeLoop() {
	tick := time.NewTicker(lineProbe)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
			b.probeLines()
		}
	}
}

// probeLines sends the probes, and gives up lines that did not hear theirs.
func (b *bridge) probeLines() {
	ctx, cancel := context.WithTimeout(b.ctx, lineProbe)
	defer cancel()
	publish := b.rdb.Publish
	if b.sharded {
		publish = b.rdb.SPublish
	}
	var sent crew
	b.mu.Lock()
	for _, l := range b.lines {
		if time.Since(l.opened) > lineOverdue && time.Since(l.heardAt) > lineOverdue {
			_ = l.ps.Close() // whoever carries it notices
			continue
		}
		sent.Go(func() { _ = publish(ctx, l.probe, "").Err() }) // what is not heard tells enough
	}
	b.mu.Unlock()
	sent.Wait()
}

// deafFor is for how long a subscription that is wanted has heard nothing of what was said to it. It says nothing below
// lineOverdue: probes come once per lineProbe.
func (b *bridge) deafFor() (longest time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		longest = max(longest, time.Since(l.heardAt))
	}
	for master, since := range b.deaf {
		if len(b.lines) > 0 && len(b.changed) == 0 { // its rooms have moved
			delete(b.deaf, master)
			continue
		}
		longest = max(longest, time.Since(since))
	}
	return longest
}

// carry receives from a line until it fails. Its rooms are placed anew then.
func (b *bridge) carry(l *line) {
	level := slog.LevelDebug // of a line that never carried anything: the loss of the one before it has been told
	var err error
	panics(b.log, "subscriptions", func() {
		err = receive(b.ctx, l.ps, func(item any) {
			level = slog.LevelWarn
			b.hear(l, item)
		})
	})
	if b.ctx.Err() != nil {
		return
	}
	b.log.Log(b.ctx, level, "subscription lost", "master", l.master, "error", err)
	if cluster, ok := b.rdb.(*redis.ClusterClient); ok {
		cluster.ReloadState(b.ctx)
	}
	pause(b.ctx, subscriptionPause)
	b.drop(l)
}

// drop has the rooms of a line placed anew.
func (b *bridge) drop(l *line) {
	b.mu.Lock()
	if b.lines[l.master] == l {
		delete(b.lines, l.master)
		b.deaf[l.master] = l.heardAt
	}
	for room, at := range b.placed {
		if at == l {
			delete(b.placed, room)
			b.noteChange(room)
		}
	}
	b.mu.Unlock()
	b.nudge()
}

func (b *bridge) hear(l *line, item any) {
	switch m := item.(type) {
	case *redis.Message:
		if room, ok := b.about.id(m.Channel); ok {
			b.pass(bridgeItem{room: room, payload: m.Payload})
		} else if m.Channel == l.probe {
			b.mu.Lock()
			l.heardAt = time.Now()
			b.mu.Unlock()
		}
	case *redis.Subscription:
		room, ok := b.about.id(m.Channel)
		switch {
		case m.Channel == l.probe && m.Kind == "sunsubscribe":
			_ = l.ps.Close() // its slot has moved: a new line gets a probe in another one
		case !ok:
		case m.Kind == "subscribe" || m.Kind == "ssubscribe":
			b.pass(bridgeItem{room: room, subscribed: true})
		case m.Kind == "sunsubscribe":
			b.slotMoved(l, room)
		}
	}
}

func (b *bridge) pass(item bridgeItem) {
	select {
	case b.incoming <- item:
	case <-b.ctx.Done():
	}
}

// slotMoved looks up the place of a room whose master has ended its subscription; nothing to do if we asked for it.
func (b *bridge) slotMoved(l *line, room string) {
	b.mu.Lock()
	moved := b.placed[room] == l
	if moved {
		delete(b.placed, room)
		b.noteChange(room)
	}
	b.mu.Unlock()
	if !moved {
		return
	}
	if cluster, ok := b.rdb.(*redis.ClusterClient); ok {
		cluster.ReloadState(b.ctx)
	}
	b.nudge()
}

// dispatchLoop calls the sink.
func (b *bridge) dispatchLoop() {
	for {
		select {
		case <-b.ctx.Done():
			return
		case item := <-b.incoming:
			b.dispatch(item)
		}
		for waiting := min(len(b.incoming), dispatchBatch-1); waiting > 0; waiting-- {
			b.dispatch(<-b.incoming)
		}
		b.sink.settled()
	}
}

func (b *bridge) dispatch(item bridgeItem) {
	if item.subscribed {
		b.sink.subscribed(item.room)
		return
	}
	b.sink.message(item.room, item.payload)
}

// message is an event and the room's revision before it.
type message struct {
	prev int64
	Event
}

// maxRevision is the highest revision and epoch that the scripts write (lua/base.lua).
const maxRevision = 999_999_999_999_999

// parseMessage reads what lua/room.lua published; false for anything else.
func parseMessage(payload string) (message, bool) {
	c := cutter{rest: payload}
	var m message
	c.after(`{"prev":`)
	m.prev = c.number()
	c.after(`,"rev":`)
	m.Rev = c.number()
	c.after(`,"ts":`)
	m.TS = c.number()
	c.after(`,"epoch":`)
	m.Epoch = c.number()
	c.after(`,"userConns":`)
	m.UserConns = int(c.number())
	c.after(`,"type":"`)
	m.Type = EventType(c.until(`","connId":"`))
	m.ConnID = c.until(`","userId":`)
	m.UserID = c.literal()
	c.after(`,"roomId":`)
	m.RoomID = c.literal()
	if c.has(`,"reason":"`) {
		m.Reason = Reason(c.until(`"`))
	}
	c.after(`,"state":`)
	m.State = json.RawMessage(c.until("}"))
	sane := m.prev < m.Rev && m.Rev <= maxRevision && m.Epoch <= maxRevision
	known := m.Type == EventJoin || m.Type == EventUpdate || m.Type == EventLeave
	return m, !c.failed && c.rest == "" && known && sane
}
