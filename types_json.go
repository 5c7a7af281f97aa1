package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// This file and types_merge.go keep JSON as the bytes that its sender wrote: decoding and encoding would round large
// integers. Nothing here recurses and all of it takes (nearly) linear time, whatever the depth or width of what a client
// sends.

// splitArray takes a JSON array apart. The elements are sub-slices of b. ok is false for any other text; as in
// encoding/json, strings may hold invalid UTF-8.
func splitArray(b []byte) (elements []json.RawMessage, ok bool) {
	s := scanner{text: b}
	if !s.enter('[') {
		return nil, false
	}
	elements = make([]json.RawMessage, 0, 3) // an event's name, payload and room for one more
	for s.next() && s.depth > 0 {
		elements = append(elements, s.wholeValue())
	}
	if !s.ended() {
		return nil, false
	}
	return elements, true
}

// compactObject returns a copy of a JSON object without the spaces between its tokens. ok is false for any other text and
// for invalid UTF-8, which would end the connection of every browser it is sent to.
func compactObject(b []byte) (compact json.RawMessage, ok bool) {
	s := scanner{text: b}
	if !utf8.Valid(b) || !s.enter('{') {
		return nil, false
	}
	compact = append(make([]byte, 0, len(b)), '{')
	for s.next() {
		if s.comma {
			compact = append(compact, ',')
		}
		compact = append(compact, s.token()...)
		if s.state == afterKey {
			compact = append(compact, ':')
		}
	}
	if !s.ended() {
		return nil, false
	}
	if len(compact) < len(b) {
		compact = bytes.Clone(compact) // the state may be kept for days, the room for its spaces not
	}
	return compact, true
}

