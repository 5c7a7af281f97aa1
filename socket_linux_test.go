package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// loopback gives both ends of a TCP connection, this one quiet.
func loopback(t *testing.T) (here, there net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	must(t, err)
	there, err = listener.Accept()
	must(t, err)
	t.Cleanup(func() { _, _ = conn.Close(), there.Close() })
	return quiet(conn), there
}

// TestQuietConn is what everybody expects of a net.Conn.
func TestQuietConn(t *testing.T) {
	for name, check := range map[string]func(t *testing.T, here, there net.Conn){
		"more than the kernel takes at once, both ways": func(t *testing.T, here, there net.Conn) {
			sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
			go func() { _, _ = io.Copy(there, there) }() // an echo
			go func() { _, _ = here.Write(sent) }()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(here, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("error %v, equal %t", err, bytes.Equal(got, sent))
			}
		},
		"the end of the other side": func(t *testing.T, here, there net.Conn) {
			_ = there.Close()
			if n, err := here.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%d, %v", n, err)
			}
		},
		"a reset": func(t *testing.T, here, there net.Conn) {
			_ = there.(*net.TCPConn).SetLinger(0)
			_ = there.Close()
			if _, err := here.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
			if _, err := here.Write(make([]byte, 1)); !errors.Is(err, syscall.EPIPE) {
				t.Error(err)
			}
		},
		"a deadline": func(t *testing.T, here, _ net.Conn) {
			_ = here.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := here.Read(make([]byte, 1))
			var timeout net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Error(err)
			}
		},
		"closing under a reader": func(t *testing.T, here, _ net.Conn) {
			read := make(chan error)
			go func() {
				_, err := here.Read(make([]byte, 1))
				read <- err
			}()
			_ = here.Close()
			if err := <-read; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		},
		"nothing to read into": func(t *testing.T, here, _ net.Conn) {
			if n, err := here.Read(nil); n != 0 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := loopback(t)
			check(t, here, there)
		})
	}
}

// TestQuietConnShowsItsHealth in the way that go-redis looks at it: whoever reads without waiting learns of a byte and of
// the end, and is spared the look where there is neither.
func TestQuietConnShowsItsHealth(t *testing.T) {
	here, there := loopback(t)
	looks := func() (looked bool, n int, err error) {
		raw, failed := here.(syscall.Conn).SyscallConn()
		must(t, failed)
		must(t, raw.Read(func(fd uintptr) bool {
			looked = true
			n, _, err = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			return true
		}))
		return looked, n, err
	}
	if looked, _, _ := looks(); looked {
		t.Error("looked, and there is nothing")
	}
	_, err := there.Write([]byte("x"))
	must(t, err)
	eventually(t, 5*time.Second, "a byte", func() bool { _, n, err := looks(); return n == 1 && err == nil })
	_, err = here.Read(make([]byte, 1))
	must(t, err)
	_ = there.Close()
	eventually(t, 5*time.Second, "the end", func() bool { looked, n, err := looks(); return looked && n == 0 && err == nil })
}

// TestWritev in all its forms brings every byte in its order.
func TestWritev(t *testing.T) {
	for _, frames := range []int{1, 2, fewFrames, fewFrames + 1, maxGather} {
		here, there := loopback(t)
		var list [][]byte
		for i := range frames {
			list = append(list, bytes.Repeat([]byte{byte(i)}, 1+i%7))
		}
		must(t, rawConn(here.(*quietConn).Conn).Write(func(fd uintptr) bool {
			n, err := writev(fd, list)
			if want := len(bytes.Join(list, nil)); n != want || err != nil {
				t.Errorf("%d frames: %d of %d bytes, %v", frames, n, want, err)
			}
			return true
		}))
		got := make([]byte, len(bytes.Join(list, nil)))
		if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, bytes.Join(list, nil)) {
			t.Errorf("%d frames: %v", frames, err)
		}
	}
}
