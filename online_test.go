package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// wireUser is a presence:user, or an entry of the answer to a watch of users, as the protocol describes it.
type wireUser struct {
	UserID string
	Online bool
	TS     int64

	LastSeenMs int64
}

// watching is a client that watches users.
type watching struct {
	*user
	told []wireUser
}

// watchUsers has a new client of the node watch users, and gives who of them is online.
func (n *node) watchUsers(t testing.TB, users ...string) (w *watching, online []string) {
	t.Helper()
	return watchUsersAt(t, "127.0.0.1:"+n.port(), users...)
}

func watchUsersAt(t testing.TB, addr string, users ...string) (w *watching, online []string) {
	t.Helper()
	w = &watching{user: dialUser(t, addr)}
	payload, _ := json.Marshal(map[string]any{"userIds": users})
	id := w.ask(eventWatch, string(payload))
	var ack struct {
		OK    bool
		Users []wireUser
	}
	packet := w.text()
	text, ok := strings.CutPrefix(packet, "43"+id+"[")
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "]")), &ack); err != nil || !ok || !ack.OK || len(ack.Users) != len(users) {
		t.Fatalf("the answer is %s", packet)
	}
	for i, u := range ack.Users {
		if u.UserID != users[i] {
			t.Errorf("user %d of the answer is %q", i, u.UserID)
		}
		if u.Online {
			online = append(online, u.UserID)
		}
	}
	return w, online
}

// hears reads until the client has been told that about the user.
func (w *watching) hears(user string, online bool) {
	w.t.Helper()
	for {
		for _, u := range w.told {
			if u.UserID == user && u.Online == online {
				return
			}
		}
		op, packet, err := w.next()
		if err != nil {
			w.t.Fatalf("not told that %s is online: %v; got %+v", user, err, w.told)
		}
		if op == ws.OpText && packet != "2" {
			w.keepUser(packet)
		}
	}
}

func (w *watching) keepUser(packet string) {
	w.t.Helper()
	var u wireUser
	text, ok := strings.CutPrefix(packet, `42["presence:user",`)
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "]")), &u); err != nil || !ok || u.TS == 0 {
		w.t.Fatalf("unexpected packet %q", packet)
	}
	w.told = append(w.told, u)
}

// wantTold checks all that the client was told about a user.
func (w *watching) wantTold(user string, want ...bool) {
	w.t.Helper()
	var got []bool
	for _, u := range w.told {
		if u.UserID == user {
			got = append(got, u.Online)
		}
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("told of %s: %v, want %v", user, got, want)
	}
}

func TestWatchingUsersAcrossRoomsAndNodes(t *testing.T) {
	takesLong(t)
	t.Parallel()
	eachWire(t, func(t *testing.T, w wire) {
		settings := []string{fmt.Sprintf("PRESENCE_SHARDED_PUBSUB=%t", w.sharded)}
		near, far, room := startNodeFor(t, w.backend, settings...), startNodeFor(t, w.backend, settings...), uniqueRoom(t)
		ann, bob, mark := room+"ann", room+"{bob}", room+"mark"
		there := far.member(t, room, ann, "{}")
		u, online := near.watchUsers(t, ann, bob, mark)
		if !slices.Equal(online, []string{ann}) {
			t.Errorf("online are %v", online)
		}
		first := far.member(t, room+"2", bob, "{}")
		u.hears(bob, true)
		tabs := []*user{first}
		for i := range 10 {
			tabs = append(tabs, []*node{near, far}[i%2].member(t, fmt.Sprint(room, i), bob, "{}"))
		}
		for _, tab := range tabs[:10] {
			tab.ok(eventLeave, "")
		}
		last := near.member(t, room, mark, "{}") // whatever the tabs told has been looked at when this is told
		u.hears(mark, true)
		u.wantTold(bob, true)
		left := time.Now()
		tabs[10].ok(eventLeave, "")
		u.hears(bob, false)
		t.Logf("told %v after the last connection left", time.Since(left).Round(time.Millisecond))
		u.wantTold(bob, true, false)

		there.ok(eventLeave, "")
		near.member(t, room+"3", ann, "{}") // back at once
		last.ok(eventLeave, "")
		u.hears(mark, false)
		u.wantTold(ann)

		u.ok(eventUnwatch, `{"userIds":[`+quoted(bob)+`]}`)
		far.member(t, room, bob, "{}")
		near.member(t, room, mark, "{}")
		u.told = nil
		u.hears(mark, true)
		u.wantTold(bob)
	})
}

func TestUsersAreForgottenWithTheirWatchers(t *testing.T) {
	n := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_WATCHED_USERS=3")
	u, _ := n.watchUsers(t, "a", "b")
	other, _ := n.watchUsers(t, "b", "c")
	u.refused(eventWatch, `{"userIds":["c","d"]}`, CodeTooManyUsers)
	u.refused(eventWatch, `{"userIds":["c","d","e","f"]}`, CodeTooManyUsers)
	u.ok(eventUnwatch, "")
	_ = other.conn.Close()
	eventually(t, 5*time.Second, "nobody is watched", func() bool {
		n.userWatchers.mu.Lock()
		defer n.userWatchers.mu.Unlock()
		return len(n.userWatchers.users) == 0
	})
}

