package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	victims     = 50
	victimRate  = 250.0                  // heartbeats per second of all victims together
	probePause  = 250 * time.Millisecond // between two newcomers
	probeTime   = 2 * time.Second        // in which a newcomer has to be served
	recoverTime = 5 * time.Second        // for the server to close the connections of attackers that are gone
	keptFiles   = 10                     // descriptors that it may keep longer, such as connections to Redis

	crowdSize  = 1000   // members of the large room
	crowdState = 12_000 // bytes of the state of each

	maxAttackers = 5000
	maxAttack    = time.Minute
	spareFiles   = 100 // descriptors of bench that are not connections of clients

	targetP99       = 100  // ms, of the victims' heartbeats
	targetMegabytes = 1024 // of the server
)

// attack is a load that is meant to harm.
type attack struct {
	name      string
	attackers int
	attacker  func(context.Context, *attackRun, int) // what one of them does until the context ends, by its number
	seconds   float64                                // 0 = 10
	crowd     bool                                   // there is a large room, on the last node
	nodes     int                                    // at least so many; the first one is attacked
	files     int                                    // descriptors that a server may have; 0 = as many as bench
	env       []string
	prepare   func(dir string) (env []string, connect func(user string) string, err error) // nil = the server asks for no tokens
	lawful    bool                                                                         // attackers do what ordinary clients may do: none may be closed
}

// attackModes gives the attacks as modes. The clients are the attackers.
func attackModes() (modes []mode) {
	for _, a := range attacks() {
		env := []string{"PRESENCE_RATE_PER_SECOND=50", "PRESENCE_TTL_MS=600000", "PRESENCE_MAX_UNSENT_TOTAL_BYTES=268435456"}
		m := mode{name: "attack-" + a.name, operation: "packet", clients: a.attackers, perRoom: crowdSize, seconds: max(a.seconds, 10),
			env: append(env, a.env...), attempt: measureAttack, attack: &a}
		modes = append(modes, m)
	}
	return modes
}

// attackResult is what an attack did. Memory and descriptors of a server that bench did not start are 0.
type attackResult struct {
	Sent     int64 `json:"sent"`     // packets and requests that were written, or connections
	Answered int64 `json:"answered"` // packets and requests
	Refused  int64 `json:"refused"`  // packets and requests
	Closed   int64 `json:"closed"`   // connections that the server ended or did not accept
	Lawful   bool  `json:"lawful"`   // none may be closed

	Calm    *latency `json:"calmMs"`            // of the victims' heartbeats before the attack
	Victims *latency `json:"victimsMs"`         // and during it
	Lag     *latency `json:"lagMs"`             // of this process during the attack: how late its timers are
	Failure string   `json:"failure,omitempty"` // of a victim or the server

	Newcomers       int64 `json:"newcomers"` // who ask /readyz and connect during the attack
	NewcomersFailed int64 `json:"newcomersFailed"`

	Megabytes      levels `json:"megabytes"` // resident, of the attacked server
	Descriptors    levels `json:"descriptors"`
	RedisMegabytes levels `json:"redisMegabytes"`
}

// levels are a figure before an attack, the highest during it, and after it.
type levels struct {
	Before int64 `json:"before"`
	Peak   int64 `json:"peak"`
	After  int64 `json:"after"`
}

func (l *levels) begin(n int64) { l.Before, l.Peak = n, n }
func (l *levels) watch(n int64) { l.Peak = max(l.Peak, n) }
func (l *levels) end(n int64)   { l.After = n }

// attackRun is one attack.
type attackRun struct {
	*attack
	node    string
	polling *http.Client
	connect func(user string) string // CONNECT packet

	sent, answered, refused, closed atomic.Int64
	newcomers, newcomersFailed      atomic.Int64
	lag                             histogram
}

