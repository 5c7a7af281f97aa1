package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// modelClock is what the scripts say in the model instead of asking the machine for the time.
const (
	modelClockKey  = "model:clock"
	modelServerKey = "model:server"
	modelClock     = `local function model_time()
  local ms = redis.call('GET', 'model:clock')
  return { string.sub(ms, 1, -4), string.sub(ms, -3) .. '000' }
end
`

	// modelInfo becomes the name of the server.
	modelInfo = "redis.pcall('INFO', 'server')"

	// modelPublish becomes a push onto a list in the channel's place, which the model reads after each call.
	modelPublish = "redis.call(PUBLISH, CHANNEL,"

	// modelTick takes KEYS 1 the clock, 2 the server, ARGV 1 the time, 2 ms by which every key grows older, 3 the name of the server.
	modelTick = `
local older = tonumber(ARGV[2])
for _, key in ipairs(older > 0 and redis.call('KEYS', '*') or {}) do
  local life = redis.call('PTTL', key)
  if life >= 0 then redis.call('PEXPIRE', key, math.max(0, life - older)) end
end
redis.call('MSET', KEYS[1], ARGV[1], KEYS[2], ARGV[3])`

	// modelPicture reads all of a room in one step. KEYS as in room.lua, ARGV the room.
	modelPicture = `
local room, conns, users = ARGV[1], {}, {}
for _, conn in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  local hash = 'prs:conn:{room:' .. room .. '}:' .. conn
  conns[#conns + 1] = { conn, redis.call('PTTL', hash), redis.call('HGETALL', hash) }
end
for _, user in ipairs(redis.call('HKEYS', KEYS[2])) do
  local index = 'prs:user:' .. user .. ':conns'
  users[#users + 1] = { user, redis.call('PTTL', index), redis.call('HGETALL', index) }
end
return { redis.call('GET', KEYS[4]) or '', redis.call('PTTL', KEYS[4]), redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
  redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES'), redis.call('SMEMBERS', KEYS[5]), conns, users,
  redis.call('ZSCORE', 'prs:active_rooms', room) or '' }`
)

// all are the scripts, none forgotten.
func (s *scripts) all() (list []*script) {
	fields := reflect.ValueOf(s).Elem()
	for i := range fields.NumField() {
		list = append(list, *(**script)(fields.Field(i).Addr().UnsafePointer()))
	}
	return list
}

// modelScripts are the scripts with the model's clock in place of the machine's, after change has had its way with each
// text; and their names by digest.
func modelScripts(t testing.TB, change func(text string) string) (loaded scripts, names map[string]string) {
	t.Helper()
	loaded, names = loadScripts(false), map[string]string{}
	if !strings.Contains(loaded.join.legacy.source, modelPublish) {
		t.Fatalf("the scripts lack %q", modelPublish)
	}
	for _, sc := range loaded.all() {
		for _, form := range []*scriptText{&sc.redis7, &sc.legacy} {
			flags, text, flagged := strings.Cut(form.source, "\n")
			if !flagged || !strings.HasPrefix(flags, "#!") {
				flags, text = "--", form.source
			}
			text = strings.ReplaceAll(change(text), "redis.call('TIME')", "model_time()")
			text = strings.ReplaceAll(text, modelInfo, "'run_id:' .. redis.call('GET', 'model:server')")
			text = strings.ReplaceAll(text, modelPublish, "redis.call('RPUSH', CHANNEL,")
			if strings.Contains(text, "TIME'") || strings.Contains(text, "INFO'") {
				t.Fatalf("%s asks for the time or the server in a way that the model does not know", sc.name)
			}
			*form = newScriptText(flags + "\n" + modelClock + text)
			names[form.sha] = sc.name
		}
	}
	return loaded, names
}

