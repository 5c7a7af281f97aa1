package main

import (
	"os"
	"testing"
)

// takesLong skips a test that takes more than some seconds, unless PRESENCE_TEST_LONG is set, as CI does. What it is about is
// touched by shorter tests as well.
func takesLong(t *testing.T) {
	t.Helper()
	if !allTests() {
		t.Skip("takes long: set PRESENCE_TEST_LONG=1 to run it")
	}
}

// allTests tells whether tests that take long are wanted as well.
func allTests() bool { return os.Getenv("PRESENCE_TEST_LONG") != "" }

// busyTests holds a token for each test that keeps processors busy.
var busyTests = make(chan struct{}, 3)

// keepsBusy waits until at most two other tests run that keep processors busy, as browsers and compilers do: more would disturb
// tests that measure time.
func keepsBusy(t *testing.T) {
	t.Helper()
	busyTests <- struct{}{}
	t.Cleanup(func() { <-busyTests })
}
