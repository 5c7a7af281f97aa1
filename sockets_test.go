package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

const patience = 10 * time.Second // for what must come, on a machine that is busy

// testApp counts what the session layer tells it. Its peers acknowledge an event with its first argument.
type testApp struct {
	refusal   []byte
	forget    bool // keeps no peers
	onConnect func(*client)
	onEvent   func(p *testPeer, name string, args []json.RawMessage, id ackID)
	onEnd     func(p *testPeer)

	connects, ends, events, pongs, overlaps atomic.Int64

	mu    sync.Mutex
	peers []*testPeer
}

func (a *testApp) connect(c *client, _ []byte) (peer, []byte) {
	if a.refusal != nil {
		return nil, a.refusal
	}
	if a.onConnect != nil {
		a.onConnect(c)
	}
	p := &testPeer{app: a, client: c}
	if !a.forget {
		a.mu.Lock()
		a.peers = append(a.peers, p)
		a.mu.Unlock()
	}
	a.connects.Add(1)
	return p, nil
}

// only is the one peer that has connected.
func (a *testApp) only(t testing.TB) *testPeer {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.peers) != 1 {
		t.Fatalf("%d peers connected, want 1", len(a.peers))
	}
	return a.peers[0]
}

type testPeer struct {
	app    *testApp
	client *client
	inside atomic.Int64
	gone   atomic.Bool
	reason atomic.Int64
}

// alone counts calls that overlap another one or come after the end.
func (p *testPeer) alone() (done func()) {
	if p.inside.Add(1) > 1 || p.gone.Load() {
		p.app.overlaps.Add(1)
	}
	return func() { p.inside.Add(-1) }
}

func (p *testPeer) event(name string, args []json.RawMessage, id ackID) {
	defer p.alone()()
	p.app.events.Add(1)
	if p.app.onEvent != nil {
		p.app.onEvent(p, name, args, id)
		return
	}
	payload := []byte("null")
	if len(args) > 0 {
		payload = args[0]
	}
	p.client.ack(id, payload)
}

func (p *testPeer) ended(reason endReason) {
	defer p.alone()()
	p.gone.Store(true)
	p.reason.Store(int64(reason))
	p.app.ends.Add(1)
	if p.app.onEnd != nil {
		p.app.onEnd(p)
	}
}

func (p *testPeer) pong() {
	defer p.alone()()
	p.app.pongs.Add(1)
}

// testSockets is a server on a loopback port.
type testSockets struct {
	*sockets
	app  *testApp
	addr string
	http *httptest.Server
}

// startSockets starts one with defaults that no test waits for, and stops it at the end of the test.
func startSockets(t testing.TB, a *testApp, change ...func(*socketOptions)) *testSockets {
	t.Helper()
	o := socketOptions{
		PingInterval: 25 * time.Second, PingTimeout: 20 * time.Second, ConnectTimeout: patience, WriteTimeout: patience, TakeTimeout: patience,
		MaxMessageBytes: 65536, MaxPollBytes: 1 << 20, MaxUnsentBytes: 1 << 20, Origins: []string{"*"}, Logger: slog.New(slog.DiscardHandler),
		Refusals: &refusals{},
	}
	for _, f := range change {
		f(&o)
	}
	s := newSockets(o, a)
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		s.close()
		server.Close()
		if n := a.overlaps.Load(); n != 0 {
			t.Errorf("%d calls of a peer overlapped or came after its end", n)
		}
		if c, e := a.connects.Load(), a.ends.Load(); c != e {
			t.Errorf("%d connects, %d ends", c, e)
		}
	})
	return &testSockets{sockets: s, app: a, addr: server.Listener.Addr().String(), http: server}
}

// wsClient speaks WebSocket frame by frame.
type wsClient struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func handshakeText(query string, more ...string) string {
	return "GET /socket.io/?" + query + " HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + strings.Join(more, "") + "\r\n"
}

// dial opens a WebSocket; early is sent in the same segment as the handshake.
func (s *testSockets) dial(t testing.TB, query string, early ...[]byte) *wsClient {
	t.Helper()
	c, status := s.tryDial(t, query, early...)
	if status != http.StatusSwitchingProtocols {
		t.Fatalf("handshake answered with %d", status)
	}
	return c
}

func (s *testSockets) tryDial(t testing.TB, query string, early ...[]byte) (*wsClient, int) {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(3 * patience))
	if _, err := conn.Write(append([]byte(handshakeText(query)), bytes.Join(early, nil)...)); err != nil {
		t.Fatal(err)
	}
	c := &wsClient{t: t, conn: conn, in: bufio.NewReader(conn)}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, answer.StatusCode
}

const direct4 = "EIO=4&transport=websocket"

// connected is a direct WebSocket whose CONNECT was answered.
func (s *testSockets) connected(t testing.TB) *wsClient {
	t.Helper()
	c := s.dial(t, direct4)
	c.connect()
	return c
}

func (c *wsClient) connect() {
	c.t.Helper()
	c.wantPrefix(`0{"sid":`)
	c.send("40")
	c.wantPrefix(`40{"sid":`)
}

// masked is a client's frame.
func masked(fin bool, op ws.OpCode, payload string) []byte {
	f := ws.NewFrame(op, fin, []byte(payload))
	return ws.MustCompileFrame(ws.MaskFrameInPlaceWith(f, [4]byte{1, 2, 3, 4}))
}

