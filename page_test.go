package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func pageMux(demo bool) *http.ServeMux {
	mux := http.NewServeMux()
	mountPage(mux, demo, "NODE42")
	if demo {
		mountConsole(mux)
	}
	return mux
}

func get(mux *http.ServeMux, path, tag string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if tag != "" {
		r.Header.Set("If-None-Match", tag)
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w.Result()
}

func TestWhatThePageIsMadeOfIsServed(t *testing.T) {
	entries, err := webFiles.ReadDir("web")
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]string{"index.html": "/", "console.html": "/console", "socket.io.esm.min.js": "/socket.io/socket.io.esm.min.js"}
	for _, entry := range entries {
		path, ok := served[entry.Name()]
		if !ok {
			path = "/" + entry.Name()
		}
		t.Run(path, func(t *testing.T) {
			mux, shared := pageMux(true), strings.HasSuffix(path, "/presence.js") || strings.HasPrefix(path, "/socket.io/")
			answer := get(mux, path, "")
			h := answer.Header
			kind := map[string]string{".html": "text/html", ".css": "text/css", ".js": "javascript"}[filepath.Ext(entry.Name())]
			if answer.StatusCode != http.StatusOK || !strings.Contains(h.Get("Content-Type"), kind) {
				t.Errorf("%d, %q", answer.StatusCode, h.Get("Content-Type"))
			}
			if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-cache" {
				t.Errorf("headers %v", h)
			}
			if allowed := h.Get("Access-Control-Allow-Origin") == "*"; allowed != shared {
				t.Errorf("for every origin: %v, want %v", allowed, shared)
			}
			policy := h.Get("Content-Security-Policy")
			if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
				t.Errorf("policy %q", policy)
			}
			if again := get(mux, path, h.Get("ETag")); again.StatusCode != http.StatusNotModified {
				t.Errorf("asked for with its tag: %d", again.StatusCode)
			}
			if off := get(pageMux(false), path, "").StatusCode == http.StatusOK; off != shared {
				t.Errorf("without the page it is served: %v, want %v", off, shared)
			}
		})
	}
}

// TestThePageNeedsNobodyElse: the policy forbids scripts and styles within the page, and other servers.
func TestThePageNeedsNobodyElse(t *testing.T) {
	for _, name := range []string{"index.html", "demo.css", "demo.js", "sleep.js", "presence.js", "console.html", "console.css", "console.js", "console-list.js", "console-plots.js"} {
		text := readText(t, filepath.Join("web", name))
		text = strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "")
		for _, foreign := range []string{"http:", "https:", "innerHTML", "insertAdjacentHTML", "eval(", "<style", " style=", " onclick="} {
			if strings.Contains(text, foreign) {
				t.Errorf("%s has %q", name, foreign)
			}
		}
	}
}

func TestTheClientOfSocketIOIsThePublishedOne(t *testing.T) {
	needNode(t)
	published := readText(t, filepath.Join("testdata", "node", "node_modules", "socket.io-client", "dist", "socket.io.esm.min.js"))
	ours := readText(t, filepath.Join("web", "socket.io.esm.min.js"))
	if ours != published {
		t.Error("web/socket.io.esm.min.js is not the file of the package: copy it")
	}
	if !strings.Contains(ours[:200], "Released under the MIT License") {
		t.Error("it does not say its license")
	}
}

// pageUsers are people who use the page in a browser.
type pageUsers struct{ *realClients }

func (p pageUsers) open(client, url string, options command) {
	p.t.Helper()
	p.do(client, "open", command{"url": url, "options": options})
	p.await(client, "opened")
}

func (p pageUsers) click(client, what string) {
	p.t.Helper()
	p.do(client, "click", command{"what": what})
}

// texts are the visible texts of elements.
func (p pageUsers) texts(client, what string) (texts []string) {
	p.t.Helper()
	p.do(client, "text", command{"what": what})
	if err := json.Unmarshal(p.await(client, "text")[0], &texts); err != nil {
		p.t.Fatal(err)
	}
	return texts
}

// shows waits until the first element has this text somewhere.
func (p pageUsers) shows(client, what, want string) {
	p.t.Helper()
	var texts []string
	if !poll(20*time.Second, func() bool {
		texts = p.texts(client, what)
		return len(texts) > 0 && strings.Contains(texts[0], want)
	}) {
		p.t.Fatalf("%s never sees %q in %s but %q", client, want, what, texts)
	}
}

