package main

import (
	"bytes"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// lockedBuffer may be read while a program writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// program is a run of the server, inside this process or in one of its own.
type program struct {
	t      testing.TB
	out    *lockedBuffer
	signal func(os.Signal)
	exited chan struct{} // closed after code is set
	code   int
	pid    int // of a process of its own
}

// startProgram calls run with these variables as the environment. A test that did not stop it has it stopped.
func startProgram(t testing.TB, environ ...string) *program {
	t.Helper()
	before, output, flags := slog.Default(), log.Writer(), log.Flags()
	signals := make(chan os.Signal, 2)
	p := &program{t: t, out: &lockedBuffer{}, exited: make(chan struct{}), signal: func(s os.Signal) { signals <- s }}
	go func() {
		defer close(p.exited)
		p.code = run(environ, p.out, signals)
	}()
	t.Cleanup(func() {
		p.end()
		slog.SetDefault(before)
		log.SetOutput(output)
		log.SetFlags(flags)
	})
	return p
}

// end stops the program if it still runs.
func (p *program) end() {
	select {
	case <-p.exited:
	default:
		p.signal(syscall.SIGTERM)
		p.wait(15 * time.Second)
	}
}

// wait gives the exit code.
func (p *program) wait(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.code
	case <-time.After(within):
		p.t.Fatalf("it has not ended after %v:\n%s", within, p.out)
		return 0
	}
}

// address is where the program listens.
func (p *program) address() string {
	p.t.Helper()
	listening := regexp.MustCompile(`msg=listening address=\S*:(\d+)`)
	var found []string
	listens := func() bool {
		found = listening.FindStringSubmatch(p.out.String())
		return found != nil
	}
	if !poll(2*startTimeout, listens) {
		p.t.Fatalf("the program does not listen:\n%s", p.out)
	}
	return "127.0.0.1:" + found[1]
}

func TestBadSettingsEndTheStart(t *testing.T) {
	p := startProgram(t, "PORT=many", "REDIS_URL=http://ann:pa55@localhost:6379", "PRESENCE_TTL_MS=1.5", "PRESENCE_DEMO=perhaps",
		"PRESENCE_API_KEY=a secret", "PRESENCE_MAX_ID_BYTES=100")
	if code := p.wait(5 * time.Second); code != exitSettings {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(p.out.String()), "\n")
	want := []string{"PORT", "REDIS_URL", "PRESENCE_TTL_MS", "PRESENCE_API_KEY", "PRESENCE_DEMO"}
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), p.out)
	}
	for i, name := range want {
		if strings.Count(p.out.String(), name+"=") != 1 || !strings.HasPrefix(lines[i], name+"=") {
			t.Errorf("line %d is %q, want one of %s", i, lines[i], name)
		}
	}
	for _, secret := range []string{"ann", "pa55", "a secret"} {
		if strings.Contains(p.out.String(), secret) {
			t.Errorf("%q is shown:\n%s", secret, p.out)
		}
	}
}

func TestAStartThatFailsIsOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	closed := freePort()
	for name, tc := range map[string]struct {
		environ []string
		says    string
	}{
		"no Redis":     {[]string{"PORT=0", "REDIS_URL=redis://ann:pa55@127.0.0.1:" + closed + "/0"}, "redis://127.0.0.1:" + closed},
		"port in use":  {[]string{"PORT=" + port, "REDIS_URL=" + miniRedis(t).url}, port},
		"not a Redis":  {[]string{"PORT=0", "REDIS_URL=redis://ann:pa55@" + notRedis(t)}, "Redis"},
		"wrong secret": {[]string{"PORT=0", "REDIS_URL=" + strings.Replace(miniRedisWithPassword(t), "right", "wrong", 1)}, "Redis"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProgram(t, tc.environ...)
			if code := p.wait(15 * time.Second); code != exitFailure {
				t.Errorf("exit code %d", code)
			}
			text := p.out.String()
			if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "presence: ") || !strings.Contains(text, tc.says) {
				t.Errorf("it says\n%s", text)
			}
			for _, secret := range []string{"ann:", "pa55", "wrong"} {
				if strings.Contains(text, secret) {
					t.Errorf("%q is shown:\n%s", secret, text)
				}
			}
		})
	}
}

