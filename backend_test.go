package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// howToGetRedis is what a skipped test says where the binary is missing.
const howToGetRedis = "redis-server 7 or newer in PATH (apt-get install redis-server)"

// startTimeout bounds the start of one Redis server, and the forming of a cluster.
const startTimeout = 20 * time.Second

// parallelTests is how many of the tests that mostly wait for other processes run at the same time.
const parallelTests = "6"

// TestMain stops what the tests started, and fails when they left a goroutine behind, or broke the order of locks.
func TestMain(m *testing.M) {
	redis.SetLogger(redisLog{})                  // lost connections are what many tests are about
	_ = flag.Set("test.parallel", parallelTests) // before the flags of the command are read
	before := goroutines()
	code := m.Run()
	stopServers()
	_ = os.RemoveAll(sharedBinary.dir) // "" is nothing
	for _, fault := range brokenLockOrder() {
		fmt.Fprintf(os.Stderr, "the order of locks is broken: %s\n", fault)
		code = max(code, 1)
	}
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" {
		if leaked := leakedGoroutines(before, 5*time.Second); leaked != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind by the tests:\n\n%s\n", leaked)
			code = 1
		}
	}
	os.Exit(code)
}

// goroutines gives the stack of every goroutine but the calling one, by the id in its first line.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for _, stack := range strings.Split(string(buf), "\n\n")[1:] {
		id, _, _ := strings.Cut(stack, " [")
		all[id] = stack
	}
	return all
}

// leakedGoroutines gives the stacks that were not there before and do not end within the time.
func leakedGoroutines(before map[string]string, within time.Duration) string {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	var left map[string]string
	poll(within, func() bool {
		left = goroutines()
		maps.DeleteFunc(left, func(id, stack string) bool {
			_, known := before[id]
			return known || strings.Contains(stack, "os/signal.loop")
		})
		return len(left) == 0
	})
	var b strings.Builder
	for _, stack := range left {
		b.WriteString(stack + "\n\n")
	}
	return b.String()
}

// backend is one kind of Redis that the tests run against.
type backend struct {
	name    string
	url     string // on a shared server for the user that the documents publish
	tester  string // for one who may look and spoil as well, as which what shares a client with a test runs; "" = url
	cluster bool
	real    bool
	// mini is nil for a real server. It belongs to the test alone: SetTime moves
	// its TIME and ages its keys, else both follow the machine's clock.
	mini *miniredis.Miniredis
}

// eachBackend runs the test against miniredis, one Redis server and a cluster.
func eachBackend(t *testing.T, body func(t *testing.T, b backend)) {
	t.Helper()
	kinds := []struct {
		name  string
		start func(testing.TB) backend
	}{{"miniredis", miniRedis}, {"redis", realRedis}, {"cluster", redisCluster}}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) { body(t, kind.start(t)) })
	}
}

// miniRedis starts a miniredis for this test alone.
func miniRedis(t testing.TB) backend {
	t.Helper()
	mini := miniredis.RunT(t)
	mini.ClockTTL(true)
	return backend{name: "miniredis", url: "redis://" + mini.Addr(), mini: mini}
}

func (b backend) testURL() string { return cmp.Or(b.tester, b.url) }

// open connects a client that is closed with the test.
func (b backend) open(t testing.TB) redis.UniversalClient {
	t.Helper()
	rdb, err := openRedis(t.Context(), b.testURL(), redisLogin{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdb.Close() })
	return rdb
}

// testerMay is what tests do to a server beyond what the program does.
const testerMay = "~* &* +incr +rename +restore +keys +scan +migrate +cluster +rpush +lpush +smembers +script|flush +script|load +client|kill +cluster|keyslot +pubsub|numsub +pubsub|shardnumsub +ttl +pttl +dump"

// redisUsers are the options for the user that the documents publish, by what it says after ACL SETUSER, and for tests.
var redisUsers = sync.OnceValue(func() []string {
	rule := publishedUser()
	_, rights, _ := strings.Cut(rule, " ")
	return strings.Fields("--user " + rule + " --user tester " + rights + " " + testerMay)
})

// asUser is the URL of a server for one of the two.
func asUser(name, url string) string {
	return strings.Replace(url, "redis://", "redis://"+name+":secret@", 1)
}

// redisProcess is a redis-server on a free loopback port, without persistence.
type redisProcess struct {
	url     string
	addr    string
	busPort string
	dir     string
	args    []string
	environ []string // beyond that of the test

	cmd    *exec.Cmd
	exited chan struct{} // closed once cmd has been waited for
	t      testing.TB    // the test that it belongs to, nil for a shared server
}

// spawnRedis starts a server for this test alone, which may stop, restart or hang it.
// args are further options of redis-server, which win over the usual ones.
func spawnRedis(t testing.TB, args ...string) *redisProcess {
	t.Helper()
	needRedis(t)
	p, err := startRedis(args)
	if err != nil {
		t.Fatal(err)
	}
	p.t = t
	t.Cleanup(p.remove)
	return p
}

