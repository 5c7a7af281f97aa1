package main

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
)

// spareConns is how many connections are taken beyond the limit, to answer for the health of the node only.
const spareConns = 16

// healthPaths are answered however many connections there are.
var healthPaths = []string{"/healthz", "/readyz", "/metrics"}

// acceptLimits bound the TCP connections of a node, whatever they are used for. 0 = no limit.
type acceptLimits struct{ most, perAddress int }

// newAcceptLimits leaves room for two TCP connections of each client, which polling needs, and for some requests besides.
// descriptors is what the process may open, or 0 where that is not known.
func newAcceptLimits(clients, clientsPerAddress, descriptors int) acceptLimits {
	var l acceptLimits
	if descriptors > 0 {
		l.most = descriptors - reservedDescriptors(descriptors)
	}
	if most := 2*clients + 64; clients > 0 && (l.most == 0 || most < l.most) {
		l.most = most
	}
	if clientsPerAddress > 0 {
		l.perAddress = 2*clientsPerAddress + 16
	}
	return l
}

// reservedDescriptors are those that no client gets: for Redis, the webhook, files, and spareConns.
func reservedDescriptors(descriptors int) int {
	return min(max(descriptors/8, 128), 1024, descriptors/2)
}

// boundedListener accepts connections within limits. Where there are too many, a new one takes the place of the one that
// has waited longest for its client to send a request; where all are in use, it is closed.
type boundedListener struct {
	net.Listener
	limits   acceptLimits
	refusals *refusals

	mu      mutex[ofNone]
	total   int
	waiting list.List // of *acceptedConn: those without a request, the longest first
	from    map[netip.Prefix]*addressConns
}

// addressConns are the connections of one address.
type addressConns struct {
	total   int
	waiting list.List // as in boundedListener
}

// acceptedConn is one of them.
type acceptedConn struct {
	*net.TCPConn
	listener *boundedListener
	from     netip.Prefix
	spare    bool // answers for the health of the node only

	// Under listener.mu.
	inAll, inAddress *list.Element // in both waiting lists; nil while there is a request
	closed, hijacked bool
}

func newBoundedListener(l net.Listener, limits acceptLimits, r *refusals) *boundedListener {
	return &boundedListener{Listener: l, limits: limits, refusals: r, from: map[netip.Prefix]*addressConns{}}
}

// Accept waits for the next connection that is within the limits.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			return conn, nil // only of a listener that is none of TCP
		}
		if c := l.take(tcp); c != nil {
			return c, nil
		}
		_ = conn.Close()
	}
}

// take counts a connection until it is closed. It gives nil where there is no place for it.
func (l *boundedListener) take(conn *net.TCPConn) *acceptedConn {
	c := &acceptedConn{TCPConn: conn, listener: l, from: origin(conn.RemoteAddr().String())}
	l.mu.Lock()
	defer l.mu.Unlock()
	address := l.from[c.from]
	if address == nil {
		address = &addressConns{}
	}
	if most := l.limits.perAddress; most > 0 && address.total >= most && !closeLongest(&address.waiting) {
		l.refusals.add(refusedAddress)
		return nil
	}
	if most := l.limits.most; most > 0 && l.total >= most {
		closeLongest(&l.waiting)
		if l.total >= most+spareConns {
			l.refusals.add(refusedNode)
			return nil
		}
		c.spare = l.total >= most
	}
	l.total++
	address.total++
	l.from[c.from] = address
	c.wait()
	return c
}

// closeLongest closes the first of a list, if there is one.
func closeLongest(waiting *list.List) bool {
	first := waiting.Front()
	if first == nil {
		return false
	}
	c := first.Value.(*acceptedConn)
	c.end()
	_ = c.TCPConn.Close()
	return true
}

// Close closes the connection, which then has left its place.
func (c *acceptedConn) Close() error {
	c.listener.mu.Lock()
	c.end()
	c.listener.mu.Unlock()
	return c.TCPConn.Close()
}

// end gives up the place of a connection. The caller holds listener.mu.
func (c *acceptedConn) end() {
	if c.closed {
		return
	}
	c.closed = true
	c.work()
	c.listener.total--
	address := c.listener.from[c.from]
	if address.total--; address.total == 0 {
		delete(c.listener.from, c.from)
	}
}

// wait begins the time in which the connection may be closed for another one. The caller holds listener.mu.
func (c *acceptedConn) wait() {
	if c.closed || c.hijacked || c.inAll != nil {
		return
	}
	c.inAll = c.listener.waiting.PushBack(c)
	c.inAddress = c.listener.from[c.from].waiting.PushBack(c)
}

// work ends that time. The caller holds listener.mu.
func (c *acceptedConn) work() {
	if c.inAll == nil {
		return
	}
	c.listener.waiting.Remove(c.inAll)
	c.listener.from[c.from].waiting.Remove(c.inAddress)
	c.inAll, c.inAddress = nil, nil
}

// locked calls one of the above.
func (c *acceptedConn) locked(do func()) {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	do()
}

type acceptedKey struct{}

// trackRequests has a server tell the connections of a boundedListener what they are used for.
func trackRequests(s *http.Server) {
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, acceptedKey{}, conn)
	}
	s.ConnState = func(conn net.Conn, state http.ConnState) {
		if c, ok := conn.(*acceptedConn); ok && state == http.StateHijacked {
			c.locked(func() { c.hijacked = true })
		}
	}
	next := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(acceptedKey{}).(*acceptedConn)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		c.locked(c.work)
		defer c.locked(c.wait)
		if c.spare {
			w.Header().Set("Connection", "close")
		}
		if c.spare && !slices.Contains(healthPaths, r.URL.Path) {
			c.listener.refusals.add(refusedNode)
			refuseWith(http.StatusServiceUnavailable, 3, http.StatusText(http.StatusServiceUnavailable)).write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}