// measureAttack is the trial of an attack.
func measureAttack(ctx context.Context, t trial) (r result, err error) {
	if err := t.bounded(); err != nil {
		return r, err
	}
	t.settings.nodes = max(t.settings.nodes, t.mode.attack.nodes)
	connect := func(string) string { return plainConnect }
	if prepare := t.mode.attack.prepare; prepare != nil {
		var env []string
		if env, connect, err = prepare(t.dir); err != nil {
			return r, err
		}
		t.mode.env = slices.Concat(t.mode.env, env)
	}
	var s site
	defer s.close()
	if err := s.open(ctx, t); err != nil {
		return r, err
	}
	l := newLoad(mode{clients: victims, perRoom: 10, rate: victimRate, request: (*client).heartbeat, connect: connect}, &s.meter)
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.connect(ctx, s.nodes[:1]); err != nil {
		return r, err
	}
	if err := l.joinAll(ctx); err != nil {
		return r, err
	}
	if t.mode.attack.crowd {
		leave, err := gatherCrowd(ctx, s.nodes[len(s.nodes)-1], t.mode.perRoom)
		defer leave()
		if err != nil {
			return r, err
		}
	}
	run := &attackRun{attack: t.mode.attack, node: s.nodes[0], polling: pollingAttackers(), connect: connect}
	defer run.polling.CloseIdleConnections()
	found, err := run.measure(ctx, t.mode, l, &s)
	return result{Mode: t.mode.name, Operation: t.mode.operation, Clients: t.mode.clients, Rooms: len(l.rooms), Nodes: len(s.nodes),
		Seconds: t.mode.seconds, Operations: found.Sent, PerSecond: round(float64(found.Sent)/t.mode.seconds, 3), Attack: &found}, err
}

// bounded refuses an attack on another machine, and one that is too long or has too many attackers.
func (t trial) bounded() error {
	for _, target := range []string{t.settings.server, t.settings.redis} {
		if !strings.Contains(target, "://") {
			continue // empty, or a binary
		}
		if err := onLoopback(target); err != nil {
			return err
		}
	}
	files, err := maxDescriptors()
	if err != nil {
		return err
	}
	most := min(maxAttackers, files-victims-crowdSize-spareFiles)
	if t.mode.window() > maxAttack || t.mode.clients > most || t.mode.attack.crowd && t.mode.perRoom > crowdSize {
		return fmt.Errorf("an attack has at most %d attackers here, a room of %d, and lasts at most %v", most, crowdSize, maxAttack)
	}
	return nil
}

// onLoopback refuses the URL of a server or a Redis that may be on another machine.
func onLoopback(target string) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	if u.Scheme == "unix" {
		return nil
	}
	hosts := []string{u.Hostname()}
	for _, address := range u.Query()["addr"] { // further servers of a Redis
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		hosts = append(hosts, host)
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return fmt.Errorf("%s is not on the loopback: attacks stay on this machine", host)
		}
	}
	return nil
}

// measure has the victims send heartbeats, first alone and then under the attack.
func (r *attackRun) measure(ctx context.Context, m mode, l *load, s *site) (found attackResult, err error) {
	found.Lawful = r.lawful
	found.Calm = l.heartbeats(ctx, m.warmUp()*2)
	if err := found.observe(s, (*levels).begin); err != nil {
		return found, err
	}
	attacking, stop := context.WithTimeout(ctx, m.window())
	defer stop()
	var work sync.WaitGroup
	for i := range m.clients {
		work.Go(func() { r.attacker(attacking, r, i) })
	}
	work.Go(func() { r.probe(attacking) })
	work.Go(func() { found.watch(attacking, s) })
	work.Go(func() { r.watchLag(attacking) })
	found.Victims = l.heartbeats(ctx, m.window())
	work.Wait()
	r.polling.CloseIdleConnections()
	found.Sent, found.Answered, found.Refused, found.Closed = r.sent.Load(), r.answered.Load(), r.refused.Load(), r.closed.Load()
	found.Lag = r.lag.latency()
	found.Newcomers, found.NewcomersFailed = r.newcomers.Load(), r.newcomersFailed.Load()
	if found.Failure = failureOf(l, s); s.ended() {
		return found, ctx.Err()
	}
	_ = poll(ctx, recoverTime, func() bool { // what is left then is seen in the result
		return found.observe(s, (*levels).end) != nil || found.Descriptors.After <= found.Descriptors.Before+keptFiles
	})
	return found, errors.Join(found.observe(s, (*levels).end), ctx.Err())
}

