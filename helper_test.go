package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestTheClientHelperByItself runs its tests against a socket that is none.
func TestTheClientHelperByItself(t *testing.T) {
	takesLong(t)
	t.Parallel()
	needNode(t)
	out, err := exec.CommandContext(t.Context(), "node", filepath.Join("testdata", "node", "presence.test.mjs")).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// helperSite is two nodes and a Redis that tests may hurt, and sockets that are in rooms by the client helper.
type helperSite struct {
	*realClients
	redis  *redisProcess
	binary string
	ports  []string
	nodes  []*program

	settings []string // beside the usual ones
}

func startHelperSite(t *testing.T, script *nodeProcess, settings ...string) *helperSite {
	t.Helper()
	s := &helperSite{
		settings:    settings,
		realClients: &realClients{nodeProcess: script, told: map[string][]clientNews{}},
		redis:       spawnRedis(t), binary: buildBinary(t), ports: []string{freePort(), freePort()}, nodes: make([]*program, 2),
	}
	s.start(0)
	s.start(1)
	return s
}

func (s *helperSite) start(i int) {
	s.t.Helper()
	s.nodes[i] = startProcess(s.t, s.binary, append([]string{"PORT=" + s.ports[i], "REDIS_URL=" + s.redis.url, "PRESENCE_TTL_MS=1500",
		"PRESENCE_REAPER_INTERVAL_MS=100", "PRESENCE_NODE_LEASE_MS=1500", "PRESENCE_DRAIN_MS=0"}, s.settings...)...)
	s.nodes[i].address()
}

// kill ends a node, and waits until its port is free again.
func (s *helperSite) kill(i int) {
	s.t.Helper()
	s.nodes[i].signal(syscall.SIGKILL)
	s.nodes[i].wait(15 * time.Second)
}

func (s *helperSite) url(i int) string { return "http://127.0.0.1:" + s.ports[i] }

// join has a client join a room, and waits until it is in.
func (s *helperSite) join(client, room string) {
	s.t.Helper()
	s.do(client, "join", command{"room": room, "state": command{"n": 0}})
	s.await(client, "joined")
}

func (s *helperSite) patch(client, room string, n int) {
	s.t.Helper()
	s.do(client, "patch", command{"room": room, "patch": command{"n": n}})
}

// helperView is the view of one room.
type helperView struct {
	Status, ConnID string
	Rev            int64
	Count          int
	Loading        bool
	Members        []wireEntry
}

func (s *helperSite) view(client, room string) (v helperView) {
	s.t.Helper()
	s.do(client, "view", command{"room": room})
	if err := json.Unmarshal(s.await(client, "view")[0], &v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// stored is the room as a node reads it from Redis, "" if it cannot.
func (s *helperSite) stored(room string) string {
	u := dialUser(s.t, "127.0.0.1:"+s.ports[1])
	defer u.conn.Close()
	ack := u.call(eventGet, fmt.Sprintf(`{"roomId":%q}`, room))
	if !ack.OK {
		return ""
	}
	return membersText(ack.Snapshot)
}

// membersText is "user conn epoch state" of each member, in order.
func membersText(members []wireEntry) string {
	var lines []string
	for _, m := range members {
		lines = append(lines, fmt.Sprint(m.UserID, " ", m.ConnID, " ", m.Epoch, " ", string(m.State)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// converges waits until the clients' views of a room are what Redis has, all of them are in it, and there are exactly these
// members: "user n" in order (G3).
func (s *helperSite) converges(room string, want ...string) {
	s.t.Helper()
	var last string
	converged := func() bool {
		stored := s.stored(room)
		last = "in Redis:\n" + stored
		same := true
		for _, w := range want {
			client, _, _ := strings.Cut(w, " ")
			v := s.view(client, room)
			var members []string
			for _, m := range v.Members {
				var state struct{ N int }
				_ = json.Unmarshal(m.State, &state) // 0 is wrong as well
				members = append(members, fmt.Sprint(m.UserID, " ", state.N))
			}
			slices.Sort(members)
			last += fmt.Sprintf("\n%s (%s):\n%s", client, v.Status, membersText(v.Members))
			same = same && v.Status == "joined" && membersText(v.Members) == stored && slices.Equal(members, want)
		}
		return same
	}
	if !poll(20*time.Second, converged) {
		s.t.Fatalf("want %q, got %s", want, last)
	}
}

func (s *helperSite) signal(what os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(what); err != nil {
		s.t.Fatal(err)
	}
}

// assertNothingWrong wants every event to have been borne out by the view.
func (s *helperSite) assertNothingWrong() {
	s.t.Helper()
	for client, told := range s.told {
		for _, news := range told {
			if news.what == "wrong" {
				s.t.Errorf("%s: %s", client, news.rest)
			}
		}
	}
}

// TestTheClientHelperStaysInItsRooms: it loses its connection, its node, Redis and its time, and comes back each time with
// what was patched meanwhile; views end as the room is (G3, G8).
func TestTheClientHelperStaysInItsRooms_G3_G8(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s := startHelperSite(t, nodeScript(t, "rooms.mjs"))
	room, other := uniqueRoom(t), uniqueRoom(t)
	s.do("ann", "open", command{"url": s.url(0)})
	s.do("bob", "open", command{"url": s.url(1)})
	s.join("ann", room)
	s.join("ann", other)
	s.join("bob", room)
	s.patch("ann", room, 1)
	s.patch("bob", room, 1)
	s.converges(room, "ann 1", "bob 1")
	s.converges(other, "ann 0")

	before := s.view("ann", room).ConnID
	s.do("ann", "cut", command{"room": room, "patch": command{"n": 2}})
	s.converges(room, "ann 2", "bob 1")
	s.converges(other, "ann 0")
	if after := s.view("ann", room).ConnID; after == before {
		t.Error("it still goes by its old connection")
	}

	s.kill(0)
	s.await("ann", "offline")
	s.patch("ann", room, 3)
	s.start(0)
	s.converges(room, "ann 3", "bob 1")
	s.converges(other, "ann 0")

	s.redis.stop()
	s.patch("ann", room, 4)
	s.await("ann", "error")
	s.patch("bob", room, 4)
	if err := s.redis.start(); err != nil {
		t.Fatal(err)
	}
	s.converges(room, "ann 4", "bob 4")
	s.converges(other, "ann 0")

	s.signal(syscall.SIGSTOP)
	eventually(t, 20*time.Second, "sleepers leave", func() bool { return s.stored(room) == "" && s.stored(other) == "" })
	s.signal(syscall.SIGCONT)
	s.converges(room, "ann 4", "bob 4")
	s.converges(other, "ann 0")

	s.do("ann", "leave", command{"room": room})
	s.await("ann", "gone")
	s.converges(room, "bob 4")
	s.converges(other, "ann 0")
	s.assertNothingWrong()

	s.do("ann", "leave", command{"room": other})
	s.do("bob", "leave", command{"room": room})
	s.await("ann", "gone")
	s.await("bob", "gone")
	s.do("ann", "close", nil)
	s.do("bob", "close", nil)
	if err := s.in.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "no timer keeps it alive", func() bool {
		select {
		case _, more := <-s.lines:
			return !more
		default:
			return false
		}
	})
}

// sees waits until the view of each of these clients has all that Redis has: so many members.
func (s *helperSite) sees(room string, members int, clients ...string) {
	s.t.Helper()
	var last string
	same := func() bool {
		stored := s.stored(room)
		last = "in Redis:\n" + stored
		if stored == "" || strings.Count(stored, "\n")+1 != members {
			return false
		}
		for _, client := range clients {
			v := s.view(client, room)
			if v.Status != "joined" || v.Loading || v.Count != members || membersText(v.Members) != stored {
				last += fmt.Sprintf("\n%s (%s, %d, %v):\n%s", client, v.Status, v.Count, v.Loading, membersText(v.Members))
				return false
			}
		}
		return true
	}
	if !poll(20*time.Second, same) {
		s.t.Fatalf("want %d members, got %s", members, last)
	}
}

// knows waits until a client knows of just these users whether they are online.
func (s *helperSite) knows(client string, want map[string]bool) {
	s.t.Helper()
	var online map[string]bool
	if !poll(20*time.Second, func() bool {
		s.do(client, "online", nil)
		online = nil
		if err := json.Unmarshal(s.await(client, "online")[0], &online); err != nil {
			s.t.Fatal(err)
		}
		return maps.Equal(online, want)
	}) {
		s.t.Fatalf("%s knows %v, want %v", client, online, want)
	}
}

// TestTheClientHelperFoldsAndWatches: in batches and page by page, as a member and as a watcher, while members of two nodes
// change, the view ends as the room is (G3); users are seen wherever they are. A lost connection and a killed node make no
// difference.
func TestTheClientHelperFoldsAndWatches_G3(t *testing.T) {
	t.Parallel()
	s := startHelperSite(t, nodeScript(t, "rooms.mjs"))
	room, other := uniqueRoom(t), uniqueRoom(t)
	crowd := make([]string, 10)
	for i := range crowd {
		crowd[i] = fmt.Sprint("user", i)
		s.do(crowd[i], "open", command{"url": s.url(i % 2)})
		s.join(crowd[i], room)
	}
	for i, client := range []string{"eye", "bob", "sum"} {
		s.do(client, "open", command{"url": s.url(i % 2)})
	}
	s.do("eye", "watch", command{"room": room, "wish": command{"events": "batch", "limit": 2}})
	s.do("bob", "join", command{"room": room, "wish": command{"events": "batch", "limit": 1}})
	s.do("sum", "watch", command{"room": room, "wish": command{"events": "count"}})
	s.do("eye", "watchUsers", command{"users": []string{"user0", "user1", "nobody"}})
	for n := range 5 { // while pages are loaded
		for _, client := range crowd {
			s.patch(client, room, n)
		}
	}
	s.do("user0", "leave", command{"room": room})
	s.do("user2", "cut", command{"room": room, "patch": command{"n": 9}})
	s.sees(room, 10, "eye", "bob", "user1")
	s.knows("eye", map[string]bool{"user0": false, "user1": true, "nobody": false})

	s.do("eye", "cut", nil)
	s.do("user1", "leave", command{"room": room})
	s.join("user0", other)
	s.sees(room, 9, "eye", "bob")
	s.knows("eye", map[string]bool{"user0": true, "user1": false, "nobody": false})

	s.kill(0)
	s.join("user1", other)
	s.start(0)
	s.sees(room, 9, "eye", "bob")
	s.knows("eye", map[string]bool{"user0": true, "user1": true, "nobody": false})
	eventually(t, 20*time.Second, "the numbers are right", func() bool { return s.view("sum", room).Count == 9 })
	s.do("eye", "stop", command{"room": room})
	s.await("eye", "gone")
	s.assertNothingWrong()
}

// TestNoStateBreaksAConnection: each state that cannot be sent is one error. Nobody sees the member leave, or come back; its other
// rooms and its heartbeats go on.
func TestNoStateBreaksAConnection(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s := startHelperSite(t, nodeScript(t, "rooms.mjs"))
	room, other := uniqueRoom(t), uniqueRoom(t)
	s.do("ann", "open", command{"url": s.url(0)})
	s.do("bob", "open", command{"url": s.url(1)})
	s.join("ann", room)
	s.join("ann", other)
	s.join("bob", room)
	before := s.view("ann", room).ConnID
	s.do("ann", "patchUnsendable", command{"room": room})
	var codes map[string]string
	if err := json.Unmarshal(s.await("ann", "refused")[0], &codes); err != nil {
		t.Fatal(err)
	}
	for name, code := range codes {
		want := CodeInvalidPayload
		if strings.Contains(name, "large") || strings.Contains(name, "limit") {
			want = CodeStateTooLarge
		}
		if code != string(want) {
			t.Errorf("%s: %s, want %s", name, code, want)
		}
	}
	s.patch("ann", room, 1)
	s.converges(room, "ann 1", "bob 0")
	s.converges(other, "ann 0")
	s.do("ann", "joinUnsendable", nil)
	for range codes {
		s.await("ann", "joined")
	}
	for name := range codes {
		s.converges(name, "ann 0")
	}
	if after := s.view("ann", room).ConnID; after != before {
		t.Error("the connection is another one")
	}
	s.assertNothingWrong()
}

// TestATokenThatRanOutWhileOffline: the client helper says so, and comes back with the token that it is given then.
func TestATokenThatRanOutWhileOffline(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s, room := startHelperSite(t, nodeScript(t, "rooms.mjs"), "PRESENCE_JWT_SECRET="+testSecret), uniqueRoom(t)
	token := func(more jwt.MapClaims) { s.do("ann", "token", command{"token": hs256.token(more)}) }
	token(nil)
	s.do("ann", "open", command{"url": s.url(0)})
	s.join("ann", room)
	s.kill(0)
	s.await("ann", "offline")
	token(jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()})
	s.start(0)
	s.await("ann", "expired")
	if told := s.await("ann", "error"); string(told[1]) != quoted(string(CodeUnauthorized)) {
		t.Errorf("the error is %s", told[1])
	}
	token(nil)
	s.await("ann", "joined")
}
