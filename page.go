package main

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"net/http"
	"strings"
	"time"
)

//go:embed web
var webFiles embed.FS

// pagePolicy lets the page load and reach nothing but its own server. The icon is in the page.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// mountPage adds what browsers load: the client helper and the client of Socket.IO, which pages of any origin may import,
// and the demo page where it is wanted. The page shows that name of its node, by which people tell nodes apart.
func mountPage(mux *http.ServeMux, demo bool, node string) {
	shared := map[string]string{
		"/presence.js":                    "presence.js",
		"/socket.io/socket.io.esm.min.js": "socket.io.esm.min.js", // where Socket.IO's own server has it
	}
	for path, name := range shared {
		file := newWebFile(name, node)
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Set("Cross-Origin-Resource-Policy", "cross-origin")
			file.ServeHTTP(w, r)
		})
	}
	if !demo {
		return
	}
	mux.Handle("GET /{$}", newWebFile("index.html", node))
	for _, name := range []string{"demo.css", "demo.js", "sleep.js"} {
		mux.Handle("GET /"+name, newWebFile(name, node))
	}
}

// mountConsole adds the operator's page. It holds no data: its script asks for the API key, and by it for all that it shows.
func mountConsole(mux *http.ServeMux) {
	mux.Handle("GET /console", newWebFile("console.html", ""))
	for _, name := range []string{"console.css", "console.js", "console-list.js", "console-plots.js"} {
		mux.Handle("GET /"+name, newWebFile(name, ""))
	}
}

// webFile is a file of the folder web, as it is served.
type webFile struct {
	name, tag string
	body      []byte
}

// newWebFile panics without the file: it is one of the program's own.
func newWebFile(name, node string) *webFile {
	body, err := webFiles.ReadFile("web/" + name)
	if err != nil {
		panic(err)
	}
	if strings.HasSuffix(name, ".html") {
		body = bytes.ReplaceAll(body, []byte("{{node}}"), []byte(node))
	}
	sum := sha256.Sum256(body)
	return &webFile{name: name, tag: `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`, body: body}
}

// ServeHTTP has browsers ask each time whether the file is still the same, which a new version of the server is not.
func (f *webFile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("ETag", f.tag)
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	http.ServeContent(w, r, f.name, time.Time{}, bytes.NewReader(f.body))
}
