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
	"slices"
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
	packetUpgrade = '5'
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
}

// sockets are the Engine.IO connections of this node, and the HTTP handler where they begin. A WebSocket that is opened at
// once is served here alone; polling and the upgrade from it go through the library's engine, which sees neither an HTTP
// request nor a WebSocket before it was checked here.
type sockets struct {
	socketOptions
	app    app
	engine engine.Server
	ping   frame

	mu       sync.Mutex
	clients  map[*client]struct{}
	polled   map[string]*polled // by sid
	refusing bool
	running  sync.WaitGroup // what still has to end
}

func newSockets(o socketOptions, a app) *sockets {
	opts := config.DefaultServerOptions()
	opts.SetPingInterval(o.PingInterval)
	opts.SetPingTimeout(o.PingTimeout)
	opts.SetUpgradeTimeout(o.ConnectTimeout)
	opts.SetMaxHttpBufferSize(int64(o.MaxMessageBytes))
	return &sockets{
		socketOptions: o,
		app:           a,
		engine:        engine.NewServer(opts),
		ping:          textFrame(packetPing),
		clients:       map[*client]struct{}{},
		polled:        map[string]*polled{},
	}
}

// each calls f with every open connection, also those that are about to connect to the namespace.
func (s *sockets) each(f func(*client)) {
	s.mu.Lock()
	all := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		f(c)
	}
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
	s.each((*client).close)
	s.running.Wait()
}

// enter registers a new connection, unless there may be none any more.
func (s *sockets) enter(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusing {
		return false
	}
	s.clients[c] = struct{}{}
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
	s.Logger.Debug("connection ended", "conn", c.id, "remote", c.addr, "cause", cause)
}

