package main

import (
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

const (
	// A socket with so many events over its rate within this time is closed.
	maxRefusals  = 1000
	refusalsTime = 10 * time.Second

	// Times of the HTTP server.
	headerTimeout = 10 * time.Second // for the header of a request to arrive, and for its body
	answerTimeout = 30 * time.Second // for a client to take an answer; open polls have times of their own
	idleTimeout   = 15 * time.Second // between two requests of one connection

	maxHeaderBytes = 32 << 10
)

// What is refused apart from requests, as the codes of refusals.
const (
	refusedOrigin  = "origin"
	refusedNode    = "too_many_connections"
	refusedAddress = "too_many_connections_per_address"
	refusedFlood   = "flood"
	refusedLate    = "connect_timeout"
	refusedSize    = "message_too_large"
	refusedSlow    = "too_slow"
)

var (
	errFlood = closeError{ws.StatusPolicyViolation, "too many events"}
	errInput = closeError{ws.StatusPolicyViolation, "too much input"}
	errLate  = closeError{ws.StatusPolicyViolation, "no CONNECT in time"}
)

// refusals count what this node has refused, by code: those of the protocol and those above.
type refusals struct {
	counts sync.Map // code → *atomic.Int64
}

func (r *refusals) add(code string) { r.of(code).Add(1) }

// end counts a connection that ended for what its client did.
func (r *refusals) end(cause error) {
	switch {
	case errors.Is(cause, errTooLarge):
		r.add(refusedSize)
	case errors.Is(cause, errTooSlow):
		r.add(refusedSlow)
	case errors.Is(cause, errInput):
		r.add(refusedFlood)
	}
}

// all are the counts of what was refused so far.
func (r *refusals) all() map[string]int64 {
	all := map[string]int64{}
	r.counts.Range(func(code, n any) bool {
		all[code.(string)] = n.(*atomic.Int64).Load()
		return true
	})
	return all
}

func (r *refusals) of(code string) *atomic.Int64 {
	n, ok := r.counts.Load(code)
	if !ok {
		n, _ = r.counts.LoadOrStore(code, new(atomic.Int64))
	}
	return n.(*atomic.Int64)
}

// rate is how many events a socket may send: one per interval in the long run, and as many at once as fit into window.
type rate struct {
	interval, window time.Duration
	begin            time.Time
}

// newRate makes a rate of so many events per second. 0 = no limit.
func newRate(perSecond, burst int) *rate {
	if perSecond == 0 {
		return nil
	}
	interval := time.Second / time.Duration(perSecond)
	return &rate{interval: interval, window: time.Duration(burst) * interval, begin: time.Now()}
}

// now is the time since begin, which takes less room than a time.
func (r *rate) now() time.Duration { return time.Since(r.begin) }

// bucket is the time at which a budget is whole again.
type bucket time.Duration

func (b *bucket) take(r *rate, now time.Duration) bool {
	whole := max(time.Duration(*b), now) + r.interval
	if whole > now+r.window {
		return false
	}
	*b = bucket(whole)
	return true
}

// charge takes n in any case, and returns for how long the budget is overdrawn.
func (b *bucket) charge(r *rate, n int, now time.Duration) (over time.Duration) {
	if r == nil {
		return 0
	}
	*b = bucket(max(time.Duration(*b), now) + time.Duration(n)*r.interval)
	return max(0, time.Duration(*b)-now-r.window)
}

func (b *bucket) giveBack(r *rate) { *b -= bucket(r.interval) }

// budget is what one socket may still send. Joins are apart from all else: a client that is back after a long time sends what
// it has kept before it joins.
type budget struct {
	joins, others bucket
	refused       int // since
	since         time.Duration
}

func (b *budget) of(event string) *bucket {
	if event == eventJoin {
		return &b.joins
	}
	return &b.others
}

// flooded counts an event over the rate and tells whether it was one too many.
func (b *budget) flooded(now time.Duration) bool {
	if now-b.since > refusalsTime {
		b.since, b.refused = now, 0
	}
	b.refused++
	return b.refused >= maxRefusals
}

// gate bounds the clients of a node, each from its handshake on, whatever TCP connections it uses. 0 = no limit.
type gate struct {
	max, perAddress int
	refusals        *refusals

	mu    mutex[ofNone]
	total int
	from  map[netip.Prefix]int
}

func newGate(most, perAddress int, r *refusals) *gate {
	return &gate{max: most, perAddress: perAddress, refusals: r, from: map[netip.Prefix]int{}}
}

// admit counts a connection until release is called, or refuses it with a status of HTTP.
func (g *gate) admit(r *http.Request) (release func(), status int) {
	from := origin(r.RemoteAddr)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.max > 0 && g.total >= g.max:
		g.refusals.add(refusedNode)
		return nil, http.StatusServiceUnavailable
	case g.perAddress > 0 && g.from[from] >= g.perAddress:
		g.refusals.add(refusedAddress)
		return nil, http.StatusTooManyRequests
	}
	g.total++
	g.from[from]++
	return func() { g.leave(from) }, 0
}

func (g *gate) leave(from netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.from[from]--; g.from[from] == 0 {
		delete(g.from, from)
	}
}

// origin is the address that connections are counted by: of IPv6 the network of 64 bits that one customer has.
func origin(remote string) netip.Prefix {
	addr, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // never, with TCP
	}
	ip := addr.Addr().Unmap().WithZone("")
	from, _ := ip.Prefix(min(ip.BitLen(), 64)) // the length always fits
	return from
}

// newHTTPServer bounds what a client may do with time and memory before and between requests.
func newHTTPServer(h http.Handler) *http.Server {
	s := &http.Server{
		Handler:           boundBodies(h),
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
	trackRequests(s)
	return s
}

// boundBodies gives the body of every request its time: a handler that does not read it leaves that to the HTTP server,
// which would wait for ever.
func boundBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(headerTimeout))
		}
		next.ServeHTTP(w, r)
	})
}
