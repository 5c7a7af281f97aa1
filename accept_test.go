package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestAcceptLimits(t *testing.T) {
	for _, c := range []struct {
		clients, perAddress, descriptors int
		want                             acceptLimits
	}{
		{0, 0, 0, acceptLimits{}},
		{0, 0, 100, acceptLimits{most: 50}},
		{0, 0, 256, acceptLimits{most: 128}},
		{0, 0, 20_000, acceptLimits{most: 18_976}},
		{0, 0, 4096, acceptLimits{most: 3584}},
		{100, 0, 0, acceptLimits{most: 264}},
		{100, 10, 20_000, acceptLimits{most: 264, perAddress: 36}},
		{math.MaxInt32, 0, 20_000, acceptLimits{most: 18_976}},
	} {
		if got := newAcceptLimits(c.clients, c.perAddress, c.descriptors); got != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func TestDescriptorLimit(t *testing.T) {
	for text, want := range map[string]int{
		"Limit  Soft Limit  Hard Limit  Units\nMax open files            20000                40000                files\n": 20000,
		"Max open files unlimited unlimited files\n": 0,
		"Max processes 1 1\n":                        0,
	} {
		file := filepath.Join(t.TempDir(), "limits")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := descriptorLimit(file); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if got := descriptorLimit(filepath.Join(t.TempDir(), "none")); got != 0 {
		t.Errorf("no file: %d", got)
	}
}

// bounded is a server behind a boundedListener. Its path /slow answers when release is closed.
type bounded struct {
	*boundedListener
	release chan struct{}
}

func startBounded(t *testing.T, limits acceptLimits) *bounded {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	b := &bounded{newBoundedListener(listener, limits, &refusals{}), make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { <-b.release })
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			_, _ = io.Copy(conn, in)
			_ = conn.Close()
		}()
	})
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	server := newHTTPServer(mux)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(b) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return b
}

// acceptClient is one TCP connection to it.
type acceptClient struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (b *bounded) dial(t *testing.T) *acceptClient {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr().String())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &acceptClient{t, conn, bufio.NewReader(conn)}
}

// asks sends a request, and returns the status, 0 if the connection is closed.
func (c *acceptClient) asks(path string) (status int) {
	c.t.Helper()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path)
	return c.answered()
}

func (c *acceptClient) answered() int {
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// counted waits until so many connections are counted.
func (b *bounded) counted(t *testing.T, want int) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%d connections", want), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.total == want
	})
}

// TestConnectionsWithoutARequestMakeRoom: however many there are, a new client is answered, and those in use stay.
func TestConnectionsWithoutARequestMakeRoom(t *testing.T) {
	for name, limits := range map[string]acceptLimits{"of all": {most: 8}, "of an address": {perAddress: 8}} {
		t.Run(name, func(t *testing.T) {
			b := startBounded(t, limits)
			slow, socket := b.dial(t), b.dial(t)
			fmt.Fprint(slow, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
			fmt.Fprint(socket, "GET /hijack HTTP/1.1\r\nHost: a\r\n\r\n")
			fmt.Fprint(socket, "hello")
			if _, err := io.ReadFull(socket.in, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			eventually(t, patience, "both are in use", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.total == 2 && b.waiting.Len() == 0
			})
			var idle []*acceptClient
			for i := range 100 {
				c := b.dial(t)
				switch i % 3 {
				case 0:
					fmt.Fprint(c, "GET / HTT") // a header that never ends
				case 1:
					if got := c.asks("/"); got != http.StatusOK {
						t.Fatalf("connection %d is answered %d", i, got)
					}
				}
				idle = append(idle, c)
			}
			if got := b.dial(t).asks("/"); got != http.StatusOK {
				t.Errorf("a newcomer is answered %d", got)
			}
			b.counted(t, 8)
			if _, err := idle[0].in.ReadByte(); err == nil || os.IsTimeout(err) {
				t.Errorf("the first one without a request: %v", err)
			}
			close(b.release)
			if got := slow.answered(); got != http.StatusOK {
				t.Errorf("the request that was worked on is answered %d", got)
			}
			fmt.Fprint(socket, "again")
			if _, err := io.ReadFull(socket.in, make([]byte, 5)); err != nil {
				t.Errorf("the socket: %v", err)
			}
		})
	}
}

// TestHealthIsAnsweredWhenAllConnectionsAreInUse, and nobody else is.
func TestHealthIsAnsweredWhenAllConnectionsAreInUse(t *testing.T) {
	b := startBounded(t, acceptLimits{most: 4})
	var slow []*acceptClient
	for range 4 {
		c := b.dial(t)
		fmt.Fprint(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
		slow = append(slow, c)
	}
	eventually(t, patience, "all are in use", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.total == 4 && b.waiting.Len() == 0
	})
	for range 3 * spareConns {
		for _, path := range healthPaths {
			if got := b.dial(t).asks(path); got != http.StatusOK {
				t.Fatalf("%s is answered %d", path, got)
			}
		}
		if got := b.dial(t).asks("/"); got != http.StatusServiceUnavailable {
			t.Fatalf("another path is answered %d", got)
		}
	}
	close(b.release)
	for _, c := range slow {
		if got := c.answered(); got != http.StatusOK {
			t.Errorf("answered %d", got)
		}
	}
	eventually(t, patience, "the spare connections are closed", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.total <= 4
	})
	if got := b.dial(t).asks("/"); got != http.StatusOK {
		t.Errorf("afterwards a newcomer is answered %d", got)
	}
}

