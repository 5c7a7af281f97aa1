package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

func TestOpen(t *testing.T) {
	s := startSockets(t, &testApp{})
	for name, open := range map[string]string{
		"websocket": s.dial(t, direct4).text(),
		"polling":   (&pollClient{t: t, s: s}).next(),
	} {
		var got struct {
			SID                       string
			Upgrades                  []string
			PingInterval, PingTimeout int
			MaxPayload                int
		}
		if err := json.Unmarshal([]byte(open[1:]), &got); err != nil || open[0] != '0' {
			t.Fatalf("%s: %q: %v", name, open, err)
		}
		upgrades := []string{"websocket"}
		if name == "websocket" {
			upgrades = []string{}
		}
		if got.SID == "" || !slices.Equal(got.Upgrades, upgrades) || got.Upgrades == nil || got.PingInterval != 25000 ||
			got.PingTimeout != 20000 || got.MaxPayload != 65536 {
			t.Errorf("%s: OPEN is %s", name, open)
		}
	}
}

func TestRefusals(t *testing.T) {
	s := startSockets(t, &testApp{})
	sid := s.poller(t).sid
	up := []string{"Upgrade", "websocket", "Connection", "Upgrade"}
	for _, c := range []struct {
		name, method, query string
		header              []string
		status, code        int
	}{
		{"no transport", "GET", "EIO=4", nil, 400, 0},
		{"unknown transport", "GET", "EIO=4&transport=webtransport", nil, 400, 0},
		{"property of an object as transport", "GET", "EIO=4&transport=constructor", nil, 400, 0},
		{"unknown sid", "GET", polling4 + "&sid=zzz", nil, 400, 1},
		{"unknown sid on upgrade", "GET", direct4 + "&sid=zzz", up, 400, 1},
		{"POST without sid", "POST", polling4, nil, 400, 2},
		{"DELETE without sid", "DELETE", polling4, nil, 400, 2},
		{"WebSocket without upgrade", "GET", direct4, nil, 400, 3},
		{"WebSocket of a session without upgrade", "GET", direct4 + "&sid=" + sid, nil, 400, 3},
		{"upgrade that says polling", "GET", polling4, up, 400, 3},
		{"DELETE of a session", "DELETE", polling4 + "&sid=" + sid, nil, 400, 3},
		{"no version", "GET", "transport=polling", nil, 400, 5},
		{"version 3", "GET", "EIO=3&transport=polling", nil, 400, 5},
		{"version 3, WebSocket", "GET", "EIO=3&transport=websocket", up, 400, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := http.NewRequest(c.method, s.url(c.query), nil)
			for i := 0; i < len(c.header); i += 2 {
				r.Header.Set(c.header[i], c.header[i+1])
			}
			answer, err := s.http.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			status, body := answerOf(t, answer)
			var got struct {
				Code    *int
				Message string
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil || status != c.status || got.Code == nil || *got.Code != c.code || got.Message == "" {
				t.Errorf("answered with %d %s", status, body)
			}
		})
	}
}

