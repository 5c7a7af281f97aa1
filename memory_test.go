package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimitIsTheLeastOfAllGroups(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	root := filepath.Join(dir, "groups")
	write("groups/memory.max", "4000\n")
	write("groups/a/memory.max", "2000\n")
	write("groups/a/b/memory.max", "max\n")
	write("groups/memory/memory.limit_in_bytes", "9223372036854771712\n")
	write("groups/memory/c/memory.limit_in_bytes", "1000\n")
	for text, want := range map[string]int64{
		"0::/a/b\n":                       2000,
		"0::/\n":                          4000,
		"0::/not/mounted\n":               4000,
		"12:cpu,memory:/c\n3:cpu:/a\n":    1000,
		"12:memory:/d\n":                  9223372036854771712,
		"":                                math.MaxInt64,
		"not a line of that file, at all": math.MaxInt64,
	} {
		if got := groupMemory(write("self", text), root); got != want {
			t.Errorf("%q allows %d, want %d", text, got, want)
		}
	}
	if got := machineMemory(write("meminfo", "MemFree: 12 kB\nMemTotal:       2048 kB\n")); got != 2048<<10 {
		t.Errorf("the machine has %d bytes", got)
	}
	if got := groupMemory(filepath.Join(dir, "missing"), root); got != math.MaxInt64 {
		t.Errorf("without groups the limit is %d", got)
	}
}

func TestUnsentTotalIsAQuarterOfMemory(t *testing.T) {
	for memory, want := range map[int64]int{
		math.MaxInt64: 256 << 20,
		0:             256 << 20,
		1 << 30:       256 << 20,
		2 << 30:       512 << 20,
	} {
		if got := unsentTotal(memory); got != want {
			t.Errorf("of %d bytes %d may wait, want %d", memory, got, want)
		}
	}
}
