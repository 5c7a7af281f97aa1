package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestWhichTokensAreGood has one server for each kind of key.
func TestWhichTokensAreGood(t *testing.T) {
	k := keyring()
	rs256 := issuer{method: jwt.SigningMethodRS256, key: k.rsa}
	es256 := issuer{method: jwt.SigningMethodES256, key: k.ec}
	eddsa := issuer{method: jwt.SigningMethodEdDSA, key: k.ed}
	rsaPEM := publicPEM(t, &k.rsa.PublicKey)
	pemFile := func(key crypto.PublicKey) string {
		return "PRESENCE_JWT_PUBLIC_KEY_FILE=" + saved(t, "key.pem", publicPEM(t, key))
	}
	secret, rsaFile := "PRESENCE_JWT_SECRET="+testSecret, pemFile(&k.rsa.PublicKey)
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&k.rsa.PublicKey)})
	set := "PRESENCE_JWKS_FILE=" + saved(t, "jwks.json", keySetOf(
		jwkOf(&k.rsa.PublicKey, map[string]string{"kid": "r", "alg": "RS256", "use": "sig"}),
		jwkOf(&k.ec.PublicKey, map[string]string{"kid": "e"}),
		jwkOf(k.ed.Public(), nil),
		jwkOf(&k.otherEC.PublicKey, map[string]string{"kid": "for encryption", "use": "enc"}),
		map[string]string{"kty": "oct", "kid": "o", "k": base64url([]byte(testSecret))},
		map[string]string{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
	))
	named := func(i issuer, kid string) issuer { i.kid = kid; return i }
	none := issuer{method: jwt.SigningMethodNone, key: jwt.UnsafeAllowNoneSignatureType}
	in := func(d time.Duration) any { return time.Now().Add(d).Unix() }
	for name, tc := range map[string]struct {
		settings []string
		token    string
		good     bool
	}{
		"secret":                      {[]string{secret}, hs256.token(nil), true},
		"RSA":                         {[]string{rsaFile}, rs256.token(nil), true},
		"RSA, the older form":         {[]string{"PRESENCE_JWT_PUBLIC_KEY_FILE=" + saved(t, "k", pkcs1)}, rs256.token(nil), true},
		"P-256":                       {[]string{pemFile(&k.ec.PublicKey)}, es256.token(nil), true},
		"Ed25519":                     {[]string{pemFile(k.ed.Public())}, eddsa.token(nil), true},
		"a kid that nobody asked for": {[]string{secret}, named(hs256, "x").token(nil), true},
		"set, RSA":                    {[]string{set}, named(rs256, "r").token(nil), true},
		"set, P-256":                  {[]string{set}, named(es256, "e").token(nil), true},
		"set, no kid":                 {[]string{set}, es256.token(nil), true},
		"set, no kid on either side":  {[]string{set}, eddsa.token(nil), true},
		"set, wrong kid":              {[]string{set}, named(es256, "x").token(nil), false},
		"set, kid of another kind":    {[]string{set}, named(es256, "r").token(nil), false},
		"set, kid of a nameless key":  {[]string{set}, named(eddsa, "x").token(nil), false},
		"set, key not for signing":    {[]string{set}, issuer{method: jwt.SigningMethodES256, key: k.otherEC, kid: "for encryption"}.token(nil), false},
		"set, shared secret":          {[]string{set}, named(hs256, "o").token(nil), false},
		"secret or RSA":               {[]string{rsaFile, set}, rs256.token(nil), true},

		"none":                     {[]string{secret}, "", false},
		"alg none":                 {[]string{secret}, none.token(nil), false},
		"alg none, RSA":            {[]string{rsaFile}, none.token(nil), false},
		"public key as a secret":   {[]string{rsaFile}, issuer{method: jwt.SigningMethodHS256, key: rsaPEM}.token(nil), false},
		"modulus as a secret":      {[]string{set}, issuer{method: jwt.SigningMethodHS256, key: k.rsa.N.Bytes(), kid: "r"}.token(nil), false},
		"wrong secret":             {[]string{secret}, issuer{method: jwt.SigningMethodHS256, key: []byte("x")}.token(nil), false},
		"wrong key":                {[]string{pemFile(&k.otherEC.PublicKey)}, es256.token(nil), false},
		"HS512":                    {[]string{secret}, issuer{method: jwt.SigningMethodHS512, key: []byte(testSecret)}.token(nil), false},
		"PS256":                    {[]string{rsaFile}, issuer{method: jwt.SigningMethodPS256, key: k.rsa}.token(nil), false},
		"no signature":             {[]string{secret}, cutAtLastDot(hs256.token(nil)) + ".", false},
		"two parts":                {[]string{secret}, cutAtLastDot(hs256.token(nil)), false},
		"four parts":               {[]string{secret}, hs256.token(nil) + ".x", false},
		"1 MB of dots":             {[]string{secret}, strings.Repeat(".", 1<<20), false},
		"8 KiB of dots":            {[]string{secret}, strings.Repeat(".", maxTokenBytes), false},
		"too long":                 {[]string{secret}, hs256.token(jwt.MapClaims{"x": strings.Repeat("x", maxTokenBytes)}), false},
		"expired":                  {[]string{secret}, hs256.token(jwt.MapClaims{"exp": in(-time.Second)}), false},
		"no exp":                   {[]string{secret}, hs256.token(jwt.MapClaims{"exp": nil}), false},
		"exp is text":              {[]string{secret}, hs256.token(jwt.MapClaims{"exp": "2100000000"}), false},
		"exp in milliseconds":      {[]string{secret}, hs256.token(jwt.MapClaims{"exp": time.Now().UnixMilli() + 1e6}), false},
		"exp is negative":          {[]string{secret}, hs256.token(jwt.MapClaims{"exp": -1}), false},
		"exp beyond all numbers":   {[]string{secret}, hs256.token(jwt.MapClaims{"exp": 1e300}), false},
		"not yet valid":            {[]string{secret}, hs256.token(jwt.MapClaims{"nbf": in(30 * time.Second)}), false},
		"valid in a moment":        {[]string{secret}, hs256.token(jwt.MapClaims{"nbf": in(2 * time.Second)}), true},
		"no sub":                   {[]string{secret}, hs256.token(jwt.MapClaims{"sub": nil}), false},
		"sub is empty":             {[]string{secret}, hs256.token(jwt.MapClaims{"sub": ""}), false},
		"sub is a number":          {[]string{secret}, hs256.token(jwt.MapClaims{"sub": 7}), false},
		"sub is no userId":         {[]string{secret}, hs256.token(jwt.MapClaims{"sub": "a\nb"}), false},
		"rooms is text":            {[]string{secret}, hs256.token(jwt.MapClaims{"rooms": "a"}), false},
		"rooms has a number":       {[]string{secret}, hs256.token(jwt.MapClaims{"rooms": []any{"a", 7}}), false},
		"rooms is null":            {[]string{secret}, hs256.token(jwt.MapClaims{"rooms": json.RawMessage("null")}), false},
		"rooms is empty":           {[]string{secret}, hs256.token(jwt.MapClaims{"rooms": []string{}}), true},
		"issuer":                   {[]string{secret, "PRESENCE_JWT_ISSUER=i"}, hs256.token(jwt.MapClaims{"iss": "i"}), true},
		"no issuer":                {[]string{secret, "PRESENCE_JWT_ISSUER=i"}, hs256.token(nil), false},
		"wrong issuer":             {[]string{secret, "PRESENCE_JWT_ISSUER=i"}, hs256.token(jwt.MapClaims{"iss": "j"}), false},
		"audience":                 {[]string{secret, "PRESENCE_JWT_AUDIENCE=a"}, hs256.token(jwt.MapClaims{"aud": "a"}), true},
		"one of several audiences": {[]string{secret, "PRESENCE_JWT_AUDIENCE=a"}, hs256.token(jwt.MapClaims{"aud": []string{"b", "a"}}), true},
		"no audience":              {[]string{secret, "PRESENCE_JWT_AUDIENCE=a"}, hs256.token(nil), false},
		"wrong audience":           {[]string{secret, "PRESENCE_JWT_AUDIENCE=a"}, hs256.token(jwt.MapClaims{"aud": "b"}), false},
		"a critical extension":     {[]string{secret}, withHeader(t, `{"alg":"HS256","crit":["b64"],"b64":false}`), false},
		"kid is no text":           {[]string{secret}, withHeader(t, `{"alg":"HS256","kid":7}`), false},
	} {
		t.Run(name, func(t *testing.T) {
			var a *authority
			if len(tc.settings) == 2 && tc.settings[1] == set { // which warns, so that testConfig would fail
				config := testConfig(t, "", tc.settings[0])
				config.JWKSFile = strings.TrimPrefix(set, "PRESENCE_JWKS_FILE=")
				a, _ = newAuthority(config, testLogger(t))
			} else {
				a = newTestAuthority(t, tc.settings...)
			}
			g, err := a.check(tc.token)
			switch {
			case tc.good && (err != nil || g.user != "ann"):
				t.Errorf("refused: %v", err)
			case !tc.good && (err == nil || err.Code != CodeUnauthorized || err.Message == ""):
				t.Errorf("got %+v, %v", g, err)
			case err != nil && len(tc.token) > 20 && strings.Contains(err.Error(), tc.token[:20]):
				t.Errorf("the token is shown: %v", err)
			}
		})
	}
}

