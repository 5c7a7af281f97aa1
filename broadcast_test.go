package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"
)

// localEars are local sockets that write down what they are to get.
type localEars struct {
	mu    sync.Mutex
	heard []string
}

func (l *localEars) broadcast(rooms, except []string, f frame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, fmt.Sprintf("%q-%q %s", rooms, except, f.packet()))
}

// count tells how often exactly this was heard.
func (l *localEars) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, heard := range l.heard {
		if heard == what {
			n++
		}
	}
	return n
}

func (l *localEars) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.heard)
}

// startBroadcaster returns once messages arrive. It is closed with the test.
func startBroadcaster(t *testing.T, rdb redis.UniversalClient) (*broadcaster, *localEars) {
	t.Helper()
	ears := &localEars{}
	b := newBroadcaster(rdb, ears, testLogger(t))
	t.Cleanup(b.close)
	ears.waitForSubscription(t, rdb)
	return b, ears
}

// waitForSubscription publishes until something arrives, and waits for the last of it: what comes later is not of this.
func (l *localEars) waitForSubscription(t *testing.T, rdb redis.UniversalClient) {
	t.Helper()
	room := uniqueRoom(t)
	publish := func(event string) error {
		message, err := encodeMessage("test", []string{room}, event, nil)
		must(t, err)
		return rdb.Publish(t.Context(), adapterChannel+room+"#", message).Err()
	}
	heard := func(event string) bool { return l.count(fmt.Sprintf(`["%s"]-[] 42["%s"]`, room, event)) > 0 }
	eventually(t, 10*time.Second, "the subscription", func() bool { return publish("probe") == nil && heard("probe") })
	must(t, publish("last probe"))
	eventually(t, 10*time.Second, "the last of it", func() bool { return heard("last probe") })
}

// TestBroadcastReachesEachNodeOnce has two nodes that both send.
func TestBroadcastReachesEachNodeOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		one, earsOne := startBroadcaster(t, b.open(t))
		two, earsTwo := startBroadcaster(t, b.open(t))
		room := uniqueRoom(t) + ` {"}*?\é`
		var want []string
		for i := range 10 {
			for _, sender := range []*broadcaster{one, two} {
				event := fmt.Sprintf("event %d of %p", i, sender)
				if err := sender.Broadcast(t.Context(), room, event, i, map[string]any{"id": int64(math.MaxInt64)}); err != nil {
					t.Fatal(err)
				}
				want = append(want, fmt.Sprintf(`["%s"]-[] 42["%s",%d,{"id":9223372036854775807}]`, strings.Trim(fmt.Sprintf("%q", room), `"`), event, i))
			}
		}
		for _, ears := range []*localEars{earsOne, earsTwo} {
			for _, message := range want {
				eventually(t, 5*time.Second, message, func() bool { return ears.count(message) > 0 })
			}
		}
		// What comes twice has come by the time that something later has.
		earsOne.waitForSubscription(t, two.rdb)
		earsTwo.waitForSubscription(t, one.rdb)
		for _, ears := range []*localEars{earsOne, earsTwo} {
			for _, message := range want {
				if n := ears.count(message); n != 1 {
					t.Errorf("came %d times: %s", n, message)
				}
			}
		}
	})
}

// nodeCommand is a line that adapter.mjs understands.
type nodeCommand struct {
	By     string   `json:"by,omitempty"` // "emitter", else the server
	Rooms  []string `json:"rooms,omitempty"`
	Except []string `json:"except,omitempty"`
	Event  string   `json:"event"`
	Args   []any    `json:"args,omitempty"`
	Add    string   `json:"add,omitempty"` // a last argument that JSON has no form for
}

