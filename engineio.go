package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/zishang520/socket.io/parsers/engine/v3/packet"
	"github.com/zishang520/socket.io/parsers/engine/v3/parser"
	"github.com/zishang520/socket.io/servers/engine/v3"
	"github.com/zishang520/socket.io/servers/engine/v3/config"
	"github.com/zishang520/socket.io/servers/engine/v3/transports"
	"github.com/zishang520/socket.io/v3/pkg/types"
)

// Types of Engine.IO packets, and what separates them in a polling payload.
const (
	packetOpen    = '0'
	packetClose   = '1'
	packetPing    = '2'
	packetPong    = '3'
	packetMessage = '4'
	packetNoop    = '6'
	separator     = '\x1e'
)

var (
	errEngine = closeError{ws.StatusPolicyViolation, "not an Engine.IO packet that is allowed here"}
	errSilent = errors.New("client did not answer a ping")
)

// socketOptions are what the transports need to know. Every duration must be positive.
type socketOptions struct {
	PingInterval    time.Duration // after a pong, until the next ping
	PingTimeout     time.Duration // for the pong
	ConnectTimeout  time.Duration // for Socket.IO's CONNECT, and for an upgrade
	WriteTimeout    time.Duration // for a client to accept a byte, or to hand over a polling body
	MaxMessageBytes int           // one message, or one polling body
	MaxUnsentBytes  int           // waiting for one client; one message alone may be larger; 0 = any number
	Origins         []string      // allowed in the Origin header; "*" = all
	Logger          *slog.Logger

	// Admit, if there is one, is asked before every handshake. It returns what to call when the connection is over, or the
	// HTTP status of the refusal.
	Admit func(r *http.Request) (release func(), status int)

	Refusals *refusals
}

// sockets are the Engine.IO connections of this node, and the HTTP handler where they begin. A WebSocket that is opened at
// once is served here alone. Polling, and the upgrade from it, go through the library's engine, which sees neither an HTTP
// request nor a WebSocket that was not checked here.
type sockets struct {
	socketOptions
	app     app
	engine  engine.Server
	request *http.Request // what the engine sees of every one
	ping    frame

	mu       sync.Mutex
	clients  map[*client]struct{}
	polled   map[string]*polled // by sid
	refusing bool
	running  sync.WaitGroup // what still has to end
}

func newSockets(o socketOptions, a app) *sockets {
	opts := config.DefaultServerOptions()
	opts.SetPingInterval(0) // see polled.open
	opts.SetUpgradeTimeout(0)
	return &sockets{
		socketOptions: o,
		app:           a,
		engine:        engine.NewServer(opts),
		request:       &http.Request{Method: http.MethodGet, URL: &url.URL{RawQuery: "EIO=4&transport=polling"}},
		ping:          textFrame(packetPing),
		clients:       map[*client]struct{}{},
		polled:        map[string]*polled{},
	}
}

// each calls f with every client that has connected to the namespace.
func (s *sockets) each(f func(*client)) {
	for _, c := range s.all() {
		if c.connected.Load() {
			f(c)
		}
	}
}

// all are the clients of the open connections.
func (s *sockets) all() []*client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.clients))
}

// count is the number of open connections.
func (s *sockets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.clients)
}

// refuse answers every handshake from now on with 503.
func (s *sockets) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusing = true
}

// close refuses, closes all connections, and returns when every ended has.
func (s *sockets) close() {
	s.refuse()
	for _, c := range s.all() {
		c.close()
	}
	s.running.Wait()
}

// enter registers a new connection, and its sid if it polls, unless there may be none any more.
func (s *sockets) enter(c *client, p *polled) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusing {
		return false
	}
	s.clients[c] = struct{}{}
	if p != nil {
		s.polled[p.sid] = p
	}
	s.running.Add(1)
	return true
}

