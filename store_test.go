package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	return mustJoinFrom(t, s, room, user, conn, "", state)
}

// mustJoinFrom is mustJoin with a device.
func mustJoinFrom(t testing.TB, s *Service, room, user, conn, device, state string) Member {
	t.Helper()
	if err := s.indexRoom(t.Context(), room, s.options.Lookback); err != nil {
		t.Fatal(err)
	}
	m, err := s.join(t.Context(), Member{Room: room, User: user, Conn: conn, Device: device, State: json.RawMessage(state)}, 0)
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
