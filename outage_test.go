package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// late is how much later than answerWithin an answer may come on a busy machine.
const late = 1500 * time.Millisecond

// idle tells whether every leave is confirmed.
func (o *pendingLeaves) idle() bool { return o.size() == 0 }

// troubledRedis is a client whose scripts meet the trouble that a test chooses.
type troubledRedis struct {
	redis.UniversalClient
	trouble atomic.Pointer[func(script string) trouble]
	finds   atomic.Int64 // connections that were looked for
}

// trouble decides what becomes of a script: call sends it, whenever that may be.
type trouble func(ctx context.Context, call func(context.Context) *redis.Cmd) *redis.Cmd

func (r *troubledRedis) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	name, text := scriptOf(sha)
	call := func(ctx context.Context) *redis.Cmd {
		answer := r.UniversalClient.EvalSha(ctx, sha, keys, args...)
		if redis.HasErrorPrefix(answer.Err(), "NOSCRIPT") {
			return r.UniversalClient.Eval(ctx, text, keys, args...)
		}
		return answer
	}
	if of := r.trouble.Load(); of != nil {
		if what := (*of)(name); what != nil {
			return what(ctx, call)
		}
	}
	return call(ctx)
}

func (r *troubledRedis) HGet(ctx context.Context, key, field string) *redis.StringCmd {
	defer r.finds.Add(1)
	return r.UniversalClient.HGet(ctx, key, field)
}

// meets has scripts of this name, or all for "", meet the trouble from now on.
func (r *troubledRedis) meets(name string, what trouble) {
	of := func(script string) trouble {
		if name != "" && name != script {
			return nil
		}
		return what
	}
	r.trouble.Store(&of)
}

func (r *troubledRedis) recover() { r.trouble.Store(nil) }

// scriptOf gives a script's name and its text by the digest of the text.
func scriptOf(sha string) (name, text string) {
	all := loadScripts(false)
	for _, s := range all.all() {
		for _, form := range []scriptText{s.redis7, s.legacy} {
			if form.sha == sha {
				return s.name, form.source
			}
		}
	}
	panic("a script that this list does not know")
}

func lost(ctx context.Context) *redis.Cmd {
	failed := redis.NewCmd(ctx)
	failed.SetErr(errLost)
	return failed
}

func refuse(ctx context.Context, _ func(context.Context) *redis.Cmd) *redis.Cmd { return lost(ctx) }

func hang(ctx context.Context, _ func(context.Context) *redis.Cmd) *redis.Cmd {
	<-ctx.Done()
	return lost(ctx)
}

func loseAnswer(ctx context.Context, call func(context.Context) *redis.Cmd) *redis.Cmd {
	call(ctx)
	return lost(ctx)
}

func startTroubled(t *testing.T, b backend) (*troubledRedis, *node) {
	t.Helper()
	rdb := &troubledRedis{UniversalClient: b.open(t)}
	return rdb, startNodeOn(t, rdb)
}

// unavailableInTime is a call that must be refused for want of Redis.
func (u *user) unavailableInTime(event, payload string) {
	u.t.Helper()
	start := time.Now()
	ack := u.refused(event, payload, CodeUnavailable)
	if took := time.Since(start); took > answerWithin+late {
		u.t.Errorf("%s was answered after %v", event, took)
	}
	if !ack.Retryable {
		u.t.Errorf("%s is answered with %s", event, ack.text)
	}
}

func TestWithoutRedisEveryRequestIsAnswered(t *testing.T) {
	t.Parallel()
	takesLong(t)
	for name, what := range map[string]trouble{"refusing": refuse, "hanging": hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rdb, n := startTroubled(t, miniRedis(t))
			u := n.member(t, "home", "ann", "{}")
			rdb.meets("", what)
			requests := []struct{ event, payload string }{
				{eventHeartbeat, `{}`},
				{eventHeartbeat, `{"patchState":{"a":1}}`},
				{eventGet, inRoom("home", "")},
				{eventJoin, joinPayloadOf("home", "ann", "{}")},
				{eventJoin, joinPayloadOf("another", "ann", "{}")},
				{eventLeave, inRoom("home", "")},
			}
			if name == "hanging" { // each takes its two seconds
				requests = slices.Delete(requests, 1, 4)
			}
			for _, r := range requests {
				u.unavailableInTime(r.event, r.payload)
			}
			u.refused(eventJoin, `{}`, CodeInvalidPayload) // for which nobody asks Redis
			rdb.recover()
			u.join("home", "ann", "{}")
			u.ok(eventHeartbeat, "")
			u.ok(eventLeave, "")
		})
	}
}

