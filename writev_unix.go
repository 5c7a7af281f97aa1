//go:build linux || darwin

package main

import "golang.org/x/sys/unix"

// canWritev tells whether writev works here.
const canWritev = true

// writev hands the kernel as many frames as it takes without waiting, and returns the number of bytes.
func writev(fd uintptr, frames [][]byte) (int, error) { return unix.Writev(int(fd), frames) }
