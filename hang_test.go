package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// residentKB is the memory of a process.
func (p *program) residentKB() int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if err != nil || found == nil {
		p.t.Skipf("this system does not tell the memory of a process: %v", err)
	}
	kb, _ := strconv.Atoi(string(found[1])) // digits
	return kb
}

// answers counts what clients were answered while Redis hung.
type answers struct {
	ok, unavailable atomic.Int64
	slowest         atomic.Int64 // nanoseconds
}

// ask has every client of an audience send requests of its own, one after the other, until the returned function is called.
func (a *answers) ask(c *audience) (stop func()) {
	var work sync.WaitGroup
	end := make(chan struct{})
	for i, o := range c.observers() {
		work.Go(func() {
			for n := i; ; n += 1000 {
				a.note(c.t, o, n)
				select {
				case <-end:
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	return func() { close(end); work.Wait() }
}

func (a *answers) note(t testing.TB, o *observer, n int) {
	start := time.Now()
	ack, err := o.patch(t.Context(), n)
	for took := int64(time.Since(start)); ; {
		slowest := a.slowest.Load()
		if took <= slowest || a.slowest.CompareAndSwap(slowest, took) {
			break
		}
	}
	switch {
	case err == nil && ack.OK:
		a.ok.Add(1)
	case err == nil && ack.Code == string(CodeUnavailable) && ack.Retryable:
		a.unavailable.Add(1)
	default:
		t.Errorf("a patch is answered with %s, %v", ack.text, err)
	}
}

// TestRedisHangs_G5_G7 stops Redis, or has it hold all commands, for longer than the lookback and the lease. Requests are
// answered in time, the nodes do not grow, nobody is taken for silent or lost, and a join whose client was not told is taken
// back.
func TestRedisHangs_G5_G7(t *testing.T) {
	t.Parallel()
	takesLong(t)
	for name, hang := range map[string]struct {
		lasts time.Duration
		begin func(t *testing.T, p *redisProcess)
		end   func(p *redisProcess)
	}{
		"SIGSTOP": {10 * time.Second, func(_ *testing.T, p *redisProcess) { p.signal(syscall.SIGSTOP) }, func(p *redisProcess) { p.signal(syscall.SIGCONT) }},
		"CLIENT PAUSE": {6 * time.Second, func(t *testing.T, p *redisProcess) {
			if err := (backend{url: p.url}).open(t).Do(t.Context(), "CLIENT", "PAUSE", 6000, "ALL").Err(); err != nil {
				t.Fatal(err)
			}
		}, func(*redisProcess) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const ttl = 2 * time.Second
			all, started := startNodes(t, 2, fmt.Sprint("PRESENCE_TTL_MS=", ttl.Milliseconds())), time.Now()
			s := startService(t, backend{url: all.redis.url}.open(t), Options{})
			c := newAudience(t, uniqueRoom(t))
			for i := range 30 {
				c.join(all.nodes[i%2].address(), "{}")
			}
			newcomers := []*user{dialUser(t, all.nodes[0].address()), dialUser(t, all.nodes[1].address())}
			var a answers
			stop := a.ask(c)
			eventually(t, 10*time.Second, "contact for a TTL", func() bool { return time.Since(started) > ttl+2*contactPeriod })
			before := max(all.nodes[0].residentKB(), all.nodes[1].residentKB())

			hang.begin(t, all.redis)
			began := time.Now()
			for _, u := range newcomers {
				u.unavailableInTime(eventJoin, joinPayloadOf(c.room, "newcomer", "{}"))
			}
			peak := 0
			eventually(t, 2*hang.lasts, "the end of the hang", func() bool {
				peak = max(peak, all.nodes[0].residentKB(), all.nodes[1].residentKB())
				return time.Since(began) >= hang.lasts
			})
			hang.end(all.redis)
			answered := time.Now()
			eventually(t, 3*ttl, "everybody has been judged again", func() bool { return time.Since(answered) > 2*ttl })
			stop()
			c.eventuallyConverged(s, 5*time.Second)
			c.assertNoFalseLeave()
			assertAgree(t, s, c.room)
			slowest := time.Duration(a.slowest.Load())
			t.Logf("Redis hung for %v: %d requests of 30 clients unavailable, %d done, the slowest answered after %v; a node had %d KB before and at most %d",
				hang.lasts, a.unavailable.Load(), a.ok.Load(), slowest.Round(time.Millisecond), before, peak)
			if slowest > answerWithin+late {
				t.Errorf("want every answer within %v", answerWithin)
			}
			if a.unavailable.Load() == 0 {
				t.Error("no request met the hang")
			}
			if peak > before+30<<10 {
				t.Error("a node has grown by more than 30 MB")
			}
		})
	}
}