func TestBadWebSocketHandshakes(t *testing.T) {
	s := startSockets(t, &testApp{})
	good := handshakeText(direct4)
	for name, c := range map[string]struct {
		text   string
		status int
	}{
		"no key":      {strings.Replace(good, "Sec-WebSocket-Key", "X-Key", 1), 400},
		"short key":   {strings.Replace(good, "dGhlIHNhbXBsZSBub25jZQ==", "dGhl", 1), 400},
		"version 8":   {strings.Replace(good, "Version: 13", "Version: 8", 1), 426},
		"no version":  {strings.Replace(good, "Sec-WebSocket-Version", "X-Version", 1), 400},
		"not upgrade": {strings.Replace(good, "Connection: Upgrade", "Connection: keep-alive", 1), 400},
		"good":        {good, 101},
	} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, c.text)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || answer.StatusCode != c.status {
			t.Errorf("%s: %v, %v, want %d", name, answer, err, c.status)
		}
		if c.status == 101 && answer.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
			t.Errorf("accept is %q", answer.Header.Get("Sec-WebSocket-Accept"))
		}
	}
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	quick := func(o *socketOptions) { o.PingInterval, o.PingTimeout = 20*time.Millisecond, 100*time.Millisecond }
	const rounds = 10
	t.Run("websocket", func(t *testing.T) {
		app := &testApp{}
		c := startSockets(t, app, quick).connected(t)
		answerPings(t, c, rounds)
		if n := app.pongs.Load(); n < rounds-1 {
			t.Errorf("the application heard of %d pongs", n)
		}
		c.closed() // silent from here on
	})
	t.Run("polling", func(t *testing.T) {
		app := &testApp{}
		c := startSockets(t, app, quick).poller(t)
		c.connect()
		for range rounds {
			if _, body := c.get(); body != "2" {
				t.Fatalf("got %q, want a ping", body)
			}
			c.send("3")
		}
		if n := app.pongs.Load(); n != rounds {
			t.Errorf("the application heard of %d pongs", n)
		}
		for status := http.StatusOK; status == http.StatusOK; {
			status, _ = c.get()
		}
	})
	t.Run("upgraded", func(t *testing.T) {
		p := startSockets(t, &testApp{}, quick).poller(t)
		p.connect()
		c := p.probed()
		c.send("5")
		answerPings(t, c, rounds)
		c.closed()
	})
}

func answerPings(t *testing.T, c *wsClient, rounds int) {
	t.Helper()
	for range rounds {
		if _, p, err := c.next(); err != nil || p != "2" {
			t.Fatalf("got %q, %v, want a ping", p, err)
		}
		c.send("3")
	}
}

func TestPollingPayloads(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	c.connect()
	c.send(`421["a","é"]`, `422["b",{"x":[]}]`, "6", `423["c"]`)
	for _, want := range []string{`431["é"]`, `432[{"x":[]}]`, `433[null]`} {
		c.want(want)
	}
	if status, _ := c.post(`4` + strings.Repeat("x", 65536)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body over the limit is answered with %d", status)
	}
	c.send(`424["still here"]`)
	c.want(`434[null]`)
}

// TestAPollingBodyHoldsManyMessages is what a client sends that was offline: the limit of a message is for each of them.
func TestAPollingBodyHoldsManyMessages(t *testing.T) {
	t.Parallel()
	s := startSockets(t, &testApp{}, func(o *socketOptions) { o.MaxMessageBytes, o.MaxPollBytes = 5000, 200_000 })
	message := func(id, size int) string { // of so many bytes
		packet := fmt.Sprintf(`42%d["join",""]`, id)
		return packet[:len(packet)-2] + strings.Repeat("x", size-len(packet)) + `"]`
	}
	c := s.poller(t)
	c.connect()
	var many []string
	for i := range 30 {
		many = append(many, message(i, 5000))
	}
	c.send(many...)
	for i := range many {
		if got := c.next(); !strings.HasPrefix(got, fmt.Sprintf(`43%d["xxx`, i)) {
			t.Fatalf("message %d is answered with %.50q", i, got)
		}
	}
	for name, bad := range map[string][]string{
		"a message over the limit":                 {message(31, 5001)},
		"a message over the limit, after others":   {message(32, 100), message(33, 5001), message(34, 100)},
		"a message far over the limit":             {message(35, 50_000)},
		"a body over its limit":                    slices.Repeat(many, 2),
		"a body over its limit, of small messages": slices.Repeat([]string{"6"}, 100_001),
	} {
		if status, _ := c.post(bad...); status != http.StatusRequestEntityTooLarge {
			t.Errorf("%s is answered with %d", name, status)
		}
	}
	c.send(`4299["still here"]`)
	var got []string
	for answer := ""; answer != "4399[null]"; got = append(got, answer) {
		answer = c.next()
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "4332[") {
		t.Errorf("the answers are %.200q", got)
	}
}

