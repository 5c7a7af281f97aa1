package main

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisRefusal makes a server refuse new connections of the user app, whose password is "old", and takes that back.
type redisRefusal struct {
	name       string
	path       string // of the URL
	do, undo   []string
	singleOnly bool // a cluster has one database
	anybody    bool // the node has no login
}

var redisRefusals = []redisRefusal{
	{name: "another password", do: []string{"ACL SETUSER app resetpass >new"}, undo: []string{"ACL SETUSER app >old"}},
	{name: "switched off", do: []string{"ACL SETUSER app off"}, undo: []string{"ACL SETUSER app on"}},
	{name: "select refused", path: "/1", do: []string{"ACL SETUSER app -select"}, undo: []string{"ACL SETUSER app +select"}, singleOnly: true},
	{name: "every command refused", do: []string{"ACL SETUSER app -@all"}, undo: []string{"ACL SETUSER app +@all"}},
	{name: "a password wanted", do: []string{"CONFIG SET requirepass hush"}, undo: []string{"CONFIG SET requirepass "}, anybody: true},
	{name: "too many clients", do: []string{"CONFIG SET maxclients 1"}, undo: []string{"CONFIG SET maxclients 10000"}, singleOnly: true},
	{name: "scripts refused", do: []string{"ACL SETUSER app -evalsha -eval -hget -zscan -exists"}, undo: []string{"ACL SETUSER app +@all"}},
}

// appServers are one server, or the masters of a cluster, with a user app.
type appServers struct {
	t     *testing.T
	nodes []*redisProcess
	url   string
	admin []*redis.Client
}

func startAppServers(t *testing.T, cluster bool) *appServers {
	t.Helper()
	s := &appServers{t: t}
	if cluster {
		needRedis(t)
		c, err := startCluster()
		must(t, err)
		t.Cleanup(c.remove)
		s.nodes = c.nodes
	} else {
		s.nodes = []*redisProcess{spawnRedis(t)}
	}
	s.url = strings.Replace(s.nodes[0].url, "redis://", "redis://app:old@", 1)
	for _, node := range s.nodes {
		admin := redis.NewClient(&redis.Options{Addr: node.addr})
		t.Cleanup(func() { _ = admin.Close() })
		s.admin = append(s.admin, admin)
	}
	s.tell("ACL SETUSER app on >old ~* &* +@all")
	return s
}

// tell sends commands to every server.
func (s *appServers) tell(commands ...string) {
	s.t.Helper()
	for _, admin := range s.admin {
		for _, command := range commands {
			var words []any
			for word := range strings.SplitSeq(command, " ") {
				words = append(words, word)
			}
			must(s.t, admin.Do(context.Background(), words...).Err()) // also in a clean-up
		}
	}
}

// refuse also ends the connections of the user app. The test's end takes the refusal back.
func (s *appServers) refuse(r redisRefusal) {
	s.t.Helper()
	s.t.Cleanup(func() { s.tell(r.undo...) })
	s.tell(r.do...)
	s.tell("CLIENT KILL TYPE normal", "CLIENT KILL TYPE pubsub") // not the one that says so
}

// eachRefusal runs the test with every refusal on a server and on a cluster, each with servers of its own.
func eachRefusal(t *testing.T, body func(t *testing.T, s *appServers, r redisRefusal)) {
	for kind, cluster := range map[string]bool{"redis": false, "cluster": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := startAppServers(t, cluster)
			for _, r := range redisRefusals {
				if cluster && r.singleOnly {
					continue
				}
				url := s.url + r.path
				if r.anybody {
					url = s.nodes[0].url
				}
				t.Run(r.name, func(t *testing.T) { body(t, &appServers{t, s.nodes, url, s.admin}, r) })
			}
		})
	}
}

// TestACommandWithoutAnAnswerHasAnError in every way in which commands are sent.
func TestACommandWithoutAnAnswerHasAnError(t *testing.T) {
	t.Parallel()
	eachRefusal(t, func(t *testing.T, s *appServers, r redisRefusal) {
		rdb, err := openRedis(t.Context(), s.url, redisLogin{})
		must(t, err)
		defer rdb.Close()
		s.refuse(r)
		for name, cmds := range map[string]func() []redis.Cmder{
			"plain": func() []redis.Cmder {
				return []redis.Cmder{rdb.Exists(t.Context(), "{a}1"), rdb.EvalSha(t.Context(), "none", []string{"{a}1"})}
			},
			"pipeline": func() []redis.Cmder {
				list, _ := rdb.Pipelined(t.Context(), someCommands)
				return list
			},
			"transaction": func() []redis.Cmder {
				list, _ := rdb.TxPipelined(t.Context(), someCommands)
				return list
			},
			"pipeline of a master": func() []redis.Cmder {
				list, _ := masterOfKey(t, rdb).Pipelined(t.Context(), someCommands)
				return list
			},
			"transaction of a master": func() []redis.Cmder {
				list, _ := masterOfKey(t, rdb).TxPipelined(t.Context(), someCommands)
				return list
			},
		} {
			for i, cmd := range cmds() {
				if cmd.Err() == nil {
					t.Errorf("%s: command %d has no error: %v", name, i, cmd)
				}
			}
		}
	})
}

func someCommands(pipe redis.Pipeliner) error {
	ctx := context.Background()
	pipe.Exists(ctx, "{a}1")
	pipe.EvalSha(ctx, "none", []string{"{a}2"})
	pipe.HGet(ctx, "{a}3", "field")
	return nil
}

