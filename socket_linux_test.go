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

// readByUs is a connection that a quietReader reads.
type readByUs struct {
	net.Conn
	in quietReader
}

func (c *readByUs) Read(p []byte) (int, error) { return c.in.Read(p) }

// loopback gives both ends of a TCP connection. A quietReader reads this one.
func loopback(t *testing.T) (here *readByUs, there net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	must(t, err)
	there, err = listener.Accept()
	must(t, err)
	t.Cleanup(func() { _, _ = conn.Close(), there.Close() })
	here = &readByUs{Conn: conn}
	here.in.start(conn)
	return here, there
}

// TestQuietReader reads as everybody expects of a net.Conn.
func TestQuietReader(t *testing.T) {
	for name, check := range map[string]func(t *testing.T, here *readByUs, there net.Conn){
		"more than the kernel takes at once, both ways": func(t *testing.T, here *readByUs, there net.Conn) {
			sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
			go func() { _, _ = io.Copy(there, there) }() // an echo
			go func() { _, _ = here.Write(sent) }()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(here, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("error %v, equal %t", err, bytes.Equal(got, sent))
			}
		},
		"the end of the other side": func(t *testing.T, here *readByUs, there net.Conn) {
			_ = there.Close()
			if n, err := here.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%d, %v", n, err)
			}
		},
		"a reset": func(t *testing.T, here *readByUs, there net.Conn) {
			_ = there.(*net.TCPConn).SetLinger(0)
			_ = there.Close()
			if _, err := here.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
		},
		"a deadline": func(t *testing.T, here *readByUs, _ net.Conn) {
			_ = here.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := here.Read(make([]byte, 1))
			var timeout net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Error(err)
			}
		},
		"closing under a reader": func(t *testing.T, here *readByUs, _ net.Conn) {
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
		"nothing to read into": func(t *testing.T, here *readByUs, _ net.Conn) {
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

// TestWritev in all its forms brings every byte in its order.
func TestWritev(t *testing.T) {
	for _, frames := range []int{1, 2, fewFrames, fewFrames + 1, maxGather} {
		here, there := loopback(t)
		var list [][]byte
		for i := range frames {
			list = append(list, bytes.Repeat([]byte{byte(i)}, 1+i%7))
		}
		must(t, rawConn(here.Conn).Write(func(fd uintptr) bool {
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
