package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// readFrames gives the payloads of the frames up to one with this payload.
func readFrames(t *testing.T, in io.Reader, last string) (all []string) {
	t.Helper()
	for {
		h, err := ws.ReadHeader(in)
		if err != nil {
			t.Fatalf("after %d frames: %v", len(all), err)
		}
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(in, p); err != nil {
			t.Fatal(err)
		}
		all = append(all, string(p[1:]))
		if string(p[1:]) == last {
			return all
		}
	}
}

// pipePair is a connection that holds nothing: x is behind from its first frame on, which is "first", until reader reads.
func pipePair(t *testing.T, change func(*socketOptions)) (x *webSocket, reader net.Conn) {
	server, reader := net.Pipe()
	o := &socketOptions{MaxUnsentBytes: 1 << 20, WriteTimeout: patience, TakeTimeout: patience}
	change(o)
	x = &webSocket{}
	x.init(server, nil, o)
	t.Cleanup(func() { _ = reader.Close(); x.abort(errClosed); x.awaitEnd() })
	x.send(newFrame([]byte("first")))
	return x, reader
}

// fillKernel sends until the kernel takes no more for now.
func fillKernel(t *testing.T, x *webSocket) {
	t.Helper()
	for behind := false; !behind; {
		x.send(newFrame([]byte(long(1000))))
		x.mu.Lock()
		behind = x.draining != nil
		x.mu.Unlock()
		if err := x.reason(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAClientThatIsBehindSkipsUpdates_G2(t *testing.T) {
	total := newUnsent(1 << 30)
	x, client := pipePair(t, func(o *socketOptions) { o.Unsent = total })
	calm, other := socketPair(t, func(o *socketOptions) { o.Unsent = total })
	a, b, c := memberUpdate{"r", "a", 1}, memberUpdate{"r", "b", 2}, memberUpdate{"r", "a", 9}
	for _, step := range []struct {
		what string
		of   memberUpdate
	}{
		{"a1", a}, {"b1", b}, {"join x", memberUpdate{}}, {"a2", memberUpdate{"r", "a", 1}}, {"leave a", memberUpdate{}}, {"join a", memberUpdate{}}, {"a of 9, 1", c}, {"b2", b}, {"a of 9, 2", c},
		{"in another room", memberUpdate{"s", "a", 9}}, {"leave x", memberUpdate{}}, {"end", memberUpdate{}},
	} {
		for _, to := range []*webSocket{x, calm} {
			if to.add(frameParts{newFrame([]byte(step.what))}, step.of) {
				to.flush()
			}
		}
	}
	want := []string{"first", "join x", "a2", "leave a", "join a", "b2", "a of 9, 2", "in another room", "leave x", "end"}
	if got := readFrames(t, client, "end"); !slices.Equal(got, want) {
		t.Errorf("who is behind is sent %q, want %q", got, want)
	}
	if got := readFrames(t, other, "end"); len(got) != 12 {
		t.Errorf("who is not behind is sent %q", got)
	}
	eventually(t, patience, "nothing is counted any more", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		total.mu.Lock()
		defer total.mu.Unlock()
		return total.total == 0 && len(total.frames)+len(total.clients) == 0 && x.backlog.bytes == 0 && x.waiting.len()+len(x.waiting.updates) == 0
	})
}

// A client that reads slowly is not cut for what one member sends; it is for what is not to be skipped.
func TestUpdatesOfOneMemberDoNotCutAClient(t *testing.T) {
	x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 100_000 })
	fillKernel(t, x)
	for i := range 10_000 {
		x.queue(newFrame(fmt.Appendf(nil, "%d %s", i, long(3000))), memberUpdate{"r", "a", 1})
	}
	if err := x.reason(); err != nil || x.held() > 100_000 {
		t.Fatalf("ended of %v, %d bytes wait", err, x.held())
	}
	x.send(newFrame([]byte("end")))
	all := readFrames(t, client, "end")
	if last := all[len(all)-2]; !strings.HasPrefix(last, "9999 ") {
		t.Errorf("the last update is %.20q", last)
	}
	fillKernel(t, x)
	for range 100 {
		x.send(newFrame([]byte(long(3000))))
	}
	if err := x.reason(); !errors.Is(err, errTooSlow) {
		t.Errorf("ended of %v", err)
	}
}

