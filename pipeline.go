package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// Calls that share one round trip at most, and round trips to one master at the same time: the three calls that a first join of a
	// room makes at once, and one more. With more of them, fewer calls share one where Redis is busy.
	pipelineBatch   = 64
	pipelineWorkers = 4

	// Keys of calls that share one EVALSHA at most, so that Redis is not held up: some 10 µs go with each.
	mergedKeys = 256

	// A call that failed after so long shows that Redis owes an answer.
	pipelineDoubt = time.Second

	// The least time between two looks at the layout of a cluster.
	reloadPause = 200 * time.Millisecond
)

// errUnresponsive is what calls to a master get that owes the answer to an earlier one.
var errUnresponsive = errors.New("an earlier call to Redis has no answer yet")

// pipelines is a Redis client whose scripts share round trips: what waits for one master goes out together, what comes
// alone goes at once. Calls of a script that is in merged share an EVALSHA as well, as lua/calls.lua says; in a cluster those
// whose keys have the same hash tag. A call that may have reached Redis is never sent again. While a master owes an answer,
// calls to it fail at once instead of piling up.
type pipelines struct {
	*background
	redis.UniversalClient
	single  *redis.Client        // nil with a cluster
	cluster *redis.ClusterClient // nil without
	merged  map[string]bool      // digests; not changed after the first call

	mu       mutex[ofNone]
	lines    map[*redis.Client]*pipeline
	reloaded time.Time
	added    wakeup // a line was added
}

// newPipelines takes a *redis.Client or a *redis.ClusterClient.
func newPipelines(rdb redis.UniversalClient) *pipelines {
	p := &pipelines{background: newBackground(), UniversalClient: rdb, merged: map[string]bool{}, lines: map[*redis.Client]*pipeline{}, added: newWakeup()}
	switch rdb := rdb.(type) {
	case *redis.Client:
		p.single = rdb
	case *redis.ClusterClient:
		p.cluster, p.UniversalClient = rdb, onceCluster{rdb}
		p.work.Go(p.forgetLoop)
	}
	return p
}

// Close waits for the round trips under way and closes the client.
func (p *pipelines) Close() error {
	p.end()
	return p.UniversalClient.Close()
}

// merge has scripts of these digests share calls from now on. Call it before the first of them is sent.
func (p *pipelines) merge(digests ...string) {
	for _, sha := range digests {
		p.merged[sha] = true
	}
}

// EvalSha sends keys and args as they are: at least one key.
func (p *pipelines) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return p.call(ctx, &pipelinedCall{command: "evalsha", script: sha, keys: keys, args: args, done: make(chan struct{})})
}

// Eval goes the way of EvalSha, so that loading scripts needs no connection beside.
func (p *pipelines) Eval(ctx context.Context, source string, keys []string, args ...any) *redis.Cmd {
	return p.call(ctx, &pipelinedCall{command: "eval", script: source, keys: keys, args: args, done: make(chan struct{})})
}

func (p *pipelines) call(ctx context.Context, c *pipelinedCall) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	answer, err := p.process(ctx, c)
	var answered redis.Error
	switch {
	case err == nil:
		cmd.SetVal(answer)
		return cmd
	case redis.HasErrorPrefix(err, "MOVED"), redis.HasErrorPrefix(err, "ASK"), errors.Is(err, redis.ErrClosed):
		p.reload()
		again := scriptCmd(ctx, c.command, c.script, c.keys, c.args)
		_ = p.UniversalClient.Process(ctx, onceCmd{again}) // it has not run, and this follows the redirection
		return again
	case !errors.As(err, &answered):
		p.reload()
	}
	cmd.SetErr(err)
	return cmd
}

func (p *pipelines) process(ctx context.Context, c *pipelinedCall) (answer any, err error) {
	l, err := p.lineFor(ctx, c.keys[0])
	if err != nil {
		return nil, err
	}
	return l.process(ctx, c)
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
		l = &pipeline{of: p, client: client, calls: make(chan *pipelinedCall, pipelineBatch)}
		l.ctx, l.stop = context.WithCancel(p.ctx)
		for range pipelineWorkers {
			p.work.Go(l.serve)
		}
		p.lines[client] = l
		p.added.send()
	}
	return l, nil
}

// forgetLoop ends the pipelines to servers of a cluster that are no masters any more.
func (p *pipelines) forgetLoop() {
	tick := time.NewTicker(layoutPeriod)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.added: // in place of another one, perhaps
		case <-tick.C:
		}
		p.forgetReplaced()
	}
}