// shot keeps a picture of the page where PRESENCE_TEST_SHOTS says.
func (p pageUsers) shot(client, name string) {
	p.t.Helper()
	if dir := os.Getenv("PRESENCE_TEST_SHOTS"); dir != "" {
		p.do(client, "shot", command{"path": filepath.Join(dir, name+".png")})
		p.await(client, "shot")
	}
}

// assertReadable wants enough contrast, and nothing beyond the window.
func (p pageUsers) assertReadable(client string) {
	p.t.Helper()
	p.do(client, "faint", nil)
	if faint := p.await(client, "faint")[0]; string(faint) != "[]" {
		p.t.Errorf("%s can hardly read %s", client, faint)
	}
	p.do(client, "overflow", nil)
	if wider := p.await(client, "overflow")[0]; string(wider) != "0" {
		p.t.Errorf("for %s the page is %s pixels wider than the window", client, wider)
	}
}

const (
	joinButton = `role=button[name="Join"]`
	nameField  = `role=textbox[name="Name"]`
	roomField  = `role=textbox[name="Room"]`
	noteField  = `role=textbox[name="Note to the room"]`
	friend     = `role=textbox[name="Add a friend"]`
	friends    = `role=region[name="Friends"] >> role=listitem >> text="%s" >> xpath=ancestor::li`
	people     = `role=region[name="%s"] >> role=listitem`
	feed       = `role=log[name="Events"]`
)

// TestThePageShowsWhoIsThere has two browsers on two nodes, one a phone in the dark, do everything that the page offers.
func TestThePageShowsWhoIsThere(t *testing.T) {
	takesLong(t)
	t.Parallel()
	s := startSite(t, realRedis(t))
	p := pageUsers{browserScript(t, "page.mjs")}
	room := "design " + uniqueRoom(t)[len(t.Name()):]
	card := func(of string) string {
		return fmt.Sprintf(people, room) + fmt.Sprintf(` >> text="%s" >> xpath=ancestor::li`, of)
	}
	phone := command{"viewport": command{"width": 390, "height": 844}, "colorScheme": "dark", "reducedMotion": "reduce"}

	p.open("ann", s.url(0)+"/", command{"viewport": command{"width": 1280, "height": 860}, "colorScheme": "light"})
	p.shot("ann", "door-desktop-light")
	p.assertReadable("ann")
	p.do("ann", "fill", command{"what": nameField, "text": "Ann"})
	p.do("ann", "fill", command{"what": roomField, "text": room})
	p.do("ann", "press", command{"what": roomField, "key": "Enter"})
	p.shows("ann", "#status", "live")
	p.open("bob", s.url(1)+"/", phone)
	p.shot("bob", "door-phone-dark")
	p.assertReadable("bob")
	p.open("bob", s.url(1)+"/?"+url.Values{"room": {room}, "name": {"Bob Marley"}}.Encode(), phone)
	p.shows("bob", card("Ann"), "here")
	p.shows("ann", card("Bob Marley"), "here")
	p.shows("ann", "#news", "Bob Marley came")
	if first, second := p.texts("ann", "#node"), p.texts("bob", "#node"); slices.Equal(first, second) {
		t.Errorf("both are served by node %s", first)
	}

	p.do("bob", "choose", command{"what": `role=radio[name="Busy"]`})
	p.shows("ann", card("Bob Marley"), "busy")
	const hostile = `<img src=x onerror="document.title='bad'">`
	p.do("bob", "fill", command{"what": noteField, "text": hostile})
	p.shows("ann", feed, "Bob Marley is typing")
	p.shows("ann", card("Bob Marley"), hostile)
	p.shows("ann", feed, "rev ")

	cleo := fmt.Sprintf(friends, "Cleo") // is going to be in another room, on the other node
	for _, name := range []string{"Cleo", "Bob Marley"} {
		p.do("ann", "fill", command{"what": friend, "text": name})
		p.do("ann", "press", command{"what": friend, "key": "Enter"})
	}
	p.shows("ann", cleo, "offline")
	p.shows("ann", fmt.Sprintf(friends, "Bob Marley"), "online")
	p.open("cleo", s.url(1)+"/?"+url.Values{"room": {room + " 2"}, "name": {"Cleo"}, "friend": {"Ann", "Dora"}}.Encode(), phone)
	p.shows("ann", cleo, "online")
	p.shows("ann", "#news", "Cleo is online")
	p.shows("cleo", fmt.Sprintf(friends, "Ann"), "online")
	p.shows("cleo", fmt.Sprintf(friends, "Dora"), "offline")
	p.shot("cleo", "friends-phone-dark")
	p.assertReadable("cleo")

	p.do("ann", "newTab", command{"what": `role=button[name="Second tab"]`, "as": "second"})
	p.await("ann", "opened")
	p.shows("bob", card("Ann"), "2 tabs")
	p.shows("second", cleo, "online") // the address has the friends
	p.shows("bob", "#counts", "2 people · 3 connections")
	p.shot("ann", "room-desktop-light")
	p.shot("bob", "room-phone-dark")
	p.assertReadable("ann")
	p.assertReadable("bob")
	p.do("second", "close", nil)
	p.shows("bob", feed, "Ann has 1 tab left, disconnected")

	p.do("cleo", "close", nil)
	p.shows("ann", cleo, "offline")
	p.click("ann", `role=button[name="Remove Cleo"]`)
	if left := p.texts("ann", `role=region[name="Friends"] >> role=listitem`); len(left) != 1 {
		t.Errorf("the friends are %q", left)
	}

	p.click("ann", `role=button[name="Lose the connection"]`)
	p.shows("bob", feed, "Ann left, disconnected")
	p.shows("bob", feed, "Ann came")
	p.shows("ann", "#status", "live")

	p.click("ann", `role=button[name="Sleep 40 s"]`)
	p.shows("ann", "#status", "asleep")
	p.shows("ann", "role=timer", "This tab is asleep")
	p.shot("ann", "asleep-desktop-light")
	p.do("bob", "choose", command{"what": `role=radio[name="Away"]`})
	p.shows("bob", feed, "Bob Marley is away")
	if said := p.texts("ann", card("Bob Marley")); strings.Contains(said[0], "away") {
		t.Errorf("it hears in its sleep: %q", said)
	}
	p.click("ann", `role=button[name="Wake up"]`)
	p.shows("ann", card("Bob Marley"), "away")

	s.nodes[0].signal(syscall.SIGKILL)
	s.nodes[0].wait(15 * time.Second) // its port is free then
	p.shows("ann", "#status", "offline")
	s.start(t, 0)
	p.shows("ann", "#status", "live")

	p.click("ann", `role=button[name="Leave"]`)
	p.shows("bob", feed, ", left") // the connection of before counts until the lease of its node is over
	p.shows("ann", "#door", "Come in")
	for client, told := range p.told {
		for _, news := range told {
			if news.what == "complaint" {
				t.Errorf("the browser of %s complains: %s", client, news.rest)
			}
		}
	}
}

