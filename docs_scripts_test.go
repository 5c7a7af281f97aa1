package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// timersCounted goes in front of the README's client and tells how many of its timers run.
const timersCounted = `
const live = new Set(), { setInterval: start, clearInterval: end } = globalThis;
globalThis.setInterval = (...args) => { const timer = start(...args); live.add(timer); console.log("timers", live.size); return timer; };
globalThis.clearInterval = (timer) => { live.delete(timer); end(timer); };
`

// applicationEvents goes behind it.
const applicationEvents = `
socket.onAny((name, ...args) => name.startsWith("presence:") || console.log("application", JSON.stringify([name, ...args])));
`

// TestREADMEAndDocsScriptsWork runs its client against a node, has it lose its connection, and sends it what its emitter sends.
func TestREADMEAndDocsScriptsWork(t *testing.T) {
	t.Parallel()
	b := miniRedis(t)
	config, _, errs := loadConfig([]string{"PORT=0", "REDIS_URL=" + b.url})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	n, err := startNode(config, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	port := n.listener.Addr().(*net.TCPAddr).Port
	member := replaceOnce(t, codeBlock(t, section(t, "A client"), "js"), "localhost:3000", fmt.Sprintf("127.0.0.1:%d", port))
	member = timersCounted + replaceOnce(t, member, "10_000", "20") + applicationEvents
	emitter := replaceOnce(t, codeBlock(t, section(t, "Application events"), "js"), "redis://localhost:6379", b.url)

	w := nodeScript(t, helperScript(t, section(t, "Watching"), port))
	expectLines(w, "snapshot 0 complete", "u-42 is offline")
	h := nodeScript(t, helperScript(t, section(t, "Client helper"), port))
	expectLines(w, "u-42 is online")
	expectLines(h, "status: joining", "snapshot  [ 'u-42' ]", "status: joined")
	if err := h.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expectLines(h, "status: left")

	p := nodeScript(t, savedScript(t, member))
	expectLines(p, "timers 1", "snapshot: [", "update u-42")
	n.sockets.each((*client).close)
	expectLines(p, "timers 1", "snapshot: [", "update u-42")
	nodeScript(t, savedScript(t, emitter))
	expectLines(p, `application ["chat",{"from":"u-7","text":"hello"}]`)
}

// helperScript saves the script of a section beside the client helper, for the node on a port.
func helperScript(t *testing.T, section string, port int) string {
	t.Helper()
	script := savedScript(t, replaceOnce(t, codeBlock(t, section, "js"), "localhost:3000", fmt.Sprintf("127.0.0.1:%d", port)))
	beside := filepath.Join("testdata", "node", filepath.Dir(script), "presence.mjs")
	if err := os.WriteFile(beside, []byte(readText(t, "web/presence.js")), 0o600); err != nil {
		t.Fatal(err)
	}
	return script
}

// TestREADMEAndDocsTokenIsGood runs what it shows of Node.js.
func TestREADMEAndDocsTokenIsGood(t *testing.T) {
	script := codeBlock(t, section(t, "Authentication"), "js")
	p := nodeScript(t, savedScript(t, replaceOnce(t, script, "process.env.PRESENCE_JWT_SECRET", quoted(testSecret))))
	g, err := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret).check(p.next())
	if err != nil || g.user != "u-42" || !g.allows("room-1") || g.allows("other") {
		t.Errorf("it allows %+v, %v", g, err)
	}
}

// savedScript writes a script beside the packages of testdata/node and returns what nodeScript wants.
func savedScript(t *testing.T, text string) string {
	t.Helper()
	packages, err := filepath.Abs(filepath.Join("testdata", "node"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "script.mjs")
	err = errors.Join(
		os.Symlink(filepath.Join(packages, "node_modules"), filepath.Join(dir, "node_modules")),
		os.WriteFile(script, []byte(text), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if script, err = filepath.Rel(packages, script); err != nil {
		t.Fatal(err)
	}
	return script
}

// expectLines reads what the script writes until each line that begins so has come, in this order. More than one timer is
// a failure.
func expectLines(p *nodeProcess, beginnings ...string) {
	p.t.Helper()
	for _, beginning := range beginnings {
		for line := ""; !strings.HasPrefix(line, beginning); {
			line = p.next()
			if strings.HasPrefix(line, "timers") && line != "timers 1" {
				p.t.Fatalf("the client runs %s", line)
			}
		}
	}
}
