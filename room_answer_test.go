package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// manyMembers are so many, each with some state.
func manyMembers(n int, state string) []Entry {
	entries := make([]Entry, n)
	for i := range entries {
		entries[i] = here(fmt.Sprintf("connection-of-%06d", i), int64(i+1), state)
	}
	return entries
}

// TestAnAnswerIsMadeWhileTheRoomGoesOn_G2 has an answer take its time: other receivers hear what comes, and the newcomer hears it behind
// its answer.
func TestAnAnswerIsMadeWhileTheRoomGoesOn_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		listener, e := w.guest(r), &ear{}
		making, proceed, result := make(chan bool, 1), make(chan bool), make(chan error, 1)
		go func() {
			result <- r.admit(w.Context(), newWaiter(10, e, asMember, modeAll, func(v *view) frameParts {
				making <- true
				<-proceed
				return e.welcome(v)
			}))
		}()
		<-making
		w.tell(joined(10, 11, "b"), gone(11, 12, "a"))
		w.wantHeard(listener, "join b B 1 @11 {}", "leave a A 0 @12 null")
		w.wantHeard(e)
		other, _ := w.admit(w.Context(), r, 12)
		w.wantHeard(other, "ack @12 [b]")
		close(proceed)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @10 [a]", "join b B 1 @11 {}", "leave a A 0 @12 null")
		w.tell(gone(12, 13, "b"))
		w.wantHeard(e, "ack @10 [a]", "join b B 1 @11 {}", "leave a A 0 @12 null", "leave b B 0 @13 null")
	})
}

// TestAPageComesInItsPlace_G2 has a page take its time for a receiver that hears of the room.
func TestAPageComesInItsPlace_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		e := w.guest(w.room())
		making, proceed, result := make(chan bool, 1), make(chan bool), make(chan error, 1)
		go func() {
			result <- w.hub.page(w.Context(), "r", "", 1, e, func(p page) frameParts {
				making <- true
				<-proceed
				return frameParts{fmt.Appendf(nil, "page @%d", p.rev)}
			})
		}()
		<-making
		w.tell(gone(10, 11, "a"))
		close(proceed)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "page @10", "leave a A 0 @11 null")
	})
}

// TestAnAnswerIsBuiltOnceUntilTheRoomChanges shows who share one.
func TestAnAnswerIsBuiltOnceUntilTheRoomChanges(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		built := func() *byte {
			var body []byte
			err := r.admit(w.Context(), newGlance(0, "", 0, nil, func(p page) frameParts {
				body = p.entries
				return nil
			}))
			if err != nil {
				t.Fatal(err)
			}
			return &body[0]
		}
		first := built()
		if built() != first {
			t.Error("it was built twice")
		}
		w.tell(patched(10, 11, "a", `{"n":1}`))
		second := built()
		if second == first {
			t.Error("it was not built anew")
		}
		w.pass(roomLinger)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.view != nil {
			t.Error("it is kept though nobody asks for it")
		}
	})
}

// TestAFrameIsShared shows what two receivers of a large answer have in common.
func TestAFrameIsShared(t *testing.T) {
	body := bytes.Repeat([]byte("x"), sharedBytes)
	for name, f := range map[string]frameParts{
		"large": ackOf(ackID("17"), []byte("<"), body, []byte(">")),
		"small": ackOf(ackID("17"), []byte("<"), body[:10], []byte(">")),
	} {
		shared := body
		if name == "small" {
			shared = body[:10]
		}
		if got, want := bytes.Join(f, nil), newFrame([]byte("317[<"), shared, []byte(">]")); !bytes.Equal(got, want) {
			t.Errorf("the %s frame is %.30q, want %.30q", name, got, want)
		}
		if name == "large" && &f[1][0] != &body[0] {
			t.Error("the large frame has a copy")
		}
	}
	if ackOf(nil, nil, body, nil) != nil {
		t.Error("somebody is answered who wants no answer")
	}
}

