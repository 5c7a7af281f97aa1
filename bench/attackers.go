package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
)

const (
	retryPause  = 100 * time.Millisecond // before an attacker connects again
	stepPause   = 10 * time.Millisecond  // between two writes of a flood
	maxSessions = 30_000                 // of polling, in one attack
)

// attackerAddress is where attackers come from, so that limits for an address do not concern the victims.
var attackerAddress = net.IPv4(127, 0, 0, 2)

// attacks gives all of them.
func attacks() []attack {
	large := strings.Repeat("x", 16_000)
	return []attack{
		// Memory for those who do not read.
		{name: "slow-readers", attackers: 80, crowd: true, attacker: slowReader},
		{name: "unpolled", attackers: 400, crowd: true, attacker: unpolled},
		// Work out of proportion.
		{name: "pages", attackers: 10, crowd: true, nodes: 2, attacker: packets(45, func(n int) string {
			return fmt.Sprintf(`42%d["presence:get",{"roomId":"%s","limit":1}]`, n, crowdRoom)
		})},
		{name: "watched-users", attackers: 120, env: []string{"PRESENCE_TTL_MS=2000", "PRESENCE_REAPER_LOOKBACK_MS=4000"}, attacker: userWatcher},
		{name: "short-rooms", attackers: 20, attacker: shortRooms},
		{name: "updates", attackers: 200, lawful: true, attacker: updates},
		// Packets that ask for little or nothing.
		{name: "ping-frames", attackers: 32, attacker: frameFlood(ws.OpPing)},
		{name: "pong-frames", attackers: 32, attacker: frameFlood(ws.OpPong)},
		{name: "pongs", attackers: 32, attacker: packets(5000, func(int) string { return "3" })},
		{name: "noops", attackers: 32, attacker: packets(5000, func(int) string { return "6" })},
		{name: "acks", attackers: 32, attacker: packets(5000, func(n int) string { return fmt.Sprintf("43%d[]", n) })},
		{name: "unknown-events", attackers: 32, attacker: packets(5000, func(int) string { return `42["unknown",{}]` })},
		{name: "not-joined", attackers: 4, attacker: packets(2700, func(n int) string {
			return fmt.Sprintf(`42%d["presence:heartbeat",{"roomId":"elsewhere","patchState":{"text":"%s"}}]`, n, large)
		})},
		{name: "buffered", attackers: 5, seconds: 30, lawful: true, attacker: buffered},
		{name: "chatter", attackers: 10, seconds: 30, lawful: true, attacker: packets(160, func(int) string { return `42["unknown",{}]` })},
		{name: "deep-states", attackers: 32, attacker: stateSender()},
		{name: "forged-tokens", attackers: 32, prepare: signedConnects, attacker: forger},
		// Connections and descriptors.
		{name: "idle-connections", attackers: 300, files: 256, attacker: idleConnection},
		{name: "polling-sessions", attackers: 32, env: []string{"PRESENCE_MAX_CONNECTIONS_PER_ADDRESS=500"}, attacker: pollingSessions},
		{name: "reconnects", attackers: 32, crowd: true, attacker: reconnects},
	}
}

// persist has an attacker on a WebSocket act, and again on another one whenever the server ends it.
func (r *attackRun) persist(ctx context.Context, read func(*frames), act func(context.Context, *frames) error) {
	for ok := true; ok; ok = pause(ctx, retryPause) {
		if r.once(ctx, read, act) && ctx.Err() == nil {
			r.closed.Add(1)
		}
	}
}

// once tells whether the server ended the connection, or did not accept it.
func (r *attackRun) once(ctx context.Context, read func(*frames), act func(context.Context, *frames) error) (closed bool) {
	f, err := direct(ctx, r.node, perAddress, r.connect("attacker")) // that number is not from the first address
	if err != nil {
		return true
	}
	connected, end := context.WithCancel(ctx)
	context.AfterFunc(connected, func() { _ = f.conn.Close() })
	var reader sync.WaitGroup
	reader.Go(func() {
		defer end()
		read(f)
	})
	err = act(connected, f)
	closed = err != nil || connected.Err() != nil
	end()
	reader.Wait()
	return closed
}

// read takes what comes, and counts answers, until the connection ends.
func (r *attackRun) read(f *frames) {
	for {
		op, payload, err := f.next()
		switch {
		case err != nil || op == ws.OpClose:
			return
		case op == ws.OpPing:
			_, _ = f.conn.Write(appendFrame(nil, ws.OpPong, payload)) // the next read tells
		case len(payload) == 1 && payload[0] == '2':
			_ = sendText(f.conn, "3")
		case bytes.HasPrefix(payload, []byte("43")) && bytes.Contains(payload[:min(len(payload), 40)], []byte(`"ok":true`)):
			r.answered.Add(1)
		case bytes.HasPrefix(payload, []byte("43")):
			r.refused.Add(1)
		}
	}
}

