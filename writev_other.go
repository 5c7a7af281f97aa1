//go:build !linux && !darwin

package main

import "errors"

// canWritev: a goroutine writes here, which is slower.
const canWritev = false

func writev(uintptr, [][]byte) (int, error) { return 0, errors.ErrUnsupported }
