package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// The traps of Engine.IO servers that this one must not fall into, by the number under which they are known here. T1, T4
// and T9 are in load_test.go, because it takes many clients to see them.

// resources are what a connection must give back.
type resources struct{ goroutines, descriptors int }

func measure(t testing.TB) resources {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	need(t, err == nil, "Linux, for /proc/self/fd")
	return resources{runtime.NumGoroutine(), len(fds)}
}

// wantReleased waits until no more is in use than before.
func (s *testSockets) wantReleased(t testing.TB, before resources) {
	t.Helper()
	var now resources
	if !poll(patience, func() bool {
		s.http.CloseClientConnections() // those that are kept for another poll
		s.http.Client().CloseIdleConnections()
		now = measure(t)
		return s.count() == 0 && now.goroutines <= before.goroutines && now.descriptors <= before.descriptors
	}) {
		t.Errorf("%d connections, %+v in use, %+v before", s.count(), now, before)
	}
}

// T2: a binary packet that announces no attachments collects without bound in a decoder that waits for them.
func TestT2NoBinary(t *testing.T) {
	s := startSockets(t, &testApp{})
	for _, p := range []string{`450-["a"]`, `4510-["a"]`, `460-1[]`, "bAAAA"} {
		c := s.connected(t)
		c.send(p)
		if status := c.closed(); status != ws.StatusPolicyViolation {
			t.Errorf("%s: closed with %d", p, status)
		}
	}
}

// T3: a transport keeps its goroutine and buffers after the end.
func TestT3EveryEndReleases(t *testing.T) {
	s := startSockets(t, &testApp{})
	before := measure(t)
	ends := map[string]func(c *wsClient){
		"close frame":  func(c *wsClient) { c.raw(masked(true, ws.OpClose, "")); c.closed() },
		"FIN":          func(c *wsClient) {},
		"RST":          func(c *wsClient) { _ = c.conn.(*net.TCPConn).SetLinger(0) },
		"half a frame": func(c *wsClient) { c.raw(masked(true, ws.OpText, "4")[:3]) },
		"bad frame":    func(c *wsClient) { c.raw(bytes.Repeat([]byte{0xff}, 14)); c.closed() },
		"CLOSE":        func(c *wsClient) { c.send("1"); c.closed() },
		"DISCONNECT":   func(c *wsClient) { c.send("41", "1"); c.closed() },
	}
	for _, end := range ends {
		for _, upgraded := range []bool{false, true} {
			var c *wsClient
			if upgraded {
				p := s.poller(t)
				p.connect()
				c = p.probed()
				c.send("5")
			} else {
				c = s.connected(t)
			}
			end(c)
			_ = c.conn.Close()
		}
	}
	s.wantReleased(t, before)
}

// T5: a connection that ends before the server has finished its beginning is never told of.
func TestT5EndsAtOnce(t *testing.T) {
	app := &testApp{}
	s := startSockets(t, app)
	before := measure(t)
	const n = 300
	crowd(n, func(int) {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, handshakeText(direct4)+string(masked(true, ws.OpText, "40")))
		_ = conn.Close()
	})
	crowd(n, func(int) {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "GET /socket.io/?"+polling4+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
		_ = conn.Close()
	})
	eventually(t, patience, "WebSockets are gone", func() bool {
		for _, c := range s.all() {
			if _, polls := c.link.(*polled); !polls {
				return false
			}
		}
		return app.connects.Load() == app.ends.Load()
	})
	s.close() // polling sessions would last until their first ping is late
	s.wantReleased(t, before)
}

// crowd runs f(0) … f(n-1) by a few goroutines.
func crowd(n int, f func(i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}

// T6: the end comes on any goroutine, and packets of a polling client on those of its requests: never two at a time.
func TestT6TheEndWaitsForTheEvent(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"websocket", "polling", "upgraded"} {
		t.Run(transport, func(t *testing.T) {
			inside, goOn := make(chan struct{}), make(chan struct{})
			app := &testApp{onEvent: func(p *testPeer, _ string, _ []json.RawMessage, _ ackID) {
				close(inside)
				<-goOn
				if p.gone.Load() {
					t.Error("ended during an event")
				}
			}}
			s := startSockets(t, app)
			c := s.talker(t, transport)
			c.say("40")
			c.hear()
			var said sync.WaitGroup
			said.Go(func() { c.say(`42["slow"]`) })
			<-inside
			app.only(t).client.close() // does not wait for the event
			closed := make(chan struct{})
			go func() { defer close(closed); s.close() }()
			if poll(50*time.Millisecond, func() bool { return app.ends.Load() > 0 }) {
				t.Error("ended with an event going on")
			}
			close(goOn)
			<-closed
			said.Wait()
			if app.ends.Load() != 1 {
				t.Error("no end")
			}
		})
	}
}

