package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Random schedules of changes, roles, modes, pages and time. Each receiver folds what it is told as a client does, and
// each fold is compared with the room at the revision that the receiver was told last.

// told is the room as it was at one revision.
type told map[string]Entry

func (m told) tally() tally {
	users := map[string]bool{}
	for _, e := range m {
		users[e.UserID] = true
	}
	return tally{len(m), len(users)}
}

func (m told) conns(user string) (n int) {
	for _, e := range m {
		if e.UserID == user {
			n++
		}
	}
	return n
}

func (m told) equal(other told) bool {
	return maps.EqualFunc(m, other, func(a, b Entry) bool {
		return a.UserID == b.UserID && a.Epoch == b.Epoch && bytes.Equal(a.State, b.State)
	})
}

// foldRun is one run: the store with all its revisions, and the receivers.
type foldRun struct {
	*world
	random  *rand.Rand
	lossy   bool // messages get lost, and the room is read anew: several events then have one revision
	room    *room
	truth   replica
	history map[int64]told
	folders []*folder

	mu    sync.Mutex
	sent  []any // what frames stand for
	wrong []string
}

// folder is a receiver that folds what it is told.
type folder struct {
	*foldRun
	id     string
	chosen [roles]eventMode // plus one, 0 = not in that role

	members     told
	gone        map[string]int64
	floor, last int64
	cursor      string // of the next page, "" if the view is whole
	ahead       bool   // a page came after the last event or batch
	tally       tally
	tallyRev    int64
	batchAt     time.Time
	late        func() // the answer with a page, on its way
	held        holding
	ending      bool // its role ends: a count may come before chosen says so
}

func (f *folder) ID() string { return f.id }

func (f *folder) flush() {}

func (f *folder) mode() eventMode { return max(f.chosen[asMember], f.chosen[asWatcher]) - 1 }

func (f *folder) listens() bool { return f.chosen != [roles]eventMode{} }

func (s *foldRun) fail(format string, args ...any) {
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// keep makes a frame of something that receivers are told.
func (s *foldRun) keep(what any) frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, what)
	return frame(strconv.Itoa(len(s.sent) - 1))
}

func (f *folder) queue(sent frame, _ memberUpdate) bool { return !f.held.keeps(sent) && f.hear(sent) }

func (f *folder) hold() (release func(frameParts)) {
	end := f.held.begin()
	return func(frameParts) { end(func() bool { return false }, f.hear) }
}

func (f *folder) hear(sent frame) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, _ := strconv.Atoi(string(sent))
	if !f.listens() {
		f.fail("%s has no role and is told %+v", f.id, f.sent[i])
	}
	switch what := f.sent[i].(type) {
	case Event:
		f.event(what)
	case Batch:
		if what.Events == nil {
			f.count(what)
		} else {
			f.batch(what)
		}
	}
	return false
}

// ack begins the fold anew with the answer to a join or watch.
func (f *folder) ack(p page, as role, mode eventMode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.rev < f.last {
		f.fail("%s is answered at %d after %d", f.id, p.rev, f.last)
	}
	f.chosen[as] = mode + 1
	f.members, f.gone, f.ahead = told{}, map[string]int64{}, false
	f.floor, f.last, f.cursor = p.rev, p.rev, p.last
	f.fill(p)
	f.compare("the answer")
}

// page adds a page that was read.
func (f *folder) page(p page, next bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead = true
	if f.mode() == modeAll { // every event that follows is newer
		f.last = max(f.last, p.rev)
	}
	if next {
		f.cursor = p.last
	}
	f.fill(p)
}

func (f *folder) fill(p page) {
	var entries []Entry
	if err := json.Unmarshal(p.entries, &entries); err != nil {
		f.fail("a page is no JSON: %v", err)
	}
	for _, e := range entries {
		known, there := f.gone[e.ConnID], false
		if m, ok := f.members[e.ConnID]; ok {
			known, there = m.Rev, true
		}
		if known < p.rev || known == 0 && !there {
			e.Rev = p.rev
			f.members[e.ConnID] = e
		}
	}
	if p.rev >= f.tallyRev {
		f.tally, f.tallyRev = p.all, p.rev
	}
}

