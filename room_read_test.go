package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestMessagesDuringARead_G1_G2_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10, here("a", 1, "{}"))
		r := w.room()
		listener := w.guest(r)
		w.source.store(12, here("a", 1, "{}"), here("b", 12, "{}"))
		release := w.source.hold()
		w.hub.dispatchers[0].subscribed("r")
		synctest.Wait()
		w.tell(joined(10, 12, "b"), joined(12, 13, "c"), gone(13, 14, "a"))
		w.wantHeard(listener)
		release()
		synctest.Wait()
		w.wantHeard(listener, "join b B 1 @12 {}", "join c C 1 @13 {}", "leave a A 0 @14 null")
		w.wantReads(2)
		if r.revision() != 14 {
			t.Errorf("the replica is at %d", r.revision())
		}
	})
}

// A read that is faster than the messages, or that they overtake, must not swallow them.
func TestAReadTakesNoEventsPlace_G1(t *testing.T) {
	both := []message{joined(10, 11, "b"), gone(11, 12, "b")}
	cases := map[string]struct {
		during, after []message
	}{
		"all come during the read":  {both, nil},
		"one comes after the read":  {both[:1], both[1:]},
		"all come after the read":   {nil, both},
		"more come during the read": {append(both[:2:2], joined(12, 13, "c"), gone(13, 14, "c")), nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				beaten := here("a", 1, "{}")
				w.source.store(10, beaten)
				r := w.room()
				listener := w.guest(r)
				w.pass(testFreshFor + time.Second)
				beaten.LastSeenMs = 5000
				w.source.store(12, beaten)
				release := w.source.hold()
				late, result := w.admit(w.Context(), r, 12)
				w.tell(c.during...)
				release()
				synctest.Wait()
				w.tell(c.after...)
				if err := <-result; err != nil {
					w.Fatal(err)
				}
				w.wantReads(2)
				want := []string{"join b B 1 @11 {}", "leave b B 0 @12 null", "join c C 1 @13 {}", "leave c C 0 @14 null"}
				w.wantHeard(listener, want[:len(c.during)+len(c.after)]...)
				w.wantHeard(late, fmt.Sprintf("ack @%d [a]", r.revision()))
				if seen := r.replica.entry("a").LastSeenMs; seen != 5000 {
					t.Errorf("the snapshot is as old as before: %d", seen)
				}
			})
		})
	}
}

func TestALostMessageDuringAReadForAFreshSnapshotIsMadeUp_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		listener := w.guest(r)
		w.pass(testFreshFor + time.Second)
		w.source.store(13, here("b", 11, "{}"), here("c", 13, "{}"))
		release := w.source.hold()
		late, result := w.admit(w.Context(), r, 13)
		w.tell(joined(11, 13, "c")) // that of b is lost
		release()
		if err := <-result; err != nil {
			w.Fatal(err)
		}
		synctest.Wait()
		w.wantReads(2)
		w.wantHeard(listener, "join b B 1 @13 {}", "join c C 1 @13 {}")
		w.wantHeard(late, "ack @13 [b c]")
	})
}

func TestAGapDuringAReadIsReadAgain_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		listener := w.guest(w.room())
		first := w.source.hold()
		w.hub.dispatchers[0].subscribed("r") // finds revision 10
		synctest.Wait()
		w.source.store(16, here("b", 12, "{}"), here("c", 16, "{}"))
		w.tell(joined(12, 16, "c"))
		second := w.source.hold()
		first()
		synctest.Wait()
		w.tell(gone(16, 17, "c"))
		second()
		synctest.Wait()
		w.wantHeard(listener, "join b B 1 @16 {}", "join c C 1 @16 {}", "leave c C 0 @17 null")
		w.wantReads(3)
	})
}

func TestASubscriptionConfirmedDuringAReadAsksForAnother_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.source.hold()
		r := w.hub.acquire("r")
		w.hub.dispatchers[0].subscribed("r") // finds nothing
		synctest.Wait()
		w.source.store(12, here("b", 12, "{}")) // its message was lost
		w.hub.dispatchers[0].subscribed("r")
		release()
		synctest.Wait()
		w.wantReads(2)
		if r.revision() != 12 {
			t.Errorf("the replica is at %d, want 12", r.revision())
		}
	})
}

func TestMessagesKeptDuringAReadAreBounded_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.room()
		listener := w.guest(r)
		release := w.source.hold()
		w.hub.dispatchers[0].subscribed("r")
		synctest.Wait()
		rev := int64(0)
		for range maxPending + 1 {
			w.tell(patched(rev, rev+1, "a", "{}"))
			rev++
		}
		if len(r.pending) > maxPending {
			t.Errorf("%d messages are kept", len(r.pending))
		}
		w.source.store(rev, Entry{ConnID: "a", UserID: "A", Epoch: 1, Rev: rev, State: raw("{}")})
		release()
		synctest.Wait()
		w.wantHeard(listener, fmt.Sprintf("join a A 1 @%d {}", rev))
		if r.pending != nil || r.reading {
			t.Error("the room does not come to rest")
		}
	})
}

