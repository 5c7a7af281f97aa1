package main

import (
	"encoding/json"
	"strconv"
	"strings"
)

// parseMeta reads a value of conn_meta, written by lua/room.lua. Room and Conn stay empty.
func parseMeta(value string) (Member, bool) {
	c := fieldParser{rest: value}
	var m Member
	c.after(`{"epoch":`)
	m.Epoch = c.number()
	c.after(`,"rev":`)
	m.Rev = c.number()
	c.after(`,"node":"`)
	m.Node = c.until(`","userLen":`)
	c.number()
	c.after(`,"userId":`)
	m.User = c.literal()
	c.after(`,"state":`)
	m.State, m.Device = c.stateAndDevice()
	return m, !c.failed && c.rest == ""
}

// fieldParser takes apart what the scripts write in a fixed order. After the first part that is not there it has failed.
type fieldParser struct {
	rest   string
	failed bool
}

func (c *fieldParser) after(prefix string) {
	rest, ok := strings.CutPrefix(c.rest, prefix)
	c.rest, c.failed = rest, c.failed || !ok
}

// has skips a part that may be absent.
func (c *fieldParser) has(prefix string) bool {
	rest, ok := strings.CutPrefix(c.rest, prefix)
	c.rest = rest
	return ok
}

func (c *fieldParser) number() int64 {
	end := 0
	for end < len(c.rest) && '0' <= c.rest[end] && c.rest[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(c.rest[:end], 10, 64)
	c.rest, c.failed = c.rest[end:], c.failed || err != nil
	return n
}

// until gives the text before a mark and skips the mark. The mark "}" stands for the last byte.
func (c *fieldParser) until(mark string) string {
	at := strings.Index(c.rest, mark)
	if mark == "}" {
		at = strings.LastIndexByte(c.rest, '}')
	}
	if at < 0 {
		c.failed = true
		return ""
	}
	text := c.rest[:at]
	c.rest = c.rest[at+len(mark):]
	return text
}

// stateAndDevice gives what ends a value, without its brace: a state, and a device or "".
func (c *fieldParser) stateAndDevice() (state json.RawMessage, device string) {
	const mark = `,"deviceId":`
	text := c.until("}")
	if !strings.HasSuffix(text, `"`) { // a state is an object, or null
		return json.RawMessage(text), ""
	}
	at := strings.LastIndex(text, mark+`"`) // within a literal a quote has a backslash before it
	if at < 0 {
		c.failed = true
		return nil, ""
	}
	rest := fieldParser{rest: text[at+len(mark):]}
	device = rest.literal()
	c.failed = c.failed || rest.failed || rest.rest != ""
	return json.RawMessage(text[:at]), device
}

// literal gives the text behind a literal that func literal made.
func (c *fieldParser) literal() string {
	end := 1
	for end < len(c.rest) && c.rest[end] != '"' {
		if c.rest[end] == '\\' {
			end++
		}
		end++
	}
	if end >= len(c.rest) || c.rest[0] != '"' {
		c.failed = true
		return ""
	}
	text := c.rest[1:end]
	c.rest = c.rest[end+1:]
	if strings.IndexByte(text, '\\') < 0 {
		return text
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(text)
}
