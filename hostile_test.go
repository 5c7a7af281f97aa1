package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// The numbers of the proof that hostile clients disturb nobody: go test -run TestMalformedFrames -malformed 1000000 -good 1000
var (
	malformed = flag.Int("malformed", 20_000, "malformed frames that TestMalformedFrames sends")
	good      = flag.Int("good", 50, "clients that are not to notice")
)

// TestMalformedFramesDisturbNobody_G9 has 100 connections send what is wrong in every layer, as fast as they can, and come
// again when they are closed. With the full numbers it also compares how long the others wait.
func TestMalformedFramesDisturbNobody_G9(t *testing.T) {
	t.Parallel()
	b := realRedis(t)
	n := startQuietNode(t, b)
	users := make([]*user, *good)
	for i := range users {
		users[i] = n.member(t, fmt.Sprint(uniqueRoom(t), i/10), fmt.Sprint("u", i), "{}")
		_ = users[i].conn.SetDeadline(time.Now().Add(10 * time.Minute))
	}
	const rounds = 20
	calm := slowest(users, rounds)
	var sent, closed atomic.Int64
	var attack sync.WaitGroup
	for i := range 100 {
		attack.Go(func() { sendMalformed("127.0.0.1:"+n.port(), i, *malformed/100, &sent, &closed) })
	}
	var disturbed []time.Duration
	for sent.Load() < int64(*malformed) {
		disturbed = append(disturbed, slowest(users, 1)...)
	}
	attack.Wait()
	before, during := percentile(calm, 99), percentile(disturbed, 99)
	t.Logf("%d malformed frames, %d connections closed; %d good clients wait at p99 %v undisturbed, %v disturbed", sent.Load(), closed.Load(), len(users), before, during)
	if closed.Load() < 20 {
		t.Errorf("%d hostile connections were closed", closed.Load())
	}
	for _, u := range users { // each is there, with the connection that it had
		u.ok(eventHeartbeat, "")
	}
	if n.handlers.refusals.of(refusedSlow).Load() > 0 {
		t.Error("a good client was cut")
	}
}

// startQuietNode keeps no log of a million refusals.
func startQuietNode(t *testing.T, b backend) *node {
	t.Helper()
	config := testConfig(t, b.url, "PRESENCE_RATE_PER_SECOND=50")
	n, err := startNode(config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	return n
}

// slowest has every user send heartbeats, and gives how long each waited.
func slowest(users []*user, rounds int) (waits []time.Duration) {
	var mu sync.Mutex
	var work sync.WaitGroup
	for _, some := range slices.Collect(slices.Chunk(users, max(1, len(users)/8))) {
		work.Go(func() {
			for range rounds {
				for _, u := range some {
					start := time.Now()
					u.calls++
					u.send(fmt.Sprintf(`42%d["presence:heartbeat"]`, u.calls))
					u.awaitAck()
					mu.Lock()
					waits = append(waits, time.Since(start))
					mu.Unlock()
				}
			}
		})
	}
	work.Wait()
	return waits
}

// awaitAck also answers pings, as text does not.
func (u *user) awaitAck() {
	for {
		switch _, p, err := u.next(); {
		case err != nil:
			u.t.Errorf("a good client was cut: %v", err)
			return
		case p == "2":
			u.send("3")
		case strings.HasPrefix(p, "43"):
			return
		}
	}
}

func percentile(waits []time.Duration, p int) time.Duration {
	slices.Sort(waits)
	return waits[len(waits)*p/100]
}

// hostilePackets are wrong in some layer; those that are only bad payloads close nothing until they are too many.
var hostilePackets = []string{
	`42["presence:join",{"roomId":7}]`, `421["presence:heartbeat",[]]`, `42["presence:get",{"roomId":"` + strings.Repeat("x", 500) + `"}]`,
	`42[`, `450-["x"]`, "42[\"x\",\"\xff\"]", `47`, `x`, `40/a,`, `42["disconnect"]`, `43{`, `4` + strings.Repeat("[", 2000),
}

// sendMalformed sends so many frames, 100 at a time and as many per connection as the server takes, at a pace at which a
// hundred of these need a minute for a million.
func sendMalformed(addr string, kind, frames int, sent, closed *atomic.Int64) {
	const batch = 100
	pace := time.NewTicker(batch * time.Minute / 10_000)
	defer pace.Stop()
	for n := 0; n < frames; kind++ {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			<-pace.C
			continue
		}
		frame := masked(true, ws.OpText, hostilePackets[kind%len(hostilePackets)])
		if kind%4 == 0 {
			frame = []byte{0x91, 0xff, byte(kind)} // no frame at all
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = conn.Write(append([]byte(handshakeText(direct4)), masked(true, ws.OpText, "40")...)) // an error comes again
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = io.Copy(io.Discard, conn)
		}()
		for open := true; open && n < frames; n += batch {
			_, err := conn.Write(bytes.Repeat(frame, batch))
			sent.Add(batch)
			select {
			case <-gone:
				closed.Add(1)
				open = false
			case <-pace.C:
				open = err == nil
			}
		}
		_ = conn.Close()
		<-gone
	}
}

