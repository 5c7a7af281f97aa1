package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const testSecret = "0123456789abcdef0123456789abcdef"

// issuer signs tokens with one key.
type issuer struct {
	method jwt.SigningMethod
	key    any
	kid    string
}

var hs256 = issuer{method: jwt.SigningMethodHS256, key: []byte(testSecret)}

// token is one with these claims, good for a minute if they do not say otherwise. A claim that is nil is left out.
func (i issuer) token(more jwt.MapClaims) string {
	all := jwt.MapClaims{"sub": "ann", "exp": time.Now().Add(time.Minute).Unix()}
	maps.Copy(all, more)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	t := jwt.NewWithClaims(i.method, all)
	if i.kid != "" {
		t.Header["kid"] = i.kid
	}
	signed, err := t.SignedString(i.key)
	if err != nil {
		panic(err)
	}
	return signed
}

// keyring has a key of each kind, made once.
var keyring = sync.OnceValue(func() (k struct {
	rsa     *rsa.PrivateKey
	ec      *ecdsa.PrivateKey
	ed      ed25519.PrivateKey
	otherEC *ecdsa.PrivateKey
}) {
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.ec, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.otherEC, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	return k
})

// saved writes a file and gives its path.
func saved(t testing.TB, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func publicPEM(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jwkOf(key crypto.PublicKey, more map[string]string) map[string]string {
	all := map[string]string{}
	switch k := key.(type) {
	case *rsa.PublicKey:
		all = map[string]string{"kty": "RSA", "n": base64url(k.N.Bytes()), "e": "AQAB"}
	case *ecdsa.PublicKey:
		point, _ := k.Bytes() // valid, as it was generated
		all = map[string]string{"kty": "EC", "crv": "P-256", "x": base64url(point[1:33]), "y": base64url(point[33:])}
	case ed25519.PublicKey:
		all = map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64url(k)}
	}
	maps.Copy(all, more)
	return all
}

func keySetOf(keys ...map[string]string) []byte {
	text, _ := json.Marshal(map[string]any{"keys": keys}) // cannot fail
	return text
}

func newTestAuthority(t testing.TB, settings ...string) *authority {
	t.Helper()
	a, errs := newAuthority(testConfig(t, "", settings...), testLogger(t))
	if a == nil || len(errs) > 0 {
		t.Fatal(a, errs)
	}
	a.start()
	t.Cleanup(func() { a.close(context.Background()) })
	return a
}

func cutAtLastDot(token string) string { return token[:strings.LastIndexByte(token, '.')] }

// withHeader is a token that is well signed, with this header.
func withHeader(t *testing.T, header string) string {
	t.Helper()
	text := base64url([]byte(header)) + "." + strings.Split(hs256.token(nil), ".")[1]
	signature, err := hs256.method.Sign(text, hs256.key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64url(signature)
}

func signedBySecret(token string) bool {
	at := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[at+1:])
	return err == nil && hs256.method.Verify(token[:at], signature, hs256.key) == nil
}
