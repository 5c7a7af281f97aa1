package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// Deeper than what recursion, or a decoder with a bound, takes.
var deepJSON = strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)

// Each case is what a client sends over a fresh connection, and what it gets up to the close of the connection, or up to
// the pong to "last" if the connection goes on.
var packetCases = map[string]struct {
	in   []string
	want []string
	ends bool
}{
	"connect":                   {[]string{"40"}, []string{"40"}, false},
	"connect with auth":         {[]string{`40{"token":"x"}`}, []string{"40"}, false},
	"connect by name":           {[]string{"40/,"}, []string{"40"}, false},
	"connect by name, auth":     {[]string{`40/,{"a":1}`}, []string{"40"}, false},
	"auth is an array":          {[]string{"40[]"}, nil, true},
	"auth is null":              {[]string{"40null"}, nil, true},
	"auth is text":              {[]string{`40"x"`}, nil, true},
	"auth is no JSON":           {[]string{"40{"}, nil, true},
	"twice":                     {[]string{"40", "40"}, []string{"40"}, true},
	"event":                     {[]string{"40", `42["a"]`}, []string{"40"}, false},
	"event with ack":            {[]string{"40", `421["a"]`}, []string{"40", "431[null]"}, false},
	"ack id 0":                  {[]string{"40", `420["a"]`}, []string{"40", "430[null]"}, false},
	"ack id as sent":            {[]string{"40", `4200012["a"]`}, []string{"40", "4300012[null]"}, false},
	"ack id beyond 64 bits":     {[]string{"40", `4299999999999999999999["a"]`}, []string{"40", "4399999999999999999999[null]"}, false},
	"ack id of any length":      {[]string{"40", `42` + strings.Repeat("1", 5000) + `["a"]`}, []string{"40", "43" + strings.Repeat("1", 5000) + "[null]"}, false},
	"ack id without an event":   {[]string{"40", `421`}, []string{"40"}, true},
	"spaces around auth":        {[]string{"40 { } \n"}, []string{"40"}, false},
	"spaces instead of auth":    {[]string{"40 "}, []string{"40"}, false},
	"spaces by name":            {[]string{"40/, {}"}, []string{"40"}, false},
	"spaces around an event":    {[]string{"40", "42 \t1\r\n [\"a\"] "}, []string{"40", "431[null]"}, false},
	"spaces within an ack id":   {[]string{"40", `421 2["a"]`}, []string{"40"}, true},
	"id of a CONNECT":           {[]string{"401{}"}, []string{"40"}, false},
	"ack id is negative":        {[]string{"40", `42-1["a"]`}, []string{"40"}, true},
	"arguments":                 {[]string{"40", `421["a",{"b":[1,2]},null]`}, []string{"40", `431[{"b":[1,2]}]`}, false},
	"arguments stay as sent":    {[]string{"40", `421["a", 1234567890123456789.0 ]`}, []string{"40", `431[1234567890123456789.0]`}, false},
	"deep JSON":                 {[]string{"40", `421["a",` + deepJSON + `]`}, []string{"40", "431[" + deepJSON + "]"}, false},
	"event by name of /":        {[]string{"40", `42/,1["a"]`}, []string{"40", "431[null]"}, false},
	"event before connect":      {[]string{`42["a"]`}, nil, true},
	"ack before connect":        {[]string{`431[]`}, nil, true},
	"disconnect before connect": {[]string{"41"}, nil, true},
	"no JSON":                   {[]string{"40", `42["a"`}, []string{"40"}, true},
	"more after it":             {[]string{"40", `42["a"]]`}, []string{"40"}, true},
	"no array":                  {[]string{"40", `42{"a":1}`}, []string{"40"}, true},
	"nothing":                   {[]string{"40", `42`}, []string{"40"}, true},
	"empty array":               {[]string{"40", `42[]`}, []string{"40"}, true},
	"name is a number":          {[]string{"40", `421[-1.5]`}, []string{"40", "431[null]"}, false},
	"name is null":              {[]string{"40", `42[null]`}, []string{"40"}, true},
	"name connect":              {[]string{"40", `42["connect"]`}, []string{"40"}, true},
	"name connect_error":        {[]string{"40", `42["connect_error"]`}, []string{"40"}, true},
	"name disconnect":           {[]string{"40", `42["disconnect"]`}, []string{"40"}, true},
	"name disconnecting":        {[]string{"40", `42["disconnecting"]`}, []string{"40"}, true},
	"name newListener":          {[]string{"40", `42["newListener"]`}, []string{"40"}, true},
	"name removeListener":       {[]string{"40", `42["removeListener"]`}, []string{"40"}, true},
	"reserved name, escaped":    {[]string{"40", `42["\u0063onnect"]`}, []string{"40"}, true},
	"empty name":                {[]string{"40", `421[""]`}, []string{"40", "431[null]"}, false},
	"ack of nothing":            {[]string{"40", "437[1]"}, []string{"40"}, false},
	"connect error":             {[]string{"40", "44{}"}, []string{"40"}, true},
	"binary event":              {[]string{"40", `451-["a",{"_placeholder":true,"num":0}]`}, []string{"40"}, true},
	"binary event of nothing":   {[]string{"40", `450-["a"]`}, []string{"40"}, true},
	"binary ack":                {[]string{"40", `461-1[{"_placeholder":true,"num":0}]`}, []string{"40"}, true},
	"unknown packet":            {[]string{"40", "47"}, []string{"40"}, true},
	"no packet":                 {[]string{"40", "4"}, []string{"40"}, true},
	"disconnect, connect again": {[]string{"40", "41", "40"}, []string{"40", "40"}, false},
	"disconnect by name":        {[]string{"40", "41/,", "40"}, []string{"40", "40"}, false},
	"event after disconnect":    {[]string{"40", "41", `42["a"]`}, []string{"40"}, true},
	"disconnect twice":          {[]string{"40", "41", "41"}, []string{"40"}, true},
	"disconnect with data":      {[]string{"40", "41{}"}, []string{"40"}, true},
	"other namespace":           {[]string{"40/admin,"}, []string{`44/admin,{"message":"Invalid namespace"}`}, false},
	"other namespace, no comma": {[]string{"40/admin"}, []string{`44/admin,{"message":"Invalid namespace"}`}, false},
	"other namespace, auth":     {[]string{`40/admin,{"a":1}`, "40"}, []string{`44/admin,{"message":"Invalid namespace"}`, "40"}, false},
	"/ goes on":                 {[]string{"40", "40/b,", `421["a"]`}, []string{"40", `44/b,{"message":"Invalid namespace"}`, "431[null]"}, false},
	"event to other namespace":  {[]string{"40", `42/b,["a"]`}, []string{"40"}, true},
}

