package main

import (
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is everything that an operator can choose. Its values are within the
// ranges that settings lists.
type Config struct {
	Port          int // 0 lets the system choose
	RedisURL      string
	RedisURLGiven bool // or a login, by the operator: nothing is embedded then

	RedisUsername     string // "" = that of the URL
	RedisPasswordFile string // "" = the password of the URL

	TTL            time.Duration
	ReaperInterval time.Duration
	ReaperLookback time.Duration
	NodeLease      time.Duration
	Grace          time.Duration // 0 = none
	LastSeen       time.Duration // 0 = not kept
	DrainWait      time.Duration // 0 = none
	Drain          time.Duration // 0 = close all sockets at once
	Batch          time.Duration

	MaxIDBytes               int
	MaxStateBytes            int
	MaxStateDepth            int
	MaxRoomsPerSocket        int
	MaxRoomMembers           int // 0 = no limit
	MaxWatchedUsers          int
	RatePerSecond            int // 0 = no limit
	RateBurst                int // at least 1 where there is a rate
	MaxMessageBytes          int
	MaxPollBytes             int
	MaxInputPerSecond        int // 0 = no limit
	MaxInputBytesPerSecond   int // 0 = no limit
	MaxUnsentBytes           int
	MaxUnsentTotalBytes      int // 0 = a quarter of the memory that the process may use
	MaxRoomBytesPerSecond    int // 0 = no limit
	MaxConnections           int // 0 = no limit
	MaxConnectionsPerAddress int // 0 = no limit

	Origins          []string // "*", or lower-case origins without a default port
	JWTSecret        string
	JWTPublicKeyFile string
	JWKSFile         string
	JWTIssuer        string
	JWTAudience      string
	APIKey           string

	ShardedPubSub   bool
	SocketIOAdapter bool
	PongKeepsAlive  bool
	WebhookURL      string
	WebhookSecret   string
	Demo            bool
	Console         bool
	LogLevel        slog.Level
	LogFormat       string // "text" or "json"

	CollectorGiven bool // the operator tells Go's garbage collector what to do: this program does not
}

// defaultRedisURL is where a Redis on the developer's own machine listens.
const defaultRedisURL = "redis://localhost:6379"

// loadConfig reads the environment, in the form of os.Environ. It reports every
// bad variable with an error of its own, and what is odd but works as a warning.
// The Config is of use only without errors.
func loadConfig(environ []string) (c Config, warnings []string, errs []error) {
	given, unknown := lookupSettings(environ)
	for _, s := range settings() {
		if s.defaultText != "" {
			s.set(&c, s.defaultText)
		}
		if value := given[s.name]; value != "" && !s.set(&c, value) {
			errs = append(errs, s.refuse(value))
		}
	}
	for _, name := range unknown {
		warnings = append(warnings, name+" is no variable of this server")
	}
	if len(errs) > 0 {
		return c, warnings, errs
	}
	c.RedisURLGiven = given["REDIS_URL"] != "" || c.RedisUsername != "" || c.RedisPasswordFile != ""
	c.CollectorGiven = given["GOGC"] != "" || given["GOMEMLIMIT"] != ""
	if c.ReaperLookback == 0 {
		c.ReaperLookback = 2 * c.TTL
	}
	if given["PRESENCE_MAX_POLL_BYTES"] == "" {
		c.MaxPollBytes = max(c.MaxPollBytes, c.MaxMessageBytes)
	}
	warnings = append(warnings, c.warnings()...)
	if c.RatePerSecond > 0 {
		c.RateBurst = max(c.RateBurst, 1)
	}
	return c, warnings, nil
}

// lookupSettings picks the variables that have a value, and names those with our
// prefix that do not exist, in order.
func lookupSettings(environ []string) (given map[string]string, unknown []string) {
	given = make(map[string]string)
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		given[name] = value // empty counts as unset
	}
	known := settings()
	for name, value := range given {
		if strings.HasPrefix(name, "PRESENCE_") && value != "" &&
			!slices.ContainsFunc(known, func(s setting) bool { return s.name == name }) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return given, unknown
}

// warnings says which settings contradict each other.
func (c *Config) warnings() (warnings []string) {
	sources := 0
	for _, source := range []string{c.JWTSecret, c.JWTPublicKeyFile, c.JWKSFile} {
		if source != "" {
			sources++
		}
	}
	for _, odd := range []struct {
		is   bool
		text string
	}{
		{c.ReaperInterval > c.TTL, "PRESENCE_REAPER_INTERVAL_MS is above PRESENCE_TTL_MS: silent clients leave late"},
		{c.ReaperLookback < c.TTL, "PRESENCE_REAPER_LOOKBACK_MS is below PRESENCE_TTL_MS: clients are removed within their heartbeat window"},
		{c.NodeLease > c.ReaperLookback, "PRESENCE_NODE_LEASE_MS is above PRESENCE_REAPER_LOOKBACK_MS: the lease of a lost node finds nobody to remove"},
		{c.Grace > c.ReaperLookback, "PRESENCE_GRACE_MS is above PRESENCE_REAPER_LOOKBACK_MS: a leave is held back for no longer than that"},
		{c.PongKeepsAlive && c.ReaperLookback <= pingInterval, "PRESENCE_REAPER_LOOKBACK_MS is not above the 25000 between two pings: PRESENCE_PONG_KEEPS_ALIVE keeps nobody alive"},
		{c.RatePerSecond > 0 && c.RateBurst == 0, "PRESENCE_RATE_BURST is 0 although there is a rate: 1 is used"},
		{c.RateBurst > 0 && c.RateBurst < c.RatePerSecond, "PRESENCE_RATE_BURST is below PRESENCE_RATE_PER_SECOND: evenly spaced events only"},
		{c.MaxStateBytes >= c.MaxMessageBytes, "PRESENCE_MAX_STATE_BYTES does not fit into PRESENCE_MAX_MESSAGE_BYTES: the largest states cannot be sent"},
		{c.MaxPollBytes < c.MaxMessageBytes, "PRESENCE_MAX_POLL_BYTES is below PRESENCE_MAX_MESSAGE_BYTES: the largest messages cannot be sent by polling"},
		{c.MaxConnections > 0 && c.MaxConnectionsPerAddress > c.MaxConnections, "PRESENCE_MAX_CONNECTIONS_PER_ADDRESS is above PRESENCE_MAX_CONNECTIONS: it never applies"},
		{sources > 1, "more than one of PRESENCE_JWT_SECRET, PRESENCE_JWT_PUBLIC_KEY_FILE and PRESENCE_JWKS_FILE is set: tokens of each are accepted"},
		{sources == 0 && c.JWTIssuer != "", "PRESENCE_JWT_ISSUER is set without a key: authentication is off"},
		{sources == 0 && c.JWTAudience != "", "PRESENCE_JWT_AUDIENCE is set without a key: authentication is off"},
		{c.JWTSecret != "" && len(c.JWTSecret) < 32, "PRESENCE_JWT_SECRET is shorter than the 32 bytes that HS256 asks for"},
		{c.RedisUsername != "" && !c.hasRedisPassword(), "PRESENCE_REDIS_USERNAME is set without a password: Redis takes the node for its default user"},
		{c.WebhookSecret != "" && c.WebhookURL == "", "PRESENCE_WEBHOOK_SECRET is set without PRESENCE_WEBHOOK_URL: nothing is sent"},
	} {
		if odd.is {
			warnings = append(warnings, odd.text)
		}
	}
	return warnings
}

func (c *Config) hasRedisPassword() bool {
	o, err := redisOptions(c.RedisURL)
	return c.RedisPasswordFile != "" || err == nil && o.Password != ""
}

// setting is one variable of the environment.
type setting struct {
	name        string
	defaultText string                    // "" = none, or derived from another setting
	allowed     string                    // completes "must be"
	show        func(value string) string // how a bad value is told, nil = as it is
	set         func(c *Config, value string) bool
}

// refuse is the line about a bad value.
func (s setting) refuse(value string) error {
	if s.show != nil {
		value = s.show(value)
	}
	return fmt.Errorf("%s=%q: must be %s", s.name, value, s.allowed)
}

// settings lists every variable, in the order in which docs/operations.md explains them.
func settings() []setting {
	const (
		minute, hour, week = 60_000, 3_600_000, 604_800_000 // milliseconds
		year               = 365 * 24 * hour
		mebibyte, many     = 1 << 20, 1_000_000_000
	)
	return []setting{
		integer("PORT", 3000, 0, 65535, func(c *Config) *int { return &c.Port }),
		withCredentials(checked("REDIS_URL", defaultRedisURL, allowedRedisURL, validRedisURL, func(c *Config) *string { return &c.RedisURL })),
		text("PRESENCE_REDIS_USERNAME", func(c *Config) *string { return &c.RedisUsername }),
		text("PRESENCE_REDIS_PASSWORD_FILE", func(c *Config) *string { return &c.RedisPasswordFile }),
		milliseconds("PRESENCE_TTL_MS", "30000", 100, week, func(c *Config) *time.Duration { return &c.TTL }),
		milliseconds("PRESENCE_REAPER_INTERVAL_MS", "3000", 10, hour, func(c *Config) *time.Duration { return &c.ReaperInterval }),
		milliseconds("PRESENCE_REAPER_LOOKBACK_MS", "", 100, 2*week, func(c *Config) *time.Duration { return &c.ReaperLookback }),
		milliseconds("PRESENCE_NODE_LEASE_MS", "10000", 100, hour, func(c *Config) *time.Duration { return &c.NodeLease }),
		milliseconds("PRESENCE_GRACE_MS", "0", 0, week, func(c *Config) *time.Duration { return &c.Grace }),
		milliseconds("PRESENCE_DRAIN_WAIT_MS", "0", 0, hour, func(c *Config) *time.Duration { return &c.DrainWait }),
		milliseconds("PRESENCE_DRAIN_MS", "2000", 0, hour, func(c *Config) *time.Duration { return &c.Drain }),
		integer("PRESENCE_MAX_ID_BYTES", 200, 1, 65536, func(c *Config) *int { return &c.MaxIDBytes }),
		integer("PRESENCE_MAX_STATE_BYTES", 16384, 2, 64*mebibyte, func(c *Config) *int { return &c.MaxStateBytes }),
		integer("PRESENCE_MAX_STATE_DEPTH", 64, 1, 10_000, func(c *Config) *int { return &c.MaxStateDepth }),
		integer("PRESENCE_MAX_ROOMS_PER_SOCKET", 32, 1, many, func(c *Config) *int { return &c.MaxRoomsPerSocket }),
		integer("PRESENCE_MAX_ROOM_MEMBERS", 0, 0, many, func(c *Config) *int { return &c.MaxRoomMembers }),
		integer("PRESENCE_RATE_PER_SECOND", 50, 0, many, func(c *Config) *int { return &c.RatePerSecond }),
		integer("PRESENCE_RATE_BURST", 100, 0, many, func(c *Config) *int { return &c.RateBurst }),
		integer("PRESENCE_MAX_INPUT_PER_SECOND", 1000, 0, many, func(c *Config) *int { return &c.MaxInputPerSecond }),
		integer("PRESENCE_MAX_INPUT_BYTES_PER_SECOND", mebibyte, 0, many, func(c *Config) *int { return &c.MaxInputBytesPerSecond }),
		integer("PRESENCE_MAX_MESSAGE_BYTES", 65536, 256, 64*mebibyte, func(c *Config) *int { return &c.MaxMessageBytes }),
		integer("PRESENCE_MAX_POLL_BYTES", mebibyte, 256, 64*mebibyte, func(c *Config) *int { return &c.MaxPollBytes }),
		integer("PRESENCE_MAX_UNSENT_BYTES", mebibyte, 1, 1024*mebibyte, func(c *Config) *int { return &c.MaxUnsentBytes }),
		withoutDefault(integer("PRESENCE_MAX_UNSENT_TOTAL_BYTES", 0, 1, math.MaxInt, func(c *Config) *int { return &c.MaxUnsentTotalBytes })),
		integer("PRESENCE_MAX_ROOM_BYTES_PER_SECOND", 0, 0, math.MaxInt, func(c *Config) *int { return &c.MaxRoomBytesPerSecond }),
		integer("PRESENCE_MAX_CONNECTIONS", 0, 0, many, func(c *Config) *int { return &c.MaxConnections }),
		integer("PRESENCE_MAX_CONNECTIONS_PER_ADDRESS", 0, 0, many, func(c *Config) *int { return &c.MaxConnectionsPerAddress }),
		{name: "PRESENCE_ORIGINS", defaultText: "*", allowed: "* or a comma-separated list of origins such as https://example.org:8443, null or file://", set: setOrigins},
		secret(text("PRESENCE_JWT_SECRET", func(c *Config) *string { return &c.JWTSecret })),
		text("PRESENCE_JWT_PUBLIC_KEY_FILE", func(c *Config) *string { return &c.JWTPublicKeyFile }),
		text("PRESENCE_JWKS_FILE", func(c *Config) *string { return &c.JWKSFile }),
		text("PRESENCE_JWT_ISSUER", func(c *Config) *string { return &c.JWTIssuer }),
		text("PRESENCE_JWT_AUDIENCE", func(c *Config) *string { return &c.JWTAudience }),
		secret(checked("PRESENCE_API_KEY", "", "visible ASCII characters without spaces", validAPIKey, func(c *Config) *string { return &c.APIKey })),
		boolean("PRESENCE_SHARDED_PUBSUB", "false", func(c *Config) *bool { return &c.ShardedPubSub }),
		boolean("PRESENCE_SOCKETIO_ADAPTER", "true", func(c *Config) *bool { return &c.SocketIOAdapter }),
		boolean("PRESENCE_PONG_KEEPS_ALIVE", "false", func(c *Config) *bool { return &c.PongKeepsAlive }),
		withCredentials(checked("PRESENCE_WEBHOOK_URL", "", "an http:// or https:// URL", validWebhookURL, func(c *Config) *string { return &c.WebhookURL })),
		secret(text("PRESENCE_WEBHOOK_SECRET", func(c *Config) *string { return &c.WebhookSecret })),
		boolean("PRESENCE_DEMO", "true", func(c *Config) *bool { return &c.Demo }),
		boolean("PRESENCE_CONSOLE", "true", func(c *Config) *bool { return &c.Console }),
		{name: "PRESENCE_LOG_LEVEL", defaultText: "info", allowed: "debug, info, warn or error", set: setLogLevel},
		checked("PRESENCE_LOG_FORMAT", "text", "text or json", validLogFormat, func(c *Config) *string { return &c.LogFormat }),
		milliseconds("PRESENCE_BATCH_MS", "250", 10, minute, func(c *Config) *time.Duration { return &c.Batch }),
		integer("PRESENCE_MAX_WATCHED_USERS", 500, 1, many, func(c *Config) *int { return &c.MaxWatchedUsers }),
		milliseconds("PRESENCE_LAST_SEEN_MS", "604800000", 0, 10*year, func(c *Config) *time.Duration { return &c.LastSeen }),
	}
}

// integer is a whole number from low to high.
func integer(name string, initial, low, high int, field func(*Config) *int) setting {
	return setting{
		name:        name,
		defaultText: strconv.Itoa(initial),
		allowed:     fmt.Sprintf("a whole number from %d to %d", low, high),
		set: func(c *Config, value string) bool {
			n, err := strconv.Atoi(value)
			if err != nil || n < low || n > high {
				return false
			}
			*field(c) = n
			return true
		},
	}
}

// withoutDefault is a setting whose default is not a constant: its field stays as it is.
func withoutDefault(s setting) setting {
	s.defaultText = ""
	return s
}

// milliseconds is a duration from low to high, without a default if that is "".
func milliseconds(name, defaultText string, low, high int64, field func(*Config) *time.Duration) setting {
	return setting{
		name:        name,
		defaultText: defaultText,
		allowed:     fmt.Sprintf("a whole number of milliseconds from %d to %d", low, high),
		set: func(c *Config, value string) bool {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < low || n > high {
				return false
			}
			*field(c) = time.Duration(n) * time.Millisecond
			return true
		},
	}
}

// boolean is true or false.
func boolean(name, defaultText string, field func(*Config) *bool) setting {
	return setting{
		name:        name,
		defaultText: defaultText,
		allowed:     "true or false (or 1 or 0)",
		set: func(c *Config, value string) bool {
			switch value {
			case "true", "1":
				*field(c) = true
			case "false", "0":
				*field(c) = false
			default:
				return false
			}
			return true
		},
	}
}

// checked is a text that valid accepts.
func checked(name, defaultText, allowed string, valid func(string) bool, field func(*Config) *string) setting {
	return setting{
		name:        name,
		defaultText: defaultText,
		allowed:     allowed,
		set: func(c *Config, value string) bool {
			*field(c) = value
			return valid(value)
		},
	}
}

// text is any text.
func text(name string, field func(*Config) *string) setting {
	return checked(name, "", "a text", func(string) bool { return true }, field)
}

// secret makes the value of a setting one that nobody gets to see.
func secret(s setting) setting {
	s.show = func(string) string { return "(secret)" }
	return s
}

// withCredentials is a setting whose value may hold a name and a password, which
// nobody gets to see.
func withCredentials(s setting) setting {
	s.show = withoutCredentials
	return s
}

// validAPIKey accepts what can stand in an Authorization header.
func validAPIKey(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' })
}

func validLogFormat(value string) bool { return value == "text" || value == "json" }

func validWebhookURL(value string) bool {
	u, err := url.Parse(value)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

func setLogLevel(c *Config, value string) bool {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[value]
	c.LogLevel = level
	return ok
}

func setOrigins(c *Config, value string) bool {
	c.Origins = nil
	for element := range strings.SplitSeq(value, ",") {
		origin := strings.TrimSpace(element)
		if origin != "*" {
			var ok bool
			if origin, ok = parseOrigin(origin); !ok {
				return false
			}
		}
		c.Origins = append(c.Origins, origin)
	}
	return true
}
