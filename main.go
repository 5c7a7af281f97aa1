// Presence is a server that tells Socket.IO clients who is in which room, with what state, on any number of nodes that
// share one Redis.
package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// Exit codes.
const (
	exitOK       = 0
	exitFailure  = 1 // Redis or the port is not to be had; or a second signal cut the stop short
	exitSettings = 2
)

const (
	// Redis has so long to confirm what is left when the connections are closed. Where it hangs, each part that ends then may
	// take as long as a read from it, and all of it together has to end within 10 s.
	stopWithin = 4 * time.Second

	startWithin = 5 * time.Second

	// From a client's pong to the next ping.
	pingInterval = 25 * time.Second

	// Go collects garbage when the heap has grown by heapGrowth percent. With Go's own 100, 10,000 idle connections had 1 KB
	// more each. leastHeap bytes that are never touched, and so never resident, count as heap: with some hundred connections
	// Go would collect every few MB, which took a tenth of the CPU time under load. bench -mode idle and fanout measure both.
	heapGrowth = 75
	leastHeap  = 16 << 20
)

func main() {
	if len(os.Args) > 1 {
		os.Exit(tell(os.Args[1:], os.Stdout, os.Stderr))
	}
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more must not end the process
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signal.Notify(signals, syscall.SIGHUP)
	}
	redis.SetLogger(redisLog{})
	os.Exit(run(os.Environ(), os.Stderr, signals))
}

// tell answers arguments on the command line, of which there is only one: all else is set by the environment.
func tell(args []string, out, complaints io.Writer) (exitCode int) {
	if len(args) == 1 && (args[0] == "-version" || args[0] == "--version") {
		fmt.Fprintln(out, versionLine())
		return exitOK
	}
	fmt.Fprintln(complaints, "presence: the only argument is -version; settings are variables of the environment, see docs/operations.md")
	return exitSettings
}

// run is the program. It ends after the first signal, at once after the second, unless that is a SIGHUP: a terminal that
// closes may send several.
func run(environ []string, out io.Writer, signals <-chan os.Signal) (exitCode int) {
	config, warnings, errs := loadConfig(environ)
	_, bad := newAuthority(config, slog.Default())
	errs = append(errs, bad...)
	if err := config.redisLogin().check(); err != nil {
		errs = append(errs, err)
	}
	for _, err := range errs {
		fmt.Fprintln(out, err)
	}
	if len(errs) > 0 {
		return exitSettings
	}
	log := newLogs(out, config)
	defer log.close()
	slog.SetDefault(log.Logger)
	for _, warning := range warnings {
		log.Warn("setting", "warning", warning)
	}
	if !config.CollectorGiven {
		defer debug.SetGCPercent(debug.SetGCPercent(heapGrowth))
		unused := make([]byte, leastHeap)
		defer runtime.KeepAlive(unused)
	}
	n, err := startNode(config, log.Logger)
	if err != nil {
		fmt.Fprintln(log.queue, "presence:", err)
		return exitFailure
	}
	log.Info("listening", "address", n.listener.Addr().String(), "version", version)
	first := <-signals
	log.Info("stopping", "signal", first.String())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		n.stop()
	}()
	for {
		select {
		case <-stopped:
			return exitOK
		case again := <-signals:
			if again != syscall.SIGHUP {
				return exitFailure
			}
		}
	}
}