func TestPackets(t *testing.T) {
	for name, c := range packetCases {
		for _, transport := range []string{"websocket", "polling", "upgraded"} {
			t.Run(name+"/"+transport, func(t *testing.T) {
				last, answer := "40", "40"
				if slices.Contains(c.want, "40") {
					last, answer = `4299["last"]`, "4399[null]"
				}
				in, want := c.in, c.want
				if !c.ends {
					in, want = append(slices.Clip(in), last), append(slices.Clip(want), answer)
				}
				x := startSockets(t, &testApp{}).talker(t, transport)
				var got []string
				for i, p := range in {
					if x.say(p); i == 0 && len(want) > 0 && want[0] == "40" {
						p, _ = x.hear() // what waits for a poll would be lost with a session that ends
						got = append(got, withoutSID(p))
					}
				}
				for open := true; open && (c.ends || len(got) < len(want)); {
					var p string
					if p, open = x.hear(); open {
						got = append(got, withoutSID(p))
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %.200q, want %.200q", got, want)
				}
			})
		}
	}
}

var connectAnswer = regexp.MustCompile(`^40\{"sid":"[A-Za-z0-9_-]{20}"\}$`)

func withoutSID(p string) string {
	if connectAnswer.MatchString(p) {
		return "40"
	}
	return p
}

// talker is a client over any transport, after the handshake.
type talker interface {
	say(packet string)
	hear() (packet string, open bool)
}

func (s *testSockets) talker(t *testing.T, transport string) talker {
	t.Helper()
	switch transport {
	case "polling":
		return s.poller(t)
	case "upgraded":
		c := s.poller(t).probed()
		c.send("5")
		return c
	}
	c := s.dial(t, direct4)
	c.wantPrefix("0")
	return c
}

func (c *wsClient) say(p string) { _, _ = c.conn.Write(masked(true, ws.OpText, p)) }

func (c *wsClient) hear() (string, bool) {
	op, p, err := c.next()
	return p, err == nil && op == ws.OpText
}

func (c *pollClient) say(p string) { c.post(p) }

func (c *pollClient) hear() (string, bool) {
	if len(c.queued) == 0 {
		status, body := c.get()
		if status != http.StatusOK {
			return "", false
		}
		c.queued = strings.Split(body, "\x1e")
	}
	p := c.queued[0]
	c.queued = c.queued[1:]
	return p, p != "1"
}

func TestEndReasons(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(c talker, p *testPeer)
		want endReason
	}{
		"DISCONNECT":       {func(c talker, _ *testPeer) { c.say("41") }, endByClient},
		"CLOSE":            {func(c talker, _ *testPeer) { c.say("1") }, endAbrupt},
		"bad packet":       {func(c talker, _ *testPeer) { c.say("4x") }, endAbrupt},
		"close":            {func(_ talker, p *testPeer) { p.client.close() }, endAbrupt},
		"disconnect":       {func(_ talker, p *testPeer) { p.client.disconnect() }, endByServer},
		"close twice":      {func(_ talker, p *testPeer) { p.client.close(); p.client.disconnect(); p.client.close() }, endAbrupt},
		"close in event":   {func(c talker, _ *testPeer) { c.say(`42["close"]`) }, endAbrupt},
		"goodbye in event": {func(c talker, _ *testPeer) { c.say(`42["disconnect me"]`) }, endByServer},
	} {
		for _, transport := range []string{"websocket", "polling", "upgraded"} {
			t.Run(name+"/"+transport, func(t *testing.T) {
				app := &testApp{onEvent: func(p *testPeer, name string, _ []json.RawMessage, _ ackID) {
					if name == "close" {
						p.client.close()
						return
					}
					p.client.disconnect()
				}}
				x := startSockets(t, app).talker(t, transport)
				x.say("40")
				x.hear()
				p := app.only(t)
				c.end(x, p)
				if c.want == endByClient { // who then closes the transport, or connects again
					eventually(t, patience, "it ended", func() bool { return app.ends.Load() == 1 })
					p.client.close()
				}
				goodbye := false
				for said, open := x.hear(); open; said, open = x.hear() {
					goodbye = goodbye || said == "41"
				}
				eventually(t, patience, "it ended", func() bool { return app.ends.Load() == 1 })
				if got := endReason(p.reason.Load()); got != c.want {
					t.Errorf("ended with %d, want %d", got, c.want)
				}
				if want := c.want == endByServer; goodbye != want {
					t.Errorf("DISCONNECT sent: %v, want %v", goodbye, want)
				}
				p.client.send(newFrame([]byte("2[]"))) // nobody is there, nothing happens
				p.client.ack(ackID("1"), []byte("null"))
				p.client.close()
			})
		}
	}
}

