package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// jsonSeeds are texts at the edges of the grammar, valid and not.
var jsonSeeds = []string{
	``, ` `, `null`, `true`, `tru`, `nulll`, `0`, `-0`, `01`, `-`, `+1`, `.5`, `1.`, `1.5`, `1e3`, `1E-3`, `1e`, `1e+`, `0x1`, `NaN`,
	`1234567890123456789`, `"a"`, `"`, `"\"`, `"\u0061"`, `"\u00g1"`, `"\u006`, `"\x"`, `"\/\b\f\n\r\t\"\\"`, "\"a\nb\"", "\"\x7f\"", "\"\xff\"",
	"\"\u2028\"", `"\ud83d\ude00"`, `"\ud800"`, `"\udc00\ud800"`, `"😀"`, "\ufeff[]",
	`[]`, `[ ]`, `[`, `]`, `[}`, `[1`, `[1,`, `[1,]`, `[,]`, `[1 2]`, `[1,2]x`, ` [ 1 , "b" , { "c" : [ null ] } ] `, `["presence:heartbeat",{"epoch":1}]`,
	`{}`, `{ }`, `{`, `{]`, `{"a"}`, `{"a":}`, `{"a":1`, `{"a":1,}`, `{,}`, `{"a" 1}`, `{1:2}`, `{a:1}`, `{"a":1 "b":2}`, `{"a":1}{}`, `{"":""}`, `{"":1,"b":2}`, "{\"a\":\"\xff\"}",
	`{"a":1,"a":2}`, `{"a":2,"\u0061":1}`, `{"__proto__":{"b":[]},"":{}}`, `{"a" : [ 1 , { "b" : "c d" } ] }`, `{"b":[1,2],"a":{}}`, `{"a":{},"b":[1,2]}`,
	strings.Repeat("[", 130) + strings.Repeat("]", 130), strings.Repeat(`{"a":[`, 70) + strings.Repeat(`]}`, 70), strings.Repeat(`[`, 65) + `}` + strings.Repeat(`]`, 64),
}

// tooDeepForModel tells texts that encoding/json may refuse for their depth alone.
func tooDeepForModel(b []byte) bool {
	return bytes.Count(b, []byte("["))+bytes.Count(b, []byte("{")) >= 10_000
}

// decoded is the model of a value: decoded by encoding/json, with the text of its numbers.
func decoded(t *testing.T, b []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return v
}

// modelled tells valid texts whose strings encoding/json decodes without loss: it turns lone surrogates into U+FFFD.
func modelled(b []byte) bool {
	if tooDeepForModel(b) || !json.Valid(b) || !utf8.Valid(b) || bytes.ContainsRune(b, utf8.RuneError) {
		return false
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil { // a number that no float64 holds
		return false
	}
	plain, err := json.Marshal(v)
	return err == nil && !bytes.Contains(plain, []byte(`\ufffd`)) && !bytes.ContainsRune(plain, utf8.RuneError)
}

func FuzzSplitArray(f *testing.F) {
	for _, text := range jsonSeeds {
		f.Add([]byte(text))
		f.Add([]byte("[" + text + "]"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if tooDeepForModel(b) {
			t.Skip("encoding/json has a limit of depth")
		}
		elements, ok := splitArray(b)
		isArray := json.Valid(b) && bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("["))
		if ok != isArray {
			t.Fatalf("splitArray(%q) says %v, encoding/json %v", b, ok, isArray)
		}
		if !ok {
			return
		}
		var want []json.RawMessage
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(elements, want, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			t.Fatalf("splitArray(%q) = %q, want %q", b, elements, want)
		}
	})
}

func FuzzCompactObject(f *testing.F) {
	for _, text := range jsonSeeds {
		f.Add([]byte(text))
		f.Add([]byte(`{"k":` + text + "}"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if tooDeepForModel(b) {
			t.Skip("encoding/json has a limit of depth")
		}
		compact, ok := compactObject(b)
		isObject := json.Valid(b) && utf8.Valid(b) && bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{"))
		if ok != isObject {
			t.Fatalf("compactObject(%q) says %v, encoding/json %v", b, ok, isObject)
		}
		if !ok {
			return
		}
		var want bytes.Buffer
		if err := json.Compact(&want, b); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(compact, want.Bytes()) {
			t.Fatalf("compactObject(%q) = %q, want %q", b, compact, want.Bytes())
		}
		if !sameJSON(b, compact) {
			t.Fatalf("compactObject(%q) = %q is not the same JSON", b, compact)
		}
	})
}

func FuzzSameJSON(f *testing.F) {
	for i, text := range jsonSeeds {
		f.Add([]byte(text), []byte(jsonSeeds[(i+1)%len(jsonSeeds)]))
		f.Add([]byte(text), []byte(" "+text))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		got := sameJSON(a, b) // must not panic, whatever the texts
		if !modelled(a) || !modelled(b) {
			t.Skip("no model of these texts")
		}
		if want := reflect.DeepEqual(decoded(t, a), decoded(t, b)); got != want {
			t.Fatalf("sameJSON(%q, %q) = %v, want %v", a, b, got, want)
		}
		if back := sameJSON(b, a); back != got {
			t.Fatalf("sameJSON(%q, %q) = %v, the other way round %v", a, b, got, back)
		}
	})
}

func FuzzMergeState(f *testing.F) {
	for i, text := range jsonSeeds {
		f.Add([]byte(text), []byte(jsonSeeds[(i+1)%len(jsonSeeds)]))
	}
	f.Add([]byte(wideObject(40, "1")), []byte(wideObject(60, "2")))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		state, isObject := compactObject(a)
		patch, isPatch := compactObject(b)
		if !isObject || !isPatch || !modelled(state) || !modelled(patch) {
			t.Skip("no model of these texts")
		}
		checkMerge(t, state, patch)
	})
}