// A client is cut that accepts only little of what waits, whatever is skipped meanwhile.
func TestSkippingGivesNoMoreTime(t *testing.T) {
	x, _ := pipePair(t, func(o *socketOptions) { o.TakeTimeout = 100 * time.Millisecond })
	eventually(t, patience, "it is cut", func() bool {
		x.queue(newFrame([]byte(long(100))), memberUpdate{"r", "a", 1})
		return x.reason() != nil
	})
}

// What is sent is what was queued, less updates behind which a later one of the same incarnation is sent; and the counts are right.
func TestWhatIsSkippedIsReplaced_G2(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 1 << 20 })
	in, sent, received := bufio.NewReader(client), []string{}, 0
	for round := range 30 {
		if round%2 == 1 {
			fillKernel(t, x)
		}
		for i, burst := 0, random.IntN(600); i < burst; i++ {
			of, what := memberUpdate{"r", fmt.Sprint(random.IntN(4)), 1}, ""
			if random.IntN(3) == 0 {
				of = memberUpdate{}
			} else {
				what = "of " + of.conn
			}
			sent = append(sent, fmt.Sprintf("%d %s %s", len(sent), what, long(random.IntN(1500))))
			if x.add(frameParts{newFrame([]byte(sent[len(sent)-1]))}, of) && random.IntN(2) == 0 {
				x.flush()
			}
		}
		x.flush()
		end := fmt.Sprintf("%d end", len(sent))
		sent = append(sent, end)
		x.send(newFrame([]byte(end)))
		got := slices.DeleteFunc(readFrames(t, in, end), func(f string) bool { return strings.HasPrefix(f, "x") })
		assertReplaced(t, sent[len(sent)-1-burstOf(sent):], got)
		received += len(got)
		if err := x.reason(); err != nil {
			t.Fatal(err)
		}
	}
	if received == len(sent) {
		t.Error("nothing was skipped")
	}
	eventually(t, patience, "nothing waits", func() bool { return x.held() == 0 })
}

// burstOf is how many frames were sent behind the end before the last.
func burstOf(sent []string) int {
	for i := len(sent) - 2; i >= 0; i-- {
		if strings.HasSuffix(sent[i], " end") {
			return len(sent) - 2 - i
		}
	}
	return len(sent) - 1
}

func assertReplaced(t *testing.T, sent, got []string) {
	t.Helper()
	member := func(frame string) string {
		words := strings.Fields(frame)
		if len(words) > 2 && words[1] == "of" {
			return words[2]
		}
		return ""
	}
	for i, frame := range sent {
		switch {
		case len(got) > 0 && got[0] == frame:
			got = got[1:]
		case member(frame) == "" || !slices.ContainsFunc(sent[i+1:], func(later string) bool { return member(later) == member(frame) }):
			t.Fatalf("not sent, or out of order: %.30q", frame)
		}
	}
	if len(got) > 0 {
		t.Fatalf("sent twice or out of order: %.30q", got[0])
	}
}

// What waits in front of a message larger than the limit is not skipped: the count of what the limit is for would be wrong.
func TestWhatIsBeforeALargeMessageStays(t *testing.T) {
	const limit = 1000
	x, client := pipePair(t, func(o *socketOptions) { o.MaxUnsentBytes = limit })
	a := memberUpdate{"r", "a", 1}
	for _, what := range []string{"a1", "a2"} {
		x.queue(newFrame([]byte(what)), a)
	}
	x.queue(newFrame([]byte("large "+long(2*limit))), memberUpdate{"r", "b", 2})
	for _, what := range []string{"a3", "a4"} {
		x.queue(newFrame([]byte(what)), a)
	}
	x.mu.Lock()
	if x.backlog.bytes-x.backlog.large != len(newFrame([]byte("a4"))) {
		t.Errorf("%+v is counted", x.backlog)
	}
	x.mu.Unlock()
	got := readFrames(t, client, "a4")
	if got = got[len(got)-3:]; got[0] != "a2" || !strings.HasPrefix(got[1], "large") {
		t.Errorf("is sent %.20q", got)
	}
}

