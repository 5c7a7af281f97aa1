package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// lastSeen gives when the last connection went, as the client was told it last.
func (w *watching) lastSeen(user string) int64 {
	for _, u := range slices.Backward(w.told) {
		if u.UserID == user && !u.Online {
			return u.LastSeenMs
		}
	}
	return 0
}

// onlineOf asks a node who is online by presence:watch.
func (n *node) onlineOf(t testing.TB, users ...string) (list []wireUser) {
	t.Helper()
	u := n.user(t)
	payload, _ := json.Marshal(map[string]any{"userIds": users})
	id := u.ask(eventWatch, string(payload))
	packet := u.text()
	var ack struct{ Users []wireUser }
	text, ok := strings.CutPrefix(packet, "43"+id+"[")
	if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "]")), &ack); err != nil || !ok || len(ack.Users) != len(users) {
		t.Fatalf("the answer is %s", packet)
	}
	u.ok(eventUnwatch, "")
	return ack.Users
}

// TestLastSeen has the same moment in all that tells of a user who is offline, and none in what tells of one who is online.
func TestLastSeen(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		near, far, room := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)
		for _, ann := range []string{room + "ann", "{" + room + "}ann", room + "}ann", "ann{" + room} {
			w, _ := near.watchUsers(t, ann)
			first, second := far.member(t, room, ann, "{}"), far.member(t, room+"2", ann, "{}")
			w.hears(ann, true)
			first.ok(eventLeave, "")
			witness := near.member(t, room+"2", "witness", "{}")
			second.ok(eventLeave, "")
			left := witness.sees(EventLeave, second.id).TS
			for what, seen := range map[string]int64{
				"an answer by HTTP": near.get(t, "/v1/users/"+percent(ann)).LastSeenMs,
				"a watch":           far.onlineOf(t, ann)[0].LastSeenMs,
				"one of many":       userStatusOf(t, near.service, ann).lastSeen,
			} {
				if seen < left || seen > left+500 {
					t.Errorf("%s: %q was last seen %d ms after its leave", what, ann, seen-left)
				}
			}
			w.hears(ann, false)
			if seen := w.lastSeen(ann); seen < left || seen > left+500 {
				t.Errorf("%q is told to be seen %d ms after its leave", ann, seen-left)
			}
			if again := near.onlineOf(t, ann)[0]; again.Online || again.LastSeenMs != w.lastSeen(ann) {
				t.Errorf("who watches later is told %+v", again)
			}
			w.told = nil
			far.member(t, room, ann, "{}")
			w.hears(ann, true)
			for _, u := range append(near.onlineOf(t, ann), w.told...) {
				if !u.Online || u.LastSeenMs != 0 {
					t.Errorf("a user who is online is told as %+v", u)
				}
			}
			if got := near.get(t, "/v1/users/"+percent(ann)); strings.Contains(got.text, `]`+`,"lastSeenMs"`) {
				t.Errorf("a user who is online is %s", got.text)
			}
			if got := userStatusOf(t, near.service, ann); got != (userStatus{conns: 1}) {
				t.Errorf("a user who is online has the status %+v", got)
			}
		}
		if never := near.onlineOf(t, room+"nobody")[0]; never.Online || never.LastSeenMs != 0 {
			t.Errorf("who was never there is %+v", never)
		}
	})
}

func userStatusOf(t testing.TB, s *Service, user string) userStatus {
	t.Helper()
	list, err := s.statuses(t.Context(), []string{user})
	if err != nil {
		t.Fatal(err)
	}
	return list[user]
}

// TestLastSeenIsKeptForAWhile, and with 0 it is not written.
func TestLastSeenIsKeptForAWhile(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		for _, kept := range []time.Duration{time.Minute, -1} {
			s, room := startService(t, b.open(t), Options{LastSeen: kept}), uniqueRoom(t)
			user := room + "ann"
			mustJoin(t, s, room, user, "c", "{}")
			mustLeave(t, s, room, "c")
			life := s.rdb.PTTL(t.Context(), lastSeenKey(user)).Val()
			if kept > 0 && (life > kept || life < kept-10*time.Second) || kept < 0 && life != -2 {
				t.Errorf("with %v it is kept for %v", kept, life)
			}
			if seen := userStatusOf(t, s, user).lastSeen > 0; seen != (kept > 0) {
				t.Errorf("with %v it is told: %t", kept, seen)
			}
		}
	})
}

