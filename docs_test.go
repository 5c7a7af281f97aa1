package main

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestTheTablesOfTheREADMEAndDocsAreThoseOfTheCode(t *testing.T) {
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

// TestTheREADMEIsShort also looks whether the settings that it names are there.
func TestTheREADMEIsShort(t *testing.T) {
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

func TestTheREADMENamesEveryModuleOfTheProgram(t *testing.T) {
	text := section(t, "Dependencies")
	for _, module := range usedModules(t) {
		if !strings.Contains(text, "`"+module+"`") {
			t.Errorf("%s is not named", module)
		}
	}
}

// TestThePublishedUserMayDoWhatTheProgramDoesAndNoMore compares with the scripts, and with what is called apart from them.
func TestThePublishedUserMayDoWhatTheProgramDoesAndNoMore(t *testing.T) {
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

func TestTheREADMEEmbedsWhatTheEmbeddingTestBuilds(t *testing.T) {
	text := section(t, "Embedding")
	list, _, _ := strings.Cut(text, "into its main package")
	var named []string
	for _, match := range regexp.MustCompile("`([a-z._]+)`").FindAllStringSubmatch(list, -1) {
		named = append(named, match[1])
	}
	if !slices.Equal(named, embeddable) {
		t.Errorf("the document copies %q, the test %q", named, embeddable)
	}
	if program := readText(t, filepath.Join("testdata", "embed", "main.go")); codeBlock(t, text, "go") != program {
		t.Error("the document's program is another one than testdata/embed/main.go")
	}
}

// TestLinksInREADMEAndDocsLead follows those to files of the project and to headings in them.
func TestLinksInREADMEAndDocsLead(t *testing.T) {
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

func TestDocsREADMETroubleshootingHasLinesOfTheLog(t *testing.T) {
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

// TestDocsREADMENameWhatTheCodeHas checks the places that docs/code.md gives, and the names of tests anywhere.
func TestDocsREADMENameWhatTheCodeHas(t *testing.T) {
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

// timersCounted goes in front of the README's client and tells how many of its timers run.
const timersCounted = `
const live = new Set(), { setInterval: start, clearInterval: end } = globalThis;
globalThis.setInterval = (...args) => { const timer = start(...args); live.add(timer); console.log("timers", live.size); return timer; };
globalThis.clearInterval = (timer) => { live.delete(timer); end(timer); };
`

// applicationEvents goes behind it.
const applicationEvents = `
socket.onAny((name, ...args) => name.startsWith("presence:") || console.log("application", JSON.stringify([name, ...args])));
`

// TestTheREADMEsScriptsWork runs its client against a node, has it lose its connection, and sends it what its emitter sends.
func TestTheREADMEsScriptsWork(t *testing.T) {
	b := miniRedis(t)
	config, _, errs := loadConfig([]string{"PORT=0", "REDIS_URL=" + b.url})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	n, err := startNode(config, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	port := n.listener.Addr().(*net.TCPAddr).Port
	member := replaceOnce(t, codeBlock(t, section(t, "A client"), "js"), "localhost:3000", fmt.Sprintf("127.0.0.1:%d", port))
	member = timersCounted + replaceOnce(t, member, "10_000", "20") + applicationEvents
	emitter := replaceOnce(t, codeBlock(t, section(t, "Application events"), "js"), "redis://localhost:6379", b.url)

	w := nodeScript(t, helperScript(t, section(t, "Watching"), port))
	expectLines(w, "snapshot 0 complete", "u-42 is offline")
	h := nodeScript(t, helperScript(t, section(t, "Client helper"), port))
	expectLines(w, "u-42 is online")
	expectLines(h, "status: joining", "snapshot  [ 'u-42' ]", "status: joined")
	if err := h.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expectLines(h, "status: left")

	p := nodeScript(t, savedScript(t, member))
	expectLines(p, "timers 1", "snapshot: [", "update u-42")
	n.sockets.each((*client).close)
	expectLines(p, "timers 1", "snapshot: [", "update u-42")
	nodeScript(t, savedScript(t, emitter))
	expectLines(p, `application ["chat",{"from":"u-7","text":"hello"}]`)
}

// helperScript saves the script of a section beside the client helper, for the node on a port.
func helperScript(t *testing.T, section string, port int) string {
	t.Helper()
	script := savedScript(t, replaceOnce(t, codeBlock(t, section, "js"), "localhost:3000", fmt.Sprintf("127.0.0.1:%d", port)))
	beside := filepath.Join("testdata", "node", filepath.Dir(script), "presence.mjs")
	if err := os.WriteFile(beside, []byte(readText(t, "web/presence.js")), 0o600); err != nil {
		t.Fatal(err)
	}
	return script
}

// TestTheREADMEsTokenIsGood runs what it shows of Node.js.
func TestTheREADMEsTokenIsGood(t *testing.T) {
	script := codeBlock(t, section(t, "Authentication"), "js")
	p := nodeScript(t, savedScript(t, replaceOnce(t, script, "process.env.PRESENCE_JWT_SECRET", quoted(testSecret))))
	g, err := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret).check(p.next())
	if err != nil || g.user != "u-42" || !g.allows("room-1") || g.allows("other") {
		t.Errorf("it allows %+v, %v", g, err)
	}
}

// savedScript writes a script beside the packages of testdata/node and returns what nodeScript wants.
func savedScript(t *testing.T, text string) string {
	t.Helper()
	packages, err := filepath.Abs(filepath.Join("testdata", "node"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "script.mjs")
	err = errors.Join(
		os.Symlink(filepath.Join(packages, "node_modules"), filepath.Join(dir, "node_modules")),
		os.WriteFile(script, []byte(text), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	if script, err = filepath.Rel(packages, script); err != nil {
		t.Fatal(err)
	}
	return script
}

// expectLines reads what the script writes until each line that begins so has come, in this order. More than one timer is
// a failure.
func expectLines(p *nodeProcess, beginnings ...string) {
	p.t.Helper()
	for _, beginning := range beginnings {
		for line := ""; !strings.HasPrefix(line, beginning); {
			line = p.next()
			if strings.HasPrefix(line, "timers") && line != "timers 1" {
				p.t.Fatalf("the client runs %s", line)
			}
		}
	}
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
	return append(room.indices(), room.held(), room.events(), probeChannel("<id>"), connKey("<roomId>", "<connId>"), kickKey("<roomId>", "<connId>"), activeRoomsKey, userKey("<userId>"),
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
