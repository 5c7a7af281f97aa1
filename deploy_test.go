package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/buildinfo"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheDockerfileBuildsAStaticBinary does by hand what Docker does: it copies what is to be copied, and runs the command
// that builds.
func TestTheDockerfileBuildsAStaticBinary(t *testing.T) {
	takesLong(t)
	t.Parallel()
	keepsBusy(t)
	text, dir := readText(t, "deploy/Dockerfile"), t.TempDir()
	stage, _, _ := strings.Cut(text, "FROM scratch")
	for _, copied := range regexp.MustCompile(`(?m)^COPY (.*) (\S+)$`).FindAllStringSubmatch(stage, -1) {
		for _, pattern := range strings.Fields(copied[1]) {
			names, err := filepath.Glob(pattern)
			if err != nil || len(names) == 0 {
				t.Fatalf("nothing is called %s, %v", pattern, err)
			}
			for _, name := range names { // "./" is the folder of the build, as is the name of a folder below it
				copyInto(t, dir, name, name)
			}
		}
	}
	build := regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*) -o (/presence) \.$`).FindStringSubmatch(stage)
	if build == nil || !strings.Contains(text, "COPY --from=build "+build[2]+" ") {
		t.Fatalf("what it builds and what it runs:\n%s", text)
	}
	binary := filepath.Join(dir, "presence")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", build[1]+" -o "+binary+" .")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	assertStatic(t, binary)
	p := startProcess(t, binary, "PORT=0", "REDIS_URL="+miniRedis(t).url, "PRESENCE_DRAIN_MS=0")
	answer, err := http.Get("http://" + p.address() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("the page is answered with %d", answer.StatusCode)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(readText(t, "go.mod"))
	if !strings.Contains(text, "FROM golang:"+version[1]+" ") {
		t.Errorf("go.mod asks for Go %s, the image has another", version[1])
	}
}

// assertStatic wants a binary that needs no library and no loader.
func assertStatic(t *testing.T, binary string) {
	t.Helper()
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "CGO_ENABLED" && s.Value == "0" }) {
		t.Errorf("built with %v", info.Settings)
	}
	if runtime.GOOS != "linux" {
		return
	}
	file, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
			t.Errorf("it is linked dynamically: %v", part.Type)
		}
	}
}

func TestTheComposeFileNamesWhatIsThere(t *testing.T) {
	text := readText(t, "deploy/compose.yaml")
	for _, line := range []string{"context: ..", "dockerfile: deploy/Dockerfile", "- ./nginx:/etc/nginx/presence:ro", "nginx -c presence/nginx.conf"} {
		if !strings.Contains(text, line) {
			t.Errorf("it lacks %q", line)
		}
	}
	for _, server := range regexp.MustCompile(`server (\w+):3000`).FindAllStringSubmatch(readText(t, "deploy/nginx/nginx.conf"), -1) {
		if !strings.Contains(text, "\n  "+server[1]+": ") {
			t.Errorf("nginx looks for %s", server[1])
		}
	}
	known := settings()
	for _, name := range regexp.MustCompile(`(?m)^ {6}([A-Z_]+):`).FindAllStringSubmatch(text, -1) {
		if !slices.ContainsFunc(known, func(s setting) bool { return s.name == name[1] }) {
			t.Errorf("%s is no setting", name[1])
		}
	}
}

func TestSystemdTakesTheUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd here")
	}
	self, err := os.Executable() // any program will do
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "presence.service")
	text := replaceOnce(t, readText(t, "deploy/presence.service"), "ExecStart=/usr/local/bin/presence", "ExecStart="+self)
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// proxy is nginx with the configuration of the folder deploy, on free ports, before the nodes of a site.
type proxy struct {
	plain, tls string // URLs
	authority  []byte // PEM of who signed its certificate
	stop       func()
}

func startProxy(t *testing.T, s *site) *proxy {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // which is in the PATH of root only
		_, err = os.Stat(path)
	}
	need(t, err == nil, "nginx (apt-get install nginx)")
	dir, plain, secure := t.TempDir(), freePort(), freePort()
	if err := os.CopyFS(dir, os.DirFS("deploy/nginx")); err != nil {
		t.Fatal(err)
	}
	p := &proxy{plain: "http://127.0.0.1:" + plain, tls: "https://127.0.0.1:" + secure, authority: writeCertificate(t, filepath.Join(dir, "tls"))}
	own := "http {\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		own += kind + "_temp_path " + filepath.Join(dir, kind) + ";\n"
	}
	rewrite(t, filepath.Join(dir, "nginx.conf"), map[string]string{"node1:3000": "127.0.0.1:" + s.ports[0], "node2:3000": "127.0.0.1:" + s.ports[1],
		"listen 8080": "listen 127.0.0.1:" + plain, "# include tls.conf": "include tls.conf", "http {\n": own})
	rewrite(t, filepath.Join(dir, "tls.conf"), map[string]string{"listen 8443": "listen 127.0.0.1:" + secure})

	cmd := exec.Command(path, "-p", dir, "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off; pid nginx.pid;")
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its output tells
	}()
	p.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
	}
	t.Cleanup(p.stop)
	if !poll(startTimeout, func() bool { return accepts(plain) && accepts(secure) }) {
		t.Fatalf("nginx does not start:\n%s", out)
	}
	return p
}

func accepts(port string) bool {
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// rewrite replaces texts of a file that are there once.
func rewrite(t *testing.T, name string, changes map[string]string) {
	t.Helper()
	text := readText(t, name)
	for _, what := range slices.Sorted(maps.Keys(changes)) {
		text = replaceOnce(t, text, what, changes[what])
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeCertificate makes a certificate for 127.0.0.1 that vouches for itself.
func writeCertificate(t *testing.T, dir string) (chain []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "presence"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	err = errors.Join(os.Mkdir(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "fullchain.pem"), chain, 0o600),
		os.WriteFile(filepath.Join(dir, "privkey.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// nodeOf asks for the page from an address of this machine, and gives the node that it names.
func (p *proxy) nodeOf(t *testing.T, url, from string) string {
	t.Helper()
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(p.authority)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: trusted}, DisableKeepAlives: true}}
	answer, err := client.Get(url + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	node := regexp.MustCompile(`<span id="node">(\w+)</span>`).FindSubmatch(page)
	if node == nil {
		t.Fatalf("%d:\n%s", answer.StatusCode, page)
	}
	return string(node[1])
}

// keepsBack wants nginx itself to answer that these paths do not exist.
func (p *proxy) keepsBack(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		answer, err := http.Get(p.plain + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusNotFound || !strings.Contains(string(body), "<center>nginx</center>") {
			t.Errorf("%s is there for everybody: %d, %v\n%s", path, answer.StatusCode, err, body)
		}
	}
}

// TestNginxInFrontOfTwoNodes has polling clients whose requests have to stay with one node, and WebSockets, plain and with
// TLS; then a node dies.
func TestNginxInFrontOfTwoNodes(t *testing.T) {
	takesLong(t)
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has many addresses for itself")
	}
	s, c, room := startSite(t, realRedis(t)), startClients(t), uniqueRoom(t)
	p := startProxy(t, s)
	clients := map[string]string{} // address → name
	nodes := map[string][]string{} // node → addresses that it serves
	for i := 2; i < 10; i++ {
		from := fmt.Sprint("127.0.0.", i)
		clients[from] = fmt.Sprint("client", i)
		node := p.nodeOf(t, p.plain, from)
		if again := p.nodeOf(t, p.tls, from); again != node {
			t.Errorf("%s gets to %s, then to %s", from, node, again)
		}
		nodes[node] = append(nodes[node], from)
	}
	if len(nodes) != 2 {
		t.Fatalf("eight addresses get to %v", nodes)
	}
	ways := [][]string{{"polling"}, {"polling", "websocket"}, {"websocket"}, {"polling"}}
	for i, from := range slices.Sorted(maps.Keys(clients)) {
		url := p.plain
		if i%2 == 0 {
			url = p.tls
		}
		c.do(clients[from], "open", command{"url": url, "localAddress": from,
			"options": command{"transports": ways[i%len(ways)], "ca": string(p.authority)},
			"join":    command{"roomId": room, "userId": clients[from], "state": command{"n": 0}}})
		conn := c.joined(clients[from]).Self.ConnID
		c.call(clients[from], eventHeartbeat, command{"patchState": command{"n": i + 1}})
		for _, other := range clients {
			if other != clients[from] && len(c.told[other]) > 0 {
				c.sees(other, conn, "join", fmt.Sprint("update ", i+1))
			}
		}
	}
	p.keepsBack(t, "/healthz", "/readyz", "/metrics", "/v1/rooms", "/v1/rooms/a%0Ab", "//v1/rooms", "/%761/users/x", "/a/../v1/rooms", "/console", "/console/x.js")
	bereft := nodes[p.nodeOf(t, s.url(0), "127.0.0.1")]
	s.nodes[0].signal(syscall.SIGKILL)
	for _, from := range bereft {
		c.joined(clients[from])
	}
	for _, client := range clients {
		c.call(client, eventHeartbeat, patchTo(99))
	}
}
