package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// httpExamples do the same in several languages.
var httpExamples = []struct {
	name, program string
	args          []string
	online        string // what it prints of users who are online, and offline
	removed       string
	optional      bool // no image of CI has the language: where it is missing, nothing fails
}{
	{"curl", "sh", []string{"presence.sh"}, `{"userId":ANN,"online":true,"conns":1},{"userId":"nobody","online":false,"conns":0`, `{"removed":1}`, false},
	{"Python", "python3", []string{"-B", "presence.py"}, "ANN online 1\nnobody offline 0\n", "removed 1\n", false},
	{"Go", "go", []string{"run", "."}, "ANN online 1\nnobody offline 0\n", "removed 1\n", false},
	{"PHP", "php", []string{"presence.php"}, "ANN online 1\nnobody offline 0\n", "removed 1\n", true},
}

// TestTheHTTPExamples each ask for users, send an event and remove a user, with ids that have to be encoded, and say what went
// wrong.
func TestTheHTTPExamples(t *testing.T) {
	t.Parallel()
	for _, e := range httpExamples {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			_, err := exec.LookPath(e.program)
			if e.optional && err != nil {
				t.Skipf("%s is not in PATH: its example is not tried", e.program)
			}
			need(t, err == nil, e.program+" in PATH")
			if e.program == "go" { // it is compiled first
				takesLong(t)
				keepsBusy(t)
			}
			n, room, user := startWithAPI(t, miniRedis(t)), uniqueRoom(t)+` ü/"?\ #1`, `ann "the/1st" é`
			u := n.member(t, room, user, "{}")
			run := func(key string, args ...string) (string, error) {
				cmd := exec.CommandContext(t.Context(), e.program, slices.Concat(e.args, args)...)
				cmd.Dir = filepath.Join("examples", "http")
				cmd.Env = append(os.Environ(), "PRESENCE_URL=http://127.0.0.1:"+n.port(), "PRESENCE_API_KEY="+key)
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			ann := user
			if e.name == "curl" {
				ann = literal(user)
			}
			if out, err := run(testAPIKey, "online", user, "nobody"); err != nil || !strings.Contains(out, strings.ReplaceAll(e.online, "ANN", ann)) {
				t.Errorf("online prints %s, %v", out, err)
			}
			if out, err := run(testAPIKey, "emit", room, "chat", `he said "hello é" \o/`); err != nil {
				t.Errorf("emit prints %s, %v", out, err)
			}
			n.mustEmit(t, room, `{"event":"end"}`)
			if got, want := u.emitted("end"), []string{`["chat",{"text":"he said \"hello é\" \\o/"}]`}; !slices.Equal(got, want) {
				t.Errorf("the client got %q, want %q", got, want)
			}
			for key, code := range map[string]Code{"wrong": CodeUnauthorized, testAPIKey: CodeInvalidPayload} {
				if out, err := run(key, "emit", room, "disconnect", "text"); err == nil || !strings.Contains(out, string(code)) {
					t.Errorf("a mistake prints %s, %v", out, err)
				}
			}
			if out, err := run(testAPIKey, "remove", user); err != nil || !strings.Contains(out, e.removed) {
				t.Errorf("remove prints %s, %v", out, err)
			}
			u.endsForGood()
		})
	}
}