// TestAnAddressWithAllItsConnectionsInUseGetsNoMore, and what is closed is not counted any more.
func TestAnAddressWithAllItsConnectionsInUseGetsNoMore(t *testing.T) {
	b := startBounded(t, acceptLimits{perAddress: 2})
	for range 2 {
		c := b.dial(t)
		fmt.Fprint(c, "GET /hijack HTTP/1.1\r\nHost: a\r\n\r\nx")
		if _, err := c.in.ReadByte(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	third := b.dial(t)
	if got := third.asks("/"); got != 0 {
		t.Errorf("the third connection is answered %d", got)
	}
	if n := b.refusals.of(refusedAddress).Load(); n != 1 {
		t.Errorf("%d refusals are counted", n)
	}
}

func TestConnectionsThatEndAreNotCounted(t *testing.T) {
	b := startBounded(t, acceptLimits{most: 100, perAddress: 100})
	for range 10 {
		c := b.dial(t)
		if got := c.asks("/"); got != http.StatusOK {
			t.Fatalf("answered %d", got)
		}
		_ = c.Close()
	}
	b.counted(t, 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.from) > 0 || b.waiting.Len() > 0 {
		t.Errorf("%d addresses and %d connections are kept", len(b.from), b.waiting.Len())
	}
}

// TestABudgetOutlivesItsConnection: who connects anew goes on with what is left, as often as it left something.
func TestABudgetOutlivesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d debts
		one, other := origin("192.0.2.1:5"), origin("192.0.2.2:5")
		begin := time.Now()
		now := func() time.Duration { return time.Since(begin) }
		full := func() [2]bucket { return [2]bucket{bucket(now() + 10*time.Second), 0} }
		half, most := 5*time.Second, time.Minute
		d.leave(one, full(), now(), half)
		d.leave(one, full(), now(), half)
		d.leave(other, [2]bucket{bucket(now() + half), bucket(now() + half)}, now(), half)
		if got := d.inherit(other, now(), most); got != [2]bucket{} {
			t.Errorf("who used half of its budget left %v", got)
		}
		for i, want := range [][2]bucket{full(), full(), {}} {
			if got := d.inherit(one, now(), most); got != want {
				t.Errorf("socket %d begins with %v, want %v", i, got, want)
			}
		}
		d.leave(one, full(), now(), half)
		if got, want := d.inherit(one, now(), time.Second), [2]bucket{bucket(now() + time.Second)}; got != want {
			t.Errorf("of which at most a second is to count, a socket begins with %v", got)
		}
		d.leave(one, full(), now(), half)
		pause(t.Context(), 10*time.Second)
		if got := d.inherit(one, now(), most); got != [2]bucket{} {
			t.Errorf("after its time the budget is %v", got)
		}
		for i := range 3 * minDebtSweep {
			d.leave(origin(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256)), full(), now(), half)
			pause(t.Context(), 100*time.Millisecond)
		}
		if len(d.of) > minDebtSweep+1 {
			t.Errorf("%d addresses are kept, 100 of which owe", len(d.of))
		}
	})
}

// TestReconnectingGivesNoNewBudget through a whole server.
func TestReconnectingGivesNoNewBudget(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_RATE_PER_SECOND=1", "PRESENCE_RATE_BURST=30")
	passed := 0
	for range 3 {
		u := dialUser(t, "127.0.0.1:"+n.port())
		for range 30 {
			if u.call(eventUnwatch, `{"roomId":"r"}`).Code != string(CodeRateLimited) {
				passed++
			}
		}
		_ = u.conn.Close()
		eventually(t, patience, "the connection is over", func() bool { return len(n.sockets.all()) == 0 })
	}
	if passed > 55 {
		t.Errorf("%d events of 90 passed", passed)
	}
}
