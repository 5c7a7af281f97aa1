// Command bench loads real presence servers over real WebSockets, and says what one operation costs.
//
//	go run ./bench -mode all -json results.json
//	go run ./bench -mode heartbeat,storm -seconds 3
//	go run ./bench -mode churn,patch -against ./presence-old
//	go run ./bench -chart results.json > chart.svg
//
// For each mode it starts a Redis without persistence and one server, or several with -nodes, as processes of their own on
// the loopback; connects the clients; measures for a window of time; and stops all of it. -server names another binary, or
// the http:// URL of a server that runs already, -redis the URL of a Redis: what bench did not start has no CPU column. A
// word stands for all modes that begin with it: fanout, idle, scale, crowd, redis, single, cluster, sharded and attack.
//
// redis, single, cluster and sharded have no servers and no sockets: they make the calls that servers would make for 50,000
// members, against one Redis or three masters, as many in a round trip as a server sends at most, or one (single). -nodes is
// then how many nodes are subscribed to each room. The store is their own, whatever -redis says. crowd is one large room in
// which few change.
//
// The attacks, which all does not include, load a server as hostile clients would, and time the heartbeats of 50 ordinary
// members meanwhile. They refuse addresses that are not on the loopback. -clients is the number of attackers, and attackers
// and members share this process: latencies above the server's own are possible when the machine has no core to spare.
//
// -against names the binary or URL of another server that speaks the same protocol. Each mode then runs with both in turn, as often
// as -pairs says, and the ratios are printed instead of the figures: they hold on a noisy machine too.
//
// CPU is the time that the server's or Redis' process used within the window, divided by the operations of the window. The
// load generator has a process of its own and does not count; but it shares the machine's cores, so rates and latencies
// are those of a machine that does all three jobs.
//
// Another machine has other microseconds. Therefore each cost is also given in w: the CPU time of writing one ready frame
// to a loopback socket that somebody drains, measured just before and just after the mode in the same run. It is the floor
// under any server that writes once per recipient; one that joins several frames to a write comes below it.
//
// Every client checks what it gets: order by revision, each update of each member of its room exactly once, and at the end
// that it knows its room as it is. Exit status 1 tells of an error, of a lost, doubled or disordered event, a refused
// request or a broken connection; a missed target is marked in the table and no error.
//
// It needs Linux, and about two file descriptors per client in all.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// settings are the flags.
type settings struct {
	modes   string // names or beginnings of names, separated by commas
	clients int    // 0 = those of the mode, as for the next three
	rooms   int
	rate    float64 // updates per second, of modes that have a rate
	seconds float64
	nodes   int
	server  string // binary or URL, "" = build this repository's
	against string // binary or URL of another server to compare with, "" = none
	pairs   int    // of runs with both
	redis   string // URL, "" = start one
	json    string // file for the results
	chart   string // file of results to draw; nothing is measured
	floor   string // address to write to: this process is then the writer of measureFloor

	floorRounds int // of floorConns writes; not a flag
}

func main() {
	debug.SetGCPercent(400) // the generator has memory, and shares its cores with the server
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the program.
func run(ctx context.Context, args []string, out io.Writer) error {
	s, err := parse(args)
	switch {
	case err != nil:
		return err
	case s.floor != "":
		return writeFloor(s.floor, s.floorRounds, out)
	case s.chart != "":
		return drawFile(s.chart, out)
	}
	return measure(ctx, s, out)
}

func parse(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.modes, "mode", "all", "`modes` to run, separated by commas: "+strings.Join(modeNames(), ", "))
	flags.IntVar(&s.clients, "clients", 0, "connections (default: the mode's)")
	flags.IntVar(&s.rooms, "rooms", 0, "rooms that they share (default: as many as the mode's size of a room makes)")
	flags.Float64Var(&s.rate, "rate", 0, "updates per `second` of all clients, where a mode has a rate (default: the mode's)")
	flags.Float64Var(&s.seconds, "seconds", 0, "length of the measured window (default: the mode's)")
	flags.IntVar(&s.nodes, "nodes", 1, "servers to start; without servers, nodes that hear of each room")
	flags.StringVar(&s.server, "server", "", "`binary` to start, or http:// URL of a running server (default: built from this repository)")
	flags.StringVar(&s.against, "against", "", "`binary` or URL of another server: run each mode with both in turn and print the ratios")
	flags.IntVar(&s.pairs, "pairs", 5, "runs of each mode with both servers")
	flags.StringVar(&s.redis, "redis", "", "`URL` of a Redis (default: a private redis-server)")
	flags.StringVar(&s.json, "json", "", "`file` for the results")
	flags.StringVar(&s.chart, "chart", "", "draw the results in `file` as SVG, and measure nothing")
	flags.StringVar(&s.floor, "floor", "", "write frames to `address` and print nanoseconds of CPU per write; bench starts itself so")
	flags.IntVar(&s.floorRounds, "floor-rounds", 2000, "writes to each connection when w is measured")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("what is %q? everything is a flag", flags.Arg(0))
	}
	if s.clients < 0 || s.rooms < 0 || s.rate < 0 || s.seconds < 0 || s.nodes < 1 || s.pairs < 1 || s.floorRounds < 1 {
		return s, errors.New("numbers must be positive")
	}
	return s, nil
}

// measure runs the modes one after another and reports them, those before an error too.
func measure(ctx context.Context, s settings, out io.Writer) (err error) {
	modes, err := chosenModes(s)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "presence-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if s.server == "" {
		if s.server, err = buildServer(ctx, dir); err != nil {
			return err
		}
	}
	if s.against != "" {
		return s.compare(ctx, modes, dir, out)
	}
	report := newReport()
	for _, m := range modes {
		fmt.Fprintf(os.Stderr, "%s: %s\n", m.name, m.about())
		r, failed := trial{settings: s, mode: m, dir: dir}.run(ctx)
		if failed != nil {
			err = fmt.Errorf("%s: %w", m.name, failed)
			break
		}
		report.Results = append(report.Results, r)
	}
	if err := report.save(s.json); err != nil {
		return err
	}
	return errors.Join(report.table(out), err, report.faults())
}

// save writes the results as JSON, unless there is no file for them.
func (r report) save(file string) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// poll calls done until it is true, or the time is over: then it returns false.
func poll(ctx context.Context, within time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
