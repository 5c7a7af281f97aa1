package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// signedWith is a token of the test's secret with this text as its header and claims.
func signedWith(t testing.TB, header, claims string) string {
	t.Helper()
	text := base64url([]byte(header)) + "." + base64url([]byte(claims))
	signature, err := hs256.method.Sign(text, hs256.key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64url(signature)
}

const plainHeader = `{"alg":"HS256","typ":"JWT"}`

// claimsWith are good for a minute, with more text before them.
func claimsWith(more string) string {
	return fmt.Sprintf(`{%s"sub":"ann","exp":%d}`, more, time.Now().Unix()+60)
}

// TestClaimsAreExact: a program that signs or forwards tokens may read names and doubles in another way than this one.
func TestClaimsAreExact(t *testing.T) {
	a := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret)
	for _, tc := range []struct {
		more, fault string // no fault = the token is good
	}{
		{``, ""}, {`"name":"Ann","ids":{"SUB":1,"sub":[1,1]},`, ""}, {`"NAME":1,"name":2,`, ""}, {`"subs":1,"ſubs":2,`, ""}, {`"x":"\ud800",`, ""},
		{`"sub":"root",`, "sub twice"}, {`"s\u0075b":"root",`, "sub twice"}, {`"sub":null,`, "sub twice"}, {`"exp":1,`, "exp twice"}, {`"x":1,"x":1,`, "a field twice"},
		{`"SUB":"root",`, "sub in another case"}, {`"ſub":"root",`, "sub in another case"}, {`"\u017fub":"root",`, "sub in another case"},
		{`"Sub":null,`, "sub in another case"}, {`"EXP":9999999999,`, "exp in another case"}, {`"Exp":1,`, "exp in another case"}, {`"NBF":1,`, "nbf in another case"},
		{`"Iss":"i",`, "iss in another case"}, {`"iſſ":"i",`, "iss in another case"}, {`"AUD":[],`, "aud in another case"}, {`"Rooms":[],`, "rooms in another case"},
		{`"roomſ":[],`, "rooms in another case"}, {`"WATCH":true,`, "watch in another case"}, {`"watch":true,"Watch":false,`, "watch in another case"},
		{`"nbf":1,"nbf":1,`, "nbf twice"}, {`"iss":"i","iss":"i",`, "iss twice"}, {`"aud":"a","aud":"a",`, "aud twice"}, {`"rooms":[],"rooms":["*"],`, "rooms twice"},
		{`"watch":true,"watch":true,`, "watch twice"}, {`"iat":1,"iat":1,`, "iat twice"},
		{`"rooms":["\ud800"],`, "rooms must be valid Unicode"}, {`"rooms":["a","b\udc00"],`, "rooms must be valid Unicode"}, {`"rooms":["\ud83d\ude00"],`, ""},
		{"\"rooms\":[\"\xff\"],", "JSON object"}, {"\"x\":\"\xed\xa0\x80\",", "JSON object"}, {`"iss":"\ud800",`, "iss must be valid Unicode"},
		{`"rooms":null,`, "rooms"}, {`"rooms":{},`, "rooms"}, {`"rooms":[null],`, "rooms"}, {`"watch":1,`, "watch"}, {`"watch":"true",`, "watch"}, {`"watch":null,`, ""},
		{`"nbf":0,"iat":9007199254740992,`, ""}, {`"nbf":1e3,"iat":1.5,`, ""}, {`"nbf":null,"iat":null,`, ""},
		{`"nbf":-1,`, "nbf"}, {`"nbf":9007199254740994,`, "nbf"}, {`"nbf":1e300,`, "nbf"}, {`"nbf":1e999,`, "nbf"}, {`"nbf":"1",`, "nbf"}, {`"nbf":true,`, "nbf"}, {`"nbf":[],`, "nbf"},
		{`"nbf":9007199254740992,`, "not valid yet"}, {`"iat":-0.5,`, "iat"}, {`"iat":1e300,`, "iat"}, {`"iat":"1",`, "iat"},
		{`"aud":1,`, "aud"}, {`"aud":["a",1],`, "aud"}, {`"iss":1,`, "iss"}, {`"aud":{},`, "aud"},
	} {
		g, err := a.check(signedWith(t, plainHeader, claimsWith(tc.more)))
		switch {
		case tc.fault == "" && (err != nil || g.user != "ann"):
			t.Errorf("%s: %+v, %v", tc.more, g, err)
		case tc.fault != "" && (err == nil || err.Code != CodeUnauthorized || !strings.Contains(err.Message, tc.fault)):
			t.Errorf("%s: %+v, %v, want %q", tc.more, g, err, tc.fault)
		}
	}
}

