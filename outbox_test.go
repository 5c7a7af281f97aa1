package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// socketPair is a webSocket of the server and the client's end of its connection, with modest buffers in the kernel.
func socketPair(t testing.TB, change func(*socketOptions)) (*webSocket, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(time.Now().Add(patience))
	_ = client.(*net.TCPConn).SetReadBuffer(64 << 10)
	_ = server.(*net.TCPConn).SetWriteBuffer(64 << 10)
	o := &socketOptions{MaxMessageBytes: 1 << 20, MaxUnsentBytes: 1 << 20, WriteTimeout: patience, TakeTimeout: patience}
	change(o)
	x := &webSocket{}
	x.init(server, nil, o)
	t.Cleanup(func() { x.abort(errClosed); x.awaitEnd() })
	return x, client.(*net.TCPConn)
}

// numbered are frames that tell their place.
func numbered(n, size int) []frame {
	frames := make([]frame, n)
	for i := range frames {
		frames[i] = newFrame(fmt.Appendf(nil, "%0*d", size, i))
	}
	return frames
}

func wantNumbered(t *testing.T, in io.Reader, n, size int) {
	t.Helper()
	for i := range n {
		h, err := ws.ReadHeader(in)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(in, p); err != nil || string(p) != fmt.Sprintf("4%0*d", size, i) {
			t.Fatalf("frame %d is %.30q…%q, %v", i, p, p[max(0, len(p)-10):], err)
		}
	}
}

func TestOutboxKeepsOrderOverAFullKernel(t *testing.T) {
	x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 0 })
	const n, size = 3000, 3000
	for i, f := range numbered(n, size) {
		if i%3 == 0 {
			x.send(f)
		} else if x.queue(f, memberUpdate{}) && i%3 == 2 {
			x.flush()
		}
	}
	x.flush()
	wantNumbered(t, client, n, size)
	eventually(t, patience, "no goroutine is left", func() bool { x.mu.Lock(); defer x.mu.Unlock(); return x.draining == nil && x.backlog.bytes == 0 })
}

func TestOutboxJoinsMoreThanOneWriteTakes(t *testing.T) {
	x, client := socketPair(t, func(*socketOptions) {})
	const n, size = 2*maxGather + 7, 3
	flushes := 0
	for _, f := range numbered(n, size) {
		if x.queue(f, memberUpdate{}) {
			flushes++
		}
	}
	if flushes != 1 {
		t.Errorf("%d flushes wanted of one batch", flushes)
	}
	x.flush()
	wantNumbered(t, client, n, size)
}

func TestOutboxBound(t *testing.T) {
	t.Parallel()
	full := func(t *testing.T, x *webSocket) {
		t.Helper()
		eventually(t, patience, "the kernel is full", func() bool {
			x.send(newFrame(make([]byte, 1000)))
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.draining != nil
		})
	}
	t.Run("a client that does not read is cut", func(t *testing.T) {
		x, _ := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 100_000 })
		full(t, x)
		for range 200 {
			x.send(newFrame(make([]byte, 1000)))
		}
		if err := x.reason(); !errors.Is(err, errTooSlow) {
			t.Errorf("ended of %v", err)
		}
		if _, err := x.receive(); err == nil {
			t.Error("the reader goes on")
		}
	})
	t.Run("one message may be larger", func(t *testing.T) {
		x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 1000 })
		big := numbered(1, 900_000)[0]
		x.send(big)
		wantNumbered(t, client, 1, 900_000)
		x.send(big)
		x.send(big)
		if err := x.reason(); !errors.Is(err, errTooSlow) {
			t.Errorf("ended of %v", err)
		}
	})
	t.Run("a batch that the kernel would take is no reason", func(t *testing.T) {
		x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 500 })
		for _, f := range numbered(100, 100) {
			x.queue(f, memberUpdate{})
		}
		x.flush()
		wantNumbered(t, client, 100, 100)
	})
}

func TestAClientThatAcceptsNothingIsCut(t *testing.T) {
	x, _ := socketPair(t, func(o *socketOptions) { o.WriteTimeout = 50 * time.Millisecond; o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 10<<20)))
	eventually(t, patience, "it is cut", func() bool { return x.reason() != nil })
	x.awaitEnd()
}

// A slow client that goes on reading is not cut, though the whole takes many timeouts.
func TestAClientThatAcceptsLittleIsNotCut(t *testing.T) {
	const timeout = 100 * time.Millisecond
	x, client := socketPair(t, func(o *socketOptions) { o.WriteTimeout = timeout; o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 20<<20)))
	begin := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Since(begin) < 4*timeout {
		<-tick.C
		if _, err := io.CopyN(io.Discard, client, 100_000); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.reason(); err != nil {
		t.Errorf("cut: %v", err)
	}
}

// TestAClientIsCutWhileItsFramesLeave: to close a socket waits for who writes to it, who must not wait for who closes.
func TestAClientIsCutWhileItsFramesLeave(t *testing.T) {
	x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 20<<20)))
	drains := func(where string) func() bool {
		return func() bool {
			for _, stack := range goroutines() {
				if strings.Contains(stack, "(*outbox).drain") && strings.Contains(stack, where) {
					return true
				}
			}
			return false
		}
	}
	eventually(t, patience, "the kernel takes no more", drains("waitWrite"))
	x.mu.Lock()
	go func() { _, _ = io.Copy(io.Discard, client) }()
	eventually(t, patience, "the next bytes could leave", drains("(*Mutex).Lock"))
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		defer x.mu.Unlock()
		x.abortLocked(errClosed)
	}()
	select {
	case <-cut:
	case <-time.After(patience):
		t.Fatal("who closes waits for who writes, and who writes for who closes")
	}
}

// plainConn is no file descriptor, as with TLS.
type plainConn struct{ net.Conn }

func TestOutboxWithoutADescriptor(t *testing.T) {
	server, client := net.Pipe()
	x := &webSocket{}
	x.init(plainConn{server}, nil, &socketOptions{MaxMessageBytes: 1000, WriteTimeout: patience, TakeTimeout: patience})
	const n, size = 100, 1000
	for _, f := range numbered(n, size) {
		x.send(f)
	}
	wantNumbered(t, client, n, size)
	x.abort(errClosed)
	x.awaitEnd()
}

func TestFinishDeliversWhatWasSent(t *testing.T) {
	x, client := socketPair(t, func(*socketOptions) {})
	const n, size = 100, 5000
	for _, f := range numbered(n, size) {
		x.send(f)
	}
	// Unread input: to close right away would reset the connection, and the client would lose all this.
	if _, err := client.Write(masked(true, ws.OpText, "unread")); err != nil {
		t.Fatal(err)
	}
	x.finish(errLeft)
	x.send(newFrame([]byte("too late")))
	done := make(chan struct{})
	go func() { defer close(done); x.end(errClosed) }()
	wantNumbered(t, client, n, size)
	rest, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(rest, closeFrame(errLeft)) {
		t.Errorf("then %q, %v", rest, err)
	}
	_ = client.Close()
	<-done
}

func TestShutDoesNotWaitForASlowClient(t *testing.T) {
	x, _ := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 10<<20)))
	x.shut(errClosed)
	if !x.gone {
		t.Error("it is still open")
	}
	x.awaitEnd()
}
