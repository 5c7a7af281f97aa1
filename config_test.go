package main

import (
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestConfigDefaults pins what an empty environment means.
func TestConfigDefaults(t *testing.T) {
	want := Config{
		Port: 3000, RedisURL: "redis://localhost:6379",
		TTL: 30 * time.Second, ReaperInterval: 3 * time.Second, ReaperLookback: time.Minute,
		NodeLease: 10 * time.Second, LastSeen: 168 * time.Hour, Drain: 2 * time.Second, Batch: 250 * time.Millisecond,
		MaxIDBytes: 200, MaxStateBytes: 16384, MaxStateDepth: 64, MaxRoomsPerSocket: 32, MaxWatchedUsers: 500,
		RatePerSecond: 50, RateBurst: 100, MaxInputPerSecond: 1000, MaxInputBytesPerSecond: 1048576, MaxMessageBytes: 65536, MaxPollBytes: 1048576, MaxUnsentBytes: 1048576,
		Origins: []string{"*"}, SocketIOAdapter: true, Demo: true, Console: true, LogLevel: slog.LevelInfo, LogFormat: "text",
	}
	for name, environ := range map[string][]string{
		"empty":           nil,
		"others":          {"HOME=/root", "PRESENCE=1", "broken"},
		"empty variables": {"PORT=", "REDIS_URL=", "PRESENCE_TTL_MS=", "PRESENCE_ORIGINS=", "PRESENCE_DEMO=", "PRESENCE_UNHEARD_OF="},
	} {
		t.Run(name, func(t *testing.T) {
			got, warnings, errs := loadConfig(environ)
			if len(warnings)+len(errs) > 0 {
				t.Errorf("warnings %q, errors %q", warnings, errs)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// TestEverySetting gives each variable a value that is not its default, so that
// each must reach its own field, and no other.
func TestEverySetting(t *testing.T) {
	environ := []string{
		"PORT=0", "REDIS_URL=rediss://u:p@h:1/2", "PRESENCE_REDIS_USERNAME=v", "PRESENCE_TTL_MS=300", "PRESENCE_REAPER_INTERVAL_MS=50",
		"PRESENCE_REAPER_LOOKBACK_MS=30001", "PRESENCE_NODE_LEASE_MS=500", "PRESENCE_GRACE_MS=7",
		"PRESENCE_DRAIN_WAIT_MS=8", "PRESENCE_DRAIN_MS=0", "PRESENCE_BATCH_MS=99",
		"PRESENCE_MAX_ID_BYTES=1", "PRESENCE_MAX_STATE_BYTES=2", "PRESENCE_MAX_STATE_DEPTH=18", "PRESENCE_MAX_ROOMS_PER_SOCKET=3",
		"PRESENCE_MAX_ROOM_MEMBERS=4", "PRESENCE_MAX_WATCHED_USERS=5", "PRESENCE_RATE_PER_SECOND=6",
		"PRESENCE_RATE_BURST=17", "PRESENCE_MAX_INPUT_PER_SECOND=20", "PRESENCE_MAX_INPUT_BYTES_PER_SECOND=21", "PRESENCE_MAX_MESSAGE_BYTES=256", "PRESENCE_MAX_POLL_BYTES=257",
		"PRESENCE_MAX_UNSENT_BYTES=9", "PRESENCE_MAX_UNSENT_TOTAL_BYTES=12", "PRESENCE_MAX_ROOM_BYTES_PER_SECOND=22",
		"PRESENCE_MAX_CONNECTIONS=11", "PRESENCE_MAX_CONNECTIONS_PER_ADDRESS=10", "PRESENCE_ORIGINS=https://a.example",
		"PRESENCE_JWT_SECRET=0123456789abcdef0123456789abcdef", "PRESENCE_JWT_ISSUER=i", "PRESENCE_JWT_AUDIENCE=a",
		"PRESENCE_API_KEY=k", "PRESENCE_SHARDED_PUBSUB=true", "PRESENCE_SOCKETIO_ADAPTER=false",
		"PRESENCE_PONG_KEEPS_ALIVE=1", "PRESENCE_WEBHOOK_URL=https://hook", "PRESENCE_WEBHOOK_SECRET=s",
		"PRESENCE_LAST_SEEN_MS=2147483648", "PRESENCE_DEMO=0", "PRESENCE_CONSOLE=false", "PRESENCE_LOG_LEVEL=error", "PRESENCE_LOG_FORMAT=json",
	}
	want := Config{
		RedisURL: "rediss://u:p@h:1/2", RedisURLGiven: true, RedisUsername: "v", TTL: 300 * time.Millisecond, ReaperInterval: 50 * time.Millisecond,
		ReaperLookback: 30001 * time.Millisecond, NodeLease: 500 * time.Millisecond, Grace: 7 * time.Millisecond,
		DrainWait: 8 * time.Millisecond, Batch: 99 * time.Millisecond,
		MaxIDBytes: 1, MaxStateBytes: 2, MaxStateDepth: 18, MaxRoomsPerSocket: 3, MaxRoomMembers: 4, MaxWatchedUsers: 5, RatePerSecond: 6,
		RateBurst: 17, MaxInputPerSecond: 20, MaxInputBytesPerSecond: 21, MaxMessageBytes: 256, MaxPollBytes: 257, MaxUnsentBytes: 9, MaxUnsentTotalBytes: 12, MaxRoomBytesPerSecond: 22, MaxConnections: 11, MaxConnectionsPerAddress: 10,
		Origins: []string{"https://a.example"}, JWTSecret: "0123456789abcdef0123456789abcdef", JWTIssuer: "i", JWTAudience: "a",
		LastSeen: 2147483648 * time.Millisecond, APIKey: "k", ShardedPubSub: true, PongKeepsAlive: true, WebhookURL: "https://hook", WebhookSecret: "s",
		LogLevel: slog.LevelError, LogFormat: "json",
	}
	got, warnings, errs := loadConfig(environ)
	if len(warnings)+len(errs) > 0 {
		t.Errorf("warnings %q, errors %q", warnings, errs)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	files, _, errs := loadConfig([]string{"PRESENCE_JWT_PUBLIC_KEY_FILE=a.pem", "PRESENCE_JWKS_FILE=b.json", "PRESENCE_REDIS_PASSWORD_FILE=c"})
	if len(errs) > 0 || files.JWTPublicKeyFile != "a.pem" || files.JWKSFile != "b.json" || files.RedisPasswordFile != "c" || !files.RedisURLGiven {
		t.Errorf("files %q %q %q, errors %q", files.JWTPublicKeyFile, files.JWKSFile, files.RedisPasswordFile, errs)
	}
	for _, s := range settings() {
		if !slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, s.name+"=") }) &&
			s.name != "PRESENCE_JWT_PUBLIC_KEY_FILE" && s.name != "PRESENCE_JWKS_FILE" && s.name != "PRESENCE_REDIS_PASSWORD_FILE" {
			t.Errorf("%s is not tested", s.name)
		}
		if s.defaultText != "" && !s.set(&Config{}, s.defaultText) {
			t.Errorf("the default %q of %s is not allowed", s.defaultText, s.name)
		}
	}
}

// TestConfigRefuses checks each line about a bad value: the variable, the value as
// far as it may be shown, what is allowed.
func TestConfigRefuses(t *testing.T) {
	const redisURL = "must be redis://host:port, rediss://host:port or unix:///path, "
	for _, tc := range []struct{ variable, want string }{
		{"PORT=65536", `PORT="65536": must be a whole number from 0 to 65535`},
		{"PORT=-1", `PORT="-1": must be a whole number from 0 to 65535`},
		{"PORT=http", `PORT="http": must be a whole number from 0 to 65535`},
		{"PORT= 80", `PORT=" 80": must be a whole number`},
		{"PORT=18446744073709551696", `PORT="18446744073709551696": must be a whole number`}, // 2^64 + 80
		{"PRESENCE_TTL_MS=0", `PRESENCE_TTL_MS="0": must be a whole number of milliseconds from 100 to 604800000`},
		{"PRESENCE_TTL_MS=30s", `PRESENCE_TTL_MS="30s": must be`},
		{"PRESENCE_TTL_MS=1e3", `PRESENCE_TTL_MS="1e3": must be`},
		{"PRESENCE_TTL_MS=1.5", `PRESENCE_TTL_MS="1.5": must be`},
		{"PRESENCE_TTL_MS=18446744073709", `PRESENCE_TTL_MS="18446744073709": must be`}, // overflows as nanoseconds
		{"PRESENCE_REAPER_INTERVAL_MS=0", `PRESENCE_REAPER_INTERVAL_MS="0": must be`},
		{"PRESENCE_GRACE_MS=-1", `PRESENCE_GRACE_MS="-1": must be a whole number of milliseconds from 0`},
		{"PRESENCE_MAX_ID_BYTES=0", `PRESENCE_MAX_ID_BYTES="0": must be a whole number from 1`},
		{"PRESENCE_DEMO=yes", `PRESENCE_DEMO="yes": must be true or false`},
		{"PRESENCE_DEMO=a@b", `PRESENCE_DEMO="a@b": must be true or false`},
		{"PRESENCE_LOG_LEVEL=loud\n", `PRESENCE_LOG_LEVEL="loud\n": must be debug, info, warn or error`},
		{"PRESENCE_LOG_FORMAT=xml", `PRESENCE_LOG_FORMAT="xml": must be text or json`},
		{"PRESENCE_API_KEY=hush hush", `PRESENCE_API_KEY="(secret)": must be visible ASCII characters without spaces`},
		{"PRESENCE_WEBHOOK_URL=ftp://bob:hush@h/x", `PRESENCE_WEBHOOK_URL="ftp://h/x": must be an http:// or https:// URL`},
		{"PRESENCE_WEBHOOK_URL=https://", `PRESENCE_WEBHOOK_URL="https://": must be`},
		{"REDIS_URL=http://bob:hush@h:1", `REDIS_URL="http://h:1": ` + redisURL},
		{"REDIS_URL=bob:hush@h:1", `REDIS_URL="h:1": ` + redisURL},
		{"REDIS_URL=redis://bob:hu/s@h:x@h:1", `REDIS_URL="redis://h:1": ` + redisURL},
		{"REDIS_URL=redis://bob:hush@h:port", `REDIS_URL="redis://h:port": ` + redisURL},
		{"REDIS_URL=redis://h:0", `REDIS_URL="redis://h:0": ` + redisURL},
		{"REDIS_URL=redis://h:65536", `REDIS_URL="redis://h:65536": ` + redisURL},
		{"REDIS_URL=redis://h/-1", `REDIS_URL="redis://h/-1": ` + redisURL},
		{"REDIS_URL=redis://h/one", `REDIS_URL="redis://h/one": ` + redisURL},
		{"REDIS_URL=redis://h?colour=red", `REDIS_URL="redis://h?colour=red": ` + redisURL},
		{"REDIS_URL=redis://h?addr=g", `REDIS_URL="redis://h?addr=g": ` + redisURL},
		{"REDIS_URL=redis://h?master_name=", `REDIS_URL="redis://h?master_name=": ` + redisURL},
		{"REDIS_URL=redis://h?db=x&password=hu@sh", `REDIS_URL="redis://h?db=x&password=": ` + redisURL},
		{"REDIS_URL=unix://", `REDIS_URL="unix://": ` + redisURL},
		{"REDIS_URL=localhost:6379", `REDIS_URL="localhost:6379": ` + redisURL},
		{"REDIS_URL=redis:h", `REDIS_URL="redis:h": ` + redisURL},
	} {
		_, _, errs := loadConfig([]string{tc.variable})
		if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), tc.want) {
			t.Errorf("%s: got %q, want %q", tc.variable, errs, tc.want)
		} else if strings.Contains(errs[0].Error(), "hush") {
			t.Errorf("%s: a secret is shown: %q", tc.variable, errs)
		}
	}
}

// TestConfigReportsAll has a bad value in every variable that can have one.
func TestConfigReportsAll(t *testing.T) {
	var environ, want []string
	for _, s := range settings() {
		if s.set(&Config{}, "\x00 no value of anything") {
			continue // any text will do
		}
		environ = append(environ, s.name+"=\x00 no value of anything")
		want = append(want, s.name)
	}
	_, _, errs := loadConfig(environ)
	var got []string
	for _, err := range errs {
		name, _, _ := strings.Cut(err.Error(), "=")
		got = append(got, name)
		if n := strings.Count(err.Error(), "PRESENCE_"); n > 1 {
			t.Errorf("names another variable too: %v", err)
		}
	}
	if len(got) < 30 || !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestConfigWarns(t *testing.T) {
	for _, tc := range []struct{ environ, want string }{
		{"PRESENCE_TLL_MS=1000", "PRESENCE_TLL_MS"},
		{"PRESENCE_TTL_MS=2000", "PRESENCE_REAPER_INTERVAL_MS PRESENCE_NODE_LEASE_MS"},
		{"PRESENCE_REAPER_LOOKBACK_MS=29999", "PRESENCE_REAPER_LOOKBACK_MS"},
		{"PRESENCE_REAPER_LOOKBACK_MS=30000", ""},
		{"PRESENCE_NODE_LEASE_MS=60001", "PRESENCE_NODE_LEASE_MS"},
		{"PRESENCE_GRACE_MS=60001", "PRESENCE_GRACE_MS"},
		{"PRESENCE_PONG_KEEPS_ALIVE=true PRESENCE_TTL_MS=25000 PRESENCE_REAPER_LOOKBACK_MS=25000", "PRESENCE_REAPER_LOOKBACK_MS"},
		{"PRESENCE_PONG_KEEPS_ALIVE=true PRESENCE_TTL_MS=25000 PRESENCE_REAPER_LOOKBACK_MS=25001", ""},
		{"PRESENCE_RATE_BURST=0", "PRESENCE_RATE_BURST"},
		{"PRESENCE_RATE_BURST=49", "PRESENCE_RATE_BURST"},
		{"PRESENCE_RATE_BURST=0 PRESENCE_RATE_PER_SECOND=0", ""},
		{"PRESENCE_MAX_STATE_BYTES=65536", "PRESENCE_MAX_STATE_BYTES"},
		{"PRESENCE_MAX_CONNECTIONS=5 PRESENCE_MAX_CONNECTIONS_PER_ADDRESS=6", "PRESENCE_MAX_CONNECTIONS_PER_ADDRESS"},
		{"PRESENCE_JWKS_FILE=a PRESENCE_JWT_PUBLIC_KEY_FILE=b", "more"},
		{"PRESENCE_JWT_ISSUER=i PRESENCE_JWT_AUDIENCE=a", "PRESENCE_JWT_ISSUER PRESENCE_JWT_AUDIENCE"},
		{"PRESENCE_JWT_SECRET=hush", "PRESENCE_JWT_SECRET"},
		{"PRESENCE_WEBHOOK_SECRET=hush", "PRESENCE_WEBHOOK_SECRET"},
		{"PRESENCE_REDIS_USERNAME=u", "PRESENCE_REDIS_USERNAME"},
		{"PRESENCE_REDIS_USERNAME=u REDIS_URL=redis://:hush@h", ""},
		{"PRESENCE_REDIS_USERNAME=u PRESENCE_REDIS_PASSWORD_FILE=f", ""},
	} {
		_, warnings, errs := loadConfig(strings.Fields(tc.environ))
		var first []string
		for _, warning := range warnings {
			word, _, _ := strings.Cut(warning, " ")
			first = append(first, word)
			if strings.Contains(warning, "hush") {
				t.Errorf("%s: a secret is shown: %s", tc.environ, warning)
			}
		}
		if len(errs) > 0 || strings.Join(first, " ") != tc.want {
			t.Errorf("%s: warnings %q, errors %q, want %q", tc.environ, warnings, errs, tc.want)
		}
	}
}

// TestConfigRateWithoutBurst lets one event through at a time, not none.
func TestConfigRateWithoutBurst(t *testing.T) {
	c, _, _ := loadConfig([]string{"PRESENCE_RATE_BURST=0"})
	if c.RateBurst != 1 {
		t.Errorf("burst %d, want 1", c.RateBurst)
	}
}

func TestConfigOrigins(t *testing.T) {
	for _, tc := range []struct {
		value string
		want  []string // nil = refused
	}{
		{"*", []string{"*"}},
		{"https://a.example, HTTP://B.example:8080", []string{"https://a.example", "http://b.example:8080"}},
		{"https://a.example:443,http://a.example:80", []string{"https://a.example", "http://a.example"}},
		{"https://a.example:80", []string{"https://a.example:80"}},
		{"capacitor://localhost,*", []string{"capacitor://localhost", "*"}},
		{"http://[::1]:3000", []string{"http://[::1]:3000"}},
		{"https://a.example/", nil},
		{"https://a.example/path", nil},
		{"https://a.example?q", nil},
		{"https://u@a.example", nil},
		{"https://*.example", nil},
		{"https://a.example:0", nil},
		{"https://a.example:65536", nil},
		{"https://a.example:", nil},
		{"https://:443", nil},
		{"a.example", nil},
		{"localhost:3000", nil},
		{"https://a.example,", nil},
		{"null,FILE://", []string{"null", "file://"}},
		{"wss://a.example:443,ws://a.example:80", []string{"wss://a.example", "ws://a.example"}},
		{"http://[::1]:80", []string{"http://[::1]"}},
		{"file://host/path", nil},
		{"file:", nil},
		{"https://a.example:0x50", nil},
	} {
		c, _, errs := loadConfig([]string{"PRESENCE_ORIGINS=" + tc.value})
		if tc.want == nil && len(errs) != 1 || tc.want != nil && !slices.Equal(c.Origins, tc.want) {
			t.Errorf("%s: got %q %q, want %q", tc.value, c.Origins, errs, tc.want)
		}
	}
}

// FuzzConfig looks for a value that gets past the checks, or whose refusal does not name its variable.
func FuzzConfig(f *testing.F) {
	f.Add(uint(1), "redis://u:hush@h:1?addr=h:2")
	f.Add(uint(19), "https://a.example,*")
	f.Add(uint(20), "hush")
	f.Fuzz(func(t *testing.T, which uint, value string) {
		all := settings()
		s := all[which%uint(len(all))]
		c, _, errs := loadConfig([]string{s.name + "=" + value})
		for _, err := range errs {
			if !strings.HasPrefix(err.Error(), s.name+"=") {
				t.Errorf("%s=%q: %v", s.name, value, err)
			}
		}
		if len(errs) == 0 && (c.TTL <= 0 || c.ReaperLookback <= 0 || c.RateBurst <= 0 && c.RatePerSecond > 0 || len(c.Origins) == 0) {
			t.Errorf("%s=%q gives %+v", s.name, value, c)
		}
	})
}

func TestTheCollectorIsTheOperatorsToSet(t *testing.T) {
	for variable, given := range map[string]bool{"GOGC=50": true, "GOMEMLIMIT=1GiB": true, "GOGC=": false, "GOMAXPROCS=2": false} {
		if config, _, errs := loadConfig([]string{variable}); config.CollectorGiven != given || len(errs) > 0 {
			t.Errorf("%s: given is %v, %v", variable, config.CollectorGiven, errs)
		}
	}
}
