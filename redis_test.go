package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// TestOpenRedis needs the address of one server only, of whatever kind it is.
func TestOpenRedis(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		rdb := b.open(t)
		if _, isCluster := rdb.(*redis.ClusterClient); isCluster != b.cluster {
			t.Errorf("got a %T", rdb)
		}
		for i := range 20 { // enough to meet every server of a cluster
			key := fmt.Sprintf("%s-%d", uniqueRoom(t), i)
			if err := rdb.Set(t.Context(), key, i, time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
			if got, err := rdb.Get(t.Context(), key).Int(); got != i || err != nil {
				t.Errorf("got %d, %v", got, err)
			}
		}
	})
}

// TestOpenClusterByAddresses starts where the first address is of no use.
func TestOpenClusterByAddresses(t *testing.T) {
	b := redisCluster(t)
	rdb, err := openRedis(t.Context(), strings.Replace(b.tester, "@", "@127.0.0.1:1?addr=", 1), redisLogin{})
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	if err := rdb.Set(t.Context(), uniqueRoom(t), 1, time.Minute).Err(); err != nil {
		t.Error(err)
	}
}

// TestOpenRedisAsUser logs in as a user that may do little beside what it is for.
func TestOpenRedisAsUser(t *testing.T) {
	p := spawnRedis(t, "--requirepass", "hush")
	admin := backend{url: "redis://:hush@" + p.addr}.open(t)
	err := admin.Do(t.Context(), "ACL", "SETUSER", "bob", "on", ">hu$h%", "~prs:*", "&*", "+@all", "-@admin", "-@dangerous", "-cluster").Err()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ login, want string }{
		{":hush", ""},
		{"bob:hu$h%25", ""},
		{"bob:wrong", "WRONGPASS"},
		{"", "NOAUTH"},
	} {
		rdb, err := openRedis(t.Context(), "redis://"+tc.login+"@"+p.addr, redisLogin{})
		if err == nil {
			err = rdb.Set(t.Context(), "prs:key", 1, 0).Err()
			rdb.Close()
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.login, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), "hu") || strings.Contains(err.Error(), "bob")) {
			t.Errorf("%s: the login is shown: %v", tc.login, err)
		}
	}
}

func TestOpenRedisByUnixSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "redis.sock")
	spawnRedis(t, "--unixsocket", socket)
	rdb, err := openRedis(t.Context(), "unix://"+socket, redisLogin{})
	if err != nil {
		t.Fatal(err)
	}
	rdb.Close()
}

func TestOpenRedisByTLS(t *testing.T) {
	certFile, keyFile := selfSigned(t)
	port := freePort()
	spawnRedis(t, "--tls-port", port, "--tls-cert-file", certFile, "--tls-key-file", keyFile,
		"--tls-ca-cert-file", certFile, "--tls-auth-clients", "no")
	for _, tc := range []struct{ query, want string }{
		{"", "certificate signed by unknown authority"},
		{"?skip_verify=true", ""},
	} {
		rdb, err := openRedis(t.Context(), "rediss://127.0.0.1:"+port+tc.query, redisLogin{})
		if err == nil {
			rdb.Close()
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%q: got %v, want %q", tc.query, err, tc.want)
		}
	}
}

// selfSigned makes a certificate for 127.0.0.1 that nobody vouches for.
func selfSigned(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", private)
}

// TestOpenRedisBySentinel asks a sentinel for the master, and refuses to take the
// sentinel for a Redis.
func TestOpenRedisBySentinel(t *testing.T) {
	master := spawnRedis(t)
	sentinel := spawnSentinel(t, "people", master)
	eventually(t, 5*time.Second, "the sentinel knows the master", func() bool {
		rdb, err := openRedis(t.Context(), sentinel.url+"?master_name=people", redisLogin{})
		if err != nil {
			return false
		}
		defer rdb.Close()
		return rdb.Set(t.Context(), "key", 1, 0).Err() == nil
	})
	if _, err := openRedis(t.Context(), sentinel.url, redisLogin{}); err == nil || !strings.Contains(err.Error(), "master_name") {
		t.Errorf("a sentinel as a Redis: %v", err)
	}
	if _, err := openRedis(t.Context(), sentinel.url+"?master_name=other", redisLogin{}); err == nil {
		t.Error("a master that nobody knows: no error")
	}
}

