package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// exampleDir is a module of its own: its files are a program only together with those that its README copies.
const exampleDir = "examples/zishang"

// TestTheExampleBesideAnotherSocketIOServer does what the README of the example says where nothing else is, and has clients of
// two processes meet: those of socket.io-client, and the library's own.
func TestTheExampleBesideAnotherSocketIOServer(t *testing.T) {
	takesLong(t)
	t.Parallel()
	keepsBusy(t)
	needNode(t)
	b, room := realRedis(t), uniqueRoom(t)
	server, client := buildExample(t)
	nodes := []*program{startProcess(t, server, "PORT=0", "REDIS_URL="+b.url), startProcess(t, server, "PORT=0", "REDIS_URL="+b.url)}
	first, second := "http://"+nodes[0].address(), "http://"+nodes[1].address()
	js := startClients(t)
	goClients := &realClients{nodeProcess: lineProcess(t, exec.Command(client)), told: map[string][]clientNews{}}

	ann := js.open("ann", first, room, "polling", "websocket").Self.ConnID
	bea := js.open("bea", second, room, "websocket").Self.ConnID
	joined := goClients.open("cem", second, room)
	cem := joined.Self.ConnID
	if len(joined.Snapshot) != 3 || joined.TTLMs != 30_000 {
		t.Errorf("the third one's snapshot has %+v, its TTL is %d ms", joined.Snapshot, joined.TTLMs)
	}
	heartbeatsOfTheExample(t, js, goClients, room)
	goClients.sees("cem", ann, "update 1")
	for _, other := range []string{"ann", "bea"} {
		js.sees(other, cem, "join", "update 2")
	}

	js.call("bea", "chat", command{"roomId": room, "text": "hello"})
	if text := string(goClients.await("cem", "chat")[0]); !strings.Contains(text, `"text":"hello"`) || !strings.Contains(text, bea) {
		t.Errorf("what bea says arrives as %s", text)
	}

	js.call("bea", "presence:leave", command{"roomId": room})
	goClients.sees("cem", bea, "leave left")
	js.call("bea", "presence:join", command{"roomId": room, "userId": "bea"})
	goClients.sees("cem", bea, "leave left", "join")
	js.do("ann", "disconnect", nil)
	goClients.sees("cem", ann, "update 1", "leave left")
	goClients.do("cem", "disconnect", nil)
	js.sees("bea", cem, "join", "update 2", "leave left")

	js.open("dan", first, room, "polling")
	nodes[1].signal(syscall.SIGTERM)
	js.sees("dan", bea, "leave left")
	if code := nodes[1].wait(10 * time.Second); code != exitOK {
		t.Errorf("exit code %d:\n%s", code, nodes[1].out)
	}
	for _, node := range nodes {
		if out := node.out.String(); strings.Contains(out, "panic") {
			t.Errorf("a handler panics:\n%s", out)
		}
	}
}

// heartbeatsOfTheExample has ann and cem patch their states, and bea send what nothing comes of.
func heartbeatsOfTheExample(t *testing.T, js, goClients *realClients, room string) {
	t.Helper()
	for _, tc := range []struct {
		event   string
		payload any
		want    Code
	}{
		{"presence:join", nil, CodeInvalidPayload},
		{"presence:join", "text", CodeInvalidPayload},
		{"presence:join", []any{1}, CodeInvalidPayload},
		{"presence:join", command{"roomId": 7, "userId": "bea"}, CodeInvalidPayload},
		{"presence:join", command{"roomId": room + "2", "userId": "bea", "state": []int{1}}, CodeInvalidPayload},
		{"presence:heartbeat", command{"roomId": room, "patchState": 1}, CodeInvalidPayload},
		{"presence:heartbeat", command{"roomId": room, "epoch": 1}, CodeStaleEpoch},
		{"presence:heartbeat", command{"roomId": room, "epoch": "x"}, CodeStaleEpoch},
		{"presence:heartbeat", command{"roomId": room + "2"}, CodeNotJoined},
		{"presence:leave", command{"roomId": ""}, CodeInvalidPayload},
		{"chat", command{"roomId": room + "2", "text": "hello"}, CodeNotJoined},
	} {
		js.do("bea", "emit", command{"event": tc.event, "payload": tc.payload})
		var ack wireAck
		if text := js.await("bea", "ack")[0]; json.Unmarshal(text, &ack) != nil || ack.OK || ack.Code != string(tc.want) {
			t.Errorf("%s %v is answered with %s, want %s", tc.event, tc.payload, text, tc.want)
		}
	}
	js.call("ann", "presence:heartbeat", command{"roomId": room, "patchState": command{"n": 1}})
	goClients.call("cem", "presence:heartbeat", command{"roomId": room, "patchState": command{"n": 2}})
	if ack := js.call("bea", "presence:heartbeat", command{"roomId": room, "patchState": nil}); ack.Changed == nil || *ack.Changed {
		t.Errorf("without a patch it is answered with %+v", ack)
	}
}

// buildExample copies the files by the command of the README, and builds the program and the client.
func buildExample(t *testing.T) (server, client string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, exampleDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "go.mod", "go.sum", "main.go", "socket.go", "client"} {
		copyInto(t, dir, filepath.Join(exampleDir, name), name)
	}
	copyEmbeddable(t, root)
	copyInto(t, root, "presence_test.go", "presence_test.go") // the command has to leave it out
	commands := regexp.MustCompile(`^(.*)\nREDIS_URL=\S+ PORT=\S+ go run \.\n$`).FindStringSubmatch(codeBlock(t, readText(t, exampleDir+"/README.md"), "sh"))
	if commands == nil {
		t.Fatal("the README has other commands than one that copies and one that runs")
	}
	in := func(name string, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
		return cmd.CombinedOutput()
	}
	if out, err := in("sh", "-c", commands[1]); err != nil {
		t.Fatalf("copying: %v\n%s", err, out)
	}
	_, err := in("go", "mod", "download")
	need(t, err == nil, "the modules of "+exampleDir+" (go mod download there)")
	for _, args := range [][]string{{"vet", "./..."}, {"build", "-o", "server", "."}, {"build", "-o", "clients", "./client"}} {
		if out, err := in("go", args...); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	return filepath.Join(dir, "server"), filepath.Join(dir, "clients")
}

func TestTheExampleUsesTheSameRedisClient(t *testing.T) {
	if mod := readText(t, exampleDir+"/go.mod"); !strings.Contains(mod, redisRequirement(t)+"\n") {
		t.Errorf("its go.mod does not require %s:\n%s", redisRequirement(t), mod)
	}
}
