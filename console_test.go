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
	p.do("ann", "fill", command{"what": "#key", "text": "another key"})
	p.do("ann", "press", command{"what": "#key", "key": "Enter"})
	p.shows("ann", "#refusal", "the API key is missing or wrong")
	p.do("ann", "fill", command{"what": "#key", "text": "the-key"})
	p.do("ann", "press", command{"what": "#key", "key": "Enter"})
	p.shows("ann", "#rooms", other)
	p.shows("ann", "#node", "62 members in 2 rooms")

	p.do("ann", "fill", command{"what": "#search", "text": "<img"})
	p.shows("ann", "#rooms-count", "1 of 2 rooms")
	p.do("ann", "press", command{"what": "#rooms", "key": "Home"})
	p.do("ann", "press", command{"what": "#rooms", "key": "Enter"})
	p.shows("ann", "#members-count", "61 connections of 61 users")
	p.do("ann", "press", command{"what": "#members", "key": "Home"})
	for i := 0; ; i++ { // by keyboard to the one with the hostile name
		p.do("ann", "press", command{"what": "#members", "key": "Enter"})
		p.shows("ann", "#facts", "Connection")
		if strings.Contains(p.texts("ann", "#facts")[0], victim.id) {
			break
		}
		if i > 61 {
			t.Fatal("the member is not in the list")
		}
		p.do("ann", "press", command{"what": "#members", "key": "ArrowDown"})
	}
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

	p.do("ann", "fill", command{"what": "#user", "text": "user 00"})
	p.do("ann", "press", command{"what": "#user", "key": "Enter"})
	p.shows("ann", "#found", "is online with 2 connections")
	p.do("ann", "fill", command{"what": "#user", "text": hostile})
	p.do("ann", "press", command{"what": "#user", "key": "Enter"})
	p.shows("ann", "#found", hostile+" is offline, last seen")

	p.open("bob", url, command{"viewport": command{"width": 390, "height": 844}, "colorScheme": "dark"})
	p.do("bob", "fill", command{"what": "#key", "text": "the-key"})
	p.do("bob", "press", command{"what": "#key", "key": "Enter"})
	p.shows("bob", "#rooms", room)
	p.click("bob", `#rooms .row`)
	p.shows("bob", "#members-count", "60 connections")
	p.shot("bob", "console-phone")
	p.assertReadable("bob")
	p.click("bob", `role=button[name="Forget the key"]`)
	p.shows("bob", "#door", "API key")
	for client, told := range p.told {
		for _, news := range told {
			if text := fmt.Sprintf("%s", news.rest); news.what == "complaint" && !strings.Contains(text, "401") {
				t.Errorf("the browser of %s complains: %s", client, text)
			}
		}
	}
}