// alongside runs f for a connection that has entered, unless it has left; close waits for f as well.
func (s *sockets) alongside(c *client, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, here := s.clients[c]; !here {
		return false
	}
	s.running.Go(f)
	return true
}

// leave tells the application that a connection is over. Whoever entered calls running.Done after it.
func (s *sockets) leave(c *client, cause error, release func()) {
	c.end()
	s.mu.Lock()
	delete(s.clients, c)
	s.mu.Unlock()
	release()
	s.Refusals.end(cause)
	s.Logger.Debug("connection ended", "conn", c.id, "remote", c.addr, "cause", cause)
}

func (s *sockets) newClient(r *http.Request, l link) *client {
	return &client{id: newID(), addr: r.RemoteAddr, app: s.app, log: s.Logger, link: l}
}

// await gives a new client its time to connect.
func (s *sockets) await(c *client) {
	c.begin(s.ConnectTimeout, func() {
		s.Refusals.add(refusedLate)
		c.closeFor(errLate)
	})
}

// refusal is the answer to a request that Engine.IO does not want.
type refusal struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	status  int
}

func refuseWith(status, code int, message string) *refusal {
	return &refusal{Code: code, Message: message, status: status}
}

func badRequest() *refusal { return refuseWith(http.StatusBadRequest, 3, "Bad request") }

func (f *refusal) write(w http.ResponseWriter) {
	body, _ := json.Marshal(f) // cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_, _ = w.Write(body)
}

// ServeHTTP answers every request for the path of Socket.IO.
func (s *sockets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.allowOrigin(w.Header(), r.Header.Get("Origin")) {
		s.Refusals.add(refusedOrigin)
		refuseWith(http.StatusForbidden, 4, "Forbidden").write(w)
		return
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Methods", "GET, POST")
		w.Header().Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
		w.WriteHeader(http.StatusNoContent)
		return
	}
	upgrade := strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
	p, no := s.check(r, upgrade)
	switch {
	case no != nil:
		no.write(w)
	case p == nil:
		s.handshake(w, r, upgrade)
	case upgrade:
		p.upgrade(w, r)
	case r.Method == http.MethodGet:
		p.poll(w, r)
	default:
		p.post(w, r)
	}
}

// allowOrigin holds for polling, WebSocket and upgrade alike. A request without Origin comes from no browser.
func (s *sockets) allowOrigin(answer http.Header, origin string) bool {
	switch {
	case origin == "":
	case slices.Contains(s.Origins, "*"):
		answer.Set("Access-Control-Allow-Origin", "*")
	case slices.Contains(s.Origins, origin):
		answer.Set("Access-Control-Allow-Origin", origin)
		answer.Set("Access-Control-Allow-Credentials", "true") // for the cookie of a load balancer
		answer.Set("Vary", "Origin")
	default:
		return false
	}
	return true
}

// check looks at a request as Engine.IO prescribes. It returns the session that a sid names, nil for a handshake.
func (s *sockets) check(r *http.Request, upgrade bool) (*polled, *refusal) {
	q := r.URL.Query()
	transport, sid := q.Get("transport"), q.Get("sid")
	if transport != "polling" && transport != "websocket" {
		return nil, refuseWith(http.StatusBadRequest, 0, "Transport unknown")
	}
	mismatch := upgrade != (transport == "websocket")
	if sid == "" {
		switch {
		case r.Method != http.MethodGet:
			return nil, refuseWith(http.StatusBadRequest, 2, "Bad handshake method")
		case mismatch:
			return nil, badRequest()
		case q.Get("EIO") != "4":
			return nil, refuseWith(http.StatusBadRequest, 5, "Unsupported protocol version")
		}
		return nil, nil
	}
	s.mu.Lock()
	p := s.polled[sid]
	s.mu.Unlock()
	switch {
	case p == nil:
		return nil, refuseWith(http.StatusBadRequest, 1, "Session ID unknown")
	case mismatch, r.Method != http.MethodGet && (upgrade || r.Method != http.MethodPost), !p.onPolling():
		return nil, badRequest()
	}
	return p, nil
}

