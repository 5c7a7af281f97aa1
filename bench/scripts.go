package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What the server puts in front of a script, by whether it may run when Redis is out of memory.
const (
	writes      = "#!lua"
	alwaysWorks = "#!lua flags=allow-oom"
)

// scripts are the hashes of those scripts of the server that a member's life needs.
type scripts struct{ join, heartbeat, patch, remove, indexRoom, indexUser, unindexUser, renewLease, noteRooms string }

// loadScripts gives the server's scripts to each master, joined from the same files in the same way.
func loadScripts(ctx context.Context, masters []*redis.Client) (s scripts, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "presence").Output()
	if err != nil {
		return s, fmt.Errorf("looking for the server's scripts: %w", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "lua")
	for _, script := range []struct {
		sha   *string
		flags string
		files string
	}{
		{&s.join, writes, "base room held devices join"},
		{&s.heartbeat, alwaysWorks, "base heartbeat"},
		{&s.patch, writes, "base room patch"},
		{&s.remove, alwaysWorks, "base room held devices remove"},
		{&s.indexRoom, writes, "base index_room"},
		{&s.indexUser, writes, "index_user"},
		{&s.unindexUser, alwaysWorks, "base unindex_user"},
		{&s.renewLease, alwaysWorks, "base renew_lease"},
		{&s.noteRooms, writes, "note_rooms"},
	} {
		source := script.flags + "\n"
		files := strings.Fields("calls " + script.files)
		body := len(files) - 1
		for i, name := range append(files, "answers") {
			text, err := os.ReadFile(filepath.Join(dir, name+".lua"))
			if err != nil {
				return s, err
			}
			if i == body {
				text = fmt.Appendf(nil, "local function run()\n%send\n", text)
			}
			source += string(text)
		}
		for _, master := range masters {
			if *script.sha, err = master.ScriptLoad(ctx, source).Result(); err != nil {
				return s, fmt.Errorf("loading %s: %w", script.files, err)
			}
		}
	}
	return s, nil
}
