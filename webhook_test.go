package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const hookSecret = "a secret of both sides"

// hookReceiver is a receiver of posts that can be told to misbehave.
type hookReceiver struct {
	*httptest.Server
	t testing.TB

	mu     sync.Mutex
	behave func(post int, w http.ResponseWriter, r *http.Request) (taken bool) // nil = takes everything
	posts  int
	ids    []string    // of all posts
	events []hookEvent // of those that were taken
}

func receiveHooks(t testing.TB) *hookReceiver {
	t.Helper()
	h := &hookReceiver{t: t}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hookReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if want := sign(hookSecret, r.Header.Get("Presence-Timestamp"), body); err != nil || r.Method != http.MethodPost || r.Header.Get("Presence-Signature") != want {
		h.t.Errorf("a post with %v and signature %q, want %q, %v", r.Header, r.Header.Get("Presence-Signature"), want, err)
	}
	var post struct{ Events []hookEvent }
	if err := json.Unmarshal(body, &post); err != nil || len(post.Events) == 0 || len(post.Events) > hookBatch {
		h.t.Errorf("a post holds %q, %v", body, err)
	}
	h.mu.Lock()
	h.posts++
	count, behave := h.posts, h.behave
	h.ids = append(h.ids, r.Header.Get("Presence-Id"))
	h.mu.Unlock()
	if behave != nil && !behave(count, w, r) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, post.Events...)
}

// of are the events of a room so far, by revision: "join ann", "leave ann left".
func (h *hookReceiver) of(room string) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := slices.Clone(h.events)
	slices.SortStableFunc(events, func(a, b hookEvent) int { return int(a.Rev - b.Rev) })
	for _, e := range events {
		if e.RoomID == room {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Type, e.UserID, e.Reason)))
		}
		if e.Rev == 0 || e.TS == 0 {
			h.t.Errorf("an event without revision or time: %+v", e)
		}
	}
	return list
}

func (h *hookReceiver) wants(room string, want ...string) {
	h.t.Helper()
	if !poll(15*time.Second, func() bool { return len(h.of(room)) >= len(want) }) || !slices.Equal(h.of(room), want) {
		h.t.Errorf("told of %s\n%q, want\n%q", room, h.of(room), want)
	}
}

// TestTheWebhookTellsWhoComesAndGoesOnce has two nodes that both post. First and last of a user, and of a room, are decided
// where the change is written.
func TestTheWebhookTellsWhoComesAndGoesOnce(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		receiver, room := receiveHooks(t), uniqueRoom(t)+" é"
		settings := []string{"PRESENCE_WEBHOOK_URL=" + receiver.URL + "/hook?a=b", "PRESENCE_WEBHOOK_SECRET=" + hookSecret, "PRESENCE_API_KEY=" + testAPIKey}
		n, other := startNodeFor(t, b, settings...), startNodeFor(t, b, settings...)
		tab, second, bob := n.member(t, room, "ann", "{}"), other.member(t, room, "ann", "{}"), other.member(t, room, "bob", "{}")
		tab.join(room, "ann", `{"again":true}`)
		tab.ok(eventHeartbeat, inRoom(room, `,"patchState":{"a":1}`))
		tab.ok(eventLeave, "")
		_ = second.conn.Close()
		bob.sees(EventLeave, second.id)
		bob.join(room, "eve", "{}")
		tab.join(room, "ann", "{}")
		n.kick(t, room, bob.id)
		if _, _, err := other.service.remove(t.Context(), room, removal{reason: ReasonTimeout}, []incarnation{{conn: tab.id}}); err != nil {
			t.Fatal(err)
		}
		tab.ok(eventHeartbeat, "") // puts it back
		_ = tab.conn.Close()
		receiver.wants(room, "occupied ann", "join ann", "join bob", "leave ann disconnected", "leave bob replaced", "join eve", "join ann",
			"leave eve kicked", "leave ann timeout", "vacated ann", "occupied ann", "join ann", "leave ann disconnected", "vacated ann")
	})
}

// quickHook posts to the receiver in a hurry.
func quickHook(t testing.TB, receiver *hookReceiver, log *slog.Logger) (*webhook, *metrics) {
	m := newMetrics(gauges{})
	return newWebhook(receiver.URL, hookSecret, hookTimes{collect: time.Millisecond, answer: 300 * time.Millisecond, pause: time.Millisecond, give: 6}, m, log), m
}

func hookEvents(from, to int) (list []hookEvent) {
	for rev := from; rev < to; rev++ {
		list = append(list, hookEvent{Type: hookJoin, RoomID: "home", UserID: fmt.Sprint(rev), Rev: int64(rev), TS: 1})
	}
	return list
}

func joins(from, to int) (list []string) {
	for rev := from; rev < to; rev++ {
		list = append(list, fmt.Sprint("join ", rev))
	}
	return list
}