// TestAJoinOfUnknownOutcomeIsTakenBack_G5 loses the answer to a join, so that the member is in the room and its client does
// not know.
func TestAJoinOfUnknownOutcomeIsTakenBack_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, n := startTroubled(t, b)
		room := uniqueRoom(t)
		witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), n.user(t)
		rdb.meets("join", loseAnswer)
		u.unavailableInTime(eventJoin, joinPayloadOf(room, "ann", "{}"))
		u.refused(eventHeartbeat, "", CodeNotJoined)
		witness.sees(EventLeave, u.id)
		witness.settled(witness, room)
		witness.wantEvents(u.id, "join ann 1 {}", "leave ann 0 disconnected null")
		rdb.recover()
		u.join(room, "ann", `{"a":1}`)
		u.ok(eventHeartbeat, "")
	})
}

// TestARepeatedJoinOfUnknownOutcomeStays_G5: the pending leave of the first try must not take the second one along.
func TestARepeatedJoinOfUnknownOutcomeStays_G5(t *testing.T) {
	t.Parallel()
	takesLong(t)
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, n := startTroubled(t, b)
		room := uniqueRoom(t)
		witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), n.user(t)
		rdb.meets("join", loseAnswer)
		u.unavailableInTime(eventJoin, joinPayloadOf(room, "ann", "{}"))
		rdb.recover()
		epoch := u.join(room, "ann", `{"a":1}`).Self.Epoch
		eventually(t, 5*time.Second, "no leave is pending", n.pendingLeaves.idle)
		witness.settled(u, room)
		for _, e := range witness.events {
			if e.Type == "leave" && e.Epoch == epoch {
				t.Errorf("the second join was taken back: %+v", e)
			}
		}
	})
}

// TestALeaveAfterAJoinOfUnknownOutcome_G7: ok means that the member is not there.
func TestALeaveAfterAJoinOfUnknownOutcome_G7(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, n := startTroubled(t, b)
		room := uniqueRoom(t)
		u := n.user(t)
		rdb.meets("join", loseAnswer)
		u.unavailableInTime(eventJoin, joinPayloadOf(room, "ann", "{}"))
		u.ok(eventLeave, "")
		if ack := u.ok(eventGet, inRoom(room, "")); ack.Count != 0 {
			t.Errorf("after its leave the room is %s", ack.text)
		}
	})
}

// TestAJoinAgainOfUnknownOutcome_G5 loses the answer to a join of one that is in the room already: what its client does
// next is meant for the incarnation that the room has.
func TestAJoinAgainOfUnknownOutcome_G5(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(t *testing.T, u, witness *user, room string, old int64){
		"heartbeat": func(t *testing.T, u, _ *user, room string, old int64) {
			if ack := u.ok(eventHeartbeat, `{"patchState":{"c":3}}`); *ack.Epoch <= old || !*ack.Changed {
				t.Errorf("the heartbeat is answered with %s", ack.text)
			}
			if e := entryOf(t, u.ok(eventGet, inRoom(room, "")), u.id); string(e.State) != `{"b":2,"c":3}` {
				t.Errorf("its state is %s", e.State)
			}
		},
		"heartbeat with the old epoch": func(t *testing.T, u, _ *user, _ string, old int64) {
			ack := u.refused(eventHeartbeat, fmt.Sprintf(`{"epoch":%d}`, old), CodeStaleEpoch)
			u.ok(eventHeartbeat, fmt.Sprintf(`{"epoch":%d}`, *ack.Epoch))
		},
		"leave": func(t *testing.T, u, witness *user, room string, _ int64) {
			u.ok(eventLeave, "")
			if ack := witness.ok(eventGet, inRoom(room, "")); ack.Count != 1 {
				t.Errorf("after its leave the room is %s", ack.text)
			}
			witness.sees(EventLeave, u.id)
		},
		"disconnect": func(t *testing.T, u, witness *user, _ string, _ int64) {
			_ = u.conn.Close()
			witness.sees(EventLeave, u.id)
		},
		"join": func(t *testing.T, u, witness *user, room string, old int64) {
			if ack := u.join(room, "ann", `{}`); ack.Self.Epoch <= old || len(ack.Snapshot) != 2 {
				t.Errorf("the next join is answered with %s", ack.text)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rdb, n := startTroubled(t, miniRedis(t))
			room := uniqueRoom(t)
			witness, u := n.member(t, room, "witness", "{}"), n.user(t)
			old := u.join(room, "ann", `{"a":1}`).Self.Epoch
			rdb.meets("join", loseAnswer)
			u.unavailableInTime(eventJoin, joinPayloadOf(room, "ann", `{"b":2}`))
			rdb.recover()
			next(t, u, witness, room, old)
			eventually(t, 5*time.Second, "no leave is pending", n.pendingLeaves.idle)
			assertAgree(t, n.service, room)
		})
	}
}