// heartbeats gives how long the heartbeats of a time took. Those that are not answered in the end are not among them.
func (l *load) heartbeats(ctx context.Context, d time.Duration) *latency {
	l.answer.reset()
	pacing, stop := context.WithTimeout(ctx, d)
	defer stop()
	l.pace(pacing)
	_ = poll(ctx, settleTime, func() bool { return l.open.Load() == 0 || len(l.broken) > 0 }) // failureOf tells
	return l.answer.latency()
}

// failureOf says what went wrong for the victims, "" if nothing did.
func failureOf(l *load, s *site) string {
	if s.ended() {
		return "the server ended: " + s.servers[0].lastWords()
	}
	select {
	case err := <-l.broken:
		return "a victim: " + err.Error()
	default:
	}
	if n := l.open.Load(); n > 0 {
		return fmt.Sprintf("%d heartbeats of victims are not answered", n)
	}
	return ""
}

// ended tells whether the attacked server has ended.
func (s *site) ended() bool { return len(s.servers) > 0 && s.servers[0].over() }

// observe reads the figures of the attacked server and of Redis.
func (a *attackResult) observe(s *site, note func(*levels, int64)) error {
	attacked := meter{servers: s.meter.servers[:min(1, len(s.meter.servers))]}
	resident, err := attacked.residentBytes()
	if err != nil {
		return err
	}
	descriptors, err := attacked.descriptors()
	if err != nil {
		return err
	}
	redis, err := (&meter{servers: s.meter.redis}).residentBytes()
	note(&a.Megabytes, resident>>20)
	note(&a.Descriptors, descriptors)
	note(&a.RedisMegabytes, redis>>20)
	return err
}

// watch looks for the highest levels until the context ends, or the server does.
func (a *attackResult) watch(ctx context.Context, s *site) {
	for a.observe(s, (*levels).watch) == nil && pause(ctx, 50*time.Millisecond) {
	}
}

// watchLag measures how late the timers of this process are. The victims' heartbeats are measured by it, and are late as well
// when it waits for a core.
func (r *attackRun) watchLag(ctx context.Context) {
	for begin := time.Now(); pause(ctx, stepPause); begin = time.Now() {
		r.lag.record(int64(time.Since(begin) - stepPause))
	}
}

// probe counts newcomers and those that are not served.
func (r *attackRun) probe(ctx context.Context) {
	for ok := true; ok; ok = pause(ctx, probePause) {
		r.newcomers.Add(1)
		if !r.serves(context.WithoutCancel(ctx)) { // the last one may be served after the attack
			r.newcomersFailed.Add(1)
		}
	}
}

// serves tells whether the node is ready and takes another client in time.
func (r *attackRun) serves(ctx context.Context) bool {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, r.node+"/readyz", nil)
	if err != nil {
		return false
	}
	ask.Close = true
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		return false
	}
	_ = answer.Body.Close()
	f, err := direct(ctx, r.node, 0, r.connect("newcomer"))
	if err != nil {
		return false
	}
	_ = f.conn.Close()
	return answer.StatusCode == http.StatusOK && time.Since(begin) <= probeTime
}

// gatherCrowd fills the large room with members that are not told of it. leave ends them, also after an error.
func gatherCrowd(ctx context.Context, node string, size int) (leave func(), err error) {
	staying, end := context.WithCancel(ctx)
	var readers sync.WaitGroup
	text := strings.Repeat("x", crowdState)
	err = each(ctx, size, func(i int) error {
		f, err := direct(ctx, node, 0, plainConnect)
		if err != nil {
			return err
		}
		context.AfterFunc(staying, func() { _ = f.conn.Close() })
		join := fmt.Sprintf(`420["presence:join",{"roomId":"%s","userId":"u%d","state":{"text":"%s"},"events":"none","limit":1}]`, crowdRoom, i, text)
		if !poll(ctx, time.Minute, func() bool {
			err = f.converse(join, `430[{"ok":true`)
			return err == nil || !errors.Is(err, errUnexpected)
		}) {
			return errors.Join(ctx.Err(), err)
		}
		readers.Go(func() { new(attackRun).read(f) })
		return err
	})
	return func() { end(); readers.Wait() }, err
}

// pause waits; false = the context ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