// TestLastSeenIsNoEarlierLeave: of two leaves that are noted in any order, the later one counts, and a key of another type is replaced.
func TestLastSeenIsNoEarlierLeave(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, user := startService(t, b.open(t), Options{}), uniqueRoom(t)
		for _, ago := range []time.Duration{time.Second, time.Minute} {
			places := map[string]staleEntry{"c:r": {epoch: 1, leftAt: time.Now().Add(-ago)}, "d:r": {epoch: 1, leftAt: time.Now().Add(-time.Hour)}}
			if err := s.unindexPlaces(t.Context(), user, places); err != nil {
				t.Fatal(err)
			}
		}
		now := s.rdb.Time(t.Context()).Val()
		if ago := now.Sub(time.UnixMilli(userStatusOf(t, s, user).lastSeen)); ago < time.Second || ago > 10*time.Second {
			t.Errorf("last seen %v ago", ago)
		}
		s.rdb.Del(t.Context(), lastSeenKey(user))
		s.rdb.HSet(t.Context(), lastSeenKey(user), "a", "b")
		if seen := userStatusOf(t, s, user).lastSeen; seen != 0 {
			t.Errorf("a hash says %d", seen)
		}
		if _, seen, err := s.whereabouts(t.Context(), user); seen != 0 || err != nil {
			t.Errorf("a hash says %d, %v", seen, err)
		}
		s.rdb.HSet(t.Context(), lastSeenKey(user), "a", "b")
		s.unindexNow(t.Context(), []Member{{User: user, Room: "r", Conn: "c"}})
		if seen := userStatusOf(t, s, user).lastSeen; seen == 0 {
			t.Error("a hash stays in the way")
		}
	})
}

// TestLastSeenOfWhoWasRemoved is noted also where Redis did not take it at once. The index keeps the place: its node may have put
// the member back.
func TestLastSeenOfWhoWasRemoved(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		user := room + "ann"
		m := mustJoin(t, s, room, user, "c", "{}")
		wantCode(t, s.Kick(t.Context(), room, "nobody"), CodeNotJoined) // loads the script
		s.unindexNow(t.Context(), []Member{{Room: room, User: user + " 2", Conn: "nobody"}})
		rdb.start(map[int]string{1: "request"}) // the script after the removal
		left := time.Now()
		if err := s.Kick(t.Context(), room, m.Conn); err != nil {
			t.Fatal(err)
		}
		if seen := rdb.Exists(t.Context(), lastSeenKey(user)).Val(); seen != 0 {
			t.Fatal("nothing was lost")
		}
		eventually(t, patience, "it is noted", func() bool { return rdb.Exists(t.Context(), lastSeenKey(user)).Val() == 1 })
		real, now := time.Since(left), s.rdb.Time(t.Context()).Val()
		if ago := now.Sub(time.UnixMilli(userStatusOf(t, s, user).lastSeen)); ago < real-200*time.Millisecond || ago > real+200*time.Millisecond {
			t.Errorf("last seen %v ago, want %v", ago, real)
		}
		if places := rdb.HLen(t.Context(), userKey(user)).Val(); places != 1 {
			t.Errorf("the index has %d places", places)
		}
	})
}

// TestLastSeenOfWhoWasSilent is told in the event, also where Redis has lost what it knew.
func TestLastSeenOfWhoWasSilent(t *testing.T) {
	t.Parallel()
	o := &userWatchers{service: &Service{options: Options{LastSeen: time.Minute}}, users: map[string]*watchedUser{}, hub: &hub{}}
	for name, c := range map[string]struct{ stored, want int64 }{
		"noted":            {9_000, 9_000},
		"lost":             {0, 9_200},
		"an earlier leave": {4_000, 9_200},
	} {
		w := &watchedUser{id: "ann", known: make(chan struct{})}
		o.users["ann"] = w
		o.takeOver(w, true, places{ts: 5_000}, causeDoubt, 0)
		if !o.takeOver(w, false, places{ts: 10_000, lastSeen: c.stored}, causeGone, 800*time.Millisecond) {
			t.Fatal("it is not clear")
		}
		if got := o.tell(w, w.online); got.online || got.lastSeen != c.want {
			t.Errorf("%s: told %+v, want %d", name, got, c.want)
		}
		w.seenAt = time.Now().Add(-time.Minute)
		if got := o.tell(w, false); got.lastSeen != 0 {
			t.Errorf("%s: after its time it is told %+v", name, got)
		}
	}
}

// TestLastSeenWithoutTheSetting is neither written nor told.
func TestLastSeenWithoutTheSetting(t *testing.T) {
	b := miniRedis(t)
	n := startWithAPI(t, b, "PRESENCE_LAST_SEEN_MS=0")
	w, _ := n.watchUsers(t, "ann")
	u := n.member(t, "r", "ann", "{}")
	w.hears("ann", true)
	u.ok(eventLeave, "")
	w.hears("ann", false)
	for _, key := range b.mini.Keys() {
		if strings.Contains(key, "last_seen:") {
			t.Errorf("%q is there", key)
		}
	}
	if got := n.http(t, http.MethodGet, "/v1/users/ann"); strings.Contains(got.text, "lastSeenMs") || w.lastSeen("ann") != 0 {
		t.Errorf("it is told: %s, %+v", got.text, w.told)
	}
}