func (s *sockets) newClient(r *http.Request, l link) *client {
	return &client{id: newID(), addr: r.RemoteAddr, app: s.app, log: s.Logger, link: l}
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
	if transport != transports.POLLING && transport != transports.WEBSOCKET {
		return nil, refuseWith(http.StatusBadRequest, 0, "Transport unknown")
	}
	mismatch := upgrade != (transport == transports.WEBSOCKET)
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

// direct is a connection whose first and only transport is a WebSocket: one goroutine that reads, and one timer.
type direct struct {
	sockets *sockets
	client  *client
	socket  *webSocket
	pinger  *time.Timer
	pinged  atomic.Bool // and the pong is awaited
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
	if !s.enter(d.client) {
		x.cut(errClosed)
		return false
	}
	x.send(textFrame(packetOpen, s.open()))
	d.client.begin(s.ConnectTimeout)
	d.pinger = time.AfterFunc(math.MaxInt64, d.ping) // which uses pinger, so it starts after the assignment
	d.pinger.Reset(s.PingInterval)
	go d.serve()
	return true
}

// open is the handshake's data. Nothing else can be done with the sid of a connection that needs no second request.
func (s *sockets) open() []byte {
	return fmt.Appendf(nil, `{"sid":%q,"upgrades":[],"pingInterval":%d,"pingTimeout":%d,"maxPayload":%d}`,
		newID(), s.PingInterval.Milliseconds(), s.PingTimeout.Milliseconds(), s.MaxMessageBytes)
}

func (d *direct) serve() {
	defer d.sockets.running.Done()
	cause := d.read()
	d.pinger.Stop()
	d.sockets.leave(d.client, cmp.Or(d.socket.reason(), cause), d.release)
	d.socket.end(cause)
}

// read returns why no more packets come.
func (d *direct) read() (err error) {
	defer d.client.recovered(&err)
	for {
		message, err := d.socket.receive()
		if err == nil {
			err = d.packet(message)
		}
		if err != nil {
			return err
		}
	}
}

func (d *direct) packet(p []byte) error {
	if len(p) == 0 {
		return errEngine
	}
	switch p[0] {
	case packetMessage:
		return d.client.receive(kept(p)[1:])
	case packetPong:
		d.pinged.Store(false)
		d.pinger.Reset(d.sockets.PingInterval)
		return d.client.pong()
	case packetNoop:
		return nil
	case packetClose:
		return errLeft
	}
	return errEngine
}

// ping runs once per interval, and once more when the pong is late.
func (d *direct) ping() {
	switch {
	case d.socket.closing():
	case d.pinged.Swap(true):
		d.socket.cut(errSilent)
	default:
		d.socket.send(d.sockets.ping)
		d.pinger.Reset(d.sockets.PingTimeout)
	}
}

// polled is a connection that began with polling. The library's engine keeps its state and answers its GETs; messages of
// the client do not pass through the engine, and those to it no longer do after an upgrade.
type polled struct {
	sockets *sockets
	client  *client
	engine  engine.Socket
	release func()

	polls    context.Context // ends with the session, or with the upgrade
	endPolls context.CancelFunc
	end      sync.Once

	polling, posting, upgrading atomic.Bool // there is such a request

	mu     sync.Mutex // order of what is sent; the engine's locks and that of the outbox come after it
	direct *outbox    // after the upgrade, once nothing can wait in the engine
	unsent int        // bytes of messages that wait for a poll, or in its answer
	final  bool       // closes when unsent is 0
}

// beginPolling reports whether there is a new connection, which then calls release at its end.
func (s *sockets) beginPolling(w http.ResponseWriter, r *http.Request, release func()) bool {
	p := &polled{sockets: s, release: release}
	p.client = s.newClient(r, p)
	p.polls, p.endPolls = context.WithCancel(context.Background())
	answer := &pollAnswer{}
	hc := types.NewHttpContext(answer, pollRequest(r))
	_, t := s.engine.Handshake(transports.POLLING, hc) // which fails for reasons only that were checked before
	<-hc.Done()
	p.engine, _ = s.engine.Clients().Load(t.Sid())
	if !s.enter(p.client) {
		p.endPolls()
		p.engine.Close(true)
		refuseWith(http.StatusServiceUnavailable, 3, http.StatusText(http.StatusServiceUnavailable)).write(w)
		return false
	}
	p.begin(t.Sid())
	p.deliver(w, answer)
	return true
}

// pollRequest is what the engine, which keeps it as long as the connection lives, gets to see of a request.
func pollRequest(r *http.Request) *http.Request {
	return &http.Request{
		Method:     http.MethodGet,
		URL:        &url.URL{RawQuery: "EIO=4&transport=polling"},
		Header:     http.Header{},
		RemoteAddr: r.RemoteAddr,
	}
}

// begin listens to the end of the session, which may be over already, and makes its sid known.
func (p *polled) begin(sid string) {
	s := p.sockets
	s.mu.Lock()
	s.polled[sid] = p
	s.mu.Unlock()
	_ = p.engine.Once("close", p.ended)
	p.client.begin(s.ConnectTimeout)
	if p.engine.ReadyState() != "open" {
		p.ended()
	}
}

// ended is the engine's "close", which comes on any goroutine, perhaps on one that holds the client's lock, and perhaps
// twice.
func (p *polled) ended(args ...any) {
	p.end.Do(func() {
		p.endPolls()
		go func() {
			defer p.sockets.running.Done()
			p.sockets.mu.Lock()
			delete(p.sockets.polled, p.engine.Id())
			p.sockets.mu.Unlock()
			p.sockets.leave(p.client, fmt.Errorf("engine: %v", args), p.release)
		}()
	})
}

// onPolling tells whether the session has not been upgraded.
func (p *polled) onPolling() bool { return p.upgraded() == nil }

func (p *polled) upgraded() *wsTransport {
	t, _ := p.engine.Transport().(*wsTransport)
	return t
}

// queue sends f through the engine, which holds it until a poll comes, or directly after an upgrade.
func (p *polled) queue(f frame) bool {
	p.mu.Lock()
	if p.direct != nil {
		p.mu.Unlock()
		return p.direct.queue(f)
	}
	tooSlow := !p.write(f.packet())
	p.mu.Unlock()
	if tooSlow {
		p.client.close()
	}
	return false
}

// write is queue under mu, as long as the engine may hold messages. After an upgrade the first one still takes that way:
// the engine writes what it holds before it, in order.
func (p *polled) write(message []byte) bool {
	t := p.upgraded()
	limit := p.sockets.MaxUnsentBytes
	if t == nil && limit > 0 && p.unsent > 0 && p.unsent+len(message) > limit {
		return false
	}
	p.unsent += len(message)
	p.engine.Write(types.NewStringBuffer(message[1:]), nil, nil)
	if t != nil {
		p.direct = &t.socket.outbox
	}
	return true
}

func (p *polled) flush() {
	p.mu.Lock()
	direct := p.direct
	p.mu.Unlock()
	if direct != nil {
		direct.flush()
	}
}

// finish closes when the last poll has been answered, or after the timeout.
func (p *polled) finish(why closeError) {
	if t := p.upgraded(); t != nil {
		t.socket.finish(why)
		return
	}
	p.mu.Lock()
	p.final = true
	waiting := p.unsent > 0
	p.mu.Unlock()
	if !waiting {
		p.shut(why)
		return
	}
	time.AfterFunc(p.sockets.WriteTimeout, func() { p.shut(why) })
}

func (p *polled) shut(why closeError) {
	if t := p.upgraded(); t != nil {
		t.socket.shut(why) // its reader tells the engine
		return
	}
	p.engine.Close(true)
}

// poll answers a GET when there is something to send, or when nothing will come any more.
func (p *polled) poll(w http.ResponseWriter, r *http.Request) {
	if p.polling.Swap(true) {
		p.client.close()
		badRequest().write(w)
		return
	}
	answer := &pollAnswer{}
	hc := types.NewHttpContext(answer, pollRequest(r))
	p.engine.Transport().OnRequest(hc)
	select {
	case <-hc.Done():
	case <-p.polls.Done():
	case <-r.Context().Done():
		p.client.close()
	}
	hc.Flush() // returns when the engine holds nothing of the request any more
	p.polling.Store(false)
	if !answer.given() {
		answer = p.lastAnswer()
	}
	p.deliver(w, answer)
}

// lastAnswer is for a poll that the engine leaves open.
func (p *polled) lastAnswer() *pollAnswer {
	kind := byte(packetClose)
	if !p.onPolling() {
		kind = packetNoop
	}
	answer := &pollAnswer{}
	answer.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	_, _ = answer.Write([]byte{kind})
	return answer
}

// deliver writes the answer of a poll. A client that does not take it within the timeout is closed.
func (p *polled) deliver(w http.ResponseWriter, answer *pollAnswer) {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(p.sockets.WriteTimeout))
	body, err := answer.writeTo(w)
	if err == nil {
		err = control.Flush()
	}
	if err != nil {
		p.client.close()
		return
	}
	p.mu.Lock()
	for message := range bytes.SplitSeq(body, []byte{separator}) {
		if len(message) > 0 && message[0] == packetMessage {
			p.unsent -= len(message)
		}
	}
	done := p.final && p.unsent <= 0
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
	_ = control.SetReadDeadline(time.Time{})
	if errors.As(err, new(*http.MaxBytesError)) {
		return refuseWith(http.StatusRequestEntityTooLarge, 3, "Payload too large")
	}
	binary := strings.HasPrefix(r.Header.Get("Content-Type"), "application/octet-stream")
	if err == nil && (binary || !utf8.Valid(body)) {
		err = errEngine
	}
	if err == nil {
		err = p.payload(body)
	}
	if err == nil {
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
		if err := p.packet(p.engine.Transport(), message); err != nil {
			return err
		}
	}
	return nil
}