// notRedis is the address of a server that answers with something else.
func notRedis(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return l.Addr().String()
}

func miniRedisWithPassword(t *testing.T) (url string) {
	t.Helper()
	b := miniRedis(t)
	b.mini.RequireUserAuth("ann", "right")
	return "redis://ann:right@" + b.mini.Addr()
}

// TestANormalStop has all members of a node leave, as another node sees it, and closes their sockets so that they come back.
func TestANormalStop(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		p := startProgram(t, "PORT=0", "REDIS_URL="+b.url, "PRESENCE_DRAIN_MS=0")
		witness := startNodeFor(t, b).member(t, room, "witness", "{}")
		var members []*user
		for range 10 {
			u := dialUser(t, p.address())
			u.join(room, "ann", "{}")
			members = append(members, u)
		}
		start := time.Now()
		p.signal(syscall.SIGTERM)
		for _, u := range members {
			assertClosedForNow(t, u)
			if e := witness.sees(EventLeave, u.id); e.Reason != string(ReasonDisconnected) {
				t.Errorf("left with %q", e.Reason)
			}
		}
		if code := p.wait(10*time.Second - time.Since(start)); code != exitOK {
			t.Errorf("exit code %d", code)
		}
		said := strings.Replace(p.out.String(), `level=WARN msg="no key for tokens is set`, "", 1)
		for _, level := range []string{"level=ERROR", "level=WARN"} {
			if strings.Contains(said, level) {
				t.Errorf("it complains:\n%s", p.out)
			}
		}
	})
}

// assertClosedForNow reads up to the end: a DISCONNECT would keep socket.io-client away for good.
func assertClosedForNow(t *testing.T, u *user) {
	t.Helper()
	for {
		op, packet, err := u.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the connection was not closed")
		}
		if err != nil {
			return
		}
		if op == ws.OpText && strings.HasPrefix(packet, "41") {
			t.Fatal("DISCONNECT was sent")
		}
	}
}

// TestAStopWhileRedisHangs waits for Redis, takes no connections meanwhile, and leaves nothing behind.
func TestAStopWhileRedisHangs(t *testing.T) {
	t.Parallel()
	server := spawnRedis(t)
	p := startProgram(t, "PORT=0", "REDIS_URL="+server.url, "PRESENCE_DRAIN_MS=0")
	addr := p.address()
	u := dialUser(t, addr)
	u.join("home", "ann", "{}")
	server.signal(syscall.SIGSTOP)
	p.signal(syscall.SIGTERM)
	eventually(t, 5*time.Second, "no more connections", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	server.signal(syscall.SIGCONT)
	if code := p.wait(10 * time.Second); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	rdb := backend{url: server.url}.open(t)
	if count := rdb.HLen(t.Context(), keysOf("home").meta()).Val(); count != 0 {
		t.Errorf("%d members stay in the room:\n%s", count, p.out)
	}
}

// TestAnEmbeddedRedisIsShared starts two nodes that are told of no Redis, on a machine without one.
func TestAnEmbeddedRedisIsShared(t *testing.T) {
	config, _, _ := loadConfig([]string{"PORT=0"})
	config.RedisURL = "redis://localhost:" + freePort() // 6379 may be in use here
	if config.RedisURLGiven {
		t.Fatal("the settings name a Redis")
	}
	first := mustStart(t, config)
	second := mustStart(t, config)
	if first.embedded == nil || second.embedded != nil {
		t.Fatalf("embedded: %v, %v", first.embedded, second.embedded)
	}
	witness, u := first.member(t, "home", "witness", "{}"), second.member(t, "home", "ann", `{"a":1}`)
	if e := witness.sees(EventJoin, u.id); string(e.State) != `{"a":1}` {
		t.Errorf("joined as %+v", e)
	}
	_ = u.conn.Close()
	witness.sees(EventLeave, u.id)

	config.RedisURLGiven = true
	config.RedisURL = "redis://localhost:" + freePort()
	if n, err := startNode(config, testLogger(t)); err == nil {
		n.stop()
		t.Error("a Redis is embedded although another is asked for")
	}
}

// mustStart starts a node that is stopped at the end of the test, after those that it started later.
func mustStart(t *testing.T, config Config) *node {
	t.Helper()
	n, err := startNode(config, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	return n
}

// sharedBinary is the program as its users build it. The tests of the process build it once.
var sharedBinary struct {
	sync.Mutex
	dir string // "" = not built yet
}

// buildBinary builds the program, unless another test has, and gives its path.
func buildBinary(t testing.TB) string {
	t.Helper()
	sharedBinary.Lock()
	defer sharedBinary.Unlock()
	if sharedBinary.dir == "" {
		dir, err := os.MkdirTemp("", "presence-binary-")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "presence"), ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			_ = os.RemoveAll(dir)
			t.Fatalf("go build: %v\n%s", err, out)
		}
		sharedBinary.dir = dir
	}
	return filepath.Join(sharedBinary.dir, "presence")
}