func TestExpIsKeptToTheMillisecond(t *testing.T) {
	at := float64(time.Now().Unix()) + 60.25
	g, err := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret).check(hs256.token(jwt.MapClaims{"exp": at}))
	if err != nil || g.expires.UnixMilli() != int64(at*1000) {
		t.Errorf("got %+v, %v", g, err)
	}
}

func TestRoomPatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern, room string
		want          bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"a", "A", false}, {"", "a", false}, {"*", "a", true}, {"*", "é{}*", true},
		{"a*", "a", true}, {"a*", "abc", true}, {"a*", "ba", false}, {"*a", "a", true}, {"*a", "bca", true}, {"*a", "ab", false},
		{"a*b", "ab", true}, {"a*b", "a/x/b", true}, {"a*b", "a", false}, {"a*a", "a", false}, {"a*a", "aa", true}, {"ab*ba", "aba", false},
		{"a*b*c", "abbc", true}, {"a*b*c", "acb", false}, {"*a*", "xay", true}, {"*a*", "xy", false}, {"**", "a", true}, {"a**b", "ab", true},
		{"*ab", "aab", true}, {"*aab", "aaab", true}, {"a?", "ab", false}, {"a.", "ab", false}, {"[a]", "a", false}, {"a*", "a\\*", true},
		{strings.Repeat("a*", 4000) + "b", strings.Repeat("a", 60_000), false},
	} {
		if matches(tc.pattern, tc.room) != tc.want {
			t.Errorf("%.40q and %.40q: not %v", tc.pattern, tc.room, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		g    *grant
		want bool
	}{
		"authentication is off": {nil, true}, "no claim": {&grant{}, true}, "none": {&grant{rooms: []string{}}, false},
		"one of two": {&grant{rooms: []string{"b", "a"}}, true}, "others": {&grant{rooms: []string{"b", "c*"}}, false},
	} {
		if tc.g.allows("a") != tc.want {
			t.Errorf("%s: not %v", name, tc.want)
		}
	}
}

func TestKeyFilesThatAreNone(t *testing.T) {
	k := keyring()
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	private, _ := x509.MarshalPKCS8PrivateKey(k.ec)
	for name, tc := range map[string]struct {
		variable string
		text     []byte
	}{
		"no PEM":         {"PRESENCE_JWT_PUBLIC_KEY_FILE", []byte("key")},
		"nothing":        {"PRESENCE_JWT_PUBLIC_KEY_FILE", nil},
		"broken":         {"PRESENCE_JWT_PUBLIC_KEY_FILE", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")})},
		"private key":    {"PRESENCE_JWT_PUBLIC_KEY_FILE", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})},
		"short RSA":      {"PRESENCE_JWT_PUBLIC_KEY_FILE", publicPEM(t, &small.PublicKey)},
		"P-384":          {"PRESENCE_JWT_PUBLIC_KEY_FILE", publicPEM(t, &p384.PublicKey)},
		"no JSON":        {"PRESENCE_JWKS_FILE", []byte("{")},
		"no keys":        {"PRESENCE_JWKS_FILE", []byte("{}")},
		"an empty set":   {"PRESENCE_JWKS_FILE", keySetOf()},
		"secrets only":   {"PRESENCE_JWKS_FILE", keySetOf(map[string]string{"kty": "oct", "k": "c2VjcmV0"})},
		"other alg":      {"PRESENCE_JWKS_FILE", keySetOf(jwkOf(&k.rsa.PublicKey, map[string]string{"alg": "RS512"}))},
		"even exponent":  {"PRESENCE_JWKS_FILE", keySetOf(jwkOf(&k.rsa.PublicKey, map[string]string{"e": "Ag"}))},
		"no exponent":    {"PRESENCE_JWKS_FILE", keySetOf(jwkOf(&k.rsa.PublicKey, map[string]string{"e": ""}))},
		"not on a curve": {"PRESENCE_JWKS_FILE", keySetOf(jwkOf(&k.ec.PublicKey, map[string]string{"x": base64url(make([]byte, 32))}))},
		"short Ed25519":  {"PRESENCE_JWKS_FILE", keySetOf(jwkOf(k.ed.Public(), map[string]string{"x": "AAAA"}))},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProgram(t, "PORT=many", tc.variable+"="+saved(t, "file", tc.text))
			if code := p.wait(5 * time.Second); code != exitSettings {
				t.Errorf("exit code %d", code)
			}
			lines := strings.Split(strings.TrimSpace(p.out.String()), "\n")
			if len(lines) != 2 || !strings.HasPrefix(lines[1], tc.variable+"=") || !strings.Contains(lines[1], "must be") {
				t.Errorf("it says\n%s", p.out)
			}
		})
	}
}

