package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const testAPIKey = "key-of-the-test"

// apiAnswer is any answer of the HTTP API.
type apiAnswer struct {
	status int
	header http.Header
	text   string

	Error, Code, Status, Cursor string
	Retryable                   bool
	Rooms                       []struct {
		RoomID       string
		Count, Users int
	}
	RoomID, UserID string
	Rev            int64
	Count, Users   int
	Online         *bool
	LastSeenMs     int64
	Members        []wireEntry
	Conns          []struct {
		wireEntry
		RoomID string
	}
}

// http sends a request with the API key. path is as it goes over the wire.
func (n *node) http(t testing.TB, method, path string) apiAnswer {
	t.Helper()
	return askHTTP(t, "127.0.0.1:"+n.port(), method, path, "Bearer "+testAPIKey)
}

func askHTTP(t testing.TB, addr, method, path, authorization string) apiAnswer {
	t.Helper()
	answer := sendHTTP(t, addr, method, path, authorization, nil)
	if answer.header.Get("Content-Type") == "application/json" {
		if err := json.Unmarshal([]byte(answer.text), &answer); err != nil {
			t.Fatalf("%s %s is answered with %q, %v", method, path, answer.text, err)
		}
	}
	return answer
}

// sendHTTP sends a request and leaves the answer's text as it is. One that looks like JSON has to say that it is.
func sendHTTP(t testing.TB, addr, method, path, authorization string, body io.Reader) apiAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if isJSON := response.Header.Get("Content-Type") == "application/json"; !isJSON && len(text) > 0 && text[0] == '{' {
		t.Fatalf("%s %s is answered with %q, which does not say that it is JSON", method, path, text)
	}
	return apiAnswer{status: response.StatusCode, header: response.Header, text: string(text)}
}

func (n *node) get(t testing.TB, path string) apiAnswer {
	t.Helper()
	answer := n.http(t, http.MethodGet, path)
	if answer.status != http.StatusOK {
		t.Fatalf("GET %s is answered with %d %s", path, answer.status, answer.text)
	}
	return answer
}

func startWithAPI(t testing.TB, b backend, settings ...string) *node {
	t.Helper()
	return startNodeFor(t, b, append(settings, "PRESENCE_API_KEY="+testAPIKey)...)
}

func TestTheAPITellsWhoIsWhere(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)
		name := "ann of " + room
		u, tab, bob := n.member(t, room, name, `{"a":[],"n":12345678901234567890}`), other.member(t, room, name, "{}"), other.member(t, room, "bob", "{}")
		second := tab.join(room+" 2", name, `{"b":1}`)

		got := n.get(t, "/v1/rooms/"+url.PathEscape(room))
		if got.RoomID != room || got.Count != 3 || got.Users != 2 || len(got.Members) != 3 || got.Cursor != "" {
			t.Errorf("the room is %s", got.text)
		}
		ack := u.ok(eventGet, inRoom(room, ""))
		if want := entryOf(t, ack, u.id); !slices.ContainsFunc(got.Members, func(e wireEntry) bool {
			return e.ConnID == u.id && e.UserID == name && string(e.State) == string(want.State) && e.Epoch == want.Epoch && e.LastSeenMs > 0
		}) {
			t.Errorf("%s is not in %s", u.id, got.text)
		}
		if got.Rev != ack.Rev {
			t.Errorf("revision %d, not %d", got.Rev, ack.Rev)
		}

		got = n.get(t, "/v1/users/"+url.PathEscape(name))
		if got.UserID != name || got.Online == nil || !*got.Online || len(got.Conns) != 3 {
			t.Fatalf("the user is %s", got.text)
		}
		if c := got.Conns[2]; c.RoomID != room+" 2" || c.ConnID != tab.id || c.Epoch != second.Self.Epoch || string(c.State) != `{"b":1}` {
			t.Errorf("the last place is %+v", c)
		}

		left := bob.ok(eventLeave, "") // of a user who is indexed no more, and of one whose index holds too much
		u.ok(eventLeave, "")
		tab.ok(eventLeave, "")
		if !left.OK || n.service.indexUser(t.Context(), Member{Room: room, User: name, Conn: u.id}, 1) != nil {
			t.Fatal("no index")
		}
		got = n.get(t, "/v1/users/"+url.PathEscape(name))
		if got.Online == nil || *got.Online || got.Conns == nil || len(got.Conns) != 0 {
			t.Errorf("the user who left is %s", got.text)
		}
	})
}

