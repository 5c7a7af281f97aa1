// Presence is a server that tells Socket.IO clients who is in which room, with what state, on any number of nodes that
// share one Redis.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

// node is one running server.
type node struct {
	log       *slog.Logger
	embedded  *embeddedRedis // nil if Redis is a server of its own
	redis     redis.UniversalClient
	scripts   redis.UniversalClient // redis as the service uses it
	service   *Service
	lease     *lease
	hub       *hub
	bridge    *bridge
	healer    *healer
	owed      *owed
	tokens    *authority // nil if nobody needs a token
	onlookers *onlookers
	workers   *workers
	handlers  *handlers
	sockets   *sockets
	metrics   *metrics
	webhook   *webhook     // nil if nobody is to be told
	casts     *broadcaster // nil if application events stay on this node
	server    *http.Server
	listener  net.Listener
	serving   chan struct{} // closed when the server has ended

	drainWait, drainOver time.Duration
	retiring             atomic.Bool // drain has begun
}

// startNode connects to Redis and listens. The error is one line for the operator.
func startNode(config Config, log *slog.Logger) (*node, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	n := &node{log: log, serving: make(chan struct{})}
	var errs []error
	if n.tokens, errs = newAuthority(config, log); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	var err error
	if n.listener, err = net.Listen("tcp", ":"+strconv.Itoa(config.Port)); err != nil {
		return nil, err
	}
	if err := n.openRedis(ctx, config); err != nil {
		return nil, errors.Join(err, n.listener.Close())
	}
	if n.tokens == nil {
		log.Warn("no key for tokens is set: whoever can connect may be anybody in any room")
	}
	warnOfEviction(ctx, n.redis, log)
	n.scripts = newPipelines(n.redis)
	n.wire(config)
	n.tokens.start()
	go n.serve()
	return n, nil
}

func (n *node) serve() {
	defer close(n.serving)
	// stop closes the listener before the server.
	if err := n.server.Serve(n.listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		n.log.Error("the HTTP server has ended", "error", err)
	}
}

// openRedis connects to the Redis of the settings. If they name none and none is at the default address, it embeds one
// there, which other nodes on this machine then find.
func (n *node) openRedis(ctx context.Context, config Config) (err error) {
	local := strings.TrimPrefix(config.RedisURL, "redis://")
	if !config.RedisURLGiven && !redisListening(ctx, local) {
		n.embedded, err = startEmbeddedRedis(local)
		switch {
		case err == nil:
			n.log.Warn("no Redis found: an embedded one was started, for this machine only, and nothing in it is kept", "address", local)
		case !redisListening(ctx, local): // else another node was faster
			return err
		}
	}
	n.redis, err = openRedis(ctx, config.RedisURL, config.redisLogin())
	if err != nil && n.embedded != nil {
		n.embedded.close()
	}
	return err
}

// wire makes the parts know each other, from Redis to the sockets.
func (n *node) wire(config Config) {
	n.drainWait, n.drainOver = config.DrainWait, config.Drain
	n.metrics = newMetrics(gauges{
		connections: func() int { return len(n.sockets.all()) },
		hosted:      func() (rooms, members int) { return n.hub.size() },
		refusals:    func() map[string]int64 { return n.handlers.refusals.all() },
		lostLines:   lostLinesOf(n.log).all,
	})
	var onChange func(string, []Change)
	if config.WebhookURL != "" {
		n.webhook = newWebhook(config.WebhookURL, config.WebhookSecret, usualHookTimes(), n.metrics, n.log)
		onChange = n.webhook.changed
	}
	n.service = NewService(n.scripts, Options{
		TTL:            config.TTL,
		Lookback:       config.ReaperLookback,
		ReaperInterval: config.ReaperInterval,
		NodeLease:      config.NodeLease,
		Limits:         Limits{IDBytes: config.MaxIDBytes, StateBytes: config.MaxStateBytes, StateDepth: config.MaxStateDepth},
		MaxMembers:     config.MaxRoomMembers,
		Grace:          config.Grace,
		Sharded:        config.ShardedPubSub,
		Logger:         n.log,
		OnCall:         n.metrics.called,
		OnLeave:        n.metrics.left,
		OnChange:       onChange,
	})
	n.wireRooms(config)
	n.bridge = newBridge(n.redis, config.ShardedPubSub, aboutRooms, n.hub, n.log)
	n.hub.bridge = n.bridge
	n.onlookers = newOnlookers(n.service, n.hub, func(sink bridgeSink) *bridge {
		return newBridge(n.redis, config.ShardedPubSub, aboutUsers, sink, n.log)
	}, n.log)
	n.handlers.onlookers = n.onlookers
	accepted := newAcceptLimits(config.MaxConnections, config.MaxConnectionsPerAddress, descriptorLimit("/proc/self/limits"))
	n.listener = newBoundedListener(n.listener, accepted, n.handlers.refusals)
	gate := newGate(cmp.Or(config.MaxConnections, accepted.most), config.MaxConnectionsPerAddress, n.handlers.refusals)
	n.sockets = newSockets(socketOptions{
		PingInterval:    pingInterval,
		PingTimeout:     20 * time.Second,
		ConnectTimeout:  10 * time.Second,
		WriteTimeout:    10 * time.Second,
		TakeTimeout:     30 * time.Second,
		MaxMessageBytes: config.MaxMessageBytes,
		MaxPollBytes:    config.MaxPollBytes,
		MaxUnsentBytes:  config.MaxUnsentBytes,
		Input:           newInputLimits(config.MaxInputPerSecond, config.MaxInputBytesPerSecond),
		Unsent:          newUnsent(cmp.Or(config.MaxUnsentTotalBytes, unsentTotal(memoryLimit()))),
		Origins:         config.Origins,
		Logger:          n.log,
		Admit:           gate.admit,
		Refusals:        n.handlers.refusals,
	}, n.handlers)
	n.handlers.everyone = n.sockets.each
	n.lease.start(n.healer.lostLease)
	if config.SocketIOAdapter {
		n.casts = newBroadcaster(n.redis, n.handlers, n.log)
	}
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", n.sockets)
	mountPage(mux, config.Demo, rand.Text()[:6])
	site := &web{service: n.service, hub: n.hub, apiKey: config.APIKey, unready: n.unready, log: n.log}
	mux.Handle("GET /metrics", n.metrics.handler(n.log))
	n.server = newHTTPServer(site.before(mux))
}

