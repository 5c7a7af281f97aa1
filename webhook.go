package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Kinds of hook events: of a user in a room, and of a room.
const (
	hookJoin     = "join"
	hookLeave    = "leave"
	hookOccupied = "occupied"
	hookVacated  = "vacated"
)

// hookEvent is what the receiver is told.
type hookEvent struct {
	Type   string `json:"type"`
	RoomID string `json:"roomId"`
	UserID string `json:"userId"` // whose coming or going it was
	Rev    int64  `json:"rev"`    // the room's revision after it
	TS     int64  `json:"ts"`     // milliseconds since 1970, Redis' clock
	Reason Reason `json:"reason,omitempty"`
}

// hookTimes are how patient a webhook is.
type hookTimes struct {
	collect time.Duration // what comes within this time goes out together
	answer  time.Duration // for the receiver to answer a post
	pause   time.Duration // before the second try; each further one waits twice as long, up to hookPause
	give    int           // tries, after which a post is given up
}

func usualHookTimes() hookTimes {
	return hookTimes{collect: 100 * time.Millisecond, answer: 5 * time.Second, pause: 500 * time.Millisecond, give: 10}
}

const (
	hookBatch   = 100    // events in one post
	hookWaiting = 10_000 // events that wait for a receiver that fails; more push out the oldest

	// The longest pause between two tries.
	hookPause = 30 * time.Second

	// An answer of the receiver is read up to here, so that the connection can be used again.
	hookAnswer = 4096
)

// webhook posts to one URL who comes and goes. Each event comes from the node whose script wrote it, which posts its events
// one after the other, and keeps them in memory only.
type webhook struct {
	*background
	url, secret string
	client      *http.Client
	times       hookTimes
	metrics     *metrics
	log         *slog.Logger

	mu      mutex[ofNone]
	waiting []hookEvent
	wake    wakeup
	ending  chan struct{} // closed when no more events come: from then on each post has one try
}

func newWebhook(target, secret string, times hookTimes, m *metrics, log *slog.Logger) *webhook {
	h := &webhook{
		background: newBackground(),
		url:        target, secret: secret, times: times, metrics: m, log: log,
		wake: newWakeup(), ending: make(chan struct{}),
		client: &http.Client{
			Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 1},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	h.keep(log, "webhook", h.loop, h.wake.send)
	return h
}

// changed is a service's OnChange.
func (h *webhook) changed(room string, changes []Change) {
	var events []hookEvent
	for _, c := range changes {
		if !c.UserChanged {
			continue
		}
		e := hookEvent{Type: string(c.Type), RoomID: room, UserID: c.User, Rev: c.Rev, TS: c.TS, Reason: c.Reason}
		of := hookEvent{Type: hookOccupied, RoomID: room, UserID: c.User, Rev: c.Rev, TS: c.TS}
		switch {
		case !c.RoomChanged:
			events = append(events, e)
		case c.Type == EventJoin:
			events = append(events, of, e)
		default:
			of.Type = hookVacated
			events = append(events, e, of)
		}
	}
	h.add(events)
}

func (h *webhook) add(events []hookEvent) {
	if len(events) == 0 {
		return
	}
	h.mu.Lock()
	h.waiting = append(h.waiting, events...)
	over := max(0, len(h.waiting)-hookWaiting)
	clear(h.waiting[:over]) // appending moves the rest to the front of a new array at times, and not for each event
	h.waiting = h.waiting[over:]
	h.mu.Unlock()
	h.metrics.posted(hookDropped, over)
	h.wake.send()
}

// close posts what waits, as long as ctx allows, once each, and returns how many events nobody was told of.
func (h *webhook) close(ctx context.Context) (lost int) {
	close(h.ending)
	defer context.AfterFunc(ctx, h.stop)()
	h.work.Wait()
	h.stop()
	h.client.CloseIdleConnections()
	return len(h.waiting)
}

// loop ends with close.
func (h *webhook) loop() {
	for {
		select {
		case <-h.wake:
			h.rest(h.times.collect)
		case <-h.ending:
		}
		for h.postNext() {
		}
		if h.isEnding() {
			return
		}
	}
}

func (h *webhook) isEnding() bool {
	select {
	case <-h.ending:
		return true
	default:
		return false
	}
}

// rest pauses, unless everything comes to its end.
func (h *webhook) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.ending:
	}
}

// postNext posts a batch and tells whether there may be more. At the end, a batch that fails stays.
func (h *webhook) postNext() bool {
	h.mu.Lock()
	batch := slices.Clone(h.waiting[:min(hookBatch, len(h.waiting))])
	h.mu.Unlock()
	if len(batch) == 0 {
		return false
	}
	result := hookSent
	if !h.deliver(batch) {
		if h.isEnding() {
			return false
		}
		result = hookFailed
	}
	h.metrics.posted(result, len(batch))
	h.strike(batch)
	return true
}

// strike takes what has been dealt with out of what waits, where newer events may have pushed it out already.
func (h *webhook) strike(batch []hookEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.waiting) > 0 && slices.Contains(batch, h.waiting[0]) {
		h.waiting = h.waiting[1:]
	}
}

// deliver posts one batch until the receiver has taken it.
func (h *webhook) deliver(batch []hookEvent) bool {
	slices.SortStableFunc(batch, func(a, b hookEvent) int { return cmp.Compare(a.Rev, b.Rev) }) // scripts answer in any order
	body, err := json.Marshal(struct {
		Events []hookEvent `json:"events"`
	}{batch})
	if err != nil {
		h.log.Error("a webhook's events are no JSON", "error", err)
		return false
	}
	id, pause := rand.Text(), h.times.pause
	for try := 1; ; try++ {
		err := h.post(id, body)
		if err == nil {
			return true
		}
		h.log.Warn("the webhook's receiver has not taken a post", "try", try, "events", len(batch), "error", err)
		if try == h.times.give || h.isEnding() {
			return false
		}
		h.rest(pause)
		pause = min(2*pause, hookPause)
	}
}

// post tries once. Only an answer of 2xx says that the receiver has it.
func (h *webhook) post(id string, body []byte) error {
	ctx, cancel := context.WithTimeout(h.ctx, h.times.answer)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return withoutURL(err)
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "presence/"+version)
	request.Header.Set("Presence-Id", id)
	request.Header.Set("Presence-Timestamp", now)
	if h.secret != "" {
		request.Header.Set("Presence-Signature", sign(h.secret, now, body))
	}
	response, err := h.client.Do(request)
	if err != nil {
		return withoutURL(err)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, hookAnswer) // its end is no matter
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// sign is HMAC-SHA256 over timestamp, a dot and the body, as "sha256=" and hexadecimal digits.
func sign(secret, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// withoutURL is an error that may be logged: the URL may hold a secret.
func withoutURL(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}
