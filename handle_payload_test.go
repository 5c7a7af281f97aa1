package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// badField is a value that a field must not have.
type badField struct {
	value string // JSON; "" = the field is missing
	code  Code
}

func invalids(values ...string) (list []badField) {
	for _, v := range values {
		list = append(list, badField{v, CodeInvalidPayload})
	}
	return list
}

// badOptionalIDs are wrong wherever an id may stand; badIDs where one has to.
func badOptionalIDs() []badField {
	return invalids(`7`, `0`, `true`, `[]`, `["a"]`, `{}`, `{"a":1}`, `""`, quoted(strings.Repeat("x", 201)), quoted(strings.Repeat("é", 101)),
		`"a\u0000b"`, `"\n"`, `"a\u007f"`, `"\u009f"`, `"\ud800"`, `"\udc00 a"`)
}

func badIDs() []badField { return append(badOptionalIDs(), invalids("", "null")...) }

func badStates() []badField {
	tooLarge := []badField{
		{`{"text":"` + strings.Repeat("x", 17<<10) + `"}`, CodeStateTooLarge},
		{`{"deep":` + nested(9_000) + `}`, CodeStateTooLarge},
	}
	return append(invalids(`"text"`, `""`, `7`, `true`, `false`, `[]`, `[{}]`), tooLarge...)
}

// plus is a JSON object with one more field.
func plus(object, field, value string) string {
	text := "{" + quoted(field) + ":" + value
	if object != "{}" {
		text += ","
	}
	return text + object[1:]
}

func nested(levels int) string {
	return strings.Repeat("[", levels) + strings.Repeat("]", levels)
}

// badFields lists every field of every event. The first name in each payload is what the others are tried with.
func badFields() []struct {
	event, field, valid string
	bad                 []badField
} {
	return []struct {
		event, field, valid string
		bad                 []badField
	}{
		{eventJoin, "roomId", `{"userId":"ann","state":{"a":1}}`, badIDs()},
		{eventJoin, "userId", `{"roomId":"home","state":{"a":1}}`, badIDs()},
		{eventJoin, "userId", `{"roomId":"another","state":{"a":1}}`, badIDs()},
		{eventJoin, "state", `{"roomId":"home","userId":"ann"}`, badStates()},
		{eventJoin, "state", `{"roomId":"another","userId":"ann"}`, badStates()},
		{eventHeartbeat, "roomId", `{"patchState":{"a":2}}`, badOptionalIDs()},
		{eventHeartbeat, "patchState", `{"roomId":"home"}`, badStates()},
		{eventHeartbeat, "patchState", `{}`, badStates()},
		{eventHeartbeat, "epoch", `{"patchState":{"a":2}}`, invalids(`-1`, `1.5`, `"1.5"`, `""`, `"soon"`, `"-1"`, `" 1"`, `true`, `[]`, `{}`)},
		{eventLeave, "roomId", `{}`, badOptionalIDs()},
		{eventGet, "roomId", `{}`, badIDs()},
		{eventGet, "limit", `{"roomId":"home"}`, invalids(`0`, `-1`, `1.5`, `"1"`, `"many"`, `true`, `[]`, `{}`)},
		{eventGet, "cursor", `{"roomId":"home"}`, invalids(`7`, `true`, `[]`, `{}`, `"!"`, `"YSBi"`, `"\ud800"`, quoted(strings.Repeat("A", 9_000)))},
	}
}

func TestBadFieldsAreRefusedAndNothingIsWritten_G9(t *testing.T) {
	b := miniRedis(t)
	n := startNodeFor(t, b)
	witness, u := n.member(t, "home", "witness", "{}"), n.member(t, "home", "ann", `{"a":1}`)
	for _, f := range badFields() {
		for _, bad := range f.bad {
			payload := f.valid
			if bad.value != "" {
				payload = plus(f.valid, f.field, bad.value)
			}
			t.Run(f.event+" "+f.field+" "+short80(bad.value), func(t *testing.T) {
				before := b.mini.Dump()
				if ack := u.refused(f.event, payload, bad.code); !strings.Contains(ack.Error, f.field) {
					t.Errorf("the error does not name %s: %s", f.field, ack.Error)
				}
				if after := b.mini.Dump(); after != before {
					t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
				}
				if ack := u.ok(eventHeartbeat, `{}`); *ack.Changed {
					t.Error("the state has changed")
				}
			})
		}
	}
	witness.settled(u, "home")
	witness.wantEvents(u.id, "join ann 1 {\"a\":1}", witness.of(u.id)[1])
}

func TestPayloadsThatAreNoObject_G9(t *testing.T) {
	b := miniRedis(t)
	u := startNodeFor(t, b).member(t, "home", "ann", "{}")
	for _, event := range []string{eventJoin, eventHeartbeat, eventLeave, eventGet} {
		for _, payload := range []string{`"text"`, `7`, `true`, `false`, `[]`, `[{"roomId":"home","userId":"ann"}]`, nested(30_000)} {
			before := b.mini.Dump()
			if ack := u.refused(event, payload, CodeInvalidPayload); !strings.Contains(ack.Error, "object") {
				t.Errorf("%s %s: %s", event, short80(payload), ack.Error)
			}
			if b.mini.Dump() != before {
				t.Errorf("%s %s: something was written", event, short80(payload))
			}
			u.ok(eventHeartbeat, "")
		}
	}
}

