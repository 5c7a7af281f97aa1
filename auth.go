package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	maxTokenBytes = 8 << 10 // of a token; a longer one is not looked at

	// How far the clock of the issuer may be ahead of ours. It does not prolong a token.
	tokenLeeway = 5 * time.Second

	// The time between the goodbye of an expired token and the end of a client that does not take it.
	goodbye = 500 * time.Millisecond

	lastSecond = 253402300799 // of the year 9999: an exp beyond is not in seconds
	minRSABits = 2048         // RFC 7518, section 3.3
)

// grant is what a token allows its bearer.
type grant struct {
	user    string
	rooms   []string // patterns, see matches; nil = all rooms
	watch   bool     // whether users may be watched
	expires time.Time
}

// allows tells whether the bearer may be in a room and read it. Without authentication, g is nil and everybody may.
func (g *grant) allows(room string) bool {
	return g == nil || g.rooms == nil || slices.ContainsFunc(g.rooms, func(pattern string) bool { return matches(pattern, room) })
}

// checkRoom returns nil for a room that the bearer may be in.
func (g *grant) checkRoom(room string) error {
	if g.allows(room) {
		return nil
	}
	return &Error{Code: CodeForbidden, Message: "the token does not allow this room"}
}

// checkWatch returns nil if the bearer may watch users.
func (g *grant) checkWatch() error {
	if g == nil || g.watch {
		return nil
	}
	return &Error{Code: CodeForbidden, Message: "the token does not allow to watch users"}
}

// checkUser returns nil for a user that the bearer may be.
func (g *grant) checkUser(user string) error {
	if g == nil || user == g.user {
		return nil
	}
	return &Error{Code: CodeForbidden, Message: "the token does not allow this userId"}
}

// bearer is the user of the token, "" without authentication.
func (g *grant) bearer() string {
	if g == nil {
		return ""
	}
	return g.user
}

// matches tells whether text has the form of pattern, where each * stands for any characters, also for none.
func matches(pattern, text string) bool {
	part, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, part)
	for ok {
		part, rest, wild = strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(text, part)
		}
		_, text, ok = strings.Cut(text, part)
	}
	return false
}

// authority decides which tokens are good.
type authority struct {
	parser  *jwt.Parser
	idBytes int
	fixed   []tokenKey
	set     *keySet // nil if there is none
}

// tokenKey is a key that signatures are checked with, by the one algorithm that it is for: a token cannot choose another.
type tokenKey struct {
	alg string
	kid string // "" = it has no name
	key any
	set bool // part of a JWK set: a token that names a key means this name
}

// newAuthority reads the keys of the settings. It is nil if there are none: then nobody needs a token. Each error is a line
// about one variable.
func newAuthority(config Config, log *slog.Logger) (a *authority, errs []error) {
	a = &authority{idBytes: config.MaxIDBytes}
	if config.JWTSecret != "" {
		a.fixed = append(a.fixed, tokenKey{alg: jwt.SigningMethodHS256.Alg(), key: []byte(config.JWTSecret)})
	}
	if path := config.JWTPublicKeyFile; path != "" {
		key, err := readPublicKey(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("PRESENCE_JWT_PUBLIC_KEY_FILE=%q: must be a PEM file with a public key: %w", path, err))
		}
		a.fixed = append(a.fixed, key)
	}
	if path := config.JWKSFile; path != "" {
		a.set = &keySet{path: path, log: log}
		if err := a.set.read(); err != nil {
			errs = append(errs, fmt.Errorf("PRESENCE_JWKS_FILE=%q: must be a file with a JWK set: %w", path, err))
		}
	}
	if len(errs) > 0 || len(a.fixed) == 0 && a.set == nil {
		return nil, errs
	}
	options := []jwt.ParserOption{jwt.WithLeeway(tokenLeeway), jwt.WithExpirationRequired()}
	if config.JWTIssuer != "" {
		options = append(options, jwt.WithIssuer(config.JWTIssuer))
	}
	if config.JWTAudience != "" {
		options = append(options, jwt.WithAudience(config.JWTAudience))
	}
	a.parser = jwt.NewParser(options...)
	return a, nil
}

