package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// readSmallFile reads a regular file of at most most bytes. Anything else at the path is an error and is not waited for: a
// pipe may stay silent for ever, and a device may have no end.
func readSmallFile(path string, most int64) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // by now it may be a pipe, whose open would wait
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	text, err := io.ReadAll(io.LimitReader(f, most+1)) // the size that it states may be wrong
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

var errNotRegular = errors.New("it is not a regular file")
