package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// node is one running server.
type node struct {
	log           *slog.Logger
	embedded      *embeddedRedis // nil if Redis is a server of its own
	redis         redis.UniversalClient
	scripts       redis.UniversalClient // redis as the service uses it
	service       *Service
	lease         *lease
	hub           *hub
	bridge        *bridge
	healer        *healer
	pendingLeaves *pendingLeaves
	tokens        *authority // nil if nobody needs a token
	userWatchers  *userWatchers
	workers       *workers
	handlers      *handlers
	sockets       *sockets
	metrics       *metrics
	webhook       *webhook     // nil if nobody is to be told
	casts         *broadcaster // nil if application events stay on this node
	server        *http.Server
	listener      net.Listener
	serving       chan struct{} // closed when the server has ended

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
		LastSeen:       cmp.Or(config.LastSeen, -1),
		Sharded:        config.ShardedPubSub,
		Logger:         n.log,
		OnCall:         n.metrics.called,
		OnLeave:        n.metrics.countLeaves,
		OnChange:       onChange,
	})
	open := func(about topic, sinks ...bridgeSink) *bridge {
		return newBridge(n.redis, config.ShardedPubSub, about, n.log, sinks...)
	}
	n.wireRooms(config, runtime.GOMAXPROCS(0), func(sinks []bridgeSink) subscriptions {
		n.bridge = open(aboutRooms, sinks...)
		return n.bridge
	}, func(sink bridgeSink) *bridge { return open(aboutUsers, sink) })
	n.wireSockets(config)
	n.lease.start()
	if config.SocketIOAdapter {
		n.casts = newBroadcaster(n.redis, n.handlers, n.log)
	}
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", n.sockets)
	mountPage(mux, config.Demo, rand.Text()[:6])
	if config.Console && config.APIKey != "" {
		mountConsole(mux)
	}
	site := &web{service: n.service, hub: n.hub, casts: n.casts, apiKey: config.APIKey, unready: n.unready, log: n.log}
	mux.Handle("GET /metrics", n.metrics.handler(n.log))
	n.server = newHTTPServer(site.before(mux))
}

// wireSockets bounds the connections that the listener accepts, and makes what serves their clients.
func (n *node) wireSockets(config Config) {
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
}

// wireRooms makes what is between the service and the sockets. The two functions connect to the channels of rooms, at once, and
// of users, once one is watched.
func (n *node) wireRooms(config Config, dispatchers int, rooms func([]bridgeSink) subscriptions, users func(bridgeSink) *bridge) {
	n.lease = newLease(n.service, config.NodeLease, func() { n.healer.lostLease() }, n.log)
	n.hub = newHub(hubOptions{
		source:          n.service,
		encode:          encoders{presenceFrame, batchFrame, countFrame},
		dispatcherCount: dispatchers,
		connect:         rooms,
		losses: func(h *hub) lossListener {
			n.healer = newHealer(n.service, h, n.lease, n.log)
			return n.healer
		},
		deserted:   n.lease.leave,
		freshFor:   config.TTL / 4,
		batchEvery: config.Batch,
		countEvery: time.Second,
		roomBytes:  config.MaxRoomBytesPerSecond,
		log:        n.log,
		metrics:    n.metrics,
	})
	n.userWatchers = newUserWatchers(n.service, n.hub, users, n.log)
	n.pendingLeaves = newPendingLeaves(n.service)
	n.workers = newWorkers()
	n.handlers = &handlers{
		workers:       n.workers,
		heavy:         newHeavyWork(),
		service:       n.service,
		hub:           n.hub,
		pendingLeaves: n.pendingLeaves,
		lease:         n.lease,
		maxRooms:      config.MaxRoomsPerSocket,
		maxUsers:      config.MaxWatchedUsers,
		pongs:         config.PongKeepsAlive,
		tokens:        n.tokens,
		rate:          newRate(config.RatePerSecond, config.RateBurst),
		refusals:      &refusals{},
		metrics:       n.metrics,
		log:           n.log,

		userWatchers: n.userWatchers,
		everyone:     func(f func(*client)) { n.sockets.each(f) },
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
	if silent := n.bridge.silentFor(); silent > lineOverdue {
		return unavailable(fmt.Errorf("the subscription has brought no probe for %v", silent.Round(time.Millisecond)))
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
	left := n.pendingLeaves.close(ctx)
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
	ends.Go(n.userWatchers.close)
	n.healer.close()
	n.bridge.close()
	ends.Wait()
	n.hub.close()
}