func TestTheWebhookSurvivesItsReceiver(t *testing.T) {
	t.Parallel()
	for name, misbehave := range map[string]func(w http.ResponseWriter, r *http.Request){
		"fails":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"refuses":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"hangs":     func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"cuts off":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			receiver := receiveHooks(t)
			receiver.behave = func(post int, w http.ResponseWriter, r *http.Request) bool {
				if post > 2 {
					return true
				}
				misbehave(w, r)
				return false
			}
			h, _ := quickHook(t, receiver, testLogger(t))
			h.add(hookEvents(1, 251))
			receiver.wants("home", joins(1, 251)...)
			if lost := h.close(t.Context()); lost != 0 {
				t.Errorf("%d events are lost", lost)
			}
			receiver.mu.Lock()
			defer receiver.mu.Unlock()
			if ids := receiver.ids; ids[0] != ids[1] || ids[1] != ids[2] || ids[2] == ids[3] {
				t.Errorf("the posts have the ids %q", ids)
			}
		})
	}
}

// TestTheWebhookGivesUp loses what nobody takes, says so, and goes on with what comes after it.
func TestTheWebhookGivesUp(t *testing.T) {
	receiver, logged := receiveHooks(t), &lockedBuffer{}
	receiver.behave = func(post int, w http.ResponseWriter, _ *http.Request) bool {
		if post <= 6 {
			w.WriteHeader(http.StatusBadGateway)
		}
		return post > 6
	}
	receiver.URL = strings.Replace(receiver.URL, "http://", "http://ann:pa55@", 1) + "/?token=t0ken"
	h, m := quickHook(t, receiver, slog.New(slog.NewTextHandler(logged, nil)))
	h.add(hookEvents(1, 101))
	eventually(t, 10*time.Second, "six posts", func() bool {
		receiver.mu.Lock()
		defer receiver.mu.Unlock()
		return receiver.posts >= 6
	})
	h.add(hookEvents(101, 111))
	receiver.wants("home", joins(101, 111)...)
	h.close(t.Context())
	if failed, sent := counted(t, m.hooks[hookFailed]), counted(t, m.hooks[hookSent]); failed != 100 || sent != 10 {
		t.Errorf("%v failed and %v were sent", failed, sent)
	}
	for _, secret := range []string{"pa55", "t0ken", hookSecret} {
		if strings.Contains(logged.String(), secret) {
			t.Errorf("the log tells %q", secret)
		}
	}
}

func TestTheWebhookPostsWhatWaitsAtItsEnd(t *testing.T) {
	receiver := receiveHooks(t)
	m, times := newMetrics(gauges{}), usualHookTimes()
	times.collect = time.Hour
	h := newWebhook(receiver.URL, hookSecret, times, m, testLogger(t))
	h.add(hookEvents(1, 251))
	if lost := h.close(t.Context()); lost != 0 {
		t.Errorf("%d events are lost", lost)
	}
	receiver.wants("home", joins(1, 251)...)
}

// TestTheWebhookBoundsWhatWaits while its receiver hangs, and does not wait for it at the end.
func TestTheWebhookBoundsWhatWaits(t *testing.T) {
	receiver := receiveHooks(t)
	hanging := make(chan struct{}, 100)
	receiver.behave = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		hanging <- struct{}{}
		<-r.Context().Done()
		return false
	}
	h, m := quickHook(t, receiver, testLogger(t))
	h.add(hookEvents(1, hookWaiting+1))
	<-hanging
	h.add(hookEvents(hookWaiting+1, hookWaiting+51))
	if dropped := counted(t, m.hooks[hookDropped]); dropped != 50 {
		t.Errorf("%v events were dropped", dropped)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if lost := h.close(ctx); lost < hookWaiting-hookBatch {
		t.Errorf("%d events are lost", lost)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// TestWithoutAWebhookScriptsTellNothing: their texts and answers are those without it.
func TestWithoutAWebhookScriptsTellNothing(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	if n.webhook != nil || n.service.scripts.join.tells || strings.Contains(n.service.scripts.join.legacy.source, "with_told") {
		t.Error("there is a webhook although nobody asked for one")
	}
}

// An event that pushes out the oldest of a full queue leaves the others where they are, but for a few times.
func TestAFullWebhookQueueIsNotMovedForEachEvent(t *testing.T) {
	const events = 5 * hookWaiting
	h := &webhook{wake: make(chan struct{}, 1), waiting: hookEvents(0, hookWaiting)}
	one, moves := hookEvents(0, 1), 0
	for range events {
		second := &h.waiting[1]
		h.add(one)
		if &h.waiting[0] != second {
			moves++
		}
	}
	if len(h.waiting) != hookWaiting || moves > events/1000 {
		t.Errorf("%d of %d events moved the %d that wait", moves, events, len(h.waiting))
	}
}
