package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// mode is one way of loading a server, and what is counted as an operation.
type mode struct {
	name      string
	operation string // singular: what the costs are per
	clients   int
	perRoom   int
	rate      float64 // updates per second of all clients, 0 = closed loop: the next request follows the answer
	seconds   float64 // of the measured window; 0 = as long as it takes
	upgraded  bool    // clients begin with polling
	events    string  // how the members of a crowd are told
	outside   bool    // clients are connected and not yet in their rooms when they are driven
	env       []string
	request   func(*client)                                // what a client asks for again and again
	drive     func(context.Context, *load) error           // default: closedLoop
	count     func(l *load, done tally) (n int64)          // operations among what was done
	attempt   func(context.Context, trial) (result, error) // default: clients, as driven
	target    struct{ server, redis, kilobytes float64 }   // w, w, KB per connection; 0 = none
	attack    *attack                                      // nil = none
	connect   func(user string) string                     // CONNECT packet; nil = one without a token
	bare
}

// Of modes without servers: whom they call, and how.
type bare struct {
	masters int
	sharded bool // Pub/Sub
	alone   bool // one call in a round trip, as when there are many servers, instead of as many as a server sends at most
	call    func(*capacity, context.Context, []*bareMember) error
}

// aim is a mode with its targets, those of the table in docs/sizing.md.
func (m mode) aim(server, redis, kilobytes float64) mode {
	m.target.server, m.target.redis, m.target.kilobytes = server, redis, kilobytes
	return m
}

// allModes lists the modes in the order in which they run.
func allModes() []mode {
	quiet := []string{"PRESENCE_TTL_MS=600000"} // idle clients send no heartbeats
	modes := []mode{
		mode{name: "heartbeat", operation: "heartbeat", clients: 200, perRoom: 10, seconds: 5,
			request: (*client).heartbeat, count: answers}.aim(2.8, 1.4, 0),
		mode{name: "patch", operation: "patch", clients: 200, perRoom: 1, seconds: 5,
			request: (*client).patch, count: answers},
		mode{name: "fanout-full", operation: "event delivered", clients: 200, perRoom: 10, seconds: 5,
			request: (*client).patch, count: deliveries}.aim(0.55, 0, 0),
		mode{name: "fanout-paced", operation: "event delivered", clients: 500, perRoom: 50, rate: 500, seconds: 10,
			request: (*client).patch, drive: paced, count: deliveries}.aim(1.35, 0, 0),
		mode{name: "storm", operation: "event of a join", clients: 2000, perRoom: 1000, outside: true,
			drive: storm, count: eventsOfStorm}.aim(0.35, 0, 0),
		// The same in rooms of ten: an event of the large rooms may cost twice as much at most.
		mode{name: "storm-small", operation: "event of a join", clients: 2000, perRoom: 10, outside: true,
			drive: storm, count: eventsOfStorm},
		mode{name: "churn", operation: "leave and join", clients: 200, perRoom: 10, seconds: 5,
			request: (*client).leave, count: joins}.aim(10, 6, 0),
		mode{name: "idle-direct", operation: "connection", clients: 10_000, perRoom: 10, seconds: 10, env: quiet,
			drive: idle, count: nothing}.aim(0, 0, 13),
		mode{name: "idle-upgraded", operation: "connection", clients: 10_000, perRoom: 10, seconds: 10, env: quiet, upgraded: true,
			drive: idle, count: nothing},
	}
	for _, n := range []int{100, 1000, 10_000} {
		modes = append(modes, mode{name: fmt.Sprintf("scale-%d", n), operation: "event delivered", clients: n, perRoom: 10,
			rate: 0.2 * float64(n), seconds: 10, request: (*client).patch, drive: paced, count: deliveries})
	}
	return slices.Concat(modes, crowdModes(), storeModes(), attackModes())
}

func answers(_ *load, done tally) int64    { return done.answers }
func deliveries(_ *load, done tally) int64 { return done.events }
func joins(_ *load, done tally) int64      { return done.joins }
func nothing(*load, tally) int64           { return 0 }

// eventsOfStorm is how often somebody has to be told of somebody who came: n²/2 in a room of n, where one of each two
// learns of the other by its snapshot. A server that answers several joins with one snapshot sends fewer events, which
// are counted as delivered; the operations stay the same.
func eventsOfStorm(l *load, _ tally) (n int64) {
	for _, r := range l.rooms {
		n += int64(len(r.members)) * int64(len(r.members)) / 2
	}
	return n
}