// TestAnEmptyRoomHasARevision_G2 also asks for a room whose counter is gone: its next event must be above what was told.
func TestAnEmptyRoomHasARevision_G2(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room := startWithAPI(t, b), uniqueRoom(t)
		rdb := b.open(t)
		sent := record(t, rdb, room)
		u := n.member(t, room, "ann", "{}")
		u.ok(eventLeave, "")
		all := sent.upTo(t, n.service, room)
		last := all[len(all)-1].Rev
		for range 2 {
			got := n.get(t, "/v1/rooms/"+url.PathEscape(room))
			if got.Rev < last || got.Count != 0 || got.Users != 0 || got.Members == nil || len(got.Members) != 0 {
				t.Errorf("after event %d the room is %s", last, got.text)
			}
			if rdb.Del(t.Context(), keysOf(room).revision()).Err() != nil {
				t.Fatal("the counter cannot be deleted")
			}
			last = got.Rev // which may be a few ms ahead of the clock; the counter is kept for an hour
			eventually(t, 5*time.Second, "the clock is past the counter", func() bool { return rdb.Time(t.Context()).Val().UnixMilli() >= last })
		}
		if ack := u.join(room, "ann", "{}"); ack.Self.Epoch <= last {
			t.Errorf("event %d after %d", ack.Self.Epoch, last)
		}
	})
}

