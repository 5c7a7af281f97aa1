package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// rsaOf is a public key of that size. No private one belongs to it.
func rsaOf(bits int) *rsa.PublicKey {
	n := new(big.Int).SetBit(new(big.Int), bits-1, 1)
	return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
}

func TestSizesOfRSAKeys(t *testing.T) {
	for bits, good := range map[int]bool{1024: false, 2047: false, 2048: true, 4096: true, 8192: true, 8193: false, 16384: false, 1 << 20: false} {
		if _, err := newTokenKey(rsaOf(bits)); (err == nil) != good {
			t.Errorf("%d bits: %v", bits, err)
		}
		if _, err := parseKeySet(keySetOf(jwkOf(rsaOf(bits), nil))); (err == nil) != good {
			t.Errorf("%d bits in a set: %v", bits, err)
		}
		if _, err := readPublicKey(saved(t, "key.pem", publicPEM(t, rsaOf(bits)))); (err == nil) != good {
			t.Errorf("%d bits in a file: %v", bits, err)
		}
	}
}

// notRegular are paths that would be read for ever, or not at all.
func notRegular(t *testing.T) map[string]string {
	t.Helper()
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]string{"pipe": pipe, "endless device": "/dev/zero", "empty device": "/dev/null", "folder": t.TempDir()}
}

func TestKeysComeFromRegularFiles(t *testing.T) {
	for name, path := range notRegular(t) {
		for _, variable := range []string{"PRESENCE_JWT_PUBLIC_KEY_FILE", "PRESENCE_JWKS_FILE"} {
			t.Run(name+"/"+variable, func(t *testing.T) {
				p := startProgram(t, "PORT=0", variable+"="+path)
				if code := p.wait(5 * time.Second); code != exitSettings || !strings.HasPrefix(p.out.String(), variable+"=") || !strings.Contains(p.out.String(), "not a regular file") {
					t.Errorf("exit code %d:\n%s", code, p.out)
				}
			})
		}
	}
}

func TestKeyFilesHaveABoundedSize(t *testing.T) {
	key := publicPEM(t, &keyring().rsa.PublicKey)
	spaces := func(n int) []byte { return slices.Repeat([]byte{'\n'}, n) }
	if _, err := readPublicKey(saved(t, "key.pem", append(key, spaces(maxKeyFileBytes-len(key))...))); err != nil {
		t.Error("1 MiB:", err)
	}
	if _, err := readPublicKey(saved(t, "key.pem", append(key, spaces(maxKeyFileBytes-len(key)+1)...))); err == nil {
		t.Error("a file of more than 1 MiB was read")
	}
}

// TestASetThatBecomesSomethingElse: the keys read before stay in use, requests go on, and a good file is read again.
func TestASetThatBecomesSomethingElse(t *testing.T) {
	k := keyring()
	old := issuer{method: jwt.SigningMethodES256, key: k.ec, kid: "old"}
	young := issuer{method: jwt.SigningMethodES256, key: k.otherEC, kid: "young"}
	large := keySetOf(jwkOf(&k.otherEC.PublicKey, map[string]string{"kid": "young", "x5c": strings.Repeat("A", maxKeyFileBytes)}))
	others := notRegular(t)
	others["large file"] = saved(t, "large", large)
	others["nothing"] = filepath.Join(t.TempDir(), "nothing")
	for name, other := range others {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "jwks.json")
			link := func(to string) {
				next := path + ".next"
				if err := os.Symlink(to, next); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(next, path); err != nil {
					t.Fatal(err)
				}
			}
			link(saved(t, "old", keySetOf(jwkOf(&k.ec.PublicKey, map[string]string{"kid": "old"}))))
			a := newTestAuthority(t, "PRESENCE_JWKS_FILE="+path)
			link(other)
			if _, err := a.check(young.token(nil)); err == nil { // has the file looked at
				t.Error("a key of something else is good")
			}
			if _, err := a.check(old.token(nil)); err != nil {
				t.Error("the old key:", err)
			}
			link(saved(t, "young", keySetOf(jwkOf(&k.otherEC.PublicKey, map[string]string{"kid": "young"}))))
			if !poll(10*time.Second, func() bool { _, err := a.check(young.token(nil)); return err == nil }) {
				t.Error("the file is not read again")
			}
		})
	}
}

