package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// site is two processes of the program on one Redis.
type site struct {
	binary string
	redis  string
	nodes  []*program
	ports  []string
}

// startSite builds the program and starts two nodes.
func startSite(t *testing.T, b backend) *site {
	t.Helper()
	needNode(t)
	s := &site{binary: buildBinary(t), redis: b.url, nodes: make([]*program, 2), ports: []string{freePort(), freePort()}}
	for i := range s.nodes {
		s.start(t, i)
	}
	return s
}

func (s *site) start(t *testing.T, i int) {
	t.Helper()
	s.nodes[i] = startProcess(t, s.binary, "PORT="+s.ports[i], "REDIS_URL="+s.redis, "PRESENCE_RATE_PER_SECOND=0", "PRESENCE_DRAIN_MS=0")
	s.nodes[i].address()
}

func (s *site) url(i int) string { return "http://127.0.0.1:" + s.ports[i] }

// realClients is a process with any number of clients, each under a name.
type realClients struct {
	*nodeProcess
	told map[string][]clientNews
}

// clientNews is something that happened to a client: what, and what more there is to it.
type clientNews struct {
	what string
	rest []json.RawMessage
	read bool // by who waited for it
}

func startClients(t *testing.T) *realClients {
	t.Helper()
	return &realClients{nodeProcess: nodeScript(t, "client.mjs"), told: map[string][]clientNews{}}
}

type command map[string]any

func (c *realClients) do(client, what string, more command) {
	c.t.Helper()
	line := command{"client": client, "do": what}
	for key, value := range more {
		line[key] = value
	}
	c.send(line)
}

// open opens a client that joins the room whenever it is connected, and waits for the first time.
func (c *realClients) open(client, url, room string, transports ...string) wireAck {
	c.t.Helper()
	c.do(client, "open", command{"url": url, "options": command{"transports": transports},
		"join": command{"roomId": room, "userId": client, "state": command{"n": 0}}})
	return c.joined(client)
}

// joined waits for the next acknowledgement of a join.
func (c *realClients) joined(client string) wireAck {
	c.t.Helper()
	return c.ok(client, "joined")
}

// call sends an event and waits for its acknowledgement.
func (c *realClients) call(client, event string, payload any) wireAck {
	c.t.Helper()
	c.do(client, "emit", command{"event": event, "payload": payload})
	return c.ok(client, "ack")
}

// ok waits for an acknowledgement of this kind, which has to be a good one.
func (c *realClients) ok(client, what string) (ack wireAck) {
	c.t.Helper()
	text := c.await(client, what)[0]
	if err := json.Unmarshal(text, &ack); err != nil || !ack.OK {
		c.t.Fatalf("%s is answered with %s, %v", client, text, err)
	}
	return ack
}

// await waits for the next news of this kind that nobody waited for yet.
func (c *realClients) await(client, what string) []json.RawMessage {
	c.t.Helper()
	for {
		for i, news := range c.told[client] {
			if news.what == what && !news.read {
				c.told[client][i].read = true
				return news.rest
			}
		}
		c.hear()
	}
}

// hear keeps the next line that the process writes.
func (c *realClients) hear() {
	c.t.Helper()
	c.keep(c.next())
}

// keep keeps a line that the process has written.
func (c *realClients) keep(line string) {
	c.t.Helper()
	var parts []json.RawMessage
	var client, what string
	err := json.Unmarshal([]byte(line), &parts)
	if err != nil || len(parts) < 2 || json.Unmarshal(parts[0], &client) != nil || json.Unmarshal(parts[1], &what) != nil {
		c.t.Fatalf("the script writes %q", line)
	}
	c.told[client] = append(c.told[client], clientNews{what: what, rest: parts[2:]})
}

// events are the events of a connection that a client got so far: "join", "update 3", "leave left".
func (c *realClients) events(client, conn string) (list []string) {
	c.t.Helper()
	for _, news := range c.told[client] {
		if news.what != "event" {
			continue
		}
		var e wireEvent
		if err := json.Unmarshal(news.rest[0], &e); err != nil {
			c.t.Fatal(err)
		}
		var state struct{ N int }
		if e.ConnID != conn || json.Unmarshal(e.State, &state) != nil {
			continue
		}
		switch EventType(e.Type) {
		case EventUpdate:
			list = append(list, fmt.Sprint("update ", state.N))
		case EventLeave:
			list = append(list, "leave "+e.Reason)
		default:
			list = append(list, e.Type)
		}
	}
	return list
}

// sees waits until a client has had so many events of a connection, and checks them.
func (c *realClients) sees(client, conn string, want ...string) {
	c.t.Helper()
	for len(c.events(client, conn)) < len(want) {
		c.hear()
	}
	if got := c.events(client, conn); !slices.Equal(got, want) {
		c.t.Fatalf("%s got of %s %q, want %q", client, conn, got, want)
	}
}

func updates(from, to int) (list []string) {
	for n := from; n <= to; n++ {
		list = append(list, fmt.Sprint("update ", n))
	}
	return list
}

func patchTo(n int) command { return command{"patchState": command{"n": n}} }