// handshake begins a connection of either kind, if one more is welcome.
func (s *sockets) handshake(w http.ResponseWriter, r *http.Request, upgrade bool) {
	s.mu.Lock()
	refusing := s.refusing
	s.mu.Unlock()
	release, status := func() {}, 0
	if refusing {
		status = http.StatusServiceUnavailable
	} else if s.Admit != nil {
		release, status = s.Admit(r)
	}
	begin := s.beginPolling
	if upgrade {
		begin = s.beginDirect
	}
	if status != 0 {
		refuseWith(status, 3, http.StatusText(status)).write(w)
	} else if !begin(w, r, release) {
		release()
	}
}

// heartbeat pings a client once per interval, and gives it up when the pong is late.
type heartbeat struct {
	interval, timeout time.Duration
	ping, lost        func()
	timer             *time.Timer
	awaited           atomic.Bool // the pong is
	over              atomic.Bool
}

func (s *sockets) newHeartbeat(ping, lost func()) *heartbeat {
	h := &heartbeat{interval: s.PingInterval, timeout: s.PingTimeout, ping: ping, lost: lost}
	h.timer = time.AfterFunc(math.MaxInt64, h.tick) // tick uses timer, so it must not run before the assignment
	h.timer.Reset(h.interval)
	return h
}

func (h *heartbeat) tick() {
	switch {
	case h.over.Load():
	case h.awaited.Swap(true):
		h.lost()
	default:
		h.ping()
		h.timer.Reset(h.timeout)
	}
}

// pong reports whether it was waited for.
func (h *heartbeat) pong() bool {
	awaited := h.awaited.Swap(false)
	h.timer.Reset(h.interval)
	return awaited
}

func (h *heartbeat) stop() {
	h.over.Store(true)
	h.timer.Stop()
}

// direct is a connection whose first and only transport is a WebSocket: one goroutine that reads, and one timer.
type direct struct {
	sockets *sockets
	client  *client
	socket  *webSocket
	heart   *heartbeat
	release func()
}

// beginDirect reports whether there is a new connection, which then calls release at its end.
func (s *sockets) beginDirect(w http.ResponseWriter, r *http.Request, release func()) bool {
	x, err := accept(w, r, &s.socketOptions)
	if err != nil {
		s.Logger.Debug("handshake failed", "remote", r.RemoteAddr, "cause", err)
		return false
	}
	d := &direct{sockets: s, client: s.newClient(r, x), socket: x, release: release}
	if !s.enter(d.client, nil) {
		x.cut(errClosed)
		return false
	}
	x.send(textFrame(packetOpen, s.open(newID(), ""))) // the sid is of no use: there is no second request
	s.await(d.client)
	d.heart = s.newHeartbeat(func() { x.send(s.ping) }, func() { x.cut(errSilent) })
	go d.serve()
	return true
}

// open is the data of OPEN; upgrades is the inside of a JSON array.
func (s *sockets) open(sid, upgrades string) []byte {
	return fmt.Appendf(nil, `{"sid":%q,"upgrades":[%s],"pingInterval":%d,"pingTimeout":%d,"maxPayload":%d}`,
		sid, upgrades, s.PingInterval.Milliseconds(), s.PingTimeout.Milliseconds(), s.MaxMessageBytes)
}

func (d *direct) serve() {
	defer d.sockets.running.Done()
	cause := d.read()
	d.heart.stop()
	d.sockets.leave(d.client, cmp.Or(d.socket.reason(), cause), d.release)
	d.socket.end(cause)
}

// read returns why no more packets come.
func (d *direct) read() (err error) {
	defer d.client.recovered(&err)
	for {
		message, err := d.socket.receive()
		if err == nil {
			err = takePacket(d.client, d.heart, kept(message))
		}
		if err != nil {
			return err
		}
	}
}

