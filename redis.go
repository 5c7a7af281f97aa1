package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// allowedRedisURL completes "must be".
const allowedRedisURL = "redis://host:port, rediss://host:port or unix:///path, " +
	"for a cluster with ?addr=host:port for each further server, " +
	"for Sentinel with ?master_name=name and ?addr=host:port for each further sentinel"

// openRedis connects to what the URL names and returns once it answers. Which of a
// cluster's servers the URL names does not matter: the server itself tells that it
// is one of a cluster. The error names the server, without credentials.
func openRedis(ctx context.Context, rawURL string, login redisLogin) (redis.UniversalClient, error) {
	o, err := redisOptions(rawURL)
	if err != nil {
		return nil, err
	}
	login.apply(o)
	if o.MasterName == "" && !o.IsClusterMode {
		if o.IsClusterMode, err = clusterEnabled(ctx, o); err != nil {
			return nil, fmt.Errorf("connect to Redis at %s: %w", withoutCredentials(rawURL), err)
		}
	}
	rdb := newRedisClient(o)
	if err := rdb.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to Redis at %s: %w", withoutCredentials(rawURL), err), rdb.Close())
	}
	return rdb, nil
}

// newRedisClient makes the client that the options ask for.
func newRedisClient(o *redis.UniversalOptions) redis.UniversalClient {
	if !o.IsClusterMode {
		rdb := redis.NewUniversalClient(o)
		rdb.AddHook(completeAnswers{})
		return rdb
	}
	cluster := o.Cluster()
	// With them, PING goes to all masters and fails with one of them, and every
	// command is looked up in a table that has to be read first.
	cluster.DisableRoutingPolicies = true
	rdb := redis.NewClusterClient(cluster)
	rdb.OnNewNode(func(node *redis.Client) { node.AddHook(completeAnswers{}) })
	return rdb
}

// clusterEnabled asks a single server whether it belongs to a cluster. HELLO tells
// it to every user, whatever an ACL allows, and miniredis knows it too.
func clusterEnabled(ctx context.Context, o *redis.UniversalOptions) (bool, error) {
	rdb := redis.NewClient(o.Simple())
	defer rdb.Close()
	reply, err := rdb.Do(ctx, "HELLO", 3).Result()
	if err != nil {
		return false, err
	}
	server, _ := reply.(map[any]any)
	switch server["mode"] {
	case "cluster":
		return true, nil
	case "sentinel":
		return false, errors.New("this is a sentinel: name the master with ?master_name=")
	}
	return false, nil
}

// redisOptions reads a URL in one of the forms of allowedRedisURL.
func redisOptions(rawURL string) (*redis.UniversalOptions, error) {
	o, err := parseRedisURL(rawURL)
	if err != nil {
		return nil, err
	}
	for _, addr := range o.Addrs {
		_, port, err := net.SplitHostPort(addr)
		n, bad := strconv.ParseUint(port, 10, 16)
		if !strings.HasPrefix(addr, "/") && (err != nil || bad != nil || n == 0) {
			return nil, fmt.Errorf("no port from 1 to 65535: %s", addr)
		}
	}
	if o.DB < 0 {
		return nil, fmt.Errorf("no number of a database: %d", o.DB)
	}
	// A script whose answer was lost may have run. It is never sent again.
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.DialTimeout = cmp.Or(o.DialTimeout, time.Second)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, 2*time.Second)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 2*time.Second)
	o.PoolTimeout = cmp.Or(o.PoolTimeout, 2*time.Second)
	o.PoolSize = cmp.Or(o.PoolSize, 64)
	o.Protocol = 3
	// Both cost round trips at each connection, and tell us nothing.
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if o.TLSConfig == nil {
		o.Dialer = keepAliveDialer(o.DialTimeout)
	}
	return o, nil
}

// keepAliveDialer finds out within 45 s that a server is not there any more.
func keepAliveDialer(timeout time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	return dialer.DialContext
}

// parseRedisURL takes from the URL where the servers are, how to log in, and what
// the operator says of timeouts and of the pool's size.
func parseRedisURL(rawURL string) (*redis.UniversalOptions, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Opaque != "" {
		return nil, errors.New("the address of Redis is not a URL") // url.Parse's error would show the password
	}
	switch query := u.Query(); {
	case query.Has("master_name"):
		o, err := redis.ParseFailoverURL(rawURL)
		if err != nil {
			return nil, err
		}
		if o.MasterName == "" {
			return nil, errors.New("master_name is empty")
		}
		return &redis.UniversalOptions{
			Addrs: o.SentinelAddrs, MasterName: o.MasterName, DB: o.DB, TLSConfig: o.TLSConfig,
			SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword, Username: o.Username, Password: o.Password,
			DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, PoolTimeout: o.PoolTimeout, PoolSize: o.PoolSize,
		}, nil
	case query.Has("addr"):
		o, err := redis.ParseClusterURL(rawURL)
		if err != nil {
			return nil, err
		}
		return &redis.UniversalOptions{
			Addrs: o.Addrs, IsClusterMode: true, TLSConfig: o.TLSConfig, Username: o.Username, Password: o.Password,
			DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, PoolTimeout: o.PoolTimeout, PoolSize: o.PoolSize,
		}, nil
	default:
		o, err := redis.ParseURL(rawURL)
		if err != nil {
			return nil, err
		}
		return &redis.UniversalOptions{
			Addrs: []string{o.Addr}, DB: o.DB, TLSConfig: o.TLSConfig, Username: o.Username, Password: o.Password,
			DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, PoolTimeout: o.PoolTimeout, PoolSize: o.PoolSize,
		}, nil
	}
}

func validRedisURL(rawURL string) bool {
	_, err := redisOptions(rawURL)
	return err == nil
}

// The places of a URL, however broken, that may hold a name or a password: the
// query parameters of Sentinel, and what stands before the last @.
var (
	queryCredentials = regexp.MustCompile(`(?i)(username|password)=[^&]*`)
	userInfo         = regexp.MustCompile(`(?s)^([^@]*?://)?.*@`)
)

// withoutCredentials gives the URL as it may be shown and logged.
func withoutCredentials(rawURL string) string {
	return userInfo.ReplaceAllString(queryCredentials.ReplaceAllString(rawURL, "$1="), "$1")
}

// warnOfEviction looks for servers that may drop keys when they are full: with them, they drop members. An ACL may keep that
// from us.
func warnOfEviction(ctx context.Context, rdb redis.UniversalClient, log *slog.Logger) {
	look := func(ctx context.Context, server *redis.Client) error {
		info, err := server.Info(ctx, "memory").Result()
		_, policy, found := strings.Cut(info, "maxmemory_policy:")
		policy, _, _ = strings.Cut(policy, "\r")
		if err == nil && found && policy != "noeviction" {
			log.Warn("this Redis drops keys when it is full, and members with them: set maxmemory-policy to noeviction",
				"server", server.Options().Addr, "policy", policy)
		}
		return nil
	}
	switch rdb := rdb.(type) {
	case *redis.Client:
		_ = look(ctx, rdb)
	case *redis.ClusterClient:
		_ = rdb.ForEachMaster(ctx, look)
	}
}

// redisLog lets the Redis client, which logs its reconnecting and much else, speak
// on the debug level of the default logger.
type redisLog struct{}

func (redisLog) Printf(ctx context.Context, format string, args ...any) {
	slog.DebugContext(ctx, "redis client", "message", fmt.Sprintf(format, args...))
}
