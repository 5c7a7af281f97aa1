package main

import (
	"os"
	"testing"
)

// takesLong skips a test that takes more than some seconds, unless PRESENCE_TEST_LONG is set, as CI does. What it is about is
// touched by shorter tests as well.
func takesLong(t *testing.T) {
	t.Helper()
	if os.Getenv("PRESENCE_TEST_LONG") == "" {
		t.Skip("takes long: set PRESENCE_TEST_LONG=1 to run it")
	}
}
