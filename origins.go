package main

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// defaultPorts are the ports that an origin does not name (RFC 6454, section 6.1). Native clients give the scheme of the
// WebSocket as that of their origin.
var defaultPorts = map[string]string{"http": "80", "https": "443", "ws": "80", "wss": "443"}

// opaqueOrigins are origins without a host: of sandboxed pages, and of pages and programs that are local files.
var opaqueOrigins = []string{"null", "file://"}

// allowOrigin applies to polling, WebSocket and upgrade alike. It adds to the answer what a browser wants to read there. The
// origin is named instead of "*" because a browser that sends credentials accepts only its name. Nothing here trusts cookies;
// a load balancer may need them.
func (s *sockets) allowOrigin(answer http.Header, r *http.Request) bool {
	given := r.Header.Get("Origin")
	if given == "" { // not from a browser
		return true
	}
	answer.Add("Vary", "Origin")
	origin, known := parseOrigin(given)
	if !slices.Contains(s.Origins, "*") && !(known && (slices.Contains(s.Origins, origin) || sameHost(origin, r.Host))) {
		return false
	}
	answer.Set("Access-Control-Allow-Origin", given)
	answer.Set("Access-Control-Allow-Credentials", "true")
	return true
}

// sameHost tells whether an origin, as parseOrigin returns it, has the host and port of the request. Its scheme may be any:
// a proxy in front of the server may have taken off the TLS, and native clients send schemes of their own. A Host header
// without a port stands for the default port of the origin's scheme.
func sameHost(origin, host string) bool {
	scheme, want, _ := strings.Cut(origin, "://")
	host = strings.ToLower(host)
	if port := defaultPorts[scheme]; port != "" {
		host = strings.TrimSuffix(host, ":"+port)
	}
	return want != "" && want == host
}

// parseOrigin returns the form in which a browser sends the origin (RFC 6454, section 6.1): lower case, and no port that is
// the default of its scheme.
func parseOrigin(text string) (string, bool) {
	text = strings.ToLower(text)
	if slices.Contains(opaqueOrigins, text) {
		return text, true
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || strings.Contains(u.Host, "*") || u.Scheme+"://"+u.Host != text {
		return "", false
	}
	if _, port, err := net.SplitHostPort(u.Host); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", false
		}
		if port == defaultPorts[u.Scheme] {
			text = strings.TrimSuffix(text, ":"+port)
		}
	}
	return text, true
}
