package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// emit sends an application event, to all if room is "".
func (n *node) emit(t testing.TB, room, body string) apiAnswer {
	t.Helper()
	path := "/v1/emit"
	if room != "" {
		path = "/v1/rooms/" + percent(room) + "/emit"
	}
	return n.post(t, path, body)
}

func (n *node) mustEmit(t testing.TB, room, body string) {
	t.Helper()
	if got := n.emit(t, room, body); got.status != http.StatusAccepted || got.text != "" {
		t.Fatalf("%s is answered with %d %s", short80(body), got.status, got.text)
	}
}

// emitted are the application events that come until all of these ends have, each as the JSON of its name and arguments.
func (u *user) emitted(ends ...string) (list []string) {
	u.t.Helper()
	left := map[string]bool{}
	for _, end := range ends {
		left[`["`+end+`"]`] = true
	}
	for len(left) > 0 {
		packet := u.text()
		if strings.HasPrefix(packet, `42["presence:`) {
			u.keep(packet)
			continue
		}
		event, ok := strings.CutPrefix(packet, "42")
		switch {
		case !ok:
			u.t.Fatalf("unexpected packet %q", packet)
		case left[event]:
			delete(left, event)
		default:
			list = append(list, event)
		}
	}
	return list
}

// TestEmitReachesEachSocketOnce has members of a room on two nodes, and others who are not in it.
func TestEmitReachesEachSocketOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room := startWithAPI(t, b), startWithAPI(t, b), uniqueRoom(t)+` /é"}*?`
		near, far, both := n.member(t, room, "ann", "{}"), other.member(t, room, "bob", "{}"), other.member(t, room, "cem", "{}")
		both.join(room+" 2", "cem", "{}")
		outside, watcher, idle := n.member(t, room+" 2", "dan", "{}"), other.user(t), n.user(t)
		watcher.ok(eventWatch, inRoom(room, ""))
		waitForCasts(t, n, other)
		var want []string
		for i := range 5 {
			n.mustEmit(t, room, fmt.Sprintf(`{"event":"from here","args":[%d]}`, i))
			other.mustEmit(t, room, fmt.Sprintf(`{"event":"from there","args":[%d]}`, i))
			want = append(want, fmt.Sprintf(`["from here",%d]`, i), fmt.Sprintf(`["from there",%d]`, i))
		}
		n.mustEmit(t, room, `{"event":"end here"}`) // one for each sender: what two nodes send has no order
		other.mustEmit(t, room, `{"event":"end there"}`)
		for who, u := range map[string]*user{"near": near, "far": far, "both": both} {
			got := u.emitted("end here", "end there")
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("%s got %q, want %q", who, got, want)
			}
		}
		n.mustEmit(t, "", `{"event":"end"}`)
		for who, u := range map[string]*user{"near": near, "outside": outside, "watcher": watcher, "idle": idle} {
			if got := u.emitted("end"); len(got) > 0 {
				t.Errorf("%s got %q", who, got)
			}
		}
		other.mustEmit(t, "", `{"event":"end"}`)
		for who, u := range map[string]*user{"outside": outside, "watcher": watcher, "idle": idle} {
			if got := u.emitted("end"); len(got) > 0 {
				t.Errorf("%s got %q", who, got)
			}
		}
	})
}

// waitForCasts waits until events of each node reach the others.
func waitForCasts(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, from := range nodes {
		room := uniqueRoom(t) + " of casts"
		ctx, cancel := context.WithCancel(t.Context())
		var probes sync.WaitGroup
		probes.Go(func() {
			for ctx.Err() == nil {
				_ = from.casts.emit(ctx, room, "probe", nil)
				pause(ctx, 20*time.Millisecond)
			}
		})
		for _, to := range nodes {
			to.member(t, room, "witness", "{}").emitted("probe")
		}
		cancel()
		probes.Wait()
	}
}