// T8: who knows the sid of Engine.IO can speak for the client, so nobody else must learn it.
func TestT8TheConnIDIsNoCredential(t *testing.T) {
	s := startSockets(t, &testApp{})
	p := s.poller(t)
	p.connect()
	id := s.app.only(t).client.ID()
	if id == p.sid {
		t.Error("the connId is the sid")
	}
	if status, body := (&pollClient{t: t, s: s, sid: id}).get(); status != http.StatusBadRequest || !strings.Contains(body, `"code":1`) {
		t.Errorf("polling by connId is answered with %d %s", status, body)
	}
}

// T10: polls that nobody answers, and bodies that nobody sends.
func TestT10AnOpenPollIsAnsweredAtClose(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	c.connect()
	answer := make(chan string)
	go func() {
		_, body := c.get()
		answer <- body
	}()
	s.awaitPoll(t)
	begin := time.Now()
	s.close()
	if body := <-answer; body != "1" {
		t.Errorf("answered with %q", body)
	}
	if err := s.http.Config.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > linger {
		t.Errorf("it took %v", d)
	}
}

func TestT10AnAbortedPollEndsTheSession(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	c.connect()
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", s.url(c.query()), nil)
	done := make(chan error)
	go func() {
		_, err := s.http.Client().Do(r)
		done <- err
	}()
	s.awaitPoll(t)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	eventually(t, patience, "the session is over", func() bool { return s.count() == 0 })
}

func TestT10TwoPollsEndTheSession(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	c.connect()
	done := make(chan struct{})
	go func() { defer close(done); c.get() }()
	s.awaitPoll(t)
	if status, _ := (&pollClient{t: t, s: s, sid: c.sid}).get(); status != http.StatusBadRequest {
		t.Errorf("the second is answered with %d", status)
	}
	<-done
	eventually(t, patience, "the session is over", func() bool { return s.count() == 0 })
}

func TestT10ABinaryBodyIsAnswered(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	r, err := s.http.Client().Post(s.url(c.query()), "application/octet-stream", strings.NewReader("40"))
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := answerOf(t, r); status != http.StatusBadRequest {
		t.Errorf("answered with %d", status)
	}
}

func TestT10ASlowBodyIsNotWaitedFor(t *testing.T) {
	s := startSockets(t, &testApp{}, func(o *socketOptions) { o.WriteTimeout = 50 * time.Millisecond })
	c := s.poller(t)
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "POST /socket.io/?%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n40", c.query())
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusBadRequest {
		t.Errorf("answered with %v, %v", answer, err)
	}
	eventually(t, patience, "the session is over", func() bool { return s.count() == 0 })
}

func TestT10AnUnreadAnswerIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	app := &testApp{}
	s := startSockets(t, app, func(o *socketOptions) { o.WriteTimeout = 50 * time.Millisecond; o.MaxUnsentBytes = 0 })
	c := s.poller(t)
	c.connect()
	app.only(t).client.send(eventFrame("big", []byte(`"`+strings.Repeat("x", 20<<20)+`"`)))
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /socket.io/?%s HTTP/1.1\r\nHost: x\r\n\r\n", c.query())
	eventually(t, patience, "the session is over", func() bool { return s.count() == 0 })
}

// awaitPoll waits until the only session has an open poll.
func (s *testSockets) awaitPoll(t testing.TB) {
	t.Helper()
	eventually(t, patience, "a poll is open", func() bool {
		for _, c := range s.all() {
			return c.link.(*polled).polling.Load()
		}
		return false
	})
}

// T11: what a client does not fetch is bounded, also while it answers pings.
func TestT11SlowClientsAreCut(t *testing.T) {
	small := func(o *socketOptions) { o.MaxUnsentBytes = 100_000 }
	event := eventFrame("fill", []byte(`"`+strings.Repeat("x", 5000)+`"`))
	t.Run("polling", func(t *testing.T) {
		app := &testApp{}
		s := startSockets(t, app, small)
		c := s.poller(t)
		c.connect()
		for n := 0; s.count() > 0; n++ {
			if n > 25 {
				t.Fatal("still open")
			}
			app.only(t).client.send(event)
			if n < 15 {
				c.send("3")
			} else {
				eventually(t, patience, "closed, or within the bound", func() bool { return s.count() == 0 || n < 19 })
			}
		}
	})
	t.Run("one message may be larger", func(t *testing.T) {
		app := &testApp{}
		c := startSockets(t, app, small).poller(t)
		c.connect()
		text := `"` + strings.Repeat("x", 300_000) + `"`
		for range 3 {
			eventually(t, patience, "all before counts as sent", func() bool {
				p := app.only(t).client.link.(*polled)
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.unsent.bytes == 0
			})
			app.only(t).client.send(eventFrame("big", []byte(text)))
			c.want(`42["big",` + text + `]`)
		}
	})
	for _, transport := range []string{"websocket", "upgraded"} {
		t.Run(transport, func(t *testing.T) {
			app := &testApp{}
			s := startSockets(t, app, small)
			c := s.talker(t, transport)
			c.say("40")
			c.hear()
			eventually(t, patience, "it is cut", func() bool {
				for range 100 {
					app.only(t).client.send(event)
				}
				c.say("3")
				return app.ends.Load() == 1
			})
		})
	}
}

