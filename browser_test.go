package main

import (
	"encoding/json"
	"maps"
	"os/exec"
	"slices"
	"testing"
	"time"
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
	keepsBusy(t)
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
	takesLong(t)
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

// visit opens a page that joins a room by the client helper, and waits until it is in.
func (c *realClients) visit(client, url, room string, options command) {
	c.t.Helper()
	c.do(client, "visit", command{"url": url, "options": options, "wish": command{"roomId": room, "userId": client}})
	c.await(client, "joined")
}

// present are the connections of a user of which a client heard that they joined, and not that they left.
func (c *realClients) present(client, user string) []string {
	c.t.Helper()
	conns := map[string]bool{}
	for _, news := range c.told[client] {
		var e wireEvent
		if news.what != "event" {
			continue
		}
		if err := json.Unmarshal(news.rest[0], &e); err != nil {
			c.t.Fatal(err)
		}
		if e.UserID == user && EventType(e.Type) != EventLeave {
			conns[e.ConnID] = true
		} else {
			delete(conns, e.ConnID)
		}
	}
	return slices.Sorted(maps.Keys(conns))
}

// until hears what clients have to say until a condition holds, for 5 s: the server itself notices a lost client after 20 s.
func (c *realClients) until(what string, holds func() bool) {
	c.t.Helper()
	late := time.After(5 * time.Second)
	for !holds() {
		select {
		case line := <-c.lines:
			c.keep(line)
		case <-late:
			c.t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// TestAPageThatIsLeftIsGoneAtOnce: others see a member leave when its page is left in the same tab, and come back when the
// browser shows that page again from its cache. Every transport does.
func TestAPageThatIsLeftIsGoneAtOnce(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s, c := startSite(t, realRedis(t)), startBrowser(t)
	for name, options := range map[string]command{
		"default":   {},
		"polling":   {"transports": []string{"polling"}},
		"websocket": {"transports": []string{"websocket"}},
	} {
		room := uniqueRoom(t)
		c.open("witness "+name, s.url(1), room, "websocket")
		c.visit(name, s.url(0), room, options)
		seen := func() int { return len(c.present("witness "+name, name)) }
		for range 2 {
			c.until(name+" is there", func() bool { return seen() == 1 })
			c.do(name, "goAway", nil)
			c.await(name, "away")
			c.until(name+" is gone", func() bool { return seen() == 0 })
			c.do(name, "goBack", nil)
			c.await(name, "joined")
		}
		shown := func(news clientNews) bool { return news.what == "shown" && string(news.rest[0]) == "true" }
		if !slices.ContainsFunc(c.told[name], shown) {
			t.Errorf("%s: the browser shows no page from its cache, so this says nothing of that", name)
		}
	}
}

// TestADuplicateOfATabIsAnotherDevice: both are there, through reloads of each, and the page before a reload leaves with the join of the
// next one.
func TestADuplicateOfATabIsAnotherDevice(t *testing.T) {
	takesLong(t)
	t.Parallel()
	needNode(t)
	c, room := startBrowser(t), uniqueRoom(t)
	p := startProcess(t, buildBinary(t), "PORT=0", "REDIS_URL="+realRedis(t).url, "PRESENCE_GRACE_MS=20000")
	url := "http://" + p.address()
	c.open("witness", url, room, "websocket")
	c.visit("ann", url, room, command{})
	c.do("ann", "duplicate", nil)
	c.until("both are there", func() bool { return len(c.present("witness", "ann")) == 2 })
	for _, tab := range []string{"ann", "copy of ann", "ann"} {
		before := c.present("witness", "ann")
		c.do(tab, "reload", nil)
		c.until("the next page is there", func() bool {
			return !slices.Equal(c.present("witness", "ann"), before) && len(c.present("witness", "ann")) == 2
		})
	}
	left := 0
	for _, news := range c.told["witness"] {
		var e wireEvent
		if news.what != "event" || json.Unmarshal(news.rest[0], &e) != nil || e.Type != string(EventLeave) {
			continue
		}
		if left++; e.Reason != string(ReasonReplaced) || e.UserConns != 2 {
			t.Errorf("a page left as %+v", e)
		}
	}
	if left != 3 {
		t.Errorf("%d pages left", left)
	}
}

// TestFastReloadsLeaveNoGhosts: a page is reloaded at every moment of its life, from its first request to the upgrade and
// beyond.
func TestFastReloadsLeaveNoGhosts_G5(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s, c, room := startSite(t, realRedis(t)), startBrowser(t), uniqueRoom(t)
	c.open("witness", s.url(1), room, "websocket")
	c.do("ann", "visit", command{"url": s.url(0), "options": command{}, "wish": command{"roomId": room, "userId": "ann"}, "reloads": 60, "laterMs": 5})
	var last string
	if err := json.Unmarshal(c.await("ann", "joined")[0], &last); err != nil {
		t.Fatal(err)
	}
	c.until("only the last of the pages is there", func() bool { return slices.Equal(c.present("witness", "ann"), []string{last}) })
}