// TestAFrameInPartsArrivesWhole sends it to clients of every transport, with a frame behind it that would be over the limit without it.
func TestAFrameInPartsArrivesWhole(t *testing.T) {
	body := []byte(`"` + strings.Repeat("x", 200_000) + `"`)
	parts := func() frameParts { return ackOf(ackID("7"), []byte("[1,"), body, []byte("]")) }
	want, next := "437[[1,"+string(body)+"]]", `42["next",`+string(body[:1000])+`]`
	for _, transport := range []string{"polling", "websocket", "upgraded", "upgraded meanwhile"} {
		t.Run(transport, func(t *testing.T) {
			app := &testApp{}
			s := startSockets(t, app, func(o *socketOptions) { o.MaxUnsentBytes = 100_000 })
			send := func() {
				c := app.only(t).client
				release := c.hold()
				c.send(eventFrame("next", body[:1000]))
				release(parts())
			}
			var c talker
			if transport == "upgraded meanwhile" {
				p := s.poller(t)
				p.connect()
				send()
				upgraded := p.probed()
				upgraded.send("5")
				c = upgraded
			} else {
				c = s.talker(t, transport)
				c.say("40")
				c.hear()
				send()
			}
			for _, packet := range []string{want, next} {
				if got, _ := c.hear(); got != packet {
					t.Errorf("got %.40q of %d bytes, want %.40q of %d", got, len(got), packet, len(packet))
				}
			}
		})
	}
}

// TestAnAnswerIsBoundedAndPagesGiveTheRest follows the pages of a room that is larger than one answer may be.
func TestAnAnswerIsBoundedAndPagesGiveTheRest(t *testing.T) {
	const members = 9
	state := `"` + strings.Repeat("x", 1_000_000) + `"`
	p := newReplica("r")
	p.adopt(Snapshot{Rev: 20, Entries: manyMembers(members, state)}, nobody)
	var got []string
	for after, pages := "", 1; ; pages++ {
		given := p.view().page(after, 0)
		var entries []Entry
		if err := json.Unmarshal(given.entries, &entries); err != nil {
			t.Fatal(err)
		}
		if len(given.entries) > maxPageBytes || len(entries) > 4 {
			t.Errorf("a page has %d members of %d bytes", len(entries), len(given.entries))
		}
		for _, e := range entries {
			got = append(got, e.ConnID)
		}
		if head := string(given.appendHead(nil, "snapshot", true)); strings.Contains(head, `"cursor":`) != (given.last != "") ||
			strings.Contains(head, `"count":9,"users":9`) != (given.last != "") {
			t.Errorf("the head of a page is %s", head)
		}
		if after = given.last; after == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if len(got) != members || !slices.IsSorted(got) {
		t.Errorf("the pages have %v", got)
	}
	p.put(here("huge", 30, `"`+strings.Repeat("x", maxPageBytes)+`"`))
	if given := p.view().page("connection-of-000008", 0); len(given.entries) < maxPageBytes || given.last != "" {
		t.Errorf("one member that is too large for a page alone makes %d bytes", len(given.entries))
	}
}

// TestAViewKeepsFewPages has somebody ask for every page of a room that does not change, and for many that are empty.
func TestAViewKeepsFewPages(t *testing.T) {
	const members = 200
	p := newReplica("r")
	p.adopt(Snapshot{Rev: members, Entries: manyMembers(members, `"`+strings.Repeat("x", 100_000)+`"`)}, nobody)
	v := p.view()
	for i := range members {
		v.page(fmt.Sprintf("connection-of-%06d", i), 0)
		bytes := 0
		for _, kept := range v.pages {
			bytes += len(kept.entries)
		}
		if bytes > maxKeptBytes+maxPageBytes {
			t.Fatalf("%d bytes of pages are kept", bytes)
		}
	}
	for i := range 100_000 {
		v.page(fmt.Sprintf("z%d", i), 0)
		if len(v.pages) > maxKeptBytes/keptBytes {
			t.Fatalf("%d pages are kept", len(v.pages))
		}
	}
}

// TestAnAnswerMakesLittleGarbage allows twice the size of the answer.
func TestAnAnswerMakesLittleGarbage(t *testing.T) {
	p := newReplica("r")
	p.adopt(Snapshot{Rev: 20_001, Entries: manyMembers(20_000, `{"mood":"\"fine\"","n":17}`)}, nobody)
	least := uint64(1 << 62)
	var size int
	for range 5 { // others allocate at times
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		first := p.view().page("", 0)
		f := ackOf(ackID("1"), first.appendHead(nil, "snapshot", true), first.entries, []byte("}"))
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
		size = len(f[0]) + len(f[1]) + len(f[2])
	}
	t.Logf("an answer of %d KB takes %d KB", size>>10, least>>10)
	if least > 2*uint64(size) {
		t.Error("want at most twice the size")
	}
}

// noLoss is told of no loss.
type noLoss struct{ *testing.T }

func (t noLoss) lostMembers(*room) { t.Error("members are taken for lost") }
func (t noLoss) lostData()         { t.Error("data are taken for lost") }

func (t noLoss) toldOfKick(*membership, string, int64, Reason) {
	t.Error("a member is told to be kicked")
}

// movingSource is a room that changes while it is read.
type movingSource struct{ fakeSource }

func (m *movingSource) read(context.Context, string) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := m.stored
	found.Entries = slices.Clone(found.Entries)
	return found, nil
}

