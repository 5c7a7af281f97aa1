package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// quick opens a WebSocket, sends the packets in the same segment as the handshake, and waits until the answer has so many
// text frames with the prefix.
func (s *testSockets) quick(t testing.TB, query, prefix string, n int, packets ...string) net.Conn {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Error(err)
		return nil
	}
	_ = conn.SetDeadline(time.Now().Add(3 * patience))
	out := []byte(handshakeText(query))
	for _, p := range packets {
		out = append(out, masked(true, ws.OpText, p)...)
	}
	_, _ = conn.Write(out)
	var got []byte
	buf := make([]byte, 1024)
	for bytes.Count(got, []byte(prefix)) < n {
		k, err := conn.Read(buf)
		if err != nil {
			t.Errorf("%q instead of %d × %q: %v", got, n, prefix, err)
			return conn
		}
		got = append(got, buf[:k]...)
	}
	return conn
}

// T1: a pong right after the handshake meets a timer that is not set yet, and the process dies.
func TestT1PongAtOnce(t *testing.T) {
	s := startSockets(t, &testApp{})
	const n = 2000
	crowd(n, func(int) {
		if conn := s.quick(t, direct4, "40{", 1, "3", "3", "40"); conn != nil {
			_ = conn.Close()
		}
	})
	crowd(n/2, func(int) {
		p := s.poller(t)
		p.send("3", "3", "40")
		if got := withoutSID(p.next()); got != "40" {
			t.Errorf("got %q, want CONNECT", got)
		}
		p.send("1")
	})
	crowd(n/2, func(int) {
		p := s.poller(t)
		if conn := s.quick(t, direct4+"&sid="+p.sid, "40{", 1, "2probe", "5", "3", "3", "40"); conn != nil {
			_ = conn.Close()
		}
	})
	eventually(t, patience, "all are gone", func() bool { return s.count() == 0 })
}

// T4: OPEN leaves before anybody listens, so a fast client's CONNECT is lost.
func TestT4FastClients(t *testing.T) {
	app := &testApp{}
	s := startSockets(t, app)
	const n = 5000
	crowd(n, func(int) {
		if conn := s.quick(t, direct4, `431[7]`, 1, "40", `421["fast",7]`); conn != nil {
			_ = conn.Close()
		}
	})
	if got := app.events.Load(); got != n {
		t.Errorf("%d events of %d clients", got, n)
	}
	eventually(t, patience, "one end each", func() bool { return app.ends.Load() == n && s.count() == 0 })
}

// flood sends numbered events to all clients by several goroutines, half of them in batches.
type flood struct {
	stop atomic.Bool
	sent [4]int // by each goroutine, once done is closed
	done chan struct{}
}

func (s *testSockets) flood() *flood {
	f := &flood{done: make(chan struct{})}
	go func() {
		defer close(f.done)
		crowd(len(f.sent), func(sender int) {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for ; !f.stop.Load(); f.sent[sender]++ {
				event := eventFrame("n", fmt.Appendf(nil, "%d", sender), fmt.Appendf(nil, "%d", f.sent[sender]))
				s.sendToAll(event, sender%2 == 0)
				<-tick.C
			}
		})
	}()
	return f
}

func (s *testSockets) sendToAll(f frame, batch bool) {
	var flush []*client
	for _, c := range s.all() {
		if !batch {
			c.send(f)
		} else if c.queue(f, memberUpdate{}) {
			flush = append(flush, c)
		}
	}
	for _, c := range flush {
		c.flush()
	}
}

// T9: 200 clients upgrade while events are sent to all of them, and acknowledgements come between: no gap, no disorder.
func TestT9UpgradesUnderLoad(t *testing.T) {
	s := startSockets(t, &testApp{}, func(o *socketOptions) {
		o.MaxUnsentBytes = 64 << 20
		o.WriteTimeout = time.Minute // most do not poll while the others upgrade
	})
	const clients = 200
	ready := make(chan *pollClient, clients)
	crowd(clients, func(int) {
		p := s.poller(t)
		p.connect()
		ready <- p
	})
	close(ready)
	f := s.flood()
	upgraded, next := []*wsClient{}, [][]int{}
	for p := range ready {
		seen := make([]int, len(f.sent))
		upgraded, next = append(upgraded, p.upgradeAmidEvents(t, seen)), append(next, seen)
	}
	f.stop.Store(true)
	<-f.done
	for i, x := range upgraded {
		x.send(`424["last"]`)
		for got := ""; got != "434[null]"; {
			got = x.text()
			count(t, next[i], got)
		}
		if !slices.Equal(next[i], f.sent[:]) {
			t.Errorf("client %d got %v events of %v", i, next[i], f.sent)
		}
	}
}