// takePacket handles one packet of a client, whose memory may be kept.
func takePacket(c *client, h *heartbeat, p []byte) error {
	if len(p) == 0 {
		return errEngine
	}
	switch p[0] {
	case packetMessage:
		return c.receive(p[1:])
	case packetPong:
		if !h.pong() {
			return nil // nobody asked
		}
		return c.pong()
	case packetNoop:
		return nil
	case packetClose:
		return errLeft
	}
	return errEngine
}

// polled is a connection that began with polling, and perhaps went on with a WebSocket. The library's engine holds what
// waits for a poll, answers polls, and changes from them to the WebSocket. What the client sends does not pass through it.
type polled struct {
	sockets *sockets
	client  *client
	heart   *heartbeat
	sid     string
	release func()

	polling, posting, upgrading atomic.Bool // there is such a request

	mu      sync.Mutex    // around every use of the engine; its locks and that of the outbox come after it
	engine  engine.Socket // nil after the upgrade: it has done its part, and takes several times the memory of the rest
	unsent  int           // bytes of messages that wait in the engine, or are in an answer on its way
	final   bool          // closes when unsent is 0
	probing bool          // polls are not to stay open: the client waits for their end before it upgrades
	socket  *webSocket    // beside polling, or instead of it
}

// beginPolling reports whether there is a new connection, which then calls release at its end.
func (s *sockets) beginPolling(w http.ResponseWriter, r *http.Request, release func()) bool {
	p := &polled{sockets: s, engine: engine.MakeSocket(), sid: newID(), release: release}
	p.client = s.newClient(r, p)
	p.mu.Lock() // who closes it from now on waits until it is open
	entered := s.enter(p.client, p)
	if entered {
		p.heart = s.newHeartbeat(p.ping, p.client.close)
		p.open()
	}
	p.mu.Unlock()
	if !entered {
		refuseWith(http.StatusServiceUnavailable, 3, http.StatusText(http.StatusServiceUnavailable)).write(w)
		return false
	}
	s.await(p.client)
	p.deliver(w, append([]byte{packetOpen}, s.open(p.sid, `"websocket"`)...)) // the engine's own knows nothing of our pings
	return true
}

// open opens the session in the engine, as the engine's Handshake does, but listens to it before anything can happen.
//
// No timer of the engine is ever stopped: it would tell its goroutine by a send that is dropped if nobody waits for it yet,
// and then the goroutine waits for ever and keeps the session. So all times are 0, and every timer's goroutine ends where
// it first meets code of ours, which is waited for: here the one that pings, in wsTransport that of the upgrade. The pings
// are ours also because the engine closes a healthy client whose pong comes before it has begun to wait for that.
func (p *polled) open() {
	pinged := make(chan struct{})
	_ = p.engine.On("packetCreate", func(args ...any) {
		switch created, _ := args[0].(*packet.Packet); {
		case created.Type == packet.PING:
			close(pinged)
			runtime.Goexit()
		case created.Data == nil:
			created.Type = packet.PING // see ping
		}
	})
	_ = p.engine.Once("close", p.ended)
	_, hc := p.sockets.newPoll()
	t := &pollTransport{Polling: transports.MakePolling()}
	t.Prototype(t)
	t.OnRequest(hc)
	p.engine.Construct(p.sid, p.sockets.engine, t, hc, engine.Protocol)
	<-pinged
}

// ended is the engine's "close", or the WebSocket's after an upgrade: it tells the application that the connection is over.
// It returns at once, because the caller may be the application itself, in an event.
func (p *polled) ended(why ...any) {
	p.heart.stop()
	s := p.sockets
	s.mu.Lock()
	delete(s.polled, p.sid)
	s.mu.Unlock()
	go func() {
		defer s.running.Done()
		s.leave(p.client, fmt.Errorf("polling session: %v", why), p.release)
	}()
}