// claims are those of a token that matter here.
type claims struct {
	jwt.RegisteredClaims
	Expires *float64        `json:"exp"` // seconds since 1970; the library would cut off what is less than one
	Rooms   json.RawMessage `json:"rooms"`
	Watch   bool            `json:"watch"`
}

// GetExpirationTime is for the library.
func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) {
	switch {
	case c.Expires == nil:
		return nil, nil
	case !(0 <= *c.Expires && *c.Expires <= lastSecond):
		return nil, errors.New("exp is no time in seconds")
	}
	return &jwt.NumericDate{Time: time.UnixMilli(int64(math.Floor(*c.Expires * 1000)))}, nil
}

// check returns what a token allows, or CodeUnauthorized.
func (a *authority) check(token string) (*grant, *Error) {
	switch {
	case token == "":
		return nil, unauthorized("a token is needed")
	case len(token) > maxTokenBytes:
		return nil, unauthorized(fmt.Sprintf("a token may have at most %d bytes", maxTokenBytes))
	}
	var c claims
	if _, err := a.parser.ParseWithClaims(token, &c, a.keysFor); err != nil {
		return nil, unauthorized(whatIsWrong(err))
	}
	expires, _ := c.GetExpirationTime() // it was just checked
	g := &grant{user: c.Subject, watch: c.Watch, expires: expires.Time}
	if !time.Now().Before(g.expires) {
		return nil, unauthorized(whatIsWrong(jwt.ErrTokenExpired))
	}
	if err := checkID("sub", g.user, a.idBytes); err != nil {
		return nil, unauthorized("the token is not valid: " + err.Message)
	}
	if c.Rooms != nil && (json.Unmarshal(c.Rooms, &g.rooms) != nil || g.rooms == nil) {
		return nil, unauthorized("the token is not valid: rooms must be a list of text")
	}
	return g, nil
}

func unauthorized(message string) *Error {
	return &Error{Code: CodeUnauthorized, Message: message}
}

// whatIsWrong says what a client may know of why its token was refused.
func whatIsWrong(err error) string {
	for _, known := range []error{
		jwt.ErrTokenExpired, jwt.ErrTokenNotValidYet, jwt.ErrTokenInvalidIssuer, jwt.ErrTokenInvalidAudience,
		jwt.ErrTokenRequiredClaimMissing, jwt.ErrTokenMalformed, jwt.ErrTokenSignatureInvalid,
	} {
		if errors.Is(err, known) {
			return "the token is not valid: " + known.Error()
		}
	}
	return "the token is not valid"
}

// keysFor gives the parser the keys that may have signed a token.
func (a *authority) keysFor(t *jwt.Token) (any, error) {
	if _, ok := t.Header["crit"]; ok {
		return nil, errors.New("an extension that must be understood")
	}
	kid, ok := t.Header["kid"].(string)
	if !ok && t.Header["kid"] != nil {
		return nil, errors.New("kid is no text")
	}
	keys := a.fixed
	if a.set != nil {
		keys = append(slices.Clip(keys), a.set.current()...)
	}
	var fit jwt.VerificationKeySet
	for _, k := range keys {
		if k.alg == t.Method.Alg() && (kid == "" || !k.set || k.kid == kid) {
			fit.Keys = append(fit.Keys, k.key)
		}
	}
	return fit, nil
}

// readPublicKey reads the first block of a PEM file.
func readPublicKey(path string) (tokenKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return tokenKey{}, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return tokenKey{}, errors.New("not PEM")
	}
	var key any
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		err = fmt.Errorf("it holds a %s", block.Type)
	}
	if err != nil {
		return tokenKey{}, err
	}
	return newTokenKey(key)
}

// newTokenKey binds a public key to its algorithm.
func newTokenKey(key any) (tokenKey, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() >= minRSABits {
			return tokenKey{alg: jwt.SigningMethodRS256.Alg(), key: k}, nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return tokenKey{alg: jwt.SigningMethodES256.Alg(), key: k}, nil
		}
	case ed25519.PublicKey:
		return tokenKey{alg: jwt.SigningMethodEdDSA.Alg(), key: k}, nil
	}
	return tokenKey{}, fmt.Errorf("neither RSA with at least %d bits, nor P-256, nor Ed25519", minRSABits)
}

