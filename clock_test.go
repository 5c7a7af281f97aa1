package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// redisWithClock is a Redis of this test, and a function that sets its clock by so much from the right time.
func redisWithClock(t *testing.T) (p *redisProcess, set func(offset time.Duration)) {
	t.Helper()
	needRedis(t)
	compiler, err := exec.LookPath("cc")
	need(t, err == nil, "a C compiler (apt-get install gcc libc6-dev)")
	dir := t.TempDir()
	library, file := filepath.Join(dir, "clock.so"), filepath.Join(dir, "offset")
	source := filepath.Join("testdata", "clock", "clock.c")
	if out, err := exec.CommandContext(t.Context(), compiler, "-shared", "-fPIC", "-O2", "-o", library, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	set = func(offset time.Duration) {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(offset/time.Second)), 0)
			_ = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	if p, err = startRedis(nil, "LD_PRELOAD="+library, "CLOCK_OFFSET_FILE="+file); err != nil {
		t.Fatal(err)
	}
	p.t = t
	t.Cleanup(p.remove)
	return p, set
}

// TestRedisClockIsSet_G5 sets Redis' clock by a minute, many lookbacks, to and fro. No member is lost, and a silent one goes
// within two TTLs of its last heartbeat or of the moment when the nodes have noticed.
func TestRedisClockIsSet_G5(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const ttl, lookback = 2 * time.Second, 4 * time.Second
	server, set := redisWithClock(t)
	all, started := startNodesOn(t, server, 2, fmt.Sprint("PRESENCE_TTL_MS=", ttl.Milliseconds())), time.Now()
	s := startService(t, backend{url: server.url}.open(t), Options{TTL: ttl})
	c := newAudience(t, uniqueRoom(t))
	for i := range 10 {
		c.join(all.nodes[i%2].address(), "{}")
	}
	stop := c.busy(ttl / 4)
	eventually(t, 10*time.Second, "contact for a TTL", func() bool { return time.Since(started) > ttl+2*contactPeriod })
	for i, offset := range []time.Duration{60, 0, -60} {
		ghost := fmt.Sprint("ghost", i)
		mustJoin(t, s, c.room, "ghost", ghost, "{}")
		set(offset * time.Second)
		start := time.Now()
		eventually(t, 3*lookback, "the ghost is gone", func() bool { return !slices.Contains(conns(mustRead(t, s, c.room)), ghost) })
		took := time.Since(start)
		t.Logf("clock set to %+d s: a silent member is gone after %v, the lookback is %v", offset, took.Round(time.Millisecond), lookback)
		if bound := lookback + contactPeriod + 2*shortInterval + late; took > bound {
			t.Errorf("want it within %v", bound)
		}
	}
	stop()
	c.eventuallyConverged(s, 5*time.Second)
	c.assertNoFalseLeave()
	assertAgree(t, s, c.room)
}

// TestNoNodesClockCounts: what is stored, sent or compared in milliseconds comes from Redis' TIME. A node only measures how
// long something took, by its monotonic clock, so that a clock that is an hour off changes nothing.
func TestNoNodesClockCounts(t *testing.T) {
	exempt := []string{"tokens.go"} // tokens say in wall-clock time when they end
	wall := []string{"Unix", "UnixMilli", "UnixMicro", "UnixNano", "Date", "Clock", "Format"}
	for name, file := range sources(t) {
		if isTest(name) || slices.Contains(exempt, name) {
			continue
		}
		for _, mention := range mentions(file) {
			value, method, _ := strings.Cut(mention, ".")
			ours := mention == "answer.UnixMilli" || mention == "time.Unix" // Redis' TIME, and a moment long past
			if slices.Contains(wall, method) && !ours {
				t.Errorf("%s uses %s of %s: is that the node's clock?", name, method, value)
			}
		}
	}
}