// modelRedis is a database of a real Redis, for one model at a time. What the nodes of a model send waits until the model lets
// it through, one command at a time, so that a seed decides the order of everything.
//
// Its goroutine and its channels belong to no bubble of synctest: while the model waits for Redis, no time passes in it.
type modelRedis struct {
	real    *redis.Client
	clients []modelPipelines // what the nodes use
	asked   chan []redis.Cmder
	done    chan struct{}
	work    sync.WaitGroup
	model   *model
}

func newModelRedis(t testing.TB, addr string, nodes int) *modelRedis {
	t.Helper()
	r := &modelRedis{asked: make(chan []redis.Cmder), done: make(chan struct{})}
	r.real = redis.NewClient(&redis.Options{Addr: addr, Protocol: 2, PoolSize: 2, MaxRetries: -1, ReadTimeout: time.Minute})
	for i := range nodes {
		rdb := redis.NewClient(&redis.Options{Addr: "nowhere:1", Protocol: 2})
		rdb.AddHook(modelGate{r, i})
		r.clients = append(r.clients, modelPipelines{rdb})
	}
	r.work.Go(func() {
		for cmds := range r.asked {
			pipe := r.real.Pipeline()
			for _, cmd := range cmds {
				_ = pipe.Process(context.Background(), cmd)
			}
			_, _ = pipe.Exec(context.Background()) // each command has an error of its own
			r.done <- struct{}{}
		}
	})
	t.Cleanup(func() {
		close(r.asked)
		r.work.Wait()
		for _, rdb := range r.clients {
			_ = rdb.Close()
		}
		_ = r.real.Close()
	})
	return r
}

// do runs commands in one round trip.
func (r *modelRedis) do(cmds ...redis.Cmder) {
	r.asked <- cmds
	<-r.done
}

// modelGate holds what one node sends.
type modelGate struct {
	redis *modelRedis
	node  int
}

func (g modelGate) DialHook(redis.DialHook) redis.DialHook {
	return func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("a node of the model has dialled")
	}
}

func (g modelGate) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return g.hold(ctx, cmd) }
}

func (g modelGate) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return g.hold(ctx, cmds...) }
}

func (g modelGate) hold(ctx context.Context, cmds ...redis.Cmder) error {
	if err := ctx.Err(); err != nil {
		return g.fail(err, cmds)
	}
	c := &heldCall{node: g.node, cmds: cmds, came: time.Now(), answered: make(chan error, 1)}
	g.redis.model.arrive(c)
	select {
	case err := <-c.answered:
		return g.fail(err, cmds)
	case <-ctx.Done():
		c.given.Lock()
		defer c.given.Unlock()
		c.up = true
		return ctx.Err()
	}
}

// fail gives the error of a call: that of its way, else that of the first command. It leaves the commands of a pipeline alone where the
// connection was refused, as go-redis does.
func (g modelGate) fail(err error, cmds []redis.Cmder) error {
	if errors.Is(err, loginRefused) && cmds[0].Name() != "time" {
		return err
	}
	for _, cmd := range cmds {
		if err != nil {
			cmd.SetErr(err)
		}
	}
	return cmds[0].Err()
}

// heldCall is what a node has sent and Redis has not run.
type heldCall struct {
	node     int
	cmds     []redis.Cmder
	came     time.Time
	answered chan error

	given sync.Mutex
	up    bool // nobody waits for its answer
}

// fate is what becomes of a call.
type fate int

const (
	itArrives fate = iota
	itIsLost
	itsAnswerIsLost
)

// abandoned tells whether the caller waits no more: then it may use the commands, and Redis gets copies.
func (c *heldCall) abandoned() bool {
	c.given.Lock()
	defer c.given.Unlock()
	return c.up
}

