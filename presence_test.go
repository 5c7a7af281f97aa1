package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// startService starts a service whose reaper runs only if the options ask for it. It ends with the test.
func startService(t testing.TB, rdb redis.UniversalClient, o Options) *Service {
	t.Helper()
	if o.ReaperInterval == 0 {
		o.ReaperInterval = -1
	}
	o.Logger = testLogger(t)
	s := NewService(rdb, o)
	t.Cleanup(s.Stop)
	return s
}

// recorder keeps the messages of one room as they came over its channel.
type recorder struct {
	mu       sync.Mutex
	messages []message
}

// record listens to a room's channel from now on, until the test ends.
func record(t testing.TB, rdb redis.UniversalClient, room string) *recorder {
	t.Helper()
	ps := rdb.Subscribe(context.Background(), keysOf(room).events())
	if _, err := ps.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range ps.Channel(redis.WithChannelSize(10_000)) {
			parsed, ok := parseMessage(m.Payload)
			if !ok {
				t.Errorf("a message that nobody can read: %q", m.Payload)
			}
			r.mu.Lock()
			r.messages = append(r.messages, parsed)
			r.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		ps.Close()
		<-done
	})
	return r
}

func (r *recorder) all() []message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// upTo waits for the message with the room's present revision, after which nothing is on its way.
func (r *recorder) upTo(t testing.TB, s *Service, room string) []message {
	t.Helper()
	rev := mustRead(t, s, room).Rev
	eventually(t, 5*time.Second, fmt.Sprintf("event %d of %q", rev, room), func() bool {
		all := r.all()
		return len(all) > 0 && all[len(all)-1].Rev >= rev
	})
	return r.all()
}

func mustRead(t testing.TB, s *Service, room string) Snapshot {
	t.Helper()
	v, err := s.Snapshot(t.Context(), room)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// mustJoin joins as a node does, and gives the member as its node knows it.
func mustJoin(t testing.TB, s *Service, room, user, conn, state string) Member {
	t.Helper()
	if err := s.indexRoom(t.Context(), room, s.options.Lookback); err != nil {
		t.Fatal(err)
	}
	m, err := s.join(t.Context(), Member{Room: room, User: user, Conn: conn, State: json.RawMessage(state)}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustLeave(t testing.TB, s *Service, room, conn string) {
	t.Helper()
	if err := s.Leave(t.Context(), room, conn); err != nil {
		t.Fatal(err)
	}
}

// stateOf is the state of a connection in the room, "" if it is not there.
func stateOf(t testing.TB, s *Service, room, conn string) string {
	t.Helper()
	for _, e := range mustRead(t, s, room).Entries {
		if e.ConnID == conn {
			return string(e.State)
		}
	}
	return ""
}

// wantCode fails the test if err is no *Error with this code.
func wantCode(t testing.TB, err error, code Code) *Error {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) || refused.Code != code {
		t.Fatalf("got error %v, want code %s", err, code)
	}
	return refused
}

// assertAgree checks G6 for a room in which nothing happens, and what keys.go says of each key's life.
func assertAgree(t testing.TB, s *Service, room string) {
	t.Helper()
	ctx, rdb, k := t.Context(), s.rdb, keysOf(room)
	meta, err := rdb.HGetAll(ctx, k.meta()).Result()
	conns, err2 := rdb.SMembers(ctx, k.conns()).Result()
	seen, err3 := rdb.ZRangeWithScores(ctx, k.lastSeen(), 0, -1).Result()
	members, err4 := rdb.HGetAll(ctx, k.members()).Result()
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	ids := slices.Sorted(maps.Keys(meta))
	slices.Sort(conns)
	if !slices.Equal(ids, conns) {
		t.Errorf("conn_meta has %q, conns has %q", ids, conns)
	}
	inLastSeen := make([]string, 0, len(seen))
	for _, z := range seen {
		inLastSeen = append(inLastSeen, z.Member.(string))
		assertConnHash(t, s, room, z, meta[z.Member.(string)])
	}
	slices.Sort(inLastSeen)
	if !slices.Equal(ids, inLastSeen) {
		t.Errorf("conn_meta has %q, last_seen has %q", ids, inLastSeen)
	}
	if want := countUsers(t, meta); !maps.Equal(want, members) {
		t.Errorf("members is %v, the users in conn_meta are %v", members, want)
	}
	assertCounter(t, rdb, room, meta)
}

// assertConnHash checks the hash of a connection that was heard of within the TTL.
func assertConnHash(t testing.TB, s *Service, room string, seen redis.Z, value string) {
	t.Helper()
	conn := seen.Member.(string)
	key := connKey(room, conn)
	life := s.rdb.PTTL(t.Context(), key).Val()
	hash := s.rdb.HGetAll(t.Context(), key).Val()
	if len(hash) == 0 {
		now := mustRead(t, s, room).TS
		if now < int64(seen.Score)+s.options.TTL.Milliseconds() {
			t.Errorf("%s was heard of within the TTL and has no hash", conn)
		}
		return
	}
	if life <= 0 || life > s.options.TTL {
		t.Errorf("the hash of %s lives %v, want at most the TTL of %v", conn, life, s.options.TTL)
	}
	m, ok := parseMeta(value)
	if !ok {
		t.Errorf("conn_meta of %s is %q", conn, value)
	}
	want := map[string]string{
		"conn_id": conn, "user_id": m.User, "room_id": room, "last_seen_ms": strconv.FormatInt(int64(seen.Score), 10),
		"epoch": strconv.FormatInt(m.Epoch, 10), "rev": strconv.FormatInt(m.Rev, 10), "state": string(m.State),
	}
	if m.held() { // no heartbeat may find it
		delete(want, "rev")
	}
	if !maps.Equal(hash, want) {
		t.Errorf("the hash of %s is %v, want %v as in conn_meta and last_seen", conn, hash, want)
	}
}

// countUsers gives the connections of each user, as the hash members should have them.
func countUsers(t testing.TB, meta map[string]string) map[string]string {
	t.Helper()
	count := map[string]int{}
	for conn, value := range meta {
		m, ok := parseMeta(value)
		if !ok {
			t.Errorf("conn_meta of %s is %q", conn, value)
		}
		count[m.User]++
	}
	text := map[string]string{}
	for user, n := range count {
		text[user] = strconv.Itoa(n)
	}
	return text
}

// assertCounter checks that the counter is not behind any member, and expires in an empty room only.
func assertCounter(t testing.TB, rdb redis.UniversalClient, room string, meta map[string]string) {
	t.Helper()
	key := keysOf(room).revision()
	rev, _ := rdb.Get(t.Context(), key).Int64() // 0 in a room where nothing happened within the last hour
	for conn, value := range meta {
		if m, _ := parseMeta(value); m.Rev > rev || m.Epoch > m.Rev {
			t.Errorf("%s has epoch %d and revision %d, the room has revision %d", conn, m.Epoch, m.Rev, rev)
		}
	}
	life := rdb.PTTL(t.Context(), key).Val()
	switch {
	case rev == 0:
	case len(meta) > 0 && life != -1:
		t.Errorf("the counter of a room with members expires in %v", life)
	case len(meta) == 0 && (life <= 0 || life > time.Hour):
		t.Errorf("the counter of an empty room expires in %v, want up to %v", life, time.Hour)
	}
}

// assertChain checks that revisions grow, that each message names the one before, and what each type carries.
func assertChain(t testing.TB, all []message) {
	t.Helper()
	for i, m := range all {
		if i > 0 && m.prev != all[i-1].Rev {
			t.Errorf("event %d names %d as the revision before it, which was %d", i, m.prev, all[i-1].Rev)
		}
		if m.Rev <= m.prev {
			t.Errorf("event %d has revision %d after %d", i, m.Rev, m.prev)
		}
		if (m.Type == EventLeave) != (m.Reason != "") || (m.Type == EventLeave) != (string(m.State) == "null") {
			t.Errorf("a %s has reason %q and state %s", m.Type, m.Reason, m.State)
		}
	}
}

// assertOneLeave checks G5: after a join of an incarnation comes at most one leave of it.
func assertOneLeave(t testing.TB, all []message) {
	t.Helper()
	type incarnation struct {
		conn  string
		epoch int64
	}
	left := map[incarnation]bool{}
	for _, m := range all {
		i := incarnation{m.ConnID, m.Epoch}
		if left[i] {
			t.Errorf("%s of %s with epoch %d after its leave", m.Type, m.ConnID, m.Epoch)
		}
		left[i] = m.Type == EventLeave
	}
}

// short is a message in a form that a table can hold: type, connection, user, connections of the user, reason, state.
func short(m message) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %d %s %s", m.Type, m.ConnID, m.UserID, m.UserConns, m.Reason, m.State))
}

func TestEachOperationTellsItsEventsAndKeepsTheIndicesEqual_G6(t *testing.T) {
	steps := []struct {
		name   string
		do     func(ctx context.Context, s *Service, room string) error
		events []string
	}{
		{"join", join("ann", "a", `{"n":1}`), []string{`join a ann 1  {"n":1}`}},
		{"second connection of the user", join("ann", "b", `{}`), []string{`join b ann 2  {}`}},
		{"join without state", join("bob", "c", ""), []string{`join c bob 1  {}`}},
		{"heartbeat", beat("a", ""), nil},
		{"patch", beat("a", `{"m":[ 2 ]}`), []string{`update a ann 2  {"n":1,"m":[2]}`}},
		{"patch without effect", beat("a", `{"n":1}`), nil},
		{"join again", join("ann", "a", `{"x":true}`), []string{`join a ann 2  {"x":true}`}},
		{"join again as another user", join("bob", "a", `{"y":0}`), []string{`leave a ann 1 replaced null`, `join a bob 2  {"y":0}`}},
		{"the last of a user as another user", join("bob", "b", `{}`), []string{`leave b ann 0 replaced null`, `join b bob 3  {}`}},
		{"leave", leave("a"), []string{`leave a bob 2 left null`}},
		{"leave a second time", leave("a"), nil},
		{"leave of one that was never there", leave("z"), nil},
		{"leave of all others", leave("b"), []string{`leave b bob 1 left null`}},
		{"leave of the last", leave("c"), []string{`leave c bob 0 left null`}},
		{"join after the room was empty", join("ann", "a", `{}`), []string{`join a ann 1  {}`}},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, unflags := range map[string]bool{"with flags": false, "without flags, as before Redis 7": true} {
			t.Run(name, func(t *testing.T) {
				s.unflags.Store(unflags)
				room := uniqueRoom(t)
				events := record(t, s.rdb, room)
				told := 0
				for _, step := range steps {
					if err := step.do(t.Context(), s, room); err != nil {
						t.Fatalf("%s: %v", step.name, err)
					}
					all := events.upTo(t, s, room)
					var got []string
					for _, m := range all[told:] {
						got = append(got, short(m))
					}
					told = len(all)
					if !slices.Equal(got, step.events) {
						t.Errorf("%s: got events %q, want %q", step.name, got, step.events)
					}
					assertAgree(t, s, room)
				}
				assertChain(t, events.all())
				assertOneLeave(t, events.all())
			})
		}
	})
}

