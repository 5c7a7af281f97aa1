package main

import (
	"bytes"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// histogram counts durations in buckets that are at most 1/32 of their value wide. Its zero value is empty. It may be
// used from many goroutines.
type histogram struct {
	buckets [(64 - subBits) << subBits]atomic.Int64
	max     atomic.Int64
}

const subBits = 5

// bucket is exact below 1<<subBits, and keeps subBits bits behind the first above.
func bucket(ns int64) int {
	if ns < 1<<subBits {
		return int(max(ns, 0))
	}
	shift := bits.Len64(uint64(ns)) - 1 - subBits
	return shift<<subBits + int(ns>>shift)
}

// bucketMiddle is a value that stands for its bucket.
func bucketMiddle(b int) int64 {
	if b < 2<<subBits {
		return int64(b)
	}
	shift := b>>subBits - 1
	low := int64(b-shift<<subBits) << shift
	return low + 1<<shift/2
}

func (h *histogram) record(ns int64) {
	h.buckets[bucket(ns)].Add(1)
	for {
		highest := h.max.Load()
		if ns <= highest || h.max.CompareAndSwap(highest, ns) {
			return
		}
	}
}

func (h *histogram) reset() {
	for i := range h.buckets {
		h.buckets[i].Store(0)
	}
	h.max.Store(0)
}

// latency is in milliseconds.
type latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// latency is nil if nothing was recorded.
func (h *histogram) latency() *latency {
	if h.max.Load() == 0 {
		return nil
	}
	return &latency{
		P50: h.milliseconds(0.50),
		P95: h.milliseconds(0.95),
		P99: h.milliseconds(0.99),
		Max: round(float64(h.max.Load())/1e6, 4),
	}
}

func (h *histogram) milliseconds(share float64) float64 {
	return round(float64(h.percentile(share))/1e6, 3)
}

// percentile is the smallest recorded duration, in ns, that at least this share of all does not exceed.
func (h *histogram) percentile(share float64) int64 {
	var total, seen int64
	for i := range h.buckets {
		total += h.buckets[i].Load()
	}
	for i := range h.buckets {
		seen += h.buckets[i].Load()
		if seen > 0 && float64(seen) >= share*float64(total) {
			return min(bucketMiddle(i), h.max.Load())
		}
	}
	return 0
}

// meter reads what processes have used. A list without processes has used nothing that is known.
type meter struct{ servers, redis []int }

type usage struct {
	at            time.Time
	server, redis time.Duration
	done          tally
}

func (m *meter) read() (u usage, err error) {
	if u.server, err = cpuTimes(m.servers); err != nil {
		return u, err
	}
	u.redis, err = cpuTimes(m.redis)
	u.at = time.Now()
	return u, err
}

func cpuTimes(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		t, err := cpuTime(pid)
		if err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		sum += t
	}
	return sum, nil
}

// residentBytes is the physical memory of the servers.
func (m *meter) residentBytes() (sum int64, err error) {
	for _, pid := range m.servers {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, after, _ := bytes.Cut(b, []byte("VmRSS:"))
		fields := bytes.Fields(after)
		if len(fields) == 0 {
			return 0, fmt.Errorf("process %d has no VmRSS", pid)
		}
		kilobytes, err := strconv.ParseInt(string(fields[0]), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += kilobytes << 10
	}
	return sum, nil
}

// descriptors is how many files and sockets the servers have open.
func (m *meter) descriptors() (sum int64, err error) {
	for _, pid := range m.servers {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, err
		}
		sum += int64(len(open))
	}
	return sum, nil
}

// measurement is what happened between begin and end.
type measurement struct {
	from, to         usage
	answer, delivery *latency
	resident         int64 // bytes at the end
}

func (l *load) begin() (err error) {
	l.answer.reset()
	l.delivery.reset()
	l.measured.from, err = l.meter.read()
	l.measured.from.done = l.tally()
	return err
}

func (l *load) end() (err error) {
	to := &l.measured.to
	if *to, err = l.meter.read(); err != nil {
		return err
	}
	to.done = l.tally()
	l.measured.answer, l.measured.delivery = l.answer.latency(), l.delivery.latency()
	l.measured.resident, err = l.meter.residentBytes()
	return err
}