// TestAJoinThatRunsLateIsTakenBack_G5 has the script of a join that was given up run after Redis answers again.
func TestAJoinThatRunsLateIsTakenBack_G5(t *testing.T) {
	b := miniRedis(t)
	rdb, n := startTroubled(t, b)
	witness, u := n.member(t, "home", "witness", "{}"), n.user(t)
	var late func(context.Context) *redis.Cmd
	rdb.meets("join", func(ctx context.Context, call func(context.Context) *redis.Cmd) *redis.Cmd {
		late = call
		return lost(ctx)
	})
	u.unavailableInTime(eventJoin, joinPayloadOf("home", "ann", "{}"))
	eventually(t, 5*time.Second, "the node has looked for the member", func() bool { return rdb.finds.Load() > 0 })
	if err := late(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	witness.sees(EventLeave, u.id)
	eventually(t, 5*time.Second, "no leave is pending", n.pendingLeaves.idle)
	witness.settled(witness, "home")
	witness.wantEvents(u.id, "join ann 1 {}", "leave ann 0 disconnected null")
}

// TestALeaveThatFailedIsMadeGoodOnce_G5 loses the leave itself, or the answer to it.
func TestALeaveThatFailedIsMadeGoodOnce_G5(t *testing.T) {
	t.Parallel()
	for name, what := range map[string]trouble{"request": refuse, "answer": loseAnswer} {
		t.Run(name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, b backend) {
				rdb, n := startTroubled(t, b)
				room := uniqueRoom(t)
				witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), n.member(t, room, "ann", "{}")
				rdb.meets("remove", what)
				u.unavailableInTime(eventLeave, "")
				u.unavailableInTime(eventLeave, inRoom(room, ""))
				u.refused(eventHeartbeat, "", CodeNotJoined)
				rdb.recover()
				witness.sees(EventLeave, u.id)
				u.ok(eventLeave, "")
				eventually(t, 5*time.Second, "no leave is pending", n.pendingLeaves.idle)
				witness.settled(witness, room)
				witness.wantEvents(u.id, "join ann 1 {}", "leave ann 0 left null")
			})
		})
	}
}

// TestAJoinAfterALeaveThatFailedStays_G5: the leave is of an older incarnation.
func TestAJoinAfterALeaveThatFailedStays_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, n := startTroubled(t, b)
		room := uniqueRoom(t)
		witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), n.member(t, room, "ann", "{}")
		rdb.meets("remove", refuse)
		u.unavailableInTime(eventLeave, "")
		epoch := u.join(room, "ann", "{}").Self.Epoch
		rdb.recover()
		eventually(t, 5*time.Second, "no leave is pending", n.pendingLeaves.idle)
		witness.settled(u, room)
		if last := witness.events[len(witness.events)-1]; last.Epoch != epoch {
			t.Errorf("the witness saw %q", witness.of(u.id))
		}
		if ack := u.ok(eventHeartbeat, ""); *ack.Epoch != epoch {
			t.Errorf("the heartbeat is answered with %s", ack.text)
		}
	})
}

