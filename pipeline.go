package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// Calls that share one round trip at most, and round trips to one master at the same time.
	pipelineBatch   = 64
	pipelineWorkers = 3

	// A call that failed after so long shows that Redis owes an answer.
	pipelineDoubt = time.Second

	// The least time between two looks at the layout of a cluster.
	reloadPause = 200 * time.Millisecond
)

// errOwes is what calls to a master get that owes the answer to an earlier one.
var errOwes = errors.New("an earlier call to Redis has no answer yet")

// pipelines is a Redis client whose scripts share round trips: what waits for one master goes out together, what comes
// alone goes at once. A call that may have reached Redis is never sent again. While a master owes an answer, calls to it
// fail at once instead of piling up.
type pipelines struct {
	redis.UniversalClient
	single  *redis.Client        // nil with a cluster
	cluster *redis.ClusterClient // nil without

	mu       sync.Mutex
	lines    map[*redis.Client]*pipeline
	reloaded time.Time

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

// newPipelines takes a *redis.Client or a *redis.ClusterClient.
func newPipelines(rdb redis.UniversalClient) *pipelines {
	p := &pipelines{UniversalClient: rdb, lines: map[*redis.Client]*pipeline{}}
	switch rdb := rdb.(type) {
	case *redis.Client:
		p.single = rdb
	case *redis.ClusterClient:
		p.cluster, p.UniversalClient = rdb, onceCluster{rdb}
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Close waits for the round trips under way and closes the client.
func (p *pipelines) Close() error {
	p.stop()
	p.work.Wait()
	return p.UniversalClient.Close()
}

func (p *pipelines) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := scriptCmd(ctx, "evalsha", sha, keys, args)
	err := p.process(ctx, keys[0], cmd)
	var answer redis.Error
	switch {
	case err == nil:
		return cmd
	case redis.HasErrorPrefix(err, "MOVED"), redis.HasErrorPrefix(err, "ASK"), errors.Is(err, redis.ErrClosed):
		p.reload()
		return p.UniversalClient.EvalSha(ctx, sha, keys, args...) // it has not run, and this follows the redirection
	case !errors.As(err, &answer):
		p.reload()
	}
	return failedCmd(ctx, err)
}

// process sends cmd to the master of a key. After an error, cmd may still change and must not be read.
func (p *pipelines) process(ctx context.Context, key string, cmd *redis.Cmd) error {
	l, err := p.lineFor(ctx, key)
	if err != nil {
		return err
	}
	return l.process(ctx, cmd)
}

func failedCmd(ctx context.Context, err error) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(err)
	return cmd
}

// lineFor is the pipeline to the master of a key.
func (p *pipelines) lineFor(ctx context.Context, key string) (*pipeline, error) {
	client, err := p.MasterForKey(ctx, key)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lines[client]
	if l == nil {
		l = &pipeline{client: client, calls: make(chan *pipelinedCall, pipelineBatch), ctx: p.ctx, work: &p.work}
		for range pipelineWorkers {
			p.work.Go(l.serve)
		}
		p.lines[client] = l
	}
	return l, nil
}

// MasterForKey is that of a cluster. A single server is the master of all keys.
func (p *pipelines) MasterForKey(ctx context.Context, key string) (*redis.Client, error) {
	if p.cluster == nil {
		return p.single, nil
	}
	return p.cluster.MasterForKey(ctx, key)
}

// ForEachMaster is that of a cluster.
func (p *pipelines) ForEachMaster(ctx context.Context, visit func(context.Context, *redis.Client) error) error {
	if p.cluster == nil {
		return visit(ctx, p.single)
	}
	return p.cluster.ForEachMaster(ctx, visit)
}

// reload looks anew at the layout of a cluster, in the background.
func (p *pipelines) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cluster != nil && time.Since(p.reloaded) > reloadPause {
		p.reloaded = time.Now()
		p.cluster.ReloadState(p.ctx)
	}
}

// pipeline carries the calls to one master.
type pipeline struct {
	client *redis.Client
	calls  chan *pipelinedCall
	owes   atomic.Bool // and a probe is under way
	ctx    context.Context
	work   *sync.WaitGroup
}

// pipelinedCall is one call. Either its caller gives it up, or a worker takes it and calls back.
type pipelinedCall struct {
	cmd   redis.Cmder
	taken atomic.Bool
	done  chan struct{}
}

func (l *pipeline) process(ctx context.Context, cmd redis.Cmder) error {
	if l.owes.Load() {
		return errOwes
	}
	began := time.Now()
	err := l.await(ctx, cmd)
	if err != nil && time.Since(began) >= pipelineDoubt && !l.owes.Swap(true) {
		l.work.Go(l.probe)
	}
	return err
}

func (l *pipeline) await(ctx context.Context, cmd redis.Cmder) error {
	c := &pipelinedCall{cmd: cmd, done: make(chan struct{})}
	select {
	case l.calls <- c:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-c.done:
		return cmd.Err()
	case <-ctx.Done():
		c.taken.Store(true) // a worker that comes to it later leaves it
		return ctx.Err()
	}
}

// probe ends the master's debt with its first answer.
func (l *pipeline) probe() {
	defer l.owes.Store(false)
	for l.ctx.Err() == nil && l.client.Ping(l.ctx).Err() != nil {
		pause(l.ctx, subscriptionPause)
	}
}

func (l *pipeline) serve() {
	for {
		select {
		case <-l.ctx.Done():
			return
		case c := <-l.calls:
			l.send(l.gather(c))
		}
	}
}

// gather takes what waits behind the first call.
func (l *pipeline) gather(first *pipelinedCall) []*pipelinedCall {
	batch := append(make([]*pipelinedCall, 0, 1+len(l.calls)), first)
	for len(batch) < pipelineBatch {
		select {
		case c := <-l.calls:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

func (l *pipeline) send(batch []*pipelinedCall) {
	pipe := l.client.Pipeline()
	sent := batch[:0]
	for _, c := range batch {
		if !c.taken.Swap(true) {
			_ = pipe.Process(l.ctx, c.cmd)
			sent = append(sent, c)
		}
	}
	_, _ = pipe.Exec(l.ctx) // each call has an error of its own
	for _, c := range sent {
		close(c.done)
	}
}