// TestAKeySetIsReadAgainWhenItChanges also has it vanish and break, which leaves the old keys in use.
func TestAKeySetIsReadAgainWhenItChanges(t *testing.T) {
	t.Parallel()
	k := keyring()
	old := issuer{method: jwt.SigningMethodES256, key: k.ec, kid: "old"}
	young := issuer{method: jwt.SigningMethodES256, key: k.otherEC, kid: "young"}
	oldSet := keySetOf(jwkOf(&k.ec.PublicKey, map[string]string{"kid": "old"}))
	path := saved(t, "jwks.json", oldSet)
	a := newTestAuthority(t, "PRESENCE_JWKS_FILE="+path)
	replace := func(text []byte) {
		next := saved(t, "next", text)
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, i issuer, good bool) {
		t.Helper()
		if _, err := a.check(i.token(nil)); (err == nil) != good {
			t.Errorf("%s: token of %s: %v", what, i.kid, err)
		}
	}
	want("at first", old, true)
	want("at first", young, false)
	replace(keySetOf(jwkOf(&k.ec.PublicKey, map[string]string{"kid": "old"}), jwkOf(&k.otherEC.PublicKey, map[string]string{"kid": "young"})))
	want("both", old, true)
	want("both", young, true)
	replace([]byte(`{"keys":[`))
	want("broken", young, true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("gone", young, true)
	if err := os.WriteFile(path, keySetOf(jwkOf(&k.otherEC.PublicKey, map[string]string{"kid": "young"})), 0o600); err != nil {
		t.Fatal(err)
	}
	want("rotated", young, true)
	if !poll(10*time.Second, func() bool { _, err := a.check(old.token(nil)); return err != nil }) {
		t.Error("a key that was taken out of the set is still good")
	}
}

// visitor opens a connection of Socket.IO without an answer to CONNECT.
func (n *node) visitor(t testing.TB) *user {
	t.Helper()
	u := &user{wsClient: (&testSockets{addr: "127.0.0.1:" + n.port()}).dial(t, direct4)}
	u.wantPrefix(`0{"sid":`)
	return u
}

// bearer is a user with a token.
func (n *node) bearer(t testing.TB, token string) *user {
	t.Helper()
	u := n.visitor(t)
	u.send(`40{"token":` + quoted(token) + `}`)
	var connected struct{ SID string }
	if err := json.Unmarshal([]byte(u.wantPrefix("40")[2:]), &connected); err != nil {
		t.Fatal(err)
	}
	u.id = connected.SID
	return u
}

func startNodeWithTokens(t testing.TB, b backend, settings ...string) *node {
	t.Helper()
	return startNodeFor(t, b, append(settings, "PRESENCE_JWT_SECRET="+testSecret)...)
}

// TestWhoIsNotAuthorisedGetsNothing has everything go on in a room, and application events to everybody.
func TestWhoIsNotAuthorisedGetsNothing(t *testing.T) {
	n := startNodeWithTokens(t, miniRedis(t))
	member := n.bearer(t, hs256.token(nil))
	member.ok(eventJoin, inRoom("home", ""))
	for name, auth := range map[string]string{
		"no auth": "", "no token": "{}", "null": `{"token":null}`, "number": `{"token":7}`, "bad": `{"token":"x.y.z"}`, "dots": `{"token":"...."}`,
		"expired": fmt.Sprintf(`{"token":%q}`, hs256.token(jwt.MapClaims{"exp": time.Now().Unix() - 1})),
	} {
		t.Run(name, func(t *testing.T) {
			u := n.visitor(t)
			u.send("40" + auth)
			var refusal struct {
				Message string
				Data    struct{ Code string }
			}
			if err := json.Unmarshal([]byte(u.wantPrefix("44")[2:]), &refusal); err != nil || refusal.Message == "" || refusal.Data.Code != "unauthorized" {
				t.Errorf("refused with %+v, %v", refusal, err)
			}
			member.ok(eventHeartbeat, `{"patchState":{"for":`+quoted(name)+`}}`)
			n.handlers.broadcast(nil, nil, eventFrame("news"))
			for member.text() != `42["news"]` { // its own update comes before or after the answer
			}
			u.send("40" + auth) // the answer to it is the next that comes
			u.wantPrefix("44")
			u.send(`42["presence:join",{"roomId":"home","userId":"ann"}]`)
			u.closed()
		})
	}
}

func TestATokenSaysWhoAndWhere(t *testing.T) {
	n := startNodeWithTokens(t, miniRedis(t))
	u := n.bearer(t, hs256.token(jwt.MapClaims{"rooms": []string{"team-*", "lobby"}}))
	entry := entryOf(t, u.ok(eventJoin, inRoom("team-1", "")), u.id)
	if entry.UserID != "ann" {
		t.Errorf("joined as %q", entry.UserID)
	}
	u.ok(eventJoin, inRoom("lobby", `,"userId":"ann"`))
	u.refused(eventJoin, inRoom("lobby", `,"userId":"bob"`), CodeForbidden)
	u.refused(eventJoin, inRoom("lobby", `,"userId":""`), CodeInvalidPayload)
	u.refused(eventJoin, inRoom("other", ""), CodeForbidden)
	u.refused(eventGet, inRoom("other", ""), CodeForbidden)
	u.refused(eventHeartbeat, inRoom("other", ""), CodeForbidden)
	u.refused(eventHeartbeat, inRoom("team-2", ""), CodeNotJoined)
	u.ok(eventGet, inRoom("team-2", ""))
	u.ok(eventHeartbeat, inRoom("team-1", `,"patchState":{"a":1}`))
}

func TestANewToken(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		n := startNodeWithTokens(t, b)
		kept, ended := uniqueRoom(t), uniqueRoom(t)
		u := n.bearer(t, hs256.token(nil))
		u.ok(eventJoin, inRoom(kept, ""))
		u.ok(eventJoin, inRoom(ended, ""))
		witness := n.bearer(t, hs256.token(jwt.MapClaims{"sub": "witness"}))
		witness.ok(eventJoin, inRoom(ended, ""))

		for payload, code := range map[string]Code{
			`"x"`: CodeInvalidPayload, `{"token":7}`: CodeInvalidPayload, ``: CodeUnauthorized, `{}`: CodeUnauthorized, `{"token":"x"}`: CodeUnauthorized,
			`{"token":` + quoted(hs256.token(jwt.MapClaims{"sub": "bob"})) + `}`: CodeForbidden,
		} {
			u.refused(eventAuth, payload, code)
		}
		u.ok(eventHeartbeat, "") // nothing has changed

		exp := time.Now().Unix() + 100
		ack := u.ok(eventAuth, `{"token":`+quoted(hs256.token(jwt.MapClaims{"exp": exp, "rooms": []string{kept}}))+`}`)
		if want := fmt.Sprintf(`{"ok":true,"expMs":%d}`, exp*1000); ack.text != want {
			t.Errorf("answered with %s, want %s", ack.text, want)
		}
		if e := witness.sees(EventLeave, u.id); e.Reason != string(ReasonLeft) {
			t.Errorf("left with %q", e.Reason)
		}
		u.refused(eventHeartbeat, inRoom(ended, ""), CodeForbidden)
		u.refused(eventJoin, inRoom(ended, ""), CodeForbidden)
		u.ok(eventHeartbeat, inRoom(kept, `,"patchState":{"a":1}`))
		assertAgree(t, n.service, ended)
	})
}

