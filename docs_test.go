package main

import (
	"cmp"
	"go/ast"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestREADMEAndDocsTablesAreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	files := sources(t)
	maps.DeleteFunc(files, func(name string, _ *ast.File) bool { return isTest(name) })
	requests, pushes := eventNames(t, files)
	for _, tc := range []struct {
		heading string
		header  string // of the first column
		columns []int  // that are compared
		want    []string
	}{
		{"Requests", "event", []int{0}, requests},
		{"Error codes", "code", []int{0}, texts(t, files["types.go"], "Code")},
		{"Events", "field", []int{0}, jsonFields(Event{})},
		{"Events", "reason", []int{0}, texts(t, files["types.go"], "Reason")},
		{"Snapshot entries", "field", []int{0}, jsonFields(Entry{})},
		{"Settings", "variable", []int{0, 1}, settingRows()},
		{"Keys in Redis", "key", []int{0}, keyNames()},
		{"Dependencies", "module", []int{0}, directModules(t, files, usedModules(t))},
		{"Reading the code", "file", []int{0}, append(slices.Collect(maps.Keys(files)), "lua/", "web/")},
	} {
		t.Run(tc.heading+", "+tc.header, func(t *testing.T) {
			var got []string
			for _, row := range table(section(t, tc.heading), tc.header) {
				got = append(got, pick(row, tc.columns))
			}
			for _, line := range without(tc.want, got) {
				t.Errorf("the documents lack %q", line)
			}
			for _, line := range without(got, tc.want) {
				t.Errorf("only the documents have %q", line)
			}
			if len(got) != len(tc.want) {
				t.Errorf("the documents have %d rows, want %d", len(got), len(tc.want))
			}
		})
	}
	for _, name := range pushes {
		if !strings.Contains(section(t, "Events"), "`"+name+"`") {
			t.Errorf("the documents do not tell of %s", name)
		}
	}
}

// TestREADMEIsShort also looks whether the settings that it names are there.
func TestREADMEIsShort(t *testing.T) {
	const most = 12 << 10
	if size := len(readText(t, "README.md")); size > most {
		t.Errorf("README.md has %d bytes, %d at most: move details to docs/", size, most)
	}
	var named []string
	for _, row := range table(section(t, "Ten settings"), "variable") {
		named = append(named, pick(row, []int{0, 1}))
	}
	if wrong := without(named, settingRows()); len(named) != 10 || len(wrong) > 0 {
		t.Errorf("%d settings, of which the program lacks %q", len(named), wrong)
	}
}

func TestREADMENamesEveryModuleOfTheProgram(t *testing.T) {
	text := section(t, "Dependencies")
	for _, module := range usedModules(t) {
		if !strings.Contains(text, "`"+module+"`") {
			t.Errorf("%s is not named", module)
		}
	}
}

// TestREADMEAndDocsPublishTheRedisUserThatTheProgramNeeds compares with the scripts, and with what is called apart from them.
func TestREADMEAndDocsPublishTheRedisUserThatTheProgramNeeds(t *testing.T) {
	want := strings.Fields("asking cluster|slots eval evalsha exists hello hget info ping publish psubscribe punsubscribe select " +
		"spublish ssubscribe subscribe sunsubscribe unsubscribe zscan persist")
	for _, name := range luaNames(t) {
		for _, call := range regexp.MustCompile(`redis\.p?call\('([A-Z]+)'`).FindAllStringSubmatch(readText(t, name), -1) {
			want = append(want, strings.ToLower(call[1]))
		}
	}
	var got []string
	for _, word := range strings.Fields(publishedUser()) {
		if command, ok := strings.CutPrefix(word, "+"); ok {
			got = append(got, command)
		}
	}
	for _, command := range without(want, got) {
		t.Errorf("the published user lacks +%s", command)
	}
	for _, command := range without(got, want) {
		t.Errorf("the published user needs no +%s", command)
	}
}

