package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestOriginsOfForeignClients has the header that each kind of client sends, against a list that names another site.
func TestOriginsOfForeignClients(t *testing.T) {
	s := &sockets{socketOptions: socketOptions{Origins: []string{"https://site.example", "null", "capacitor://localhost"}}}
	for name, tc := range map[string]struct {
		origin, host string
		want         bool
	}{
		"a listed page":                        {"https://site.example", "presence.example", true},
		"a listed page, spelled otherwise":     {"HTTPS://Site.example:443", "presence.example", true},
		"another page":                         {"https://other.example", "presence.example", false},
		"no origin":                            {"", "presence.example", true},
		"a sandboxed page, listed":             {"null", "presence.example", true},
		"a file, not listed":                   {"file://", "presence.example", false},
		"an app, listed":                       {"capacitor://localhost", "presence.example", true},
		"websocket-client for Python":          {"http://presence.example:3000", "presence.example:3000", true},
		"websocket-client behind TLS":          {"https://presence.example", "presence.example", true},
		"React Native, default port named":     {"https://presence.example:443", "presence.example", true},
		"Starscream":                           {"wss://presence.example", "presence.example:443", true},
		"Starscream without TLS":               {"ws://presence.example:3000", "presence.example:3000", true},
		"upper case":                           {"https://Presence.Example", "PRESENCE.example", true},
		"IPv6":                                 {"http://[::1]:3000", "[::1]:3000", true},
		"IPv6 at the default port":             {"ws://[::1]", "[::1]:80", true},
		"a scheme of its own":                  {"app://presence.example", "presence.example", true},
		"another port":                         {"http://presence.example:3001", "presence.example:3000", false},
		"a port, where the request has none":   {"http://presence.example:3000", "presence.example", false},
		"no port, where the request has one":   {"http://presence.example", "presence.example:3000", false},
		"default port of another scheme":       {"http://presence.example:443", "presence.example", false},
		"a host that begins like the server's": {"http://presence.example.evil.example", "presence.example", false},
		"a host that ends like the server's":   {"http://evil-presence.example", "presence.example", false},
		"a user before the host":               {"http://evil.example@presence.example", "presence.example", false},
		"a path":                               {"http://presence.example/x", "presence.example", false},
		"no scheme":                            {"presence.example", "presence.example", false},
		"no host at all":                       {"http://", "", false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/socket.io/", nil)
		r.Host = tc.host
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		answer := http.Header{}
		got := s.allowOrigin(answer, r)
		if got != tc.want {
			t.Errorf("%s: allowed is %v", name, got)
		}
		named := answer.Get("Access-Control-Allow-Origin")
		if got && named != tc.origin || !got && named != "" || got && tc.origin != "" && answer.Get("Access-Control-Allow-Credentials") != "true" {
			t.Errorf("%s: the answer has %v", name, answer)
		}
		if (answer.Get("Vary") == "Origin") != (tc.origin != "") {
			t.Errorf("%s: Vary is %q", name, answer.Values("Vary"))
		}
	}
}