// spawnSentinel starts a sentinel that watches the master, by a file: it takes no options.
func spawnSentinel(t *testing.T, name string, master *redisProcess) *redisProcess {
	t.Helper()
	host, port, err := net.SplitHostPort(master.addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &redisProcess{dir: t.TempDir(), addr: "127.0.0.1:" + freePort(), t: t}
	p.url = "redis://" + p.addr
	config := filepath.Join(p.dir, "sentinel.conf")
	p.args = []string{config, "--sentinel"}
	lines := fmt.Sprintf("bind 127.0.0.1\nport %s\ndir %s\nsentinel monitor %s %s %s 1\n",
		strings.TrimPrefix(p.addr, "127.0.0.1:"), p.dir, name, host, port)
	if err := os.WriteFile(config, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

// TestOpenRedisFails tells what is wrong in one line without credentials, and soon.
func TestOpenRedisFails(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for _, url := range []string{
		"redis://bob:hush@127.0.0.1:1",
		"redis://bob:hush@127.0.0.1:1?addr=127.0.0.1:2",
		"redis://bob:hush@127.0.0.1:1?master_name=m&password=hush",
		"redis://bob:hush@" + mute.Addr().String(),
		"redis://bob:hush@h:port",
		"gopher://bob:hush@h",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		start := time.Now()
		rdb, err := openRedis(ctx, url, redisLogin{})
		cancel()
		if err == nil {
			rdb.Close()
			t.Errorf("%s: no error", url)
			continue
		}
		if text := err.Error(); strings.Contains(text, "bob") || strings.Contains(text, "hush") || strings.Contains(text, "\n") {
			t.Errorf("%s: %q", url, text)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%s: took %v", url, took)
		}
	}
}

// TestRedisNotSentAgain counts how often a command arrives whose answer never does.
func TestRedisNotSentAgain(t *testing.T) {
	b := miniRedis(t)
	rdb := b.open(t)
	var arrived atomic.Int32
	b.mini.Server().SetPreHook(func(c *server.Peer, cmd string, _ ...string) bool {
		if cmd != "INCR" {
			return false
		}
		arrived.Add(1)
		c.Close()
		return true
	})
	if err := rdb.Incr(t.Context(), "key").Err(); err == nil {
		t.Error("no error for a lost answer")
	}
	_, err := rdb.Pipelined(t.Context(), func(pipe redis.Pipeliner) error { return pipe.Incr(t.Context(), "key").Err() })
	if err == nil {
		t.Error("no error for the lost answer of a pipeline")
	}
	if n := arrived.Load(); n != 2 {
		t.Errorf("2 commands arrived %d times", n)
	}
}

func TestAPolicyThatDropsKeysIsWarnedOf(t *testing.T) {
	for policy, warns := range map[string]bool{"noeviction": false, "allkeys-lru": true, "volatile-ttl": true} {
		p := spawnRedis(t, "--maxmemory-policy", policy)
		for _, url := range []string{p.url, asUser("presence", p.url)} {
			out := &lockedBuffer{}
			warnOfEviction(t.Context(), backend{url: url}.open(t), slog.New(slog.NewTextHandler(out, nil)))
			if told := strings.Contains(out.String(), "policy="+policy); told != warns || strings.Contains(out.String(), "secret") {
				t.Errorf("%s: it says %q", policy, out)
			}
		}
	}
	out := &lockedBuffer{}
	for _, silent := range []backend{miniRedis(t), redisCluster(t)} {
		warnOfEviction(t.Context(), silent.open(t), slog.New(slog.NewTextHandler(out, nil)))
	}
	if out.String() != "" {
		t.Errorf("it says %q", out)
	}
}