// startRedis looks for free ports until a server starts on them: another process
// may take one between the look and the start.
func startRedis(args []string, environ ...string) (*redisProcess, error) {
	dir, err := os.MkdirTemp("", "presence-redis-")
	if err != nil {
		return nil, err
	}
	for range 5 {
		port, bus := freePort(), freePort()
		addr := "127.0.0.1:" + port
		p := &redisProcess{url: "redis://" + addr, addr: addr, busPort: bus, dir: dir, environ: environ}
		p.args = append([]string{
			"--bind", "127.0.0.1", "--port", port, "--cluster-port", bus,
			"--save", "", "--appendonly", "no", "--dir", dir,
		}, append(slices.Clip(redisUsers()), args...)...)
		if err = p.start(); err == nil {
			return p, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(dir))
}

// start runs the server and returns when it answers.
func (p *redisProcess) start() error {
	log, err := os.Create(filepath.Join(p.dir, "redis.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command("redis-server", p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), p.environ...)
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // a killed server has no other news
		close(exited)
	}(p.cmd, p.exited)
	if !poll(startTimeout, func() bool { return p.gone() || p.answers() }) || p.gone() {
		p.stop()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("redis-server %q does not start: %s", p.args, text)
	}
	return nil
}

// gone tells whether the process has ended.
func (p *redisProcess) gone() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// answers tells whether the server speaks; a refusal for want of a password is an answer too.
func (p *redisProcess) answers() bool {
	conn, err := net.DialTimeout("tcp", p.addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(time.Second)) != nil {
		return false
	}
	fmt.Fprint(conn, "PING\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && !strings.HasPrefix(line, "-LOADING")
}

// stop kills the server, as a crash would.
func (p *redisProcess) stop() {
	_ = p.cmd.Process.Kill() // it may have ended before
	<-p.exited
}

// restart brings the server back, empty, on the same port.
func (p *redisProcess) restart() {
	p.t.Helper()
	p.stop()
	if err := p.start(); err != nil {
		p.t.Fatal(err)
	}
}

// signal sends SIGSTOP, SIGCONT or another signal to the server.
func (p *redisProcess) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// remove stops the server and deletes its files.
func (p *redisProcess) remove() {
	p.stop()
	_ = os.RemoveAll(p.dir) // what stays is in the system's temporary directory
}

// testCluster is a cluster of three masters without replicas.
type testCluster struct {
	url   string // the address of one of them
	nodes []*redisProcess
}

// startCluster starts three servers and joins them into a cluster.
func startCluster() (*testCluster, error) {
	c := &testCluster{}
	for range 3 {
		p, err := startRedis([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "2000"})
		if err != nil {
			c.remove()
			return nil, err
		}
		c.nodes = append(c.nodes, p)
	}
	c.url = c.nodes[0].url
	if err := c.form(); err != nil {
		c.remove()
		return nil, err
	}
	return c, nil
}

// form shares out the slots, introduces the nodes, and waits until all of them agree.
func (c *testCluster) form() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	host, port, err := net.SplitHostPort(c.nodes[0].addr)
	if err != nil {
		return err
	}
	const slots = 16384
	for i, node := range c.nodes {
		rdb := redis.NewClient(&redis.Options{Addr: node.addr})
		defer rdb.Close()
		first, last := slots*i/len(c.nodes), slots*(i+1)/len(c.nodes)-1
		pipe := rdb.Pipeline()
		pipe.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		pipe.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", first, last)
		pipe.Do(ctx, "CLUSTER", "MEET", host, port, c.nodes[0].busPort)
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("form a cluster: %w", err)
		}
	}
	for _, node := range c.nodes {
		if !poll(startTimeout, func() bool { return node.inCluster(ctx, len(c.nodes)) }) {
			return fmt.Errorf("the cluster at %s does not come up", node.addr)
		}
	}
	return nil
}

// inCluster tells whether the node knows all others and serves its slots.
func (p *redisProcess) inCluster(ctx context.Context, nodes int) bool {
	rdb := redis.NewClient(&redis.Options{Addr: p.addr})
	defer rdb.Close()
	info, err := rdb.ClusterInfo(ctx).Result()
	return err == nil && strings.Contains(info, "cluster_state:ok") &&
		strings.Contains(info, fmt.Sprintf("cluster_size:%d\r", nodes))
}

// remove stops all nodes.
func (c *testCluster) remove() {
	for _, node := range c.nodes {
		node.remove()
	}
}

// freePort gives a loopback port that nobody listens on, below those that the
// system gives to outgoing connections, so that a restarted server finds it free.
func freePort() string {
	for {
		port := fmt.Sprint(20000 + mathrand.IntN(12000))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			l.Close()
			return port
		}
	}
}

// needRedis skips the test where there is no redis-server.
func needRedis(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	need(t, err == nil, howToGetRedis)
}

// need skips the test when something is missing that not every machine has. With
// PRESENCE_TEST_REQUIRE=1, as in CI, it fails instead.
func need(t testing.TB, have bool, howToGet string) {
	t.Helper()
	if have {
		return
	}
	if os.Getenv("PRESENCE_TEST_REQUIRE") == "1" {
		t.Fatalf("this test needs %s", howToGet)
	}
	t.Skipf("this test needs %s", howToGet)
}

// uniqueRoom names a room that no other test and no other run uses.
func uniqueRoom(t testing.TB) string {
	return t.Name() + "-" + rand.Text()[:8]
}

// eventually fails the test when cond does not become true in time.
func eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	if !poll(within, cond) {
		t.Fatalf("not within %v: %s", within, what)
	}
}

// poll asks cond every few milliseconds and tells whether it became true in time.
func poll(within time.Duration, cond func() bool) bool {
	end := time.Now().Add(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(end) {
			return false
		}
		<-tick.C
	}
	return true
}

// testLogger writes to the test's output. What logs must have ended with the test.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
