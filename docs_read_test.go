package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// documents are the texts for readers, by path.
var documents = sync.OnceValue(func() map[string]string {
	names, _ := filepath.Glob("docs/*.md") // only a bad pattern is an error
	texts := map[string]string{}
	for _, name := range append(names, "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md") {
		if text, err := os.ReadFile(name); err == nil { // a section that is missed fails the test that wants it
			texts[name] = string(text)
		}
	}
	return texts
})

// section is what stands below a heading, which one document has once, and above the next heading.
func section(t testing.TB, heading string) string {
	t.Helper()
	var found []string
	for _, text := range documents() {
		for _, place := range regexp.MustCompile(`(?m)^#+ `+regexp.QuoteMeta(heading)+`\n`).FindAllStringIndex(text, -1) {
			below := text[place[1]:]
			if next := regexp.MustCompile(`(?m)^#+ `).FindStringIndex(below); next != nil {
				below = below[:next[0]]
			}
			found = append(found, below)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d headings %q in README.md and docs, want one", len(found), heading)
	}
	return found[0]
}

// publishedUser is the user of Redis that the documents give after ACL SETUSER: its name and its rights.
func publishedUser() string {
	for _, text := range documents() {
		if _, rule, ok := strings.Cut(text, "ACL SETUSER "); ok {
			rule, _, _ = strings.Cut(rule, "\n")
			return rule
		}
	}
	return "" // no test logs in
}

// table gives the cells, without quotes, of the table whose first column has that header.
func table(text, header string) (rows [][]string) {
	_, body, _ := strings.Cut(text, "\n| "+header+" |")
	for i, line := range strings.Split(body, "\n") {
		if i < 2 { // the rest of the header, and the rule below it
			continue
		}
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "`", ""))
		}
		rows = append(rows, cells)
	}
	return rows
}

// pick joins some cells of a row.
func pick(row []string, columns []int) string {
	var cells []string
	for _, column := range columns {
		if column < len(row) {
			cells = append(cells, row[column])
		}
	}
	return strings.Join(cells, " | ")
}

// without are the lines that are not among the others.
func without(lines, others []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return slices.Contains(others, line) })
}

// codeBlock is the only block of that language.
func codeBlock(t *testing.T, text, language string) string {
	t.Helper()
	parts := strings.Split(text, "```"+language+"\n")
	if len(parts) != 2 {
		t.Fatalf("%d blocks of %s, want one", len(parts)-1, language)
	}
	block, _, _ := strings.Cut(parts[1], "```")
	return block
}

func replaceOnce(t *testing.T, text, what, by string) string {
	t.Helper()
	if n := strings.Count(text, what); n != 1 {
		t.Fatalf("%q stands there %d times", what, n)
	}
	return strings.Replace(text, what, by, 1)
}

func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