// TestBroadcastWithNode is a node of this server beside a Node.js server with the real
// adapter, and the real emitter. Not parallel to others: what goes to everybody would reach
// the sockets of their nodes.
func TestBroadcastWithNode(t *testing.T) {
	t.Parallel()
	takesLong(t)
	eachBackend(t, func(t *testing.T, b backend) {
		libraries := []string{"redis", "ioredis"}
		if b.cluster {
			libraries = []string{"cluster"}
		}
		for _, library := range libraries {
			t.Run(library, func(t *testing.T) {
				room := uniqueRoom(t)
				node := nodeScript(t, "adapter.mjs", library, b.testURL(), room)
				if line := node.next(); line != `["ready"]` {
					t.Fatal(line)
				}
				us, ears := startBroadcaster(t, b.open(t))
				broadcastFromNode(t, node, ears, room)
				broadcastToNode(t, node, us, room)
			})
		}
	})
}

// broadcastFromNode sends what applications send, and wants each exactly once.
func broadcastFromNode(t *testing.T, node *nodeProcess, ears *localEars, room string) {
	here := []string{room}
	for _, tc := range []struct {
		command nodeCommand
		want    string // "" = nothing arrives
	}{
		{nodeCommand{Rooms: here, Event: "one room"}, `["ROOM"]-[] 42["one room"]`},
		{nodeCommand{Rooms: []string{room, "other"}, Event: "two rooms"}, `["ROOM" "other"]-[] 42["two rooms"]`},
		{nodeCommand{Rooms: here, Except: []string{"some"}, Event: "except"}, `["ROOM"]-["some"] 42["except"]`},
		{nodeCommand{Event: "everybody"}, `[]-[] 42["everybody"]`},
		{nodeCommand{By: "emitter", Rooms: here, Event: "emitter"}, `["ROOM"]-[] 42["emitter"]`},
		{nodeCommand{By: "emitter", Event: "emitter to all"}, `[]-[] 42["emitter to all"]`},
		{nodeCommand{Rooms: here, Event: "presence:event", Args: []any{1}}, `["ROOM"]-[] 42["presence:event",1]`},
		{nodeCommand{Rooms: here, Event: "values", Args: []any{
			0, -1, 127, 128, -32, -33, 255, 256, 65535, 65536, int64(1 << 31), int64(1 << 40), int64(-1 << 40), 0.5, -1.5e-7, true, false, nil, "", "é😀\"\\",
		}}, `["ROOM"]-[] 42["values",0,-1,127,128,-32,-33,255,256,65535,65536,2147483648,1099511627776,-1099511627776,0.5,-1.5e-7,true,false,null,"","é😀\"\\"]`},
		{nodeCommand{Rooms: here, Event: "nested", Args: []any{map[string]any{"a": []any{[]any{}, map[string]any{}}}}}, `["ROOM"]-[] 42["nested",{"a":[[],{}]}]`},
		{nodeCommand{Rooms: here, Event: "long", Args: []any{strings.Repeat("x", 70000)}}, `["ROOM"]-[] 42["long","` + strings.Repeat("x", 70000) + `"]`},
		{nodeCommand{Rooms: here, Event: "date", Add: "date"}, `["ROOM"]-[] 42["date","2026-11-25T02:12:08.231Z"]`},
		{nodeCommand{Rooms: here, Event: "undefined", Add: "undefined"}, `["ROOM"]-[] 42["undefined",null]`},
		{nodeCommand{Rooms: here, Event: "nan", Add: "nan"}, `["ROOM"]-[] 42["nan",null]`},
		{nodeCommand{Rooms: here, Event: "binary", Add: "binary"}, ""},
		{nodeCommand{Rooms: here, Event: "the last"}, `["ROOM"]-[] 42["the last"]`},
	} {
		node.send(tc.command)
		if tc.want == "" {
			continue
		}
		want := strings.ReplaceAll(tc.want, "ROOM", room)
		eventually(t, 5*time.Second, tc.command.Event, func() bool { return ears.count(want) > 0 })
		if n := ears.count(want); n != 1 {
			t.Errorf("%s came %d times", tc.command.Event, n)
		}
	}
	if slices.ContainsFunc(ears.all(), func(heard string) bool { return strings.Contains(heard, `42["binary"`) }) {
		t.Error("binary data came through")
	}
}