func TestWithoutKeysATokenIsNoUse(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	u := n.bearer(t, "anything")
	u.refused(eventAuth, `{"token":"anything"}`, CodeInvalidPayload)
	u.join("home", "ann", "{}")
}

// TestAnExpiredTokenEndsTheConnection for good, within a second. It measures time, so it runs beside no other test.
func TestAnExpiredTokenEndsTheConnection(t *testing.T) {
	n := startNodeWithTokens(t, miniRedis(t))
	witness := n.bearer(t, hs256.token(jwt.MapClaims{"sub": "witness"}))
	witness.ok(eventJoin, inRoom("home", ""))
	exp := time.Now().Add(2500 * time.Millisecond).Truncate(time.Millisecond)
	short := hs256.token(jwt.MapClaims{"exp": float64(exp.UnixMilli()) / 1000})
	renewed, u := n.bearer(t, short), n.bearer(t, short)
	u.ok(eventJoin, inRoom("home", ""))
	renewed.ok(eventJoin, inRoom("home", ""))
	renewed.ok(eventAuth, `{"token":`+quoted(hs256.token(nil))+`}`)

	var packets []string
	for len(packets) < 2 {
		if p := u.text(); !strings.HasPrefix(p, `42["presence:event"`) {
			packets = append(packets, p)
		}
	}
	if late := time.Since(exp); packets[0] != `42["presence:expired"]` || packets[1] != "41" || late < 0 || late > time.Second {
		t.Errorf("got %q, %v after exp", packets, late)
	}
	u.closed()
	witness.sees(EventLeave, u.id)
	renewed.ok(eventHeartbeat, "")
}