// A polling client that is behind skips updates; one that polls in time does not.
func TestAPollingClientThatIsBehindSkipsUpdates_G2(t *testing.T) {
	p := &polled{sockets: &sockets{socketOptions: socketOptions{MaxUnsentBytes: 8 << 20, WriteTimeout: time.Hour}}}
	of := memberUpdate{"r", "a", 1}
	for i := range 3 {
		p.queue(newFrame(fmt.Appendf(nil, "calm %d", i)), of)
	}
	p.queue(newFrame([]byte(long(pollPiece))), memberUpdate{})
	for i := range 1000 {
		p.queue(newFrame(fmt.Appendf(nil, "%d%s", i, long(3000))), of)
		p.queue(newFrame(fmt.Appendf(nil, "%d", i)), memberUpdate{"r", "b", 2})
	}
	p.queue(newFrame([]byte("end")), memberUpdate{})
	defer p.resume()
	var got []string
	p.mu.Lock()
	all := p.waiting.takeAll()
	p.forget(all)
	p.mu.Unlock()
	for _, f := range all {
		got = append(got, string(frame(f[0]).packet()[1:]))
	}
	if len(got) != 7 || got[2] != "calm 2" || !strings.HasPrefix(got[4], "999x") || got[5] != "999" || got[6] != "end" || p.unsent.bytes != 0 {
		t.Errorf("%d frames: %.20q, %d bytes are counted", len(got), got, p.unsent.bytes)
	}
}

// wireEvents gives the events of frames, as a client is sent them.
func wireEvents(t *testing.T, in io.Reader, last int64) (events []string) {
	for {
		h, err := ws.ReadHeader(in)
		if err != nil {
			t.Errorf("after %d events: %v", len(events), err)
			return events
		}
		packet := make([]byte, h.Length)
		if _, err := io.ReadFull(in, packet); err != nil {
			t.Error(err)
			return events
		}
		if string(packet[1:]) == "first" {
			continue
		}
		var args []json.RawMessage
		var e wireEvent
		if err := errors.Join(json.Unmarshal(packet[2:], &args), json.Unmarshal(args[1], &e)); err != nil {
			t.Errorf("%.50q: %v", packet, err)
			return events
		}
		events = append(events, fmt.Sprintf("%s %s %.3s @%d", e.Type, e.ConnID, strings.TrimPrefix(string(e.State), `{"n":"`), e.Rev))
		if e.Rev == last {
			return events
		}
	}
}

// A client that does not read while others send much is not cut: it skips states, never members, and ends with the room as it
// is. Who reads in time gets each event.
func TestASlowReaderEndsWithTheRoom_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.hub.encode.event = presenceFrame
		w.source.store(2, here("a", 1, "{}"), here("b", 2, "{}"))
		r := w.room()
		begin := func(id string) (*webSocket, net.Conn) {
			x, reader := pipePair(w.T, func(o *socketOptions) { o.MaxUnsentBytes = 100_000 })
			to := &client{id: id, link: x}
			if err := r.admit(w.Context(), newWaiter(2, to, asMember, modeAll, func(*view) frameParts { return nil })); err != nil {
				w.Fatal(err)
			}
			return x, reader
		}
		slow, slowReader := begin("slow")
		_, calmReader := begin("calm")
		const patches = 500 // of 3 KB each
		pad, rev := long(3000), int64(2)
		last := rev + patches + 3
		calm := make(chan []string, 1)
		go func() { calm <- wireEvents(t, calmReader, last) }()
		tell := func(m func(prev, rev int64) message) {
			w.tell(m(rev, rev+1))
			rev++
		}
		for i := range patches {
			tell(func(prev, rev int64) message {
				return patched(prev, rev, []string{"a", "b"}[i%2], fmt.Sprintf(`{"n":"%03d%s"}`, i, pad))
			})
			if i == patches/2 {
				tell(func(prev, rev int64) message { return joined(prev, rev, "c") })
				tell(func(prev, rev int64) message { return joined(prev, rev, "d") })
				tell(func(prev, rev int64) message { return gone(prev, rev, "d") })
			}
		}
		if err := slow.reason(); err != nil || slow.held() > 20_000 {
			t.Errorf("who does not read ended of %v, %d bytes wait", err, slow.held())
			return
		}
		want := []string{"join c {} @254", "join d {} @255", "leave d nul @256", "update a 498 @504", "update b 499 @505"}
		if got := wireEvents(t, slowReader, last); !slices.Equal(got, want) {
			t.Errorf("who is behind is told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if all := <-calm; len(all) != patches+3 {
			t.Errorf("who reads in time is told %d events", len(all))
		}
	})
}
