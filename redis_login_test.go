package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// replace puts another text in place of a file at once, as whoever rotates a password should.
func replace(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path+".new", []byte(text), 0o600))
	must(t, os.Rename(path+".new", path))
}

// TestThePasswordOfRedisIsReadForEachConnection while it changes under a node: commands, pipelines and Pub/Sub follow.
func TestThePasswordOfRedisIsReadForEachConnection(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, url string // what stands before the address
		settings  []string
		cluster   bool
		query     string
	}{
		{name: "alone", url: "redis://", settings: []string{"PRESENCE_REDIS_USERNAME=app"}},
		{name: "in place of the URL's", url: "redis://default:wrong@", settings: []string{"PRESENCE_REDIS_USERNAME=app"}},
		{name: "with the user of the URL", url: "redis://app:wrong@"},
		{name: "in a cluster", url: "redis://", settings: []string{"PRESENCE_REDIS_USERNAME=app"}, cluster: true},
		{name: "with sharded Pub/Sub", url: "redis://", settings: []string{"PRESENCE_REDIS_USERNAME=app", "PRESENCE_SHARDED_PUBSUB=true"}, cluster: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.cluster {
				takesLong(t)
			}
			s := startAppServers(t, tc.cluster)
			followsPassword(t, s, tc.url+s.nodes[0].addr, tc.settings...)
		})
	}
	t.Run("with Sentinel", func(t *testing.T) {
		takesLong(t)
		s := startAppServers(t, false)
		sentinel := spawnSentinel(t, "people", s.nodes[0])
		path := filepath.Join(t.TempDir(), "password")
		replace(t, path, "old\n")
		url := sentinel.url + "?master_name=people"
		eventually(t, 5*time.Second, "the sentinel knows the master", func() bool {
			rdb, err := openRedis(t.Context(), url, redisLogin{"app", path})
			if err == nil {
				_ = rdb.Close()
			}
			return err == nil
		})
		followsPassword(t, s, url, "PRESENCE_REDIS_USERNAME=app")
	})
}

func followsPassword(t *testing.T, s *appServers, url string, settings ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	replace(t, path, "old\r\n")
	out := &lockedBuffer{}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(out, t.Output()), &slog.HandlerOptions{Level: slog.LevelDebug}))
	n, err := startNode(testConfig(t, url, append(settings, "PRESENCE_REDIS_PASSWORD_FILE="+path)...), log)
	must(t, err)
	t.Cleanup(n.stop)
	room := uniqueRoom(t)
	witness, u := n.member(t, room, "witness", "{}"), n.member(t, room, "ann", "{}")
	s.refuse(redisRefusal{do: []string{"ACL SETUSER app resetpass >new-secret"}})
	u.unavailableInTime(eventHeartbeat, `{"patchState":{"a":1}}`)
	replace(t, path, "new-secret")
	eventually(t, 10*time.Second, "a patch works", func() bool { return u.call(eventHeartbeat, `{"patchState":{"a":1}}`).OK })
	eventually(t, 10*time.Second, "a room that nobody is subscribed to works", func() bool {
		return u.call(eventJoin, joinPayloadOf(room+"2", "ann", "{}")).OK
	})
	witness.settled(u, room)
	if strings.Contains(out.String(), "new-secret") {
		t.Error("the password is in the log")
	}
}

func TestAPasswordFileThatHoldsNoneIsABadSetting(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{
		filepath.Join(dir, "missing"):   "no such file",
		dir:                             "not a regular file",
		pipe:                            "not a regular file",
		saved(t, "empty", []byte("\n")): "it is empty",
		saved(t, "large", make([]byte, maxPasswordBytes+1)): "more than",
	} {
		p := startProgram(t, "REDIS_URL=redis://127.0.0.1:1", "PORT=0", "PRESENCE_REDIS_PASSWORD_FILE="+path)
		if code := p.wait(10 * time.Second); code != exitSettings {
			t.Errorf("%s: exit code %d", path, code)
		}
		line := strings.TrimSpace(p.out.String())
		if !strings.HasPrefix(line, `PRESENCE_REDIS_PASSWORD_FILE="`+path+`": must be`) || !strings.Contains(line, want) || strings.Contains(line, "\n") {
			t.Errorf("%s: it says %q", path, line)
		}
	}
}

// TestTheLoginOfTheSettings in options of each kind.
func TestTheLoginOfTheSettings(t *testing.T) {
	path := saved(t, "password", []byte("pa ss\n\n"))
	for _, tc := range []struct {
		url                        string
		login                      redisLogin
		username, password, static string
	}{
		{"redis://u:p@h:1", redisLogin{}, "u", "", "p"},
		{"redis://u:p@h:1", redisLogin{username: "v"}, "v", "", "p"},
		{"redis://u:p@h:1", redisLogin{passwordFile: path}, "u", "pa ss", ""},
		{"redis://u:p@h:1?addr=i:1", redisLogin{"v", path}, "v", "pa ss", ""},
		{"redis://:p@h:1?master_name=m&username=u", redisLogin{passwordFile: path}, "u", "pa ss", ""},
	} {
		o, err := redisOptions(tc.url)
		must(t, err)
		tc.login.apply(o)
		username, password := o.Username, ""
		if o.CredentialsProviderContext != nil {
			username, password, err = o.CredentialsProviderContext(t.Context())
			must(t, err)
		}
		if username != tc.username || password != tc.password || o.Password != tc.static {
			t.Errorf("%s with %v: %q %q %q", tc.url, tc.login, username, password, o.Password)
		}
	}
	if o, _ := redisOptions("redis://:p@h:1?master_name=m&username=u"); o.SentinelPassword != "p" {
		t.Error("the sentinels' password is lost")
	}
}
