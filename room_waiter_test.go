package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAJoinIsAnsweredInTheOrderOfTheRoom_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		e, result := w.admit(w.Context(), r, 12)
		w.wantHeard(e)
		w.tell(joined(10, 11, "b"))
		w.wantHeard(e)
		w.tell(joined(11, 12, "c"), joined(12, 13, "d"), gone(13, 14, "a"))
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.tell(gone(14, 15, "b"))
		w.wantHeard(e, "ack @14 [b c d]", "leave b B 0 @15 null")
		w.wantReads(1)
	})
}

func TestAJoinThatTheReplicaIsWithoutIsNotAnswered_G7(t *testing.T) {
	for name, c := range map[string]struct {
		found []Entry
		want  error
	}{
		"it is not there":              {nil, errMissing},
		"an earlier incarnation is":    {[]Entry{here("a", 5, "{}")}, errMissing},
		"it is there":                  {[]Entry{here("a", 11, "{}")}, nil},
		"it is there and has changed":  {[]Entry{{ConnID: "a", UserID: "A", Epoch: 11, Rev: 12, State: raw("{}")}}, nil},
		"a later incarnation is there": {[]Entry{here("a", 12, "{}")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(10)
				r := w.room()
				w.source.store(13, append(c.found, here("b", 13, "{}"))...)
				w.hub.dispatchers[0].subscribed("r")
				synctest.Wait()
				e := &ear{id: "a"}
				joining := newWaiter(11, e, asMember, modeAll, e.welcome)
				joining.epoch = 11
				if err := r.admit(w.Context(), joining); !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				w.tell(gone(13, 14, "b"))
				if c.want != nil {
					w.wantHeard(e)
				} else {
					w.wantHeard(e, "ack @13 [a b]", "leave b B 0 @14 null")
				}
			})
		})
	}
}

func TestAJoinThatTheReplicaHasIsAnsweredAtOnce_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		e, result := w.admit(w.Context(), w.room(), 10)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @10 [a]")
	})
}

func TestJoinsOfOneBatchShareASnapshot_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		snapshots := make([][]byte, 3)
		var answered []<-chan error
		ears := []*ear{{}, {}, {}}
		for i, e := range ears {
			result := make(chan error, 1)
			answered = append(answered, result)
			go func() {
				result <- r.admit(w.Context(), newWaiter(int64(11+i), e, asMember, modeAll, func(v *view) frameParts {
					snapshots[i] = v.page("", 0).entries
					return e.welcome(v)
				}))
			}()
		}
		synctest.Wait()
		for _, m := range []message{joined(10, 11, "a"), joined(11, 12, "b"), joined(12, 13, "c")} {
			w.hub.dispatchers[0].message("r", payloadOf(m))
		}
		synctest.Wait()
		if snapshots[0] != nil {
			t.Error("a join was answered within the batch")
		}
		w.hub.dispatchers[0].settled()
		for _, result := range answered {
			if err := <-result; err != nil {
				t.Fatal(err)
			}
		}
		for i, e := range ears {
			w.wantHeard(e, "ack @13 [a b c]")
			if &snapshots[i][0] != &snapshots[0][0] {
				t.Error("a snapshot was built twice")
			}
		}
		w.tell(gone(13, 14, "a"))
		w.wantHeard(ears[2], "ack @13 [a b c]", "leave a A 0 @14 null")
		if w.frames != 1 {
			t.Errorf("%d frames for one event that somebody hears", w.frames)
		}
		late, result := w.admit(w.Context(), r, 14)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(late, "ack @14 [b c]")
	})
}

func TestAJoinDuringABatchWaitsForItsEnd_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		w.hub.dispatchers[0].message("r", payloadOf(joined(10, 11, "a")))
		e, result := w.admit(w.Context(), r, 11)
		w.wantHeard(e)
		w.hub.dispatchers[0].settled()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @11 [a]")
	})
}

func TestAnImpatientJoinReadsTheRoom_G2_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		listener := w.guest(r)
		before := time.Now()
		w.source.store(11, here("a", 11, "{}")) // its message is lost
		e, result := w.admit(w.Context(), r, 11)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(before); waited != joinPatience {
			t.Errorf("it waited %v, want %v", waited, joinPatience)
		}
		w.wantHeard(e, "ack @11 [a]")
		w.wantHeard(listener, "join a A 1 @11 {}")
		w.wantReads(2)
	})
}

// A read that looked before the join does not end the impatience of the join.
func TestAJoinStaysImpatientWhenAnOlderReadIsSlow_G2_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		release := w.source.hold()
		w.hub.dispatchers[0].subscribed("r") // finds revision 10
		synctest.Wait()
		w.source.store(11, here("a", 11, "{}")) // its message is lost
		ctx, cancel := context.WithTimeout(w.Context(), answerWithin)
		defer cancel()
		e, result := w.admit(ctx, r, 11)
		w.pass(joinPatience * 3 / 2)
		release()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantHeard(e, "ack @11 [a]")
	})
}