// TestThePageShowsStatesOfAnyKind: clients of other makes may put anything where the page has its texts.
func TestThePageShowsStatesOfAnyKind(t *testing.T) {
	takesLong(t)
	t.Parallel()
	n := startNodeFor(t, miniRedis(t))
	p := pageUsers{browserScript(t, "page.mjs")}
	p.open("ann", "http://127.0.0.1:"+n.port()+"/?room=lobby&name=Ann", nil)
	p.shows("ann", "#status", "live")
	for name, at := range map[string]struct{ state, says string }{
		"Object":  {`{"mood":{"kind":"busy"},"note":["a",1]}`, `{"kind":"busy"}: “["a",1]”`},
		"Array":   {`{"mood":[],"note":{}}`, `[]: “{}”`},
		"Number":  {`{"mood":0,"note":false}`, `0: “false”`},
		"Null":    {`{"mood":null,"note":null}`, "here"},
		"Endless": {`{"mood":"` + strings.Repeat("m", 10_000) + `"}`, strings.Repeat("m", 80) + "…"},
		"Nothing": {`{}`, "here"},
	} {
		u := n.member(t, "lobby", name, at.state)
		card := fmt.Sprintf(people, "lobby") + fmt.Sprintf(` >> text="%s" >> xpath=ancestor::li`, name)
		p.shows("ann", card, at.says)
		u.ok(eventHeartbeat, `{"patchState":{"mood":{"then":[1]}}}`)
		p.shows("ann", card, `{"then":[1]}`)
		p.shows("ann", feed, name+` is {"then":[1]}`)
	}
	for _, news := range p.told["ann"] {
		if news.what == "complaint" {
			t.Errorf("the browser complains: %s", news.rest)
		}
	}
}

// TestEveryStatusHasItsWords: the page knows each status of the helper.
func TestEveryStatusHasItsWords(t *testing.T) {
	kinds := regexp.MustCompile(`@typedef \{(.*)\} Status`).FindStringSubmatch(readText(t, "web/presence.js"))
	if kinds == nil {
		t.Fatal("no type Status")
	}
	page := readText(t, "web/demo.js")
	for kind := range strings.SplitSeq(kinds[1], " | ") {
		if !strings.Contains(page, strings.Trim(kind, `"`)+`: "`) {
			t.Errorf("the page has no words for %s", kind)
		}
	}
}