// patch changes a member of the room and gives the message of that.
func (m *movingSource) patch(room string, n int) (payload string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored.Rev++
	e := &m.stored.Entries[n%len(m.stored.Entries)]
	e.Rev = m.stored.Rev
	change := patched(e.Rev-1, e.Rev, e.ConnID, "{}")
	change.RoomID = room
	return payloadOf(change)
}

// twoRooms are the room "r" and another one.
type twoRooms struct{ r, other *movingSource }

func (s twoRooms) of(room string) *movingSource {
	if room == "r" {
		return s.r
	}
	return s.other
}

func (s twoRooms) read(ctx context.Context, room string) (Snapshot, error) {
	return s.of(room).read(ctx, room)
}

func (s twoRooms) scan(ctx context.Context, room, cursor string, step int) (scanned, error) {
	return s.of(room).scan(ctx, room, cursor, step)
}

func (s twoRooms) size(ctx context.Context, room string) (int64, int, error) {
	return s.of(room).size(ctx, room)
}

func (s twoRooms) legible(_ string, state json.RawMessage) json.RawMessage { return state }

func (s twoRooms) lastSeen(ctx context.Context, room string, conns []string) ([]int64, error) {
	return s.of(room).lastSeen(ctx, room, conns)
}

// TestNobodyWaitsForAJoinOfALargeRoom has clients join a room of 100,000, all of this node, which is read anew for them, while the
// dispatcher passes messages on. Those of a room with one member, which clients join as well, show how long a busy machine stops
// everybody.
func TestNobodyWaitsForAJoinOfALargeRoom(t *testing.T) {
	takesLong(t)
	const within = time.Millisecond
	least, anyway := time.Duration(1<<62), time.Duration(1<<62)
	for range 10 {
		held, other := heldUp(t, 100_000, 4)
		least, anyway = min(least, held), min(anyway, other)
		if least < within {
			t.Logf("the dispatcher was held up for %v, and in a small room for %v", held, other)
			return
		}
	}
	if anyway >= within {
		t.Skipf("this machine holds up everybody for %v", anyway)
	}
	t.Errorf("the dispatcher was held up for %v, and in a small room for %v; want less than %v", least, anyway, within)
}