// TestEmitSendsWhatItIsGiven on the node that is asked, and on others.
func TestEmitSendsWhatItIsGiven(t *testing.T) {
	b := miniRedis(t)
	n, other, room := startWithAPI(t, b), startWithAPI(t, b), uniqueRoom(t)
	near, far := n.member(t, room, "ann", "{}"), other.member(t, room, "bob", "{}")
	waitForCasts(t, n, other)
	long, deep := strings.Repeat("é", 300_000), strings.Repeat("[", maxNesting)+strings.Repeat("]", maxNesting)
	var want []string
	for _, tc := range []struct{ body, event string }{
		{`{"event":"none"}`, `["none"]`},
		{`{"event":"null","args":null}`, `["null"]`},
		{`{"event":"empty","args":[]}`, `["empty"]`},
		{`{"event":"é \"\\\u0000","args":["\u00e9 \"\\\u0000<>&\ud83d\ude00"]}`, `["é \"\\\u0000","é \"\\\u0000<>&😀"]`},
		{`{ "args" : [ 1 , { "b" : [ ] , "a" : { } , "" : null } ] , "event" : "order" }`, `["order",1,{"b":[],"a":{},"":null}]`},
		{`{"event":"numbers","args":[0,-1,9223372036854775807,-9223372036854775808,18446744073709551615,0.5,1e3,-1.5e-7,1e308,1e-400]}`,
			`["numbers",0,-1,9223372036854775807,-9223372036854775808,18446744073709551615,0.5,1000,-1.5e-7,1e+308,0]`},
		{`{"event":"words","args":[true,false,null,[],{}]}`, `["words",true,false,null,[],{}]`},
		{`{"event":"half a pair","args":["a\ud800b"]}`, `["half a pair","a` + "\ufffd" + `b"]`},
		{`{"event":"long","args":["` + long + `"]}`, `["long","` + long + `"]`},
		{`{"event":"deep","args":[` + deep + `,` + deep + `]}`, `["deep",` + deep + `,` + deep + `]`},
		{`{"event":"message"}`, `["message"]`},
		{`{"event":"Presence:event"}`, `["Presence:event"]`},
		{`{"event":"presence"}`, `["presence"]`},
	} {
		n.mustEmit(t, room, tc.body)
		want = append(want, tc.event)
	}
	n.mustEmit(t, room, `{"event":"end"}`)
	for who, u := range map[string]*user{"near": near, "far": far} {
		got := u.emitted("end")
		for i := range want {
			if i >= len(got) || got[i] != want[i] {
				t.Fatalf("%s: event %d of %d is %.200s, want %.200s", who, i, len(got), slices.Concat(got, make([]string, len(want)))[i], want[i])
			}
		}
	}
}

func TestEmitRefuses(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	u := n.member(t, "room", "ann", "{}")
	deeper := strings.Repeat("[", maxNesting+1) + strings.Repeat("]", maxNesting+1)
	for _, name := range []string{"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener",
		"presence:event", "presence:join", "presence:batch", "presence:user", "presence:expired", "presence:", "presence:anything", ""} {
		for _, room := range []string{"", "room"} {
			n.emit(t, room, `{"event":`+quoted(name)+`}`).wantRefusal(t, name, http.StatusBadRequest, CodeInvalidPayload)
		}
	}
	for _, body := range []string{
		`{"args":[1]}`, `{"Event":"a"}`, `{"event":null}`, `{"event":1}`, `{"event":["a"]}`, `{"event":"\ud800"}`, `{"event":"dis\u0063onnect"}`,
		`{"event":"a","args":{}}`, `{"event":"a","args":"b"}`, `{"event":"a","args":1}`, `{"event":"a","args":true}`,
		`{"event":"a","args":[1e400]}`, `{"event":"a","args":[{"a":[-1e309]}]}`, `{"event":"a","args":[` + strings.Repeat("9", 400) + `]}`,
		`{"event":"a","args":[` + deeper + `]}`, `{"event":"a","args":[` + strings.Repeat(`{"a":`, maxNesting+1) + "1" + strings.Repeat("}", maxNesting+1) + `]}`,
		`{"event":"a","args":[` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `]}`,
		`{"event":"a","event":"b"}`, `{"event":"a","args":[],"args":[]}`,
	} {
		n.emit(t, "", body).wantRefusal(t, body, http.StatusBadRequest, CodeInvalidPayload)
	}
	for _, room := range []string{"%00", "%ff", strings.Repeat("x", 201)} {
		n.post(t, "/v1/rooms/"+room+"/emit", `{"event":"a"}`).wantRefusal(t, room, http.StatusBadRequest, CodeInvalidPayload)
	}
	if got := n.http(t, http.MethodGet, "/v1/emit"); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "POST" {
		t.Errorf("GET is answered with %d %v", got.status, got.header)
	}
	n.mustEmit(t, "", `{"event":"end"}`)
	if got := u.emitted("end"); len(got) > 0 {
		t.Errorf("what was refused arrives: %q", got)
	}
}

func TestEmitWithoutTheAdapter(t *testing.T) {
	n := startWithAPI(t, miniRedis(t), "PRESENCE_SOCKETIO_ADAPTER=false")
	for _, room := range []string{"", "room"} {
		n.emit(t, room, `{"event":"a"}`).wantRefusal(t, room, http.StatusConflict, httpAdapterOff)
	}
}