func masterOfKey(t *testing.T, rdb redis.UniversalClient) *redis.Client {
	t.Helper()
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		return rdb.(*redis.Client)
	}
	master, err := cluster.MasterForKey(t.Context(), "{a}")
	must(t, err)
	return master
}

// TestWhileRedisRefusesNobodyIsToldOfAnAnswer_G7: requests are unavailable, and all that happened meanwhile is made good.
func TestWhileRedisRefusesNobodyIsToldOfAnAnswer_G7(t *testing.T) {
	takesLong(t)
	t.Parallel()
	eachRefusal(t, func(t *testing.T, s *appServers, r redisRefusal) {
		n := startWithAPI(t, backend{url: s.url})
		room := uniqueRoom(t)
		witness, leaves, closes, stays := n.member(t, room, "witness", "{}"), n.member(t, room, "leaves", "{}"), n.member(t, room, "closes", "{}"), n.member(t, room, "stays", "{}")
		requests := []struct{ event, payload string }{
			{eventHeartbeat, "{}"},
			{eventHeartbeat, `{"patchState":{"a":1}}`},
			{eventJoin, joinPayloadOf(room+"2", "ann", "{}")},
			{eventGet, inRoom(room+"3", "")},
			{eventWatch, `{"userIds":["leaves"]}`},
		}
		var others []*user
		for range requests {
			others = append(others, n.member(t, room, "ann", "{}"))
		}
		s.refuse(r)
		var asked sync.WaitGroup
		asked.Go(func() { leaves.unavailableInTime(eventLeave, "") })
		for i, r := range requests {
			asked.Go(func() { others[i].unavailableInTime(r.event, r.payload) })
		}
		closes.send("41")
		closes.closed()
		for path, method := range map[string]string{
			"/v1/users/stays": http.MethodGet, "/v1/rooms/another": http.MethodGet, "/v1/rooms": http.MethodGet, "/readyz": http.MethodGet,
			"/v1/rooms/another/conns/a": http.MethodDelete,
		} {
			asked.Go(func() {
				if answer := n.http(t, method, path); answer.status != http.StatusServiceUnavailable || answer.Code != string(CodeUnavailable) {
					t.Errorf("%s %s is answered with %d %s", method, path, answer.status, answer.text)
				}
			})
		}
		asked.Wait()
		s.tell(r.undo...)
		// A node that was not subscribed yet finds the difference, and no reason in it.
		if e := witness.sees(EventLeave, leaves.id); e.Reason != string(ReasonLeft) && e.Reason != "" {
			t.Errorf("who left did so with %q", e.Reason)
		}
		if e := witness.sees(EventLeave, closes.id); e.Reason != string(ReasonDisconnected) && e.Reason != "" {
			t.Errorf("who disconnected left with %q", e.Reason)
		}
		eventually(t, 5*time.Second, "a heartbeat works", func() bool { return stays.call(eventHeartbeat, "{}").OK })
		if got := n.get(t, "/v1/users/stays"); got.Online == nil || !*got.Online {
			t.Errorf("the user who stays is %s", got.text)
		}
		assertAgree(t, n.service, room)
	})
}

// TestWhatRedisRefusedToTellIsFound_G3 has Redis refuse the message of a change that it has made. Nobody who sends heartbeats is on the node of
// those who watch.
func TestWhatRedisRefusedToTellIsFound_G3(t *testing.T) {
	t.Parallel()
	for name, rules := range map[string][2]string{"the command": {"-publish", "+publish"}, "the channel": {"resetchannels", "allchannels"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startAppServers(t, false)
			far, near := startNodeFor(t, backend{url: s.url}), startNodeFor(t, backend{url: s.url})
			room := uniqueRoom(t)
			far.member(t, room, "stays", "{}")
			leaves, watcher := far.member(t, room, "leaves", "{}"), near.user(t)
			watcher.ok(eventWatch, inRoom(room, ""))
			s.tell("ACL SETUSER app " + rules[0])
			leaves.unavailableInTime(eventLeave, "")
			s.tell("ACL SETUSER app " + rules[1])
			watcher.sees(EventLeave, leaves.id)
		})
	}
}

// TestANodeIsNotReadyWhileRedisRefusesWrites, and is soon afterwards.
func TestANodeIsNotReadyWhileRedisRefusesWrites(t *testing.T) {
	for name, state := range refusalsOfRedis() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := spawnRedis(t)
			if state.prepare != nil {
				state.prepare(t, p)
			}
			admin := redis.NewClient(&redis.Options{Addr: p.addr})
			t.Cleanup(func() { _ = admin.Close() })
			n := startNodeFor(t, backend{url: asUser("presence", p.url)})
			ready := func(status int) func() bool {
				return func() bool { return n.http(t, http.MethodGet, "/readyz").status == status }
			}
			eventually(t, 5*time.Second, "ready", ready(http.StatusOK))
			for _, command := range state.begin {
				must(t, admin.Do(t.Context(), command...).Err())
			}
			eventually(t, 5*time.Second, "not ready", ready(http.StatusServiceUnavailable))
			for _, command := range state.end {
				must(t, admin.Do(t.Context(), command...).Err())
			}
			eventually(t, 5*time.Second, "ready again", ready(http.StatusOK))
		})
	}
}
