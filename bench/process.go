package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = 10 * time.Second
	stopTime  = 10 * time.Second
	portTries = 5 // of a server whose port somebody else took first
)

var errPortTaken = errors.New("somebody else took the port")

// process is a program that this one has started.
type process struct {
	cmd   *exec.Cmd
	log   string        // file with its output
	ended chan struct{} // closed when it has
}

// start runs a program whose output goes to a file, and waits until it is ready.
func start(ctx context.Context, log string, cmd *exec.Cmd, ready func() bool) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: log, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // how it ended does not matter once it has
	}()
	if !poll(ctx, startTime, func() bool { return p.over() || ready() }) || p.over() {
		p.stop(syscall.SIGKILL)
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%s does not start: %s", cmd.Path, p.lastWords()))
	}
	return p, nil
}

func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// stop signals the process and waits for its end. One that takes too long is killed.
func (p *process) stop(signal syscall.Signal) {
	_ = p.cmd.Process.Signal(signal) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// lastWords is the end of what it printed.
func (p *process) lastWords() string {
	b, _ := os.ReadFile(p.log)
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-1000):])
}

// buildServer compiles the server of this repository.
func buildServer(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "presence")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "presence").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return binary, nil
}

// site is the servers and the Redis of one trial.
type site struct {
	nodes   []string // URLs
	meter   meter
	servers []*process
	redis   *process // nil if it is not ours
}

// open starts what the settings do not name as running already. What has been started is in the site, also after an error.
func (s *site) open(ctx context.Context, t trial) error {
	redis := t.settings.redis
	running := strings.HasPrefix(t.settings.server, "http://")
	if redis == "" && !running {
		var err error
		if redis, err = s.startRedis(ctx, t.dir); err != nil {
			return err
		}
	}
	if running {
		s.nodes = []string{strings.TrimSuffix(t.settings.server, "/")}
		return nil
	}
	for i := range t.settings.nodes {
		err := s.startServer(ctx, t, i, redis)
		for range portTries - 1 {
			if !errors.Is(err, errPortTaken) {
				break
			}
			err = s.startServer(ctx, t, i, redis)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *site) startRedis(ctx context.Context, dir string) (url string, err error) {
	address, err := freeAddress()
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.Command("redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", dir)
	s.redis, err = start(ctx, filepath.Join(dir, "redis.log"), cmd, func() bool {
		conn, err := net.Dial("tcp", address)
		return err == nil && conn.Close() == nil
	})
	if err != nil {
		return "", err
	}
	s.meter.redis = []int{s.redis.cmd.Process.Pid}
	return "redis://" + address, nil
}

func (s *site) startServer(ctx context.Context, t trial, number int, redis string) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.Command(t.settings.server)
	if a := t.mode.attack; a != nil && a.files > 0 {
		cmd = exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0"`, a.files), t.settings.server)
	}
	cmd.Env = append(os.Environ(), "PORT="+port, "REDIS_URL="+redis, "PRESENCE_RATE_PER_SECOND=0")
	cmd.Env = append(cmd.Env, t.mode.env...)
	p, err := start(ctx, filepath.Join(t.dir, "server-"+strconv.Itoa(number)+".log"), cmd, func() bool {
		answer, err := http.Get("http://" + address + "/")
		return err == nil && answer.Body.Close() == nil
	})
	if err != nil && strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
		return fmt.Errorf("%w: %w", errPortTaken, err)
	}
	if err != nil {
		return err
	}
	s.servers = append(s.servers, p)
	s.nodes = append(s.nodes, "http://"+address)
	s.meter.servers = append(s.meter.servers, p.cmd.Process.Pid)
	return nil
}

// freeAddress is one that nobody listens on. Somebody else may take it before the server does.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// close stops what was started. Servers take leave only of a Redis that lives on.
func (s *site) close() {
	signal := syscall.SIGTERM
	if s.redis != nil {
		signal = syscall.SIGKILL
	}
	for _, p := range s.servers {
		p.stop(signal)
	}
	if s.redis != nil {
		s.redis.stop(syscall.SIGKILL)
	}
}