// appendString appends text, which is valid UTF-8, as JSON. For the scripts of a room, which undo it by a pattern, it
// escapes nothing but quote, backslash and what JSON forbids, U+0000 to U+001F, which ids do not hold.
func appendString(b []byte, text string) []byte {
	b = append(b, '"')
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// appendText appends a key, with the comma and colon around it, and its value; appendNumber and appendRaw likewise.
func appendText(b []byte, key, value string) []byte { return appendString(append(b, key...), value) }

func appendNumber(b []byte, key string, value int64) []byte {
	return strconv.AppendInt(append(b, key...), value, 10)
}

// appendRaw appends null for a nil value.
func appendRaw(b []byte, key string, value json.RawMessage) []byte {
	b = append(b, key...)
	if value == nil {
		return append(b, "null"...)
	}
	return append(b, value...)
}

// unquote returns the text of a valid JSON string, a part of it if nothing is escaped. A surrogate without its other half
// becomes the three bytes that UTF-8 forbids (WTF-8), so texts are equal exactly when their UTF-16 code units are, and
// utf8.Valid tells those that are no Unicode.
func unquote(literal []byte) []byte {
	literal = literal[1 : len(literal)-1]
	at := bytes.IndexByte(literal, '\\')
	if at < 0 {
		return literal
	}
	text := make([]byte, 0, len(literal))
	for ; at >= 0; at = bytes.IndexByte(literal, '\\') {
		text = append(text, literal[:at]...)
		text, literal = appendUnescaped(text, literal[at:])
	}
	return append(text, literal...)
}

// appendUnescaped appends the character whose escape literal begins with, and returns what follows it in literal.
func appendUnescaped(text, literal []byte) (longer, rest []byte) {
	switch c := literal[1]; c {
	case 'b':
		return append(text, '\b'), literal[2:]
	case 'f':
		return append(text, '\f'), literal[2:]
	case 'n':
		return append(text, '\n'), literal[2:]
	case 'r':
		return append(text, '\r'), literal[2:]
	case 't':
		return append(text, '\t'), literal[2:]
	case 'u':
		r, rest := codeUnit(literal), literal[6:]
		if utf16.IsSurrogate(r) {
			if pair := utf16.DecodeRune(r, codeUnit(rest)); pair != utf8.RuneError {
				return utf8.AppendRune(text, pair), rest[6:]
			}
			return append(text, 0xE0|byte(r>>12), 0x80|byte(r>>6)&0x3F, 0x80|byte(r)&0x3F), rest
		}
		return utf8.AppendRune(text, r), rest
	default: // quote, backslash, slash
		return append(text, c), literal[2:]
	}
}

// codeUnit returns the code unit whose \u escape text begins with, -1 if it begins with something else.
func codeUnit(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	var unit rune
	for _, c := range text[2:6] {
		switch {
		case '0' <= c && c <= '9':
			unit = unit<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			unit = unit<<4 | rune(c|0x20-'a'+10)
		default:
			return -1
		}
	}
	return unit
}

// scanner takes a JSON text apart into tokens, in one pass, and checks its grammar on the way. Depth costs it one bit a
// level. Commas and colons are no tokens.
type scanner struct {
	text       []byte
	start, end int // the current token is text[start:end]
	at         int // what comes next is looked for here
	state      scanState
	comma      bool // a comma was before the current token
	depth      int  // open containers, the token's own included

	// Of the open containers, 1 for an object: the innermost ones, innermost last, and for each 64 outside of them a word.
	objects uint64
	outer   []uint64
}

// scanState is what was read last.
type scanState uint8

const (
	atBeginning  scanState = iota // nothing
	afterOpening                  // an opening bracket
	afterKey                      // a key and its colon
	afterValue                    // a scalar or a closing bracket
	broken                        // a fault; there are no more tokens
)

// next moves to the next token and reports whether there is one.
func (s *scanner) next() bool {
	s.skipSpace()
	s.comma = false
	switch s.state {
	case atBeginning, afterKey:
		return s.value()
	case afterOpening:
		return s.closing() || s.element()
	case afterValue:
		if s.depth == 0 {
			return s.at < len(s.text) && s.fail()
		}
		if s.closing() {
			return true
		}
		if s.comma = s.peek() == ','; !s.comma {
			return s.fail()
		}
		s.at++
		s.skipSpace()
		return s.element()
	}
	return false
}

// element reads what comes after an opening bracket or a comma.
func (s *scanner) element() bool {
	if s.inObject() {
		return s.key()
	}
	return s.value()
}

func (s *scanner) key() bool {
	if !s.take(endOfString(s.text, s.at), afterKey) {
		return false
	}
	s.skipSpace()
	if s.peek() != ':' {
		return s.fail()
	}
	s.at++
	return true
}

func (s *scanner) value() bool {
	c := s.peek()
	if c != '{' && c != '[' {
		return s.take(endOfScalar(s.text, s.at), afterValue)
	}
	if s.depth > 0 && s.depth%64 == 0 {
		s.outer = append(s.outer, s.objects)
	}
	s.objects <<= 1
	if c == '{' {
		s.objects |= 1
	}
	s.depth++
	return s.take(s.at+1, afterOpening)
}

// closing reads the bracket that closes the innermost container, if that is next.
func (s *scanner) closing() bool {
	c := s.peek()
	if c != '}' && c != ']' || (c == '}') != s.inObject() {
		return false
	}
	s.depth--
	s.objects >>= 1
	if s.depth > 0 && s.depth%64 == 0 {
		last := len(s.outer) - 1
		s.objects, s.outer = s.outer[last], s.outer[:last]
	}
	return s.take(s.at+1, afterValue)
}

// take makes the text up to end the current token; a negative end is a fault.
func (s *scanner) take(end int, state scanState) bool {
	if end < 0 {
		return s.fail()
	}
	s.start, s.end, s.at, s.state = s.at, end, end, state
	return true
}

func (s *scanner) fail() bool {
	s.state = broken
	return false
}

func (s *scanner) inObject() bool { return s.objects&1 == 1 }

func (s *scanner) token() []byte { return s.text[s.start:s.end] }

// peek returns the next byte; 0, which begins no token, at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

func (s *scanner) skipSpace() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// enter reads the bracket that opens the outermost container.
func (s *scanner) enter(bracket byte) bool {
	return s.next() && s.text[s.start] == bracket
}

// openObject returns a scanner within the outermost object of b. If there is none, it has no keys.
func openObject(b []byte) *scanner {
	s := &scanner{text: b}
	if !s.enter('{') {
		s.fail()
	}
	return s
}

// nextKey moves to the next key of the outermost object; the value before it has been read by nextValue.
func (s *scanner) nextKey() bool { return s.next() && s.state == afterKey }

// nextValue reads the value after a key of the outermost object.
func (s *scanner) nextValue() []byte {
	s.next()
	return s.wholeValue()
}

// wholeValue reads on from its first token, the current one, to the end of a value within the outermost container.
func (s *scanner) wholeValue() []byte {
	start := s.start
	for s.depth > 1 && s.next() {
	}
	return s.text[start:s.end:s.end]
}

// ended reports whether the outermost value was complete and nothing follows it.
func (s *scanner) ended() bool {
	return s.depth == 0 && !s.next() && s.state == afterValue
}

// endOfString returns where the string ends that begins at i, -1 if there is none.
func endOfString(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c == '\\':
			if i = endOfEscape(b, i) - 1; i < 0 {
				return -1
			}
		}
	}
	return -1
}

// endOfEscape returns where the escape ends that begins with the backslash at i, -1 if it is none.
func endOfEscape(b []byte, i int) int {
	if i+1 == len(b) {
		return -1
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if codeUnit(b[i:]) >= 0 {
			return i + 6
		}
	}
	return -1
}

// endOfScalar returns where the string, number or name ends that begins at i, -1 if there is none.
func endOfScalar(b []byte, i int) int {
	rest := b[i:]
	switch {
	case bytes.HasPrefix(rest, []byte(`"`)):
		return endOfString(b, i)
	case bytes.HasPrefix(rest, []byte("true")), bytes.HasPrefix(rest, []byte("null")):
		return i + 4
	case bytes.HasPrefix(rest, []byte("false")):
		return i + 5
	}
	return endOfNumber(b, i)
}

// endOfNumber returns where the number ends that begins at i, -1 if there is none.
func endOfNumber(b []byte, i int) int {
	if i < len(b) && b[i] == '-' {
		i++
	}
	whole := i
	if i = endOfDigits(b, i); i < 0 || b[whole] == '0' && i > whole+1 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		if i = endOfDigits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return endOfDigits(b, i)
	}
	return i
}

// endOfDigits returns where the digits end that begin at i, -1 if there are none.
func endOfDigits(b []byte, i int) int {
	start := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}