func (f *folder) event(e Event) {
	if f.mode() < modeBatch {
		if e.Type != EventLeave || e.ConnID != f.id {
			f.fail("%s in mode %d is told %s", f.id, f.mode(), said(e))
		}
		f.last = max(f.last, e.Rev)
	} else {
		f.fold(e)
		if f.hub.roomBytes == 0 { // else a later update may have taken the place of one before e
			f.compare(said(e))
		}
	}
	if e.ConnID == f.id && e.Reason == ReasonKicked {
		f.chosen[asMember] = 0
	}
}

// fold takes an event as clients do.
func (f *folder) fold(e Event) {
	if e.Rev < f.last || e.Rev == f.last && !f.lossy {
		f.fail("%s is told %s after %d", f.id, said(e), f.last)
	}
	f.last = e.Rev
	if e.Rev <= f.floor && !f.lossy || e.Rev < f.members[e.ConnID].Rev {
		return
	}
	if e.Type == EventLeave {
		delete(f.members, e.ConnID)
		f.gone[e.ConnID] = e.Rev
	} else {
		f.members[e.ConnID] = entryOfEvent(e)
	}
	if n := f.members.conns(e.UserID); f.cursor == "" && !f.ahead && n != e.UserConns {
		f.fail("%s is told %s, and its fold has %d connections of the user", f.id, said(e), n)
	}
}

func (f *folder) batch(b Batch) {
	if f.mode() != modeBatch {
		f.fail("%s in mode %d is told a batch", f.id, f.mode())
	}
	if len(b.Events) == 0 || b.Rev <= f.last && !f.lossy {
		f.fail("%s is told a batch of %d with %d events after %d", f.id, b.Rev, len(b.Events), f.last)
	}
	of := map[string][]EventType{}
	for _, e := range b.Events {
		of[e.ConnID] = append(of[e.ConnID], e.Type)
		f.fold(e)
	}
	for conn, types := range of {
		if len(types) > 1 && !slices.Equal(types, []EventType{EventLeave, EventJoin}) {
			f.fail("a batch tells %v of %s", types, conn)
		}
	}
	if b.Rev < f.last {
		f.fail("%s is told a batch of %d with an event of %d", f.id, b.Rev, f.last)
	}
	f.last, f.ahead = b.Rev, false
	f.tally, f.tallyRev = tally{b.Count, b.Users}, b.Rev
	if t := f.members.tally(); f.cursor == "" && t != (tally{b.Count, b.Users}) {
		f.fail("%s is told a batch of %d with %d/%d, and its fold has %v", f.id, b.Rev, b.Count, b.Users, t)
	}
	f.compare(fmt.Sprintf("a batch of %d", b.Rev))
	f.batchAt = time.Now()
}

func (f *folder) count(b Batch) {
	if f.mode() != modeCount && !f.ending || b.Rev < f.last {
		f.fail("%s in mode %d is told a count of %d after %d", f.id, f.mode(), b.Rev, f.last)
	}
	f.last, f.tallyRev, f.tally = b.Rev, b.Rev, tally{b.Count, b.Users}
	if t := f.history[b.Rev].tally(); t != f.tally {
		f.fail("%s is told a count of %d with %v, and the room had %v", f.id, b.Rev, f.tally, t)
	}
}

// compare checks a whole fold against the room at the revision that was told last.
func (f *folder) compare(after string) {
	if f.cursor == "" && !f.ahead && !f.lossy && !f.members.equal(f.history[f.last]) {
		f.fail("after %s the fold of %s is\n%v\nand the room at %d\n%v", after, f.id, f.members, f.last, f.history[f.last])
	}
}

// atRest checks a fold when everything has to be told.
func (f *folder) atRest(counts bool) {
	f.arrive()
	f.mu.Lock()
	defer f.mu.Unlock()
	now := told(f.truth.byConn())
	switch {
	case !f.listens():
	case f.mode() == modeCount && counts && f.tally != now.tally():
		f.fail("at rest %s counts %v, and the room is %v", f.id, f.tally, now.tally())
	case f.mode() >= modeBatch && f.cursor == "" && !f.members.equal(now):
		f.fail("at rest the fold of %s is\n%v\nand the room at %d\n%v", f.id, f.members, f.truth.rev, now)
	case f.mode() >= modeBatch:
		for conn, e := range f.members {
			if is := now[conn]; is.Epoch != e.Epoch || is.UserID != e.UserID || !bytes.Equal(is.State, e.State) {
				f.fail("at rest a part of the fold of %s has %v, and the room %v", f.id, e, is)
			}
		}
	}
}

