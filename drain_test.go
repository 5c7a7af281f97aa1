package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// closings are the moments at which clients lost their connection, counted from some beginning.
type closings struct {
	mu   sync.Mutex
	list []time.Duration
}

func (c *closings) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, d)
}

// TestADrainGoesInStages: /readyz first and nothing else, then no handshakes and no joins, and one connection after the other.
func TestADrainGoesInStages(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const wait, over, clients = 3 * time.Second, 3 * time.Second, 29
	b := miniRedis(t)
	n, err := startNode(testConfig(t, b.url, fmt.Sprint("PRESENCE_DRAIN_WAIT_MS=", wait.Milliseconds()), fmt.Sprint("PRESENCE_DRAIN_MS=", over.Milliseconds())), testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	c, addr := newAudience(t, uniqueRoom(t)), "127.0.0.1:"+n.port()
	witness := c.join("127.0.0.1:"+startNodeFor(t, b).port(), "{}")
	for range clients {
		c.join(addr, "{}")
	}
	began, stopped := time.Now(), make(chan struct{})
	go func() {
		defer close(stopped)
		n.stop()
	}()
	eventually(t, patience, "/readyz is red", func() bool { return n.http(t, http.MethodGet, "/readyz").status == http.StatusServiceUnavailable })
	red := time.Since(began)
	late := n.member(t, "another", "bob", "{}") // within the wait nothing is refused
	eventually(t, patience, "the wait is over", n.handlers.draining.Load)
	if refused := time.Since(began); refused < wait {
		t.Errorf("joins are refused after %v, the wait is %v", refused, wait)
	}
	if _, status := (&testSockets{addr: addr}).tryDial(t, direct4); status != http.StatusServiceUnavailable {
		t.Errorf("a handshake after the wait is answered with %d", status)
	}
	var closed closings
	var work sync.WaitGroup
	for _, o := range c.observers() {
		if o != witness {
			work.Go(func() {
				o.untilClosed()
				closed.add(time.Since(began))
			})
		}
	}
	work.Wait()
	slices.Sort(closed.list)
	for i, at := range closed.list {
		if earliest := wait + over*time.Duration(i)/(clients+1); at < earliest {
			t.Errorf("connection %d was closed after %v, want not before %v", i, at, earliest)
		}
	}
	if last := closed.list[clients-1]; last > wait+over+busy {
		t.Errorf("the last connection was closed after %v", last)
	}
	assertClosedForNow(t, late)
	<-stopped
	if took := time.Since(began); took > wait+over+10*time.Second {
		t.Errorf("it took %v", took)
	}
	eventually(t, patience, "all have left", func() bool { return witness.heard(EventLeave) >= clients })
	t.Logf("/readyz red after %v; %d connections closed from %v to %v, the wait is %v, the drain %v; over after %v",
		red, clients, closed.list[0], closed.list[clients-1], wait, over, time.Since(began))
}

// untilClosed does what a client of a draining node may and may not do, until its connection is closed.
func (o *observer) untilClosed() {
	ctx := o.t.Context()
	for {
		beat, err := o.try(ctx, eventHeartbeat, inRoom(o.room, ""))
		if err == nil && !beat.OK {
			o.t.Errorf("a heartbeat is answered with %s", beat.text)
		}
		join, err2 := o.try(ctx, eventJoin, joinPayloadOf("another", "ann", "{}"))
		if err2 == nil && (join.Code != string(CodeShuttingDown) || !join.Retryable) {
			o.t.Errorf("a join is answered with %s", join.text)
		}
		leave, err3 := o.try(ctx, eventLeave, inRoom("another", ""))
		if err3 == nil && !leave.OK {
			o.t.Errorf("a leave is answered with %s", leave.text)
		}
		if err != nil || err2 != nil || err3 != nil {
			<-o.ended
			return
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// TestAStopWhileRedisHangsForGoodEndsInTime, with the defaults, and whether or not connections are held back.
func TestAStopWhileRedisHangsForGoodEndsInTime(t *testing.T) {
	takesLong(t)
	t.Parallel()
	binary := buildBinary(t)
	for _, grace := range []string{"0", "30000"} {
		t.Run("grace "+grace, func(t *testing.T) {
			t.Parallel()
			server := spawnRedis(t)
			p := startProcess(t, binary, "PORT=0", "REDIS_URL="+server.url, "PRESENCE_GRACE_MS="+grace)
			for range 20 {
				u := dialUser(t, p.address())
				u.join("home", "ann", "{}")
				u.join("away", "ann", "{}")
			}
			server.signal(syscall.SIGSTOP)
			defer server.signal(syscall.SIGCONT)
			began := time.Now()
			p.signal(syscall.SIGTERM)
			if code := p.wait(10 * time.Second); code != exitOK {
				t.Errorf("exit code %d:\n%s", code, p.out)
			}
			t.Logf("it ended after %v", time.Since(began))
		})
	}
}

// restless is a client that comes back whenever it loses its connection, to any of the nodes.
type restless struct {
	room, user string
	addrs      []string

	mu     sync.Mutex
	conn   net.Conn // while it is in the room
	id     string   // of that connection
	gone   []string // users whom it was told to be gone
	comes  int      // joins that were answered
	leaves int      // that it was told
	over   bool
}

// live connects again and again until close is called.
func (r *restless) live(t *testing.T) {
	for !r.closed() {
		r.once(t)
		pause(t.Context(), 20*time.Millisecond+rand.N(40*time.Millisecond))
	}
}

func (r *restless) closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

func (r *restless) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// once lives as long as one connection does.
func (r *restless) once(t *testing.T) {
	conn, err := net.Dial("tcp", r.addrs[rand.IntN(len(r.addrs))])
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	_, _ = conn.Write([]byte(handshakeText(direct4))) // what fails shows in the answer
	c := &wsClient{t: t, conn: conn, in: bufio.NewReader(conn)}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		return
	}
	defer r.lost()
	for {
		op, packet, err := c.next()
		if err != nil {
			return
		}
		if op == ws.OpText && !r.take(conn, packet) {
			return
		}
	}
}

func (r *restless) lost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.id = nil, ""
}

// take handles a packet and tells whether the connection is of use.
func (r *restless) take(conn net.Conn, packet string) bool {
	say := func(packet string) { _, _ = conn.Write(masked(true, ws.OpText, packet)) }
	switch {
	case packet == "2":
		say("3")
	case strings.HasPrefix(packet, "0"):
		say("40")
	case strings.HasPrefix(packet, "40"):
		say(`421["` + eventJoin + `",` + joinPayloadOf(r.room, r.user, "{}") + `]`)
	case strings.HasPrefix(packet, "431["):
		return r.joined(conn, strings.TrimSuffix(strings.TrimPrefix(packet, "431["), "]"))
	case strings.HasPrefix(packet, `42["presence:event",`):
		r.hear(strings.TrimSuffix(strings.TrimPrefix(packet, `42["presence:event",`), "]"))
	}
	return true
}

func (r *restless) joined(conn net.Conn, text string) bool {
	var ack wireAck
	if json.Unmarshal([]byte(text), &ack) != nil || !ack.OK {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conn, r.id = conn, ack.Self.ConnID
	r.comes++
	return !r.over
}

func (r *restless) hear(text string) {
	var e wireEvent
	_ = json.Unmarshal([]byte(text), &e)
	if e.Type != string(EventLeave) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaves++; e.UserConns == 0 {
		r.gone = append(r.gone, e.UserID)
	}
}

// restlessCrowd are restless clients, spread over some rooms.
type restlessCrowd []*restless

func startRestless(t *testing.T, clients, rooms int, addrs []string) restlessCrowd {
	unique := uniqueRoom(t)
	c := make(restlessCrowd, clients)
	var work sync.WaitGroup
	for i := range c {
		c[i] = &restless{room: fmt.Sprint(unique, i%rooms), user: fmt.Sprint("u", i), addrs: addrs}
		work.Go(func() { c[i].live(t) })
	}
	t.Cleanup(func() {
		for _, r := range c {
			r.close()
		}
		work.Wait()
	})
	return c
}

// rooms are the connections of each room.
func (c restlessCrowd) rooms() map[string][]string {
	rooms := map[string][]string{}
	for _, r := range c {
		r.mu.Lock()
		rooms[r.room] = append(rooms[r.room], r.id)
		r.mu.Unlock()
	}
	for _, ids := range rooms {
		slices.Sort(ids)
	}
	return rooms
}

// settled waits until everybody is in its room and nobody else is, and returns how long that took.
func (c restlessCrowd) settled(t *testing.T, s *Service) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, 30*time.Second, "the rooms have exactly the connections that live", func() bool {
		for room, ids := range c.rooms() {
			if ids[0] == "" || !slices.Equal(conns(mustRead(t, s, room)), ids) {
				return false
			}
		}
		return true
	})
	return time.Since(began)
}

// TestARollingRestart restarts three nodes one after the other while 300 clients are connected. With a grace no user is told to
// be gone at any time; without one, nobody stays who is not there.
func TestARollingRestart_G5(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const nodes, clients, rooms = 3, 300, 10
	binary := buildBinary(t)
	for name, grace := range map[string]string{"with grace": "20000", "without": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := spawnRedis(t)
			settings := []string{"REDIS_URL=" + server.url, "PRESENCE_GRACE_MS=" + grace, "PRESENCE_DRAIN_MS=500", "PRESENCE_DRAIN_WAIT_MS=100"}
			running, addrs := make([]*program, nodes), make([]string, nodes)
			start := func(i int, port string) {
				running[i] = startProcess(t, binary, append(settings, "PORT="+port)...)
				addrs[i] = running[i].address()
			}
			for i := range nodes {
				start(i, freePort())
			}
			s := startService(t, backend{url: server.url}.open(t), Options{})
			everyone := startRestless(t, clients, rooms, addrs)
			recorders := map[string]*recorder{}
			for room := range everyone.rooms() {
				recorders[room] = record(t, s.rdb, room)
			}
			everyone.settled(t, s)
			var longest time.Duration
			for i := range nodes {
				began := time.Now()
				running[i].signal(syscall.SIGTERM)
				if code := running[i].wait(12 * time.Second); code != exitOK {
					t.Errorf("exit code %d:\n%s", code, running[i].out)
				}
				longest = max(longest, time.Since(began))
				_, port, _ := net.SplitHostPort(addrs[i])
				start(i, port)
				everyone.settled(t, s)
			}
			everyone.assertRestarted(t, s, recorders, name == "with grace")
			t.Logf("%d clients and %d restarts, of which the longest stop took %v", clients, nodes, longest)
		})
	}
}