// checkMerge compares mergeState with merging maps of raw values.
func checkMerge(t *testing.T, state, patch json.RawMessage) {
	t.Helper()
	merged, changed := mergeState(state, patch)
	want, given := rawMembers(t, state), rawMembers(t, patch)
	maps.Copy(want, given)
	if differs := !reflect.DeepEqual(decoded(t, state), decoded(t, merged)); changed != differs {
		t.Fatalf("mergeState(%s, %s) says changed %v, want %v", state, patch, changed, differs)
	}
	if !changed {
		if !bytes.Equal(merged, state) {
			t.Fatalf("mergeState(%s, %s) = %s without a change", state, patch, merged)
		}
		return
	}
	if again, ok := compactObject(merged); !ok || !bytes.Equal(again, merged) {
		t.Fatalf("mergeState(%s, %s) = %s, not compact JSON", state, patch, merged)
	}
	if got := rawMembers(t, merged); !reflect.DeepEqual(got, want) {
		t.Fatalf("mergeState(%s, %s) = %s, want the members %s", state, patch, merged, want)
	}
}

func rawMembers(t *testing.T, object []byte) map[string]json.RawMessage {
	t.Helper()
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(object, &members); err != nil {
		t.Fatalf("%q: %v", object, err)
	}
	return members
}