func TestRefusedConnect(t *testing.T) {
	t.Parallel()
	s := startSockets(t, &testApp{refusal: []byte(`{"message":"no","data":{"code":"unauthorized"}}`)},
		func(o *socketOptions) { o.ConnectTimeout = 200 * time.Millisecond })
	for _, transport := range []string{"websocket", "polling", "upgraded"} {
		c := s.talker(t, transport)
		for range 2 { // it may try again
			c.say("40")
			if p, _ := c.hear(); p != `44{"message":"no","data":{"code":"unauthorized"}}` {
				t.Errorf("%s: refused with %q", transport, p)
			}
		}
		for open := true; open; { // the time to connect goes on
			_, open = c.hear()
		}
	}
	if n := s.app.ends.Load(); n != 0 {
		t.Errorf("%d ends of clients that never connected", n)
	}
}

// A client that connects, says goodbye and connects again costs the server a check of its token each time.
func TestConnectsOfATransportAreBounded(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.connected(t)
	for range maxConnects - 1 {
		c.send("41", "40")
		c.wantPrefix(`40{"sid":`)
	}
	c.send("41", "40")
	if status := c.closed(); status != ws.StatusPolicyViolation {
		t.Errorf("closed with %d", status)
	}
}

// After its DISCONNECT a client has the time to connect again, and as much time to close the WebSocket itself.
func TestAClientMayConnectAgainForAWhile(t *testing.T) {
	t.Parallel()
	app := &testApp{}
	s := startSockets(t, app, func(o *socketOptions) { o.ConnectTimeout = 500 * time.Millisecond })
	for _, transport := range []string{"websocket", "polling", "upgraded"} {
		c := s.talker(t, transport)
		c.say("40")
		c.hear()
		c.say("41")
		c.say("40")
		if p, _ := c.hear(); withoutSID(p) != "40" {
			t.Errorf("%s: connecting again is answered with %q", transport, p)
		}
		c.say("41")
		for open := true; open; {
			_, open = c.hear()
		}
	}
	if n := s.Refusals.of(refusedLate).Load(); n != 3 {
		t.Errorf("%d ended for their silence, want 3", n)
	}
	if n := app.ends.Load(); n != 6 {
		t.Errorf("%d ends of 6 peers", n)
	}
}