// assertRestarted checks what Redis published, and what the clients were told, which is no more than that.
func (c restlessCrowd) assertRestarted(t *testing.T, s *Service, recorders map[string]*recorder, held bool) {
	t.Helper()
	var leaves, gone int
	for room, r := range recorders {
		all := r.upTo(t, s, room)
		assertChain(t, all)
		assertOneLeave(t, all)
		assertAgree(t, s, room)
		for _, m := range all {
			if m.Type == EventLeave {
				leaves++
			}
			if m.Type == EventLeave && m.UserConns == 0 {
				gone++
			}
			if m.Type == EventLeave && m.Reason != ReasonDisconnected {
				t.Errorf("%s", short(m))
			}
		}
	}
	comes, told := 0, map[string]bool{}
	for _, r := range c {
		r.mu.Lock()
		comes += r.comes
		for _, user := range r.gone {
			told[user] = true
		}
		r.mu.Unlock()
	}
	if leaves != comes-len(c) {
		t.Errorf("%d leaves after %d joins of %d clients", leaves, comes, len(c))
	}
	if held && (gone > 0 || len(told) > 0) {
		t.Errorf("users were gone %d times, clients were told of %q", gone, slices.Sorted(maps.Keys(told)))
	}
	if !held && gone == 0 {
		t.Error("without a grace nobody was ever gone: this test would see nothing")
	}
	t.Logf("%d joins, %d leaves, users gone %d times, clients were told so of %d users", comes, leaves, gone, len(told))
}