// trickle takes so many bytes each time, and looks at nothing. What the system takes for it in advance is kept small.
func trickle(bytes int, every time.Duration) func(*frames) {
	return func(f *frames) {
		if f.conn.(*net.TCPConn).SetReadBuffer(4096) != nil {
			return
		}
		some := make([]byte, bytes)
		for tick := time.Tick(every); ; <-tick {
			if _, err := f.conn.Read(some); err != nil {
				return
			}
		}
	}
}

// pace calls act with how many things to do, so that they are so many in a second, until it fails or the context ends. What
// the server holds up is not made good.
func pace(ctx context.Context, perSecond int, act func(times int) error) error {
	every := max(stepPause, time.Second/time.Duration(perSecond))
	times := max(1, int(every*time.Duration(perSecond)/time.Second))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := act(times); err != nil {
				return err
			}
		}
	}
}

// flood sends frames at a rate.
func (r *attackRun) flood(ctx context.Context, f *frames, perSecond int, op ws.OpCode, payload func(n int) string) error {
	var batch []byte
	var n int
	return pace(ctx, perSecond, func(times int) error {
		batch = batch[:0]
		for range times {
			batch = appendFrame(batch, op, []byte(payload(n)))
			n++
		}
		_, err := f.conn.Write(batch)
		if err == nil {
			r.sent.Add(int64(times))
		}
		return err
	})
}

// packets is an attacker that sends packets of Engine.IO at a rate.
func packets(perSecond int, packet func(n int) string) func(context.Context, *attackRun, int) {
	return func(ctx context.Context, r *attackRun, _ int) {
		r.persist(ctx, r.read, func(ctx context.Context, f *frames) error { return r.flood(ctx, f, perSecond, ws.OpText, packet) })
	}
}

// frameFlood is an attacker that sends frames of control, of the largest size.
func frameFlood(op ws.OpCode) func(context.Context, *attackRun, int) {
	largest := strings.Repeat("p", 125)
	return func(ctx context.Context, r *attackRun, _ int) {
		r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
			return r.flood(ctx, f, 5000, op, func(int) string { return largest })
		})
	}
}

// slowReader asks for the large room ten times a second, and takes 1 KB a second.
func slowReader(ctx context.Context, r *attackRun, _ int) {
	r.persist(ctx, trickle(1024, time.Second), func(ctx context.Context, f *frames) error {
		return r.flood(ctx, f, 10, ws.OpText, func(n int) string { return fmt.Sprintf(`42%d["presence:get",{"roomId":"%s"}]`, n, crowdRoom) })
	})
}

// badStates take long to read: deep, with long numbers, with equal keys, with many keys. Only the last one is good.
func badStates() []string {
	const size = 60_000 // a message may have 64 KiB
	var keys strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&keys, `"%d":0,`, i)
	}
	return []string{
		`{"a":` + strings.Repeat("[", size/2) + strings.Repeat("]", size/2) + `}`,
		`{"a":` + strings.Repeat("9", size) + `}`,
		`{` + strings.Repeat(`"":0,`, size/5) + `"a":0}`,
		`{` + keys.String() + `"a":0}`,
	}
}

// stateSender joins with each bad state, and patches its state by it.
func stateSender() func(context.Context, *attackRun, int) {
	states := badStates()
	return packets(15, func(n int) string {
		state := states[n/2%len(states)]
		if n%2 == 0 {
			return fmt.Sprintf(`42%d["presence:join",{"roomId":"deep","userId":"u","state":%s}]`, n, state)
		}
		return fmt.Sprintf(`42%d["presence:heartbeat",{"roomId":"deep","patchState":%s}]`, n, state)
	})
}

// userWatcher watches as many users as a socket may, of its own.
func userWatcher(ctx context.Context, r *attackRun, number int) {
	var users []string
	for i := range 500 {
		users = append(users, fmt.Sprintf(`"w%d-%d"`, number, i))
	}
	r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
		r.sent.Add(1)
		if err := sendText(f.conn, `421["presence:watch",{"userIds":[`+strings.Join(users, ",")+`]}]`); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

// shortRooms joins rooms that nobody else has, and leaves them at once.
func shortRooms(ctx context.Context, r *attackRun, _ int) {
	r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
		own := rand.Text()[:8]
		return r.flood(ctx, f, 96, ws.OpText, func(n int) string {
			if n%2 == 0 {
				return fmt.Sprintf(`42%d["presence:join",{"roomId":"%s-%d","userId":"u"}]`, n, own, n/2)
			}
			return fmt.Sprintf(`42%d["presence:leave",{"roomId":"%s-%d"}]`, n, own, n/2)
		})
	})
}

