package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	modelSeed      = flag.Uint64("seed", 0, "run the one schedule of the model with this seed, and tell its steps")
	modelAbout     = flag.Uint("about", 0, "concerns that every schedule of the model is about, the sum of their numbers")
	modelSchedules = flag.Int("schedules", 0, "how many schedules the model runs, chosen anew each time; 0 = the same 300 every time, 2,500 with PRESENCE_TEST_LONG; with the race detector a tenth of that")
)

// The settings of the model. Its time is virtual.
const (
	modelNodes          = 3
	modelTTL            = 4 * time.Second
	modelLookback       = 8 * time.Second
	modelReaperInterval = time.Second
	modelLease          = 6 * time.Second

	// Keys in Redis grow older in steps of this size.
	modelAging = 50 * time.Millisecond

	// Calls that follow each other at most while no time passes.
	modelMaxCalls = 5000

	// Schedules that run at the same time.
	modelParallel = 4

	// What timers that fire at the same moment as a deadline may add to an answer's time.
	modelTolerance = 5 * time.Millisecond
)

// model is three nodes on one Redis, a few clients, and a judge who sees all that happens. It lives in a bubble of synctest:
// whenever all goroutines wait, a random number says what happens next, so that a seed is a schedule.
//
// It judges after each step what the clients have heard (G1, G2, G3), what Redis has published (G4, G5, G7, G8), and now and
// then and in each quiet moment all that Redis has (G6).
type model struct {
	ctx         context.Context
	config      Config
	random      *rand.Rand
	redis       *modelRedis
	scripts     scripts
	scriptNames map[string]string

	refuses        modelRefusal
	refusedAt      time.Time // when Redis last stopped to refuse what refreshes members
	refusedRefresh bool      // it has refused such a call since it began to refuse

	lostAt time.Time // when Redis last lost data
	losses int
	server int // names the process of Redis

	about concern // what the schedule is about, beside joins, heartbeats and leaves

	grace    time.Duration
	limit    int   // members of a room, 0 = any number
	calm     bool  // no call, no message gets lost, and nothing takes long
	lossy    bool  // messages and subscriptions get lost
	troubled bool  // calls get lost, or are late
	flushed  bool  // Redis has lost the scripts
	resting  bool  // nothing fails for now
	hung     bool  // Redis has not answered since it hung
	blurred  bool  // a node has read a room without a member of its own whose leave was on its way
	delayed  int64 // ms that a call that puts a member back has waited at most
	culled   bool  // a member has left whose client lives: its node may take that for a loss of data

	rooms   []*ledger
	nodes   []*modelNode
	kicks   []*modelKick             // under way
	broken  map[modelPlace]time.Time // when connections broke whose leaves wait for the grace
	clients []*modelClient
	born    int // clients so far
	patches int

	mu      sync.Mutex
	arrived []*heldCall
	errors  []string // of the nodes

	pending []*heldCall
	ticked  int64 // the time that Redis knows
	aged    int64 // virtual milliseconds up to which the keys have aged
	steps   []modelStep
	wrongs  []string
}

// clock is the time of Redis.
func (m *model) clock() int64 { return time.Now().UnixMilli() }

// modelStep is a line of the trace, which is made only when it is wanted.
type modelStep struct {
	at     time.Time
	format string
	args   []any
}

func (s modelStep) String() string {
	for i, arg := range s.args {
		if later, ok := arg.(func() string); ok {
			s.args[i] = later()
		}
	}
	return s.at.Format("05.0000 ") + fmt.Sprintf(s.format, s.args...)
}

// note adds a line to the trace. Its arguments must not change, but functions are called only when it is wanted.
func (m *model) note(format string, args ...any) {
	m.steps = append(m.steps, modelStep{time.Now(), format, args})
}

func (m *model) wrong(format string, args ...any) {
	m.wrongs = append(m.wrongs, fmt.Sprintf(format, args...))
	m.note("WRONG %s", m.wrongs[len(m.wrongs)-1])
}

// exact tells whether every event has to come, and alone.
func (m *model) exact() bool { return m.calm && !m.blurred }

func (m *model) chance(percent int) bool { return m.random.IntN(100) < percent }

func (m *model) arrive(c *heldCall) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arrived = append(m.arrived, c)
}

// play runs the schedule of a seed.
func (m *model) play(length int) {
	m.born = 0
	for range 3 + m.random.IntN(3) {
		m.clients = append(m.clients, m.connect())
	}
	for range 2 {
		for range length {
			if len(m.wrongs) > 0 {
				return
			}
			m.step()
			m.replaceGone()
		}
		m.quiet()
	}
	for _, c := range m.clients {
		if !c.over && len(m.wrongs) == 0 {
			m.end(c)
		}
	}
	m.collect()
	m.quiet()
}

// replaceGone has a new client come for each whose end is over.
func (m *model) replaceGone() {
	for i, c := range m.clients {
		if c.over && c.op == nil {
			m.clients[i] = m.connect()
		}
	}
}

