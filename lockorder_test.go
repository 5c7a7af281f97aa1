package main

import (
	"regexp"
	"slices"
	"testing"
)

func TestREADMEAndDocsGiveTheOrderOfLocks(t *testing.T) {
	var inCode, inDocs []string
	for _, rank := range regexp.MustCompile(`(?m)^\trank\w+ .*// (.*)$`).FindAllStringSubmatch(readText(t, "lockorder.go"), -1) {
		inCode = append(inCode, rank[1])
	}
	for _, row := range table(section(t, "Locks"), "lock") {
		inDocs = append(inDocs, row[0])
	}
	if want := append(inDocs, "all others"); len(inDocs) == 0 || !slices.Equal(inCode, want) {
		t.Errorf("the order of locks is\n%q in the code and\n%q in docs/code.md", inCode, want)
	}
}