// What came before a read is dropped after it, and nothing else: nothing that came when the messages before it were given up,
func TestMessagesGivenUpDuringASecondReadAreReadAgain_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		first := w.source.hold()
		w.hub.dispatchers[0].subscribed("r")
		synctest.Wait()
		w.tell(patched(15, 16, "a", "{}"))
		second := w.source.hold()
		first()
		synctest.Wait() // the second read knows of one message
		rev := int64(16)
		for range maxPending {
			w.tell(patched(rev, rev+1, "a", "{}"))
			rev++
		}
		w.source.store(rev, here("a", rev, "{}"))
		second()
		synctest.Wait()
		if r.revision() != rev {
			t.Errorf("the replica is at %d, want %d", r.revision(), rev)
		}
	})
}

// and nothing that came after messages that were applied.
func TestAGapAfterAReadThatFailedIsReadAgain_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		listener := w.guest(w.room())
		w.source.fail(errors.New("down"))
		w.hub.dispatchers[0].subscribed("r")
		synctest.Wait()
		w.tell(joined(10, 11, "b"))
		w.source.fail(nil)
		w.source.store(11, here("b", 11, "{}"))
		release := w.source.hold()
		w.pass(time.Second) // the next read knows of b
		w.source.store(14, here("b", 11, "{}"), here("c", 13, "{}"))
		w.tell(gone(13, 14, "d"))
		release()
		synctest.Wait()
		w.wantHeard(listener, "join b B 1 @11 {}", "join c C 1 @14 {}")
	})
}

func TestAReadThatFailsIsRepeated_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.fail(errors.New("down"))
		r := w.room()
		w.pass(10 * time.Second)
		if n := w.source.count(); n < 15 || n > 30 {
			t.Errorf("%d tries in 10 s", n)
		}
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := r.ready(ctx); !isUnavailable(err) {
			t.Errorf("a room that cannot be read gives %v", err)
		}
		w.source.fail(nil)
		w.source.store(12)
		if rev, err := r.ready(w.Context()); rev != 12 || err != nil {
			t.Errorf("got revision %d, %v", rev, err)
		}
	})
}

func TestAReadWithoutAnswerIsGivenUp_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.source.hold()
		defer release()
		r := w.room()
		w.source.mu.Lock()
		w.source.held = nil // the next one is answered
		w.source.mu.Unlock()
		w.source.store(12)
		before := time.Now()
		if rev, err := r.ready(w.Context()); rev != 12 || err != nil {
			t.Errorf("got revision %d, %v", rev, err)
		}
		if waited := time.Since(before); waited > readPatience+time.Second {
			t.Errorf("given up after %v", waited)
		}
	})
}

func TestARevisionThatStaysDifferentIsReadAnew_G3(t *testing.T) {
	cases := map[string]struct {
		returned []int64 // by heartbeats, a moment after each other
		then     []message
		reads    int // beyond the first, after replicaPatience
	}{
		"the same":                             {[]int64{10}, nil, 0},
		"the last message was lost":            {[]int64{11}, nil, 1},
		"the message comes by then":            {[]int64{11}, []message{joined(10, 11, "a")}, 0},
		"more messages come by then":           {[]int64{11}, []message{joined(10, 11, "a"), gone(11, 12, "a")}, 0},
		"the first comes, the last is lost":    {[]int64{11, 12}, []message{joined(10, 11, "a")}, 1},
		"a later heartbeat brings the news":    {[]int64{10, 11}, nil, 1},
		"the counter was lost":                 {[]int64{5}, nil, 1},
		"an answer was overtaken by a message": {[]int64{9}, []message{joined(10, 11, "a")}, 0},
		"many heartbeats, one read":            {[]int64{11, 11, 11, 11}, nil, 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.source.store(10)
				r := w.room()
				w.source.store(12)
				for _, rev := range c.returned {
					r.compare(rev)
					w.pass(time.Millisecond)
				}
				w.tell(c.then...)
				w.pass(replicaPatience / 2)
				w.wantReads(1)
				w.pass(2 * replicaPatience)
				w.wantReads(1 + c.reads)
				r.compare(13)
				w.pass(2 * replicaPatience)
				w.wantReads(2 + c.reads)
			})
		})
	}
}

// In a busy room the message of the last change is always on its way when a heartbeat returns its revision.
func TestABusyRoomIsNotReadAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		w.source.store(10)
		r := w.room()
		for rev := int64(11); rev < 60; rev++ {
			r.compare(rev)
			w.pass(replicaPatience / 20)
			w.tell(joined(rev-1, rev, "a"))
		}
		w.pass(2 * replicaPatience)
		w.wantReads(1)
	})
}

func TestACloseEndsReadsThatHang(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.source.hold()
		defer release()
		r := w.room()
		w.hub.close() // else the bubble waits for the read for ever
		r.mu.Lock()
		r.reading = false
		r.reread()
		reading := r.reading
		r.mu.Unlock()
		if reading {
			t.Error("a closed hub reads on")
		}
	})
}
