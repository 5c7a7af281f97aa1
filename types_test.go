package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
)

var testLimits = Limits{IDBytes: 200, StateBytes: 16384, StateDepth: 64}

// decoders are the four events with a payload that would be taken, and the reading of any payload.
var decoders = []struct {
	event, valid string
	decode       func(raw []byte) (any, *Error)
}{
	{"join", `{"roomId":"r","userId":"u","deviceId":"d","state":{}}`, func(raw []byte) (any, *Error) { return decodeJoin(raw, testLimits, "") }},
	{"heartbeat", `{"roomId":"r","patchState":{},"epoch":1}`, func(raw []byte) (any, *Error) { return decodeHeartbeat(raw, testLimits) }},
	{"leave", `{"roomId":"r"}`, func(raw []byte) (any, *Error) { return decodeLeave(raw, testLimits) }},
	{"get", `{"roomId":"r","limit":10,"cursor":"c"}`, func(raw []byte) (any, *Error) { return decodeGet(raw, testLimits) }},
	{"watch", `{"roomId":"r","limit":10,"events":"batch"}`, func(raw []byte) (any, *Error) { return decodeWatch(raw, testLimits, testMaxUsers) }},
	{"unwatch", `{"roomId":"r"}`, func(raw []byte) (any, *Error) { return decodeUnwatch(raw, testLimits, testMaxUsers) }},
}

const testMaxUsers = 3 // in one presence:watch

// joinOf is what a join without further wishes decodes to.
func joinOf(room, user string, state json.RawMessage) joinPayload {
	return joinPayload{RoomID: room, UserID: user, State: state, tellingPayload: tellingPayload{Mode: modeAll}}
}

// decodeAs reads a payload of that event.
func decodeAs(t *testing.T, event, raw string) (any, *Error) {
	t.Helper()
	for _, d := range decoders {
		if d.event == event {
			return d.decode([]byte(raw))
		}
	}
	t.Fatalf("no decoder of %q", event)
	return nil, nil
}

// withMember returns the object with that member in place of its own; an empty value takes it out.
func withMember(t *testing.T, object, name, value string) string {
	t.Helper()
	members := rawMembers(t, []byte(object))
	delete(members, name)
	var b strings.Builder
	b.WriteByte('{')
	for key, other := range members {
		b.WriteString(`"` + key + `":` + string(other) + `,`)
	}
	if value != "" {
		return b.String() + `"` + name + `":` + value + "}"
	}
	return strings.TrimSuffix(b.String(), ",") + "}"
}

func checkRefused(t *testing.T, event, raw string, code Code, inMessage string) {
	t.Helper()
	p, err := decodeAs(t, event, raw)
	if err == nil {
		t.Fatalf("%s took %.200q as %+v", event, raw, p)
	}
	if err.Code != code || !strings.Contains(err.Message, inMessage) {
		t.Errorf("%s of %.200q: %v, want %s about %q", event, raw, err, code, inMessage)
	}
	if zero := reflect.Zero(reflect.TypeOf(p)).Interface(); !reflect.DeepEqual(p, zero) {
		t.Errorf("%s of %.200q: refused, but gave %+v", event, raw, p)
	}
}

