//go:build !linux

package main

import (
	"errors"
	"net"
)

// canWritev: a goroutine writes here, which is slower.
const canWritev = false

func writev(uintptr, [][]byte) (int, error) { return 0, errors.ErrUnsupported }

// quiet makes no difference here.
func quiet(conn net.Conn) net.Conn { return conn }