func TestATokenHasToAllowWatchingUsers(t *testing.T) {
	n := startNodeWithTokens(t, miniRedis(t))
	n.bearer(t, hs256.token(nil)).refused(eventWatch, `{"userIds":["a"]}`, CodeForbidden)
	u := n.bearer(t, hs256.token(map[string]any{"watch": true}))
	u.refused(eventWatch, `{"userIds":[7]}`, CodeInvalidPayload)
	u.send(`42["presence:watch",{"userIds":["a"]}]`) // nobody has to ask for the answer
	eventually(t, 5*time.Second, "the user is watched", func() bool {
		n.userWatchers.mu.Lock()
		defer n.userWatchers.mu.Unlock()
		return n.userWatchers.users["a"] != nil && len(n.userWatchers.users["a"].by) == 1
	})
	u.ok(eventAuth, `{"token":`+quoted(hs256.token(nil))+`}`)
	n.userWatchers.mu.Lock()
	defer n.userWatchers.mu.Unlock()
	if len(n.userWatchers.users) != 0 {
		t.Error("the user is still watched without the claim")
	}
}

// Each fault ends with the right view, within its bound, and no user whose socket lives is ever told to be gone.
func TestWatchedUsersOverFaults_G8(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(t *testing.T, server *redisProcess, b backend){
		"FLUSHALL": func(t *testing.T, _ *redisProcess, b backend) {
			if err := b.open(t).FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"restarted empty": func(_ *testing.T, server *redisProcess, _ backend) { server.stop(); server.restart() },
		"subscriptions cut": func(t *testing.T, _ *redisProcess, b backend) {
			if err := b.open(t).Do(t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := spawnRedis(t)
			b := backend{url: server.url}
			near, far := startNodeFor(t, b), startNodeFor(t, b)
			far.member(t, "r", "stays", "{}")
			goes := far.member(t, "r", "goes", "{}")
			u, online := near.watchUsers(t, "stays", "goes", "comes")
			if len(online) != 2 {
				t.Fatalf("online are %v", online)
			}
			fault(t, server, b)
			goes.tell(eventLeave, "")
			began := time.Now()
			comes := far.user(t)
			eventually(t, 10*time.Second, "a join works", func() bool { return comes.call(eventJoin, joinPayloadOf("r", "comes", "{}")).OK })
			u.hears("comes", true)
			u.hears("goes", false)
			t.Logf("right again after %v", time.Since(began).Round(time.Millisecond))
			u.wantTold("stays")
			u.wantTold("goes", false)
		})
	}
}

// The bound is that of a member of a lost node, and 2 s for telling.
func TestUsersOfAKilledNodeAreOffline(t *testing.T) {
	takesLong(t)
	t.Parallel()
	all, started := startNodes(t, 2), time.Now()
	dialUser(t, all.nodes[0].address()).join("r", "ann", "{}")
	u, online := watchUsersAt(t, all.nodes[1].address(), "ann")
	if len(online) != 1 {
		t.Fatalf("online are %v", online)
	}
	all.trusted(t, started)
	all.nodes[0].signal(syscall.SIGKILL)
	killed := time.Now()
	u.hears("ann", false)
	took := time.Since(killed)
	t.Logf("told %v after the kill", took.Round(time.Millisecond))
	if took > shortLease+shortInterval+2*time.Second+2*time.Second {
		t.Errorf("told after %v", took)
	}
}

// A user whose connection joins again as another user is told of in time, like one who left.
func TestAReplacedUserIsToldOfInTime(t *testing.T) {
	takesLong(t)
	eachWire(t, func(t *testing.T, w wire) {
		settings := []string{fmt.Sprintf("PRESENCE_SHARDED_PUBSUB=%t", w.sharded)}
		near, far, room := startNodeFor(t, w.backend, settings...), startNodeFor(t, w.backend, settings...), uniqueRoom(t)
		ann, bob := room+"ann", room+"bob"
		u, _ := near.watchUsers(t, ann, bob)
		there := far.member(t, room, ann, "{}")
		u.hears(ann, true)
		began := time.Now()
		there.ok(eventJoin, joinPayloadOf(room, bob, "{}"))
		u.hears(ann, false)
		u.hears(bob, true)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("told after %v", took)
		}
		there.ok(eventJoin, joinPayloadOf(room, ann, "{}")) // and back at once
		u.told = nil
		u.hears(ann, true)
		u.hears(bob, false)
		u.wantTold(ann, true)
	})
}