// TestASecondSignalEndsTheWait, in which clients are served as ever.
func TestASecondSignalEndsTheWait(t *testing.T) {
	t.Parallel()
	p := startProcess(t, buildBinary(t), "PORT=0", "REDIS_URL="+miniRedis(t).url, "PRESENCE_DRAIN_WAIT_MS=3600000")
	u := dialUser(t, p.address())
	u.join("home", "ann", "{}")
	p.signal(os.Interrupt)
	eventually(t, patience, "/readyz is red", func() bool {
		return askHTTP(t, p.address(), http.MethodGet, "/readyz", "").status == http.StatusServiceUnavailable
	})
	if got := askHTTP(t, p.address(), http.MethodGet, "/healthz", ""); got.status != http.StatusOK {
		t.Errorf("/healthz is answered with %d", got.status)
	}
	dialUser(t, p.address()).join("home", "bob", "{}")
	u.ok(eventHeartbeat, "")
	began := time.Now()
	p.signal(os.Interrupt)
	if code := p.wait(5 * time.Second); code != exitFailure || time.Since(began) > time.Second {
		t.Errorf("exit code %d after %v", code, time.Since(began))
	}
}

// balance passes each connection on to the next of the addresses, as a load balancer that knows nothing of their health.
func balance(t *testing.T, addrs []string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for i := 0; ; i++ {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addrs[i%len(addrs)])
			if err != nil {
				_ = in.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_, _ = in.Close(), out.Close()
			}
			work.Go(func() { pass(out, in) })
			work.Go(func() { pass(in, out) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		work.Wait() // the nodes, and the clients, have ended before
	})
	return "http://" + l.Addr().String()
}

