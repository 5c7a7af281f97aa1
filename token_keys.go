package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	maxKeyFileBytes = 1 << 20
	maxSetKeys      = 100 // of a JWK set: a token without a kid may be tried with each

	minRSABits = 2048 // RFC 7518, section 3.3
	maxRSABits = 8192 // the time that a signature takes grows with the square

	keySetPeriod = 500 * time.Millisecond // how often the file with the set is looked at
	keySetWait   = 100 * time.Millisecond // how long a token that no key has signed waits for such a look
)

// tokenKey is a key that signatures are checked with, by the one algorithm that it is for: a token cannot choose another.
type tokenKey struct {
	method jwt.SigningMethod
	kid    string // "" = it has no name
	key    any
	set    bool // part of a JWK set: a token that names a key means this name
}

// verifies tells whether this key has signed the token.
func (k tokenKey) verifies(t signedToken) bool {
	return k.method.Alg() == t.alg && (t.kid == "" || !k.set || k.kid == t.kid) && k.method.Verify(t.signed, t.signature, k.key) == nil
}

// readPublicKey reads the first block of a PEM file.
func readPublicKey(path string) (tokenKey, error) {
	text, err := readSmallFile(path, maxKeyFileBytes)
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
		if bits := k.N.BitLen(); minRSABits <= bits && bits <= maxRSABits {
			return tokenKey{method: jwt.SigningMethodRS256, key: k}, nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return tokenKey{method: jwt.SigningMethodES256, key: k}, nil
		}
	case ed25519.PublicKey:
		return tokenKey{method: jwt.SigningMethodEdDSA, key: k}, nil
	}
	return tokenKey{}, fmt.Errorf("neither RSA with %d to %d bits, nor P-256, nor Ed25519", minRSABits, maxRSABits)
}

// keySet is a file with a JWK set. A goroutine looks whether it has changed, so that no request waits for a file. What was
// read stays good until the file has changed and can be read again.
type keySet struct {
	path  string
	log   *slog.Logger
	keys  atomic.Pointer[[]tokenKey]
	seen  os.FileInfo        // the file as it was last read, well or not; nil = it was not there
	wants chan chan struct{} // closed after a look that begins later than this is received
	ended chan struct{}
}

// newKeySet reads the file. Nothing looks at it again before watch.
func newKeySet(path string, log *slog.Logger) (*keySet, error) {
	s := &keySet{path: path, log: log, wants: make(chan chan struct{}), ended: make(chan struct{})}
	s.seen, _ = os.Stat(path)
	return s, s.read()
}

func (s *keySet) read() error {
	text, err := readSmallFile(s.path, maxKeyFileBytes)
	if err != nil {
		return err
	}
	keys, err := parseKeySet(text)
	if err == nil {
		s.keys.Store(&keys)
	}
	return err
}

// watch looks at the file again and again until the end of ctx.
func (s *keySet) watch(ctx context.Context) {
	defer close(s.ended)
	tick := time.NewTicker(keySetPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.look()
		case looked := <-s.wants:
			s.look()
			close(looked)
		}
	}
}

// look reads the file if it has changed.
func (s *keySet) look() {
	now, _ := os.Stat(s.path) // before the text: a change in between is seen the next time
	if sameFile(now, s.seen) {
		return
	}
	s.seen = now
	if err := s.read(); err != nil {
		s.log.Warn("the JWK set cannot be read: the keys read before stay in use", "file", s.path, "error", err)
		return
	}
	s.log.Info("the JWK set was read again", "file", s.path, "keys", len(*s.keys.Load()))
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// current are the keys as they were last read.
func (s *keySet) current() []tokenKey { return *s.keys.Load() }

// renewed waits a moment for the file to be looked at, and returns the keys if they are others than these.
func (s *keySet) renewed(before []tokenKey) (keys []tokenKey, changed bool) {
	timer := time.NewTimer(keySetWait)
	defer timer.Stop()
	looked := make(chan struct{})
	select {
	case s.wants <- looked:
		select {
		case <-looked:
		case <-timer.C:
		}
	case <-timer.C:
	case <-s.ended:
	}
	keys = s.current()
	return keys, len(keys) != len(before) || &keys[0] != &before[0]
}

// jwk is a public key of a JWK set (RFC 7517, 7518, 8037). Numbers are base64url, big-endian. What is absent is "".
type jwk struct {
	kty, use, alg, kid, crv, n, e, x, y string
}

// parseKeySet reads a JWK set. Keys that are for something else are passed over, as RFC 7517 asks, but one has to be of use.
func parseKeySet(text []byte) (keys []tokenKey, err error) {
	var list []byte
	if _, err := readObject(text, field{"keys", &list}); err != nil {
		return nil, fmt.Errorf("a JWK set %w", err)
	}
	elements, ok := splitArray(list)
	switch {
	case !ok:
		return nil, errors.New("a JWK set must have a list of keys")
	case len(elements) > maxSetKeys:
		return nil, fmt.Errorf("a JWK set must not have more than %d keys", maxSetKeys)
	}
	for _, element := range elements {
		k, isText, err := parseJWK(element)
		if err != nil {
			return nil, fmt.Errorf("a JWK %w", err)
		}
		if key, err := k.public(); isText && err == nil {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key for RS256, ES256 or EdDSA in it")
	}
	return keys, nil
}

// parseJWK reads a key. isText is false for one of a kind that is not known here: a field that counts is no text.
func parseJWK(raw []byte) (k jwk, isText bool, err error) {
	var values [9][]byte
	texts := [len(values)]struct {
		name string
		text *string
	}{{"kty", &k.kty}, {"use", &k.use}, {"alg", &k.alg}, {"kid", &k.kid}, {"crv", &k.crv}, {"n", &k.n}, {"e", &k.e}, {"x", &k.x}, {"y", &k.y}}
	var fields [len(values)]field
	for i, t := range texts {
		fields[i] = field{t.name, &values[i]}
	}
	if _, err := readObject(raw, fields[:]...); err != nil {
		return jwk{}, false, err
	}
	for i, t := range texts {
		text, err := textClaim(t.name, values[i])
		if err != nil {
			return jwk{}, false, nil
		}
		*t.text = text
	}
	return k, true, nil
}

// public is the key, if it is for signatures. Those that are shared secrets have no place in a file of public ones.
func (k jwk) public() (tokenKey, error) {
	material, err := k.material()
	if err != nil {
		return tokenKey{}, err
	}
	key, err := newTokenKey(material)
	if err == nil && (k.use != "" && k.use != "sig" || k.alg != "" && k.alg != key.method.Alg()) {
		err = errors.New("a key for something else")
	}
	key.kid, key.set = k.kid, true
	return key, err
}

func (k jwk) material() (any, error) {
	switch {
	case k.kty == "RSA":
		e := new(big.Int).SetBytes(number(k.e))
		if e.BitLen() < 2 || e.BitLen() > 31 || e.Bit(0) == 0 {
			return nil, errors.New("no exponent of RSA")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(number(k.n)), E: int(e.Int64())}, nil
	case k.kty == "EC" && k.crv == "P-256":
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bytes.Join([][]byte{{4}, number(k.x), number(k.y)}, nil))
	case k.kty == "OKP" && k.crv == "Ed25519" && len(number(k.x)) == ed25519.PublicKeySize:
		return ed25519.PublicKey(number(k.x)), nil
	}
	return nil, errors.New("another kind of key")
}

// number is nil for what is not base64url.
func number(text string) []byte {
	b, err := decodeBase64URL(text)
	if err != nil {
		return nil
	}
	return b
}