// TestEmitReachesTheRealClient as well as one of a Node.js server with the classic adapter.
func TestEmitReachesTheRealClient(t *testing.T) {
	t.Parallel()
	takesLong(t)
	for name, start := range map[string]func(testing.TB) backend{"redis": realRedis, "cluster": redisCluster} {
		t.Run(name, func(t *testing.T) {
			b, room := start(t), uniqueRoom(t)
			n, other := startWithAPI(t, b), startWithAPI(t, b)
			waitForCasts(t, n, other)
			library := "redis"
			if b.cluster {
				library = "cluster"
			}
			foreign := nodeScript(t, "adapter.mjs", library, b.testURL(), room)
			if line := foreign.next(); line != `["ready"]` {
				t.Fatal(line)
			}
			c := startClients(t)
			c.open("near", "http://127.0.0.1:"+n.port(), room, "websocket")
			c.open("far", "http://127.0.0.1:"+other.port(), room, "polling")
			arg := `{"b":[1,{"x":null}],"a":9007199254740991,"é":"😀"}`
			for i := range 3 {
				n.mustEmit(t, room, fmt.Sprintf(`{"event":"chat","args":[%s,%d]}`, arg, i))
			}
			n.mustEmit(t, room+" 2", `{"event":"chat","args":["not for it"]}`)
			n.mustEmit(t, room, `{"event":"chat","args":["end"]}`) // what is for all goes another way in a cluster
			for _, who := range []string{"near", "far"} {
				for i := range 4 {
					got, want := string(c.await(who, "chat")[0]), []string{arg, arg, arg, `"end"`}[i]
					if got != want {
						t.Errorf("%s: message %d is %s, want %s", who, i, got, want)
					}
				}
			}
			for i := range 4 {
				got, want := foreign.next(), `["chat","end"]`
				if i < 3 {
					want = fmt.Sprintf(`["chat",%s,%d]`, arg, i)
				}
				if got != want {
					t.Errorf("the Node.js server: message %d is %s, want %s", i, got, want)
				}
			}
			n.mustEmit(t, "", `{"event":"chat","args":["all"]}`)
			if near, far, third := string(c.await("near", "chat")[0]), string(c.await("far", "chat")[0]), foreign.next(); near != `"all"` || far != `"all"` || third != `["chat","all"]` {
				t.Errorf("what is for all arrives as %s, %s and %s", near, far, third)
			}
		})
	}
}

// troubledPublish is a client whose PUBLISH meets trouble while there is some.
type troubledPublish struct {
	redis.UniversalClient
	trouble atomic.Pointer[func(ctx context.Context, publish func() error) error]
}

func (r *troubledPublish) Publish(ctx context.Context, channel string, message any) *redis.IntCmd {
	trouble := r.trouble.Load()
	if trouble == nil {
		return r.UniversalClient.Publish(ctx, channel, message)
	}
	cmd := redis.NewIntCmd(ctx)
	cmd.SetErr((*trouble)(ctx, func() error { return r.UniversalClient.Publish(context.WithoutCancel(ctx), channel, message).Err() }))
	return cmd
}

// TestEmitWhenPublishingFails: nothing reaches the sockets of one node and not those of another, and nothing comes twice.
func TestEmitWhenPublishingFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trouble  func(ctx context.Context, publish func() error) error
		arrives  bool
		statuses []int
		waits    bool // until the time for an answer is over
	}{
		"refused":     {func(context.Context, func() error) error { return scriptError("NOPERM") }, false, []int{503}, false},
		"not sent":    {func(context.Context, func() error) error { return errLost }, false, []int{503}, false},
		"hangs":       {func(ctx context.Context, _ func() error) error { <-ctx.Done(); return ctx.Err() }, false, []int{503}, true},
		"answer lost": {func(_ context.Context, publish func() error) error { _ = publish(); return errLost }, true, []int{202, 503}, false},
		"answer late": {func(ctx context.Context, publish func() error) error { _ = publish(); <-ctx.Done(); return ctx.Err() }, true, []int{202}, true},
		"taken late": {func(ctx context.Context, publish func() error) error {
			context.AfterFunc(ctx, func() { _ = publish() })
			return errLost
		}, true, []int{503}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.waits {
				takesLong(t)
			}
			b, room := miniRedis(t), uniqueRoom(t)
			rdb := &troubledPublish{UniversalClient: b.open(t)}
			n, other := startNodeOn(t, rdb, "PRESENCE_API_KEY="+testAPIKey), startWithAPI(t, b)
			near, far := n.member(t, room, "ann", "{}"), other.member(t, room, "bob", "{}")
			waitForCasts(t, n, other)
			rdb.trouble.Store(&tc.trouble)
			began := time.Now()
			got := n.emit(t, room, `{"event":"once"}`)
			if took := time.Since(began); !slices.Contains(tc.statuses, got.status) || took > answerWithin+late {
				t.Errorf("it is answered with %d %s after %v", got.status, got.text, took)
			}
			if got.status == http.StatusServiceUnavailable {
				got.wantRefusal(t, name, 503, CodeUnavailable)
			}
			rdb.trouble.Store(nil)
			if tc.arrives { // whenever that is
				for _, u := range []*user{near, far} {
					u.emitted("once")
				}
			}
			n.mustEmit(t, room, `{"event":"end here"}`)
			other.mustEmit(t, room, `{"event":"end there"}`) // behind what comes back to the first node
			for who, u := range map[string]*user{"near": near, "far": far} {
				if got := u.emitted("end here", "end there"); len(got) > 0 {
					t.Errorf("%s got %q", who, got)
				}
			}
		})
	}
}