// TestKeySetsAreExact: names are those of RFC 7517, and none comes twice.
func TestKeySetsAreExact(t *testing.T) {
	k := keyring()
	good, _ := json.Marshal(jwkOf(&k.ec.PublicKey, map[string]string{"kid": "good"}))
	evil, _ := json.Marshal(jwkOf(&k.otherEC.PublicKey, map[string]string{"kid": "evil"}))
	with := func(more string) string { return strings.Replace(string(good), "{", "{"+more, 1) }
	for text, keys := range map[string]int{
		`{"keys":[` + string(good) + `]}`:                                         1,
		"\n" + `{"x":1,"keys":[` + with(`"x5c":["a"],`) + `]}` + "\n":             1,
		`{"keys":[` + string(good) + `],"KEYS":[` + string(evil) + `]}`:           1,
		`{"keys":[` + string(good) + `],"keys":[` + string(evil) + `]}`:           0,
		`{"KEYS":[` + string(good) + `]}`:                                         0,
		`{"\u212Aeys":[` + string(good) + `]}`:                                    0,
		`{"keys":[` + with(`"kid":"a",`) + `]}`:                                   0,
		`{"keys":[` + with(`"kty":"EC",`) + `]}`:                                  0,
		`{"keys":[` + string(good) + `,` + with(`"k":1,"k":1,`) + `]}`:            0,
		`{"keys":[` + strings.Replace(string(good), "kty", "KTY", 1) + `]}`:       0,
		`{"keys":[` + string(good) + `,` + with(`"use":1,`) + `]}`:                1,
		`{"keys":[` + string(good) + `,7]}`:                                       0,
		`{"keys":[` + string(good) + `]}x`:                                        0,
		`{"keys":{"0":` + string(good) + `}}`:                                     0,
		`{"keys":[` + strings.Repeat(string(good)+",", 99) + string(good) + `]}`:  100,
		`{"keys":[` + strings.Repeat(string(good)+",", 100) + string(good) + `]}`: 0,
		`{"keys":null}`: 0, `[]`: 0, ``: 0, "{\"keys\":[" + string(good) + "],\"x\":\"\xff\"}": 0,
	} {
		found, err := parseKeySet([]byte(text))
		if len(found) != keys || (err == nil) != (keys > 0) {
			t.Errorf("%.300s: %d keys, %v, want %d", text, len(found), err, keys)
		}
		if len(found) > 0 && found[0].kid != "good" {
			t.Errorf("%.300s: the key %q", text, found[0].kid)
		}
	}
}

// TestLargestKeysAreQuick: with as many keys as a set may have, all of the largest size, a token is soon refused.
func TestLargestKeysAreQuick(t *testing.T) {
	set := make([]map[string]string, maxSetKeys)
	for i := range set {
		n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), maxRSABits-1))
		set[i] = jwkOf(&rsa.PublicKey{N: n.SetBit(n.SetBit(n, maxRSABits-1, 1), 0, 1), E: 65537}, nil)
	}
	a := newTestAuthority(t, "PRESENCE_JWKS_FILE="+saved(t, "jwks.json", keySetOf(set...)))
	token := signedWith(t, `{"alg":"RS256"}`, claimsWith(""))
	token = cutAtLastDot(token) + "." + base64url(make([]byte, maxRSABits/8))
	start := time.Now()
	if _, err := a.check(token); err == nil {
		t.Error("it is good")
	}
	if took := time.Since(start); took > 10*time.Second { // some 50 ms on a machine that does nothing else
		t.Errorf("it took %v", took)
	}
}