func TestTheFirstSubprotocolIsChosen(t *testing.T) {
	s := startSockets(t, &testApp{})
	for header, want := range map[string]string{
		"": "", "Sec-WebSocket-Protocol: chat\r\n": "chat", "Sec-WebSocket-Protocol: b, a\r\n": "b",
		"Sec-WebSocket-Protocol: c\r\nSec-WebSocket-Protocol: a\r\n": "c",
	} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, handshakeText(direct4, header))
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("Sec-WebSocket-Protocol") != want {
			t.Errorf("%q: %v, %v, want %q", header, answer, err, want)
		}
	}
}

func TestBadPollingBodies(t *testing.T) {
	s := startSockets(t, &testApp{})
	for name, body := range map[string]string{
		"empty": "", "unknown type": "9", "ping": "2", "not UTF-8": "42[\"\xff\"]", "binary": "bAAAA", "second is bad": "3\x1eX", "upgrade": "5",
	} {
		c := s.poller(t)
		c.connect()
		if status, _ := c.post(body); status != http.StatusBadRequest {
			t.Errorf("%s: answered with %d", name, status)
		}
		s.awaitUnknown(t, c)
	}
	eventually(t, patience, "all sessions are over", func() bool { return s.count() == 0 })
}

func TestPollingClosedByClient(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	c.connect()
	open := make(chan string)
	go func() {
		_, body := c.get()
		open <- body
	}()
	s.awaitPoll(t)
	if status, body := (&pollClient{t: t, s: s, sid: c.sid}).post("1"); status != http.StatusOK || body != "ok" {
		t.Errorf("CLOSE is answered with %d %q", status, body)
	}
	if body := <-open; body != "6" {
		t.Errorf("the open poll is answered with %q", body)
	}
	s.awaitUnknown(t, c)
}

func TestUpgrade(t *testing.T) {
	s := startSockets(t, &testApp{})
	p := s.poller(t)
	p.connect()
	p.send(`421["over polling"]`) // its acknowledgement waits for a poll
	c := p.probed()
	c.send("5")
	c.want(`431[null]`)
	c.send(`422["over WebSocket"]`)
	c.want(`432[null]`)
	if status, body := p.get(); status != http.StatusBadRequest || !strings.Contains(body, `"code":3`) {
		t.Errorf("polling after the upgrade is answered with %d %q", status, body)
	}
	if _, status := s.tryDial(t, direct4+"&sid="+p.sid); status != http.StatusBadRequest {
		t.Errorf("a second upgrade is answered with %d", status)
	}
	c.send("41")
	c.raw(masked(true, ws.OpClose, ""))
	if status := c.closed(); status != ws.StatusNormalClosure {
		t.Errorf("closes with %d", status)
	}
	if r := endReason(s.app.only(t).reason.Load()); r != endByClient {
		t.Errorf("ended with %d", r)
	}
}

// A client does not upgrade before its open poll has ended.
func TestAProbeEndsTheOpenPoll(t *testing.T) {
	s := startSockets(t, &testApp{})
	p := s.poller(t)
	p.connect()
	answer := make(chan string)
	go func() {
		_, body := p.get()
		answer <- body
	}()
	s.awaitPoll(t)
	c := p.probed()
	if body := <-answer; body != "6" {
		t.Errorf("the open poll is answered with %q", body)
	}
	if _, body := p.get(); body != "6" {
		t.Errorf("the next poll is answered with %q", body)
	}
	c.send("5", `421["a"]`)
	c.want("431[null]")
}

// Without a probe, too, the open poll does not tell the client that the session is over.
func TestAnUpgradeEndsTheOpenPoll(t *testing.T) {
	s := startSockets(t, &testApp{})
	p := s.poller(t)
	p.connect()
	answer := make(chan string)
	go func() {
		_, body := p.get()
		answer <- body
	}()
	s.awaitPoll(t)
	c := s.dial(t, direct4+"&sid="+p.sid)
	c.send("5", `421["a"]`)
	c.want("431[null]")
	if body := <-answer; body != "6" {
		t.Errorf("the open poll is answered with %q", body)
	}
}