func modeNames() (names []string) {
	for _, m := range allModes() {
		names = append(names, m.name)
	}
	return names
}

// chosenModes are the modes that the flags name, with the numbers of the flags.
func chosenModes(s settings) (chosen []mode, err error) {
	names, exact := strings.Split(s.modes, ","), modeNames()
	used := make([]bool, len(names))
	for _, m := range allModes() {
		i := slices.IndexFunc(names, func(n string) bool {
			return n == "all" && m.attack == nil || n == m.name || strings.HasPrefix(m.name, n+"-") && !slices.Contains(exact, n)
		})
		if i >= 0 {
			used[i] = true
			chosen = append(chosen, m.with(s))
		}
	}
	if i := slices.Index(used, false); i >= 0 && !slices.Contains(names, "all") {
		return nil, fmt.Errorf("no mode is named %q: there are %s", names[i], strings.Join(modeNames(), ", "))
	}
	return chosen, nil
}

func (m mode) with(s settings) mode {
	if s.clients > 0 {
		m.rate *= float64(s.clients) / float64(m.clients)
		m.clients = s.clients
	}
	if s.rooms > 0 {
		m.perRoom = (m.clients + s.rooms - 1) / s.rooms
	}
	if s.rate > 0 && m.rate > 0 {
		m.rate = s.rate
	}
	if s.seconds > 0 && m.seconds > 0 {
		m.seconds = s.seconds
	}
	if m.drive == nil {
		m.drive = closedLoop
	}
	if m.attempt == nil {
		m.attempt = attempt
	}
	return m
}

func (m mode) rooms() int { return (m.clients + m.perRoom - 1) / m.perRoom }

// window is the time that is measured.
func (m mode) window() time.Duration { return time.Duration(m.seconds * float64(time.Second)) }

// warmUp comes before the window.
func (m mode) warmUp() time.Duration { return min(m.window()/4, time.Second) }

func (m mode) about() string {
	if m.attack != nil {
		return fmt.Sprintf("%d attackers, %d victims", m.clients, victims)
	}
	text := fmt.Sprintf("%d clients, %d rooms", m.clients, m.rooms())
	switch {
	case m.rate > 0:
		text += fmt.Sprintf(", %g updates/s", m.rate)
	case m.request != nil || m.call != nil:
		text += ", closed loop"
	}
	return text
}

// closedLoop has every client ask again as soon as it has its answer.
func closedLoop(ctx context.Context, l *load) error {
	l.driving.Store(true)
	for _, c := range l.clients {
		c.act(l.mode.request)
	}
	err := l.window(ctx)
	l.driving.Store(false)
	return err
}

// paced has the clients ask in turn, at a fixed rate whatever the answers do, room after room.
func paced(ctx context.Context, l *load) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.pace(ctx)
	}()
	err := l.window(ctx)
	stop()
	<-done
	return err
}

func (l *load) pace(ctx context.Context) {
	begin, timer := time.Now(), time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i++ {
		due := time.Duration(float64(i) / l.mode.rate * float64(time.Second))
		if wait := due - time.Since(begin); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		l.clients[i%len(l.clients)].act(l.mode.request)
	}
}

// storm has all clients join at once, and ends when each knows all others of its room.
func storm(ctx context.Context, l *load) error {
	if err := l.begin(); err != nil {
		return err
	}
	for _, c := range l.clients {
		c.act((*client).join)
	}
	if !poll(ctx, time.Minute, l.settled) {
		return l.unsettled(ctx)
	}
	return l.end()
}

// idle has nobody ask for anything.
func idle(ctx context.Context, l *load) error { return l.window(ctx) }

// window lets the load run for a while, and then measures it for the time of the mode.
func (l *load) window(ctx context.Context) error {
	if err := l.pass(ctx, l.mode.warmUp()); err != nil {
		return err
	}
	if err := l.begin(); err != nil {
		return err
	}
	if err := l.pass(ctx, l.mode.window()); err != nil {
		return err
	}
	return l.end()
}

// pass lets time pass while all is well.
func (l *load) pass(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(max(d, time.Nanosecond)):
		return nil
	case err := <-l.broken:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// round keeps n significant digits of x, so that nobody reads more into a number than there is.
func round(x float64, n int) float64 {
	if x == 0 {
		return 0
	}
	unit := math.Pow(10, float64(n)-math.Ceil(math.Log10(math.Abs(x))))
	return math.Round(x*unit) / unit
}