// wireRooms makes what is between the service and the sockets. The hub lacks its bridge.
func (n *node) wireRooms(config Config) {
	n.lease = newLease(n.service, config.NodeLease, n.log)
	n.hub = newHub(n.service, encoders{presenceFrame, batchFrame, countFrame}, config.TTL/4, n.log)
	n.hub.batchEvery = config.Batch
	n.hub.deserted = n.lease.leave
	n.hub.metrics = n.metrics
	n.healer = newHealer(n.service, n.hub, n.lease, n.log)
	n.owed = newOwed(n.service)
	n.workers = newWorkers()
	n.handlers = &handlers{
		workers:  n.workers,
		heavy:    newHeavyWork(),
		service:  n.service,
		hub:      n.hub,
		owed:     n.owed,
		lease:    n.lease,
		maxRooms: config.MaxRoomsPerSocket,
		maxUsers: config.MaxWatchedUsers,
		pongs:    config.PongKeepsAlive,
		tokens:   n.tokens,
		rate:     newRate(config.RatePerSecond, config.RateBurst),
		refusals: &refusals{},
		metrics:  n.metrics,
		log:      n.log,
	}
}

// unready is why no client should be sent here, nil if there is no reason.
func (n *node) unready(ctx context.Context) *Error {
	if n.retiring.Load() {
		return shuttingDown()
	}
	if err := n.service.takesWrites(ctx); err != nil {
		return unavailable(err)
	}
	if deaf := n.bridge.deafFor(); deaf > lineOverdue {
		return unavailable(fmt.Errorf("the subscription has brought no probe for %v", deaf.Round(time.Millisecond)))
	}
	return nil
}

// stop drains the node, waits until its members have left or are held back, and closes Redis last.
func (n *node) stop() {
	n.drain()
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	n.sockets.close()
	_ = n.listener.Close()
	<-n.serving // else Shutdown may complain that the listener is closed
	var subscriptions sync.WaitGroup
	subscriptions.Go(n.closeSubscriptions)
	n.workers.close()
	left := n.owed.close(ctx)
	if left > 0 {
		n.log.Warn("Redis did not confirm every leave: when this node's lease is over, others will remove them", "connections", left)
	}
	if err := n.server.Shutdown(ctx); err != nil {
		n.log.Warn("requests were cut off", "error", err)
	}
	n.tokens.close(ctx)
	subscriptions.Wait()
	n.lease.close(ctx, left == 0)
	n.service.Stop()
	if n.webhook != nil {
		if lost := n.webhook.close(ctx); lost > 0 {
			n.log.Warn("the webhook's receiver has not been told everything", "events", lost)
		}
	}
	if err := n.scripts.Close(); err != nil {
		n.log.Warn("closing the connections to Redis", "error", err)
	}
	if n.embedded != nil {
		n.embedded.close()
	}
}

// closeSubscriptions ends what only the clients of this node were for.
func (n *node) closeSubscriptions() {
	var ends sync.WaitGroup
	if n.casts != nil {
		ends.Go(n.casts.close)
	}
	ends.Go(n.onlookers.close)
	n.healer.close()
	n.bridge.close()
	ends.Wait()
	n.hub.close()
}
