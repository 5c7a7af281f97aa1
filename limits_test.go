package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

func TestARateIsABurstAndThenAnInterval(t *testing.T) {
	r := newRate(10, 3)
	for name, tc := range map[string]struct {
		at   []int // milliseconds
		want string
	}{
		"at once":             {[]int{0, 0, 0, 0, 0}, "yyynn"},
		"in steps":            {[]int{0, 0, 0, 99, 100, 100, 300, 300}, "yyynynyy"},
		"evenly":              {[]int{0, 100, 200, 300, 400, 500}, "yyyyyy"},
		"after a long time":   {[]int{0, 0, 0, 99_000, 99_000, 99_000, 99_000}, "yyyyyyn"},
		"refusals are free":   {[]int{0, 0, 0, 1, 2, 3, 4, 100}, "yyynnnny"},
		"begins with a burst": {[]int{50_000, 50_000, 50_000, 50_000}, "yyyn"},
	} {
		var b bucket
		got := ""
		for _, ms := range tc.at {
			got += map[bool]string{true: "y", false: "n"}[b.take(r, time.Duration(ms)*time.Millisecond)]
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	for _, extreme := range []*rate{newRate(1e9, 1e9), newRate(1, 1e9), newRate(1e9, 1)} {
		var b bucket
		if !b.take(extreme, time.Hour) {
			t.Errorf("%+v allows nothing", extreme)
		}
	}
	if newRate(0, 100) != nil {
		t.Error("0 is a limit")
	}
}

// TestTooManyEventsAreRefusedAndChangeNothing uses a rate at which nothing comes back while the test runs.
func TestTooManyEventsAreRefusedAndChangeNothing(t *testing.T) {
	t.Parallel()
	n := startNodeFor(t, miniRedis(t), "PRESENCE_RATE_PER_SECOND=1", "PRESENCE_RATE_BURST=400")
	u := n.member(t, "home", "ann", `{"a":1}`)
	elsewhere := inRoom("elsewhere", "")
	for range 450 { // costs nothing
		u.refused(eventHeartbeat, elsewhere, CodeNotJoined)
	}
	spend := func(event, payload string) (granted int) {
		for u.call(event, payload).Code != string(CodeRateLimited) {
			granted++
		}
		return granted
	}
	if granted := spend(eventHeartbeat, `{"roomId":7}`); granted < 400 || granted > 420 {
		t.Errorf("%d events at once, want 400", granted)
	}
	for event, payload := range map[string]string{eventHeartbeat: `{"patchState":{"b":2}}`, eventLeave: "", eventGet: inRoom("home", ""), eventAuth: "{}"} {
		if u.call(event, payload).Code != string(CodeRateLimited) {
			u.refused(event, payload, CodeRateLimited) // a second had gone by
		}
	}
	u.join("second", "ann", "{}") // another budget
	if granted := spend(eventJoin, joinPayloadOf("third", "ann", "{}")); granted < 390 || granted > 420 {
		t.Errorf("%d joins at once, want 400 with those before", granted)
	}
	other := n.user(t)
	if state := string(entryOf(t, other.ok(eventGet, inRoom("home", "")), u.id).State); state != `{"a":1}` {
		t.Errorf("the state is %s", state)
	}
	if got := n.handlers.refusals.of("rate_limited").Load(); got < 6 {
		t.Errorf("%d refusals counted", got)
	}
}

func TestSteadyAbuseIsCut(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_RATE_PER_SECOND=1", "PRESENCE_RATE_BURST=1")
	for name, packet := range map[string]string{"heartbeats": `421["presence:heartbeat"]`, "no acks": `42["presence:get"]`} {
		t.Run(name, func(t *testing.T) {
			u := n.member(t, uniqueRoom(t), "ann", "{}")
			u.send(strings.Split(strings.Repeat(packet+"\x00", maxRefusals+100), "\x00")[:maxRefusals+100]...)
			if status := u.closed(); status != ws.StatusPolicyViolation {
				t.Errorf("closed with %d", status)
			}
		})
	}
	if got := n.handlers.refusals.of(refusedFlood).Load(); got != 2 {
		t.Errorf("%d floods counted", got)
	}
}

// TestRefusalsAreForgotten has a socket refused often, but never often enough within the time.
func TestRefusalsAreForgotten(t *testing.T) {
	var b budget
	for now := time.Hour; now < 2*time.Hour; now += refusalsTime + 1 {
		for range maxRefusals - 1 {
			if b.flooded(now) {
				t.Fatalf("cut after %v", now)
			}
		}
	}
	if b.flooded(3*time.Hour) || b.refused != 1 {
		t.Errorf("%d refusals are remembered", b.refused)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		setting string
		status  int
	}{
		"of the node":   {"PRESENCE_MAX_CONNECTIONS=2", http.StatusServiceUnavailable},
		"of an address": {"PRESENCE_MAX_CONNECTIONS_PER_ADDRESS=2", http.StatusTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			n := startNodeFor(t, miniRedis(t), tc.setting)
			s := &testSockets{addr: "127.0.0.1:" + n.port()}
			first, _ := n.user(t), n.user(t)
			for _, query := range []string{direct4, polling4} {
				if status := refusedStatus(t, s, query); status != tc.status {
					t.Errorf("%s: a third one is answered with %d, want %d", query, status, tc.status)
				}
			}
			_ = first.conn.Close()
			eventually(t, patience, "one more is welcome", func() bool {
				c, _ := s.tryDial(t, direct4)
				return c != nil
			})
		})
	}
}

// refusedStatus is how a handshake is answered.
func refusedStatus(t *testing.T, s *testSockets, query string) int {
	t.Helper()
	if query == direct4 {
		_, status := s.tryDial(t, query)
		return status
	}
	r, err := http.Get("http://" + s.addr + "/socket.io/?" + query)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	return r.StatusCode
}

func TestWhereAConnectionComesFrom(t *testing.T) {
	for _, same := range [][2]string{
		{"192.0.2.1:1", "192.0.2.1:2"}, {"[::ffff:192.0.2.1]:1", "192.0.2.1:2"}, {"[2001:db8::1]:1", "[2001:db8::2:0:0:1]:1"}, {"[fe80::1%eth0]:1", "[fe80::2]:1"},
	} {
		if origin(same[0]) != origin(same[1]) {
			t.Errorf("%q are two", same)
		}
	}
	for _, apart := range [][2]string{{"192.0.2.1:1", "192.0.2.2:1"}, {"[2001:db8::1]:1", "[2001:db8:0:1::1]:1"}, {"[::1]:1", "127.0.0.1:1"}} {
		if origin(apart[0]) == origin(apart[1]) {
			t.Errorf("%q are one", apart)
		}
	}
}

func TestWhatIsRefusedIsCounted(t *testing.T) {
	t.Parallel()
	s := startSockets(t, &testApp{}, func(o *socketOptions) {
		o.Origins, o.MaxMessageBytes, o.ConnectTimeout = []string{"https://a.example"}, 1000, 300*time.Millisecond
	})
	r, err := http.NewRequest(http.MethodGet, s.url(polling4), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://b.example")
	if answer, err := s.http.Client().Do(r); err != nil || answerStatus(t, answer) != http.StatusForbidden {
		t.Errorf("another origin: %v", err)
	}
	c := s.connected(t)
	c.send("4" + strings.Repeat("x", 1000))
	c.closed()
	if status, _ := s.poller(t).post("4" + strings.Repeat("x", 1000)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a large body is answered with %d", status)
	}
	s.dial(t, direct4).closed()
	for code, want := range map[string]int64{refusedOrigin: 1, refusedSize: 2, refusedLate: 1} {
		eventually(t, patience, fmt.Sprintf("%d × %s", want, code), func() bool { return s.Refusals.of(code).Load() >= want })
	}
}

func answerStatus(t *testing.T, r *http.Response) int {
	t.Helper()
	status, _ := answerOf(t, r)
	return status
}

// TestAnAnswerCostsWhatItMakesTheServerSend uses a rate at which nothing comes back while the test runs.
func TestAnAnswerCostsWhatItMakesTheServerSend(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		room, event string
		least, most int
	}{
		{"small", eventGet, 100, 105},
		{"large", eventGet, 50, 55},
		{"small", eventWatch, 100, 105},
		{"large", eventWatch, 50, 55},
		{"small", eventJoin, 100, 105},
	} {
		t.Run(c.event+" "+c.room, func(t *testing.T) {
			n := startNodeFor(t, miniRedis(t), "PRESENCE_RATE_PER_SECOND=1", "PRESENCE_RATE_BURST=100", "PRESENCE_MAX_MESSAGE_BYTES=200000", "PRESENCE_MAX_STATE_BYTES=150000")
			n.member(t, "large", "ann", `{"text":"`+strings.Repeat("x", 140_000)+`"}`)
			n.member(t, "small", "ann", `{}`)
			u, granted := n.user(t), 0
			for u.call(c.event, joinPayloadOf(c.room, "bob", "{}")).Code != string(CodeRateLimited) {
				granted++
			}
			if granted < c.least || granted > c.most {
				t.Errorf("%d requests at once, want %d", granted, c.least)
			}
		})
	}
}
