package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
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

// awaitUnknown waits until nothing is known of the session any more.
func (s *testSockets) awaitUnknown(t testing.TB, c *pollClient) {
	t.Helper()
	eventually(t, patience, "session is unknown", func() bool {
		status, body := c.get()
		return status == http.StatusBadRequest && strings.Contains(body, `"code":1`)
	})
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
