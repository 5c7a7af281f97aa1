package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestConsoleNeedsAnAPIKey(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		settings []string
		want     int
	}{
		"no key":     {nil, http.StatusNotFound},
		"a key":      {[]string{"PRESENCE_API_KEY=key"}, http.StatusOK},
		"turned off": {[]string{"PRESENCE_API_KEY=key", "PRESENCE_CONSOLE=false"}, http.StatusNotFound},
		"no demo":    {[]string{"PRESENCE_API_KEY=key", "PRESENCE_DEMO=false"}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			n := startNodeFor(t, miniRedis(t), tc.settings...)
			for _, path := range []string{"/console", "/console.js", "/console-list.js", "/console.css"} {
				if got := n.status(t, path); got != tc.want {
					t.Errorf("%s: %d, want %d", path, got, tc.want)
				}
			}
		})
	}
}

func (n *node) url(path string) string { return "http://127.0.0.1:" + n.port() + path }

// status is that of the answer to a GET without a key.
func (n *node) status(t *testing.T, path string) int {
	t.Helper()
	answer, err := http.Get(n.url(path))
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

// TestConsoleShowsAndRemoves has an operator use the console in a browser, on a phone in the dark too, among rooms and members
// whose names are markup.
func TestConsoleShowsAndRemoves(t *testing.T) {
	takesLong(t)
	t.Parallel()
	const hostile = `<img src=x onerror="document.title='bad'">`
	n := startNodeFor(t, backend{url: spawnRedis(t).url, real: true}, "PRESENCE_API_KEY=the-key") // its list of rooms is checked
	room := uniqueRoom(t) + " " + hostile
	for i := range 60 {
		n.member(t, room, fmt.Sprintf("user %02d", i), `{"n":1}`)
	}
	victim := n.member(t, room, hostile, `{"text":"</script>"}`)
	other := uniqueRoom(t) + " small"
	n.member(t, other, "user 00", "{}")
	url := n.url("/console")

	p := pageUsers{browserScript(t, "page.mjs")}
	p.open("ann", url, command{"viewport": command{"width": 1280, "height": 860}, "colorScheme": "light"})
	p.shot("ann", "console-door")
	p.assertReadable("ann")
	p.enter("ann", "#key", "another key")
	p.shows("ann", "#refusal", "the API key is missing or wrong")
	p.enter("ann", "#key", "the-key")
	p.shows("ann", "#rooms", other)
	p.shows("ann", "#node", "62 members in 2 rooms")

	p.do("ann", "fill", command{"what": "#search", "text": "<img"})
	p.shows("ann", "#rooms-count", "1 of 2 rooms")
	p.do("ann", "press", command{"what": "#rooms", "key": "Home"})
	p.do("ann", "press", command{"what": "#rooms", "key": "Enter"})
	p.shows("ann", "#members-count", "61 connections of 61 users")
	p.chooseMember("ann", victim.id)
	p.shows("ann", "#facts", hostile)
	p.shot("ann", "console-room")
	p.assertReadable("ann")
	p.click("ann", "#kick")
	p.shows("ann", "#sure-text", victim.id)
	p.click("ann", `role=button[name="Cancel"]`)
	p.click("ann", "#kick")
	p.click("ann", `role=button[name="Remove"]`)
	p.shows("ann", "#members-count", "60 connections")
	if left := victim.sees(EventLeave, victim.id); left.Reason != string(ReasonKicked) {
		t.Errorf("it left with %q", left.Reason)
	}

	p.enter("ann", "#user", "user 00")
	p.shows("ann", "#found", "is online with 2 connections")
	p.enter("ann", "#user", hostile)
	p.shows("ann", "#found", hostile+" is offline, last seen")

	p.open("bob", url, command{"viewport": command{"width": 390, "height": 844}, "colorScheme": "dark"})
	p.enter("bob", "#key", "the-key")
	p.shows("bob", "#rooms", room)
	p.click("bob", `#rooms .row`)
	p.shows("bob", "#members-count", "60 connections")
	p.shot("bob", "console-phone")
	p.assertReadable("bob")
	p.click("bob", `role=button[name="Forget the key"]`)
	p.shows("bob", "#door", "API key")
	p.wantNoComplaints()
}

// enter fills a field and sends its form.
func (p pageUsers) enter(client, what, text string) {
	p.t.Helper()
	p.do(client, "fill", command{"what": what, "text": text})
	p.do(client, "press", command{"what": what, "key": "Enter"})
}

// chooseMember goes through the list of the console by keyboard until it shows a connection.
func (p pageUsers) chooseMember(client, conn string) {
	p.t.Helper()
	p.do(client, "press", command{"what": "#members", "key": "Home"})
	for range 62 {
		p.do(client, "press", command{"what": "#members", "key": "Enter"})
		p.shows(client, "#facts", "Connection")
		if strings.Contains(p.texts(client, "#facts")[0], conn) {
			return
		}
		p.do(client, "press", command{"what": "#members", "key": "ArrowDown"})
	}
	p.t.Fatalf("%s is not in the list", conn)
}

// wantNoComplaints wants nothing in the browsers' consoles but the refusal of a wrong key.
func (p pageUsers) wantNoComplaints() {
	p.t.Helper()
	for client, told := range p.told {
		for _, news := range told {
			if text := fmt.Sprintf("%s", news.rest); news.what == "complaint" && !strings.Contains(text, "401") {
				p.t.Errorf("the browser of %s complains: %s", client, text)
			}
		}
	}
}
