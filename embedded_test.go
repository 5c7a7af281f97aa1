package main

import (
	"strings"
	"testing"
	"time"
)

// TestEmbeddedRedisAges lets keys expire although nobody drives a clock but the server.
func TestEmbeddedRedisAges(t *testing.T) {
	e := startEmbedded(t)
	rdb := backend{url: e.url}.open(t)
	if err := rdb.Set(t.Context(), "short", 1, 100*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.Set(t.Context(), "long", 1, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the key expires", func() bool { return rdb.Exists(t.Context(), "short").Val() == 0 })
	if left := rdb.PTTL(t.Context(), "long").Val(); left < 59*time.Minute || left >= time.Hour {
		t.Errorf("an hour has %v left", left)
	}
}

// TestEmbeddedRedisTime has one clock for TIME and for the age of keys. With
// FastForward instead, the moment at which a key expires would drift.
func TestEmbeddedRedisTime(t *testing.T) {
	t.Parallel()
	e := startEmbedded(t)
	rdb := backend{url: e.url}.open(t)
	before := time.Now().Add(-20 * time.Millisecond)
	first := rdb.Time(t.Context()).Val()
	if first.Before(before) || first.After(time.Now()) {
		t.Errorf("TIME is %v, the time %v", first, time.Now())
	}
	if err := rdb.Set(t.Context(), "key", 1, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	expires := rdb.PExpireTime(t.Context(), "key").Val()
	eventually(t, 5*time.Second, "TIME goes on by 300 ms", func() bool {
		return rdb.Time(t.Context()).Val().Sub(first) > 300*time.Millisecond
	})
	if drift := rdb.PExpireTime(t.Context(), "key").Val() - expires; drift.Abs() > 2*time.Millisecond {
		t.Errorf("the time to expire moved by %v", drift)
	}
}

// TestEmbeddedRedisStandsStillInScripts has no key expire between two looks of one script.
func TestEmbeddedRedisStandsStillInScripts(t *testing.T) {
	e := startEmbedded(t)
	rdb := backend{url: e.url}.open(t)
	const script = `
		local first = redis.call('TIME')
		for i = 1, 2000 do redis.call('EXISTS', KEYS[1]) end
		local last = redis.call('TIME')
		return first[1] == last[1] and first[2] == last[2]`
	if same, err := rdb.Eval(t.Context(), script, []string{"key"}).Bool(); !same || err != nil {
		t.Errorf("TIME goes on within a script: %v", err)
	}
}

// TestEmbeddedRedisIsFound is how a second server on the machine shares the first one's.
func TestEmbeddedRedisIsFound(t *testing.T) {
	addr := "localhost:" + freePort()
	if redisListening(t.Context(), addr) {
		t.Fatal("found before it is started")
	}
	e, err := startEmbeddedRedis(addr)
	if err != nil {
		t.Fatal(err)
	}
	if !redisListening(t.Context(), addr) {
		t.Error("not found")
	}
	if second, err := startEmbeddedRedis(addr); err == nil {
		second.close()
		t.Error("two at one address")
	} else if !strings.Contains(err.Error(), addr[len("localhost"):]) {
		t.Errorf("the error does not name the address: %v", err)
	}
	e.close()
	if redisListening(t.Context(), addr) {
		t.Error("found after it is closed")
	}
}

// startEmbedded starts one for this test alone.
func startEmbedded(t *testing.T) *embeddedRedis {
	t.Helper()
	e, err := startEmbeddedRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	return e
}
