package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	storeTTL     = 600_000     // ms: members send heartbeats only where that is measured
	lastSeenTTL  = 604_800_000 // ms
	storeWorkers = 8           // pipelines under way at the same time; with one call in each, several times as many
	fullPipeline = 64          // calls that the server sends in one round trip at most
	mergedKeys   = 256         // keys of calls that it puts in one EVALSHA at most
	eventOfStore = `{"prev":1700000000000,"rev":1700000000001,"ts":1700000000001,"epoch":1700000000000,"userConns":1,"type":"update",` +
		`"connId":"conn-0000000000000000","userId":"user-0","roomId":"0","state":{"n":1}}`
)

// capacity is a load of members that have no sockets and no servers: Redis gets the calls that servers would make for
// them, with the same scripts, keys and arguments, while each room is subscribed to by each of the nodes.
//
// Left out is what comes rarely: the index of rooms after the first join, and renewed leases.
type capacity struct {
	mode    mode
	store   *store
	scripts scripts
	members []*bareMember
	done    atomic.Int64
	stopped atomic.Bool
}

// bareMember is a member as its node would know it.
type bareMember struct {
	room, user, conn, node string
	literal                string // of the room
	epoch, rev             string
	updates                int64
}

func roomKey(room, name string) string { return "prs:{room:" + room + "}:" + name }

func (m *bareMember) keys() []string {
	keys := make([]string, 0, 7)
	for _, name := range []string{"conn_meta", "members", "last_seen", "rev", "conns", "origin"} {
		keys = append(keys, roomKey(m.room, name))
	}
	return append(keys, m.hash())
}

// keysWithDevices are those of a script that may end the member of a device.
func (m *bareMember) keysWithDevices() []string { return append(m.keys(), roomKey(m.room, "devices")) }

func (m *bareMember) hash() string  { return "prs:conn:{room:" + m.room + "}:" + m.conn }
func (m *bareMember) index() string { return "prs:user:" + m.user + ":conns" }

// lastSeen is in the slot of index.
func (m *bareMember) lastSeen() string { return "prs:last_seen:{" + m.index() + "}" }

// telling are the arguments of a script that publishes.
func (c *capacity) telling(m *bareMember, own ...any) []any {
	publish := "PUBLISH"
	if c.mode.sharded {
		publish = "SPUBLISH"
	}
	return append([]any{roomKey(m.room, "events"), publish, m.literal, 0}, own...)
}

// measureStore is the trial of a mode without servers.
func measureStore(ctx context.Context, t trial) (r result, err error) {
	c := &capacity{mode: t.mode}
	if c.store, err = openStore(ctx, t.dir, t.mode.masters); c.store != nil {
		defer c.store.close()
	}
	if err != nil {
		return r, err
	}
	if c.scripts, err = loadScripts(ctx, c.store.masters); err != nil {
		return r, err
	}
	rooms, err := c.layOut(ctx, t.settings.nodes)
	if err != nil {
		return r, err
	}
	if err := c.store.listen(ctx, t.settings.nodes, rooms, t.mode.sharded); err != nil {
		return r, err
	}
	before, err := c.store.memory(ctx)
	if err != nil {
		return r, err
	}
	if err := c.populate(ctx, t.settings.nodes); err != nil {
		return r, err
	}
	after, err := c.store.memory(ctx)
	if err != nil {
		return r, err
	}
	r = result{Mode: t.mode.name, Operation: t.mode.operation, Clients: t.mode.clients, Rooms: t.mode.rooms(), Nodes: t.settings.nodes,
		BytesPerMember: round(float64(after-before)/float64(t.mode.clients), 3)}
	return r, c.window(ctx, &r)
}

// layOut makes the members, and gives the channels of their rooms by master. Members of one room are on different nodes, as
// far as there are enough.
func (c *capacity) layOut(ctx context.Context, nodes int) (channels [][]string, err error) {
	channels = make([][]string, len(c.store.masters))
	rooms := c.mode.rooms()
	for i := range rooms {
		channel := roomKey(strconv.Itoa(i), "events")
		at, err := c.store.masterOf(ctx, channel)
		if err != nil {
			return nil, err
		}
		channels[at] = append(channels[at], channel)
	}
	for i := range c.mode.clients {
		room := strconv.Itoa(i % rooms)
		c.members = append(c.members, &bareMember{room: room, literal: `"` + room + `"`, user: fmt.Sprintf("user-%d", i),
			conn: fmt.Sprintf("conn-%016d", i), node: fmt.Sprintf("node-%d", i/rooms%nodes)})
	}
	return channels, nil
}