func TestEventNames(t *testing.T) {
	for raw, want := range map[string]string{
		`"a"`: "a", `""`: "", `"presence:join"`: "presence:join", `"\u0061\n\"\\"`: "a\n\"\\", `"é€😀"`: "é€😀", `"\ud83d\ude00"`: "😀",
	} {
		if got, ok := eventName(json.RawMessage(raw)); got != want || !ok {
			t.Errorf("%s is %q, %v", raw, got, ok)
		}
	}
}

func TestEventFrame(t *testing.T) {
	for want, f := range map[string]frame{
		`42["a"]`:                          eventFrame("a"),
		`42["presence:event",{"rev":1},2]`: eventFrame("presence:event", []byte(`{"rev":1}`), []byte("2")),
		`42["say \"hi\""]`:                 eventFrame(`say "hi"`),
	} {
		if got := string(f.packet()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// A client's DISCONNECT waits for its next poll, whatever it posts meanwhile.
func TestGoodbyeOutlivesAPost(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.poller(t)
	c.connect()
	s.app.only(t).client.disconnect()
	c.send(`42["heartbeat"]`)
	c.want("41")
	s.awaitUnknown(t, c)
	if n := s.app.events.Load(); n != 0 {
		t.Errorf("%d events after the goodbye", n)
	}
}

// It also goes with an upgrade, and the end after it.
func TestGoodbyeOutlivesAnUpgrade(t *testing.T) {
	s := startSockets(t, &testApp{}, func(o *socketOptions) { o.WriteTimeout = time.Hour })
	p := s.poller(t)
	p.connect()
	c := p.probed()
	s.app.only(t).client.disconnect()
	c.send("5")
	c.want("41")
	if status := c.closed(); status != ws.StatusNormalClosure {
		t.Errorf("closed with %d", status)
	}
}

func TestArgumentsMayBeKept(t *testing.T) {
	t.Parallel()
	var kept []json.RawMessage
	s := startSockets(t, &testApp{onEvent: func(p *testPeer, _ string, args []json.RawMessage, id ackID) {
		kept = append(kept, args[0])
		p.client.ack(id, []byte("null"))
	}})
	c := s.connected(t)
	texts := []string{`"a"`, `"b"`, `"` + strings.Repeat("c", 240) + `"`, `"` + strings.Repeat("d", 300) + `"`, `"e"`}
	for _, text := range texts {
		c.send(`421["keep",` + text + `]`)
		c.want("431[null]")
	}
	s.close() // nobody writes to kept any more
	for i, text := range texts {
		if string(kept[i]) != text {
			t.Errorf("argument %d is now %s", i, kept[i])
		}
	}
}

// A client hears of no broadcast before its CONNECT is answered.
func TestBroadcastsDoNotPrecedeConnect(t *testing.T) {
	s := startSockets(t, &testApp{})
	early, stop, stopped := eventFrame("early"), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				s.each(func(c *client) { c.send(early) })
			}
		}
	}()
	for range 300 {
		c := s.connected(t)
		_ = c.conn.Close()
	}
	close(stop)
	<-stopped
}