// packet takes one that came over the transport t, whose memory may be kept.
func (p *polled) packet(t transports.Transport, b []byte) error {
	if len(b) == 0 {
		return errEngine
	}
	switch b[0] {
	case packetMessage:
		return p.client.receive(b[1:])
	case packetPong:
		t.OnPacket(&packet.Packet{Type: packet.PONG, Data: types.NewStringBuffer(nil)})
		return p.client.pong()
	case packetNoop:
		return nil
	case packetClose:
		return errLeft
	}
	return errEngine
}

// pollAnswer keeps what the engine answers to a poll. The engine answers on a goroutine of its own, and may do so after the
// request is over, when the HTTP server's writer must not be touched any more.
type pollAnswer struct {
	header http.Header

	mu     sync.Mutex
	status int
	body   []byte
	done   bool
}

// Header is what the engine fills before it calls Write, never after.
func (a *pollAnswer) Header() http.Header {
	if a.header == nil {
		a.header = http.Header{}
	}
	return a.header
}

func (a *pollAnswer) WriteHeader(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
}

func (a *pollAnswer) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.body = append(a.body, b...)
	a.done = true
	return len(b), nil
}

func (a *pollAnswer) given() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.done
}

// writeTo writes an answer that was given, and returns its body.
func (a *pollAnswer) writeTo(w http.ResponseWriter) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(cmp.Or(a.status, http.StatusOK))
	_, err := w.Write(a.body)
	return a.body, err
}