func TestREADMEAndDocsEmbedWhatTheEmbeddingTestBuilds(t *testing.T) {
	text := section(t, "Embedding")
	list, _, _ := strings.Cut(text, "into its main package")
	var named []string
	for _, match := range regexp.MustCompile("`([a-z._*]+)`").FindAllStringSubmatch(list, -1) {
		named = append(named, match[1])
	}
	if !slices.Equal(named, embeddable) {
		t.Errorf("the document copies %q, the test %q", named, embeddable)
	}
	if program := readText(t, filepath.Join("testdata", "embed", "main.go")); codeBlock(t, text, "go") != program {
		t.Error("the document's program is another one than testdata/embed/main.go")
	}
}

// TestREADMEAndDocsLinksLeadSomewhere follows those to files of the project and to headings in them.
func TestREADMEAndDocsLinksLeadSomewhere(t *testing.T) {
	documents := documents()
	for name, text := range documents {
		for _, link := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
			path, anchor, anchored := strings.Cut(link[1], "#")
			if strings.Contains(path, "://") {
				continue
			}
			target := name
			if path != "" {
				target = filepath.Join(filepath.Dir(name), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", name, link[1], err)
			}
			if anchored && !slices.Contains(anchors(documents[target]), anchor) {
				t.Errorf("%s links to %s: no such heading", name, link[1])
			}
		}
	}
}

func TestREADMEAndDocsExplainLinesThatAreLogged(t *testing.T) {
	logged := map[string]bool{}
	for name, file := range sources(t) {
		if !isTest(name) {
			ast.Inspect(file, func(n ast.Node) bool { return collectLogged(n, logged) })
		}
	}
	rows := table(section(t, "Troubleshooting"), "log message")
	for _, row := range rows {
		if !logged[row[0]] {
			t.Errorf("nothing logs %q", row[0])
		}
	}
	if len(rows) < 20 {
		t.Errorf("only %d lines of the log are explained", len(rows))
	}
}

// collectLogged adds the messages of calls such as log.Warn("message", …).
func collectLogged(n ast.Node, logged map[string]bool) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return true
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error", "Log"}, method.Sel.Name) {
		return true
	}
	for _, arg := range call.Args {
		if literal, ok := arg.(*ast.BasicLit); ok {
			if text, err := strconv.Unquote(literal.Value); err == nil {
				logged[text] = true
			}
			return true // what follows are attributes
		}
	}
	return true
}

// TestREADMEAndDocsNameWhatTheCodeHas checks the places that docs/code.md gives, and the names of tests anywhere.
func TestREADMEAndDocsNameWhatTheCodeHas(t *testing.T) {
	rules, locks := table(section(t, "Where the rules are"), "rule"), table(section(t, "Locks"), "lock")
	if len(rules) == 0 || len(locks) == 0 {
		t.Fatal("a table is missing")
	}
	for _, row := range rules {
		wantInFile(t, row[1], row[2])
	}
	for _, row := range locks {
		files := strings.Split(row[1], ", ")
		for i, lock := range strings.Split(row[0], ", ") {
			wantInFile(t, files[min(i, len(files)-1)], lock[strings.LastIndex(lock, ".")+1:])
		}
	}
	tests := ""
	for _, pattern := range []string{"*_test.go", "bench/*_test.go"} {
		names, _ := filepath.Glob(pattern) // only a bad pattern is an error
		for _, name := range names {
			tests += readText(t, name)
		}
	}
	for name, text := range documents() {
		for _, test := range regexp.MustCompile("`(Test[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(tests, "\nfunc "+test[1]+"(") {
				t.Errorf("%s names %s, which is no test", name, test[1])
			}
		}
	}
}

func wantInFile(t *testing.T, file, name string) {
	t.Helper()
	if !regexp.MustCompile(`\b` + regexp.QuoteMeta(name) + `\b`).MatchString(readText(t, file)) {
		t.Errorf("docs/code.md looks for %s in %s", name, file)
	}
}