// T12: a WebSocket is accepted from any origin whatever CORS says.
func TestT12Origins(t *testing.T) {
	const good, bad = "https://good.example", "https://bad.example"
	s := startSockets(t, &testApp{}, func(o *socketOptions) { o.Origins = []string{good, "https://other.example"} })
	open := startSockets(t, &testApp{})
	p := s.poller(t)
	ask := func(s *testSockets, method, query, origin string, upgrade bool) *http.Response {
		t.Helper()
		r, _ := http.NewRequest(method, s.url(query), strings.NewReader(""))
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		if upgrade {
			r.Header = http.Header{"Origin": {origin}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"},
				"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
		}
		answer, err := s.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return answer
	}
	for _, c := range []struct {
		name, method, query string
		upgrade             bool
		status              int // from the good origin
	}{
		{"handshake", "GET", polling4, false, 200},
		{"WebSocket", "GET", direct4, true, 101},
		{"upgrade", "GET", direct4 + "&sid=" + p.sid, true, 101},
		{"preflight", "OPTIONS", polling4, false, 204},
		{"POST", "POST", polling4 + "&sid=" + p.sid, false, 400}, // for its empty body
	} {
		if got := ask(s, c.method, c.query, bad, c.upgrade); got.StatusCode != 403 || got.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s from a bad origin: %d, %v", c.name, got.StatusCode, got.Header)
		}
		if got := ask(s, c.method, c.query, good, c.upgrade); got.StatusCode != c.status ||
			!c.upgrade && (got.Header.Get("Access-Control-Allow-Origin") != good || got.Header.Get("Vary") != "Origin") {
			t.Errorf("%s from a good origin: %d, %v", c.name, got.StatusCode, got.Header)
		}
	}
	if got := ask(s, "GET", polling4, "", false); got.StatusCode != 200 {
		t.Errorf("without an origin: %d", got.StatusCode)
	}
	for _, method := range []string{"GET", "OPTIONS"} {
		if got := ask(open, method, polling4, bad, false); got.StatusCode >= 400 || got.Header.Get("Access-Control-Allow-Origin") != bad ||
			got.Header.Get("Access-Control-Allow-Credentials") != "true" {
			t.Errorf("%s, any origin: %d, %v", method, got.StatusCode, got.Header)
		}
	}
}

// T13: nothing ends a connection that never connects to the namespace.
func TestT13ConnectInTime(t *testing.T) {
	t.Parallel()
	s := startSockets(t, &testApp{}, func(o *socketOptions) { o.ConnectTimeout = 100 * time.Millisecond })
	for _, transport := range []string{"websocket", "polling", "upgraded"} {
		c := s.talker(t, transport)
		c.say("40/other,")
		for open := true; open; {
			_, open = c.hear()
		}
	}
	eventually(t, patience, "all are gone", func() bool { return s.count() == 0 })
	c := s.connected(t)
	eventually(t, patience, "a time to connect has passed", func() bool { // of another one, which began later
		x := s.dial(t, direct4)
		return x.closed() == errLate.status
	})
	c.send(`421["still here"]`)
	c.want("431[null]")
}

// T14: no compression, whatever a client offers.
func TestT14NoCompression(t *testing.T) {
	app := &testApp{}
	s := startSockets(t, app)
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, handshakeText(direct4, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"))
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != 101 || answer.Header.Get("Sec-WebSocket-Extensions") != "" {
		t.Errorf("%v, %v", answer, err)
	}
	p := s.poller(t)
	p.connect()
	app.only(t).client.send(eventFrame("big", []byte(`"`+strings.Repeat("x", 10_000)+`"`)))
	r, _ := http.NewRequest("GET", s.url(p.query()), nil)
	r.Header.Set("Accept-Encoding", "gzip, br, zstd")
	got, err := s.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, body := answerOf(t, got); got.Header.Get("Content-Encoding") != "" || len(body) < 10_000 {
		t.Errorf("%v", got.Header)
	}
}

// T17: a poll that comes when the session was closed or upgraded just now gets an answer.
func TestT17LatePollsAreAnswered(t *testing.T) {
	for want, change := range map[string]func(p *polled, c *pollClient){
		"1": func(p *polled, _ *pollClient) { p.client.close() },
		"6": func(_ *polled, c *pollClient) {
			x := c.probed()
			x.send("5", `421["a"]`)
			x.want("431[null]")
		},
	} {
		app := &testApp{}
		c := startSockets(t, app).poller(t)
		c.connect()
		p := app.only(t).client.link.(*polled)
		change(p, c)
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil) // was checked before the change
		w := httptest.NewRecorder()
		p.poll(w, r)
		if got := w.Body.String(); got != want {
			t.Errorf("answered with %q, want %q", got, want)
		}
	}
}