// arrive takes the answer that is on its way.
func (f *folder) arrive() {
	if f.late != nil {
		f.late()
		f.late = nil
	}
}

// change makes the next change of the room and gives its message.
func (s *foldRun) change(kind EventType, conn, user, state string, reason Reason) message {
	prev := s.truth.rev
	rev := prev + 1 + s.random.Int64N(3)
	e := Event{Type: kind, RoomID: "r", ConnID: conn, UserID: user, State: raw(state), TS: rev, Epoch: rev, Rev: rev, Reason: reason}
	if kind != EventJoin {
		e.UserID, e.Epoch = s.truth.entry(conn).UserID, s.truth.entry(conn).Epoch
	}
	s.truth.apply(e)
	e.UserConns = s.truth.users[e.UserID]
	s.mu.Lock()
	s.history[rev] = told(s.truth.byConn())
	s.mu.Unlock()
	s.source.store(rev, slices.Collect(s.truth.entries.all())...)
	return message{prev, e}
}

func (s *foldRun) tellOne(m message) {
	if s.lossy && s.random.IntN(12) == 0 {
		return
	}
	s.hub.dispatchers[0].message("r", payloadOf(m))
}

// happens makes a change of somebody: of a connection elsewhere, or of a receiver that is a member.
func (s *foldRun) happens() {
	conns := []string{"x0", "x1", "x2", "x3"}
	for _, f := range s.folders {
		if _, there := s.truth.entries.get(f.id); there {
			conns = append(conns, f.id)
		}
	}
	conn, user, state := conns[s.random.IntN(len(conns))], fmt.Sprint("u", s.random.IntN(3)), fmt.Sprint(s.random.IntN(3))
	old, there := s.truth.entries.get(conn)
	switch kind := s.random.IntN(12); {
	case !there:
		s.tellOne(s.change(EventJoin, conn, user, state, ""))
	case kind < 4:
		s.tellOne(s.change(EventUpdate, conn, "", state, ""))
	case kind < 8:
		s.tellOne(s.change(EventLeave, conn, "", "null", ReasonTimeout))
	case kind < 9 && !s.lossy:
		s.tellOne(s.change(EventLeave, conn, "", "null", ReasonKicked))
	case kind < 10 && user != old.UserID:
		s.tellOne(s.change(EventLeave, conn, "", "null", ReasonReplaced))
		s.tellOne(s.change(EventJoin, conn, user, state, ""))
	default:
		s.tellOne(s.change(EventJoin, conn, old.UserID, state, ""))
	}
}

// settle ends the messages of a moment.
func (s *foldRun) settle() {
	s.hub.dispatchers[0].settled()
	synctest.Wait()
}

// begins has a receiver join or watch. It has to be answered at once.
func (s *foldRun) begins(f *folder) {
	f.arrive()
	as, mode, limit, rev := role(s.random.IntN(int(roles))), eventMode(s.random.IntN(4)), []int{0, 0, 1, 3}[s.random.IntN(4)], s.truth.rev
	if as == asMember {
		m := s.change(EventJoin, f.id, fmt.Sprint("u", s.random.IntN(3)), "0", "")
		rev = m.Rev
		s.hub.dispatchers[0].message("r", payloadOf(m))
	}
	w := newWaiter(rev, f, as, mode, func(v *view) frameParts {
		f.ack(v.page("", limit), as, mode)
		return nil
	})
	began, result := time.Now(), make(chan error, 1)
	go func() { result <- s.room.admit(s.Context(), w) }()
	synctest.Wait()
	s.settle()
	if err := <-result; err != nil || time.Since(began) > 0 && !s.lossy {
		s.fail("%s begins after %v: %v", f.id, time.Since(began), err)
	}
}

