package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// usersBody is a request for users.
func usersBody(ids ...string) string {
	list, _ := json.Marshal(ids) // cannot fail
	return `{"userIds":` + string(list) + `}`
}

// TestPostUsers has users on two nodes and in several rooms, one whose index holds too much, and one who is nobody's.
func TestPostUsersTellsWhoIsOnline(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, other, room := startWithAPI(t, b), startNodeFor(t, b), uniqueRoom(t)
		ann, bob, gone := "ann of "+room, `b"\é😀 of `+room, "gone of "+room
		first, second := n.member(t, room, ann, `{"a":1}`), other.member(t, room, ann, "{}")
		second.join(room+" 2", ann, "{}")
		other.member(t, room+" 2", bob, "{}")
		n.member(t, room, gone, "{}").ok(eventLeave, "")
		must(t, n.service.indexUser(t.Context(), Member{Room: room, User: gone, Conn: first.id}, 1))
		seen := n.get(t, "/v1/users/"+percent(gone)).LastSeenMs
		for range 2 {
			got := n.post(t, "/v1/users", usersBody(bob, "nobody of "+room, ann, gone, ann))
			want := fmt.Sprintf(`{"users":[{"userId":%s,"online":true,"conns":1},{"userId":%s,"online":false,"conns":0},`+
				`{"userId":%s,"online":true,"conns":3},{"userId":%s,"online":false,"conns":0,"lastSeenMs":%d},{"userId":%[3]s,"online":true,"conns":3}]}`,
				literal(bob), literal("nobody of "+room), literal(ann), literal(gone), seen)
			if got.status != http.StatusOK || got.text != want {
				t.Errorf("it is answered with %d %s, want %s", got.status, got.text, want)
			}
			if one := n.get(t, "/v1/users/"+percent(ann)); len(one.Conns) != 3 {
				t.Errorf("one user is %s", one.text)
			}
		}
		second.ok(eventLeave, "")
		want := `"online":true,"conns":1`
		if got := n.post(t, "/v1/users", usersBody(ann)); !strings.Contains(got.text, want) {
			t.Errorf("after leaves it is answered with %s, want %s", got.text, want)
		}
	})
}

func TestMistakesInRequestsForUsers(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	many := strings.Split(strings.Repeat("x,", maxUsersAsked), ",") // one too many
	for body, code := range map[string]Code{
		`{"userIds":null}`:                                     CodeInvalidPayload,
		`{"userids":["a"]}`:                                    CodeInvalidPayload,
		`{"userIds":[]}`:                                       CodeInvalidPayload,
		`{"userIds":"a"}`:                                      CodeInvalidPayload,
		`{"userIds":{"a":1}}`:                                  CodeInvalidPayload,
		`{"userIds":["a",1]}`:                                  CodeInvalidPayload,
		`{"userIds":["a",null]}`:                               CodeInvalidPayload,
		`{"userIds":[["a"]]}`:                                  CodeInvalidPayload,
		`{"userIds":["a",""]}`:                                 CodeInvalidPayload,
		`{"userIds":["a\u0000"]}`:                              CodeInvalidPayload,
		`{"userIds":["\u009f"]}`:                               CodeInvalidPayload,
		`{"userIds":["\ud800"]}`:                               CodeInvalidPayload,
		usersBody(strings.Repeat("é", 101)):                    CodeInvalidPayload,
		usersBody(append(many[:1000], "x")...):                 CodeTooManyUsers,
		`{"userIds":[` + strings.Repeat("0,", 200_000) + `0]}`: CodeTooManyUsers,
	} {
		n.post(t, "/v1/users", body).wantRefusal(t, body, http.StatusBadRequest, code)
	}
	longest := make([]string, maxUsersAsked)
	for i := range longest {
		longest[i] = fmt.Sprintf("%04d", i) + strings.Repeat("é", 98)
	}
	if got := n.post(t, "/v1/users", usersBody(longest...)); got.status != http.StatusOK || strings.Count(got.text, `"conns":0`) != maxUsersAsked {
		t.Errorf("the longest list is answered with %d %s", got.status, short80(got.text))
	}
}

// roundTrips counts those of single commands and of pipelines.
type roundTrips struct{ atomic.Int64 }

func (*roundTrips) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *roundTrips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.Add(1)
		return next(ctx, cmd)
	}
}

func (h *roundTrips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.Add(1)
		return next(ctx, cmds)
	}
}

// TestPostUsersTakesFewRoundTrips asks for a thousand users, each in a room of their own.
func TestPostUsersTakesFewRoundTrips(t *testing.T) {
	t.Parallel()
	hook := &roundTrips{}
	rdb := realRedis(t).open(t)
	rdb.AddHook(hook)
	pipes := newPipelines(rdb)
	t.Cleanup(func() { _ = pipes.Close() })
	s := startService(t, pipes, Options{})
	users, room := make([]string, maxUsersAsked), uniqueRoom(t)
	must(t, inParallel(directoryWorkers, len(users), func(i int) error {
		users[i] = fmt.Sprint("user ", i, " of ", room)
		_, err := s.Join(t.Context(), fmt.Sprint(room, i), users[i], "c1", nil)
		return err
	}))
	before := hook.Load()
	all, err := s.statuses(t.Context(), users)
	online := 0
	for _, u := range all {
		online += u.conns
	}
	if took := hook.Load() - before; err != nil || online != len(users) || took > 500 {
		t.Errorf("%d of %d users are online, after %d round trips, %v", online, len(users), took, err)
	}
}

// TestPostUsersWithoutRedisIsUnavailable: nobody is told to be offline because Redis did not answer, as for some of the users.
func TestPostUsersWithoutRedisIsUnavailable(t *testing.T) {
	t.Parallel()
	for name, what := range map[string]trouble{"refusing": refuse, "hanging": hang} {
		for _, script := range []string{"places", "find"} {
			t.Run(name+", "+script, func(t *testing.T) {
				t.Parallel()
				rdb := &troubledRedis{UniversalClient: miniRedis(t).open(t)}
				n := startNodeOn(t, rdb, "PRESENCE_API_KEY="+testAPIKey)
				n.member(t, "room", "ann", "{}")
				rdb.meets(script, what)
				began := time.Now()
				n.post(t, "/v1/users", usersBody("nobody", "ann")).wantRefusal(t, script, http.StatusServiceUnavailable, CodeUnavailable)
				if took := time.Since(began); took > answerWithin+late {
					t.Errorf("it took %v", took)
				}
				rdb.recover()
				if got := n.post(t, "/v1/users", usersBody("nobody", "ann")); got.status != http.StatusOK {
					t.Errorf("then it is answered with %d %s", got.status, got.text)
				}
			})
		}
	}
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		server := spawnRedis(t)
		n := startWithAPI(t, backend{url: server.url})
		server.signal(syscall.SIGSTOP)
		n.post(t, "/v1/users", usersBody("nobody")).wantRefusal(t, "a list", http.StatusServiceUnavailable, CodeUnavailable)
		server.signal(syscall.SIGCONT)
	})
}