// broadcastToNode sends to the client of the Node.js server, which is in the room. It
// has heard some of what its own server sent before.
func broadcastToNode(t *testing.T, node *nodeProcess, us *broadcaster, room string) {
	for i, args := range [][]any{
		{},
		{1, "two", nil, true, 0.5, []any{}, map[string]any{"a": map[string]any{}}},
		{int64(1) << 50, int64(-1 << 50), strings.Repeat("é", 40000)},
	} {
		if err := us.Broadcast(t.Context(), room, "from us", append([]any{i}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	if err := us.Broadcast(t.Context(), "other room", "from us", "not for it"); err != nil {
		t.Fatal(err)
	}
	if err := us.Broadcast(t.Context(), room, "end"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := ""; line != `["end"]`; {
		if line = node.next(); strings.HasPrefix(line, `["from us"`) {
			got = append(got, line)
		}
	}
	want := []string{
		`["from us",0]`,
		`["from us",1,1,"two",null,true,0.5,[],{"a":{}}]`,
		`["from us",2,1125899906842624,-1125899906842624,"` + strings.Repeat("é", 40000) + `"]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %.300q\nwant %.300q", got, want)
	}
}

// TestBroadcastGoesOn after Redis was away, or hung.
func TestBroadcastGoesOn(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		away      func(*redisProcess)
		backAgain func(*redisProcess)
	}{
		{"restart", (*redisProcess).stop, (*redisProcess).restart},
		{"hang", func(p *redisProcess) { p.signal(syscall.SIGSTOP) }, func(p *redisProcess) { p.signal(syscall.SIGCONT) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := spawnRedis(t)
			rdb := backend{url: p.url}.open(t)
			us, ears := startBroadcaster(t, rdb)
			tc.away(p)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := us.Broadcast(ctx, "room", "while away"); err == nil {
				t.Error("no error")
			}
			tc.backAgain(p)
			ears.waitForSubscription(t, rdb)
			if n := ears.count(`["room"]-[] 42["while away"]`); n != 1 {
				t.Errorf("the sockets of this node got it %d times", n)
			}
		})
	}
}

func TestBroadcastRefuses(t *testing.T) {
	us, ears := startBroadcaster(t, miniRedis(t).open(t))
	before := len(ears.all())
	for _, tc := range []struct {
		event string
		arg   any
	}{
		{"disconnect", nil},
		{"connect_error", nil},
		{"fine", make(chan int)},
		{"fine", math.NaN()},
	} {
		if err := us.Broadcast(t.Context(), "room", tc.event, tc.arg); err == nil {
			t.Errorf("%s: no error", tc.event)
		}
	}
	if after := len(ears.all()); after != before {
		t.Errorf("%d were delivered", after-before)
	}
}

// TestBroadcastIgnores messages that nobody should send (G9), and goes on with the next.
func TestBroadcastIgnores(t *testing.T) {
	t.Parallel()
	rdb := miniRedis(t).open(t)
	_, ears := startBroadcaster(t, rdb)
	before := len(ears.all())
	fine := map[string]any{"type": 2, "data": []any{"event"}, "nsp": "/"}
	room := map[string]any{"rooms": []any{"room"}, "except": []any{}}
	for name, message := range map[string]any{
		"no array":            "text",
		"two parts":           []any{"uid", fine},
		"four parts":          []any{"uid", fine, room, 1},
		"null":                []any{nil, nil, nil},
		"uid is a number":     []any{1, fine, room},
		"packet is a list":    []any{"uid", []any{}, room},
		"packet is null":      []any{"uid", nil, room},
		"other packet":        []any{"uid", map[string]any{"type": 1, "data": []any{"event"}}, room},
		"binary packet":       []any{"uid", map[string]any{"type": 5, "data": []any{"event"}}, room},
		"fractional type":     []any{"uid", map[string]any{"type": 2.5, "data": []any{"event"}}, room},
		"other namespace":     []any{"uid", map[string]any{"type": 2, "data": []any{"event"}, "nsp": "/admin"}, room},
		"no data":             []any{"uid", map[string]any{"type": 2}, room},
		"empty data":          []any{"uid", map[string]any{"type": 2, "data": []any{}}, room},
		"data is an object":   []any{"uid", map[string]any{"type": 2, "data": fine}, room},
		"name is a number":    []any{"uid", map[string]any{"type": 2, "data": []any{1}}, room},
		"name is null":        []any{"uid", map[string]any{"type": 2, "data": []any{nil}}, room},
		"options are a text":  []any{"uid", fine, "text"},
		"options are null":    []any{"uid", fine, nil},
		"rooms are a text":    []any{"uid", fine, map[string]any{"rooms": "room"}},
		"room is a number":    []any{"uid", fine, map[string]any{"rooms": []any{1}}},
		"binary argument":     []any{"uid", map[string]any{"type": 2, "data": []any{"event", []byte("x")}}, room},
		"key is a number":     []any{"uid", map[string]any{"type": 2, "data": []any{"event", map[int]int{1: 1}}}, room},
		"date in year 20000":  []any{"uid", map[string]any{"type": 2, "data": []any{"event", time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)}}, room},
		"unknown extension":   msgpack.RawMessage("\x93\xa1u\x83\xa4type\x02\xa4data\x92\xa1e\xd4\x05\x00\x80"),
		"nothing":             msgpack.RawMessage(""),
		"array without end":   msgpack.RawMessage("\xdd\xff\xff\xff\xff"),
		"map without end":     msgpack.RawMessage("\xdf\xff\xff\xff\xff"),
		"text without end":    msgpack.RawMessage("\xdb\xff\xff\xff\xff"),
		"nested without end":  msgpack.RawMessage(strings.Repeat("\x91", 5_000_000)),
		"maps without end":    msgpack.RawMessage(strings.Repeat("\x81\xa1k", 1_000_000)),
		"code that is unused": msgpack.RawMessage("\xc1"),
	} {
		t.Run(name, func(t *testing.T) {
			payload, err := msgpack.Marshal(message)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := decodeMessage(string(payload)); err == nil {
				t.Errorf("understood as %+v", m)
			}
			if err := rdb.Publish(t.Context(), adapterChannel+"room#", payload).Err(); err != nil {
				t.Fatal(err)
			}
		})
	}
	ears.waitForSubscription(t, rdb)
	for _, heard := range ears.all()[before:] {
		if !strings.Contains(heard, "probe") {
			t.Errorf("delivered: %.100s", heard)
		}
	}
}

// TestDecodeMessage pins what is optional, and that nothing of a value is lost.
func TestDecodeMessage(t *testing.T) {
	packet := map[string]any{"data": []any{"event", uint64(math.MaxUint64), int64(math.MinInt64), float32(0.5), "a\xffb\x00", map[string]any{"<": 1e21}}, "type": 2}
	payload, err := msgpack.Marshal([]any{"uid", packet, map[string]any{"rooms": nil}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := decodeMessage(string(payload))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %q %q %s %s", m.uid, m.rooms, m.except, m.event, m.args)
	want := `uid [] [] event [18446744073709551615 -9223372036854775808 0.5 "a` + "\ufffd" + `b\u0000" {"<":1e+21}]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// FuzzDecodeMessage looks for a message that makes the decoder panic, or come to a
// result that is no frame of JSON.
func FuzzDecodeMessage(f *testing.F) {
	message, err := encodeMessage("uid", []string{"room"}, "event", [][]byte{[]byte(`{"a":[1,-1.5e9,"x",null,true]}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(message))
	f.Add("\x93\xa1u\x82\xa4type\x02\xa4data\x92\xa1e\xd7\xff\x00\x00\x00\x00\x00\x00\x00\x00\x80")
	f.Fuzz(func(t *testing.T, payload string) {
		m, err := decodeMessage(payload)
		if err != nil {
			return
		}
		for _, arg := range m.args {
			if !json.Valid(arg) {
				t.Errorf("%q is no JSON", arg)
			}
		}
	})
}
