package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// openAPI is openapi.json as far as the tests look into it.
type openAPI struct {
	Info  struct{ Version string }
	Paths map[string]map[string]struct {
		Parameters []struct {
			Name, In string
		}
		Security  []map[string][]string
		Responses map[string]struct {
			Content map[string]struct{ Schema apiSchema }
		}
	}
	Components struct{ Schemas map[string]apiSchema }
}

type apiSchema struct {
	Ref        string `json:"$ref"`
	Type       string
	Required   []string
	Enum       []string
	Properties map[string]apiSchema
	Items      *apiSchema
}

func readOpenAPI(t *testing.T) openAPI {
	t.Helper()
	var doc openAPI
	if err := json.Unmarshal([]byte(readText(t, "openapi.json")), &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestTheOpenAPIFileHasTheRoutes, each with its parameters, and the key where it is wanted.
func TestTheOpenAPIFileHasTheRoutes(t *testing.T) {
	doc := readOpenAPI(t)
	if doc.Info.Version != version {
		t.Errorf("it is of version %s", doc.Info.Version)
	}
	want := []string{"get /metrics"}
	for _, r := range (&web{apiKey: "key"}).routes() {
		method := strings.ToLower(r.method)
		want = append(want, method+" "+r.path)
		op := doc.Paths[r.path][method]
		if guarded := strings.HasPrefix(r.path, "/v1/"); guarded != (len(op.Security) == 1) {
			t.Errorf("%s %s: security %v", method, r.path, op.Security)
		}
		var named []string
		for _, p := range op.Parameters {
			if p.In == "path" {
				named = append(named, "{"+p.Name+"}")
			}
		}
		var there []string
		for segment := range strings.SplitSeq(r.path, "/") {
			if strings.HasPrefix(segment, "{") {
				there = append(there, segment)
			}
		}
		if !slices.Equal(named, there) {
			t.Errorf("%s %s: parameters %q, want %q", method, r.path, named, there)
		}
	}
	var got []string
	for path, methods := range doc.Paths {
		for method := range methods {
			got = append(got, method+" "+path)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the file has\n%q, the server\n%q", got, want)
	}
}

// TestAnswersAreAsTheOpenAPIFileSays asks for everything, and does all wrong that the API refuses.
func TestAnswersAreAsTheOpenAPIFileSays(t *testing.T) {
	doc, n := readOpenAPI(t), startWithAPI(t, miniRedis(t))
	u := n.member(t, "home", "ann", `{"a":[1]}`)
	n.member(t, "home", "bob", "{}")
	n.member(t, "other", "bob", "{}")
	told := map[string]bool{}
	for _, tc := range []struct {
		path, method, url string
		status            int
		body              string
	}{
		{"/healthz", "get", "/healthz", 200, ""},
		{"/readyz", "get", "/readyz", 200, ""},
		{"/v1/rooms", "get", "/v1/rooms?limit=1", 200, ""},
		{"/v1/rooms", "get", "/v1/rooms?limit=x", 400, ""},
		{"/v1/rooms/{roomId}", "get", "/v1/rooms/home?limit=1", 200, ""},
		{"/v1/rooms/{roomId}", "get", "/v1/rooms/nobody", 200, ""},
		{"/v1/users/{userId}", "get", "/v1/users/bob", 200, ""},
		{"/v1/users/{userId}", "get", "/v1/users/%00", 400, ""},
		{"/v1/rooms/{roomId}/conns/{connId}", "delete", "/v1/rooms/home/conns/nobody", 404, ""},
		{"/v1/rooms/{roomId}/conns/{connId}", "delete", "/v1/rooms/home/conns/" + u.id, 204, ""},
		{"/v1/rooms/{roomId}/emit", "post", "/v1/rooms/home/emit", 202, `{"event":"chat","args":[1]}`},
		{"/v1/rooms/{roomId}/emit", "post", "/v1/rooms/%00/emit", 400, `{"event":"chat"}`},
		{"/v1/emit", "post", "/v1/emit", 202, `{"event":"chat"}`},
		{"/v1/emit", "post", "/v1/emit", 400, `{"event":"connect"}`},
		{"/v1/users/{userId}", "delete", "/v1/users/bob?disconnect=true", 200, ""},
		{"/v1/users/{userId}", "delete", "/v1/users/bob?disconnect=1", 400, ""},
		{"/v1/users", "post", "/v1/users", 200, `{"userIds":["ann","nobody"]}`},
		{"/v1/users", "post", "/v1/users", 400, `{"userIds":"ann"}`},
		{"/v1/users", "post", "/v1/users", 413, strings.Repeat(" ", maxBody+1)},
	} {
		got := n.send(t, strings.ToUpper(tc.method), tc.url, strings.NewReader(tc.body))
		answer, listed := doc.Paths[tc.path][tc.method].Responses[fmt.Sprint(tc.status)]
		if got.status != tc.status || !listed {
			t.Errorf("%s is answered with %d %s; the file tells of %v", tc.url, got.status, got.text, slices.Collect(maps.Keys(doc.Paths[tc.path][tc.method].Responses)))
			continue
		}
		if got.text == "" {
			continue
		}
		var value any
		if err := json.Unmarshal([]byte(got.text), &value); err != nil {
			t.Fatal(err)
		}
		for _, wrong := range doc.violations(answer.Content["application/json"].Schema, value, tc.url, told) {
			t.Error(wrong)
		}
	}
	for name := range doc.Components.Schemas {
		if !told[name] {
			t.Errorf("no answer was a %s", name)
		}
	}
	codes := doc.Components.Schemas["Error"].Properties["code"].Enum
	for _, code := range []Code{CodeInvalidPayload, CodeUnauthorized, CodeNotJoined, CodeUnavailable, CodeShuttingDown, httpNotFound, httpMethodNotAllowed, CodeTooManyUsers, httpTooLarge, httpAdapterOff} {
		if !slices.Contains(codes, string(code)) {
			t.Errorf("the file does not know the code %s", code)
		}
	}
}

// violations tells where a value is another one than its schema says.
func (doc openAPI) violations(s apiSchema, value any, at string, told map[string]bool) (wrong []string) {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		told[name] = true
		s = doc.Components.Schemas[name]
	}
	kind := map[string]bool{}
	switch v := value.(type) {
	case string:
		kind["string"] = s.Enum == nil || slices.Contains(s.Enum, v)
	case bool:
		kind["boolean"] = true
	case float64:
		kind["integer"] = v == float64(int64(v))
	case []any:
		kind["array"] = s.Items != nil
		for i := range v {
			wrong = append(wrong, doc.violations(*s.Items, v[i], fmt.Sprintf("%s[%d]", at, i), told)...)
		}
	case map[string]any:
		kind["object"] = true
		for _, name := range s.Required {
			if _, there := v[name]; !there {
				wrong = append(wrong, fmt.Sprintf("%s has no %s", at, name))
			}
		}
		for name, field := range v {
			property, known := s.Properties[name]
			switch {
			case known:
				wrong = append(wrong, doc.violations(property, field, at+"."+name, told)...)
			case s.Properties != nil: // else it is a state
				wrong = append(wrong, fmt.Sprintf("%s has a field %s, which the file does not know", at, name))
			}
		}
	}
	if !kind[s.Type] {
		wrong = append(wrong, fmt.Sprintf("%s is %v, want a %q", at, value, s.Type))
	}
	return wrong
}

// TestREADMEAndDocsRequestsWork runs the lines of its shell script.
func TestREADMEAndDocsRequestsWork(t *testing.T) {
	_, err := exec.LookPath("curl")
	need(t, err == nil, "curl in PATH (apt-get install curl)")
	n := startWithAPI(t, miniRedis(t))
	u := n.member(t, "room-1", "u-42", "{}")
	lines := strings.Split(strings.TrimSpace(codeBlock(t, section(t, "HTTP API"), "sh")), "\n")
	var got []string
	for _, line := range lines {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", replaceOnce(t, line, "localhost:3000", "127.0.0.1:"+n.port()))
		cmd.Env = append(cmd.Environ(), "PRESENCE_API_KEY="+testAPIKey, "CONN="+u.id)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		got = append(got, string(out))
	}
	for i, want := range []string{"ready", `"room-1"`, u.id, `"online":true`, ""} {
		if i >= len(got) || !strings.Contains(got[i], want) {
			t.Errorf("the answers are %q, want %q in number %d", got, want, i)
		}
	}
	if status := n.http(t, http.MethodGet, "/v1/rooms/room-1"); status.Count != 0 {
		t.Errorf("after all of them the room is %s", status.text)
	}
}
