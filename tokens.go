package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	maxTokenBytes = 8 << 10 // of a token; a longer one is not looked at

	// How far the clock of the issuer may be ahead of ours. It does not prolong a token.
	tokenLeeway = 5 * time.Second

	lastSecond = 253402300799 // of the year 9999: an exp beyond is not in seconds
	maxDate    = 1 << 53      // of other claims with dates, in seconds: up to there a float64 holds every whole number
)

// check returns what a token allows, or CodeUnauthorized.
func (a *authority) check(text string) (*grant, *Error) {
	switch {
	case text == "":
		return nil, unauthorized("a token is needed")
	case len(text) > maxTokenBytes:
		return nil, unauthorized(fmt.Sprintf("a token may have at most %d bytes", maxTokenBytes))
	}
	g, err := a.read(text)
	if err == nil && !time.Now().Before(g.expires) {
		err = jwt.ErrTokenExpired
	}
	if err != nil {
		return nil, unauthorized("the token is not valid: " + whatIsWrong(err))
	}
	return g, nil
}

func unauthorized(message string) *Error {
	return &Error{Code: CodeUnauthorized, Message: message}
}

// whatIsWrong says what a client may know of why its token was refused. Errors of the library that are not known here may
// tell more than that.
func whatIsWrong(err error) string {
	for _, known := range []error{
		jwt.ErrTokenExpired, jwt.ErrTokenNotValidYet, jwt.ErrTokenInvalidIssuer, jwt.ErrTokenInvalidAudience, jwt.ErrTokenRequiredClaimMissing,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	var fault tokenFault
	if errors.As(err, &fault) {
		return string(fault)
	}
	return "its claims are not those that are asked for"
}

// tokenFault says what is wrong with a token, without any of its text.
type tokenFault string

func (f tokenFault) Error() string { return string(f) }

// read returns what a token says. Its claims are looked at only after its signature.
func (a *authority) read(text string) (*grant, error) {
	t, err := parseToken(text)
	if err != nil {
		return nil, err
	}
	if !a.signed(t) {
		return nil, tokenFault("token signature is invalid")
	}
	c, err := parseClaims(t.claims, a.idBytes)
	if err != nil {
		return nil, err
	}
	if err := a.rules.Validate(c); err != nil {
		return nil, err
	}
	return &grant{user: c.Subject, rooms: c.rooms, watch: c.watch, expires: c.ExpiresAt.Time}, nil
}

// signedToken is a JSON web token (RFC 7519) taken apart. Nothing of it is checked but its form.
type signedToken struct {
	signed    string // what the signature is for
	signature []byte
	alg, kid  string // of the header; kid is "" if there is none
	claims    []byte
}

// parseToken takes three segments of base64url apart, and nothing else.
func parseToken(text string) (t signedToken, err error) {
	segments := strings.Split(text, ".")
	if len(segments) != 3 {
		return signedToken{}, tokenFault("it must have three segments")
	}
	var decoded [3][]byte
	for i, segment := range segments {
		if decoded[i], err = decodeBase64URL(segment); err != nil {
			return signedToken{}, tokenFault("its segments must be base64url")
		}
	}
	t = signedToken{signed: text[:len(text)-len(segments[2])-1], claims: decoded[1], signature: decoded[2]}
	t.alg, t.kid, err = parseHeader(decoded[0])
	return t, err
}

// decodeBase64URL takes what RFC 7515 calls base64url: no padding, no line breaks, which the standard library passes over,
// and no bits that are not used. So there is one text for the same bytes.
func decodeBase64URL(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("line break")
	}
	return base64.RawURLEncoding.Strict().DecodeString(text)
}

func parseHeader(raw []byte) (alg, kid string, err error) {
	var algText, kidText, critical []byte
	if err := readPart("header", raw, field{"alg", &algText}, field{"kid", &kidText}, field{"crit", &critical}); err != nil {
		return "", "", err
	}
	if critical != nil {
		return "", "", tokenFault("its header has an extension that is not known here")
	}
	if alg, err = textClaim("alg", algText); err == nil {
		kid, err = textClaim("kid", kidText)
	}
	return alg, kid, err
}