func FuzzAppendString(f *testing.F) {
	for _, text := range []string{"", "a", `"`, `\`, `\"`, `a\\b"c`, "é😀\u2028\u007f\u0085", "\x00\x1f\n", "{}", `\u0061`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			t.Skip("appendString takes valid UTF-8")
		}
		literal := appendString([]byte("before"), text)[len("before"):]
		var back string
		if err := json.Unmarshal(literal, &back); err != nil || back != text {
			t.Fatalf("appendString(%q) = %s, read back as %q: %v", text, literal, back, err)
		}
		if string(unquote(literal)) != text {
			t.Fatalf("unquote(%s) = %q, want %q", literal, unquote(literal), text)
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
			return
		}
		if undone := undoByPattern(string(literal[1 : len(literal)-1])); undone != text {
			t.Fatalf("appendString(%q) = %s, undone by pattern to %q", text, literal, undone)
		}
	})
}

// undoByPattern is what gsub('\\(.)', '%1') does in Lua: of each backslash and the byte after it, that byte is left.
func undoByPattern(text string) string {
	var undone strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		undone.WriteByte(text[i])
	}
	return undone.String()
}

func TestSameJSON(t *testing.T) {
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"order of keys", `{"a":1,"b":{"c":2,"d":3}}`, `{"b":{"d":3,"c":2},"a":1}`, true},
		{"order of elements", `[1,2]`, `[2,1]`, false},
		{"spacing", " [ 1 , { } ]\n", `[1,{}]`, true},
		{"spacing around a scalar", "1 ", `1`, true},
		{"spaces within text", `"a b"`, `"a  b"`, false},
		{"text of numbers", `1.0`, `1`, false},
		{"exponent", `[1e3]`, `[1E3]`, false},
		{"large numbers", `[1234567890123456788]`, `[1234567890123456789]`, false},
		{"zero", `-0`, `0`, false},
		{"number and text", `[1]`, `["1"]`, false},
		{"name and text", `[null]`, `["null"]`, false},
		{"names", `true`, `false`, false},
		{"empty containers", `{}`, `[]`, false},
		{"nested empty containers", `{"a":{}}`, `{"a":[]}`, false},
		{"one more element", `[1]`, `[1,1]`, false},
		{"one more member", `{"a":1}`, `{"a":1,"b":1}`, false},
		{"missing and null", `{}`, `{"a":null}`, false},
		{"flat and nested", `[[1],2]`, `[[1,2]]`, false},
		{"array like object", `["a",1]`, `{"a":1}`, false},
		{"keys and values swapped", `{"a":"b"}`, `{"b":"a"}`, false},
		{"escaped key", `{"\u0061":1}`, `{"a":1}`, true},
		{"escaped text", `"\u00e9\/\n\u0022"`, "\"é/\\u000a\\\"\"", true},
		{"escaped pair", `"\ud83d\ude00"`, `"😀"`, true},
		{"lone surrogates", `"\ud800"`, `"\ud801"`, false},
		{"lone surrogate and replacement", `"\ud800"`, `"\ufffd"`, false},
		{"lone surrogate in another case", `"\ud8AB"`, `"\uD8ab"`, true},
		{"halves in the wrong order", `"\ude00\ud83d"`, `"😀"`, false},
		{"high before a pair", `"\ud83d\ud83d\ude00"`, `"\ud83d😀"`, true},
		{"keys apart by a lone surrogate", `{"\udc00":1}`, `{"\udc01":1}`, false},
		{"last of duplicates", `{"a":1,"a":2}`, `{"a":2}`, true},
		{"first of duplicates", `{"a":1,"a":2}`, `{"a":1}`, false},
		{"duplicates by escape", `{"a":1,"\u0061":2}`, `{"a":2}`, true},
		{"duplicates in depth", `[{"a":[1],"b":0,"a":[2]}]`, `[{"b":0,"a":[2]}]`, true},
		{"prototype and empty key", `{"__proto__":[],"":{}}`, `{"":{},"__proto__":[]}`, true},
		{"key in another case", `{"a":1}`, `{"A":1}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if sameJSON([]byte(tt.a), []byte(tt.b)) != tt.same || sameJSON([]byte(tt.b), []byte(tt.a)) != tt.same {
				t.Errorf("%s and %s: want same = %v both ways round", tt.a, tt.b, tt.same)
			}
		})
	}
}