// updates: the first changes a large state by 3 KB a second, the others of the room read 1 Mbit/s.
func updates(ctx context.Context, r *attackRun, number int) {
	join := fmt.Sprintf(`420["presence:join",{"roomId":"updates","userId":"u%d"`, number)
	if number > 0 {
		r.persist(ctx, trickle(1250, stepPause), func(ctx context.Context, f *frames) error {
			r.sent.Add(1)
			if err := sendText(f.conn, join+"}]"); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		})
		return
	}
	r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
		if err := sendText(f.conn, join+`,"state":{"text":"`+strings.Repeat("x", 16_000)+`"}}]`); err != nil {
			return err
		}
		return r.flood(ctx, f, 45, ws.OpText, func(n int) string {
			return fmt.Sprintf(`42%d["presence:heartbeat",{"roomId":"updates","patchState":{"n":%d}}]`, n+1, n)
		})
	})
}

// buffered sends what a client has kept in an hour without a connection as fast as the server takes it, and then joins.
func buffered(ctx context.Context, r *attackRun, number int) {
	r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
		const kept, atOnce = 20_000, 100
		var some []byte
		for n := range kept {
			some = appendFrame(some, ws.OpText, fmt.Appendf(nil, `42%d["presence:heartbeat",{"patchState":{"n":%d}}]`, n, n))
			if (n+1)%atOnce > 0 {
				continue
			}
			if _, err := f.conn.Write(some); err != nil {
				return err
			}
			r.sent.Add(atOnce)
			some = some[:0]
		}
		if err := sendText(f.conn, fmt.Sprintf(`42%d["presence:join",{"roomId":"buffered","userId":"u%d"}]`, kept, number)); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

// reconnects spends what one connection may ask, and then takes another one.
func reconnects(ctx context.Context, r *attackRun, _ int) {
	r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
		for n := range 100 {
			if err := sendText(f.conn, fmt.Sprintf(`42%d["presence:get",{"roomId":"%s","limit":10}]`, n, crowdRoom)); err != nil {
				return err
			}
			r.sent.Add(1)
		}
		pause(ctx, 5*retryPause)
		return nil
	})
}

// idleConnection holds a connection of HTTP that asks for nothing, or for nothing more.
func idleConnection(ctx context.Context, r *attackRun, number int) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: attackerAddress}, Timeout: probeTime}
	for ok := true; ok; ok = pause(ctx, retryPause) {
		conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(r.node, "http://"))
		if err == nil {
			r.sent.Add(1)
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			if number%2 == 0 {
				_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n") // the next read tells
			}
			_, _ = io.Copy(io.Discard, conn)
			stop()
			_ = conn.Close()
		}
		if ctx.Err() == nil {
			r.closed.Add(1)
		}
	}
}

// pollingAttackers is for all attackers that poll.
func pollingAttackers() *http.Client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: attackerAddress}}
	return &http.Client{Timeout: dialTime, Transport: &http.Transport{MaxConnsPerHost: 32, MaxIdleConnsPerHost: 32, DialContext: dialer.DialContext}}
}

// open begins a session of polling; "" = it was refused.
func (r *attackRun) open(ctx context.Context) (session string) {
	d := dialer{polling: r.polling}
	text, err := d.poll(ctx, http.MethodGet, r.node+engineIOPath+"polling", "", "0{")
	switch {
	case ctx.Err() != nil:
		return ""
	case err != nil:
		r.refused.Add(1)
		return ""
	}
	r.answered.Add(1)
	_, session, _ = strings.Cut(text, `"sid":"`)
	session, _, _ = strings.Cut(session, `"`)
	return session
}

// pollingSessions begins sessions and forgets them.
func pollingSessions(ctx context.Context, r *attackRun, _ int) {
	_ = pace(ctx, 100, func(int) error { // it never fails
		if r.sent.Add(1) <= maxSessions {
			r.open(ctx)
		}
		return nil
	})
}

// unpolled asks for the large room in a session of polling, and never polls.
func unpolled(ctx context.Context, r *attackRun, _ int) {
	d := dialer{polling: r.polling}
	for ok := true; ok; ok = pause(ctx, 5*retryPause) {
		session := r.open(ctx)
		for n, body := 0, "40"; session != ""; n++ {
			if _, err := d.poll(ctx, http.MethodPost, r.node+engineIOPath+"polling&sid="+session, body, "ok"); err != nil {
				break
			}
			r.sent.Add(1)
			body = fmt.Sprintf(`42%d["presence:get",{"roomId":"%s"}]`, n, crowdRoom)
			if !pause(ctx, 5*retryPause) {
				return
			}
		}
		if ctx.Err() == nil {
			r.closed.Add(1)
		}
	}
}
