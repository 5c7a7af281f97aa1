package main

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// How often a call names its script by the digest before it sends the text in any case.
	digestTries = 3

	// Loads that ended so long ago are forgotten: no call that was sent before them still waits for its answer.
	loadKept = time.Minute
)

// scriptLoads loads scripts that a master does not know: each once, however many calls find it missing.
type scriptLoads struct {
	mu     sync.Mutex
	latest map[scriptPlace]*scriptLoad
}

// scriptPlace is a script, by its digest, on a master, by its address.
type scriptPlace struct{ master, sha string }

// scriptLoad is one load. ended and err are set before done is closed.
type scriptLoad struct {
	done  chan struct{}
	ended time.Time
	err   error
}

// load returns when the script was loaded after sent, the time at which a call that found it missing was sent. It waits for
// a load that is under way, else it calls do, and tells that it did. The error is that of the load, or of ctx.
func (l *scriptLoads) load(ctx context.Context, at scriptPlace, sent time.Time, do func() error) (mine bool, err error) {
	for {
		load, mine := l.join(at, sent)
		if mine {
			err := do()
			l.end(at, load, err)
			return true, err
		}
		select {
		case <-load.done:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if !errors.Is(load.err, context.Canceled) && !errors.Is(load.err, context.DeadlineExceeded) {
			return false, load.err
		} // else its caller gave it up, and this one goes on
	}
}

// join gives the load that covers a call sent at that time. If there is none, it begins one, which is then the caller's.
func (l *scriptLoads) join(at scriptPlace, sent time.Time) (load *scriptLoad, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if load = l.latest[at]; load != nil && (load.ended.IsZero() || load.ended.After(sent)) {
		return load, false
	}
	maps.DeleteFunc(l.latest, func(_ scriptPlace, old *scriptLoad) bool {
		return !old.ended.IsZero() && time.Since(old.ended) > loadKept
	})
	if l.latest == nil {
		l.latest = map[scriptPlace]*scriptLoad{}
	}
	load = &scriptLoad{done: make(chan struct{})}
	l.latest[at] = load
	return load, true
}

// end tells those who wait for a load. One that failed covers no later call.
func (l *scriptLoads) end(at scriptPlace, load *scriptLoad, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	load.ended, load.err = time.Now(), err
	if err != nil {
		delete(l.latest, at)
	}
	close(load.done)
}

// evalSha calls a script by its digest. Where the server does not know it, which shows that it has not run, one call sends
// the text, and those that came at the same time repeat the digest. Whatever else fails may have run, and is not sent again.
func (s *Service) evalSha(ctx context.Context, text scriptText, keys []string, call []any) (answer any, err error) {
	eval := func() (err error) {
		answer, err = s.rdb.Eval(ctx, text.source, keys, call...).Result()
		return err
	}
	for range digestTries {
		sent := time.Now()
		answer, err = s.rdb.EvalSha(ctx, text.sha, keys, call...).Result()
		if !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return answer, err
		}
		master, err := s.masterAddress(ctx, keys[0])
		if err != nil {
			return nil, err
		}
		if mine, err := s.loads.load(ctx, scriptPlace{master, text.sha}, sent, eval); mine || err != nil {
			return answer, err
		}
	}
	err = eval() // scripts are flushed again and again
	return answer, err
}

// masterAddress is that of a key's master in a cluster. Elsewhere there is one master, whose name does not matter.
func (s *Service) masterAddress(ctx context.Context, key string) (string, error) {
	cluster, ok := s.rdb.(clusterMasters)
	if !ok {
		return "", nil
	}
	master, err := cluster.MasterForKey(ctx, key)
	if err != nil {
		return "", err
	}
	return master.Options().Addr, nil
}
