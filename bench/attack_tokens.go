package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gobwas/ws"
)

const (
	slowKeys    = 2    // RSA keys of the set, each of which a token without a kid is tried with
	slowKeyBits = 8192 // the most that the server takes
)

// signedConnects writes a JWK set of one Ed25519 key and of RSA keys whose signatures take long to check. It returns the
// setting of the server and what makes the CONNECT packet of a user.
func signedConnects(dir string) (env []string, connect func(user string) string, err error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, err
	}
	keys := []map[string]string{{"kty": "OKP", "crv": "Ed25519", "kid": "members", "x": base64URL(public)}}
	for i := range slowKeys {
		// No token of these keys is ever good, so their modulus need not be a product of primes.
		keys = append(keys, map[string]string{"kty": "RSA", "kid": fmt.Sprint("slow-", i), "e": "AQAB", "n": base64URL(number8192(0xff))})
	}
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(dir, "keys.json")
	connect = func(user string) string {
		signed := tokenParts("EdDSA", user)
		return connectWith(signed + "." + base64URL(ed25519.Sign(private, []byte(signed))))
	}
	return []string{"PRESENCE_JWKS_FILE=" + file}, connect, os.WriteFile(file, text, 0o600)
}

// number8192 is a random odd number that begins with this byte.
func number8192(first byte) []byte {
	b := make([]byte, slowKeyBits/8)
	_, _ = rand.Read(b) // never an error
	b[0] = first
	b[len(b)-1] |= 1
	return b
}

// tokenParts is what a token signs.
func tokenParts(algorithm, user string) string {
	claims := fmt.Sprintf(`{"sub":"%s","exp":%d}`, user, time.Now().Add(time.Hour).Unix())
	return base64URL(fmt.Appendf(nil, `{"alg":"%s"}`, algorithm)) + "." + base64URL([]byte(claims))
}

func connectWith(token string) string { return `40{"token":"` + token + `"}` }

func base64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// forgedToken has a signature that takes as long to refuse as a good one to accept.
func forgedToken(user string) string {
	return tokenParts("RS256", user) + "." + base64URL(number8192(0))
}

// forger renews its token with forged ones, or connects with them.
func forger(ctx context.Context, r *attackRun, number int) {
	if number%2 == 0 {
		r.persist(ctx, r.read, func(ctx context.Context, f *frames) error {
			return r.flood(ctx, f, 45, ws.OpText, func(n int) string {
				return fmt.Sprintf(`42%d["presence:auth",{"token":"%s"}]`, n, forgedToken("attacker"))
			})
		})
		return
	}
	_ = pace(ctx, 45, func(int) error { // it never fails
		r.sent.Add(1)
		f, err := openWebSocket(ctx, r.node, "websocket", perAddress)
		if err != nil {
			r.closed.Add(1)
			return nil
		}
		stop := context.AfterFunc(ctx, func() { _ = f.conn.Close() })
		defer func() { stop(); _ = f.conn.Close() }()
		if f.converse("", "0{", connectWith(forgedToken("attacker")), "44{") == nil {
			r.refused.Add(1)
		}
		return nil
	})
}