func TestADisconnectWithoutRedisIsMadeGood_G5(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, n := startTroubled(t, b)
		room := uniqueRoom(t)
		witness, u := startNodeFor(t, b).member(t, room, "witness", "{}"), n.member(t, room, "ann", "{}")
		rdb.meets("", refuse)
		u.send("41", "1")
		u.closed()
		rdb.recover()
		if e := witness.sees(EventLeave, u.id); e.Reason != string(ReasonDisconnected) {
			t.Errorf("left with %q", e.Reason)
		}
	})
}

// TestAPatchOfUnknownOutcomeIsNotLost: whether or not it happened, the next patch adds to it.
func TestAPatchOfUnknownOutcomeIsNotLost(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb, n := startTroubled(t, b)
		u := n.member(t, uniqueRoom(t), "ann", "{}")
		rdb.meets("patch", loseAnswer)
		u.unavailableInTime(eventHeartbeat, `{"patchState":{"a":1}}`)
		rdb.recover()
		if ack := u.ok(eventHeartbeat, `{"patchState":{"b":2}}`); !*ack.Changed {
			t.Error("the second patch changed nothing")
		}
		if ack := u.ok(eventHeartbeat, `{"patchState":{"a":1,"b":2}}`); *ack.Changed {
			t.Error("the first patch was lost")
		}
	})
}

// TestAStoppedRedis hangs a real server under requests of all kinds.
func TestAStoppedRedis(t *testing.T) {
	takesLong(t)
	server := spawnRedis(t)
	n := startNodeFor(t, backend{url: server.url})
	room := uniqueRoom(t)
	witness := n.member(t, room, "witness", "{}")
	requests := []struct{ event, payload string }{
		{eventHeartbeat, `{}`},
		{eventHeartbeat, `{"patchState":{"a":1}}`},
		{eventGet, inRoom(room, "")},
		{eventJoin, joinPayloadOf(room, "again", "{}")},
		{eventJoin, joinPayloadOf(room+" other", "ann", "{}")},
		{eventLeave, ""},
	}
	var all []*user
	for range requests {
		all = append(all, n.member(t, room, "ann", "{}"))
	}
	server.signal(syscall.SIGSTOP)
	var asked sync.WaitGroup
	for i, r := range requests {
		asked.Go(func() { all[i].unavailableInTime(r.event, r.payload) })
	}
	asked.Wait()
	server.signal(syscall.SIGCONT)
	eventually(t, 10*time.Second, "no leave is pending", n.pendingLeaves.idle)
	for i, u := range all[:5] {
		eventually(t, 10*time.Second, "heartbeat of "+requests[i].event, func() bool { return u.call(eventHeartbeat, inRoom(room, "")).OK })
	}
	all[5].refused(eventHeartbeat, "", CodeNotJoined)
	eventually(t, 10*time.Second, "the room is as its members know it", func() bool {
		here, other := witness.ok(eventGet, inRoom(room, "")), witness.ok(eventGet, inRoom(room+" other", ""))
		return here.Count == 6 && other.Count == 0
	})
	assertAgree(t, n.service, room)
}

// TestRequestsInARowAreAllAnsweredInTime sends many requests on one socket while Redis hangs.
func TestRequestsInARowAreAllAnsweredInTime(t *testing.T) {
	server := spawnRedis(t)
	n := startNodeFor(t, backend{url: server.url})
	u := n.member(t, uniqueRoom(t), "ann", "{}")
	server.signal(syscall.SIGSTOP)
	defer server.signal(syscall.SIGCONT)
	start := time.Now()
	var asked []string
	for range 20 {
		asked = append(asked, u.ask(eventHeartbeat, `{}`))
	}
	for i, id := range asked {
		if ack := u.answer(id); ack.Code != string(CodeUnavailable) || !ack.Retryable {
			t.Fatalf("request %d is answered with %s", i, ack.text)
		}
		if took := time.Since(start); took > answerWithin+late {
			t.Fatalf("request %d was answered after %v", i, took)
		}
	}
}