func join(user, conn, state string) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error {
		joined, err := s.Join(ctx, room, user, conn, raw(state))
		if err != nil {
			return err
		}
		for _, e := range joined.Snapshot.Entries {
			if e.ConnID == conn && e.Epoch == joined.Epoch && joined.Snapshot.Rev >= joined.Epoch {
				return nil
			}
		}
		return fmt.Errorf("the snapshot lacks the connection itself with epoch %d: %+v", joined.Epoch, joined.Snapshot)
	}
}

func beat(conn, patch string) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error {
		_, _, err := s.Heartbeat(ctx, room, conn, raw(patch), 0)
		return err
	}
}

func leave(conn string) func(context.Context, *Service, string) error {
	return func(ctx context.Context, s *Service, room string) error { return s.Leave(ctx, room, conn) }
}

// raw is nil for no text.
func raw(text string) json.RawMessage {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

func TestSubscribeDeliversWhatThePublisherSent(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		var mu sync.Mutex
		var got []Event
		err := s.Subscribe(t.Context(), func(e Event) {
			if e.RoomID == room {
				mu.Lock()
				got = append(got, e)
				mu.Unlock()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		events := record(t, s.rdb, room)
		mustJoin(t, s, room, "ann", "a", `{"n":1}`)
		mustLeave(t, s, room, "a")
		var want []Event
		for _, m := range events.upTo(t, s, room) {
			want = append(want, m.Event)
		}
		eventually(t, 5*time.Second, "both events", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) == 2
		})
		mu.Lock()
		defer mu.Unlock()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestAnEpochGrowsWithEachJoin(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		var before int64
		for range 5 {
			joined, err := s.Join(t.Context(), room, "ann", "a", nil)
			if err != nil {
				t.Fatal(err)
			}
			if joined.Epoch <= before {
				t.Fatalf("epoch %d after %d", joined.Epoch, before)
			}
			before = joined.Epoch
			mustLeave(t, s, room, "a")
		}
	})
}

// roomKeysOf are all keys of a room with these connections.
func roomKeysOf(room string, conns ...string) []string {
	return scriptKeys(room, conns...)
}

// dump gives the contents of keys, of whatever type.
func dump(t testing.TB, rdb redis.UniversalClient, keys ...string) map[string]string {
	t.Helper()
	ctx, all := t.Context(), map[string]string{}
	for _, key := range keys {
		kind, err := rdb.Type(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		var value any
		switch kind {
		case "none":
			continue
		case "hash":
			value = rdb.HGetAll(ctx, key).Val()
		case "zset":
			value = rdb.ZRangeWithScores(ctx, key, 0, -1).Val()
		case "set":
			members := rdb.SMembers(ctx, key).Val()
			slices.Sort(members)
			value = members
		case "string":
			value = rdb.Get(ctx, key).Val()
		}
		all[key] = fmt.Sprintf("%s %v", kind, value)
	}
	return all
}

func assertSame(t testing.TB, what string, before, after map[string]string) {
	t.Helper()
	for key := range maps.Keys(before) {
		if before[key] != after[key] {
			t.Errorf("%s: %s was %s and is %s", what, key, before[key], after[key])
		}
	}
	for key := range after {
		if _, had := before[key]; !had {
			t.Errorf("%s: %s is new: %s", what, key, after[key])
		}
	}
}

// fencingAttempt is a write with an epoch that is not the current one, or that comes too late. old is the member before its
// last join.
type fencingAttempt struct {
	name string
	do   func(ctx context.Context, s *Service, old Member, current int64) error
	code Code // "" = no error
}

func fencingAttempts() []fencingAttempt {
	return []fencingAttempt{
		{"heartbeat with an older epoch", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, nil, old.Epoch)
			return err
		}, CodeStaleEpoch},
		{"patch with an older epoch", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, raw(`{"evil":1}`), old.Epoch)
			return err
		}, CodeStaleEpoch},
		{"patch with an epoch that was never issued", func(ctx context.Context, s *Service, old Member, current int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, raw(`{"evil":1}`), current+1)
			return err
		}, CodeStaleEpoch},
		{"heartbeat with the largest number", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.Heartbeat(ctx, old.Room, old.Conn, nil, 1<<63-1)
			return err
		}, CodeStaleEpoch},
		{"heartbeat of a node that missed the join", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.heartbeat(ctx, &old, nil, 0)
			return err
		}, CodeStaleEpoch},
		{"patch of a node that missed the join", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.heartbeat(ctx, &old, raw(`{"evil":1}`), 0)
			return err
		}, CodeStaleEpoch},
		{"restore of the older incarnation", func(ctx context.Context, s *Service, old Member, _ int64) error {
			return s.restore(ctx, &old, 0, 0)
		}, CodeStaleEpoch},
		{"removal of the older incarnation", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.remove(ctx, old.Room, removal{reason: ReasonDisconnected}, []incarnation{{old.Conn, old.Epoch}})
			return err
		}, ""},
		{"removal that waited for too long", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.remove(ctx, old.Room, removal{reason: ReasonTimeout, notAfter: 1}, []incarnation{{conn: old.Conn}})
			return err
		}, ""},
		{"removal of the silent, who is not", func(ctx context.Context, s *Service, old Member, _ int64) error {
			_, _, err := s.remove(ctx, old.Room, removal{reason: ReasonTimeout, silent: s.options.Lookback}, []incarnation{{conn: old.Conn}})
			return err
		}, ""},
	}
}

func TestFencing_G4(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		old := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
		now := mustJoin(t, s, room, "ann", "a", `{"n":2}`)
		keys := roomKeysOf(room, "a")
		hash := connKey(room, "a")
		for _, attempt := range fencingAttempts() {
			const life = 10 * time.Second // shorter than what a heartbeat gives
			s.rdb.PExpire(t.Context(), hash, life)
			before := dump(t, s.rdb, keys...)
			err := attempt.do(t.Context(), s, old, now.Epoch)
			if attempt.code != "" {
				if refused := wantCode(t, err, attempt.code); refused.Epoch != now.Epoch {
					t.Errorf("%s: the refusal carries epoch %d, want the current one %d", attempt.name, refused.Epoch, now.Epoch)
				}
			} else if err != nil {
				t.Errorf("%s: %v", attempt.name, err)
			}
			assertSame(t, attempt.name, before, dump(t, s.rdb, keys...))
			if left := s.rdb.PTTL(t.Context(), hash).Val(); left > life {
				t.Errorf("%s: the hash lives %v, as if it had been refreshed", attempt.name, left)
			}
		}
	})
}

// A request that was given up may wait in a stopped Redis, and run after the one that repeated it.
func TestARequestThatRunsLateWritesNothing_G4(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name        string
		early, then func(ctx context.Context, s *Service, m Member) error
	}{
		{"join, then another", rejoin, rejoin},
		{"first join, then the same", func(ctx context.Context, s *Service, m Member) error {
			_, err := s.join(ctx, Member{Room: m.Room, User: "bob", Conn: "first", State: raw("{}")}, 0)
			return err
		}, func(ctx context.Context, s *Service, m Member) error {
			_, err := s.join(ctx, Member{Room: m.Room, User: "bob", Conn: "first", State: raw(`{"n":2}`)}, 0)
			return err
		}},
		{"patch, then another", patch(`{"late":1}`), patch(`{"n":2}`)},
		{"patch, then a join", patch(`{"late":1}`), rejoin},
		{"heartbeat, then a join", patch(""), rejoin},
		{"removal, then a join", removeOwn, rejoin},
		{"restore, then a join", func(ctx context.Context, s *Service, m Member) error { return s.restore(ctx, &m, 0, 0) }, rejoin},
		{"heartbeat, then a leave", patch(""), removeOwn},
		{"patch, then a leave", patch(`{"late":1}`), removeOwn},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				rdb := &faultyRedis{UniversalClient: b.open(t)}
				s, room := startService(t, rdb, Options{}), uniqueRoom(t)
				m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
				loadEverywhere(t, s, b)
				rdb.start(nil)
				rdb.holdRoomScripts = true
				if err := c.early(t.Context(), s, m); !errors.Is(err, errLost) {
					t.Fatalf("the early request ended with %v", err)
				}
				rdb.holdRoomScripts = false
				if err := c.then(t.Context(), s, m); err != nil {
					t.Fatal(err)
				}
				keys := roomKeysOf(room, "a", "first")
				before := dump(t, rdb, keys...)
				if err := rdb.held().Err(); err != nil {
					t.Fatal(err)
				}
				assertSame(t, c.name, before, dump(t, rdb, keys...))
				assertAgree(t, s, room)
			})
		}
	})
}