func TestFailedUpgradesLeaveThePolling(t *testing.T) {
	s := startSockets(t, &testApp{}, func(o *socketOptions) { o.ConnectTimeout = 50 * time.Millisecond })
	p := s.poller(t)
	p.connect()
	for name, f := range map[string]func(c *wsClient){
		"closes":           func(c *wsClient) { c.raw(masked(true, ws.OpClose, "")); c.closed() },
		"vanishes":         func(c *wsClient) { _ = c.conn.Close() },
		"sends no upgrade": func(c *wsClient) { c.send("2probe"); c.want("3probe"); c.closed() },
		"sends a message":  func(c *wsClient) { c.send(`42["too early"]`); c.closed() },
		"sends no frame":   func(c *wsClient) { c.raw([]byte("GET / HTTP/1.1\r\n")); c.closed() },
	} {
		var c *wsClient
		eventually(t, patience, "upgrade is possible after another failed", func() bool {
			x, status := s.tryDial(t, direct4+"&sid="+p.sid)
			c = x
			return status == http.StatusSwitchingProtocols
		})
		f(c)
		p.send(`421["` + name + `"]`)
		for got := "6"; got != `431[null]`; { // during a probe polls are ended by a NOOP
			if got = p.next(); got != "6" && got != `431[null]` {
				t.Fatalf("%s: got %q", name, got)
			}
		}
	}
	if n := s.app.events.Load(); n != 5 {
		t.Errorf("%d events, want 5", n)
	}
}

func TestRefuse(t *testing.T) {
	s := startSockets(t, &testApp{})
	old := s.connected(t)
	p := s.poller(t)
	s.refuse()
	if _, status := s.tryDial(t, direct4); status != http.StatusServiceUnavailable {
		t.Errorf("WebSocket is answered with %d", status)
	}
	if status, _ := (&pollClient{t: t, s: s}).get(); status != http.StatusServiceUnavailable {
		t.Errorf("polling is answered with %d", status)
	}
	old.send(`421["goes on"]`)
	old.want(`431[null]`)
	p.connect()
	c := p.probed()
	c.send("5", `422["upgrades"]`)
	c.want(`432[null]`)
}

func TestAdmit(t *testing.T) {
	var open atomic.Int64
	s := startSockets(t, &testApp{}, func(o *socketOptions) {
		o.Admit = func(*http.Request) (func(), int) {
			if open.Add(1) > 2 {
				open.Add(-1)
				return nil, http.StatusTooManyRequests
			}
			return func() { open.Add(-1) }, 0
		}
	})
	a, b := s.connected(t), s.poller(t)
	if _, status := s.tryDial(t, direct4); status != http.StatusTooManyRequests {
		t.Errorf("third connection is answered with %d", status)
	}
	if status, _ := (&pollClient{t: t, s: s}).get(); status != http.StatusTooManyRequests {
		t.Errorf("third connection is answered with %d", status)
	}
	_ = a.conn.Close()
	b.send("1")
	eventually(t, patience, "both are released", func() bool { return open.Load() == 0 })
	r, err := http.NewRequest("GET", s.url(direct4), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Upgrade": {"websocket"}}
	answer, err := s.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answerOf(t, answer)
	eventually(t, patience, "a failed handshake is released", func() bool { return open.Load() == 0 })
}

func TestClientsAreKnown(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.connected(t)
	s.poller(t).connect()
	if n := s.count(); n != 2 {
		t.Errorf("count is %d", n)
	}
	s.dial(t, direct4).wantPrefix("0") // is not connected to the namespace
	seen := map[string]bool{}
	eventually(t, patience, "each meets both", func() bool {
		s.each(func(c *client) { seen[c.remoteAddr()] = true })
		return len(seen) == 2
	})
	if !seen[c.conn.LocalAddr().String()] {
		t.Errorf("addresses are %v", seen)
	}
}
