package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// bridgeSink is told what a bridge hears of some rooms, by one goroutine.
type bridgeSink interface {
	subscribed(room string)       // nothing is missed from here on, until the next call
	message(room, payload string) // a message of the room's channel
	settled()                     // the end of a batch
}

// bridge subscribes to the channels of single rooms: over one connection with classic Pub/Sub, over one to each
// master with sharded Pub/Sub.
type bridge struct {
	*background
	rdb     redis.UniversalClient
	sharded bool
	about   topic
	log     *slog.Logger

	mu          sync.Mutex
	wanted      map[string]bool       // rooms
	placed      map[string]*line      // room → the line that carries it
	lines       map[lineEnd]*line     // open lines
	changed     map[string]struct{}   // rooms whose place is to be seen to
	order       []string              // those rooms, the first to change first: who waits for the first has waited longest
	silentSince map[lineEnd]time.Time // of lines that were lost: when they last heard their probe
	wake        wakeup

	dispatchers []bridgeDispatcher // the rooms are spread over them
}

// line is one subscription connection, from its opening until it fails.
type line struct {
	end   lineEnd
	ps    *redis.PubSub
	probe string // the channel that it speaks to itself on

	// Guarded by the bridge's mu.
	opened  time.Time
	heardAt time.Time // its probe, or by the line before it to the same master
}

// lineEnd is what a line connects: a master, "" with classic Pub/Sub, and the dispatcher of its rooms. So each dispatcher has
// its messages read for it alone, however much the others have to read.
type lineEnd struct {
	master     string
	dispatcher int
}

// bridgeItem is a message, or with subscribed the confirmation of a subscription.
type bridgeItem struct {
	room, payload string
	subscribed    bool
}

// bridgeDispatcher hands on what comes of some of the rooms.
type bridgeDispatcher struct {
	sink     bridgeSink
	incoming chan bridgeItem
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

func newBridge(rdb redis.UniversalClient, sharded bool, about topic, log *slog.Logger, sinks ...bridgeSink) *bridge {
	b := &bridge{
		background: newBackground(),
		rdb:        rdb, sharded: sharded, about: about, log: log,
		wanted:      map[string]bool{},
		placed:      map[string]*line{},
		lines:       map[lineEnd]*line{},
		changed:     map[string]struct{}{},
		silentSince: map[lineEnd]time.Time{},
		wake:        newWakeup(),
	}
	for _, sink := range sinks {
		b.dispatchers = append(b.dispatchers, bridgeDispatcher{sink, make(chan bridgeItem, bridgeBuffer)})
	}
	b.keep(log, "subscriptions", b.placeLoop, b.renew)
	for _, d := range b.dispatchers {
		b.keep(log, "subscriptions", func() { d.loop(b.ctx) }, b.renew)
	}
	b.keep(log, "subscriptions", func() { b.every(lineProbe, b.probeLines) }, nil)
	b.wake.send()
	return b
}

// close ends all subscriptions and waits for them.
func (b *bridge) close() {
	b.end()
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
	b.wake.send()
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
	b.wake.send()
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
		b.wake.send()
	}
}

// placeAll sees to every changed room. It is false when some are left because Redis cannot be reached.
func (b *bridge) placeAll() bool {
	subscribe, unsubscribe := map[*line][]string{}, map[*line][]string{}
	lineOf := func(channel string, dispatcher int) (*line, bool) {
		l, isNew, err := b.lineOf(channel, dispatcher)
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
	for i := range b.dispatchers {
		if b.isBare(i) { // a node without rooms, too, knows whether it could subscribe, and its first join waits for no connection
			_, ok := lineOf(probeChannel(""), i)
			whole = whole && ok
		}
	}
	for _, room := range b.takeChanged() {
		b.mu.Lock()
		wanted, at := b.wanted[room], b.placed[room]
		b.mu.Unlock()
		channel := b.about.channel(room)
		switch {
		case wanted && at == nil:
			l, ok := lineOf(channel, b.dispatcherOf(room))
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

// loop calls the sink.
func (d bridgeDispatcher) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case item := <-d.incoming:
			d.dispatch(item)
		}
		for waiting := min(len(d.incoming), dispatchBatch-1); waiting > 0; waiting-- {
			d.dispatch(<-d.incoming)
		}
		d.sink.settled()
	}
}

func (d bridgeDispatcher) dispatch(item bridgeItem) {
	if item.subscribed {
		d.sink.subscribed(item.room)
		return
	}
	d.sink.message(item.room, item.payload)
}