// anchors are the fragments by which the headings of a text are linked to. One that comes twice is none.
func anchors(text string) (unique []string) {
	count := map[string]int{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		count[strings.ReplaceAll(plain, " ", "-")]++
	}
	for anchor, n := range count {
		if n == 1 {
			unique = append(unique, anchor)
		}
	}
	return unique
}

// eventNames are the names of the protocol's events: those that clients send, and the others.
func eventNames(t *testing.T, files map[string]*ast.File) (requests, pushes []string) {
	t.Helper()
	for constant, name := range constants(t, files["handlers.go"], "event") {
		switch constant {
		case "eventPresence", "eventBatch", "eventCount", "eventUser", "eventExpired":
			pushes = append(pushes, name)
		default:
			requests = append(requests, name)
		}
	}
	return requests, pushes
}

// constants are the constants of a file whose names have the prefix, with their texts.
func constants(t *testing.T, file *ast.File, prefix string) map[string]string {
	t.Helper()
	found := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, prefix) {
			return true
		}
		if literal, ok := spec.Values[0].(*ast.BasicLit); ok {
			if text, err := strconv.Unquote(literal.Value); err == nil {
				found[spec.Names[0].Name] = text
			}
		}
		return true
	})
	if len(found) == 0 {
		t.Fatalf("no constants %s…", prefix)
	}
	return found
}

// texts are those of such constants of a file.
func texts(t *testing.T, file *ast.File, prefix string) []string {
	t.Helper()
	return slices.Collect(maps.Values(constants(t, file, prefix)))
}

// settingRows are the settings and their defaults, as the documents write them.
func settingRows() (rows []string) {
	derived := map[string]string{"PRESENCE_MAX_UNSENT_TOTAL_BYTES": "a quarter of the memory", "PRESENCE_REAPER_LOOKBACK_MS": "2 × PRESENCE_TTL_MS"}
	for _, s := range settings() {
		rows = append(rows, s.name+" | "+cmp.Or(s.defaultText, derived[s.name], "none"))
	}
	return rows
}

// jsonFields are the names of a struct's fields on the wire.
func jsonFields(value any) (names []string) {
	kind := reflect.TypeOf(value)
	for i := range kind.NumField() {
		name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
		if name != "-" {
			names = append(names, name)
		}
	}
	return names
}

func keyNames() []string {
	room := keysOf("<roomId>")
	return append(room.indices(), room.held(), room.devices(), room.events(), probeChannel("<id>"), connKey("<roomId>", "<connId>"), kickKey("<roomId>", "<connId>"), activeRoomsKey, userKey("<userId>"), lastSeenKey("<userId>"),
		leasesKey, nodeRoomsKey("<node>"))
}

func luaNames(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("lua/*.lua")
	if err != nil || len(names) == 0 {
		t.Fatalf("found %d scripts, %v", len(names), err)
	}
	return names
}

// directModules are the modules of those that are used whose packages the files of this package import.
func directModules(t *testing.T, files map[string]*ast.File, used []string) (modules []string) {
	t.Helper()
	for _, module := range used {
		for _, file := range files {
			if slices.ContainsFunc(file.Imports, func(spec *ast.ImportSpec) bool { return isOf(spec, module) }) {
				modules = append(modules, module)
				break
			}
		}
	}
	return modules
}

// isOf tells whether the import is of the module. No module of ours is within another one's path.
func isOf(spec *ast.ImportSpec, module string) bool {
	path, _ := strconv.Unquote(spec.Path.Value) // the parser has checked it
	return path == module || strings.HasPrefix(path, module+"/")
}

// usedModules are the modules that the program is built of, without its own.
func usedModules(t *testing.T) []string {
	t.Helper()
	const format = `{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}`
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", format, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	return slices.Compact(modules)
}
