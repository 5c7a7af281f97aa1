package main

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// fewFrames is how many frames writev hands over without memory for it.
const fewFrames = 8

// writev hands the kernel as many frames as it takes without waiting, and returns the number of bytes. None is empty.
func writev(fd uintptr, frames [][]byte) (int, error) {
	n, errno := writeAll(fd, frames)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

func writeAll(fd uintptr, frames [][]byte) (int, syscall.Errno) {
	switch {
	case len(frames) == 1:
		return rawIO(syscall.SYS_WRITE, fd, unsafe.Pointer(&frames[0][0]), len(frames[0]))
	case len(frames) <= fewFrames:
		var few [fewFrames]syscall.Iovec
		return writeVector(fd, frames, few[:])
	}
	return writeVector(fd, frames, make([]syscall.Iovec, len(frames)))
}

func writeVector(fd uintptr, frames [][]byte, vector []syscall.Iovec) (int, syscall.Errno) {
	for i, f := range frames {
		vector[i].Base = &f[0]
		vector[i].SetLen(len(f))
	}
	return rawIO(syscall.SYS_WRITEV, fd, unsafe.Pointer(&vector[0]), len(frames))
}

// rawIO is a system call that does not wait, without telling the scheduler of it. To tell it costs more than it is good for
// here: it wakes the runtime's monitor, which then looks around every 20 µs, and took a sixth of the CPU time at 500 updates
// a second.
func rawIO(call, fd uintptr, data unsafe.Pointer, length int) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(call, fd, uintptr(data), uintptr(length))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// quiet gives the same connection with reads and writes by rawIO, where it is a socket.
func quiet(conn net.Conn) net.Conn {
	raw := rawConn(conn)
	if raw == nil {
		return conn
	}
	c := &quietConn{Conn: conn, in: quietReader{raw: raw}}
	c.in.attempt, c.out.attempt = c.in.read, c.out.write
	return c
}

// rawConn is nil where there is no socket.
func rawConn(conn net.Conn) syscall.RawConn {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

type quietConn struct {
	net.Conn
	in  quietReader
	out transfer
}

func (c *quietConn) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *quietConn) Write(p []byte) (int, error) { return c.out.run(c.in.raw.Write, p) }

// quietReader is the half of a connection that is read.
type quietReader struct {
	raw syscall.RawConn
	transfer
}

// start has r read the socket, and is false where conn is none.
func (r *quietReader) start(conn net.Conn) bool {
	r.raw, r.attempt = rawConn(conn), r.read
	return r.raw != nil
}

func (r *quietReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.run(r.raw.Read, p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// transfer is a Read or a Write, of which there is one at a time.
type transfer struct {
	mu      sync.Mutex
	attempt func(fd uintptr) bool // bound once: a call then allocates nothing
	data    []byte                // that is left to transfer
	done    int                   // bytes
	errno   syscall.Errno
}

// run waits, where the socket is not ready, as the runtime waits for any socket: until the deadline, or its end.
func (t *transfer) run(do func(func(fd uintptr) bool) error, p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data, t.done, t.errno = p, 0, 0
	err := do(t.attempt)
	t.data = nil
	if err == nil && t.errno != 0 {
		err = &net.OpError{Op: "socket", Net: "tcp", Err: os.NewSyscallError("read or write", t.errno)}
	}
	return t.done, err
}

func (t *transfer) read(fd uintptr) bool {
	for {
		n, errno := rawIO(syscall.SYS_READ, fd, unsafe.Pointer(&t.data[0]), len(t.data))
		switch errno {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		}
		t.done, t.errno = n, errno
		return true
	}
}

func (t *transfer) write(fd uintptr) bool {
	for len(t.data) > 0 {
		n, errno := rawIO(syscall.SYS_WRITE, fd, unsafe.Pointer(&t.data[0]), len(t.data))
		switch errno {
		case 0:
			t.data, t.done = t.data[n:], t.done+n
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
	return true
}

// SyscallConn is what go-redis takes a look at before each use of a connection. It need not where there is nothing to see:
// no byte, no end, and no error.
func (c *quietConn) SyscallConn() (syscall.RawConn, error) {
	var peeked syscall.Errno
	err := c.in.raw.Control(func(fd uintptr) { peeked = peek(fd) })
	if err == nil && peeked == syscall.EAGAIN {
		return nothingToRead{c.in.raw}, nil
	}
	return c.in.raw, err
}

func peek(fd uintptr) syscall.Errno {
	var b [1]byte
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b)), 1,
		syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return errno
}

type nothingToRead struct{ syscall.RawConn }

func (nothingToRead) Read(func(fd uintptr) bool) error { return nil }
