//go:build !linux

package main

import (
	"errors"
	"net"
	"syscall"
)

func writev(uintptr, [][]byte) (int, error) { return 0, errors.ErrUnsupported }

// rawConn is nil, so that a goroutine writes, which is slower.
func rawConn(net.Conn) syscall.RawConn { return nil }

// quietReader reads a connection.
type quietReader struct{ net.Conn }

func (r *quietReader) start(conn net.Conn) bool {
	r.Conn = conn
	return true
}