// onPolling tells whether the session has not been upgraded.
func (p *polled) onPolling() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.engine != nil
}

// isOpen tells whether nobody has closed the session. Call it under mu, before an upgrade.
func (p *polled) isOpen() bool { return p.engine.ReadyState() == "open" }

// ping has the engine write a packet without data, which no message is and which becomes a ping: it has no method for that.
func (p *polled) ping() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.engine != nil {
		p.engine.Write(nil, nil, nil)
	} else {
		p.socket.send(p.sockets.ping)
	}
}

// queue has the engine keep f until a poll comes. A client that has let more than the limit pile up is closed.
func (p *polled) queue(f frame) bool {
	p.mu.Lock()
	if p.engine == nil {
		p.mu.Unlock()
		return p.socket.queue(f)
	}
	fits := p.hold(f.packet())
	p.mu.Unlock()
	if !fits {
		p.sockets.Refusals.add(refusedSlow)
		p.sockets.Logger.Debug("closing a connection", "conn", p.client.id, "cause", errTooSlow)
		p.client.close()
	}
	return false
}

// hold is queue under mu, before an upgrade. It reports whether the message is within the limit.
func (p *polled) hold(message []byte) bool {
	limit := p.sockets.MaxUnsentBytes
	if limit > 0 && p.unsent > 0 && p.unsent+len(message) > limit {
		return false
	}
	p.unsent += len(message)
	p.engine.Write(types.NewStringBuffer(message[1:]), nil, nil)
	return true
}

// flush is for frames that were queued after an upgrade.
func (p *polled) flush() {
	if !p.onPolling() {
		p.socket.flush()
	}
}

// finish closes when the last poll has been answered, or after the timeout.
func (p *polled) finish(why closeError) {
	p.mu.Lock()
	p.final = true
	upgraded, waiting := p.engine == nil, p.unsent > 0
	p.mu.Unlock()
	switch {
	case upgraded:
		p.socket.finish(why)
	case waiting:
		time.AfterFunc(p.sockets.WriteTimeout, func() { p.shut(why) })
	default:
		p.shut(why)
	}
}

func (p *polled) shut(why closeError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.engine != nil {
		p.engine.Close(true)
	}
	if p.socket != nil {
		p.socket.shut(why) // after an upgrade its reader calls ended, in order
	}
}

// endPoll answers the poll that is open, if there is one, with a packet that does nothing. Call it under mu, before an
// upgrade.
func (p *polled) endPoll() {
	if t := p.engine.Transport(); t.Writable() {
		t.Send([]*packet.Packet{{Type: packet.NOOP}})
	}
}

// newPoll is a poll for the engine, which keeps the first one as long as the session, and so gets to see nothing of the
// HTTP server's.
func (s *sockets) newPoll() (*pollAnswer, *types.HttpContext) {
	answer := &pollAnswer{}
	return answer, types.NewHttpContext(answer, s.request)
}

// pollAnswer is the body of the engine's answer to a poll.
type pollAnswer struct{ bytes.Buffer }

func (*pollAnswer) Header() http.Header { return http.Header{} } // deliver knows it
func (*pollAnswer) WriteHeader(int)     {}                       // of what the engine is given, everything is well

// pollTransport is the library's polling without the queue that it would write its answers through. The memory of such a
// queue is never freed, 10 KB for each session; nor does it take the answer to the poll that is open when it is closed.
// Everything is done under the session's mu instead, also what the library does with a poll after its answer, which
// could otherwise hit the next one.
type pollTransport struct {
	transports.Polling
	request *types.HttpContext // the poll that is open, or the last one
}

func (t *pollTransport) OnRequest(hc *types.HttpContext) {
	t.request = hc
	t.Polling.OnRequest(hc)
}