// TestEmitWhileRedisIsStopped: the event may reach Redis when it goes on. Then the sockets of both nodes get it, once.
func TestEmitWhileRedisIsStopped(t *testing.T) {
	t.Parallel()
	server := spawnRedis(t)
	b, room := backend{url: server.url}, uniqueRoom(t)
	n, other := startWithAPI(t, b), startWithAPI(t, b)
	near, far := n.member(t, room, "ann", "{}"), other.member(t, room, "bob", "{}")
	waitForCasts(t, n, other)
	server.signal(syscall.SIGSTOP)
	began := time.Now()
	n.emit(t, room, `{"event":"once"}`).wantRefusal(t, "an event", http.StatusServiceUnavailable, CodeUnavailable)
	if took := time.Since(began); took > answerWithin+late {
		t.Errorf("it is answered after %v", took)
	}
	server.signal(syscall.SIGCONT)
	eventually(t, 10*time.Second, "events again", func() bool { return n.emit(t, room, `{"event":"end"}`).status == http.StatusAccepted })
	other.mustEmit(t, room, `{"event":"last"}`) // behind what comes back to the first node
	isEnd := func(event string) bool { return event == `["end"]` }
	first, second := slices.DeleteFunc(near.emitted("last"), isEnd), slices.DeleteFunc(far.emitted("last"), isEnd)
	if !slices.Equal(first, second) || len(first) > 1 {
		t.Errorf("%q on the one, %q on the other", first, second)
	}
}

// TestDoubtfulMessagesAreBounded: what never comes back is forgotten, the oldest first.
func TestDoubtfulMessagesAreBounded(t *testing.T) {
	var own ownMessages
	for i := range 2 * maxDoubtful {
		own.begin(fmt.Sprint(i))
		own.doubt(fmt.Sprint(i))
	}
	if len(own.waiting) != maxDoubtful || len(own.doubtful) != maxDoubtful {
		t.Errorf("%d are waited for, in %d places", len(own.waiting), len(own.doubtful))
	}
	if own.take("0") || !own.take(fmt.Sprint(2*maxDoubtful-1)) || own.take(fmt.Sprint(2*maxDoubtful-1)) {
		t.Error("others than the latest are waited for")
	}
}

// FuzzEncodeMessage looks for an argument that does not arrive as it was sent, but for the precision of numbers.
func FuzzEncodeMessage(f *testing.F) {
	for _, arg := range []string{`{"b":[1,-1.5e9,"x",null,true],"a":{}}`, `"\ud800\u0000"`, `[[],[[]],{"":[{}]}]`, "01", `[1,]`, ` 1e400 `} {
		f.Add([]byte(arg))
	}
	f.Fuzz(func(t *testing.T, arg []byte) {
		message, err := encodeMessage("uid", []string{"room"}, "event", [][]byte{arg})
		if err != nil {
			return
		}
		if !json.Valid(arg) {
			t.Fatalf("%q is taken for JSON", arg)
		}
		m, err := decodeMessage(string(message))
		if err != nil || len(m.args) != 1 {
			t.Fatalf("%q cannot be read: %v", arg, err)
		}
		if sent, got := plainJSON(t, arg), plainJSON(t, m.args[0]); !bytes.Equal(sent, got) {
			t.Errorf("%q becomes %q", sent, got)
		}
	})
}

// plainJSON is a value as JavaScript reads it, with sorted keys.
func plainJSON(t *testing.T, text []byte) []byte {
	t.Helper()
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	plain, err := json.Marshal(value)
	must(t, err)
	return bytes.ReplaceAll(plain, []byte("-0"), []byte("0")) // a negative zero is zero
}
