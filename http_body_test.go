package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// post sends a body with the API key.
func (n *node) post(t testing.TB, path, body string) apiAnswer {
	t.Helper()
	return n.send(t, http.MethodPost, path, strings.NewReader(body))
}

func (n *node) send(t testing.TB, method, path string, body io.Reader) apiAnswer {
	t.Helper()
	return sendHTTP(t, "127.0.0.1:"+n.port(), method, path, "Bearer "+testAPIKey, body)
}

// wantRefusal checks that an answer is an error, with a sentence for a person.
func (a apiAnswer) wantRefusal(t testing.TB, what string, status int, code Code) {
	t.Helper()
	var refused struct {
		Error, Code string
		Retryable   bool
	}
	if err := json.Unmarshal([]byte(a.text), &refused); err != nil || a.status != status || refused.Code != string(code) || refused.Error == "" {
		t.Errorf("%s is answered with %d %s, want %d %s", short80(what), a.status, short80(a.text), status, code)
	}
	if wanted := code == CodeUnavailable; refused.Retryable != wanted {
		t.Errorf("%s is answered with %s", short80(what), a.text)
	}
}

// postRoutes are the routes that take a body, each with one that it takes.
var postRoutes = map[string]string{
	"/v1/users":           `{"userIds":["ann"]}`,
	"/v1/emit":            `{"event":"a"}`,
	"/v1/rooms/room/emit": `{"event":"a"}`,
}

func TestBodiesThatNoRouteTakes(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	for path, good := range postRoutes {
		if got := n.post(t, path, " \r\n\t"+good[:len(good)-1]+`,"more":[{}],"More":null} `+"\n"); got.status/100 != 2 {
			t.Errorf("%s with unknown fields and spaces is answered with %d %s", path, got.status, got.text)
		}
		for _, body := range []string{
			"", " ", "null", "[]", "{}", "true", `"text"`, "7", "{", good[:len(good)-1], good + good, good + "x", good + ",", "\ufeff" + good,
			"\x00" + good, "'" + good + "'", strings.ReplaceAll(good, ":", "="), strings.ReplaceAll(good, `"`, `'`), "[" + good + "]",
			good[:len(good)-1] + `,}`, good[:len(good)-1] + `,"a":NaN}`, good[:len(good)-1] + `,"a":01}`, good[:len(good)-1] + `,"a":"` + "\n" + `"}`,
			good[:len(good)-1] + `,"a":1,"a":1}`, good[:len(good)-1] + "," + good[1:], // a field twice
			good[:len(good)-1] + `,"a":"` + "\xff" + `"}`, string(utf16of(good)),
			strings.Repeat(`{"a":`, 100_000), strings.Repeat("[", 1_000_000), strings.Repeat(" ", 1_000_000),
		} {
			n.post(t, path, body).wantRefusal(t, path+" "+body, http.StatusBadRequest, CodeInvalidPayload)
		}
		tooLong := good[:len(good)-1] + strings.Repeat(" ", maxBody) + "}"
		n.post(t, path, tooLong).wantRefusal(t, path+" too long", http.StatusRequestEntityTooLarge, httpTooLarge)
		unsized := io.MultiReader(strings.NewReader(tooLong)) // sent in chunks
		n.send(t, http.MethodPost, path, unsized).wantRefusal(t, path+" too long, in chunks", http.StatusRequestEntityTooLarge, httpTooLarge)
	}
}

// utf16of is ASCII text in another encoding.
func utf16of(text string) []byte {
	return bytes.Join(bytes.Split([]byte(text), nil), []byte{0})
}

// TestABodyThatDoesNotComeWhole ends the request, and nothing comes of it.
func TestABodyThatDoesNotComeWhole(t *testing.T) {
	n := startWithAPI(t, miniRedis(t))
	for path, good := range postRoutes {
		conn, err := net.Dial("tcp", "127.0.0.1:"+n.port())
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		_, err = conn.Write([]byte("POST " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testAPIKey + "\r\nContent-Length: 1000\r\n\r\n" + good))
		must(t, err)
		must(t, conn.(*net.TCPConn).CloseWrite())
		answer, err := io.ReadAll(conn)
		if err != nil || bytes.HasPrefix(answer, []byte("HTTP/1.1 2")) {
			t.Errorf("%s is answered with %q, %v", path, answer, err)
		}
		must(t, conn.Close())
	}
}

func TestWhoMayPostToTheAPI(t *testing.T) {
	b := miniRedis(t)
	with, without := startWithAPI(t, b), startNodeFor(t, b)
	for path, good := range postRoutes {
		for header, status := range map[string]int{"Bearer " + testAPIKey: 200, "": 401, "Bearer x" + testAPIKey: 401} {
			got := sendHTTP(t, "127.0.0.1:"+with.port(), http.MethodPost, path, header, strings.NewReader(good))
			if worked := got.status/100 == 2; worked != (status == 200) {
				t.Errorf("%s with %q is answered with %d %s", path, header, got.status, got.text)
			}
			if status == 401 {
				got.wantRefusal(t, path, 401, CodeUnauthorized)
			}
		}
		sendHTTP(t, "127.0.0.1:"+without.port(), http.MethodPost, path, "Bearer "+testAPIKey, strings.NewReader(good)).wantRefusal(t, path, 404, httpNotFound)
	}
}