// startProcess runs a binary with these variables as its only environment. A test that did not stop it has it killed.
func startProcess(t testing.TB, binary string, environ ...string) *program {
	t.Helper()
	cmd := exec.Command(binary)
	p := &program{t: t, out: &lockedBuffer{}, exited: make(chan struct{})}
	cmd.Env, cmd.Stdout, cmd.Stderr = environ, p.out, p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	p.signal = func(s os.Signal) { _ = cmd.Process.Signal(s) } // it may have ended
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // the code tells
		p.code = cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		<-p.exited
	})
	return p
}

func TestTheBinary(t *testing.T) {
	t.Parallel()
	binary := buildBinary(t)
	t.Run("version", func(t *testing.T) {
		for _, argument := range []string{"-version", "--version"} {
			out, err := exec.CommandContext(t.Context(), binary, argument).Output()
			if want := "presence " + version + ", go1."; err != nil || !strings.HasPrefix(string(out), want) || !strings.Contains(string(out), ", revision ") {
				t.Errorf("%s prints %q, %v, want %s…", argument, out, err, want)
			}
		}
		err := exec.CommandContext(t.Context(), binary, "-port=3000").Run()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != exitSettings {
			t.Errorf("another argument ends with %v", err)
		}
	})
	t.Run("bad settings", func(t *testing.T) {
		if code := startProcess(t, binary, "PORT=many").wait(5 * time.Second); code != exitSettings {
			t.Errorf("exit code %d", code)
		}
	})
	for name, stop := range map[string]os.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": os.Interrupt, "SIGHUP": syscall.SIGHUP} {
		t.Run(name, func(t *testing.T) {
			p := startProcess(t, binary, "PORT=0", "REDIS_URL="+miniRedis(t).url, "PRESENCE_DRAIN_MS=0")
			dialUser(t, p.address()).join("home", "ann", "{}")
			p.signal(stop)
			if code := p.wait(10 * time.Second); code != exitOK {
				t.Errorf("exit code %d:\n%s", code, p.out)
			}
		})
	}
	t.Run("second signal", func(t *testing.T) {
		server := spawnRedis(t)
		p := startProcess(t, binary, "PORT=0", "REDIS_URL="+server.url)
		u := dialUser(t, p.address())
		u.join("home", "ann", "{}")
		server.signal(syscall.SIGSTOP)
		p.signal(syscall.SIGTERM)
		eventually(t, 5*time.Second, "the first signal has arrived", func() bool { return strings.Contains(p.out.String(), "stopping") })
		start := time.Now()
		p.signal(syscall.SIGTERM)
		if code := p.wait(5 * time.Second); code != exitFailure || time.Since(start) > time.Second {
			t.Errorf("exit code %d after %v", code, time.Since(start))
		}
	})
}