// forgetReplaced leaves all pipelines alone where the layout is not to be had.
func (p *pipelines) forgetReplaced() {
	var mu sync.Mutex
	masters := map[*redis.Client]bool{}
	err := p.cluster.ForEachMaster(p.ctx, func(_ context.Context, master *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		masters[master] = true
		return nil
	})
	if err != nil {
		return
	}
	p.mu.Lock()
	replaced := slices.DeleteFunc(slices.Collect(maps.Keys(p.lines)), func(client *redis.Client) bool { return masters[client] })
	p.mu.Unlock()
	for _, client := range replaced {
		p.forget(client)
	}
}

// forget ends the pipeline to a master. A call that it has not sent goes another way.
func (p *pipelines) forget(master *redis.Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.lines[master]; l != nil {
		l.stop()
		delete(p.lines, master)
	}
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
	of     *pipelines
	client *redis.Client
	calls  chan *pipelinedCall
	owes   atomic.Bool // and a probe is under way

	ctx  context.Context // ends when the master is forgotten
	stop context.CancelFunc
}

// pipelinedCall is one call. Either its caller gives it up, or a worker takes it and closes done.
type pipelinedCall struct {
	command string // EVALSHA or EVAL, in lower case
	script  string // its digest or text
	keys    []string
	args    []any

	taken  atomic.Bool
	done   chan struct{}
	answer any
	err    error
}

func (l *pipeline) process(ctx context.Context, c *pipelinedCall) (any, error) {
	if l.owes.Load() {
		return nil, errUnresponsive
	}
	began := time.Now()
	answer, err := l.await(ctx, c)
	if err != nil && time.Since(began) >= pipelineDoubt && !l.owes.Swap(true) {
		l.of.work.Go(l.probe)
	}
	return answer, err
}

// await returns redis.ErrClosed where the call was not sent because the master is forgotten.
func (l *pipeline) await(ctx context.Context, c *pipelinedCall) (any, error) {
	select {
	case l.calls <- c:
	default:
		select {
		case l.calls <- c:
		case <-l.ctx.Done():
			return nil, redis.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case <-c.done:
		return c.answer, c.err
	case <-ctx.Done():
		c.taken.Store(true) // a worker that comes to it later leaves it
		return nil, ctx.Err()
	case <-l.ctx.Done():
	}
	if !c.taken.Swap(true) {
		return nil, redis.ErrClosed
	}
	select { // a worker has sent it
	case <-c.done:
		return c.answer, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// probe ends the master's debt with its first answer. A refusal of the login or of PING is one: calls are answered then.
func (l *pipeline) probe() {
	defer l.owes.Store(false)
	for l.ctx.Err() == nil {
		err := l.client.Ping(l.ctx).Err()
		if err == nil || errors.As(err, new(redis.Error)) {
			return
		}
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
	var list []*scriptCommand
	for _, c := range batch {
		if !c.taken.Swap(true) {
			list = l.place(c, list)
		}
	}
	pipe := l.client.Pipeline()
	for _, e := range list {
		e.cmd = scriptCmd(l.of.ctx, e.command, e.script, e.keys, e.args)
		_ = pipe.Process(l.of.ctx, e.cmd)
	}
	_, _ = pipe.Exec(l.of.ctx) // each command has an error of its own: completeAnswers sees to it
	for _, e := range list {
		e.settle()
	}
}

// scriptCommand is one command, and the calls that it carries.
type scriptCommand struct {
	command string // that of its calls
	script  string
	tag     string // that all keys have in common; "" = they need not
	keys    []string
	args    []any
	calls   []*pipelinedCall
	cmd     *redis.Cmd
}

// place adds a call to a command of the list, or to the list.
func (l *pipeline) place(c *pipelinedCall, list []*scriptCommand) []*scriptCommand {
	merges, tag := l.of.merged[c.script], ""
	if merges && l.of.cluster != nil {
		tag = hashTag(c.keys[0])
	}
	if merges {
		for _, e := range list {
			if e.script == c.script && e.tag == tag && len(e.keys)+len(c.keys) <= mergedKeys {
				e.keys, e.args, e.calls = append(e.keys, c.keys...), append(e.args, c.args...), append(e.calls, c)
				return list
			}
		}
	}
	return append(list, &scriptCommand{command: c.command, script: c.script, tag: tag, keys: slices.Clip(c.keys), args: slices.Clip(c.args), calls: []*pipelinedCall{c}})
}

// settle gives every call its answer: to each an answer as it would have had alone.
func (e *scriptCommand) settle() {
	answer, err := e.cmd.Result()
	if err == nil && answer == nil {
		err = errNoAnswer
	}
	answers, _ := answer.([]any)
	for i, c := range e.calls {
		switch {
		case err != nil || len(e.calls) == 1:
			c.answer, c.err = answer, err
		case len(answers) == len(e.calls):
			c.answer = answers[i : i+1 : i+1]
		default:
			c.err = fmt.Errorf("%d answers to %d calls", len(answers), len(e.calls))
		}
		close(c.done)
	}
}