// run has Redis run the call, and brings back what was published by it.
func (m *model) run(c *heldCall, f fate) {
	m.pending = slices.DeleteFunc(m.pending, func(other *heldCall) bool { return other == c })
	m.hung = false
	m.note("%s %s", func() string { return m.names(c) }, []string{"runs", "is lost", "runs, its answer is lost"}[f])
	if f == itIsLost {
		c.answered <- io.EOF
		return
	}
	if err := m.refused(c); err != nil {
		c.answered <- err
		return
	}
	if asked, ok := c.cmds[0].(*redis.TimeCmd); ok && !c.abandoned() {
		asked.SetVal(time.UnixMilli(m.clock()))
		c.answered <- nil
		return
	}
	cmds := c.cmds
	if c.abandoned() {
		defer m.extend(c)
		cmds = nil
		for _, cmd := range c.cmds {
			cmds = append(cmds, redis.NewCmd(context.Background(), cmd.Args()...))
		}
	}
	m.allowDelay(c)
	m.noteOvertaking(c)
	before := m.beforeCall(cmds[0].Args())
	m.do(cmds...)
	m.judgeCall(cmds[0], before)
	if f == itsAnswerIsLost {
		c.answered <- io.EOF
		return
	}
	c.answered <- nil
}

// extend notes whose life a call that was given up may have extended: a heartbeat only that of its own incarnation (G4).
func (m *model) extend(call *heldCall) {
	args := call.cmds[0].Args()
	script := m.script(args)
	for _, c := range m.clients {
		for _, l := range m.rooms {
			fenced := (script == "heartbeat" || script == "patch") && !slices.Contains(args, any(l.facts[c.id].epoch))
			if p := c.places[l.room]; slices.Contains(args, any(c.id)) && !fenced {
				p.mayBeHeard = max(p.mayBeHeard, m.clock())
			}
		}
	}
}

// allowDelay notes that a member who is put back counts as heard of later by the time that the call has waited.
func (m *model) allowDelay(call *heldCall) {
	args := call.cmds[0].Args()
	if m.script(args) != "restore" {
		return
	}
	m.delayed = max(m.delayed, time.Since(call.came).Milliseconds())
	for _, c := range m.clients {
		for _, p := range c.places {
			if slices.Contains(args, any(c.id)) && slices.Contains(args, any(p.epoch)) {
				p.mayBeHeard += time.Since(call.came).Milliseconds()
			}
		}
	}
}

// do runs commands at the present time of Redis' clock, and gives what they published to the ledgers and the nodes.
func (m *model) do(cmds ...redis.Cmder) {
	ctx := context.Background()
	var batch []redis.Cmder
	if now := m.clock(); now != m.ticked {
		older := time.Now().UnixMilli() - m.aged
		if older < modelAging.Milliseconds() {
			older = 0
		}
		m.aged += older
		m.ticked = now
		batch = append(batch, redis.NewCmd(ctx, "EVAL", modelTick, 2, modelClockKey, modelServerKey, now, older, m.server))
	}
	batch = append(batch, cmds...)
	published := make([]*redis.StringSliceCmd, len(m.rooms))
	for i, l := range m.rooms {
		published[i] = redis.NewStringSliceCmd(ctx, "LPOP", keysOf(l.room).events(), 1000)
		batch = append(batch, published[i])
	}
	m.redis.do(batch...)
	for i, l := range m.rooms {
		for _, payload := range published[i].Val() {
			m.published(l, payload)
		}
		m.judgeDue(l)
	}
}

// script is the name of the script that a command runs, "" if it runs none.
func (m *model) script(args []any) string {
	switch fmt.Sprint(args[0]) {
	case "evalsha":
		return m.scriptNames[fmt.Sprint(args[1])]
	case "eval":
		return m.scriptNames[newScriptText(fmt.Sprint(args[1])).sha]
	}
	return ""
}

// names tells what a call is, for the trace: its script and the arguments.
func (m *model) names(c *heldCall) string {
	args := c.cmds[0].Args()
	words := []string{fmt.Sprint("n", c.node)}
	if name := m.script(args); name != "" {
		words = append(words, name)
		args = args[3+args[2].(int):]
	}
	for _, arg := range args {
		if raw, ok := arg.([]byte); ok {
			arg = string(raw)
		}
		words = append(words, fmt.Sprint(arg))
	}
	return strings.Join(words, " ")
}