// TestClientsThatNeverReadAreCut has 100 of them in a room that is full of updates: those who read lose nothing, and the memory
// comes back.
func TestClientsThatNeverReadAreCut(t *testing.T) {
	const deaf, updates, bound = 100, 200, 64 << 10
	n := startNodeFor(t, miniRedis(t), fmt.Sprintf("PRESENCE_MAX_UNSENT_BYTES=%d", bound))
	witness, writer := n.member(t, "home", "witness", "{}"), n.member(t, "home", "writer", "{}")
	before := liveHeap()
	for i := range deaf {
		u := n.user(t)
		_ = u.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		u.send(fmt.Sprintf(`42["presence:join",{"roomId":"home","userId":"deaf %d"}]`, i))
	}
	seen := 0
	text := strings.Repeat("x", 4<<10)
	for i := 1; n.sockets.count() > 2; i++ {
		if i > 100*updates {
			t.Fatalf("%d connections are left", n.sockets.count())
		}
		writer.join("home", "writer", fmt.Sprintf(`{"n":%d,"text":%q}`, i, text)) // which no later event replaces
		seen = i
	}
	last := witness.until("the last join", func(e wireEvent) bool { return strings.Contains(string(e.State), fmt.Sprintf(`"n":%d,`, seen)) })
	count := 0
	for _, e := range witness.events {
		if e.Type == "join" && e.ConnID == writer.id && len(e.State) > len(text) {
			count++
		}
	}
	if count != seen {
		t.Errorf("the witness got %d joins up to revision %d, want %d", count, last.Rev, seen)
	}
	if got := n.handlers.refusals.of(refusedSlow).Load(); got != deaf {
		t.Errorf("%d were cut as too slow, want %d", got, deaf)
	}
	witness.events, writer.events = nil, nil
	eventually(t, patience, "the memory is back", func() bool { return liveHeap() < before+4<<20 })
}

// TestWhatHostileClientsHold closes them all and keeps the memory flat.
func TestWhatHostileClientsHold(t *testing.T) {
	s := startSockets(t, &testApp{forget: true}, func(o *socketOptions) {
		o.ConnectTimeout, o.PingInterval, o.PingTimeout = time.Second, 500*time.Millisecond, 500*time.Millisecond
	})
	for name, frames := range map[string][]byte{
		"tiny fragments":     append(masked(false, ws.OpText, "4"), bytes.Repeat(masked(false, ws.OpContinuation, "x"), 2*freeParts)...),
		"empty fragments":    append(masked(false, ws.OpText, ""), bytes.Repeat(masked(false, ws.OpContinuation, ""), 2*freeParts)...),
		"a frame that stops": masked(true, ws.OpText, strings.Repeat("x", 1000))[:500],
		"attachments":        bytes.Repeat(masked(true, ws.OpText, `451000000-["x"]`), 10),
		"namespaces":         bytes.Repeat(masked(true, ws.OpText, `40/admin,`), 1000),
		"connects":           bytes.Repeat(masked(true, ws.OpText, `40`), 1000),
	} {
		t.Run(name, func(t *testing.T) {
			before := liveHeap()
			crowd(20, func(int) {
				c := s.dial(t, direct4, masked(true, ws.OpText, "40"), frames)
				c.closed()
			})
			eventually(t, patience, "all are gone", func() bool { return s.count() == 0 })
			eventually(t, patience, "the memory is flat", func() bool { return liveHeap() < before+2<<20 })
		})
	}
}

// TestALargeChunkedBodyIsRefused sends 100 MB, as far as the server takes it.
func TestALargeChunkedBodyIsRefused(t *testing.T) {
	t.Parallel()
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	before := liveHeap()
	body := &countedReader{}
	body.left.Store(100 << 20)
	r, err := http.NewRequest(http.MethodPost, s.url(c.query()), body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.http.Client().Do(r) // which may end while it is written
	if err == nil {
		if answer.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("answered with %d", answer.StatusCode)
		}
		_ = answer.Body.Close()
	}
	if taken := 100<<20 - body.left.Load(); taken > 20<<20 {
		t.Errorf("%d bytes were taken", taken)
	}
	eventually(t, patience, "the memory is flat", func() bool { return liveHeap() < before+2<<20 })
}

// countedReader gives so many bytes. The client may still read from it when the answer is there.
type countedReader struct{ left atomic.Int64 }