// Impatient joins must not keep the room from ever coming to the end of its reading.
func TestSlowReadsAnswerJoinsAllTheSame_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		w.source.slow = joinPatience * 3 / 2
		var answered []<-chan error
		for rev := range int64(100) {
			ctx, cancel := context.WithTimeout(w.Context(), answerWithin)
			defer cancel()
			w.source.store(11 + rev)
			_, result := w.admit(ctx, r, 11+rev) // no message of it ever comes
			answered = append(answered, result)
			w.pass(joinPatience * 2 / 3)
		}
		for i, result := range answered {
			if err := <-result; err != nil {
				t.Fatalf("join %d: %v", i, err)
			}
		}
	})
}

func TestAJoinWithoutItsEventGivesUp_G7(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		ctx, cancel := context.WithTimeout(w.Context(), answerWithin)
		defer cancel()
		before := time.Now()
		e, result := w.admit(ctx, r, 11)
		other, second := w.admit(w.Context(), r, 12)
		if err := <-result; !isUnavailable(err) {
			t.Errorf("got %v, want unavailable", err)
		}
		if waited := time.Since(before); waited != answerWithin {
			t.Errorf("it waited %v, want %v", waited, answerWithin)
		}
		w.tell(joined(10, 11, "a"), joined(11, 12, "b"), gone(12, 13, "a"))
		w.wantHeard(e)
		if err := <-second; err != nil {
			t.Error(err)
		}
		w.wantHeard(other, "ack @13 [b]")
	})
}

// Who was answered in the very moment in which its time was over has its answer, and is in the room.
func TestALateAnswerWins_G7(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		ctx, cancel := context.WithCancel(w.Context())
		ears := make([]*ear, 20) // select takes either of two
		waiting := make([]*waiter, len(ears))
		for i := range ears {
			ears[i] = &ear{}
			waiting[i] = newWaiter(11, ears[i], asMember, modeAll, ears[i].welcome)
		}
		r.waiters = append(r.waiters, waiting...)
		w.tell(joined(10, 11, "a"))
		cancel()
		for _, late := range waiting {
			if err := r.await(ctx, late); err != nil {
				t.Errorf("answered, and then %v", err)
			}
		}
		w.tell(gone(11, 12, "a"))
		for _, e := range ears {
			w.wantHeard(e, "ack @11 [a]", "leave a A 0 @12 null")
		}
	})
}

func TestASnapshotThatIsTooOldIsReadFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		listener := w.guest(r)
		w.pass(testFreshFor)
		_, result := w.admit(w.Context(), r, 10)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		w.wantReads(1)
		w.pass(time.Millisecond)
		e := &ear{}
		beaten := here("a", 1, "{}")
		beaten.LastSeenMs = 5000
		w.source.store(10, beaten)
		err := r.admit(w.Context(), newWaiter(10, e, asMember, modeAll, func(v *view) frameParts {
			if got := string(v.page("", 0).entries); !strings.Contains(got, `"lastSeenMs":5000`) {
				t.Errorf("the snapshot is as old as before: %s", got)
			}
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		w.wantReads(2)
		w.wantHeard(listener)
	})
}

func TestNobodyPassesBeforeTheIndexIsWritten(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		var mu sync.Mutex
		writes, passed := 0, 0
		written := make(chan error)
		write := func(context.Context) error {
			mu.Lock()
			writes++
			mu.Unlock()
			return <-written
		}
		pass := func(ctx context.Context) {
			err := r.index(ctx, write)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				passed++
			}
		}
		want := func(wantWrites, wantPassed int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if writes != wantWrites || passed != wantPassed {
				t.Errorf("%d writes and %d passed, want %d and %d", writes, passed, wantWrites, wantPassed)
			}
		}
		impatient, cancel := context.WithCancel(w.Context())
		go pass(w.Context())
		synctest.Wait()
		go pass(impatient)
		for range 19 {
			go pass(w.Context())
		}
		want(1, 0)
		cancel()
		want(1, 0)
		written <- errors.New("down") // the first one fails, another one tries
		want(2, 0)
		written <- nil
		want(2, 19)
		pass(w.Context())
		want(2, 20)
	})
}

func TestTheIndexIsWrittenAgain(t *testing.T) {
	cases := map[string]struct {
		between func(w *world, r *room)
		again   bool
	}{
		"not while it is fresh":            {func(*world, *room) {}, false},
		"after the last member left":       {func(w *world, r *room) { w.hub.release(r); w.hub.acquire("r") }, true},
		"not when another member stays":    {func(w *world, r *room) { w.hub.acquire("r"); w.hub.release(r) }, false},
		"when a reaper may have forgotten": {func(w *world, _ *room) { w.pass(testFreshFor + time.Second) }, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				r, writes := w.room(), 0
				write := func(context.Context) error { writes++; return nil }
				if err := r.index(w.Context(), write); err != nil {
					t.Fatal(err)
				}
				c.between(w, r)
				if err := r.index(w.Context(), write); err != nil {
					t.Fatal(err)
				}
				if again := writes == 2; again != c.again {
					t.Errorf("written %d times", writes)
				}
			})
		})
	}
}