// TestDeepJSON_G9 sends nesting that a recursive decoder would die of, in a payload's state and where nobody looks.
func TestDeepJSON_G9(t *testing.T) {
	t.Parallel()
	n := startNodeFor(t, miniRedis(t), "PRESENCE_MAX_MESSAGE_BYTES=4000000", "PRESENCE_MAX_STATE_BYTES=3000000")
	witness, u := n.member(t, "home", "witness", "{}"), n.member(t, "home", "ann", "{}")
	for _, levels := range []int{10_001, 1_000_000} {
		deep := nested(levels)
		if ack := u.refused(eventJoin, joinPayloadOf("home", "ann", `{"deep":`+deep+`}`), CodeInvalidPayload); !strings.Contains(ack.Error, "state") {
			t.Error(ack.Error)
		}
		u.refused(eventHeartbeat, `{"patchState":{"deep":`+deep+`}}`, CodeInvalidPayload)
		u.refused(eventHeartbeat, deep, CodeInvalidPayload)
		u.ok(eventHeartbeat, `{"unknown":`+deep+`}`)
		u.ok(eventHeartbeat, `{},`+deep)
	}
	deepest := `{"deep":` + nested(63) + `}`
	u.ok(eventHeartbeat, `{"patchState":`+deepest+`}`)
	if e := witness.sees(EventUpdate, u.id); string(e.State) != deepest {
		t.Errorf("a deep state comes as %s", short80(string(e.State)))
	}
}

// TestPayloadForms checks that a payload may be omitted, null, or followed by anything, and an acknowledgement unwanted.
func TestPayloadForms(t *testing.T) {
	n := startNodeFor(t, miniRedis(t))
	const room = "home"
	valid := map[string]string{
		eventJoin:      joinPayloadOf(room, "ann", `{"a":1}`),
		eventHeartbeat: `{}`,
		eventLeave:     inRoom(room, ""),
		eventGet:       inRoom(room, ""),
	}
	needsFields := map[string]bool{eventJoin: true, eventGet: true}
	for _, event := range []string{eventGet, eventJoin, eventHeartbeat, eventLeave} {
		u := n.member(t, room, "ann", `{}`)
		for _, absent := range []string{"", "null", "null,7", "{}", `{"unknown":1,"state ":2}`} {
			if needsFields[event] {
				u.refused(event, absent, CodeInvalidPayload)
			} else {
				u.ok(event, absent)
				u.join(room, "ann", "{}")
			}
		}
		for _, junk := range []string{``, `,null`, `,"text",7`, `,{},[]`} {
			u.ok(event, valid[event]+junk)
			u.join(room, "ann", "{}")
		}
	}
	u, witness := n.member(t, room, "ann", "{}"), n.member(t, room, "witness", "{}")
	for _, payload := range []string{"", "null", "7", `{"roomId":7}`} {
		for _, event := range []string{eventJoin, eventHeartbeat, eventLeave, eventGet} {
			u.tell(event, payload)
		}
		u.tell(eventJoin, valid[eventJoin])
		u.tell(eventHeartbeat, `{"patchState":{"b":2}}`)
	}
	u.tell("another:event", `{}`)
	u.ok(eventHeartbeat, `{}`) // the first acknowledgement that comes
	witness.until("the patch", func(e wireEvent) bool { return string(e.State) == `{"a":1,"b":2}` })
}

func TestNullIsAnAbsentField(t *testing.T) {
	u := startNodeFor(t, miniRedis(t)).user(t)
	ack := u.join("home", "ann", `null`)
	if e := entryOf(t, ack, u.id); string(e.State) != "{}" {
		t.Errorf("no state is %s", e.State)
	}
	u.ok(eventHeartbeat, `{"roomId":null,"patchState":null,"epoch":null}`)
	u.ok(eventGet, `{"roomId":"home","limit":null,"cursor":null}`)
	u.ok(eventLeave, `{"roomId":null}`)
	u.refused(eventHeartbeat, "", CodeNotJoined)
}

// states that have to come back as they are.
func preciousStates() []string {
	return []string{
		`{}`,
		`{"list":[],"object":{},"nested":{"a":[{"b":[[],{}]},null]},"nothing":null,"yes":true,"no":false}`,
		`{"n":[1234567890123456789,-9007199254740993,0.1234567890123456789012345,1e21,1E-7,-0]}`,
		`{"__proto__":{"admin":true},"constructor":1,"":"empty key","toString":null}`,
		`{"lone":"\ud800 and \udc00","quoted":"\"\\\/\b\f\n\r\t","zero":"\u0000","html":"<b>&amp;</b>"}`,
		`{"ключ 🐎":"žluťoučký 👩‍👩‍👧 שלום","separators":"` + "\u2028\u2029" + `"}`,
		`{"deep":` + nested(63) + `}`,
	}
}

func TestStatesComeBackOnEveryWayOfTheWire(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		near, far := startNodeFor(t, b), startNodeFor(t, b)
		for i, state := range preciousStates() {
			room := uniqueRoom(t)
			witness, u := far.member(t, room, "witness", "{}"), near.user(t)
			same := func(way string, got json.RawMessage) {
				t.Helper()
				if string(got) != state {
					t.Errorf("state %d comes by %s as %s", i, way, short80(string(got)))
				}
			}
			same("the acknowledgement of its join", entryOf(t, u.join(room, "ann", state), u.id).State)
			same("a join event", witness.sees(EventJoin, u.id).State)
			same("presence:get", entryOf(t, witness.ok(eventGet, inRoom(room, "")), u.id).State)
			same("a later join", entryOf(t, far.user(t).join(room, "cat", "{}"), u.id).State)
			u.join(room, "ann", "{}")
			u.ok(eventHeartbeat, `{"patchState":`+state+`}`)
			if state == "{}" {
				continue
			}
			same("an update event", witness.sees(EventUpdate, u.id).State)
			if ack := u.ok(eventHeartbeat, `{"patchState":`+state+`}`); *ack.Changed {
				t.Errorf("state %d differs from itself", i)
			}
		}
	})
}
