package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that writes when w is measured, as bench itself is.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-floor") {
		main()
		return
	}
	os.Exit(m.Run())
}

// needRedis skips a test where there is nothing to measure with, or fails it where that must not be.
func needRedis(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	switch {
	case err == nil && runtime.GOOS == "linux":
	case os.Getenv("PRESENCE_TEST_REQUIRE") == "1":
		t.Fatalf("needs Linux, and redis-server 7 or newer in PATH (apt-get install redis-server): %v", err)
	default:
		t.Skipf("needs Linux, and redis-server 7 or newer in PATH (apt-get install redis-server): %v", err)
	}
}

// takesLong skips a test, unless PRESENCE_TEST_LONG is set, as CI does.
func takesLong(t *testing.T) {
	t.Helper()
	if os.Getenv("PRESENCE_TEST_LONG") == "" {
		t.Skip("takes long: set PRESENCE_TEST_LONG=1 to run it")
	}
}

func TestEachModeRunsWithoutFaults(t *testing.T) {
	needRedis(t)
	server, err := buildServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else, under the race detector, each writer takes a second to end
	for _, m := range allModes() {
		if m.attack != nil {
			continue // see TestEachAttackIsReported
		}
		mode := m.name
		t.Run(mode, func(t *testing.T) {
			if mode != "heartbeat" {
				takesLong(t)
			}
			file := filepath.Join(t.TempDir(), "results.json")
			args := []string{"-mode", mode, "-server", server, "-clients", "20", "-rooms", "4", "-rate", "200", "-seconds", "0.3", "-nodes", "2",
				"-floor-rounds", "20", "-json", file}
			var out bytes.Buffer
			if err := run(t.Context(), args, &out); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			checkSmoke(t, lastResults(t, file).Results)
		})
	}
}

func TestTwoServersAreComparedInTurn(t *testing.T) {
	needRedis(t)
	server, err := buildServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	args := []string{"-mode", "heartbeat", "-server", server, "-against", server, "-pairs", "2", "-clients", "20", "-seconds", "0.3", "-floor-rounds", "20"}
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if text := out.String(); !strings.Contains(text, "heartbeat") || !strings.Contains(text, "the median of 2 pairs") || strings.Contains(text, "NaN") {
		t.Errorf("the table is\n%s", text)
	}
}

func checkSmoke(t *testing.T, results []result) {
	t.Helper()
	if len(results) != 1 {
		t.Fatalf("%d results", len(results))
	}
	r := results[0]
	crowd := strings.HasPrefix(r.Mode, "crowd")
	if r.FloorBefore <= 0 || r.FloorAfter <= 0 || r.Nodes != 2 || r.Clients != 20 || r.Rooms != 4 && !crowd {
		t.Errorf("got %+v", r)
	}
	switch {
	case crowd:
		if r.Operations == 0 || r.Mode == "crowd-all" && r.FramesPerReceiver*r.BytesPerReceiver == 0 || r.Server == nil || r.Redis == nil {
			t.Errorf("got %+v", r)
		}
		return
	case r.BytesPerMember > 0:
		if r.Operations == 0 || r.Server != nil || r.Redis == nil || r.Redis.Micros <= 0 || len(r.MasterPercent) == 1 {
			t.Errorf("got %+v, Redis %+v", r, r.Redis)
		}
		return
	}
	if strings.HasPrefix(r.Mode, "idle") {
		if r.KilobytesPerConnection == 0 || r.Operations != 0 {
			t.Errorf("got %+v", r)
		}
		return
	}
	if r.Operations == 0 || r.Server == nil || r.Server.W <= 0 || r.Redis == nil || r.Redis.W <= 0 || r.Answer == nil {
		t.Errorf("got %+v, server %+v, Redis %+v", r, r.Server, r.Redis)
	}
	if strings.HasPrefix(r.Mode, "fanout") && (r.Delivery == nil || r.Delivered == 0) {
		t.Errorf("got %+v", r)
	}
}

// Whatever ends a trial, no process of it stays.
func TestProcessesEndWithTheTrial(t *testing.T) {
	needRedis(t)
	ctx, cancel := context.WithCancel(t.Context())
	var s site
	defer s.close()
	if _, err := s.startRedis(ctx, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if s.redis.over() {
		t.Fatal("it ended before its site was closed")
	}
	s.close()
	if !s.redis.over() {
		t.Error("it goes on after its site was closed")
	}
}

func TestProgramThatDoesNotStart(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("needs sh")
	}
	_, err = start(t.Context(), filepath.Join(t.TempDir(), "log"), exec.Command(sh, "-c", "echo no luck; exit 3"), func() bool { return false })
	if err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("got %v", err)
	}
}

func TestPoll(t *testing.T) {
	left := 3
	if !poll(t.Context(), time.Minute, func() bool { left--; return left == 0 }) {
		t.Error("gave up")
	}
	if poll(t.Context(), time.Nanosecond, func() bool { return false }) {
		t.Error("came true")
	}
}