// TestSubIsExact replaces the claim that claimsWith has.
func TestSubIsExact(t *testing.T) {
	a := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret)
	for _, sub := range []string{`"\ud800"`, `"a\udfffb"`, "\"\xff\"", "\"\xc0\xaf\"", `null`, `["ann"]`, `{"sub":"ann"}`, `true`, `""`, `"\u0000"`} {
		claims := strings.Replace(claimsWith(""), `"ann"`, sub, 1)
		if g, err := a.check(signedWith(t, plainHeader, claims)); err == nil || err.Code != CodeUnauthorized {
			t.Errorf("sub %q: %+v, %v", sub, g, err)
		}
	}
	for name, claims := range map[string]string{
		"only in another case": strings.Replace(claimsWith(""), "sub", "SUB", 1), "exp in another case": strings.Replace(claimsWith(""), "exp", "Exp", 1),
		"more after the claims": claimsWith("") + "{}", "a letter after them": claimsWith("") + "x", "a NUL after them": claimsWith("") + "\x00",
		"a BOM before them": "\ufeff" + claimsWith(""), "a list": "[" + claimsWith("") + "]", "null": "null", "nothing": "", "a comma too many": claimsWith(",")} {
		if g, err := a.check(signedWith(t, plainHeader, claims)); err == nil || err.Code != CodeUnauthorized {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

func TestHeadersAreExact(t *testing.T) {
	a := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret)
	for header, good := range map[string]bool{
		plainHeader: true, `{"alg":"HS256"}`: true, `{"alg":"HS256","kid":null}`: true, `{ "alg" : "HS\u0032\u0035\u0036" } `: true, `{"alg":"HS256","ALGO":1}`: true,
		`{"alg":"none","alg":"HS256"}`: false, `{"alg":"HS256","alg":"HS256"}`: false, `{"alg":"HS256","ALG":"none"}`: false, `{"Alg":"HS256"}`: false,
		`{"alg":"HS256","kid":"a","kid":"a"}`: false, `{"alg":"HS256","KID":"a"}`: false, `{"alg":"HS256","\u212Aid":"a"}`: false, `{"alg":"HS256","Kid":"a"}`: false,
		`{"alg":"HS256","crit":[]}`: false, `{"alg":"HS256","crit":null}`: false, `{"alg":"HS256","Crit":["exp"]}`: false,
		`{"alg":"hs256"}`: false, `{"alg":["HS256"]}`: false, `{"alg":null}`: false, `{}`: false, ``: false, `{"alg":"HS256"}x`: false, `{"alg":"HS256","x":"` + "\xff" + `"}`: false,
	} {
		if g, err := a.check(signedWith(t, header, claimsWith(""))); (err == nil) != good || err != nil && err.Code != CodeUnauthorized {
			t.Errorf("header %s: %+v, %v", header, g, err)
		}
	}
}

// TestNothingIsAroundAToken: one token has one text.
func TestNothingIsAroundAToken(t *testing.T) {
	a := newTestAuthority(t, "PRESENCE_JWT_SECRET="+testSecret)
	good := signedWith(t, plainHeader, claimsWith(""))
	if _, err := a.check(good); err != nil {
		t.Fatal(err)
	}
	dot := strings.IndexByte(good, '.')
	for name, text := range map[string]string{
		"line feed after": good + "\n", "carriage return after": good + "\r", "line feed before": "\n" + good, "space after": good + " ", "space before": " " + good,
		"tab after": good + "\t", "NUL after": good + "\x00", "line feed within": good[:dot-1] + "\n" + good[dot-1:], "line feed in the signature": good[:len(good)-2] + "\n" + good[len(good)-2:],
		"padding": good + "=", "a dot after": good + ".", "a segment after": good + ".e30", "a dot before": "." + good, "scheme": "Bearer " + good,
		"spare bits in the signature": good[:len(good)-1] + string(nextDigit(good[len(good)-1])), "letters of another alphabet": good + "+/",
		"twice": good + good, "two with a comma": good + "," + good,
	} {
		if g, err := a.check(text); err == nil || err.Code != CodeUnauthorized {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

// nextDigit is the digit of base64url that follows: the last one of 32 bytes has two bits that stand for nothing.
func nextDigit(c byte) byte {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return digits[strings.IndexByte(digits, c)+1]
}