func TestIdsInPathsAreAnyUnicode(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	for _, id := range []string{"a/b", "/", "//", "a//b", "..", ".", "../..", "ü €", "日本語", "😀", "a b+c", "100%", "%2F", "a?b#c", "{roomId}", "}{", `"\`, "rooms", ";=&"} {
		u := n.member(t, id, id, "{}")
		path := percent(id)
		if got := n.get(t, "/v1/rooms/"+path); got.RoomID != id || got.Count != 1 {
			t.Errorf("room %q is %s", id, got.text)
		}
		if got := n.get(t, "/v1/users/"+path); got.UserID != id || len(got.Conns) != 1 || got.Conns[0].RoomID != id {
			t.Errorf("user %q is %s", id, got.text)
		}
		if got := n.get(t, "/v1/rooms/"+url.PathEscape(id)); got.RoomID != id || got.Count != 1 {
			t.Errorf("room %q, escaped where it has to be, is %s", id, got.text)
		}
		u.ok(eventLeave, "")
	}
}

// percent encodes every byte of an id, dots included.
func percent(id string) string {
	var b strings.Builder
	for _, c := range []byte(id) {
		fmt.Fprintf(&b, "%%%02x", c)
	}
	return b.String()
}

// TestPagesOfRoomsHoldEveryRoom has rooms come and go between the pages, and entries of the index that are no rooms.
func TestPagesOfRoomsHoldEveryRoom(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		n, prefix := startWithAPI(t, b), uniqueRoom(t)
		const rooms, limit = 60, 7
		var want []string
		for i := range rooms {
			room := fmt.Sprintf("%s %03d/é", prefix, i)
			mustJoin(t, n.service, room, "ann", "c1", "{}")
			if i%3 == 0 {
				mustJoin(t, n.service, room, "ann", "c2", "{}")
			}
			want = append(want, room)
			if err := n.service.indexRoom(t.Context(), room+" stale", time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		cursor := base64.RawURLEncoding.EncodeToString([]byte(prefix)) // the shared server has the rooms of other tests
		for page := 0; cursor != ""; page++ {
			answer := n.get(t, fmt.Sprintf("/v1/rooms?limit=%d&cursor=%s", limit, cursor))
			if len(answer.Rooms) > limit {
				t.Fatalf("%d rooms in a page", len(answer.Rooms))
			}
			for _, r := range answer.Rooms {
				if !strings.HasPrefix(r.RoomID, prefix+" ") || strings.HasSuffix(r.RoomID, "come") {
					continue
				}
				got = append(got, r.RoomID)
				if conns := 1 + b2i(len(got)%3 == 1); r.Count != conns || r.Users != 1 {
					t.Errorf("%+v has %d connections of 1 user", r, conns)
				}
			}
			mustJoin(t, n.service, fmt.Sprintf("%s %03d come", prefix, page), "ann", "c1", "{}")
			if page > 0 {
				mustLeave(t, n.service, fmt.Sprintf("%s %03d come", prefix, page-1), "c1")
			}
			cursor = answer.Cursor
		}
		if !slices.Equal(got, want) {
			t.Errorf("the pages hold %d rooms %q, want %d", len(got), got, rooms)
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestPagesOfARoomHoldEveryMember(t *testing.T) {
	n, room := startWithAPI(t, miniRedis(t)), uniqueRoom(t)
	want := map[string]bool{}
	for i := range 25 {
		want[fmt.Sprintf("c%d", i)] = true
		mustJoin(t, n.service, room, "ann", fmt.Sprintf("c%d", i), "{}")
	}
	for path := "/v1/rooms/" + url.PathEscape(room) + "?limit=10"; ; {
		answer := n.get(t, path)
		for _, e := range answer.Members {
			if !want[e.ConnID] {
				t.Errorf("%s comes twice or was never there", e.ConnID)
			}
			delete(want, e.ConnID)
		}
		if answer.Count != 25 || len(answer.Members) > 10 {
			t.Errorf("a page is %s", answer.text)
		}
		if answer.Cursor == "" {
			break
		}
		path = "/v1/rooms/" + url.PathEscape(room) + "?limit=10&cursor=" + answer.Cursor
	}
	if len(want) > 0 {
		t.Errorf("never told: %v", want)
	}
}

func TestWhoMayAskTheAPI(t *testing.T) {
	b := miniRedis(t)
	with, without := startWithAPI(t, b), startNodeFor(t, b)
	for _, tc := range []struct {
		n      *node
		header string
		status int
	}{
		{with, "Bearer " + testAPIKey, http.StatusOK},
		{with, "bearer " + testAPIKey, http.StatusOK},
		{with, "", http.StatusUnauthorized},
		{with, "Bearer", http.StatusUnauthorized},
		{with, "Bearer ", http.StatusUnauthorized},
		{with, "Bearer another", http.StatusUnauthorized},
		{with, "Bearer " + testAPIKey + "x", http.StatusUnauthorized},
		{with, "Bearer " + testAPIKey[1:], http.StatusUnauthorized},
		{with, "Basic " + testAPIKey, http.StatusUnauthorized},
		{with, testAPIKey, http.StatusUnauthorized},
		{without, "Bearer " + testAPIKey, http.StatusNotFound},
		{without, "Bearer ", http.StatusNotFound},
		{without, "", http.StatusNotFound},
	} {
		for _, path := range []string{"/v1/rooms", "/v1/rooms/a", "/v1/users/a"} {
			got := askHTTP(t, "127.0.0.1:"+tc.n.port(), http.MethodGet, path, tc.header)
			if got.status != tc.status {
				t.Errorf("%s with %q: %d, want %d", path, tc.header, got.status, tc.status)
			}
			if wanted := got.header.Get("WWW-Authenticate") != ""; wanted != (tc.status == http.StatusUnauthorized) {
				t.Errorf("%s with %q: header %q", path, tc.header, got.header)
			}
			if got.status != http.StatusOK && (got.Error == "" || got.Code == "") {
				t.Errorf("%s with %q: %s", path, tc.header, got.text)
			}
		}
	}
}

func TestMistakesInRequestsToTheAPI(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	for _, tc := range []struct {
		method, path string
		status       int
		code         Code
	}{
		{"GET", "/v1/rooms?limit=0", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms?limit=-1", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms?limit=ten", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms?cursor=*", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms/a?limit=1.5", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms/a?cursor=AAAA", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms/%ff", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms/a%00b", 400, CodeInvalidPayload},
		{"GET", "/v1/rooms/" + strings.Repeat("x", 201), 400, CodeInvalidPayload},
		{"GET", "/v1/users/%c2%9f", 400, CodeInvalidPayload},
		{"GET", "/v1/users/" + strings.Repeat("%c3%a9", 101), 400, CodeInvalidPayload},
		{"GET", "/v1/rooms/", 404, httpNotFound},
		{"GET", "/v1/", 404, httpNotFound},
		{"GET", "/v1/rooms/a/conns", 404, httpNotFound},
		{"GET", "/v1/elsewhere", 404, httpNotFound},
		{"POST", "/v1/rooms", 405, httpMethodNotAllowed},
		{"GET", "/v1/users", 405, httpMethodNotAllowed},
		{"PUT", "/v1/users/a", 405, httpMethodNotAllowed},
		{"POST", "/readyz", 405, httpMethodNotAllowed},
	} {
		got := n.http(t, tc.method, tc.path)
		if got.status != tc.status || got.Code != string(tc.code) || got.Error == "" {
			t.Errorf("%s %s is answered with %d %s, want %d %s", tc.method, short80(tc.path), got.status, got.text, tc.status, tc.code)
		}
	}
	if got := n.get(t, "/v1/rooms?limit=5000&cursor="); got.Rooms == nil {
		t.Errorf("a limit that is too large is answered with %s", got.text)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	server := spawnRedis(t)
	n := startWithAPI(t, backend{url: server.url})
	ready := func(status int, code Code) {
		t.Helper()
		start := time.Now()
		got := n.http(t, http.MethodGet, "/readyz")
		if got.status != status || got.Code != string(code) || status != http.StatusOK && got.Error == "" {
			t.Errorf("/readyz is answered with %d %s, want %d", got.status, got.text, status)
		}
		if took := time.Since(start); took > readyWithin+late {
			t.Errorf("/readyz took %v", took)
		}
		if got := n.get(t, "/healthz"); got.Status != "ok" {
			t.Errorf("/healthz is answered with %s", got.text)
		}
	}
	ready(http.StatusOK, "")
	server.signal(syscall.SIGSTOP)
	for range 3 {
		ready(http.StatusServiceUnavailable, CodeUnavailable)
	}
	if got := n.http(t, http.MethodGet, "/v1/rooms/a"); got.status != http.StatusServiceUnavailable || !got.Retryable {
		t.Errorf("a room is answered with %d %s", got.status, got.text)
	}
	server.signal(syscall.SIGCONT)
	eventually(t, 5*time.Second, "ready again", func() bool { return n.http(t, http.MethodGet, "/readyz").status == http.StatusOK })
	server.stop()
	ready(http.StatusServiceUnavailable, CodeUnavailable)
	if err := server.start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "ready again", func() bool { return n.http(t, http.MethodGet, "/readyz").status == http.StatusOK })
	n.retiring.Store(true)
	ready(http.StatusServiceUnavailable, CodeShuttingDown)
}

// TestReadinessOfAClusterThatIsDown: the servers answer PING, and can do nothing else.
func TestReadinessOfAClusterThatIsDown(t *testing.T) {
	p := spawnRedis(t, "--cluster-enabled", "yes", "--cluster-require-full-coverage", "yes")
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{p.addr}, MaxRetries: -1, DisableRoutingPolicies: true})
	t.Cleanup(func() { _ = rdb.Close() })
	n := startNodeOn(t, rdb)
	if got := n.http(t, http.MethodGet, "/readyz"); got.status != http.StatusServiceUnavailable {
		t.Errorf("/readyz is answered with %d %s", got.status, got.text)
	}
}

// TestEveryErrorIsAnAnswer: no error leaves the status 200.
func TestEveryErrorIsAnAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		status int
		code   Code
	}{
		"one of ours":         {notJoined(), http.StatusNotFound, CodeNotJoined},
		"one of ours, inside": {fmt.Errorf("kick: %w", notJoined()), http.StatusNotFound, CodeNotJoined},
		"any other":           {io.ErrUnexpectedEOF, http.StatusServiceUnavailable, CodeUnavailable},
		"a deadline":          {context.DeadlineExceeded, http.StatusServiceUnavailable, CodeUnavailable},
	} {
		out := httptest.NewRecorder()
		w := &web{log: testLogger(t)}
		w.answer(route{http.MethodGet, "/any", func(context.Context, *http.Request) ([]byte, error) { return nil, tc.err }}, out, httptest.NewRequest(http.MethodGet, "/any", nil))
		if code := `"code":"` + string(tc.code) + `"`; out.Code != tc.status || !strings.Contains(out.Body.String(), code) {
			t.Errorf("%s is answered with %d %s", name, out.Code, out.Body)
		}
	}
}