func TestPanicsCloseOneClient(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	app := &testApp{onEvent: func(p *testPeer, name string, _ []json.RawMessage, id ackID) {
		if name == "panic" {
			panic("on purpose")
		}
		p.client.ack(id, []byte("true"))
	}}
	app.onEnd = func(*testPeer) { panic("at the end, too") }
	s := startSockets(t, app, func(o *socketOptions) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	other := s.connected(t)
	for _, transport := range []string{"websocket", "polling", "upgraded"} {
		c := s.talker(t, transport)
		c.say("40")
		c.hear()
		c.say(`42["panic"]`)
		for open := true; open; {
			_, open = c.hear()
		}
	}
	eventually(t, patience, "three have ended", func() bool { return app.ends.Load() == 3 })
	other.send(`421["a"]`)
	other.want("431[true]")
	app.onConnect = func(*client) { panic("in connect") }
	c := s.dial(t, direct4)
	c.wantPrefix("0")
	c.send("40")
	if status := c.closed(); status != ws.StatusInternalServerError {
		t.Errorf("closed with %d", status)
	}
	s.close()
	if n := strings.Count(log.String(), "panic while serving a client"); n != 8 {
		t.Errorf("%d panics logged, want 8:\n%s", n, log.String())
	}
}

// nowhere is a link whose client is gone.
type nowhere struct{}

func (nowhere) queue(frame, memberUpdate) bool { return false }

func (nowhere) queueParts(frameParts) bool { return false }
func (nowhere) flush()                     {}
func (nowhere) finish(closeError)          {}
func (nowhere) shut(closeError)            {}

// FuzzPackets sends anything to a client that has connected: every packet is either an error or known, and an event has a name
// and arguments that are JSON.
func FuzzPackets(f *testing.F) {
	for _, c := range packetCases {
		for _, p := range c.in {
			f.Add([]byte(strings.TrimPrefix(p, "4")))
		}
	}
	app := &testApp{forget: true, onEvent: func(_ *testPeer, name string, args []json.RawMessage, _ ackID) {
		for _, a := range args {
			if !json.Valid(a) && utf8.Valid(a) && len(a) < 10_000 {
				panic("an argument that is no JSON: " + name + string(a))
			}
		}
	}}
	f.Fuzz(func(t *testing.T, packet []byte) {
		c := &client{id: newID(), app: app, log: slog.New(slog.DiscardHandler), link: nowhere{}}
		if err := c.receive([]byte("0")); err != nil {
			t.Fatal(err)
		}
		if err := c.receive(bytes.Clone(packet)); errors.Is(err, errPanic) {
			t.Errorf("%q panics", packet)
		}
		c.end()
	})
}
