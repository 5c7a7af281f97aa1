package main

import (
	"os/exec"
	"testing"
)

// startBrowser opens clients in pages of a real browser, which ends with the test.
func startBrowser(t *testing.T) *realClients { return browserScript(t, "browser.mjs") }

// browserScript starts a script that drives a real browser, which ends with the test.
func browserScript(t *testing.T, script string) *realClients {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "google-chrome", "chromium-browser"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	need(t, path != "", "Chromium in PATH (apt-get install chromium)")
	c := &realClients{nodeProcess: nodeScript(t, script, path), told: map[string][]clientNews{}}
	t.Cleanup(func() {
		c.do("", "quit", nil)
		for range c.lines { // until the script, and the browser before it, has ended
		}
	})
	return c
}

// TestBrowsersMeetOnTwoNodes: pages of another origin join over polling that upgrades, and over WebSocket; they patch, are
// reloaded, and vanish.
func TestBrowsersMeetOnTwoNodes(t *testing.T) {
	t.Parallel()
	s, c, room := startSite(t, realRedis(t)), startBrowser(t), uniqueRoom(t)
	ann := c.open("ann", s.url(0), room, "polling", "websocket").Self.ConnID
	c.await("ann", "upgrade")
	bob := c.open("bob", s.url(1), room, "websocket").Self.ConnID
	c.sees("ann", bob, "join")
	c.call("ann", eventHeartbeat, patchTo(1))
	c.call("bob", eventHeartbeat, patchTo(2))
	c.sees("bob", ann, "update 1")
	c.sees("ann", bob, "join", "update 2")
	c.do("ann", "reload", nil)
	c.await("ann", "reloaded")
	c.sees("bob", ann, "update 1", "leave disconnected")
	again := c.open("ann", s.url(0), room, "polling", "websocket").Self.ConnID
	c.sees("bob", again, "join")
	c.do("bob", "close", nil)
	c.sees("ann", bob, "join", "update 2", "leave disconnected")
	c.call("ann", "presence:leave", nil)
}
