package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// gatedWriter takes nothing before it is opened, and each write after an error that it is given.
type gatedWriter struct {
	lockedBuffer
	open   chan struct{}
	errors chan error
}

func newGatedWriter() *gatedWriter {
	return &gatedWriter{open: make(chan struct{}), errors: make(chan error, 1)}
}

func (w *gatedWriter) Write(p []byte) (int, error) {
	<-w.open
	select {
	case err := <-w.errors:
		return 0, err
	default:
		return w.lockedBuffer.Write(p)
	}
}

// TestALogThatIsNotReadHoldsUpNobody loses lines beyond its bound, counts and tells them, and keeps the others in order.
func TestALogThatIsNotReadHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGatedWriter()
		log := newLogs(out, Config{})
		filler := strings.Repeat("x", 1000)
		const lines = 3000
		for i := range lines { // would block for ever
			if i%maxLogAlike == 0 {
				<-time.After(logPeriod)
			}
			log.Info("line", "number", i, "filler", filler)
		}
		lost := log.lost.all()
		if lost["queue_full"] == 0 || lost["write_failed"]+lost["repeated"] != 0 {
			t.Errorf("lost %v", lost)
		}
		close(out.open)
		synctest.Wait()
		numbers := regexp.MustCompile(`number=(\d+)`).FindAllStringSubmatch(out.String(), -1)
		for i, found := range numbers {
			if found[1] != strconv.Itoa(i) {
				t.Fatalf("line %d is %s", i, found[0])
			}
		}
		if int64(len(numbers))+lost["queue_full"] != lines || !strings.Contains(out.String(), fmt.Sprintf("lines=%d", lost["queue_full"])) {
			t.Errorf("%d lines were written and %v lost:\n%.300s", len(numbers), lost, out.String()[len(out.String())-300:])
		}
		log.close()
	})
}

func TestAnOrderlyLogLosesNothing(t *testing.T) {
	out := &lockedBuffer{}
	log := newLogs(out, Config{LogFormat: "json"})
	for i := range maxLogAlike {
		log.Info("one kind", "number", i)
		log.With("conn", i).Warn("another kind")
		log.Debug("not at this level")
	}
	fmt.Fprintln(log.queue, "a plain line")
	log.close()
	if n := strings.Count(out.String(), "\n"); n != 2*maxLogAlike+1 || !strings.HasSuffix(out.String(), "}\na plain line\n") {
		t.Errorf("%d lines:\n%s", n, out)
	}
	if lost := log.lost.all(); lost["queue_full"]+lost["write_failed"]+lost["repeated"] != 0 {
		t.Errorf("lost %v", lost)
	}
}

func TestLinesThatCannotBeWrittenAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGatedWriter()
		close(out.open)
		log := newLogs(out, Config{})
		out.errors <- errors.New("no space left")
		log.Info("lost")
		synctest.Wait()
		log.Info("written")
		synctest.Wait()
		if lost := log.lost.all(); lost["write_failed"] != 1 {
			t.Errorf("lost %v", lost)
		}
		if text := out.String(); strings.Contains(text, "msg=lost") || strings.Count(text, "\n") != 2 || !strings.Contains(text, "msg=written") || !strings.Contains(text, "lines=1\n") {
			t.Errorf("it says\n%s", text)
		}
		log.close()
	})
}

// TestAlikeLinesAreSampled: of each level and message some are written in a second, and how many were left out.
func TestAlikeLinesAreSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &lockedBuffer{}
		log := newLogs(out, Config{})
		for i := range 3 * maxLogAlike {
			log.With("conn", i).Warn("failed", "event", i)
		}
		log.Info("failed") // of another level
		log.Warn("something else")
		synctest.Wait()
		if n := strings.Count(out.String(), "level=WARN msg=failed"); n != maxLogAlike || !strings.Contains(out.String(), "level=INFO msg=failed") || !strings.Contains(out.String(), "something else") {
			t.Errorf("%d lines:\n%s", n, out)
		}
		<-time.After(logPeriod) // nobody logs anything
		synctest.Wait()
		if told := fmt.Sprintf("level=WARN msg=%q of=failed lines=%d\n", "more lines of one kind were left out", 2*maxLogAlike); !strings.HasSuffix(out.String(), told) {
			t.Errorf("it does not end with %q:\n%s", told, out)
		}
		if n := log.lost.all()["repeated"]; n != 2*maxLogAlike {
			t.Errorf("%d are counted", n)
		}
		log.Warn("failed", "again", true)
		synctest.Wait()
		if !strings.Contains(out.String(), "again=true") {
			t.Error("the next second has no lines of its own")
		}
		log.close()
	})
}

// TestMessagesOfManyKindsAreSampledTogether: some are made by libraries of what clients send.
func TestMessagesOfManyKindsAreSampledTogether(t *testing.T) {
	out := &lockedBuffer{}
	log := newLogs(out, Config{})
	const kinds = 10 * maxLogKinds
	for i := range kinds {
		log.Info(fmt.Sprint("kind ", i))
	}
	log.close()
	if n := strings.Count(out.String(), `msg="kind `); n < maxLogKinds || n > kinds/2 { // a second may turn meanwhile
		t.Errorf("%d lines", n)
	}
}

// processWithLog runs the binary with this as its standard error.
func processWithLog(t *testing.T, log *os.File, environ ...string) (address string, cmd *exec.Cmd) {
	t.Helper()
	port := freePort()
	cmd = exec.Command(buildBinary(t))
	cmd.Env = append(environ, "PORT="+port)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	address = "127.0.0.1:" + port
	eventually(t, startTimeout, "the process is ready", func() bool {
		answer, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			_ = answer.Body.Close()
		}
		return err == nil && answer.StatusCode == http.StatusOK
	})
	return address, cmd
}

// checkOrderly has a member join and change, and the process drain by a SIGHUP, after which the member has left.
func checkOrderly(t *testing.T, b backend, address string, cmd *exec.Cmd) {
	t.Helper()
	u := dialUser(t, address)
	u.join("home", "ann", "{}")
	u.ok(eventHeartbeat, `{"patchState":{"a":1}}`)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error("it ended with", err)
	}
	if there, err := b.open(t).Exists(t.Context(), keysOf("home").meta()).Result(); err != nil || there != 0 {
		t.Errorf("the member has not left: %d, %v", there, err)
	}
}

func TestAClosedLogDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	b := miniRedis(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close()
	address, cmd := processWithLog(t, w, "REDIS_URL="+b.url, "PRESENCE_DRAIN_MS=0")
	checkOrderly(t, b, address, cmd)
}

// TestAFullLogPipeHoldsUpNobody: the pipe is full before the process starts.
func TestAFullLogPipeHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := miniRedis(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_ = w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := io.Copy(w, zeros{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	address, cmd := processWithLog(t, w, "REDIS_URL="+b.url, "PRESENCE_DRAIN_MS=0")
	checkOrderly(t, b, address, cmd)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestSeveralHangupsAreOneSignal: a terminal that closes sends them, and nobody is impatient.
func TestSeveralHangupsAreOneSignal(t *testing.T) {
	b := miniRedis(t)
	p := startProgram(t, "PORT=0", "REDIS_URL="+b.url, "PRESENCE_DRAIN_MS=500")
	dialUser(t, p.address()).join("home", "ann", "{}")
	for range 4 {
		p.signal(syscall.SIGHUP)
	}
	if code := p.wait(10 * time.Second); code != exitOK {
		t.Errorf("exit code %d:\n%s", code, p.out)
	}
}