func TestDecode(t *testing.T) {
	empty := json.RawMessage("{}")
	long := strings.Repeat("é", 100) // 200 bytes
	tests := []struct {
		name, event, raw string
		want             any
	}{
		{"all", "join", `{"roomId":"r","userId":"u","state":{ "a" : [ ] }}`, joinOf("r", "u", json.RawMessage(`{"a":[]}`))},
		{"no state", "join", `{"roomId":"r","userId":"u"}`, joinOf("r", "u", empty)},
		{"null state", "join", `{"roomId":"r","userId":"u","state":null}`, joinOf("r", "u", empty)},
		{"spaces", "join", " {\n\"roomId\" : \"r\"\t, \"userId\" : \"u\" , \"state\" : null } ", joinOf("r", "u", empty)},
		{"unknown fields", "join", `{"roomId":"r","x":[{"roomId":1}],"userId":"u","ROOMID":1,"roomid":2,"RoomId":3,"State":4}`, joinOf("r", "u", empty)},
		{"escaped key", "join", `{"room\u0049d":"r","userId":"u"}`, joinOf("r", "u", empty)},
		{"escaped ids", "join", `{"roomId":"\u0041\/\"\\","userId":"\ud83d\ude00"}`, joinOf(`A/"\`, "😀", empty)},
		{"ids with braces, spaces and a replacement character", "join", `{"roomId":" {a}:b ","userId":"\ufffd"}`, joinOf(" {a}:b ", "\ufffd", empty)},
		{"ids of 200 bytes", "join", `{"roomId":"` + long + `","userId":"u"}`, joinOf(long, "u", empty)},
		{"prototype keys", "join", `{"__proto__":{"userId":"v"},"":1,"roomId":"r","userId":"u","state":{"__proto__":1,"":2}}`,
			joinOf("r", "u", json.RawMessage(`{"__proto__":1,"":2}`))},
		{"lone surrogate in the state", "join", `{"roomId":"r","userId":"u","state":{"a":"\ud800"}}`, joinOf("r", "u", json.RawMessage(`{"a":"\ud800"}`))},
		{"depth outside of the state", "join", `{"roomId":"r","userId":"u","x":` + strings.Repeat("[", 1_000_000) + strings.Repeat("]", 1_000_000) + `}`,
			joinOf("r", "u", empty)},

		{"nothing", "heartbeat", ``, heartbeatPayload{}},
		{"null", "heartbeat", `null`, heartbeatPayload{}},
		{"empty", "heartbeat", `{}`, heartbeatPayload{}},
		{"all null", "heartbeat", `{"roomId":null,"patchState":null,"epoch":null}`, heartbeatPayload{}},
		{"all", "heartbeat", `{"roomId":"r","patchState":{"a": null},"epoch":7}`, heartbeatPayload{"r", json.RawMessage(`{"a":null}`), 7, true}},
		{"empty patch", "heartbeat", `{"patchState":{}}`, heartbeatPayload{Patch: empty}},

		{"nothing", "leave", ``, leavePayload{}},
		{"null", "leave", `null`, leavePayload{}},
		{"empty", "leave", `{}`, leavePayload{}},
		{"null room", "leave", `{"roomId":null}`, leavePayload{}},
		{"room", "leave", `{"roomId":"r"}`, leavePayload{"r"}},

		{"room", "get", `{"roomId":"r"}`, getPayload{"r", 1000, ""}},
		{"null fields", "get", `{"roomId":"r","limit":null,"cursor":null}`, getPayload{"r", 1000, ""}},
		{"all", "get", `{"roomId":"r","limit":10,"cursor":"a\u0000b"}`, getPayload{"r", 10, "a\x00b"}},

		{"modes", "join", `{"roomId":"r","userId":"u","events":"none","limit":5}`, joinPayload{RoomID: "r", UserID: "u", State: empty, tellingPayload: tellingPayload{modeNone, 5}}},
		{"a device", "join", `{"roomId":"r","userId":"u","deviceId":"{}\"\\"}`, joinPayload{RoomID: "r", UserID: "u", DeviceID: `{}"\`, State: empty, tellingPayload: tellingPayload{Mode: modeAll}}},
		{"null device", "join", `{"roomId":"r","userId":"u","deviceId":null}`, joinOf("r", "u", empty)},
		{"null modes", "join", `{"roomId":"r","userId":"u","events":null,"limit":null}`, joinOf("r", "u", empty)},

		{"room", "watch", `{"roomId":"r"}`, watchPayload{"r", nil, tellingPayload{Mode: modeAll}}},
		{"all of a room", "watch", `{"roomId":"r","events":"count","limit":2000,"userIds":null}`, watchPayload{"r", nil, tellingPayload{modeCount, 1000}}},
		{"users, one twice", "watch", `{"userIds":["b","a","b"]}`, watchPayload{"", []string{"b", "a"}, tellingPayload{Mode: modeAll}}},
		{"no users", "watch", `{"userIds":[]}`, watchPayload{"", []string{}, tellingPayload{Mode: modeAll}}},
		{"nothing", "unwatch", ``, watchPayload{"", nil, tellingPayload{Mode: modeAll}}},
		{"users", "unwatch", `{"userIds":["a"]}`, watchPayload{"", []string{"a"}, tellingPayload{Mode: modeAll}}},
	}
	for _, tt := range tests {
		t.Run(tt.event+"/"+tt.name, func(t *testing.T) {
			got, err := decodeAs(t, tt.event, tt.raw)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

// TestDecodeRefusesPayload: whatever the event, what is no object is invalid_payload.
func TestDecodeRefusesPayload(t *testing.T) {
	payloads := []string{
		`[]`, `[{}]`, `"{}"`, `""`, `0`, `1`, `true`, `false`, `nul`, ` `, `{`, `}`, `{]`, `{"a"}`, `{"a":1}}`, `{"a":1}{}`, `{"a":1,}`, `{a:1}`, `{'a':1}`,
		`{"roomId":"r"`, `{"roomId":"r]}`, `{"roomId":tru}`, `{"x":[}`, `{"x":"\u00"}`, "{\"x\":\"\n\"}", "{\"x\":\"\xff\"}", "{\"\xed\xa0\x80\":1}",
		strings.Repeat("[", 1_000_000), strings.Repeat(`{"a":`, 1_000_000),
	}
	for _, d := range decoders {
		for _, raw := range payloads {
			checkRefused(t, d.event, raw, CodeInvalidPayload, "payload")
		}
	}
}

// TestDecodeRefusesAFieldTwice: readers before this server may have taken the first of two, this one would take the last.
func TestDecodeRefusesAFieldTwice(t *testing.T) {
	many := strings.TrimSuffix(wideObject(40, "1"), "}") // more names than are compared one by one
	for _, d := range decoders {
		for name := range rawMembers(t, []byte(d.valid)) {
			twice := strings.Replace(d.valid, "{", `{"`+name+`":null,`, 1)
			checkRefused(t, d.event, twice, CodeInvalidPayload, name+" twice")
			escaped := fmt.Sprintf(`{"\u%04x%s":1,`, name[0], name[1:])
			checkRefused(t, d.event, strings.Replace(d.valid, "{", escaped, 1), CodeInvalidPayload, name+" twice")
		}
		for _, twice := range []string{`{"x":1,"x":1,`, `{"ROOMID":1,"ROOMID":2,`, `{"":1,"":2,`, `{"\ud800":1,"\uD800":2,`, many + `,"k0":2,`, many + `,"k39":2,`} {
			checkRefused(t, d.event, strings.Replace(d.valid, "{", twice, 1), CodeInvalidPayload, "a field twice")
		}
		for _, once := range []string{`{"x":1,"X":1,`, `{"\ud800":1,"\ud801":2,`, `{"x":{"roomId":1,"a":1,"a":2},`, many + ","} {
			if _, err := d.decode([]byte(strings.Replace(d.valid, "{", once, 1))); err != nil {
				t.Errorf("%s with %.60s: %v", d.event, once, err)
			}
		}
	}
}

func TestDecodeRefusesIDs(t *testing.T) {
	values := []string{
		`""`, `0`, `1`, `true`, `false`, `[]`, `["r"]`, `{}`, `{"a":"r"}`,
		`"` + strings.Repeat("a", 201) + `"`, `"` + strings.Repeat("é", 100) + `a"`, `"` + strings.Repeat(`\u00e9`, 101) + `"`,
		`"\u0000"`, `"a\n"`, `"\u001f"`, "\"\x7f\"", `"\u007f"`, "\"a\u0085\"", `"\u0080"`, `"\u009f"`,
		`"\ud800"`, `"a\udfffb"`, `"\ude00\ud83d"`, `"\ud83d\ud83d\ude00"`,
	}
	for _, d := range decoders {
		for _, name := range []string{"roomId", "userId", "deviceId"} {
			if !strings.Contains(d.valid, name) {
				continue
			}
			for _, value := range values {
				checkRefused(t, d.event, withMember(t, d.valid, name, value), CodeInvalidPayload, name)
			}
		}
	}
	for _, raw := range []string{``, `null`, `{}`, `{"RoomId":"r","roomid":"r"}`, `{"roomId":null}`} {
		checkRefused(t, "get", raw, CodeInvalidPayload, "roomId is missing")
		checkRefused(t, "join", raw, CodeInvalidPayload, "roomId is missing")
	}
	checkRefused(t, "join", `{"roomId":"r","userID":"u"}`, CodeInvalidPayload, "userId is missing")
}

func TestDecodeRefusesModesAndUsers(t *testing.T) {
	for _, event := range []string{"join", "watch"} {
		valid := `{"roomId":"r","userId":"u"}`
		for _, value := range []string{`""`, `"ALL"`, `"every"`, `0`, `1`, `true`, `[]`, `["all"]`, `{}`} {
			checkRefused(t, event, withMember(t, valid, "events", value), CodeInvalidPayload, "events")
		}
		for _, value := range []string{`0`, `-1`, `1.5`, `"1"`, `true`, `[]`, `{}`} {
			checkRefused(t, event, withMember(t, valid, "limit", value), CodeInvalidPayload, "limit")
		}
	}
	for _, raw := range []string{``, `null`, `{}`, `{"roomId":null}`, `{"userIds":null}`} {
		checkRefused(t, "watch", raw, CodeInvalidPayload, "is missing")
	}
	for _, event := range []string{"watch", "unwatch"} {
		checkRefused(t, event, `{"roomId":"r","userIds":["a"]}`, CodeInvalidPayload, "together")
		for _, value := range []string{`"a"`, `{}`, `0`, `true`, `[""]`, `[1]`, `[null]`, `["a",["b"]]`, `["\u0000"]`, `["` + strings.Repeat("a", 201) + `"]`} {
			checkRefused(t, event, `{"userIds":`+value+`}`, CodeInvalidPayload, "userIds")
		}
		checkRefused(t, event, `{"userIds":["a","b","c","d"]}`, CodeTooManyUsers, "3 users")
	}
}

func TestDecodeRefusesStates(t *testing.T) {
	ofSize := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	for event, name := range map[string]string{"join": "state", "heartbeat": "patchState"} {
		valid := `{"roomId":"r","userId":"u"}`
		for _, value := range []string{`[]`, `[{}]`, `"{}"`, `""`, `0`, `1`, `true`, `false`} {
			checkRefused(t, event, withMember(t, valid, name, value), CodeInvalidPayload, name)
		}
		deep := strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)
		for _, value := range []string{ofSize(16385), ofSize(17 << 10), deep} {
			checkRefused(t, event, withMember(t, valid, name, value), CodeStateTooLarge, name)
		}
		fits := strings.Replace(ofSize(16384), ":", strings.Repeat(" ", 20_000)+":", 1)
		if _, err := decodeAs(t, event, withMember(t, valid, name, fits)); err != nil {
			t.Errorf("%s of 16384 bytes and spaces: %v", name, err)
		}
	}
}

func TestDecodeEpoch(t *testing.T) {
	valid := map[string]int64{
		`0`: 0, `1`: 1, `"0"`: 0, `"1"`: 1, `"\u0031\u0032"`: 12, `"007"`: 7, `1764036096000`: 1764036096000, `"1764036096000"`: 1764036096000,
		`9223372036854775806`: math.MaxInt64 - 1, `9223372036854775807`: math.MaxInt64, `"9223372036854775807"`: math.MaxInt64,
		`9223372036854775808`: math.MaxInt64, `"9223372036854775808"`: math.MaxInt64, `18446744073709551617`: math.MaxInt64,
		strings.Repeat("9", 60_000): math.MaxInt64, `1e+21`: math.MaxInt64, `1.7976931348623157e+308`: math.MaxInt64, `1e+999`: math.MaxInt64,
	}
	for value, want := range valid {
		p, err := decodeHeartbeat([]byte(`{"epoch":`+value+`}`), testLimits)
		if err != nil || !p.HasEpoch || p.Epoch != want {
			t.Errorf("epoch %.40s: %+v, %v, want %d", value, p, err, want)
		}
	}
	invalid := []string{
		`-1`, `-0`, `1.5`, `1.0`, `1e3`, `1E3`, `1e-3`, `1e+3`, `1e+20`, `-1e+21`, `-9223372036854775809`, `""`, `"x"`, `"-1"`, `"1.5"`, `"1e3"`, `" 1"`, `"1 "`, `"+1"`,
		`"0x1"`, `"1_0"`, `"e+"`, `"infe+21"`, `"١"`, `"1\u0000"`, `true`, `[]`, `[1]`, `{}`, `"\ud800"`,
	}
	for _, value := range invalid {
		checkRefused(t, "heartbeat", `{"epoch":`+value+`}`, CodeInvalidPayload, "epoch")
	}
}

func TestDecodeLimitAndCursor(t *testing.T) {
	for value, want := range map[string]int{`1`: 1, `999`: 999, `1000`: 1000, `1001`: 1000, `4294967297`: 1000, `99999999999999999999`: 1000, `1e+21`: 1000} {
		p, err := decodeGet([]byte(`{"roomId":"r","limit":`+value+`}`), testLimits)
		if err != nil || p.Limit != want {
			t.Errorf("limit %s: %d, %v, want %d", value, p.Limit, err, want)
		}
	}
	for _, value := range []string{`0`, `-0`, `-1`, `1.5`, `10.0`, `1e2`, `"1"`, `""`, `true`, `[]`, `{}`} {
		checkRefused(t, "get", `{"roomId":"r","limit":`+value+`}`, CodeInvalidPayload, "limit")
	}
	for _, value := range []string{`0`, `1`, `true`, `[]`, `{}`, `"\ud800"`} {
		checkRefused(t, "get", `{"roomId":"r","cursor":`+value+`}`, CodeInvalidPayload, "cursor")
	}
}

// TestDecodeKeepsNothingOfRaw: the frame that a payload came in is used again for the next one.
func TestDecodeKeepsNothingOfRaw(t *testing.T) {
	for _, d := range decoders {
		raw := []byte(d.valid)
		got, err := d.decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		clear(raw)
		if again, _ := d.decode([]byte(d.valid)); !reflect.DeepEqual(got, again) {
			t.Errorf("%s: %+v became %+v", d.event, again, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, d := range decoders {
		f.Add([]byte(d.valid))
	}
	for _, text := range jsonSeeds {
		f.Add([]byte(text))
		f.Add([]byte(`{"roomId":` + text + `,"userId":"u","epoch":` + text + `}`))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, d := range decoders {
			_, err := d.decode(raw)
			if err != nil && err.Code != CodeInvalidPayload && err.Code != CodeStateTooLarge {
				t.Fatalf("%s of %q: %v", d.event, raw, err)
			}
			if err != nil && !json.Valid(err.appendAck(nil)) {
				t.Fatalf("%s of %q: ack %s", d.event, raw, err.appendAck(nil))
			}
		}
		if p, err := decodeJoin(raw, testLimits, ""); err == nil {
			checkAgainstModel(t, raw, p)
		}
	})
}

// checkAgainstModel compares what was taken with what encoding/json finds in it.
func checkAgainstModel(t *testing.T, raw []byte, p joinPayload) {
	t.Helper()
	if tooDeepForModel(raw) {
		return
	}
	members := rawMembers(t, raw)
	var room, user string
	if err := errors.Join(json.Unmarshal(members["roomId"], &room), json.Unmarshal(members["userId"], &user)); err != nil {
		t.Fatal(err)
	}
	if p.RoomID != room || p.UserID != user || checkID("roomId", room, 200) != nil || checkID("userId", user, 200) != nil {
		t.Fatalf("%q: %+v, want %q %q", raw, p, room, user)
	}
	if again, ok := compactObject(p.State); !ok || !bytes.Equal(again, p.State) {
		t.Fatalf("%q: state %q", raw, p.State)
	}
}

// TestCheckID: programs that embed the service hand it ids that no decoder has seen.
func TestCheckID(t *testing.T) {
	for id, fault := range map[string]string{
		"a": "", " ": "", "{}\"'\\:": "", "😀": "", "\u00a0\u00ad\u2028\ufeff\ufffd": "", strings.Repeat("a", 200): "",
		"": "empty", strings.Repeat("a", 201): "at most 200 bytes", strings.Repeat("é", 101): "at most 200 bytes",
		"\x00": "control", "a\n": "control", "\x7f": "control", "\u0080": "control", "\u0085": "control", "\u009f": "control",
		"\xff": "Unicode", "a\xed\xa0\x80": "Unicode", "\xc3": "Unicode",
	} {
		err := checkID("userId", id, 200)
		if (err == nil) != (fault == "") || err != nil && (err.Code != CodeInvalidPayload || !strings.Contains(err.Message, "userId") || !strings.Contains(err.Message, fault)) {
			t.Errorf("checkID of %.50q: %v, want %q", id, err, fault)
		}
	}
}

func TestCheckConnID(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "AZaz09_-": true, strings.Repeat("x", 64): true,
		"": false, strings.Repeat("x", 65): false, "a:b": false, "a b": false, "é": false, "a\x00": false, "{a}": false, "a/b": false, "\xff": false, "a.b": false,
	} {
		if err := checkConnID(id); (err == nil) != ok {
			t.Errorf("checkConnID(%q) = %v", id, err)
		}
	}
}

func TestErrorHasTwoReaders(t *testing.T) {
	err := error(&Error{Code: CodeUnavailable, Message: "try again", Cause: io.ErrUnexpectedEOF})
	if !errors.Is(err, io.ErrUnexpectedEOF) || err.Error() != "unavailable: try again: unexpected EOF" {
		t.Errorf("for the log: %v", err)
	}
	if got := (&Error{Code: CodeNotJoined, Message: "m"}).Error(); got != "not_joined: m" {
		t.Errorf("without a cause: %s", got)
	}
}

func TestAppendAck(t *testing.T) {
	cause := errors.New("10.0.0.1: secret")
	tests := []struct {
		err  Error
		want string
	}{
		{Error{Code: CodeInvalidPayload, Message: `roomId "x"`}, `{"ok":false,"error":"roomId \"x\"","code":"invalid_payload"}`},
		{Error{Code: CodeStaleEpoch, Message: "m", Epoch: 7}, `{"ok":false,"error":"m","code":"stale_epoch","epoch":7}`},
		{Error{Code: CodeUnavailable, Message: "m", Cause: cause}, `{"ok":false,"error":"m","code":"unavailable","retryable":true}`},
		{Error{Code: CodeShuttingDown, Message: "m"}, `{"ok":false,"error":"m","code":"shutting_down","retryable":true}`},
		{Error{Code: CodeRateLimited, Message: "m"}, `{"ok":false,"error":"m","code":"rate_limited"}`},
	}
	for _, tt := range tests {
		if got := string(tt.err.appendAck([]byte("x"))); got != "x"+tt.want {
			t.Errorf("%s: %s, want %s", tt.err.Code, got, tt.want)
		}
	}
}

func TestAppendJSON(t *testing.T) {
	join := Event{Type: EventJoin, RoomID: `r"`, UserID: "ü", ConnID: "c", State: json.RawMessage(`{"n":1234567890123456789,"a":[]}`), TS: 1, Epoch: 2, Rev: 3, UserConns: 4}
	leave := Event{Type: EventLeave, RoomID: "r", UserID: "u", ConnID: "c", DeviceID: `"d"`, TS: 1, Epoch: 2, Rev: 3, Reason: ReasonNodeLost}
	entry := Entry{ConnID: "c", UserID: `u\`, State: json.RawMessage(`{}`), DeviceID: "d", LastSeenMs: 5, Epoch: 6, Rev: 7}
	tests := []struct {
		value any
		got   []byte
		want  string
	}{
		{join, join.appendJSON(nil), `{"type":"join","roomId":"r\"","userId":"ü","connId":"c","state":{"n":1234567890123456789,"a":[]},"ts":1,"epoch":2,"rev":3,"userConns":4}`},
		{leave, leave.appendJSON(nil), `{"type":"leave","roomId":"r","userId":"u","connId":"c","state":null,"deviceId":"\"d\"","ts":1,"epoch":2,"rev":3,"userConns":0,"reason":"node_lost"}`},
		{entry, entry.appendJSON(nil), `{"connId":"c","userId":"u\\","state":{},"deviceId":"d","lastSeenMs":5,"epoch":6}`},
	}
	for _, tt := range tests {
		if string(tt.got) != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
		if marshalled, err := json.Marshal(tt.value); err != nil || string(marshalled) != tt.want {
			t.Errorf("encoding/json gives another: %s, %v", marshalled, err)
		}
	}
}

// TestWireNames pins what programs of others compare with.
func TestWireNames(t *testing.T) {
	got := []string{
		string(CodeInvalidPayload), string(CodeStateTooLarge), string(CodeNotJoined), string(CodeStaleEpoch), string(CodeTooManyRooms), string(CodeRoomFull),
		string(CodeRateLimited), string(CodeUnauthorized), string(CodeForbidden), string(CodeUnavailable), string(CodeShuttingDown),
		string(EventJoin), string(EventUpdate), string(EventLeave),
		string(ReasonLeft), string(ReasonDisconnected), string(ReasonTimeout), string(ReasonNodeLost), string(ReasonReplaced), string(ReasonKicked),
	}
	const want = "invalid_payload state_too_large not_joined stale_epoch too_many_rooms room_full rate_limited unauthorized forbidden unavailable shutting_down " +
		"join update leave left disconnected timeout node_lost replaced kicked"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestHeartbeatAllocations: the most frequent event costs next to no garbage.
func TestHeartbeatAllocations(t *testing.T) {
	for raw, most := range map[string]float64{`{"epoch":1764036096000}`: 0, `{"roomId":"room-1","epoch":"1764036096000"}`: 1} {
		text := []byte(raw)
		got := testing.AllocsPerRun(100, func() {
			if _, err := decodeHeartbeat(text, testLimits); err != nil {
				t.Fatal(err)
			}
		})
		if got > most {
			t.Errorf("%s: %v allocations, want at most %v", raw, got, most)
		}
	}
}
