package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	maxLogBytes  = 1 << 20     // of lines that wait for the writer
	maxLogAlike  = 50          // lines of one level and message in a period
	maxLogKinds  = 200         // levels and messages told apart in a period: a library may make messages of what clients send
	logPeriod    = time.Second // see maxLogAlike
	logCloseWait = time.Second // how long the end of the process waits for a writer that takes nothing
)

// logs is the log of the process. Who logs never waits for the writer behind it: lines go through a bounded queue, and
// those of a kind that comes too often are sampled.
type logs struct {
	*slog.Logger
	lost    *lostLines
	sampler *sampler
	queue   *logQueue
}

// newLogs starts the writing of lines to out. close ends it.
func newLogs(out io.Writer, config Config) *logs {
	lost := &lostLines{}
	queue := newLogQueue(out, lost)
	options := &slog.HandlerOptions{Level: config.LogLevel}
	var lines slog.Handler = slog.NewTextHandler(queue, options)
	if config.LogFormat == "json" {
		lines = slog.NewJSONHandler(queue, options)
	}
	direct := slog.New(lines)
	s := &sampler{lines, &samples{log: direct, lost: lost, seen: map[logKind]int{}}}
	go queue.run(func(lines int64) {
		direct.Warn("lines of the log were lost: they were not taken in time", "lines", lines)
	})
	return &logs{slog.New(s), lost, s, queue}
}

// close writes what waits, for at most logCloseWait. Lines that come later are lost.
func (l *logs) close() {
	l.sampler.turn()
	l.queue.close()
}

// lostLines counts the lines that nobody will read.
type lostLines struct {
	full, failed, alike atomic.Int64
}

// all are the counts by reason, 0 for nil.
func (l *lostLines) all() map[string]int64 {
	if l == nil {
		l = &lostLines{}
	}
	return map[string]int64{"queue_full": l.full.Load(), "write_failed": l.failed.Load(), "repeated": l.alike.Load()}
}

// lostLinesOf returns the counters of a logger that newLogs made, nil for another one.
func lostLinesOf(log *slog.Logger) *lostLines {
	if s, ok := log.Handler().(*sampler); ok {
		return s.lost
	}
	return nil
}

// logQueue holds lines for a goroutine that writes them. The ends of the writer, a pipe above all, may take nothing for long.
type logQueue struct {
	out   io.Writer
	lost  *lostLines
	wake  wakeup
	ended chan struct{}

	mu      mutex[ofNone]
	waiting []byte // whole lines
	untold  int64  // lines that were lost since the log last said so
	closed  bool
}

func newLogQueue(out io.Writer, lost *lostLines) *logQueue {
	return &logQueue{out: out, lost: lost, wake: newWakeup(), ended: make(chan struct{})}
}

// Write takes one line, or loses it if too many wait. It does not wait.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.waiting)+len(line) > maxLogBytes {
		q.lost.full.Add(1)
		q.untold++
		return len(line), nil
	}
	q.waiting = append(q.waiting, line...)
	q.wake.send()
	return len(line), nil
}

// run writes lines until close. What was lost it tells after the next lines that could be written.
func (q *logQueue) run(tell func(lines int64)) {
	defer close(q.ended)
	var lines []byte
	for last := false; !last; {
		<-q.wake
		lines, last = q.take(lines)
		if len(lines) > 0 && q.write(lines) {
			if untold := q.takeUntold(); untold > 0 && !last {
				tell(untold)
			}
		}
	}
}

// take returns the lines that wait, and whether they are the last ones. The queue goes on with the memory of spare.
func (q *logQueue) take(spare []byte) (lines []byte, last bool) {
	if cap(spare) > maxLogBytes/16 { // made in bad times
		spare = nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	lines, q.waiting = q.waiting, spare[:0]
	return lines, q.closed
}

func (q *logQueue) takeUntold() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	untold := q.untold
	q.untold = 0
	return untold
}

func (q *logQueue) write(lines []byte) (ok bool) {
	n, err := q.out.Write(lines)
	if err == nil {
		return true
	}
	failed := int64(bytes.Count(lines[n:], []byte("\n")))
	q.lost.failed.Add(failed)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.untold += failed
	return false
}

func (q *logQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake.send()
	timer := time.NewTimer(logCloseWait)
	defer timer.Stop()
	select {
	case <-q.ended:
	case <-timer.C:
	}
}

// sampler passes on the first lines of a kind in each period, and at its end says how many it left out.
type sampler struct {
	slog.Handler
	*samples
}

// samples is what a logger shares with those made from it.
type samples struct {
	log  *slog.Logger // without a sampler
	lost *lostLines

	mu    mutex[ofNone]
	begin time.Time
	seen  map[logKind]int // in the period that began then
}

type logKind struct {
	level   slog.Level
	message string // "" = all that are beyond maxLogKinds
}

func (s *sampler) Handle(ctx context.Context, r slog.Record) error {
	if !s.admit(logKind{r.Level, r.Message}) {
		return nil
	}
	return s.Handler.Handle(ctx, r)
}

func (s *sampler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sampler{s.Handler.WithAttrs(attrs), s.samples}
}

func (s *sampler) WithGroup(name string) slog.Handler {
	return &sampler{s.Handler.WithGroup(name), s.samples}
}

// admit counts a line and tells whether it is to be written.
func (s *samples) admit(kind logKind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.begin) >= logPeriod {
		s.turnLocked()
	}
	if _, known := s.seen[kind]; !known && len(s.seen) >= maxLogKinds {
		kind.message = ""
	}
	s.seen[kind]++
	switch n := s.seen[kind]; {
	case n <= maxLogAlike:
		return true
	case n == maxLogAlike+1: // the next line may be long in coming
		time.AfterFunc(logPeriod-time.Since(s.begin), s.turn)
	}
	s.lost.alike.Add(1)
	return false
}

func (s *samples) turn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turnLocked()
}

// turnLocked ends a period.
func (s *samples) turnLocked() {
	for kind, n := range s.seen {
		if n > maxLogAlike {
			s.log.Log(context.Background(), kind.level, "more lines of one kind were left out", "of", kind.message, "lines", n-maxLogAlike)
		}
	}
	clear(s.seen)
	s.begin = time.Now()
}