// populate has every member join.
func (c *capacity) populate(ctx context.Context, nodes int) error {
	for i := range nodes {
		keys := []string{"prs:{nodes}:leases", fmt.Sprintf("prs:{nodes}:node-%d:rooms", i)}
		args := []any{len(keys), 5, fmt.Sprintf("node-%d", i), 10 * storeTTL, 1, 0, 6 * storeTTL}
		if err := c.store.rdb.EvalSha(ctx, c.scripts.renewLease, keys, args...).Err(); err != nil {
			return fmt.Errorf("a lease: %w", err)
		}
	}
	return c.share(ctx, storeWorkers, func(own []*bareMember) error {
		for some := range slices.Chunk(own, fullPipeline) {
			if _, err := c.batch(ctx, some, c.indexRoom); err != nil {
				return err
			}
			if err := c.joinAll(ctx, some); err != nil {
				return err
			}
		}
		return nil
	})
}

// share has workers at work on members of their own.
func (c *capacity) share(ctx context.Context, workers int, work func(own []*bareMember) error) error {
	workers = min(workers, len(c.members))
	errs := make([]error, workers)
	var all sync.WaitGroup
	for i := range workers {
		own := c.members[len(c.members)*i/workers : len(c.members)*(i+1)/workers]
		all.Go(func() { errs[i] = work(own) })
	}
	all.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// window measures the operation of the mode, again and again.
func (c *capacity) window(ctx context.Context, r *result) error {
	depth, workers := fullPipeline, storeWorkers
	if c.mode.alone {
		depth, workers = 1, 4*storeWorkers
	}
	finished := make(chan error, 1)
	go func() {
		finished <- c.share(ctx, workers, func(own []*bareMember) error {
			for {
				for some := range slices.Chunk(own, depth) {
					if c.stopped.Load() || ctx.Err() != nil {
						return ctx.Err()
					}
					if err := c.mode.call(c, ctx, some); err != nil {
						c.stopped.Store(true)
						return err
					}
					c.done.Add(int64(len(some)))
				}
			}
		})
	}()
	err := c.meter(ctx, r)
	c.stopped.Store(true)
	return errors.Join(err, <-finished)
}

func (c *capacity) meter(ctx context.Context, r *result) error {
	_ = poll(ctx, c.mode.warmUp(), c.stopped.Load)
	before, err := c.store.cpu()
	if err != nil {
		return err
	}
	began, done := time.Now(), c.done.Load()
	_ = poll(ctx, c.mode.window(), c.stopped.Load)
	after, err := c.store.cpu()
	if err != nil {
		return err
	}
	r.Seconds = round(time.Since(began).Seconds(), 4)
	r.Operations = c.done.Load() - done
	r.PerSecond = round(float64(r.Operations)/r.Seconds, 3)
	var used time.Duration
	for i := range after {
		used += after[i] - before[i]
		if len(after) > 1 {
			r.MasterPercent = append(r.MasterPercent, round(100*(after[i]-before[i]).Seconds()/r.Seconds, 3))
		}
	}
	r.Redis = newCost(used, *r, 0)
	return nil
}

// scriptCall is one call of a script as the server makes it.
type scriptCall struct {
	sha  string
	keys []string
	args []any
}

func newCall(sha string, keys []string, args ...any) scriptCall { return scriptCall{sha, keys, args} }

// call is the one for a member.
type call func(*bareMember) scriptCall

// batch makes the calls for some members in one round trip, checks that none failed, and gives their answers. As in the
// server, calls that may share an EVALSHA do.
func (c *capacity) batch(ctx context.Context, some []*bareMember, make call) (answers [][]any, err error) {
	pipe := c.store.rdb.Pipeline()
	var commands []*redis.Cmd
	var keys []string
	var args []any
	for i, m := range some {
		one := make(m)
		keys = append(keys, one.keys...)
		args = append(append(args, len(one.keys), len(one.args)), one.args...)
		if len(c.store.masters) > 1 || i == len(some)-1 || len(keys)+len(one.keys) > mergedKeys {
			commands = append(commands, pipe.EvalSha(ctx, one.sha, keys, args...))
			keys, args = nil, nil
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	for _, command := range commands {
		list, err := command.Slice()
		if err != nil {
			return nil, err
		}
		for _, answer := range list {
			own, isList := answer.([]any)
			if !isList && answer != nil {
				own = []any{"ok", answer}
			}
			if len(own) > 0 && own[0] == "error" {
				return nil, fmt.Errorf("a script answers %v", own)
			}
			answers = append(answers, own)
		}
	}
	if len(answers) != len(some) {
		return nil, fmt.Errorf("%d answers to %d calls", len(answers), len(some))
	}
	return answers, nil
}

// okays is batch for scripts that say "ok", and gives the number behind it to follow.
func (c *capacity) okays(ctx context.Context, some []*bareMember, make call, follow func(*bareMember, string)) error {
	answers, err := c.batch(ctx, some, make)
	if err != nil {
		return err
	}
	for i, answer := range answers {
		if len(answer) == 0 || answer[0] != "ok" {
			return fmt.Errorf("a script answers %v", answer)
		}
		if len(answer) > 1 {
			number, _ := answer[1].(string)
			follow(some[i], number)
		}
	}
	return nil
}

func (c *capacity) heartbeats(ctx context.Context, some []*bareMember) error {
	return c.okays(ctx, some, func(m *bareMember) scriptCall {
		keys := []string{roomKey(m.room, "last_seen"), roomKey(m.room, "rev"), m.hash()}
		return newCall(c.scripts.heartbeat, keys, m.conn, m.epoch, m.rev, storeTTL)
	}, func(*bareMember, string) {})
}

func (c *capacity) patches(ctx context.Context, some []*bareMember) error {
	return c.okays(ctx, some, func(m *bareMember) scriptCall {
		m.updates++
		return newCall(c.scripts.patch, m.keys(), c.telling(m, m.conn, m.epoch, m.rev, storeTTL, fmt.Sprintf(`{"n":%d}`, m.updates))...)
	}, func(m *bareMember, rev string) { m.rev = rev })
}

// publishes sends what a patch publishes, and nothing else.
func (c *capacity) publishes(ctx context.Context, some []*bareMember) error {
	pipe := c.store.rdb.Pipeline()
	for _, m := range some {
		args := c.telling(m)
		pipe.Do(ctx, args[1], args[0], eventOfStore)
	}
	_, err := pipe.Exec(ctx)
	return err
}

// churns has members leave and join, with all that new connections cost.
func (c *capacity) churns(ctx context.Context, some []*bareMember) error {
	if _, err := c.batch(ctx, some, func(m *bareMember) scriptCall {
		return newCall(c.scripts.remove, m.keysWithDevices(), c.telling(m, "left", "", "", m.node, m.conn, m.epoch)...)
	}); err != nil {
		return err
	}
	if _, err := c.batch(ctx, some, func(m *bareMember) scriptCall {
		publish := c.telling(m)[1]
		return newCall(c.scripts.unindexUser, []string{m.index(), m.lastSeen()}, publish, lastSeenTTL, 0, m.conn+":"+m.room, m.epoch)
	}); err != nil {
		return err
	}
	return c.joinAll(ctx, some)
}

func (c *capacity) joinAll(ctx context.Context, some []*bareMember) error {
	none := func(*bareMember, string) {}
	if err := c.okays(ctx, some, func(m *bareMember) scriptCall {
		keys := []string{"prs:{nodes}:leases", "prs:{nodes}:" + m.node + ":rooms"}
		return newCall(c.scripts.noteRooms, keys, m.node, 6*storeTTL, m.room, 1)
	}, none); err != nil {
		return err
	}
	if _, err := c.batch(ctx, some, func(m *bareMember) scriptCall {
		publish := c.telling(m)[1]
		return newCall(c.scripts.indexUser, []string{m.index()}, m.conn+":"+m.room, 1, 4*storeTTL, publish)
	}); err != nil {
		return err
	}
	return c.okays(ctx, some, func(m *bareMember) scriptCall {
		return newCall(c.scripts.join, m.keysWithDevices(),
			c.telling(m, m.conn, m.user, `"`+m.user+`"`, `{"n":0}`, "", m.node, storeTTL, 0, m.room, "", 4*storeTTL)...)
	}, func(m *bareMember, epoch string) { m.epoch, m.rev = epoch, epoch })
}

func (c *capacity) indexRoom(m *bareMember) scriptCall {
	return newCall(c.scripts.indexRoom, []string{"prs:active_rooms"}, m.room, 2*storeTTL)
}

// storeModes are the modes without servers: Redis alone.
func storeModes() (modes []mode) {
	operations := []struct {
		name, operation string
		call            func(*capacity, context.Context, []*bareMember) error
	}{
		{"heartbeat", "heartbeat", (*capacity).heartbeats},
		{"patch", "patch", (*capacity).patches},
		{"churn", "leave and join", (*capacity).churns},
		{"publish", "message", (*capacity).publishes},
	}
	for _, site := range []mode{
		{name: "redis", bare: bare{masters: 1}},
		{name: "single", bare: bare{masters: 1, alone: true}},
		{name: "cluster", bare: bare{masters: 3}},
		{name: "sharded", bare: bare{masters: 3, sharded: true}},
	} {
		for _, o := range operations {
			if site.sharded && o.name != "patch" && o.name != "publish" || site.alone && o.name == "publish" {
				continue // nothing new would come out
			}
			m := site
			m.name, m.operation, m.call = site.name+"-"+o.name, o.operation, o.call
			m.clients, m.perRoom, m.seconds, m.attempt = 50_000, 10, 5, measureStore
			modes = append(modes, m)
		}
	}
	return modes
}
