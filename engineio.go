package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
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
	WriteTimeout    time.Duration // for a client to accept a byte, to poll, or to hand over a polling body
	TakeTimeout     time.Duration // for a client to accept all that waits for it at one moment
	MaxMessageBytes int           // one message
	MaxPollBytes    int           // one polling body, of several messages
	MaxUnsentBytes  int           // waiting for one client; one message alone may be larger; 0 = any number
	Input           *inputLimits  // of what one client sends; nil = none
	Unsent          *unsent       // counts what waits for all clients; nil = it is not counted
	Origins         []string      // allowed in the Origin header, as parseOrigin returns them; "*" = all
	Logger          *slog.Logger

	// Admit, if there is one, is asked before every handshake. It returns what to call when the connection is over, or the
	// HTTP status of the refusal.
	Admit func(r *http.Request) (release func(), status int)

	Refusals *refusals
}

// sockets are the Engine.IO connections of this node, and the HTTP handler where they begin. A connection begins with a
// WebSocket (direct) or with polling (polled).
type sockets struct {
	socketOptions
	app  app
	ping frame

	mu       mutex[ofNone]
	clients  map[*client]struct{}
	polled   map[string]*polled // by sid
	refusing bool
	running  sync.WaitGroup // what still has to end
}

func newSockets(o socketOptions, a app) *sockets {
	return &sockets{
		socketOptions: o,
		app:           a,
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
	s.Unsent.close()
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
	if errors.Is(cause, errSilent) || errors.Is(cause, errTooSlow) {
		c.wasSilent()
	}
	c.end()
	s.mu.Lock()
	delete(s.clients, c)
	s.mu.Unlock()
	release()
	s.Refusals.end(cause)
	s.Logger.Debug("connection ended", "conn", c.id, "remote", c.addr, "cause", cause)
}

func (s *sockets) newClient(r *http.Request, l link) *client {
	return &client{id: newID(), addr: r.RemoteAddr, bearer: strings.Clone(bearerToken(r.Header)), app: s.app, log: s.Logger, link: l}
}

// await gives a new client its time to connect.
func (s *sockets) await(c *client) {
	c.begin(func() *time.Timer {
		return time.AfterFunc(s.ConnectTimeout, func() {
			s.Refusals.add(refusedLate)
			c.closeFor(errLate)
		})
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
	if !s.allowOrigin(w.Header(), r) {
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
		x.abort(errClosed)
		return false
	}
	x.send(textFrame(packetOpen, s.open(newID(), ""))) // the sid is of no use: there is no second request
	s.await(d.client)
	d.heart = s.newHeartbeat(func() { x.send(s.ping) }, func() { x.abort(errSilent) })
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
