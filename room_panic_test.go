package main

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// trappedSource panics at the first read, once it is armed.
type trappedSource struct {
	*fakeSource
	trap
	armed bool
}

func (s *trappedSource) read(ctx context.Context, room string) (Snapshot, error) {
	if s.armed {
		s.step()
	}
	return s.fakeSource.read(ctx, room)
}

// panicking calls f as a bridge does, which has every room read again after a panic.
func (w *world) panicking(f func()) {
	w.Helper()
	if !panics(testLogger(w), "subscriptions", f) {
		w.Error("it did not panic")
	}
	w.hub.dispatchers[0].subscribed("r")
	synctest.Wait()
}

func TestAReadThatPanicsIsRepeated(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(5, here("a", 5, "{}"))
		source := &trappedSource{fakeSource: w.source, armed: true}
		w.hub.source = source
		r := w.room()
		e, result := w.admit(w.Context(), r, 5)
		if err := <-result; err != nil || source.steps.Load() != 2 {
			t.Errorf("after %d reads: %v", source.steps.Load(), err)
		}
		w.wantHeard(e, "ack @5 [a]")
	})
}

// TestAReadThatIsRepeatedTellsTheDifference_G3, also where the one that panicked would have waited for the messages.
func TestAReadThatIsRepeatedTellsTheDifference_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		source := &trappedSource{fakeSource: w.source}
		w.hub.source = source
		w.source.store(5, here("a", 5, "{}"))
		r := w.room()
		e := w.guest(r)
		w.source.store(6, here("a", 5, "{}"), here("b", 6, "{}"))
		source.armed = true
		w.pass(2 * testFreshFor)
		w.guest(r) // for whom the room is read
		w.wantHeard(e, "join b B 1 @6 {}")
	})
}

// TestWhatPanickedIsToldAfterTheNextRead_G1: no receiver misses a change because what told it panicked.
func TestWhatPanickedIsToldAfterTheNextRead_G1(t *testing.T) {
	cases := map[string]struct {
		at   int64 // the call of the encoder that panics
		do   func(w *world)
		want []string
	}{
		"a message": {1, func(w *world) {
			w.panicking(func() { w.tell(joined(5, 6, "b")) })
		}, []string{"join b B 1 @6 {}", "join c C 1 @7 {}"}},
		"a message that waited for a read": {1, func(w *world) {
			release := w.source.hold()
			w.hub.dispatchers[0].subscribed("r")
			synctest.Wait()
			w.tell(joined(5, 6, "b"))
			release()
			synctest.Wait()
		}, []string{"join b B 1 @6 {}", "join c C 1 @7 {}"}},
		"all of a difference": {1, func(w *world) {
			w.hub.dispatchers[0].subscribed("r")
		}, []string{"join b B 1 @6 {}", "leave a A 0 @6", "join c C 1 @7 {}"}},
		"a part of a difference": {2, func(w *world) {
			w.hub.dispatchers[0].subscribed("r")
		}, []string{"join b B 1 @6 {}", "leave a A 0 @6", "join c C 1 @7 {}"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(5, here("a", 5, "{}"))
				e := w.guest(w.room())
				left := []Entry{here("b", 6, "{}")}
				if c.want[1][0] != 'l' {
					left = append([]Entry{here("a", 5, "{}")}, left...)
				}
				w.source.store(6, left...)
				calls := int64(0)
				w.hub.encode.event = func(e Event) frame {
					if calls++; calls == c.at {
						panic("injected")
					}
					return frame(said(e))
				}
				c.do(w)
				w.pass(time.Second)
				w.tell(joined(6, 7, "c"))
				if calls <= c.at {
					t.Error("it did not panic")
				}
				w.wantHeard(e, c.want...)
			})
		})
	}
}

func TestCollectedEventsAndCountsAreToldAfterAPanic(t *testing.T) {
	for _, mode := range []eventMode{modeBatch, modeCount} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			inWorld(t, func(w *world) {
				var tr trap
				panicAtTheSecond := func(b Batch) frame {
					if tr.steps.Add(1) == 2 {
						panic("injected")
					}
					return frame(fmt.Sprintf("%d members, %d events @%d", b.Count, len(b.Events), b.Rev))
				}
				w.hub.encode.batch, w.hub.encode.count = panicAtTheSecond, panicAtTheSecond
				r, e := w.room(), &ear{id: "a"}
				if err := r.admit(w.Context(), newWaiter(0, e, asMember, mode, e.welcome)); err != nil {
					t.Fatal(err)
				}
				e.heard = nil
				w.source.store(2, here("a", 1, "{}"), here("b", 2, "{}"))
				w.tell(joined(0, 1, "a")) // is told at once
				w.tell(joined(1, 2, "b")) // waits for the end of the window
				w.pass(5 * time.Second)
				events := map[eventMode]int{modeBatch: 1}[mode]
				w.wantHeard(e, fmt.Sprintf("1 members, %d events @1", events), fmt.Sprintf("2 members, %d events @2", events))
			})
		})
	}
}

// TestAnAnswerThatPanicsKeepsNobodyFromAnother: the others who wait are answered.
func TestAnAnswerThatPanicsKeepsNobodyFromAnother(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		panicked := make(chan struct{})
		go func() {
			panics(testLogger(t), "request", func() {
				_ = r.admit(w.Context(), newWaiter(1, &ear{}, asMember, modeAll, func(*view) frameParts { panic("injected") }))
			})
			close(panicked)
		}()
		synctest.Wait()
		e, result := w.admit(w.Context(), r, 1)
		w.source.store(1, here("a", 1, "{}"))
		w.tell(joined(0, 1, "a"))
		<-panicked
		if err := <-result; err != nil {
			t.Errorf("the second one got %v", err)
		}
		w.wantHeard(e, "ack @1 [a]")
	})
}

// TestAnAnswerThatPanicsInTheRequestItselfIsForgotten, and leaves the room unlocked.
func TestAnAnswerThatPanicsInTheRequestItselfIsForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		if !panics(testLogger(t), "request", func() {
			_ = r.admit(w.Context(), newWaiter(0, &ear{}, asMember, modeAll, func(*view) frameParts { panic("injected") }))
		}) {
			t.Error("it did not panic")
		}
		e := w.guest(r)
		w.tell(joined(0, 1, "a"))
		w.wantHeard(e, "join a A 1 @1 {}")
	})
}

// trappedEar panics at the first flush.
type trappedEar struct {
	ear
	trap
}

func (e *trappedEar) flush() {
	e.step()
	e.ear.flush()
}

func TestAReceiverThatPanicsLeavesTheOthersAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		r, bad := w.room(), &trappedEar{}
		if err := r.admit(w.Context(), newWaiter(0, bad, asMember, modeAll, func(*view) frameParts { return nil })); err != nil {
			t.Fatal(err)
		}
		e := w.guest(r)
		w.tell(joined(0, 1, "a"))
		w.tell(joined(1, 2, "b"))
		w.wantHeard(e, "join a A 1 @1 {}", "join b B 1 @2 {}")
		if bad.steps.Load() == 0 {
			t.Error("it did not panic")
		}
	})
}

func TestATimerThatPanicsHasTheRoomRead(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		w.wantReads(1)
		defer r.after(time.Second, func() { panic("injected") }).Stop()
		w.pass(2 * time.Second)
		w.wantReads(2)
	})
}