func (r *countedReader) Read(b []byte) (int, error) {
	n := min(int64(len(b)), r.left.Load())
	if n == 0 {
		return 0, io.EOF
	}
	r.left.Add(-n)
	return int(n), nil
}

// TestSlowRequestsAreNotWaitedFor has a header and a body that never end.
func TestSlowRequestsAreNotWaitedFor(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newHTTPServer(http.NotFoundHandler())
	if server.ReadHeaderTimeout != 10*time.Second || server.IdleTimeout == 0 || server.WriteTimeout == 0 || server.MaxHeaderBytes > 64<<10 {
		t.Errorf("the server waits: %+v", server)
	}
	server.ReadHeaderTimeout = 200 * time.Millisecond
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // until it is closed
	}()
	defer func() {
		_ = server.Close()
		<-served
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\nX: ")
	if _, err := io.Copy(io.Discard, conn); os.IsTimeout(err) {
		t.Error("a header without an end is waited for")
	}
}

// TestAClientThatWasOfflineForAnHour has the buffer of the original's client arrive before its join.
func TestAClientThatWasOfflineForAnHour(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_RATE_PER_SECOND=50")
	u := n.visitor(t)
	packets := []string{"40"}
	for range 720 {
		packets = append(packets, `42["presence:heartbeat",{"patchState":{"typing":true}}]`)
	}
	u.send(packets...)
	u.wantPrefix("40")
	u.join("home", "ann", `{"back":true}`)
	u.ok(eventHeartbeat, `{"patchState":{"typing":false}}`)
	if ack := n.user(t).ok(eventGet, inRoom("home", "")); len(ack.Snapshot) != 1 || !strings.Contains(string(ack.Snapshot[0].State), `"back":true`) {
		t.Errorf("the room is %s", ack.text)
	}
}

// TestNoSecretIsShown greps for every secret at the level debug, in the log, in metrics and in what clients are told.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	canary := func(what string) string { return "canary-" + what + "-0123456789abcdef0123456789" }
	mini := miniRedis(t)
	mini.mini.RequireUserAuth("ann", canary("password"))
	p := startProgram(t, "PORT=0", "REDIS_URL=redis://ann:"+canary("password")+"@"+mini.mini.Addr(), "PRESENCE_LOG_LEVEL=debug",
		"PRESENCE_JWT_SECRET="+canary("secret"), "PRESENCE_API_KEY="+canary("key"), "PRESENCE_WEBHOOK_URL=http://u:"+canary("hookpassword")+"@127.0.0.1:1/x",
		"PRESENCE_WEBHOOK_SECRET="+canary("hook"), "PRESENCE_DRAIN_MS=0")
	addr := p.address()
	signer := issuer{method: hs256.method, key: []byte(canary("secret"))}
	var told strings.Builder
	u := &user{wsClient: (&testSockets{addr: addr}).dial(t, direct4)}
	u.wantPrefix("0")
	for _, token := range []string{canary("token"), canary("token") + ".a.b", strings.Repeat(canary("token"), 1000)} {
		u.send(`40{"token":"` + token + `"}`)
		told.WriteString(u.text())
	}
	token := signer.token(nil)
	u.send(`40{"token":"` + token + `"}`)
	u.wantPrefix("40")
	u.ok(eventJoin, `{"roomId":"home","state":{"mine":"`+canary("state")+`"}}`)
	for event, payload := range map[string]string{
		eventHeartbeat: `{"patchState":"` + canary("state") + `"}`, eventAuth: `{"token":"` + canary("token") + `"}`, eventJoin: `{"roomId":{"a":"` + canary("state") + `"}}`,
	} {
		told.WriteString(u.call(event, payload).text)
	}
	told.WriteString(httpText(t, "http://"+addr+"/v1/rooms", "Bearer "+canary("key")+"x"))
	told.WriteString(httpText(t, "http://"+addr+"/metrics", ""))
	told.WriteString(httpText(t, "http://"+addr+"/readyz", ""))
	mini.mini.Close()
	told.WriteString(u.call(eventHeartbeat, "").text)
	told.WriteString(httpText(t, "http://"+addr+"/readyz", ""))
	u.send("45")
	u.closed()
	p.end()
	for _, secret := range []string{canary("password"), canary("secret"), canary("key"), canary("hookpassword"), canary("hook"), canary("token"), canary("state"), token} {
		if strings.Contains(p.out.String(), secret) || strings.Contains(told.String(), secret) {
			t.Errorf("%.30s is shown:\n%s\n%s", secret, p.out, told.String())
		}
	}
	if !strings.Contains(p.out.String(), "level=DEBUG") {
		t.Error("nothing was logged at the level debug")
	}
}

func httpText(t *testing.T, url, authorization string) string {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", authorization)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_, text := answerOf(t, answer)
	return fmt.Sprint(answer.Header) + text
}
