package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each attack is tried in small: a few attackers, and a large room of five members.
func TestEachAttackIsReported(t *testing.T) {
	needRedis(t)
	server, err := buildServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range attackModes() {
		t.Run(m.name, func(t *testing.T) {
			if m.name != "attack-updates" {
				takesLong(t)
			}
			t.Parallel()
			file := filepath.Join(t.TempDir(), "results.json")
			args := []string{"-mode", m.name, "-server", server, "-clients", "5", "-rooms", "1", "-seconds", "0.3", "-json", file}
			var out bytes.Buffer
			if err := run(t.Context(), args, &out); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			checkAttack(t, lastResults(t, file).Results)
			if !strings.Contains(out.String(), m.name) {
				t.Errorf("there is no row of it in\n%s", out.String())
			}
		})
	}
}

func checkAttack(t *testing.T, results []result) {
	t.Helper()
	if len(results) != 1 || results[0].Attack == nil {
		t.Fatalf("got %+v", results)
	}
	a := results[0].Attack
	if a.Sent == 0 || a.Calm == nil || a.Lag == nil || a.Victims == nil || a.Failure != "" || a.Newcomers == 0 {
		t.Errorf("got %+v", a)
	}
	for _, l := range []levels{a.Megabytes, a.Descriptors, a.RedisMegabytes} {
		if l.Before <= 0 || l.Peak < l.Before || l.After <= 0 {
			t.Errorf("levels %+v", l)
		}
	}
}

// A forged token has to be one whose signature is checked: else the attack would not show what a check costs.
func TestForgedTokensAreRefusedForTheirSignature(t *testing.T) {
	needRedis(t)
	dir := t.TempDir()
	env, connect, err := signedConnects(dir)
	if err != nil {
		t.Fatal(err)
	}
	server, err := buildServer(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var s site
	defer s.close()
	if err := s.open(t.Context(), trial{settings: settings{server: server, nodes: 1}, mode: mode{env: env}, dir: dir}); err != nil {
		t.Fatal(err)
	}
	f, err := direct(t.Context(), s.nodes[0], 0, connect("ann"))
	if err != nil {
		t.Fatalf("a member: %v", err)
	}
	defer f.conn.Close()
	if err := f.converse(`421["presence:auth",{"token":"`+forgedToken("ann")+`"}]`, `431[{"ok":false,"error":"the token is not valid: token signature is invalid"`); err != nil {
		t.Error(err)
	}
}

func TestAttacksStayOnThisMachine(t *testing.T) {
	for name, test := range map[string]struct {
		target string
		ok     bool
	}{
		"IPv4":                        {"http://127.0.0.1:3000", true},
		"another address of loopback": {"http://127.9.0.1:3000", true},
		"IPv6":                        {"http://[::1]:3000", true},
		"name":                        {"redis://localhost:6379", true},
		"socket":                      {"unix:///run/redis.sock", true},
		"several servers":             {"redis://127.0.0.1:1?addr=127.0.0.1:2&addr=[::1]:3", true},
		"another machine":             {"http://192.0.2.1:3000", false},
		"all addresses":               {"http://0.0.0.0:3000", false},
		"another machine by name":     {"http://localhost.example:3000", false},
		"user that looks like a host": {"http://localhost@192.0.2.1:3000", false},
		"a server of several":         {"redis://127.0.0.1:1?addr=127.0.0.1:2&addr=192.0.2.1:3", false},
		"no host":                     {"redis://:6379", false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := onLoopback(test.target); (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// An attack that is refused has started nothing: these would fail otherwise, for there is no such server.
func TestAttacksAreBounded(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"elsewhere":          {[]string{"-server", "http://192.0.2.1:3000"}, "192.0.2.1 is not on the loopback"},
		"Redis elsewhere":    {[]string{"-server", "/nowhere", "-redis", "redis://192.0.2.1"}, "192.0.2.1 is not on the loopback"},
		"too long":           {[]string{"-server", "/nowhere", "-seconds", "61"}, "lasts at most"},
		"too many attackers": {[]string{"-server", "/nowhere", "-clients", "5001"}, "attackers here"},
		"too large a room":   {[]string{"-server", "/nowhere", "-clients", "2000", "-rooms", "1"}, "a room of 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), append(test.args, "-mode", "attack-pages"), new(bytes.Buffer))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestSecurityHasARowForEachAttack(t *testing.T) {
	text, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attacks() {
		if !strings.Contains(string(text), "\n| `"+a.name+"` | ") {
			t.Errorf("there is no row for %s", a.name)
		}
	}
}

func attacked(a attackResult) report {
	return report{Results: []result{{Mode: "attack-x", Attack: &a}}}
}

func TestTableMarksWhatAnAttackDid(t *testing.T) {
	var out bytes.Buffer
	r := attacked(attackResult{Calm: &latency{1, 2, 3, 4}, Victims: &latency{5, 90, 101, 300}, Lag: &latency{P99: 37}, Newcomers: 8, NewcomersFailed: 2,
		Megabytes: levels{20, 1025, 400}, Lawful: true, Closed: 6})
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"101 !", "1025 !", "2 of 8 !", "6 !", " 300 ", " 37 "} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("there is no %q in\n%s", text, out.String())
		}
	}
}

func TestHarmThatNoLoadExcusesIsAFault(t *testing.T) {
	for name, test := range map[string]struct {
		result attackResult
		want   string
	}{
		"slow":             {attackResult{Victims: &latency{P99: 1000}, Closed: 7}, ""},
		"a victim was cut": {attackResult{Failure: "a victim: closed"}, "attack-x: a victim: closed"},
		"lawful":           {attackResult{Lawful: true, Closed: 7}, "attack-x: 7 connections were closed"},
	} {
		t.Run(name, func(t *testing.T) {
			err := attacked(test.result).faults()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
