package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	floorConns = 50
	floorSize  = 260 // bytes: about one event
	floorPause = 100 * time.Microsecond
)

// measureFloor is w: the CPU time that a process of its own needs to write one ready frame to a socket that this one
// drains.
func measureFloor(ctx context.Context, rounds int) (time.Duration, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	var drains sync.WaitGroup
	drains.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			drains.Go(func() {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			})
		}
	})
	program, err := os.Executable()
	if err != nil {
		return 0, err
	}
	writer := exec.CommandContext(ctx, program, "-floor", listener.Addr().String(), "-floor-rounds", strconv.Itoa(rounds))
	writer.Stderr = os.Stderr
	out, err := writer.Output()
	_ = listener.Close()
	drains.Wait()
	if err != nil {
		return 0, fmt.Errorf("measuring the cost of a write: %w", err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return time.Duration(ns), err
}

// writeFloor is the writer: it pauses after each round, so that every write finds a reader that waits.
func writeFloor(address string, rounds int, out io.Writer) error {
	var conns []net.Conn
	for range floorConns {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	frame := make([]byte, floorSize)
	before, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	for range rounds {
		for _, conn := range conns {
			if _, err := conn.Write(frame); err != nil {
				return err
			}
		}
		time.Sleep(floorPause)
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, int64(after-before)/int64(rounds*floorConns))
	return err
}
