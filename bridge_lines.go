package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"log/slog"
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
func (b *bridge) lineOf(channel string, dispatcher int) (l *line, isNew bool, err error) {
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
	end := lineEnd{master, dispatcher}
	if l := b.lines[end]; l != nil {
		return l, false, nil
	}
	l = &line{end: end, ps: open(b.ctx), probe: probe, opened: time.Now(), heardAt: time.Now()}
	if since, lost := b.silentSince[end]; lost {
		l.heardAt = since
		delete(b.silentSince, end)
	}
	b.lines[end] = l
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

// isBare tells whether a dispatcher has no line.
func (b *bridge) isBare(dispatcher int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.hasLine(dispatcher)
}

// hasLine tells whether a dispatcher has one. b.mu is held.
func (b *bridge) hasLine(dispatcher int) bool {
	for end := range b.lines {
		if end.dispatcher == dispatcher {
			return true
		}
	}
	return false
}

// probeLines sends the probes, and gives up lines that did not hear theirs. That a line is silent, or that Redis answers on it, does not show that it brings messages.
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

// silentFor is for how long a subscription that is wanted has heard nothing of what was said to it. It says nothing below
// lineOverdue: probes come once per lineProbe.
func (b *bridge) silentFor() (longest time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		longest = max(longest, time.Since(l.heardAt))
	}
	for end, since := range b.silentSince {
		if b.hasLine(end.dispatcher) && len(b.changed) == 0 { // its rooms have moved
			delete(b.silentSince, end)
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
	b.log.Log(b.ctx, level, "subscription lost", "master", l.end.master, "error", err)
	if cluster, ok := b.rdb.(*redis.ClusterClient); ok {
		cluster.ReloadState(b.ctx)
	}
	pause(b.ctx, subscriptionPause)
	b.drop(l)
}

// drop has the rooms of a line placed anew.
func (b *bridge) drop(l *line) {
	b.mu.Lock()
	if b.lines[l.end] == l {
		delete(b.lines, l.end)
		b.silentSince[l.end] = l.heardAt
	}
	for room, at := range b.placed {
		if at == l {
			delete(b.placed, room)
			b.noteChange(room)
		}
	}
	b.mu.Unlock()
	b.wake.send()
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

// dispatcherOf is the number of the dispatcher that a room's messages are for.
func (b *bridge) dispatcherOf(room string) int { return spread(room, len(b.dispatchers)) }

func (b *bridge) pass(item bridgeItem) {
	select {
	case b.dispatchers[b.dispatcherOf(item.room)].incoming <- item:
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
	b.wake.send()
}

var spreadSeed = maphash.MakeSeed()

// spread gives a number below n for an id, the same for the life of the process.
func spread(id string, n int) int {
	if n == 1 {
		return 0
	}
	return int(maphash.String(spreadSeed, id) % uint64(n))
}
