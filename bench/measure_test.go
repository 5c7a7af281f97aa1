package main

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

func TestPercentilesOfAnythingAreNearTheExactOnes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var h histogram
	var all []int64
	for range 10_000 {
		ns := int64(math.Exp(random.Float64() * 25)) // 1 ns to 72 s
		h.record(ns)
		all = append(all, ns)
	}
	slices.Sort(all)
	for _, share := range []float64{0.01, 0.5, 0.95, 0.99, 1} {
		exact := all[max(0, int(math.Ceil(share*float64(len(all))))-1)]
		got := h.percentile(share)
		if off := math.Abs(float64(got-exact)) / float64(exact); off > 1.0/32 {
			t.Errorf("%g: got %d instead of %d", share, got, exact)
		}
	}
	if h.max.Load() != all[len(all)-1] {
		t.Errorf("the highest is %d instead of %d", h.max.Load(), all[len(all)-1])
	}
}

func TestPercentilesOfFew(t *testing.T) {
	var h histogram
	if h.latency() != nil || h.percentile(0.5) != 0 {
		t.Error("an empty histogram has a latency")
	}
	h.record(7)
	h.record(9)
	h.record(31)
	for share, want := range map[float64]int64{0: 7, 0.3: 7, 0.5: 9, 0.67: 31, 1: 31} {
		if got := h.percentile(share); got != want {
			t.Errorf("%g: got %d instead of %d", share, got, want)
		}
	}
	h.reset()
	if h.latency() != nil {
		t.Error("a latency is left after the reset")
	}
}

func TestEveryDurationHasItsBucket(t *testing.T) {
	var h histogram
	last := -1
	for shift := range 63 {
		for _, ns := range []int64{1 << shift, 1<<shift + 1<<shift/2} {
			b := bucket(ns)
			if b < last || b >= len(h.buckets) {
				t.Fatalf("%d has bucket %d, after %d, of %d", ns, b, last, len(h.buckets))
			}
			last = b
		}
	}
	h.record(-1) // another clock reading came first
	h.record(math.MaxInt64)
}

func TestRound(t *testing.T) {
	for x, want := range map[float64]float64{0: 0, 1.2345: 1.23, 12345: 12300, 0.00012345: 0.000123, -9.999: -10} {
		if got := round(x, 3); math.Abs(got-want) > 1e-12 {
			t.Errorf("%g becomes %g, not %g", x, got, want)
		}
	}
}

func TestCPUTimeOfAProcessGrowsWithWork(t *testing.T) {
	m := meter{servers: []int{os.Getpid()}}
	before, err := m.read()
	if err != nil {
		t.Fatal(err)
	}
	for begin, n := time.Now(), 0; time.Since(begin) < 20*time.Millisecond; n++ {
		_ = n
	}
	after, err := m.read()
	if used := after.server - before.server; err != nil || used < time.Millisecond || used > 10*time.Second {
		t.Errorf("20 ms of work are %v, %v", used, err)
	}
	if n, err := m.residentBytes(); err != nil || n < 1<<20 {
		t.Errorf("this process has %d bytes, %v", n, err)
	}
	if _, err := (&meter{redis: []int{1<<22 + 1}}).read(); err == nil {
		t.Error("a process beyond the highest number has a CPU time")
	}
}