// Send answers the open poll.
func (t *pollTransport) Send(packets []*packet.Packet) {
	t.SetWritable(false)
	payload, err := parser.Parserv4().EncodePayload(packets)
	if err == nil { // it always is, for the packets that the engine makes
		t.DoWrite(t.request, payload, nil, func(error) {})
	}
}

func (t *pollTransport) DoClose(closed types.Callable) {
	if t.Writable() {
		t.Send([]*packet.Packet{{Type: packet.CLOSE}})
	}
	if closed != nil {
		closed()
	}
	t.OnClose()
}

// poll answers a GET when there is something to send, or when nothing will come any more.
func (p *polled) poll(w http.ResponseWriter, r *http.Request) {
	if p.polling.Swap(true) {
		p.client.close()
		badRequest().write(w)
		return
	}
	stop := context.AfterFunc(r.Context(), p.client.close) // a client that gives up a poll gives up the session
	body := p.await()
	stop()
	p.polling.Store(false) // the next one may come as soon as this one is answered
	p.deliver(w, body)
}

// await returns the engine's answer to a poll, which comes when the session is closed or upgraded at the latest.
func (p *polled) await() []byte {
	answer, hc := p.sockets.newPoll()
	p.mu.Lock()
	switch {
	case p.engine == nil: // since the request was checked
		_, _ = hc.Write([]byte{packetNoop})
	case !p.isOpen(): // and the engine would give no answer
		_, _ = hc.Write([]byte{packetClose})
	default:
		p.engine.Transport().OnRequest(hc)
		if p.probing {
			p.endPoll()
		}
	}
	p.mu.Unlock()
	<-hc.Done()
	return answer.Bytes()
}

// deliver answers a poll. The messages in the body count as unsent until then. A client that does not take it within the
// timeout is closed.
func (p *polled) deliver(w http.ResponseWriter, body []byte) {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(p.sockets.WriteTimeout))
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	_, err := w.Write(body)
	if err == nil {
		err = control.Flush()
	}
	p.mu.Lock()
	for message := range bytes.SplitSeq(body, []byte{separator}) {
		if bytes.HasPrefix(message, []byte{packetMessage}) {
			p.unsent -= len(message)
		}
	}
	done := err != nil || p.final && p.unsent == 0
	p.mu.Unlock()
	if done {
		p.client.close()
	}
}

// post takes the packets of a POST.
func (p *polled) post(w http.ResponseWriter, r *http.Request) {
	if p.posting.Swap(true) {
		p.client.close()
		badRequest().write(w)
		return
	}
	no := p.takePost(w, r)
	p.posting.Store(false) // the next one may come as soon as this one is answered
	if no != nil {
		no.write(w)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, "ok")
}

func (p *polled) takePost(w http.ResponseWriter, r *http.Request) *refusal {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(p.sockets.WriteTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(p.sockets.MaxMessageBytes)))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{})
	} else {
		w.Header().Set("Connection", "close") // and the HTTP server does not wait for the rest
	}
	if errors.As(err, new(*http.MaxBytesError)) {
		p.sockets.Refusals.add(refusedSize)
		return refuseWith(http.StatusRequestEntityTooLarge, 3, "Payload too large")
	}
	binary := strings.HasPrefix(r.Header.Get("Content-Type"), "application/octet-stream")
	if err == nil && (binary || !utf8.Valid(body)) {
		err = errEngine
	}
	if err == nil {
		err = p.payload(body)
	}
	if err == nil || errors.Is(err, errClosed) { // what it sends no longer matters, what waits for it does
		return nil
	}
	p.client.close()
	if errors.Is(err, errLeft) {
		return nil
	}
	return badRequest()
}

func (p *polled) payload(body []byte) (err error) {
	defer p.client.recovered(&err)
	for message := range bytes.SplitSeq(body, []byte{separator}) {
		if err := takePacket(p.client, p.heart, message); err != nil {
			return err
		}
	}
	return nil
}