func TestMergeState(t *testing.T) {
	tests := []struct {
		name, state, patch, merged string
		changed                    bool
	}{
		{"nothing into nothing", `{}`, `{}`, `{}`, false},
		{"new key", `{}`, `{"a":1}`, `{"a":1}`, true},
		{"in place", `{"a":1,"b":2,"c":3}`, `{"b":[]}`, `{"a":1,"b":[],"c":3}`, true},
		{"new keys last, in their order", `{"b":1}`, `{"d":1,"b":2,"c":3}`, `{"b":2,"d":1,"c":3}`, true},
		{"whole value", `{"a":{"x":1,"y":2}}`, `{"a":{"x":3}}`, `{"a":{"x":3}}`, true},
		{"null is stored", `{"a":1}`, `{"a":null}`, `{"a":null}`, true},
		{"null is new", `{}`, `{"a":null}`, `{"a":null}`, true},
		{"same value", `{"a":1}`, `{"a":1}`, `{"a":1}`, false},
		{"same value in another order", `{"a":{"x":1,"y":2}}`, `{"a":{"y":2,"x":1}}`, `{"a":{"x":1,"y":2}}`, false},
		{"same value, other escapes", `{"a":"é"}`, `{"a":"\u00e9"}`, `{"a":"é"}`, false},
		{"another text of a number", `{"a":1}`, `{"a":1.0}`, `{"a":1.0}`, true},
		{"large number", `{"a":1234567890123456789}`, `{"b":1234567890123456788}`, `{"a":1234567890123456789,"b":1234567890123456788}`, true},
		{"empty containers", `{"a":[],"b":{}}`, `{"c":[]}`, `{"a":[],"b":{},"c":[]}`, true},
		{"untouched bytes", `{"a":"\u0061\/","b":1}`, `{"b":2}`, `{"a":"\u0061\/","b":2}`, true},
		{"last of duplicates in the patch", `{"a":1}`, `{"a":2,"a":3}`, `{"a":3}`, true},
		{"last of duplicates is as before", `{"a":1}`, `{"a":2,"a":1}`, `{"a":1}`, false},
		{"new key twice", `{}`, `{"a":1,"b":2,"a":3}`, `{"a":3,"b":2}`, true},
		{"duplicates in the state", `{"a":1,"b":0,"a":2}`, `{"b":3}`, `{"a":2,"b":3}`, true},
		{"same as the last duplicate", `{"a":1,"a":2}`, `{"a":2}`, `{"a":1,"a":2}`, false},
		{"escaped key", `{"a":1}`, `{"\u0061":2}`, `{"a":2}`, true},
		{"key escaped in the state", `{"\u0061":1}`, `{"a":2}`, `{"\u0061":2}`, true},
		{"prototype", `{"__proto__":1}`, `{"__proto__":{},"constructor":[]}`, `{"__proto__":{},"constructor":[]}`, true},
		{"empty key", `{"":1}`, `{"":2}`, `{"":2}`, true},
		{"lone surrogates", `{"\ud800":1}`, `{"\ud801":2}`, `{"\ud800":1,"\ud801":2}`, true},
		{"brackets within text", `{"a":"}]{["}`, `{"b":"\"},"}`, `{"a":"}]{[","b":"\"},"}`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			merged, changed := mergeState(json.RawMessage(tt.state), json.RawMessage(tt.patch))
			if string(merged) != tt.merged || changed != tt.changed {
				t.Errorf("got %s, %v, want %s, %v", merged, changed, tt.merged, tt.changed)
			}
		})
	}
}

// TestMergeStateOfAnyWidth crosses the bound at which keys are found by a map.
func TestMergeStateOfAnyWidth(t *testing.T) {
	for width := range 2*fewMembers + 2 {
		for _, patch := range []string{`{"k0":"a"}`, `{"new":1}`, wideObject(width, "2"), wideObject(width+3, "3")} {
			checkMerge(t, json.RawMessage(wideObject(width, "1")), json.RawMessage(patch))
		}
	}
}

func TestMergeLeavesItsInputsAlone(t *testing.T) {
	state, patch := []byte(`{"a":1,"b":2}`), []byte(`{"a":3}`)
	merged, _ := mergeState(state, patch)
	clear(merged)
	if string(state) != `{"a":1,"b":2}` || string(patch) != `{"a":3}` {
		t.Errorf("the merged object shares memory: %s %s", state, patch)
	}
}

func TestSplitArrayElementsAreApart(t *testing.T) {
	elements, ok := splitArray([]byte(`[1,2]`))
	if !ok || len(elements) != 2 {
		t.Fatalf("got %q, %v", elements, ok)
	}
	if _ = append(elements[0], "xyz"...); string(elements[1]) != "2" {
		t.Errorf("appending to one element wrote into the next: %q", elements[1])
	}
}