// heldUp gives the longest time that a message of a room took the dispatcher while clients joined, and one of a small room.
func heldUp(t *testing.T, members, clients int) (longest, other time.Duration) {
	source, calm := &movingSource{}, &movingSource{}
	source.store(int64(members), manyMembers(members, "{}")...)
	calm.store(1, here("a", 1, "{}"))
	h := newHub(hubOptions{source: twoRooms{source, calm}, encode: encoders{event: func(Event) frame { return frame("event") }},
		connect: func([]bridgeSink) subscriptions { return &fakeSubscriptions{} }, losses: func(*hub) lossListener { return noLoss{t} },
		freshFor: time.Nanosecond, log: testLogger(t)})
	defer h.close()
	r := h.acquire("r")
	for _, e := range source.stored.Entries {
		r.own(e.ConnID, &membership{room: r, mu: newOperationLock[ofMembership](), expiresAt: time.Now().Add(time.Hour), Member: Member{Conn: e.ConnID, Epoch: e.Epoch, Rev: e.Rev}})
	}
	for _, room := range []*room{r, h.acquire("calm")} {
		h.dispatchers[0].subscribed(room.id)
		if _, err := room.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	join := func(to *room) {
		w := newWaiter(0, &ear{}, asMember, modeAll, func(v *view) frameParts { return frameParts{v.page("", 0).entries[:1]} })
		if err := to.admit(t.Context(), w); err != nil {
			t.Error(err)
		}
		to.leave(w.to, asMember)
	}
	var joins, others sync.WaitGroup
	defer others.Wait()
	over := make(chan struct{})
	for range clients {
		joins.Go(func() { join(r) })
		others.Go(func() {
			for isOpen(over) {
				join(h.find("calm"))
				pause(t.Context(), time.Millisecond)
			}
		})
	}
	go func() { joins.Wait(); close(over) }()
	pass := func(room, payload string) time.Duration {
		began := time.Now()
		h.dispatchers[0].message(room, payload)
		h.dispatchers[0].settled()
		return time.Since(began)
	}
	for n := 0; isOpen(over); n++ {
		longest = max(longest, pass("r", source.patch("r", n)))
		pause(t.Context(), 100*time.Microsecond)
		other = max(other, pass("calm", calm.patch("calm", n)))
		pause(t.Context(), 100*time.Microsecond)
	}
	return longest, other
}

func isOpen(c <-chan struct{}) bool {
	select {
	case <-c:
		return false
	default:
		return true
	}
}

// TestALargeRoomIsAnsweredInPages joins, watches and reads a room that is larger than an answer may be.
func TestALargeRoomIsAnsweredInPages(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		n, room, rdb := startNodeFor(t, b), uniqueRoom(t), b.open(t)
		fillRoom(t, rdb, room, 300)
		state, k := `"`+strings.Repeat("x", 15_000)+`"`, keysOf(room)
		for conn, value := range rdb.HGetAll(t.Context(), k.meta()).Val() {
			must(t, rdb.HSet(t.Context(), k.meta(), conn, strings.Replace(value, `"state":{}`, `"state":{"text":`+state+`}`, 1)).Err())
		}
		const members = 301
		u := n.user(t)
		for _, ack := range []wireAck{
			u.ok(eventJoin, inRoom(room, `,"userId":"me","state":{}`)),
			n.user(t).ok(eventWatch, inRoom(room, "")),
			u.ok(eventGet, inRoom(room, "")),
		} {
			if len(ack.text) > 4<<20 || len(ack.text) < 3<<20 || ack.Count != members || ack.Users != members || ack.Cursor == nil {
				t.Fatalf("the answer has %d of %d members and %d bytes", len(ack.Snapshot), ack.Count, len(ack.text))
			}
			seen := map[string]bool{}
			for {
				for _, e := range ack.Snapshot {
					seen[e.ConnID] = true
				}
				if ack.Cursor == nil {
					break
				}
				ack = u.ok(eventGet, inRoom(room, `,"cursor":`+quoted(*ack.Cursor)))
			}
			if len(seen) != members {
				t.Errorf("the pages have %d members", len(seen))
			}
		}
		u.ok(eventLeave, "")
		if ack := u.ok(eventJoin, inRoom(uniqueRoom(t), `,"userId":"me"`)); ack.Cursor != nil || strings.Contains(ack.text, `"count"`) {
			t.Errorf("the answer with a small room is %s", ack.text)
		}
	})
}

// TestALargeMessageDoesNotCountAgainstWhatFollows is what a client may let wait.
func TestALargeMessageDoesNotCountAgainstWhatFollows(t *testing.T) {
	const limit = 100
	for name, c := range map[string]struct {
		waiting, taken []int
		next           int
		exceeds        bool
	}{
		"nothing waits":                          {nil, nil, 1000, false},
		"within the limit":                       {[]int{60}, nil, 40, false},
		"over the limit":                         {[]int{60}, nil, 41, true},
		"large behind small":                     {[]int{60}, nil, 1000, false},
		"small behind large":                     {[]int{1000}, nil, 100, false},
		"too much behind large":                  {[]int{1000, 60}, nil, 41, true},
		"large behind large":                     {[]int{1000}, nil, 1000, true},
		"a part of the large one is taken":       {[]int{60, 1000, 60}, []int{600}, 41, true},
		"the large one is taken":                 {[]int{60, 1000, 60}, []int{600, 460}, 40, false},
		"large behind a large one that is taken": {[]int{1000, 60}, []int{1000}, 1000, false},
	} {
		var u backlog
		for _, n := range c.waiting {
			if u.exceeds(n, limit) {
				t.Errorf("%s: %d bytes are too much", name, n)
			}
			u.add(n, limit)
		}
		for _, n := range c.taken {
			u.sub(n)
		}
		if got := u.exceeds(c.next, limit); got != c.exceeds {
			t.Errorf("%s: %d bytes more are too much: %t", name, c.next, got)
		}
		if u.exceeds(c.next, 0) {
			t.Errorf("%s: there is no limit, and it is exceeded", name)
		}
	}
}