// load has the nodes run the scripts as change leaves them.
func (r *modelRunner) load(t testing.TB, change func(text string) string) {
	t.Helper()
	r.scripts, r.names = modelScripts(t, change)
	r.flushed = true
}

// prepare has Redis know every script, so that all schedules begin alike.
func (r *modelRunner) prepare() {
	if !r.flushed {
		return
	}
	r.flushed = false
	var loads []redis.Cmder
	for _, sc := range r.scripts.all() {
		loads = append(loads, redis.NewCmd(context.Background(), "SCRIPT", "LOAD", sc.redis7.source))
	}
	r.redis.do(loads...)
}

// run runs the schedule of a seed, which is about some concerns at least, and returns what was wrong, and the steps.
func (r *modelRunner) run(t *testing.T, seed uint64, about concern) (wrong []string, steps []modelStep) {
	r.prepare()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 0))
		m := &model{ctx: t.Context(), config: r.config, random: random, redis: r.redis, scripts: r.scripts, scriptNames: r.names, aged: time.Now().UnixMilli(), broken: map[modelPlace]time.Time{}}
		r.redis.model = m
		m.rooms = []*ledger{newLedger("r")}
		if m.chance(15) {
			m.rooms = append(m.rooms, newLedger("r/2"))
		}
		m.concern(about)
		for i := range modelNodes {
			m.startNode(i)
		}
		m.play(16)
		m.stop()
		wrong, steps, r.flushed = m.wrongs, m.steps, m.flushed
	})
	return wrong, steps
}

// underWay tells whether a request or a kick has yet to end. One that is left behind in a bubble hides what was wrong.
func (m *model) underWay() bool {
	return len(m.kicks) > 0 || slices.ContainsFunc(m.clients, func(c *modelClient) bool { return c.op != nil })
}

// stop ends the nodes, whose last calls Redis runs, and waits for the requests.
func (m *model) stop() {
	m.accept()
	var stopped atomic.Int32
	for _, n := range m.nodes {
		go func() {
			n.stop()
			stopped.Add(1)
		}()
	}
	until := time.Now().Add(2 * answerWithin)
	for stopped.Load() < modelNodes || m.underWay() && time.Now().Before(until) {
		m.collect()
		for len(m.pending) > 0 {
			m.run(m.pending[0], itArrives)
			m.collect()
		}
		pause(m.ctx, time.Millisecond)
	}
	for _, c := range m.clients {
		if c.op != nil {
			m.wrong("%s is still under way", c.op.what)
		}
	}
	m.do(redis.NewCmd(m.ctx, "FLUSHDB"))
}

// modelRunner runs schedules one after the other.
type modelRunner struct {
	redis   *modelRedis
	config  Config
	scripts scripts
	names   map[string]string
	flushed bool // Redis does not have the scripts
}

// startRunners starts as many as may work at the same time, each with a Redis of its own.
func startRunners(t testing.TB) (runners []*modelRunner) {
	t.Helper()
	for range modelParallel {
		runners = append(runners, &modelRunner{
			redis:  newModelRedis(t, spawnRedis(t).addr, modelNodes),
			config: testConfig(t, "", fmt.Sprint("PRESENCE_TTL_MS=", modelTTL.Milliseconds()), fmt.Sprint("PRESENCE_NODE_LEASE_MS=", modelLease.Milliseconds())),
		})
	}
	return runners
}

// raceDetector tells whether this test was built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func trace(steps []modelStep) string {
	var b strings.Builder
	for _, step := range steps {
		b.WriteString(step.String() + "\n")
	}
	return b.String()
}

func TestModel_G1_G2_G3_G4_G5_G6_G7_G8(t *testing.T) {
	t.Parallel()
	runners := startRunners(t)
	for _, r := range runners {
		r.load(t, func(text string) string { return text })
	}
	if *modelSeed != 0 {
		wrong, steps := runners[0].run(t, *modelSeed, concern(*modelAbout))
		t.Log(trace(steps), strings.Join(wrong, "\n"))
		if len(wrong) > 0 {
			t.Fail()
		}
		return
	}
	base, schedules := uint64(1), int64(cmp.Or(*modelSchedules, 100))
	if allTests() {
		schedules = 2_500
	}
	if *modelSchedules != 0 {
		base = rand.Uint64()
	}
	if raceDetector() && *modelSchedules == 0 {
		schedules /= 10
	}
	var next, steps atomic.Int64
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		for i, r := range runners {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for n := next.Add(1); n <= schedules && !t.Failed(); n = next.Add(1) {
					seed := base + uint64(n)
					wrong, told := r.run(t, seed, concern(*modelAbout))
					steps.Add(int64(len(told)))
					if len(wrong) > 0 {
						t.Errorf("%s\ngo test -run Model_ -seed=%d -about=%d\n%s", trace(told), seed, *modelAbout, strings.Join(wrong, "\n"))
					}
				}
			})
		}
	})
	t.Logf("%d schedules, %d steps in %v", schedules, steps.Load(), time.Since(began))
}
