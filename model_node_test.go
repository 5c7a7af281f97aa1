package main

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

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
	n.service = newService(m.redis.clients[i], Options{TTL: modelTTL, Lookback: modelLookback, ReaperInterval: -1, Grace: m.grace, MaxMembers: m.limit,
		NodeLease: m.config.NodeLease, Logger: n.log}, m.scripts)
	n.service.options.ReaperInterval = modelReaperInterval
	newReaper(n.service).start()
	n.wireRooms(m.config, 1, func([]bridgeSink) subscriptions { return n }, nil)
	n.lease.node = fmt.Sprint("node", i) // a random name would make each run another one
	n.lease.start()
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
	n.pendingLeaves.close(n.ctx)
	n.userWatchers.close()
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
			n.hub.dispatchers[0].subscribed(item.room)
			continue
		}
		n.note("n%d hears %.40s", n.index, item.payload)
		n.hub.dispatchers[0].message(item.room, item.payload)
	}
	n.hub.dispatchers[0].settled()
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