// readPart reads the header or the claims of a token. A field of which it has the name in another case is refused too:
// another program may ignore the case.
func readPart(part string, raw []byte, fields ...field) error {
	twin, err := readObject(raw, fields...)
	switch {
	case err != nil:
		return tokenFault("its " + part + " " + err.Error())
	case twin != "":
		return tokenFault("its " + part + " must not have " + twin + " in another case")
	}
	return nil
}

// claims are those of a token that matter here. Those that are registered are checked by the library.
type claims struct {
	jwt.RegisteredClaims
	rooms []string // nil = no such claim
	watch bool
}

func parseClaims(raw []byte, idBytes int) (*claims, error) {
	var sub, iss, aud, exp, nbf, iat, rooms, watch []byte
	err := readPart("claims", raw, field{"sub", &sub}, field{"iss", &iss}, field{"aud", &aud}, field{"exp", &exp}, field{"nbf", &nbf},
		field{"iat", &iat}, field{"rooms", &rooms}, field{"watch", &watch})
	if err != nil {
		return nil, err
	}
	c := &claims{}
	var bad *Error
	if c.Subject, bad = decodeID("sub", sub, Limits{IDBytes: idBytes}); bad != nil {
		return nil, tokenFault(bad.Message)
	}
	errs := make([]error, 7)
	c.Issuer, errs[0] = textClaim("iss", iss)
	c.Audience, errs[1] = audienceClaim(aud)
	c.ExpiresAt, errs[2] = dateClaim("exp", exp, lastSecond)
	c.NotBefore, errs[3] = dateClaim("nbf", nbf, maxDate)
	c.IssuedAt, errs[4] = dateClaim("iat", iat, maxDate)
	c.rooms, errs[5] = textsClaim("rooms", rooms)
	c.watch, errs[6] = watchClaim(watch)
	return c, errors.Join(errs...)
}

// textClaim is "" for a claim that is absent or null.
func textClaim(name string, raw []byte) (string, error) {
	if raw == nil || string(raw) == "null" {
		return "", nil
	}
	text, err := decodeText(name, raw)
	if err != nil {
		return "", tokenFault(err.Message)
	}
	return text, nil
}

// textsClaim is nil for a claim that is absent, but not for null.
func textsClaim(name string, raw []byte) ([]string, error) {
	if raw == nil {
		return nil, nil
	}
	list, ok := splitArray(raw)
	if !ok {
		return nil, tokenFault(name + " must be a list of text")
	}
	texts := make([]string, len(list))
	for i, element := range list {
		text, err := decodeText("each of "+name, element)
		if err != nil {
			return nil, tokenFault(err.Message)
		}
		texts[i] = text
	}
	return texts, nil
}

// audienceClaim takes one text as well as a list of them.
func audienceClaim(raw []byte) ([]string, error) {
	if len(raw) > 0 && raw[0] == '[' {
		return textsClaim("aud", raw)
	}
	one, err := textClaim("aud", raw)
	if err != nil || one == "" {
		return nil, err
	}
	return []string{one}, nil
}

// dateClaim reads seconds since 1970, from 0 to latest, to the millisecond. It is nil for a claim that is absent or null.
func dateClaim(name string, raw []byte, latest float64) (*jwt.NumericDate, error) {
	if raw == nil || string(raw) == "null" {
		return nil, nil
	}
	seconds, err := strconv.ParseFloat(string(raw), 64) // raw is JSON, so this takes no other text than a number
	if err != nil || !(0 <= seconds && seconds <= latest) {
		return nil, tokenFault(name + " must be a time in seconds since 1970")
	}
	return &jwt.NumericDate{Time: time.UnixMilli(int64(math.Floor(seconds * 1000)))}, nil
}

func watchClaim(raw []byte) (bool, error) {
	switch string(raw) {
	case "true":
		return true, nil
	case "", "null", "false":
		return false, nil
	}
	return false, tokenFault("watch must be true or false")
}

// signed tells whether one of the keys has signed the token. One that none has may be of a key that the set has just got.
func (a *authority) signed(t signedToken) bool {
	verifies := func(k tokenKey) bool { return k.verifies(t) }
	if slices.ContainsFunc(a.fixed, verifies) {
		return true
	}
	if a.set == nil {
		return false
	}
	keys := a.set.current()
	if slices.ContainsFunc(keys, verifies) {
		return true
	}
	keys, changed := a.set.renewed(keys)
	return changed && slices.ContainsFunc(keys, verifies)
}