// TestTheRealClientOnEveryTransport has traffic in both directions from the first moment, so also while an upgrade is under
// way.
func TestTheRealClientOnEveryTransport(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s := startSite(t, realRedis(t))
	for name, transports := range map[string][]string{
		"websocket": {"websocket"},
		"polling":   {"polling"},
		"upgrade":   {"polling", "websocket"},
	} {
		t.Run(name, func(t *testing.T) {
			const changes = 100
			c, room := startClients(t), uniqueRoom(t)
			witness := c.open("witness", s.url(1), room, "websocket").Self.ConnID
			u := c.open("ann", s.url(0), room, transports...).Self.ConnID
			for n := 1; n <= changes; n++ {
				c.do("ann", "emit", command{"event": eventHeartbeat, "payload": patchTo(n)})
				c.do("witness", "emit", command{"event": eventHeartbeat, "payload": patchTo(n)})
			}
			for range changes {
				c.ok("ann", "ack")
				c.ok("witness", "ack")
			}
			c.sees("ann", witness, updates(1, changes)...)
			if name == "upgrade" {
				c.await("ann", "upgrade")
			}
			c.call("ann", eventHeartbeat, patchTo(changes+1))
			c.call("ann", eventLeave, nil)
			c.sees("witness", u, append(append([]string{"join"}, updates(1, changes+1)...), "leave left")...)
		})
	}
}

func TestTheRealClientComesBack(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s := startSite(t, realRedis(t))
	c, room := startClients(t), uniqueRoom(t)
	c.open("witness", s.url(1), room, "websocket")
	first := c.open("ann", s.url(0), room, "websocket").Self.ConnID
	c.do("ann", "cut", nil)
	second := c.joined("ann").Self.ConnID
	c.sees("witness", first, "join", "leave disconnected")

	s.nodes[0].signal(syscall.SIGTERM)
	if code := s.nodes[0].wait(10 * time.Second); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	s.start(t, 0)
	third := c.joined("ann").Self.ConnID
	c.sees("witness", second, "join", "leave disconnected")

	c.do("ann", "disconnect", nil)
	c.sees("witness", third, "join", "leave disconnected")
	c.do("ann", "connect", nil)
	last := c.joined("ann")
	if len(last.Snapshot) != 2 || last.Self.ConnID == third {
		t.Errorf("after disconnect and connect it is answered with %+v", last)
	}
	c.call("ann", eventHeartbeat, patchTo(1))
	c.sees("witness", last.Self.ConnID, "join", "update 1")
}

// TestEveryChangeIsSeenOnce_G1 lets clients on two nodes join, change, leave and vanish.
func TestEveryChangeIsSeenOnce_G1(t *testing.T) {
	t.Parallel()
	takesLong(t)
	for name, start := range map[string]func(testing.TB) backend{"redis": realRedis, "cluster": redisCluster} {
		t.Run(name, func(t *testing.T) {
			s, room := startSite(t, start(t)), uniqueRoom(t)
			c, mortal := startClients(t), startClients(t)
			everyone := []string{"near", "far", "polls"}
			c.open("near", s.url(0), room, "websocket")
			c.open("far", s.url(1), room, "websocket")
			c.open("polls", s.url(1), room, "polling")
			leaver := c.open("leaver", s.url(0), room, "websocket").Self.ConnID
			vanisher := mortal.open("vanisher", s.url(1), room, "polling", "websocket").Self.ConnID
			mortal.await("vanisher", "upgrade")
			c.call("leaver", eventHeartbeat, patchTo(1))
			c.call("leaver", eventHeartbeat, patchTo(1))
			mortal.call("vanisher", eventHeartbeat, patchTo(7))
			c.call("leaver", eventLeave, nil)
			mortal.do("", "die", nil)
			for _, client := range everyone {
				c.sees(client, leaver, "join", "update 1", "leave left")
				c.sees(client, vanisher, "join", "update 7", "leave disconnected")
			}
			last := c.open("last", s.url(1), room, "websocket")
			if len(last.Snapshot) != len(everyone)+1 {
				t.Errorf("the room is %+v", last.Snapshot)
			}
			for _, client := range everyone { // nothing came twice
				c.sees(client, last.Self.ConnID, "join")
				c.sees(client, leaver, "join", "update 1", "leave left")
				c.sees(client, vanisher, "join", "update 7", "leave disconnected")
			}
		})
	}
}

// TestAFloodOfChangesIsSeenOnce_G1 counts what 30 clients on two nodes get.
func TestAFloodOfChangesIsSeenOnce_G1(t *testing.T) {
	takesLong(t)
	const clients, changes = 30, 2000
	s := startSite(t, realRedis(t))
	flood := nodeScript(t, "flood.mjs", uniqueRoom(t), fmt.Sprint(clients), fmt.Sprint(changes), s.url(0), s.url(1))
	line := flood.next()
	t.Log(line)
	type counts struct{ Clients, Fewest, Most, Total, Twice, Disorder int }
	var got counts
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	if want := (counts{clients, changes, changes, clients * changes, 0, 0}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
