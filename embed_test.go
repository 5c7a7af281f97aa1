package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// embeddable are the patterns of the files that another program copies into its main package, without their tests.
var embeddable = []string{"presence*.go", "reaper*.go", "bridge*.go", "types*.go", "keys.go", "background.go", "lua"}

func TestTheEmbeddableFilesAreAProgramOfTheirOwnWithTheRedisClientOnly(t *testing.T) {
	takesLong(t)
	t.Parallel()
	keepsBusy(t)
	dir := t.TempDir()
	copyEmbeddable(t, dir)
	copyInto(t, dir, filepath.Join("testdata", "embed", "main.go"), "main.go")
	copyInto(t, dir, "go.sum", "go.sum")
	mod := "module embedded\n\ngo 1.26.0\n\nrequire " + redisRequirement(t) + "\n"
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
		t.Fatal(err)
	}

	build := exec.CommandContext(t.Context(), "go", "build", "-o", "program", ".")
	build.Dir = dir
	// From the module cache: our own build has everything that this one needs.
	build.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("it does not build: %v\n%s", err, out)
	}

	out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "program"), miniRedis(t).mini.Addr()).CombinedOutput()
	if err != nil {
		t.Fatalf("it fails: %v\n%s", err, out)
	}
	want := `1 1 {"mood":"better"}
join lobby ann c1 1 {"mood":"fine"} 
update lobby ann c1 1 {"mood":"better"} 
leave lobby ann c1 0 null left
`
	if string(out) != want {
		t.Errorf("it prints\n%s, want\n%s", out, want)
	}
}

// copyEmbeddable copies what is embeddable into a directory.
func copyEmbeddable(t *testing.T, dir string) {
	t.Helper()
	for _, pattern := range embeddable {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("there are no files %s: %v", pattern, err)
		}
		for _, name := range names {
			if !isTest(name) {
				copyInto(t, dir, name, name)
			}
		}
	}
}

// copyInto copies a file, or a directory without others in it.
func copyInto(t *testing.T, dir, from, to string) {
	t.Helper()
	to = filepath.Join(dir, to)
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.CopyFS(to, os.DirFS(from))
	} else {
		var text []byte
		if text, err = os.ReadFile(from); err == nil {
			err = os.WriteFile(to, text, 0o644)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// redisRequirement is our own requirement of the Redis client.
func redisRequirement(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`github\.com/redis/go-redis/v9 v\S+`).Find(mod)
	if found == nil {
		t.Fatal("go.mod does not require the Redis client")
	}
	return string(found)
}