// upgradeAmidEvents upgrades as socket.io-client does: with the probe answered it lets its last poll end.
func (c *pollClient) upgradeAmidEvents(t *testing.T, next []int) *wsClient {
	t.Helper()
	x := c.s.dial(t, direct4+"&sid="+c.sid)
	c.send(`421["a"]`)
	x.send("2probe")
	x.want("3probe")
	for last := false; !last; last = len(c.queued) == 0 {
		count(t, next, c.next())
	}
	c.send(`422["a"]`) // its acknowledgement waits for a poll that does not come
	x.send("5", `423["a"]`)
	return x
}

// count checks that an event is the next one of its sender.
func count(t *testing.T, next []int, packet string) {
	t.Helper()
	rest, isEvent := strings.CutPrefix(packet, `42["n",`)
	if !isEvent {
		return
	}
	var got [2]int
	if err := json.Unmarshal([]byte("["+rest), &got); err != nil {
		t.Fatal(err)
	}
	if got[1] != next[got[0]] {
		t.Fatalf("event %d of sender %d, want %d", got[1], got[0], next[got[0]])
	}
	next[got[0]]++
}

// 20,000 connections come and go: nothing of them is left.
func TestChurn(t *testing.T) {
	takesLong(t)
	s := startSockets(t, &testApp{forget: true})
	wave := func(n int) {
		crowd(n, func(i int) {
			conn := s.quick(t, direct4, `431[`, 1, "40", `421["join",{"roomId":"r"}]`)
			if conn == nil {
				return
			}
			if i%2 == 0 {
				_, _ = conn.Write(append(masked(true, ws.OpText, "41"), masked(true, ws.OpText, "1")...))
				_, _ = io.Copy(io.Discard, conn)
			}
			_ = conn.Close()
		})
		eventually(t, patience, "the wave is gone", func() bool { return s.count() == 0 })
	}
	wave(1000)
	before, heap := measure(t), liveHeap()
	for range 19 {
		wave(1000)
	}
	s.wantReleased(t, before)
	if grown := int64(liveHeap()) - int64(heap); grown > 19_000*100 {
		t.Errorf("the heap grew by %d bytes, %d for each connection", grown, grown/19_000)
	}
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// T15: a session that has ended leaves no timer, which would keep it in memory.
func TestT15NoTimerOutlivesItsSession(t *testing.T) {
	for name, c := range map[string]struct {
		sessions int
		begin    func(p *pollClient) talker
	}{
		"polling": {3000, func(p *pollClient) talker { return p }},
		"upgraded": {2000, func(p *pollClient) talker {
			x := p.s.dial(p.t, direct4+"&sid="+p.sid)
			x.send("2probe", "5") // without waiting
			x.want("3probe")
			return x
		}},
	} {
		before := measure(t)
		var s *testSockets
		t.Run(name, func(t *testing.T) {
			s = startSockets(t, &testApp{forget: true})
			crowd(c.sessions, func(i int) { s.liveAndEnd(t, c.begin(s.poller(t)), i) })
		})
		s.wantReleased(t, before)
	}
}

// liveAndEnd has a client join, or not even connect, and ends it in the i-th way.
func (s *testSockets) liveAndEnd(t *testing.T, x talker, i int) {
	if i%2 == 0 {
		x.say("40")
		x.hear()
		x.say(`421["join",{"roomId":"r"}]`)
		if got, _ := x.hear(); got != `431[{"roomId":"r"}]` {
			t.Errorf("joined with %q", got)
		}
	}
	switch i % 5 {
	case 0:
		x.say("1")
	case 1:
		x.say("41")
		x.say("1")
	case 2:
		x.say("no packet")
	case 3:
		if c, ok := x.(*wsClient); ok {
			_ = c.conn.Close()
		} else {
			x.say("1")
		}
	case 4: // by the server, at its close
	}
}

// T15, for sessions that the server closes while they begin.
func TestT15NoTimerOutlivesAShortSession(t *testing.T) {
	before := measure(t)
	s := startSockets(t, &testApp{forget: true})
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		crowd(3000, func(int) { (&pollClient{t: t, s: s}).get() })
	}()
	for open := true; open; {
		select {
		case <-begun:
			open = false
		default:
			for _, c := range s.all() {
				c.close()
			}
		}
	}
	s.close()
	s.http.Close()
	s.wantReleased(t, before)
}

// T16: the memory of a polling session that has ended is free.
func TestT16PollingSessionsAreFreed(t *testing.T) {
	takesLong(t)
	s := startSockets(t, &testApp{forget: true})
	const sessions = 2000
	wave := func() uint64 {
		crowd(sessions, func(i int) {
			p := s.poller(t)
			p.connect()
			if i%2 == 0 {
				p.send("1")
				return
			}
			c := p.probed()
			c.send("5", "41", "1")
			c.closed()
			_ = c.conn.Close()
		})
		eventually(t, patience, "the wave is gone", func() bool { return s.count() == 0 })
		return liveHeap()
	}
	wave()
	before := wave()
	if grown := int64(wave()) - int64(before); grown > sessions*1000 {
		t.Errorf("the heap grew by %d bytes, %d for each session", grown, grown/sessions)
	}
}