// upgrade opens a WebSocket beside the polling, which becomes the transport when the client says so.
func (p *polled) upgrade(w http.ResponseWriter, r *http.Request) {
	if p.upgrading.Swap(true) {
		badRequest().write(w)
		return
	}
	x, err := accept(w, r, &p.sockets.socketOptions)
	if err != nil {
		p.upgrading.Store(false)
		return
	}
	_ = x.conn.SetReadDeadline(time.Now().Add(p.sockets.ConnectTimeout))
	p.mu.Lock()
	p.socket = x
	open := p.isOpen()
	p.mu.Unlock()
	if !open || !p.sockets.alongside(p.client, func() { p.serve(x) }) {
		x.cut(errClosed)
	}
}

// serve reads from the WebSocket until its end, which is that of the connection once it was upgraded.
func (p *polled) serve(x *webSocket) {
	cause := p.read(x)
	p.mu.Lock()
	if p.engine != nil {
		p.probing, p.socket = false, nil
		p.upgrading.Store(false) // may be tried again
	} else {
		p.ended(cmp.Or(x.reason(), cause))
	}
	p.mu.Unlock()
	x.end(cause)
}

// read returns why no more packets come over x.
func (p *polled) read(x *webSocket) (err error) {
	defer p.client.recovered(&err)
	for upgraded := false; ; {
		message, err := x.receive()
		switch {
		case err != nil:
		case upgraded:
			err = takePacket(p.client, p.heart, kept(message))
		default:
			upgraded, err = p.probe(x, string(message))
		}
		if err != nil {
			return err
		}
	}
}

// probe takes a packet that comes before the upgrade: the probe, then the upgrade itself. The engine hears of the latter
// only: for the time between it would start a timer.
func (p *polled) probe(x *webSocket, message string) (upgraded bool, err error) {
	switch message {
	case "2probe":
		x.send(textFrame(packetPong, []byte("probe")))
		p.mu.Lock()
		defer p.mu.Unlock()
		p.probing = true
		p.endPoll()
		return false, nil
	case "5":
		return true, p.switchTo(x)
	}
	return false, errEngine
}

// switchTo makes x the engine's transport, and then that of the session. What waits for a poll goes first; what is sent from now on waits for the lock.
func (p *polled) switchTo(x *webSocket) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.isOpen() {
		return errClosed
	}
	_ = x.conn.SetReadDeadline(time.Time{})
	p.endPoll()
	t := newWSTransport(x)
	p.engine.MaybeUpgrade(t)
	<-t.untimed
	t.OnPacket(&packet.Packet{Type: packet.UPGRADE, Data: types.NewStringBuffer(nil)})
	p.engine = nil
	if p.final {
		x.finish(errLeft)
	}
	return nil
}

// wsTransport is what the engine sees of a WebSocket: it writes to it once, what waited for a poll.
type wsTransport struct {
	transports.Transport
	socket  *webSocket
	untimed chan struct{} // closed when the engine's upgrade has no timer any more
}

func newWSTransport(x *webSocket) *wsTransport {
	t := &wsTransport{Transport: transports.MakeTransport(), socket: x, untimed: make(chan struct{})}
	t.Prototype(t)
	t.SetWritable(true)
	return t
}

// RemoveListener is what the engine calls first when the time for an upgrade is over. That is at once: see polled.open.
func (t *wsTransport) RemoveListener(event types.EventName, f types.EventListener) bool {
	select {
	case <-t.untimed:
		return t.Transport.RemoveListener(event, f)
	default:
		close(t.untimed)
		runtime.Goexit()
		return false
	}
}

func (t *wsTransport) Send(packets []*packet.Packet) {
	for _, p := range packets {
		b, err := parser.Parserv4().EncodePacket(p, true)
		if err == nil { // it always is, for the packets that the engine makes
			t.socket.queue(textFrame(b.Bytes()[0], b.Bytes()[1:]))
		}
	}
	t.socket.flush()
}