// keySet is a file with a JWK set. What was read stays good until the file has changed and can be read again.
type keySet struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	seen os.FileInfo // the file as it was last read, well or not; nil = it was not there
	keys []tokenKey
}

// current looks whether the file has changed.
func (s *keySet) current() []tokenKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.seen; !s.unchanged() {
		if err := s.readLocked(); err != nil && (s.seen != nil || before != nil) {
			s.log.Warn("the JWK set cannot be read: the keys read before stay in use", "file", s.path, "error", err)
		}
	}
	return s.keys
}

func (s *keySet) unchanged() bool {
	now, err := os.Stat(s.path)
	return err == nil && s.seen != nil && os.SameFile(now, s.seen) && now.ModTime().Equal(s.seen.ModTime()) && now.Size() == s.seen.Size()
}

func (s *keySet) read() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readLocked()
}

func (s *keySet) readLocked() error {
	s.seen, _ = os.Stat(s.path) // before the text: a change in between is seen the next time
	text, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	keys, err := parseKeySet(text)
	if err == nil {
		s.keys = keys
	}
	return err
}

// jwk is a public key of a JWK set (RFC 7517, 7518, 8037). Numbers are base64url, big-endian.
type jwk struct {
	Kty, Use, Alg, Kid, Crv, N, E, X, Y string
}

// parseKeySet reads a JWK set. Keys that are for something else are passed over, as RFC 7517 asks, but one has to be of use.
func parseKeySet(text []byte) (keys []tokenKey, err error) {
	var set struct{ Keys []jwk }
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, errors.New("not a JWK set")
	}
	for _, k := range set.Keys {
		key, err := k.public()
		if err == nil && (k.Use == "" || k.Use == "sig") && (k.Alg == "" || k.Alg == key.alg) {
			key.kid, key.set = k.Kid, true
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key for RS256, ES256 or EdDSA in it")
	}
	return keys, nil
}

// public is the key. Those that are shared secrets have no place in a file of public ones.
func (k jwk) public() (tokenKey, error) {
	switch {
	case k.Kty == "RSA":
		e := new(big.Int).SetBytes(number(k.E))
		if e.BitLen() < 2 || e.BitLen() > 31 || e.Bit(0) == 0 {
			return tokenKey{}, errors.New("no exponent of RSA")
		}
		return newTokenKey(&rsa.PublicKey{N: new(big.Int).SetBytes(number(k.N)), E: int(e.Int64())})
	case k.Kty == "EC" && k.Crv == "P-256":
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bytes.Join([][]byte{{4}, number(k.X), number(k.Y)}, nil))
		if err != nil {
			return tokenKey{}, err
		}
		return newTokenKey(key)
	case k.Kty == "OKP" && k.Crv == "Ed25519" && len(number(k.X)) == ed25519.PublicKeySize:
		return newTokenKey(ed25519.PublicKey(number(k.X)))
	}
	return tokenKey{}, errors.New("another kind of key")
}

// number is nil for what is not base64url.
func number(text string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	return b
}

// expiry ends a client when its token is no longer good: it says goodbye, and soon after closes the connection.
type expiry struct {
	client *client

	mu    sync.Mutex
	at    time.Time
	over  bool
	timer *time.Timer
}

func startExpiry(c *client, at time.Time) *expiry {
	e := &expiry{client: c, at: at}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timer = time.AfterFunc(time.Until(at), e.fire)
	return e
}

func (e *expiry) fire() {
	e.mu.Lock()
	wasOver, left := e.over, time.Until(e.at)
	switch {
	case wasOver:
	case left > 0:
		e.timer.Reset(left)
	default:
		e.over = true
		e.timer.Reset(goodbye)
	}
	e.mu.Unlock()
	switch {
	case wasOver:
		e.client.close()
	case left <= 0:
		e.client.send(eventFrame(eventExpired))
		e.client.disconnect()
	}
}

// move sets another time, unless it is too late for that.
func (e *expiry) move(at time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	e.at = at
	e.timer.Reset(time.Until(at))
	return true
}

// stop is for a client that has ended. One that was said goodbye to still gets no more than its time.
func (e *expiry) stop() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.over {
		e.timer.Stop()
	}
}
