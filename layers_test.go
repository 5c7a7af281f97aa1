package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Modules and the files that may know them. Every other file, and every other module, goes without.
var knownBy = map[string][]string{
	"github.com/redis/go-redis/v9":      {"presence.go", "presence_cluster.go", "presence_read.go", "presence_scripts.go", "presence_subscribe.go", "reaper_contact.go", "bridge.go", "bridge_lines.go", "pipeline.go", "directory_users.go", "broadcast.go", "broadcast_emit.go", "redis.go", "redis_answers.go", "redis_login.go", "node.go", "main.go"},
	"github.com/alicebob/miniredis/v2":  {"embedded.go"},
	"github.com/gobwas/":                {"engineio.go", "frame.go", "frame_read.go", "limits.go", "session.go", "websocket.go"},
	"github.com/golang-jwt/jwt/v5":      {"auth.go", "tokens.go", "token_keys.go"},
	"github.com/prometheus/":            {"metrics.go"},
	"github.com/vmihailenco/msgpack/v5": {"broadcast.go", "broadcast_encode.go"},
}

// Functions and the only files, tests aside, that may mention them. "*" stands for everything of the package.
var mentionedBy = map[string][]string{
	"os.Exit":         {"main.go"},
	"signal.*":        {"main.go"},
	"slog.SetDefault": {"main.go"},
	"log.SetOutput":   {"main.go"},
	"os.Environ":      {"main.go"},
	"os.Getenv":       nil,
	"os.LookupEnv":    nil,
	"os.ExpandEnv":    nil,
}

// sources are the files of this package.
func sources(t *testing.T) map[string]*ast.File {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("found %d files, %v", len(names), err)
	}
	files := map[string]*ast.File{}
	for _, name := range names {
		if files[name], err = parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func isTest(name string) bool { return strings.HasSuffix(name, "_test.go") }

func TestEachFileKnowsOnlyTheModulesOfItsLayer(t *testing.T) {
	for name, file := range sources(t) {
		if isTest(name) {
			continue
		}
		for _, path := range strayImports(name, file) {
			t.Errorf("%s imports %s", name, path)
		}
	}
}

// strayImports are the third-party imports that the file may not have.
func strayImports(name string, file *ast.File) (stray []string) {
	for _, spec := range file.Imports {
		path, _ := strconv.Unquote(spec.Path.Value) // the parser has checked it
		if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
			continue // the standard library
		}
		allowed := false
		for module, files := range knownBy {
			if strings.HasPrefix(path, module) {
				allowed = slices.Contains(files, name)
			}
		}
		if !allowed {
			stray = append(stray, path)
		}
	}
	return stray
}

func TestOnlyMainTouchesTheProcess(t *testing.T) {
	for name, file := range sources(t) {
		if isTest(name) {
			continue
		}
		for _, mention := range mentions(file) {
			pkg, _, _ := strings.Cut(mention, ".")
			for _, what := range []string{mention, pkg + ".*"} {
				if files, bounded := mentionedBy[what]; bounded && !slices.Contains(files, name) {
					t.Errorf("%s mentions %s", name, mention)
				}
			}
		}
	}
}

func TestNoFileHasAnInit(t *testing.T) {
	for name, file := range sources(t) {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init", name)
			}
		}
	}
}

func TestNoTestSleeps(t *testing.T) {
	for name, file := range sources(t) {
		if isTest(name) && slices.Contains(mentions(file), "time.Sleep") {
			t.Errorf("%s sleeps instead of waiting for something", name)
		}
	}
}

// mentions are the selectors of a file, as "package.Name" and "value.Name".
func mentions(file *ast.File) (all []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok {
				all = append(all, x.Name+"."+s.Sel.Name)
			}
		}
		return true
	})
	return all
}

// The tests above can fail.
func TestLayerChecksSeeWhatTheyForbid(t *testing.T) {
	const source = `package main
import (
	"os"
	"github.com/redis/go-redis/v9"
	"example.com/other"
)
func f() { os.Exit(1); signal.Notify(nil) }`
	file, err := parser.ParseFile(token.NewFileSet(), "room.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := strayImports("room.go", file); len(got) != 2 {
		t.Errorf("stray imports are %q", got)
	}
	if got := strayImports("presence.go", file); len(got) != 1 {
		t.Errorf("stray imports of presence.go are %q", got)
	}
	if got := mentions(file); !slices.Equal(got, []string{"os.Exit", "signal.Notify"}) {
		t.Errorf("mentions are %q", got)
	}
}