func rejoin(ctx context.Context, s *Service, m Member) error {
	_, err := s.join(ctx, m, 0)
	return err
}

func removeOwn(ctx context.Context, s *Service, m Member) error {
	_, _, err := s.remove(ctx, m.Room, removal{reason: ReasonLeft}, []incarnation{{m.Conn, m.Epoch}})
	return err
}

// patch is a heartbeat of the member's node, with a patch if there is text.
func patch(text string) func(context.Context, *Service, Member) error {
	return func(ctx context.Context, s *Service, m Member) error {
		_, _, err := s.heartbeat(ctx, &m, raw(text), 0)
		return err
	}
}

func TestHeartbeatOfOneThatIsNotInTheRoom(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		_, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"n":1}`), 0)
		wantCode(t, err, CodeNotJoined)
		if got := dump(t, s.rdb, roomKeysOf(room, "a")...); len(got) != 0 {
			t.Errorf("it wrote %v", got)
		}
	})
}

func TestBadArgumentsWriteNothing_G9(t *testing.T) {
	rdb := miniRedis(t).open(t)
	s := startService(t, rdb, Options{Limits: Limits{IDBytes: 10, StateBytes: 20}})
	cases := []struct {
		name, room, user, conn, state string
		code                          Code
	}{
		{"no room", "", "u", "c", "{}", CodeInvalidPayload},
		{"no user", "r", "", "c", "{}", CodeInvalidPayload},
		{"no connection", "r", "u", "", "{}", CodeInvalidPayload},
		{"long room", "12345678901", "u", "c", "{}", CodeInvalidPayload},
		{"control character in the room", "a\nb", "u", "c", "{}", CodeInvalidPayload},
		{"colon in the connection", "r", "u", "a:b", "{}", CodeInvalidPayload},
		{"array for a state", "r", "u", "c", "[]", CodeInvalidPayload},
		{"broken state", "r", "u", "c", "{", CodeInvalidPayload},
		{"large state", "r", "u", "c", `{"a":"12345678901234567890"}`, CodeStateTooLarge},
	}
	for _, c := range cases {
		_, err := s.Join(t.Context(), c.room, c.user, c.conn, raw(c.state))
		wantCode(t, err, c.code)
	}
	if keys := rdb.Keys(t.Context(), "*").Val(); len(keys) != 0 {
		t.Errorf("keys were written: %q", keys)
	}
}

func TestARoomIsFullWhenTheScriptSaysSo(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		room, o := uniqueRoom(t), Options{MaxMembers: 3}
		services := []*Service{startService(t, b.open(t), o), startService(t, b.open(t), o), startService(t, b.open(t), o)}
		var entered sync.Map
		var work sync.WaitGroup
		for i := range 24 {
			work.Go(func() {
				conn := fmt.Sprint("c", i)
				joined, err := services[i%3].Join(t.Context(), room, "ann", conn, nil)
				if err == nil {
					entered.Store(conn, joined.Epoch)
					return
				}
				var refused *Error
				if !errors.As(err, &refused) || refused.Code != CodeRoomFull {
					t.Errorf("a join ended with %v, want %s", err, CodeRoomFull)
				}
			})
		}
		work.Wait()
		var inside []string
		entered.Range(func(conn, _ any) bool {
			inside = append(inside, conn.(string))
			return true
		})
		if len(inside) != 3 || len(mustRead(t, services[0], room).Entries) != 3 {
			t.Fatalf("%q entered a room for 3", inside)
		}
		if _, err := services[1].Join(t.Context(), room, "bob", inside[0], nil); err != nil {
			t.Errorf("a member cannot join its full room again: %v", err)
		}
		lost := Member{Room: room, User: "ann", Conn: "lost", Epoch: 1, Rev: 1, State: raw("{}")}
		if err := services[2].restore(t.Context(), &lost, 0, 0); err != nil {
			t.Errorf("a full room does not take back one that it lost: %v", err)
		}
		assertAgree(t, services[0], room)
	})
}

func TestStatesComeBackEqualAsJSON(t *testing.T) {
	states := map[string]string{
		"empty":                  `{}`,
		"empty array and object": `{"a":[],"b":{}}`,
		"nested empties":         `{"a":[[],{},[{}]]}`,
		"64-bit digits":          `{"n":1234567890123456789,"m":-9223372036854775808}`,
		"long fractions":         `{"n":0.1000000000000000055511151231257827,"e":1e400}`,
		"null":                   `{"a":null}`,
		"odd keys":               `{"":1,"__proto__":{"x":1},"constructor":2," ":3}`,
		"Unicode":                `{"š":"日本語 🏳️‍🌈","a":"\u2028"}`,
		"escapes":                `{"a":"\u0000\u001f\"\\\/\b\f\n\r\t"}`,
		"lone surrogates":        `{"a":"\ud800","b":"\udfff\ud800"}`,
		"like Lua's patterns":    `{"a":"%d+%1%%","b":"\\1"}`,
		"like our own fields":    `{"a":",\"state\":","epoch":7,"userId":"x","rev":1}`,
		"deep nesting":           `{"a":` + strings.Repeat("[", 62) + strings.Repeat("]", 62) + `}`,
		"large":                  `{"a":"` + strings.Repeat("x", 16000) + `"}`,
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, state := range states {
			t.Run(name, func(t *testing.T) {
				room := uniqueRoom(t)
				events := record(t, s.rdb, room)
				m := mustJoin(t, s, room, "ann", "a", state)
				if got := stateOf(t, s, room, "a"); got != state {
					t.Errorf("after the join the room has %s, want %s", got, state)
				}
				if _, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"patched":[]}`), m.Epoch); err != nil {
					t.Fatal(err)
				}
				all := events.upTo(t, s, room)
				want := strings.TrimSuffix(state, "}") + `,"patched":[]}`
				want = strings.Replace(want, "{,", "{", 1)
				if got := stateOf(t, s, room, "a"); got != want || string(all[1].State) != want {
					t.Errorf("after the patch the room has %s, the event %s, want %s", got, all[1].State, want)
				}
				if string(all[0].State) != state {
					t.Errorf("the join's event has %s, want %s", all[0].State, state)
				}
				if got, err := s.find(t.Context(), room, "a"); err != nil || string(got.State) != want {
					t.Errorf("one connection reads as %s, %v, want %s", got.State, err, want)
				}
				assertAgree(t, s, room)
			})
		}
	})
}