// upgrade opens a WebSocket beside the polling of a session. The engine decides when it becomes the transport.
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
	t := &wsTransport{Transport: transports.MakeTransport(), socket: x}
	t.Prototype(t)
	t.SetWritable(true)
	p.engine.MaybeUpgrade(t)
	if !p.sockets.alongside(p.client, func() { p.serve(t) }) {
		t.OnClose()
		x.cut(errClosed)
	}
}

// serve reads from the second transport. It begins when the engine listens to that, so nothing is lost.
func (p *polled) serve(t *wsTransport) {
	cause := p.read(t)
	if x := t.socket; !x.closing() && !errors.As(cause, new(closeError)) {
		x.cut(cause)
	}
	p.tell(t, cause)
	t.socket.end(cause)
	p.upgrading.Store(false)
}

// tell has the engine give up the transport, and the session with it if it was upgraded.
func (p *polled) tell(t *wsTransport, cause error) {
	var err error // logged
	defer p.client.recovered(&err)
	t.OnClose()
}

// read returns why no more packets come over t.
func (p *polled) read(t *wsTransport) (err error) {
	defer p.client.recovered(&err)
	for {
		message, err := t.socket.receive()
		switch {
		case err != nil:
		case p.upgraded() == t:
			err = p.packet(t, kept(message))
		default:
			err = p.probe(t, message)
		}
		if err != nil {
			return err
		}
	}
}

// probe takes a packet that comes before the upgrade: the probe, then the upgrade itself.
func (p *polled) probe(t *wsTransport, b []byte) error {
	switch string(b) {
	case "2probe":
		t.OnPacket(&packet.Packet{Type: packet.PING, Data: types.NewStringBufferString("probe")})
		return nil
	case "5":
	default:
		return errEngine
	}
	t.OnPacket(&packet.Packet{Type: packet.UPGRADE, Data: types.NewStringBuffer(nil)})
	p.endPolls()
	if p.client.ending.Load() != 0 || p.engine.ReadyState() != "open" {
		return errClosed // closed while neither transport was the session's
	}
	return nil
}

// wsTransport is the engine's view of a WebSocket to which a polling client upgrades.
type wsTransport struct {
	transports.Transport
	socket *webSocket
}

func (*wsTransport) Name() string          { return transports.WEBSOCKET }
func (*wsTransport) HandlesUpgrades() bool { return true }
func (*wsTransport) Protocol() int         { return 4 }
func (*wsTransport) Parser() parser.Parser { return parser.Parserv4() }

// Send writes what the engine held back, and its own packets.
func (t *wsTransport) Send(packets []*packet.Packet) {
	flush := false
	for _, p := range packets {
		b, err := t.Parser().EncodePacket(p, true)
		if err != nil {
			continue // only of a kind that the engine does not make
		}
		flush = t.socket.queue(textFrame(b.Bytes()[0], b.Bytes()[1:])) || flush
	}
	if flush {
		t.socket.flush()
	}
	t.Emit("drain")
}

// DoClose is the engine's end of the transport; its reader does the rest.
func (t *wsTransport) DoClose(done types.Callable) {
	t.socket.shut(errClosed)
	if done != nil {
		done()
	}
}