// ends has a receiver leave or unwatch.
func (s *foldRun) ends(f *folder) {
	f.arrive()
	as := role(s.random.IntN(int(roles)))
	f.mu.Lock()
	f.ending = true
	f.mu.Unlock()
	s.room.leave(f, as)
	f.mu.Lock()
	f.chosen[as], f.ending = 0, false
	f.mu.Unlock()
	if _, there := s.truth.entries.get(f.id); there && as == asMember {
		s.hub.dispatchers[0].message("r", payloadOf(s.change(EventLeave, f.id, "", "null", ReasonLeft)))
	}
}

// reads has a receiver read the next page, or any.
func (s *foldRun) reads(f *folder) {
	f.arrive()
	after, limit := f.cursor, 1+s.random.IntN(3)
	next := after != ""
	if !next {
		after = []string{"", "f2", "x1"}[s.random.IntN(3)]
	}
	result := make(chan page, 1)
	go func() {
		err := s.hub.page(s.Context(), "r", after, limit, f, func(p page) frameParts {
			result <- p
			return nil
		})
		if err != nil {
			s.Error(err)
		}
	}()
	synctest.Wait()
	s.settle()
	p := <-result
	f.late = func() { f.page(p, next) }
	if s.random.IntN(3) > 0 {
		f.arrive()
	}
}

func (s *foldRun) step() {
	f := s.folders[s.random.IntN(len(s.folders))]
	switch n := s.random.IntN(40); {
	case n < 18:
		s.happens()
	case n < 23:
		s.settle()
	case n < 27:
		s.begins(f)
	case n < 30:
		s.ends(f)
	case n < 35 && f.listens():
		s.reads(f)
	case n < 39:
		s.settle()
		pause(s.Context(), time.Duration(s.random.IntN(150))*time.Millisecond)
		synctest.Wait()
	default:
		s.rest()
	}
}

// compareAll checks all folds of events: nothing is on its way.
func (s *foldRun) compareAll() {
	for _, f := range s.folders {
		f.mu.Lock()
		if f.listens() && f.mode() == modeAll {
			f.compare("a step")
		}
		f.mu.Unlock()
	}
}

// rest waits until all batches, and then all counts, are due.
func (s *foldRun) rest() {
	s.settle()
	if s.lossy { // what was lost is found
		s.room.check()
		synctest.Wait()
	}
	pause(s.Context(), s.hub.batchEvery)
	synctest.Wait()
	for s.collects() {
		pause(s.Context(), 100*time.Millisecond)
		synctest.Wait()
	}
	for _, f := range s.folders {
		f.atRest(false)
	}
	pause(s.Context(), s.hub.countEvery)
	synctest.Wait()
	for _, f := range s.folders {
		f.atRest(true)
	}
}

// collects tells whether updates wait for the limit of the room.
func (s *foldRun) collects() bool {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	return !s.room.listeners.collected.empty()
}

func foldSchedule(t *testing.T, seed uint64) (wrong []string) {
	inWorld(t, func(w *world) {
		s := &foldRun{world: w, random: rand.New(rand.NewPCG(seed, 2)), lossy: seed%4 == 3, truth: newReplica("r"), history: map[int64]told{}}
		w.hub.encode = encoders{
			event: func(e Event) frame { return s.keep(e) },
			batch: func(b Batch) frame { return s.keep(b) },
			count: func(b Batch) frame { return s.keep(b) },
		}
		s.change(EventJoin, "x0", "u0", "0", "")
		if seed%2 == 1 {
			w.hub.roomBytes = 10 // four receivers of one update are more
		}
		s.room = w.room()
		for i := range 4 {
			s.folders = append(s.folders, &folder{foldRun: s, id: fmt.Sprint("f", i)})
		}
		for range 120 {
			s.step()
			s.compareAll()
			if len(s.wrong) > 0 {
				break
			}
		}
		if len(s.wrong) == 0 {
			s.rest()
		}
		s.settle() // who waits is answered before the end
		wrong = s.wrong
	})
	return wrong
}

// For every receiver at every moment, snapshot, pages and all that it was sent fold to the room at the last revision that it
// was told, whatever began, ended, changed its mode or was read inside a window, and while the room is over its limit (G2, G3).
func TestEveryFoldIsTheRoom_G3(t *testing.T) {
	t.Parallel()
	for seed := range uint64(400) {
		if wrong := foldSchedule(t, seed); len(wrong) > 0 {
			t.Errorf("seed %d: %s", seed, wrong[0])
		}
		if t.Failed() {
			return
		}
	}
}
