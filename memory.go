package main

import (
	"bufio"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// minUnsentTotal is the least that may wait for all clients by default, in bytes.
const minUnsentTotal = 256 << 20

// unsentTotal is the default of PRESENCE_MAX_UNSENT_TOTAL_BYTES: a quarter of the memory that the process may use.
func unsentTotal(memory int64) int {
	if memory == math.MaxInt64 {
		return minUnsentTotal
	}
	return int(min(max(memory/4, minUnsentTotal), math.MaxInt))
}

// memoryLimit gives the bytes of memory that the process may use: the least of GOMEMLIMIT, of what its control groups
// allow, and of what the machine has. It is math.MaxInt64 where none of these is known.
func memoryLimit() int64 {
	limit := debug.SetMemoryLimit(-1)
	limit = min(limit, machineMemory("/proc/meminfo"))
	return min(limit, groupMemory("/proc/self/cgroup", "/sys/fs/cgroup"))
}

// descriptorLimit reads how many files and sockets the process may open from a file of the form of /proc/self/limits
// (proc(5)). It is 0 where that is not known.
func descriptorLimit(file string) int {
	for _, line := range linesOf(file) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				n, _ := strconv.Atoi(fields[0]) // else "unlimited"
				return n
			}
		}
	}
	return 0
}

// machineMemory reads the size of the machine's memory from a file of the form of /proc/meminfo (proc(5)).
func machineMemory(file string) int64 {
	for _, line := range linesOf(file) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			if kb, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				return kb << 10
			}
		}
	}
	return math.MaxInt64
}

// groupMemory gives the least limit of the process' control group and those around it, of version 2 and 1 (cgroups(7)).
// file has the form of /proc/self/cgroup; root is where the groups are mounted.
func groupMemory(file, root string) int64 {
	limit := int64(math.MaxInt64)
	for _, line := range linesOf(file) {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[1] == "":
			limit = min(limit, leastOf(root, parts[2], "memory.max"))
		case strings.Contains(","+parts[1]+",", ",memory,"):
			limit = min(limit, leastOf(path.Join(root, "memory"), parts[2], "memory.limit_in_bytes"))
		}
	}
	return limit
}

// leastOf reads a file of a group and of each group around it. In a container the group's own path may not be mounted,
// only that of the root.
func leastOf(root, group, name string) int64 {
	limit := int64(math.MaxInt64)
	for dir := path.Clean("/" + group); ; dir = path.Dir(dir) {
		text, _ := os.ReadFile(path.Join(root, dir, name))
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil { // else "max", or no such file
			limit = min(limit, n)
		}
		if dir == "/" {
			return limit
		}
	}
}

// linesOf reads a small text file; nil if there is none.
func linesOf(file string) (lines []string) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		lines = append(lines, in.Text())
	}
	return lines
}