// A node that is killed right after it acknowledged a leave has told nobody of its user: the others look when they find it lost.
func TestALeaveThatANodeDidNotTellIsFoundWithItsLoss(t *testing.T) {
	t.Parallel()
	for name, sharded := range map[string]bool{"plain": false, "sharded": true} {
		t.Run(name, func(t *testing.T) {
			server := spawnRedis(t)
			n := startNodeFor(t, backend{url: server.url}, fmt.Sprintf("PRESENCE_SHARDED_PUBSUB=%t", sharded), "PRESENCE_NODE_LEASE_MS=1000",
				"PRESENCE_REAPER_INTERVAL_MS=200")
			u, _ := n.watchUsers(t, "ann")
			dead := newLease(n.service, time.Second, func() {}, testLogger(t)) // its node runs no more
			name, err := dead.host(t.Context(), "r")
			if err != nil {
				t.Fatal(err)
			}
			m := Member{Room: "r", User: "ann", Conn: "c", Node: name, State: raw("{}")}
			if err := n.service.indexRoom(t.Context(), "r", time.Minute); err != nil {
				t.Fatal(err)
			}
			if _, err = n.service.join(t.Context(), m, 0); err != nil {
				t.Fatal(err)
			}
			u.hears("ann", true)
			_, err = n.service.run(t.Context(), n.service.scripts.remove, append(scriptKeys("r", "c"), keysOf("r").devices()), n.service.publishArgs("r", 0, string(ReasonLeft), "", "", "", "c", "")...)
			if err != nil {
				t.Fatal(err)
			}
			left := time.Now()
			u.hears("ann", false)
			t.Logf("told after %v", time.Since(left).Round(time.Millisecond))
			if took := time.Since(left); took > 6*time.Second { // the audit comes within 60 s
				t.Errorf("told after %v", took)
			}
		})
	}
}

// Every user is looked at once per lookback, the same share of them in each step, whoever comes and goes.
func TestTheAuditOfWatchedUsersIsSpread(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop() // nobody looks
	for _, n := range []int{1, 7, 60, 500} {
		o := &userWatchers{users: map[string]*watchedUser{}, background: &background{ctx: ctx}}
		for i := range 2 * n {
			w := &watchedUser{id: fmt.Sprint(i)}
			o.round = append(o.round, w)
			if i%2 == 0 { // the others are given up
				o.users[w.id] = w
			}
		}
		looks := map[string]int{}
		for range 3 * onlineSteps { // a lookback to find who was given up, and two more
			o.audit()
			step := 0
			for id, w := range o.users {
				if w.causes != 0 {
					step++
					looks[id]++
				}
				w.causes = 0
			}
			if step > 2*n/onlineSteps+1 {
				t.Fatalf("%d of %d users in one step", step, n)
			}
		}
		if len(o.round) != n || len(looks) != n {
			t.Errorf("of %d users %d are in the round, %d were looked at", n, len(o.round), len(looks))
		}
		for id, times := range looks {
			if times < 2 || times > 5 {
				t.Errorf("one of %d users, %s, was looked at %d times in three lookbacks", n, id, times)
			}
		}
	}
}

// Users whom a request waits for, or of whom there is news, are looked at before those of the audit, each once.
func TestUsersWithNewsAreLookedAtFirst(t *testing.T) {
	o := &userWatchers{users: map[string]*watchedUser{}, background: &background{ctx: t.Context()}, workers: onlineWorkers} // which are all busy elsewhere
	for _, id := range []string{"ann", "bob", "cid", "dan", "new", "given up"} {
		o.users[id] = &watchedUser{id: id, settled: id != "new"}
	}
	o.lookAtAll(causeLoss) // in any order
	o.look("new", causeDoubt)
	o.message("dan", "-")
	o.message("bob", "+")
	o.message("dan", "+")
	delete(o.users, "given up")
	var order []string
	for w := o.takeNext(); w != nil; w = o.takeNext() {
		w.state = lookBusy
		order = append(order, w.id)
	}
	if len(order) == 5 {
		slices.Sort(order[3:])
	}
	if want := []string{"new", "dan", "bob", "ann", "cid"}; !slices.Equal(order, want) {
		t.Errorf("looked at %q, want %q", order, want)
	}
}

// Many clients who come at once, each with as many users as one may watch, are all answered. On a machine that is busy with other
// work some may have to ask again.
func TestManyWatchesOfManyUsersAtOnce(t *testing.T) {
	n, prefix := startNodeFor(t, realRedis(t)), uniqueRoom(t)
	n.member(t, prefix, prefix+"7 7", "{}")
	clients, payloads := make([]*user, 100), map[*user]string{}
	for i := range clients {
		ids := make([]string, 500)
		for k := range ids {
			ids[k] = fmt.Sprint(prefix, i, " ", k)
		}
		payload, _ := json.Marshal(map[string]any{"userIds": ids})
		clients[i] = n.user(t)
		payloads[clients[i]] = string(payload)
	}
	online := 0
	for try := 1; len(clients) > 0; try++ {
		if try > 5 {
			t.Fatalf("%d watches are refused again and again", len(clients))
		}
		began := time.Now()
		for _, u := range clients {
			u.ask(eventWatch, payloads[u])
		}
		var refused []*user
		for _, u := range clients {
			answer := u.text()
			if !strings.Contains(answer, `[{"ok":true,`) {
				refused = append(refused, u)
			}
			online += strings.Count(answer, `"online":true`)
		}
		t.Logf("answered after %v, %d refused", time.Since(began).Round(time.Millisecond), len(refused))
		clients = refused
	}
	if online != 1 {
		t.Errorf("%d users are online", online)
	}
}