func TestCompactObjectKeepsNoRoomForSpaces(t *testing.T) {
	compact, ok := compactObject([]byte("{" + strings.Repeat(" ", 60_000) + `"a":1}`))
	if !ok || string(compact) != `{"a":1}` || cap(compact) > 64 {
		t.Errorf("got %s, %v with room for %d bytes", compact, ok, cap(compact))
	}
}

// hostile are objects around a value that make careless code recurse or take quadratic time.
var hostile = []struct {
	name string
	text func(value string) string
}{
	{"1,000,000 levels of arrays", func(value string) string {
		return `{"a":` + strings.Repeat("[", 1_000_000) + value + strings.Repeat("]", 1_000_000) + `}`
	}},
	{"100,000 levels of objects", func(value string) string {
		return strings.Repeat(`{"a":`, 100_000) + value + strings.Repeat("}", 100_000)
	}},
	{"100,000 keys", func(value string) string {
		return strings.TrimSuffix(wideObject(100_000, "[0]"), "}") + `,"z":` + value + "}"
	}},
	{"one key 100,000 times", func(value string) string {
		return "{" + strings.Repeat(`"a":[[]],`, 100_000) + `"a":` + value + "}"
	}},
	{"a key of 1,000,000 escapes", func(value string) string {
		return `{"` + strings.Repeat(`\u0061`, 1_000_000) + `":` + value + `}`
	}},
	{"a number of 1,000,000 digits", func(value string) string {
		return `{"a":` + strings.Repeat("1", 1_000_000) + `,"b":` + value + `}`
	}},
}

// TestHostileJSON would overflow the stack by recursion, and take minutes by quadratic work.
func TestHostileJSON(t *testing.T) {
	takesLong(t)
	const bound = time.Minute // far above what is needed under the race detector on a busy machine
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			text, spaced, other := tt.text("1"), []byte(tt.text(" 1 ")), []byte(tt.text("2"))
			state, ok := compactObject(spaced)
			if !ok || string(state) != text {
				t.Fatal("compactObject did not give the compact text")
			}
			if elements, ok := splitArray([]byte("[" + text + "," + text + "]")); !ok || len(elements) != 2 {
				t.Error("splitArray did not find both elements")
			}
			if _, changed := mergeState(state, other); !changed {
				t.Error("mergeState saw no change")
			}
			if merged, changed := mergeState(state, spaced); changed || string(merged) != text {
				t.Error("mergeState saw a change of spaces")
			}
			if took := time.Since(start); took > bound {
				t.Errorf("took %v", took)
			}
		})
	}
}

// wideObject is {"k0":value,"k1":value,…}.
func wideObject(keys int, value string) string {
	var b strings.Builder
	for i := range keys {
		fmt.Fprintf(&b, `%c"k%d":%s`, "{,"[min(i, 1)], i, value)
	}
	if keys == 0 {
		b.WriteByte('{')
	}
	return b.String() + "}"
}

// TestBrokenTextInsideRedis: what somebody else wrote into Redis may be anything, and must not end the process (G9).
func TestBrokenTextInsideRedis(t *testing.T) {
	for _, text := range jsonSeeds {
		mergeState(json.RawMessage(text), json.RawMessage(`{"a":{"b":1}}`))
		mergeState(json.RawMessage(`{"a":[`+text), json.RawMessage(`{"a":{"b":1}}`))
		sameJSON([]byte(text), []byte(`{"a":[`+text))
		testLimits.unreadable([]byte(text))
		Limits{StateDepth: 1}.unreadable([]byte(`{"a":[` + text))
	}
}

// TestScannerAgreesOnEveryPrefix cuts a text everywhere: only the whole of it is valid.
func TestScannerAgreesOnEveryPrefix(t *testing.T) {
	text := []byte(`[{"a\u00e9\n":[-1.5e+3,0,true,false,null,""],"b":{}},"\ud83d\ude00"]`)
	for i := range text {
		if _, ok := splitArray(text[:i]); ok {
			t.Errorf("splitArray takes %s", text[:i])
		}
	}
	d := json.NewDecoder(bytes.NewReader(text))
	s := scanner{text: text}
	for s.next() {
		if _, err := d.Token(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Token(); err != io.EOF || !s.ended() {
		t.Errorf("the scanner ended before its text did: %v", err)
	}
}