func TestIDsOfAnyText(t *testing.T) {
	t.Parallel()
	ids := []string{
		"plain", "{", "}", "}{", "{room:x}", "}:conn_meta", `"`, `\`, `\"`, `\\`, `a\`, ":", "a:b:c", "*", "[a]", "?", "%d%1",
		"日本語", "🏳️‍🌈", "\u2028", "\u00a0", " ", "'", `","state":{}`, "é", "e\u0301", "</script>", "null", "__proto__",
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s, unique := startService(t, b.open(t), Options{}), uniqueRoom(t)
		for _, id := range ids {
			room, user := unique+id, id+unique
			events := record(t, s.rdb, room)
			mustJoin(t, s, room, user, "a", `{"n":1}`)
			if _, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"n":2}`), 0); err != nil {
				t.Fatalf("%q: %v", id, err)
			}
			if v := mustRead(t, s, room); len(v.Entries) != 1 || v.Entries[0].UserID != user || v.Users != 1 {
				t.Errorf("%q: the room is %+v", id, v)
			}
			assertAgree(t, s, room)
			mustLeave(t, s, room, "a")
			all := events.upTo(t, s, room)
			if len(all) != 3 {
				t.Fatalf("%q: got %d events, want 3", id, len(all))
			}
			for _, m := range all {
				if m.RoomID != room || m.UserID != user {
					t.Errorf("event of room %q and user %q, want %q and %q", m.RoomID, m.UserID, room, user)
				}
			}
			if left := dump(t, s.rdb, append(roomKeysOf(room, "a"), userKey(user))...); len(left) != 2 {
				t.Errorf("%q: after the leave there is not just the counter, and where it began: %v", id, left)
			}
		}
	})
}

func TestChangedTellsWhetherTheStoredStateDiffers(t *testing.T) {
	cases := []struct {
		name, state, patch string
		changed            bool
	}{
		{"same value", `{"a":1}`, `{"a":1}`, false},
		{"no key", `{"a":1}`, `{}`, false},
		{"other number text", `{"a":1}`, `{"a":1.0}`, true},
		{"other value", `{"a":1}`, `{"a":2}`, true},
		{"new key", `{"a":1}`, `{"b":1}`, true},
		{"null stored", `{"a":1}`, `{"a":null}`, true},
		{"null again", `{"a":null}`, `{"a":null}`, false},
		{"null for an absent key", `{}`, `{"a":null}`, true},
		{"key order and spacing", `{"a":{"x":1,"y":[2]}}`, ` { "a" : { "y" : [ 2 ], "x" : 1 } } `, false},
		{"array order", `{"a":[1,2]}`, `{"a":[2,1]}`, true},
		{"escaped text", `{"a":"é"}`, `{"a":"\u00e9"}`, false},
		{"normal forms of Unicode", `{"a":"é"}`, `{"a":"e\u0301"}`, true},
		{"lone surrogates", `{"a":"\ud800"}`, `{"a":"\ud801"}`, true},
		{"array and object", `{"a":[]}`, `{"a":{}}`, true},
		{"last 64-bit digit", `{"a":9007199254740993}`, `{"a":9007199254740992}`, true},
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				room := uniqueRoom(t)
				mustJoin(t, s, room, "ann", "a", c.state)
				events := record(t, s.rdb, room)
				before := mustRead(t, s, room).Rev
				changed, _, err := s.Heartbeat(t.Context(), room, "a", raw(c.patch), 0)
				if err != nil || changed != c.changed {
					t.Errorf("changed is %t, %v, want %t", changed, err, c.changed)
				}
				if raised := mustRead(t, s, room).Rev > before; raised != c.changed {
					t.Errorf("the revision was raised: %t, want %t", raised, c.changed)
				}
				mustLeave(t, s, room, "a")
				if updates := len(events.upTo(t, s, room)) - 1; (updates == 1) != c.changed {
					t.Errorf("%d updates were told", updates)
				}
			})
		}
	})
}

func TestAStateThatWouldBeTooLargeKeepsTheOldOne(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{Limits: Limits{StateBytes: 30}}), uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", `{"a":"1234567890"}`)
		before := dump(t, s.rdb, roomKeysOf(room, "a")...)
		_, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"b":"1234567890"}`), 0)
		wantCode(t, err, CodeStateTooLarge)
		assertSame(t, "patch over the limit", before, dump(t, s.rdb, roomKeysOf(room, "a")...))
		if _, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"b":"12345"}`), 0); err != nil {
			t.Errorf("exactly the limit: %v", err)
		}
		if got, want := stateOf(t, s, room, "a"), `{"a":"1234567890","b":"12345"}`; got != want || len(want) != 30 {
			t.Errorf("state is %s, want %s", got, want)
		}
	})
}

func TestConcurrentPatchesLoseNothing(t *testing.T) {
	const each = 15
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		services := []*Service{startService(t, b.open(t), Options{}), startService(t, b.open(t), Options{}), startService(t, b.open(t), Options{})}
		events := record(t, services[0].rdb, room)
		mustJoin(t, services[0], room, "ann", "a", `{}`)
		var work sync.WaitGroup
		for i, s := range services {
			work.Go(func() {
				for j := range each {
					patch := fmt.Sprintf(`{"k%d_%d":%d,"shared":"%d_%d"}`, i, j, j, i, j)
					if changed, _, err := s.Heartbeat(t.Context(), room, "a", raw(patch), 0); err != nil || !changed {
						t.Errorf("patch %s: changed %t, %v", patch, changed, err)
					}
				}
			})
		}
		work.Wait()
		var state map[string]any
		if err := json.Unmarshal([]byte(stateOf(t, services[0], room, "a")), &state); err != nil {
			t.Fatal(err)
		}
		for i := range services {
			for j := range each {
				if state[fmt.Sprintf("k%d_%d", i, j)] != float64(j) {
					t.Errorf("patch %d of service %d was lost", j, i)
				}
			}
		}
		if shared, _ := state["shared"].(string); !regexp.MustCompile(`^[012]_14$`).MatchString(shared) {
			t.Errorf("the shared key ends with %q, want a service's last value", shared)
		}
		assertChain(t, events.upTo(t, services[0], room))
		assertAgree(t, services[0], room)
	})
}

// operation is one use of a script of a room with member a in it, as its node knows it.
type operation struct {
	name string
	do   func(ctx context.Context, s *Service, m *Member) error
}

func operations() []operation {
	return []operation{
		{"join of another", func(ctx context.Context, s *Service, m *Member) error {
			_, err := s.Join(ctx, m.Room, "eve", "new", nil)
			return err
		}},
		{"join again", func(ctx context.Context, s *Service, m *Member) error {
			again, err := s.join(ctx, *m, 0)
			if err == nil {
				*m = again
			}
			return err
		}},
		{"heartbeat", func(ctx context.Context, s *Service, m *Member) error {
			_, _, err := s.heartbeat(ctx, m, nil, 0)
			return err
		}},
		{"patch", func(ctx context.Context, s *Service, m *Member) error {
			_, _, err := s.heartbeat(ctx, m, raw(`{"p":1}`), 0)
			return err
		}},
		{"heartbeat of any process", func(ctx context.Context, s *Service, m *Member) error {
			_, _, err := s.Heartbeat(ctx, m.Room, m.Conn, raw(`{"p":2}`), 0)
			var refused *Error
			if errors.As(err, &refused) && refused.Code == CodeNotJoined {
				return nil // with conn_meta, Redis has lost who is in the room
			}
			return err
		}},
		{"restore", func(ctx context.Context, s *Service, m *Member) error { return s.restore(ctx, m, 0, 0) }},
		{"leave", func(ctx context.Context, s *Service, m *Member) error { return s.Leave(ctx, m.Room, m.Conn) }},
		{"hold", func(ctx context.Context, s *Service, m *Member) error { return s.holdBack(ctx, *m, s.options.Grace) }},
		{"snapshot", func(ctx context.Context, s *Service, m *Member) error {
			_, err := s.Snapshot(ctx, m.Room)
			return err
		}},
		{"reaper's look", func(ctx context.Context, s *Service, m *Member) error {
			_, err := newReaper(s).reap(ctx, m.Room, false)
			return err
		}},
	}
}

func TestKeysOfAnotherTypeAreMended(t *testing.T) {
	t.Parallel()
	keys := map[string]func(room string) string{
		"conn_meta": func(r string) string { return keysOf(r).meta() },
		"members":   func(r string) string { return keysOf(r).members() },
		"last_seen": func(r string) string { return keysOf(r).lastSeen() },
		"rev":       func(r string) string { return keysOf(r).revision() },
		"conns":     func(r string) string { return keysOf(r).conns() },
		"held":      func(r string) string { return keysOf(r).held() },
		"conn hash": func(r string) string { return connKey(r, "a") },
		"user":      func(string) string { return userKey("ann-of-another-type") },
	}
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{Grace: time.Minute})
		for _, op := range operations() {
			for name, key := range keys {
				t.Run(op.name+", "+name, func(t *testing.T) {
					room := uniqueRoom(t)
					mustJoin(t, s, room, "bob", "b", `{"other":1}`)
					m := mustJoin(t, s, room, "ann-of-another-type", "a", `{"n":1}`)
					before := mustRead(t, s, room).Rev
					spoil(t, s.rdb, key(room))
					if err := op.do(t.Context(), s, &m); err != nil {
						t.Fatal(err)
					}
					v := mustRead(t, s, room) // reads whatever the operation has not met
					if name != "user" {
						if kind := s.rdb.Type(t.Context(), key(room)).Val(); kind == "list" && name != "conn hash" && name != "held" {
							t.Errorf("%s is still a list", name)
						}
					}
					if name != "conn_meta" && v.Rev < before {
						t.Errorf("the revision fell from %d to %d", before, v.Rev)
					}
					if name != "conn_meta" && stateOf(t, s, room, "b") != `{"other":1}` {
						t.Errorf("another member was lost with %s", name)
					}
					if _, err := s.Join(t.Context(), room, "ann-of-another-type", "a", nil); err != nil {
						t.Errorf("a join afterwards: %v", err)
					}
					if name == "last_seen" || name == "conn hash" { // b's hash is as old as it was
						if _, _, err := s.Heartbeat(t.Context(), room, "b", nil, 0); err != nil {
							t.Errorf("a heartbeat afterwards: %v", err)
						}
					}
					assertAgree(t, s, room)
				})
			}
		}
	})
}

// spoil puts a list in the place of a key.
func spoil(t testing.TB, rdb redis.UniversalClient, key string) {
	t.Helper()
	if err := errors.Join(rdb.Del(t.Context(), key).Err(), rdb.RPush(t.Context(), key, "of", "another", "type").Err()); err != nil {
		t.Fatal(err)
	}
}

func TestTheCounterOfARoomThatLostItsMembersExpires(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		mustJoin(t, s, room, "ann", "a", `{}`)
		spoil(t, s.rdb, keysOf(room).meta())
		if v := mustRead(t, s, room); len(v.Entries) != 0 {
			t.Fatalf("the room has %+v", v.Entries)
		}
		assertAgree(t, s, room)
	})
}

func TestAnIndexOfAnotherTypeIsReplaced(t *testing.T) {
	for name, url := range map[string]string{"miniredis": miniRedis(t).url, "redis": spawnRedis(t).url} {
		t.Run(name, func(t *testing.T) {
			rdb := backend{url: url}.open(t)
			s, room := startService(t, rdb, Options{}), uniqueRoom(t)
			for _, op := range []func() error{
				func() error { return s.indexRoom(t.Context(), room, time.Hour) },
				func() error { return newReaper(s).pass(t.Context()) },
				func() error { return newReaper(s).settle(t.Context(), "1", []claimedRoom{{id: room, seen: true}}) },
			} {
				spoil(t, rdb, activeRoomsKey)
				if err := op(); err != nil {
					t.Error(err)
				}
				if kind := rdb.Type(t.Context(), activeRoomsKey).Val(); kind == "list" {
					t.Error("the index is still a list")
				}
			}
		})
	}
}

// faultyRedis is a client whose scripts can be counted, watched and lost.
type faultyRedis struct {
	redis.UniversalClient

	mu     sync.Mutex
	sent   []string       // digest or text of each script that was sent
	before func(n int)    // called before the n-th script is sent, from 0
	lose   map[int]string // n-th script: "request" never arrives, "answer" is lost after it ran

	holdRoomScripts bool              // scripts of a room do not arrive before held is called
	held            func() *redis.Cmd // sends the last of them
}

var errLost = errors.New("connection lost")

func (f *faultyRedis) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return f.send(ctx, sha, keys, func() *redis.Cmd { return f.UniversalClient.EvalSha(ctx, sha, keys, args...) })
}

func (f *faultyRedis) Eval(ctx context.Context, text string, keys []string, args ...any) *redis.Cmd {
	return f.send(ctx, text, keys, func() *redis.Cmd { return f.UniversalClient.Eval(ctx, text, keys, args...) })
}

func (f *faultyRedis) send(ctx context.Context, what string, keys []string, call func() *redis.Cmd) *redis.Cmd {
	f.mu.Lock()
	n := len(f.sent)
	f.sent = append(f.sent, what)
	before, lost := f.before, f.lose[n]
	f.mu.Unlock()
	if before != nil {
		before(n)
	}
	failed := redis.NewCmd(ctx)
	failed.SetErr(errLost)
	if f.holdRoomScripts && len(keys) > 1 {
		f.held, lost = call, "request"
	}
	if lost == "request" {
		return failed
	}
	answer := call()
	if lost == "answer" {
		return failed
	}
	return answer
}

// start forgets what was sent, and loses from now on what the map says.
func (f *faultyRedis) start(lose map[int]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent, f.lose = nil, lose
}

func (f *faultyRedis) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sent)
}

func TestALostScriptIsNotSentAgainAndARepeatedRequestIsRight_G7(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		for _, op := range operations() {
			t.Run(op.name, func(t *testing.T) {
				rdb := &faultyRedis{UniversalClient: b.open(t)}
				s := startService(t, rdb, Options{Grace: time.Minute})
				wholeRoom, m := prepared(t, s)
				loadEverywhere(t, s, b)
				rdb.start(nil)
				if err := op.do(t.Context(), s, &m); err != nil {
					t.Fatal(err)
				}
				scripts := rdb.count()
				want := picture(t, s, wholeRoom)
				for n := range scripts {
					for _, lost := range []string{"request", "answer"} {
						room, m := prepared(t, s)
						rdb.start(map[int]string{n: lost})
						err := op.do(t.Context(), s, &m)
						if tolerated := op.name == "leave" && n == 1; !tolerated { // the user's index may hold too much
							wantCode(t, err, CodeUnavailable)
							if !errors.Is(err, errLost) {
								t.Errorf("the cause is not in %v", err)
							}
							if sent := rdb.count(); sent != n+1 {
								t.Errorf("%s %d lost: %d scripts were sent, want none after it", lost, n, sent)
							}
						}
						rdb.start(nil)
						if err := op.do(t.Context(), s, &m); err != nil {
							t.Errorf("%s %d lost, then repeated: %v", lost, n, err)
						}
						if got := picture(t, s, room); got != want {
							t.Errorf("%s %d lost, then repeated: the room is %s, want %s", lost, n, got, want)
						}
						assertAgree(t, s, room)
					}
				}
			})
		}
	})
}

// loadEverywhere has every server know every script, so that each is sent once.
func loadEverywhere(t testing.TB, s *Service, b backend) {
	t.Helper()
	all := s.scripts
	for _, sc := range []*script{all.join, all.heartbeat, all.patch, all.restore, all.remove, all.hold, all.read, all.pulse, all.overdue,
		all.indexRoom, all.claimRooms, all.settleRooms, all.indexUser, all.unindexUser} {
		text := sc.flagged
		if s.unflags.Load() {
			text = sc.plain
		}
		if err := b.open(t).ScriptLoad(t.Context(), text.source).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// prepared is a room with two members, and one of them as its node knows it.
func prepared(t testing.TB, s *Service) (room string, m Member) {
	t.Helper()
	room = uniqueRoom(t)
	mustJoin(t, s, room, "bob", "b", `{"other":1}`)
	return room, mustJoin(t, s, room, "ann", "a", `{"n":1}`)
}

// picture is a room without what differs from run to run.
func picture(t testing.TB, s *Service, room string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range mustRead(t, s, room).Entries {
		fmt.Fprintf(&b, "%s of %s with %s; ", e.ConnID, e.UserID, e.State)
	}
	return b.String()
}

func TestScriptFlushAtAnyMomentFailsNoRequest(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s := startService(t, rdb, Options{Grace: time.Minute})
		rdb.before = func(n int) {
			sent := rdb.sent[n]
			if strings.Contains(sent, "\n") {
				return // the text itself
			}
			if err := rdb.ScriptFlush(t.Context()).Err(); err != nil {
				t.Error(err)
			}
		}
		for _, op := range operations() {
			t.Run(op.name, func(t *testing.T) {
				room, m := prepared(t, s)
				rdb.start(nil)
				if err := op.do(t.Context(), s, &m); err != nil {
					t.Fatal(err)
				}
				digests, texts := map[string]int{}, map[string]int{}
				for _, sent := range rdb.sent {
					if strings.Contains(sent, "\n") {
						texts[newScriptText(sent).sha]++
					} else {
						digests[sent]++
					}
				}
				if !maps.Equal(digests, texts) {
					t.Errorf("digests %v and texts %v: want one text for each digest that Redis did not know", digests, texts)
				}
				assertAgree(t, s, room)
			})
		}
	})
}

// oldRedis knows no flags, as before Redis 7: it answers like Redis 6.2.
type oldRedis struct{ redis.UniversalClient }

func (o oldRedis) Eval(ctx context.Context, text string, keys []string, args ...any) *redis.Cmd {
	if strings.HasPrefix(text, "#!") {
		refused := redis.NewCmd(ctx)
		refused.SetErr(errors.New("ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'"))
		return refused
	}
	return o.UniversalClient.Eval(ctx, text, keys, args...)
}

func TestAServerThatKnowsNoFlagsServesTheFirstRequests(t *testing.T) {
	s, room := startService(t, oldRedis{miniRedis(t).open(t)}, Options{}), uniqueRoom(t)
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			if _, err := s.Join(t.Context(), room, "ann", fmt.Sprint("c", i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	assertAgree(t, s, room)
}

// restoreCase is something that a room may have lost, or have otherwise than the member's node knows it.
type restoreCase struct {
	name   string
	spoil  func(t *testing.T, s *Service, m *Member)
	events []string // after the restore
	code   Code
	state  string

	unseen bool // a heartbeat without a patch does not look at it
}

func restoreCases() []restoreCase {
	return []restoreCase{
		{"hash gone", func(t *testing.T, s *Service, m *Member) {
			s.rdb.Del(t.Context(), connKey(m.Room, m.Conn))
		}, nil, "", `{"n":1}`, false},
		{"nothing gone", func(*testing.T, *Service, *Member) {}, nil, "", `{"n":1}`, false},
		{"left falsely", func(t *testing.T, s *Service, m *Member) {
			mustLeave(t, s, m.Room, m.Conn)
		}, []string{`join a ann 2  {"n":1}`}, "", `{"n":1}`, false},
		{"whole room gone", func(t *testing.T, s *Service, m *Member) {
			for _, key := range roomKeysOf(m.Room, "a", "b") {
				s.rdb.Del(t.Context(), key)
			}
		}, []string{`join a ann 1  {"n":1}`}, "", `{"n":1}`, false},
		{"older copy of the state", func(t *testing.T, s *Service, m *Member) {
			copied := dumpHashes(t, s, m)
			if _, _, err := s.heartbeat(t.Context(), m, raw(`{"n":2}`), 0); err != nil {
				t.Fatal(err)
			}
			copied()
		}, []string{`update a ann 2  {"n":2}`}, "", `{"n":2}`, false},
		{"older incarnation", func(t *testing.T, s *Service, m *Member) {
			copied := dumpHashes(t, s, m)
			*m = mustJoin(t, s, m.Room, m.User, m.Conn, `{"n":3}`)
			copied()
		}, []string{`join a ann 2  {"n":3}`}, "", `{"n":3}`, false},
		{"older incarnation of another user", func(t *testing.T, s *Service, m *Member) {
			copied := dumpHashes(t, s, m)
			*m = mustJoin(t, s, m.Room, "cleo", m.Conn, `{"n":4}`)
			copied()
		}, []string{`join a cleo 1  {"n":4}`}, "", `{"n":4}`, false},
		{"newer incarnation", func(t *testing.T, s *Service, m *Member) {
			mustJoin(t, s, m.Room, m.User, m.Conn, `{"n":5}`)
		}, nil, CodeStaleEpoch, `{"n":5}`, false},
		{"newer state", func(t *testing.T, s *Service, m *Member) {
			late := *m
			if _, _, err := s.heartbeat(t.Context(), &late, raw(`{"n":6}`), 0); err != nil {
				t.Fatal(err)
			}
		}, nil, "", `{"n":6}`, false},
		{"user not counted", func(t *testing.T, s *Service, m *Member) {
			s.rdb.HDel(t.Context(), keysOf(m.Room).members(), m.User)
			s.rdb.HDel(t.Context(), keysOf(m.Room).meta(), "b")
			s.rdb.SRem(t.Context(), keysOf(m.Room).conns(), "b")
			s.rdb.ZRem(t.Context(), keysOf(m.Room).lastSeen(), "b")
			s.rdb.Del(t.Context(), connKey(m.Room, "b"))
		}, []string{`update a ann 1  {"n":1}`}, "", `{"n":1}`, true},
		{"not in conns", func(t *testing.T, s *Service, m *Member) {
			s.rdb.SRem(t.Context(), keysOf(m.Room).conns(), m.Conn)
		}, []string{`update a ann 2  {"n":1}`}, "", `{"n":1}`, true},
		{"not in last_seen", func(t *testing.T, s *Service, m *Member) {
			s.rdb.ZRem(t.Context(), keysOf(m.Room).lastSeen(), m.Conn)
		}, []string{`update a ann 2  {"n":1}`}, "", `{"n":1}`, false},
	}
}

func TestRestore_G8(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		for _, c := range restoreCases() {
			for _, way := range []string{"restore", "heartbeat"} {
				if way == "heartbeat" && c.unseen {
					continue
				}
				t.Run(c.name+", "+way, func(t *testing.T) {
					s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
					mustJoin(t, s, room, "ann", "b", `{}`)
					m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
					c.spoil(t, s, &m)
					epoch := m.Epoch
					events := record(t, s.rdb, room)
					var err error
					if way == "restore" {
						err = s.restore(t.Context(), &m, 0, m.Rev)
					} else {
						_, _, err = s.heartbeat(t.Context(), &m, nil, m.Rev)
					}
					if c.code != "" {
						wantCode(t, err, c.code)
					} else if err != nil || m.Epoch != epoch || string(m.State) != c.state {
						t.Errorf("got %v, epoch %d, state %s, want epoch %d, state %s", err, m.Epoch, m.State, epoch, c.state)
					}
					if got := stateOf(t, s, room, "a"); got != c.state {
						t.Errorf("the room has state %s, want %s", got, c.state)
					}
					mustLeave(t, s, room, "a") // an event after which nothing is on its way
					all := events.upTo(t, s, room)
					var got []string
					for _, e := range all[:len(all)-1] {
						got = append(got, short(e))
					}
					if !slices.Equal(got, c.events) {
						t.Errorf("got events %q, want %q", got, c.events)
					}
					assertChain(t, all)
					assertAgree(t, s, room)
				})
			}
		}
	})
}

// dumpHashes copies what the room has of a member. The returned function puts it back, as a failover that lost the last writes.
func dumpHashes(t *testing.T, s *Service, m *Member) (back func()) {
	t.Helper()
	ctx, k := t.Context(), keysOf(m.Room)
	meta := s.rdb.HGet(ctx, k.meta(), m.Conn).Val()
	members := s.rdb.HGetAll(ctx, k.members()).Val()
	hash := s.rdb.HGetAll(ctx, connKey(m.Room, m.Conn)).Val()
	rev := s.rdb.Get(ctx, k.revision()).Val()
	return func() {
		s.rdb.HSet(ctx, k.meta(), m.Conn, meta)
		s.rdb.Del(ctx, k.members())
		s.rdb.HSet(ctx, k.members(), members)
		s.rdb.HSet(ctx, connKey(m.Room, m.Conn), hash)
		s.rdb.Set(ctx, k.revision(), rev, 0)
	}
}

func TestARestoreWritesTheAgeNotNow_G8(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
		m := mustJoin(t, s, room, "ann", "a", `{}`)
		mustLeave(t, s, room, "a")
		const age = 20 * time.Second
		if err := s.restore(t.Context(), &m, age, 0); err != nil {
			t.Fatal(err)
		}
		v := mustRead(t, s, room)
		if silent := v.TS - v.Entries[0].LastSeenMs; silent < age.Milliseconds() || silent > age.Milliseconds()+5000 {
			t.Errorf("the member counts as silent for %d ms, want %v", silent, age)
		}
		if life := s.rdb.PTTL(t.Context(), connKey(room, "a")).Val(); life <= 0 || life > s.options.TTL-age {
			t.Errorf("the hash lives %v, want what is left of the TTL", life)
		}
		due := s.rdb.ZScore(t.Context(), activeRoomsKey, room).Val()
		if late := int64(due) - v.TS; late > (s.options.Lookback - age).Milliseconds() {
			t.Errorf("the reaper looks in %d ms, after the member is overdue", late)
		}
	})
}

func TestAHeartbeatOfAnyProcessBringsNobodyBackWhoLeft_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		other := startService(t, rdb.UniversalClient, Options{})
		joined, err := s.Join(t.Context(), room, "ann", "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		events := record(t, rdb, room)
		rdb.start(nil)
		rdb.before = func(n int) {
			if n == 0 {
				mustLeave(t, other, room, "a")
			}
		}
		_, _, err = s.Heartbeat(t.Context(), room, "a", raw(`{"n":1}`), joined.Epoch)
		wantCode(t, err, CodeNotJoined)
		if all := events.upTo(t, s, room); len(all) != 1 || all[0].Type != EventLeave {
			t.Errorf("got %+v, want the leave only", all)
		}
		assertAgree(t, s, room)
	})
}

func TestWhereAUserIs(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{Lookback: time.Minute}), uniqueRoom(t)
		user := "user of " + room
		index := func() map[string]string { return rdb.HGetAll(t.Context(), userKey(user)).Val() }
		m := mustJoin(t, s, room, user, "a", `{}`)
		if stored, _ := strconv.ParseInt(index()[userField(room, "a")], 10, 64); stored <= 0 || stored > m.Epoch {
			t.Errorf("the index has %v, want an epoch up to %d", index(), m.Epoch)
		}
		if life := rdb.PTTL(t.Context(), userKey(user)).Val(); life <= time.Minute || life > 2*time.Minute {
			t.Errorf("the index lives %v, want two lookbacks", life)
		}

		mustLeave(t, s, room, "a")
		if len(index()) != 0 {
			t.Errorf("after the leave the index has %v", index())
		}

		if err := s.restore(t.Context(), &m, 0, m.Rev); err != nil {
			t.Fatal(err)
		}
		if len(index()) != 1 {
			t.Errorf("after the restore the index has %v", index())
		}
		mustLeave(t, s, room, "a")
		if len(index()) != 0 {
			t.Errorf("after the leave of one that was put back the index has %v", index())
		}
	})
}

// An index holds too much, never too little: a join between a leave and the leave's clean-up stays in it.
func TestAJoinRightAfterALeaveStaysInTheUserIndex(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		other := startService(t, rdb.UniversalClient, Options{})
		user := "user of " + room
		for name, between := range map[string]int{"after the removal": 1, "before the removal": 0} {
			mustJoin(t, s, room, user, "a", `{}`)
			rdb.start(nil)
			rdb.before = func(n int) {
				if n != between {
					return
				}
				if _, err := other.Join(t.Context(), room, user, "a", nil); err != nil {
					t.Error(err)
				}
			}
			m, err := s.find(t.Context(), room, "a")
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err = s.remove(t.Context(), room, removal{reason: ReasonLeft}, []incarnation{{"a", m.Epoch}}); err != nil {
				t.Fatal(err)
			}
			rdb.before = nil
			if stateOf(t, s, room, "a") == "" {
				t.Fatalf("%s: the second incarnation is gone", name)
			}
			if rdb.HLen(t.Context(), userKey(user)).Val() != 1 {
				t.Errorf("%s: the user is in a room, and the index does not say so", name)
			}
		}
	})
}

// A member that leaves by its owner and comes back at once costs the user index nothing, and stays in it. One that does not
// come back is taken out.
func TestTheUserIndexOutlivesAShortAbsence(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := &faultyRedis{UniversalClient: b.open(t)}
		s, room := startService(t, rdb, Options{}), uniqueRoom(t)
		user := "user of " + room
		m := mustJoin(t, s, room, user, "a", `{}`)
		s.left.busy = true // the test tidies
		for range 3 {
			own := removal{reason: ReasonLeft, noted: m.noted}
			if _, gone, err := s.remove(t.Context(), room, own, []incarnation{{"a", m.Epoch}}); err != nil || len(gone) != 1 {
				t.Fatalf("removed %v, %v", gone, err)
			}
			rdb.start(nil)
			var err error
			if m, err = s.join(t.Context(), Member{Room: room, User: user, Conn: "a", State: raw(`{}`)}, m.Epoch); err != nil {
				t.Fatal(err)
			}
			if rdb.count() != 1 {
				t.Errorf("a join right after a leave was %d scripts, want its own only", rdb.count())
			}
		}
		users, busy := s.left.take()
		s.unindexAll(users)
		if index := rdb.HGetAll(t.Context(), userKey(user)).Val(); len(index) != 1 {
			t.Errorf("the user is in a room, and the index has %v", index)
		}
		if busy {
			t.Error("there is something to tidy")
		}
		own := removal{reason: ReasonLeft, noted: m.noted}
		if _, _, err := s.remove(t.Context(), room, own, []incarnation{{"a", m.Epoch}}); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, "the index is empty", func() bool { return rdb.Exists(t.Context(), userKey(user)).Val() == 0 })
	})
}

// What a service still has to take out of the indices is done at its end.
func TestStopTidiesTheUserIndices(t *testing.T) {
	b := miniRedis(t)
	rdb := b.open(t)
	s, room := startService(t, rdb, Options{}), uniqueRoom(t)
	for _, user := range []string{"ann", "bob"} {
		m := mustJoin(t, s, room, user, "c-"+user, `{}`)
		if _, _, err := s.remove(t.Context(), room, removal{reason: ReasonLeft, noted: m.noted}, []incarnation{{m.Conn, m.Epoch}}); err != nil {
			t.Fatal(err)
		}
	}
	s.Stop()
	if left := rdb.Exists(t.Context(), userKey("ann"), userKey("bob")).Val(); left != 0 {
		t.Errorf("%d indices still tell of users who left", left)
	}
}

func TestLivesOfKeys(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		s, room := startService(t, b.open(t), Options{TTL: 40 * time.Second}), uniqueRoom(t)
		m := mustJoin(t, s, room, "ann", "a", `{}`)
		assertAgree(t, s, room)
		s.rdb.PExpire(t.Context(), connKey(room, "a"), time.Second)
		if _, _, err := s.Heartbeat(t.Context(), room, "a", nil, m.Epoch); err != nil {
			t.Fatal(err)
		}
		if life := s.rdb.PTTL(t.Context(), connKey(room, "a")).Val(); life <= time.Second {
			t.Errorf("after a heartbeat the hash lives %v", life)
		}
		mustLeave(t, s, room, "a")
		assertAgree(t, s, room)
		emptied := mustRead(t, s, room).Rev
		again := mustJoin(t, s, room, "ann", "a", `{}`)
		if again.Epoch <= emptied || emptied <= m.Epoch {
			t.Errorf("join %d, emptied %d, join %d: the counter must grow", m.Epoch, emptied, again.Epoch)
		}
		assertAgree(t, s, room)
	})
}

func TestARevisionIsAboveWhatTheCallerKnows(t *testing.T) {
	const known int64 = 1 << 49
	eachBackend(t, func(t *testing.T, b backend) {
		s := startService(t, b.open(t), Options{})
		for name, op := range map[string]func(m *Member) error{
			"join": func(m *Member) error {
				_, err := s.join(t.Context(), *m, known)
				return err
			},
			"patch": func(m *Member) error {
				_, _, err := s.heartbeat(t.Context(), m, raw(`{"p":1}`), known)
				return err
			},
			"restore": func(m *Member) error {
				mustLeave(t, s, m.Room, m.Conn)
				return s.restore(t.Context(), m, 0, known)
			},
			"remove": func(m *Member) error {
				_, _, err := s.remove(t.Context(), m.Room, removal{reason: ReasonLeft, floor: known}, []incarnation{{conn: m.Conn}})
				return err
			},
		} {
			room, m := prepared(t, s)
			if err := op(&m); err != nil {
				t.Fatal(err)
			}
			if rev := mustRead(t, s, room).Rev; rev != known+1 {
				t.Errorf("%s: the revision is %d, want %d", name, rev, known+1)
			}
			mustLeave(t, s, room, "b")
			if rev := mustRead(t, s, room).Rev; rev != known+2 {
				t.Errorf("%s: the next revision is %d, want %d", name, rev, known+2)
			}
		}
	})
}

func TestARoomOutlivesTheHashesOfItsMembers(t *testing.T) {
	b := miniRedis(t)
	s, room := startService(t, b.open(t), Options{TTL: 30 * time.Second}), uniqueRoom(t)
	start := time.Now()
	b.mini.SetTime(start)
	m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
	b.mini.SetTime(start.Add(40 * time.Second))
	if b.mini.Exists(connKey(room, "a")) {
		t.Fatal("the hash outlived the TTL")
	}
	if got := stateOf(t, s, room, "a"); got != `{"n":1}` {
		t.Errorf("the snapshot has state %q", got)
	}
	if changed, _, err := s.Heartbeat(t.Context(), room, "a", raw(`{"m":2}`), m.Epoch); err != nil || !changed {
		t.Errorf("the patch: %t, %v", changed, err)
	}
	if got := stateOf(t, s, room, "a"); got != `{"n":1,"m":2}` {
		t.Errorf("the patched state is %s", got)
	}
	assertAgree(t, s, room)
}

func TestTheCounterOfAnEmptyRoomIsGoneAfterAnHour(t *testing.T) {
	b := miniRedis(t)
	s, room := startService(t, b.open(t), Options{}), uniqueRoom(t)
	start := time.Now()
	b.mini.SetTime(start)
	mustJoin(t, s, room, "ann", "a", `{}`)
	b.mini.Del(keysOf(room).origin()) // as in a room that has lived for so long
	mustLeave(t, s, room, "a")
	b.mini.SetTime(start.Add(time.Hour - time.Second))
	if !b.mini.Exists(keysOf(room).revision()) {
		t.Error("the counter of an empty room is gone too early")
	}
	b.mini.SetTime(start.Add(time.Hour + time.Second))
	if b.mini.Exists(keysOf(room).revision()) {
		t.Error("the counter of an empty room stays")
	}
}

// tableOfKeys are the keys that need not expire, as the protocol lists them.
var tableOfKeys = regexp.MustCompile(`^prs:(active_rooms|\{room:.*\}:(conns|conn_meta|members|last_seen|rev))$`)

func TestEveryKeyIsInTheProtocolsTableOrExpires(t *testing.T) {
	for name, url := range map[string]string{"miniredis": miniRedis(t).url, "redis": spawnRedis(t).url} {
		t.Run(name, func(t *testing.T) {
			rdb := backend{url: url}.open(t)
			s := startService(t, rdb, Options{Grace: time.Minute})
			for _, op := range operations() {
				_, m := prepared(t, s)
				if err := op.do(t.Context(), s, &m); err != nil {
					t.Fatal(err)
				}
			}
			if err := newReaper(s).pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, key := range rdb.Keys(t.Context(), "*").Val() {
				if life := rdb.PTTL(t.Context(), key).Val(); life <= 0 && !tableOfKeys.MatchString(key) {
					t.Errorf("%s is not in the table and lives %v", key, life)
				}
			}
		})
	}
}

// TestARedisWithoutMemoryRefusesJoinsAndLetsMembersLeave also calls the scripts in the form for Redis 6, which Redis 7
// treats as Redis 6 does.
func TestARedisWithoutMemoryRefusesJoinsAndLetsMembersLeave(t *testing.T) {
	p := spawnRedis(t, "--maxmemory-policy", "noeviction")
	rdb := backend{url: p.url}.open(t)
	for _, unflags := range []bool{false, true} {
		t.Run(fmt.Sprintf("unflags=%v", unflags), func(t *testing.T) {
			s, room := startService(t, rdb, Options{}), uniqueRoom(t)
			s.unflags.Store(unflags)
			m := mustJoin(t, s, room, "ann", "a", `{"n":1}`)
			mustJoin(t, s, room, "cat", "silent", "{}")
			mustJoin(t, s, room, "dan", "ahead", "{}")
			mustJoin(t, s, room, "eve", "kicked", "{}")
			age(t, rdb, room, "silent", 1)
			age(t, rdb, room, "ahead", 1e15)
			rdb.ZAdd(t.Context(), activeRoomsKey, redis.Z{Score: 1, Member: room})
			rdb.HSet(t.Context(), connKey(room, "a"), "last_seen_ms", 1)
			renewLeaseOf(t, s, room, 1)
			setMaxMemory(t, rdb, "1mb")
			t.Cleanup(func() { setMaxMemory(t, rdb, "0") })

			keys := append(roomKeysOf(room, "a", "b"), userKey("bob"))
			before := dump(t, rdb, keys...)
			_, err := s.Join(t.Context(), room, "bob", "b", nil)
			wantCode(t, err, CodeUnavailable)
			_, err = s.join(t.Context(), m, 0)
			wantCode(t, err, CodeUnavailable)
			assertSame(t, "without memory", before, dump(t, rdb, keys...))

			refreshed := func(by string) {
				t.Helper()
				if seen := rdb.HGet(t.Context(), connKey(room, "a"), "last_seen_ms").Val(); seen == "1" {
					t.Errorf("%s has refreshed nothing", by)
				}
				rdb.HSet(t.Context(), connKey(room, "a"), "last_seen_ms", 1)
			}
			_, _, err = s.heartbeat(t.Context(), &m, raw(`{"n":2}`), 0)
			wantCode(t, err, CodeUnavailable)
			refreshed("the patch that was refused")
			if _, _, err := s.Heartbeat(t.Context(), room, "a", nil, m.Epoch); err != nil {
				t.Errorf("a heartbeat, which needs no memory: %v", err)
			}
			refreshed("the heartbeat")
			if err := newTrustingReaper(s).pass(t.Context()); err != nil {
				t.Errorf("the reaper: %v", err)
			}
			renewLeaseOf(t, s, room, 0)
			if v := mustRead(t, s, room); len(v.Entries) != 3 || string(v.Entries[0].State) != `{"n":1}` {
				t.Errorf("the room is %+v", v)
			}
			if err := s.Kick(t.Context(), room, "kicked"); err != nil {
				t.Errorf("a kick: %v", err)
			}
			mustLeave(t, s, room, "ahead")
			mustLeave(t, s, room, "a")
			if v := mustRead(t, s, room); len(v.Entries) != 0 {
				t.Errorf("after the leaves the room is %+v", v)
			}
			setMaxMemory(t, rdb, "0")
			assertAgree(t, s, room)
			if _, err := s.Join(t.Context(), room, "bob", "b", nil); err != nil {
				t.Errorf("a join after the shortage: %v", err)
			}
		})
	}
}

// renewLeaseOf begins or renews the lease of a node.
func renewLeaseOf(t *testing.T, s *Service, node string, begins int) {
	t.Helper()
	answer, err := s.run(t.Context(), s.scripts.renewLease, []string{leasesKey, nodeRoomsKey(node)}, node, 60_000, begins, 0, 60_000)
	if err != nil || answer.verdict() != "ok" {
		t.Errorf("a lease: %v, %v", answer, err)
	}
}

// age writes when a member was heard of last.
func age(t *testing.T, rdb redis.UniversalClient, room, conn string, seen float64) {
	t.Helper()
	if err := rdb.ZAdd(t.Context(), keysOf(room).lastSeen(), redis.Z{Score: seen, Member: conn}).Err(); err != nil {
		t.Fatal(err)
	}
}

func setMaxMemory(t *testing.T, rdb redis.UniversalClient, size string) {
	t.Helper()
	if err := rdb.ConfigSet(context.Background(), "maxmemory", size).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAUserOfAnACLThroughTheURL(t *testing.T) {
	// PSUBSCRIBE wants its pattern literally among the allowed ones.
	p := spawnRedis(t, strings.Fields("--user default off --user other on >p@ss:w/rd ~prs:* &prs:{room:*}:events &prs:user:*:conns -@all +@read +@write +@pubsub +@scripting +@connection +time")...)
	b := backend{url: strings.Replace(p.url, "redis://", "redis://other:p%40ss%3Aw%2Frd@", 1)}
	s, room := startService(t, b.open(t), Options{Grace: time.Minute}), uniqueRoom(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Subscribe(ctx, func(Event) {}); err != nil {
		t.Fatal(err)
	}
	for _, op := range operations() {
		_, m := prepared(t, s)
		if err := op.do(t.Context(), s, &m); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
	}
	if err := newReaper(s).pass(t.Context()); err != nil {
		t.Errorf("the reaper: %v", err)
	}
	if _, err := openRedis(t.Context(), strings.Replace(p.url, "redis://", "redis://presence:wrong@", 1), redisLogin{}); err == nil {
		t.Error("a wrong password is let in")
	}
	assertAgree(t, s, room)
}

func TestASubscriptionThatRedisRefusesIsAnError(t *testing.T) {
	p := spawnRedis(t, strings.Fields("--user default off --user deaf on nopass ~* resetchannels +@all")...)
	s := startService(t, backend{url: strings.Replace(p.url, "redis://", "redis://deaf:any@", 1)}.open(t), Options{})
	if err := s.Subscribe(t.Context(), func(Event) {}); err == nil || !strings.Contains(errors.Unwrap(err).Error(), "NOPERM") {
		t.Errorf("the error is %v", err)
	}
}

func TestARoomWhoseSlotMovesStaysUsable(t *testing.T) {
	t.Parallel()
	needRedis(t)
	c, err := startCluster()
	if err != nil {
		t.Fatal(err)
	}
	defer c.remove()
	rdb := backend{url: c.url}.open(t)
	s, room := startService(t, rdb, Options{}), uniqueRoom(t)
	events := record(t, rdb, room)
	m := mustJoin(t, s, room, "ann", "a", `{"n":0}`)
	stop, done := make(chan struct{}), make(chan struct{})
	patched := 0
	go func() {
		defer close(done)
		for n := 1; ; n++ {
			_, _, err := s.heartbeat(t.Context(), &m, raw(fmt.Sprintf(`{"n":%d}`, n)), 0)
			if err == nil {
				patched = n
				select {
				case <-stop:
					return
				default:
				}
				continue
			}
			var refused *Error
			if !errors.As(err, &refused) || refused.Code != CodeUnavailable {
				t.Errorf("while the slot moves: %v", err)
				return
			}
		}
	}()
	moveSlot(t, c, keysOf(room).meta())
	close(stop)
	<-done
	if got, want := stateOf(t, s, room, "a"), fmt.Sprintf(`{"n":%d}`, patched); got != want {
		t.Errorf("the state is %s, want the last one that was confirmed, %s", got, want)
	}
	assertAgree(t, s, room)
	assertChain(t, events.upTo(t, s, room))
}

// moveSlot hands the slot of a key to another master, with the keys in it.
func moveSlot(t *testing.T, c *testCluster, key string) {
	t.Helper()
	ctx := t.Context()
	slot := int64(hashSlot(key))
	nodes := make([]*redis.Client, len(c.nodes))
	ids := make([]string, len(c.nodes))
	from := int(slot) * len(nodes) / 16384
	for i, p := range c.nodes {
		nodes[i] = redis.NewClient(&redis.Options{Addr: p.addr})
		defer nodes[i].Close()
		ids[i] = nodes[i].Do(ctx, "CLUSTER", "MYID").Val().(string)
	}
	if n := nodes[from].ClusterCountKeysInSlot(ctx, int(slot)).Val(); n == 0 {
		t.Fatalf("slot %d is not on the master that it should be on", slot)
	}
	to := (from + 1) % len(nodes)
	do := func(node int, args ...any) {
		if err := nodes[node].Do(ctx, args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	do(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from])
	do(from, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
	host, port, _ := strings.Cut(c.nodes[to].addr, ":")
	for {
		keys := nodes[from].ClusterGetKeysInSlot(ctx, int(slot), 100).Val()
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", host, port, "", 0, 5000, "REPLACE", "KEYS"}
		for _, key := range keys {
			args = append(args, key)
		}
		do(from, args...)
	}
	do(to, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
	do(from, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
}

// schedule is three services on one room, and what each connection's owner knows of it.
type schedule struct {
	services []*Service
	room     string

	mu      sync.Mutex
	members map[string]Member
}

func TestConcurrentOperationsInAnyOrder_G4_G5_G6(t *testing.T) {
	t.Parallel()
	const conns, rounds, steps = 8, 4, 12
	eachBackend(t, func(t *testing.T, b backend) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		d := &schedule{room: uniqueRoom(t), members: map[string]Member{}}
		for range 3 {
			d.services = append(d.services, startService(t, b.open(t), Options{Lookback: time.Minute}))
		}
		events := record(t, d.services[0].rdb, d.room)
		for round := range rounds {
			var work sync.WaitGroup
			for i := range conns {
				random := rand.New(rand.NewPCG(seed, uint64(round*conns+i)))
				work.Go(func() {
					for range steps {
						d.step(t, random, fmt.Sprint("c", i))
					}
				})
			}
			work.Go(func() { d.sweep(t, rand.New(rand.NewPCG(seed, 1<<40+uint64(round)))) })
			work.Wait()
			assertAgree(t, d.services[0], d.room)
			all := events.upTo(t, d.services[0], d.room)
			assertChain(t, all)
			assertOneLeave(t, all)
			d.assertFolded(t, all)
		}
	})
}

// step does something with a connection that only its own goroutine joins and patches.
func (d *schedule) step(t *testing.T, random *rand.Rand, conn string) {
	s := d.services[random.IntN(len(d.services))]
	ctx := t.Context()
	d.mu.Lock()
	old := d.members[conn]
	d.mu.Unlock()
	var err error
	switch random.IntN(6) {
	case 0, 1:
		var joined Joined
		joined, err = s.Join(ctx, d.room, fmt.Sprint("u", random.IntN(3)), conn, raw(fmt.Sprintf(`{"n":%d}`, random.IntN(9))))
		if err == nil && joined.Epoch <= old.Epoch {
			t.Errorf("%s: epoch %d after %d", conn, joined.Epoch, old.Epoch)
		}
		d.mu.Lock()
		d.members[conn] = Member{Epoch: joined.Epoch}
		d.mu.Unlock()
	case 2:
		_, _, err = s.Heartbeat(ctx, d.room, conn, raw(fmt.Sprintf(`{"p":%d}`, random.IntN(3))), 0)
	case 3:
		_, _, err = s.Heartbeat(ctx, d.room, conn, nil, old.Epoch)
	case 4:
		if old.Epoch > 0 {
			_, _, err = s.Heartbeat(ctx, d.room, conn, raw(`{"evil":true}`), old.Epoch-1)
			if err == nil {
				t.Errorf("%s: a patch with an epoch that was never issued was taken", conn)
			}
		}
	case 5:
		err = s.Leave(ctx, d.room, conn)
	}
	var refused *Error
	if errors.As(err, &refused) && refused.Code != CodeNotJoined && refused.Code != CodeStaleEpoch {
		t.Errorf("%s: %v", conn, err)
	}
}

// sweep is what reapers and kicks do: it removes connections whoever owns them, of any or of an older epoch.
func (d *schedule) sweep(t *testing.T, random *rand.Rand) {
	for range 20 {
		s := d.services[random.IntN(len(d.services))]
		conn := fmt.Sprint("c", random.IntN(8))
		d.mu.Lock()
		epoch := d.members[conn].Epoch - int64(random.IntN(2))
		d.mu.Unlock()
		how := removal{reason: ReasonTimeout}
		if random.IntN(2) == 0 {
			how.silent = time.Millisecond
		}
		if _, _, err := s.remove(t.Context(), d.room, how, []incarnation{{conn, max(epoch, 0)}}); err != nil {
			t.Error(err)
		}
	}
}

// assertFolded checks that the events, applied one after the other, give the room, and that each userConns was right.
func (d *schedule) assertFolded(t *testing.T, all []message) {
	t.Helper()
	replica := newReplica(d.room)
	for _, m := range all {
		replica.apply(m.Event)
		if got := replica.users[m.UserID]; got != m.UserConns {
			t.Errorf("revision %d says that %s has %d connections, the events before it make %d", m.Rev, m.UserID, m.UserConns, got)
		}
		if strings.Contains(string(m.State), "evil") {
			t.Errorf("a fenced patch became state: %s", m.State)
		}
	}
	v := mustRead(t, d.services[1], d.room)
	if len(v.Entries) != replica.entries.len() || v.Users != len(replica.users) {
		t.Errorf("the room has %d connections of %d users, its events make %d of %d", len(v.Entries), v.Users, replica.entries.len(), len(replica.users))
	}
	for _, e := range v.Entries {
		if p := replica.entry(e.ConnID); p.Epoch != e.Epoch || p.Rev != e.Rev || string(p.State) != string(e.State) || p.UserID != e.UserID {
			t.Errorf("the room has %+v, its events make %+v", e, p)
		}
	}
}

// lossyHook loses the answers of scripts after they ran, and counts those.
type lossyHook struct{ ran atomic.Int64 }

func (*lossyHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*lossyHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h *lossyHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if strings.HasPrefix(cmd.Name(), "eval") && err == nil {
			h.ran.Add(1)
			return io.EOF
		}
		return err
	}
}

func TestAScriptIsNotSentAgainInACluster(t *testing.T) {
	rdb := redisCluster(t).open(t).(*redis.ClusterClient)
	s, room := startService(t, rdb, Options{}), uniqueRoom(t)
	if _, err := s.Join(t.Context(), room, "ann", "c1", nil); err != nil {
		t.Fatal(err)
	}
	hook := &lossyHook{}
	err := rdb.ForEachMaster(t.Context(), func(_ context.Context, node *redis.Client) error {
		node.AddHook(hook)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Heartbeat(t.Context(), room, "c1", json.RawMessage(`{"a":1}`), 0); !isUnavailable(err) {
		t.Errorf("the error is %v, want unavailable", err)
	}
	if n := hook.ran.Load(); n != 1 {
		t.Errorf("the script ran %d times", n)
	}
}