func (c *wsClient) raw(frames ...[]byte) {
	c.t.Helper()
	if _, err := c.conn.Write(bytes.Join(frames, nil)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *wsClient) send(packets ...string) {
	c.t.Helper()
	for _, p := range packets {
		c.raw(masked(true, ws.OpText, p))
	}
}

func (c *wsClient) next() (ws.OpCode, string, error) {
	h, err := ws.ReadHeader(c.in)
	if err != nil {
		return 0, "", err
	}
	if h.Masked || !h.Fin || h.Rsv != 0 {
		c.t.Errorf("server sent a frame with header %+v", h)
	}
	p := make([]byte, h.Length)
	_, err = io.ReadFull(c.in, p)
	return h.OpCode, string(p), err
}

// text is the next Engine.IO packet that is no ping.
func (c *wsClient) text() string {
	c.t.Helper()
	for {
		op, p, err := c.next()
		if err != nil || op != ws.OpText {
			c.t.Fatalf("got op code %d, %q, %v, want text", op, p, err)
		}
		if p != "2" {
			return p
		}
	}
}

func (c *wsClient) want(packet string) {
	c.t.Helper()
	if got := c.text(); got != packet {
		c.t.Fatalf("got %q, want %q", got, packet)
	}
}

func (c *wsClient) wantPrefix(prefix string) string {
	c.t.Helper()
	got := c.text()
	if !strings.HasPrefix(got, prefix) {
		c.t.Fatalf("got %q, want %q…", got, prefix)
	}
	return got
}

// closed reads up to the end and returns the status of the close frame, 0 if there was none.
func (c *wsClient) closed() ws.StatusCode {
	c.t.Helper()
	var status ws.StatusCode
	for {
		op, p, err := c.next()
		switch {
		case op == ws.OpClose:
			status, _ = ws.ParseCloseFrameData([]byte(p))
		case err != nil:
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				c.t.Fatal("connection was not closed")
			}
			return status
		}
	}
}

// pollClient speaks polling.
type pollClient struct {
	t      testing.TB
	s      *testSockets
	sid    string
	queued []string
}

func (s *testSockets) url(query string) string { return s.http.URL + "/socket.io/?" + query }

const polling4 = "EIO=4&transport=polling"

// poller is a new polling session.
func (s *testSockets) poller(t testing.TB) *pollClient {
	t.Helper()
	c := &pollClient{t: t, s: s}
	var open struct{ SID string }
	if err := json.Unmarshal([]byte(c.next()[1:]), &open); err != nil || open.SID == "" {
		t.Fatalf("no sid: %v", err)
	}
	c.sid = open.SID
	return c
}

func (c *pollClient) query() string {
	if c.sid == "" {
		return polling4
	}
	return polling4 + "&sid=" + c.sid
}

func (c *pollClient) get() (int, string) {
	c.t.Helper()
	r, err := c.s.http.Client().Get(c.s.url(c.query()))
	if err != nil {
		c.t.Fatal(err)
	}
	return answerOf(c.t, r)
}

func (c *pollClient) post(packets ...string) (int, string) {
	c.t.Helper()
	r, err := c.s.http.Client().Post(c.s.url(c.query()), "text/plain", strings.NewReader(strings.Join(packets, "\x1e")))
	if err != nil {
		c.t.Fatal(err)
	}
	return answerOf(c.t, r)
}

func (c *pollClient) send(packets ...string) {
	c.t.Helper()
	if status, body := c.post(packets...); status != http.StatusOK || body != "ok" {
		c.t.Fatalf("POST %q answered with %d %q", packets, status, body)
	}
}

func answerOf(t testing.TB, r *http.Response) (int, string) {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// next is the next packet that is no ping.
func (c *pollClient) next() string {
	c.t.Helper()
	for {
		for len(c.queued) == 0 {
			status, body := c.get()
			if status != http.StatusOK {
				c.t.Fatalf("GET answered with %d %q", status, body)
			}
			c.queued = strings.Split(body, "\x1e")
		}
		p := c.queued[0]
		c.queued = c.queued[1:]
		if p != "2" {
			return p
		}
	}
}

func (c *pollClient) want(packet string) {
	c.t.Helper()
	if got := c.next(); got != packet {
		c.t.Fatalf("got %q, want %q", got, packet)
	}
}

func (c *pollClient) connect() {
	c.t.Helper()
	c.send("40")
	if got := c.next(); !strings.HasPrefix(got, `40{"sid":`) {
		c.t.Fatalf("got %q, want CONNECT", got)
	}
}

// probed is the WebSocket of an upgrade after the probe, with no poll open: UPGRADE may be sent.
func (c *pollClient) probed() *wsClient {
	c.t.Helper()
	x := c.s.dial(c.t, direct4+"&sid="+c.sid)
	x.send("2probe")
	x.want("3probe")
	return x
}

// awaitUnknown waits until nothing is known of the session any more.
func (s *testSockets) awaitUnknown(t testing.TB, c *pollClient) {
	t.Helper()
	eventually(t, patience, "session is unknown", func() bool {
		status, body := c.get()
		return status == http.StatusBadRequest && strings.Contains(body, `"code":1`)
	})
}