// TestTheRealClientIsHandedOver has clients of socket.io-client come back by themselves to whichever node is there.
func TestTheRealClientIsHandedOver(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const clients = 10
	b, room := realRedis(t), uniqueRoom(t)
	s := startService(t, b.open(t), Options{})
	events := record(t, s.rdb, room)
	addrs := []string{"127.0.0.1:" + freePort(), "127.0.0.1:" + freePort()}
	url := balance(t, addrs)
	nodes := make([]*program, len(addrs))
	for i, addr := range addrs {
		_, port, _ := net.SplitHostPort(addr)
		nodes[i] = startProcess(t, buildBinary(t), "PORT="+port, "REDIS_URL="+b.url, "PRESENCE_GRACE_MS=20000", "PRESENCE_DRAIN_MS=300")
		nodes[i].address()
	}
	c := startClients(t)
	for i := range clients {
		c.open(fmt.Sprint("u", i), url, room, "websocket")
	}
	nodes[0].signal(syscall.SIGTERM)
	if code := nodes[0].wait(12 * time.Second); code != exitOK {
		t.Errorf("exit code %d:\n%s", code, nodes[0].out)
	}
	eventually(t, 2*patience, "everybody is at the other node", func() bool {
		metas := s.rdb.HGetAll(t.Context(), keysOf(room).meta()).Val()
		for _, value := range metas {
			if m, _ := parseMeta(value); m.held() {
				return false
			}
		}
		return len(metas) == clients
	})
	var joins, leaves int
	for _, m := range events.upTo(t, s, room) {
		switch {
		case m.Type == EventJoin:
			joins++
		case m.Type == EventLeave && m.UserConns != 0:
			leaves++
		default:
			t.Errorf("%s", short(m))
		}
	}
	if leaves == 0 || joins != clients+leaves {
		t.Errorf("%d joins and %d leaves of %d clients", joins, leaves, clients)
	}
	t.Logf("%d of %d clients were handed over, nobody was gone", leaves, clients)
	assertAgree(t, s, room)
}