// TestAnExpiredTokenEndsAClientThatTakesNothing: it does not poll.
func TestAnExpiredTokenEndsAClientThatTakesNothing(t *testing.T) {
	t.Parallel()
	n := startNodeWithTokens(t, miniRedis(t))
	witness := n.bearer(t, hs256.token(jwt.MapClaims{"sub": "witness"}))
	witness.ok(eventJoin, inRoom("home", ""))
	exp := time.Now().Add(2500 * time.Millisecond).Truncate(time.Millisecond)
	token := quoted(hs256.token(jwt.MapClaims{"exp": float64(exp.UnixMilli()) / 1000}))
	polling := httptest.NewServer(n.sockets)
	t.Cleanup(polling.Close)
	c := (&testSockets{sockets: n.sockets, http: polling}).poller(t)
	c.send(`40{"token":` + token + `}`)
	c.next()
	c.send(`421["presence:join",{"roomId":"home"}]`)
	who := witness.until("a join", func(e wireEvent) bool { return e.UserID == "ann" }).ConnID
	witness.sees(EventLeave, who)
	if late := time.Since(exp); late < 0 || late > time.Second {
		t.Errorf("it left %v after exp", late)
	}
}

func FuzzTokenCheck(f *testing.F) {
	f.Add(hs256.token(nil))
	f.Add(hs256.token(jwt.MapClaims{"rooms": []string{"a*"}, "nbf": 1}))
	f.Add(issuer{method: jwt.SigningMethodNone, key: jwt.UnsafeAllowNoneSignatureType}.token(nil))
	f.Add("..")
	f.Add("eyJhbGciOiJIUzI1NiJ9.e30.AAAA")
	a := newTestAuthority(f, "PRESENCE_JWT_SECRET="+testSecret)
	f.Fuzz(func(t *testing.T, token string) {
		if g, err := a.check(token); err == nil && (g.user == "" || g.expires.IsZero() || !signedBySecret(token)) {
			t.Errorf("%q is good for %+v", token, g)
		}
		// What the client chose is well signed, so that what is in it gets its turn.
		text := base64url([]byte(`{"alg":"HS256"}`)) + "." + base64url([]byte(token))
		signature, err := hs256.method.Sign(text, hs256.key)
		if err != nil {
			t.Fatal(err)
		}
		g, refused := a.check(text + "." + base64url(signature))
		if refused == nil && (g.user == "" || !time.Now().Before(g.expires.Add(time.Second))) {
			t.Errorf("claims %q give %+v", token, g)
		}
	})
}
