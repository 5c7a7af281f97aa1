package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

const testMessageBytes = 70_000

func readerOf(r io.Reader) *frameReader {
	return &frameReader{in: bufio.NewReaderSize(r, readBuffer), max: testMessageBytes, state: ws.StateServerSide}
}

// readAll gives what a reader makes of a stream, up to its error: texts as they are, control frames as "op:payload".
func readAll(r *frameReader) (got []string, err error) {
	for {
		op, payload, err := r.next()
		if err != nil {
			return got, err
		}
		if op == ws.OpText {
			got = append(got, string(payload))
		} else {
			got = append(got, fmt.Sprintf("%x:%s", byte(op), payload))
		}
	}
}

// header is a client's frame header with any bits, masked with zeros.
func header(b0, b1 byte, length ...byte) []byte {
	return append(append([]byte{b0, b1}, length...), 0, 0, 0, 0)
}

func whole(s string) []byte                        { return masked(true, ws.OpText, s) }
func part(fin bool, op ws.OpCode, s string) []byte { return masked(fin, op, s) }
func long(n int) string                            { return strings.Repeat("x", n) }

const euro = "€" // three bytes

// What a client sends, what the reader makes of it, and how it ends.
var frameCases = map[string]struct {
	in   [][]byte
	want []string
	err  error
}{
	"nothing":                 {nil, nil, io.EOF},
	"one":                     {[][]byte{whole("hello")}, []string{"hello"}, io.EOF},
	"empty":                   {[][]byte{whole("")}, []string{""}, io.EOF},
	"several":                 {[][]byte{whole("a"), whole("b"), whole("c")}, []string{"a", "b", "c"}, io.EOF},
	"125":                     {[][]byte{whole(long(125))}, []string{long(125)}, io.EOF},
	"126":                     {[][]byte{whole(long(126))}, []string{long(126)}, io.EOF},
	"127":                     {[][]byte{whole(long(127))}, []string{long(127)}, io.EOF},
	"the read buffer":         {[][]byte{whole(long(256)), whole("y")}, []string{long(256), "y"}, io.EOF},
	"over the read buffer":    {[][]byte{whole(long(257)), whole("y")}, []string{long(257), "y"}, io.EOF},
	"65535":                   {[][]byte{whole(long(65535))}, []string{long(65535)}, io.EOF},
	"65536":                   {[][]byte{whole(long(65536)), whole("y")}, []string{long(65536), "y"}, io.EOF},
	"the limit":               {[][]byte{whole(long(testMessageBytes))}, []string{long(testMessageBytes)}, io.EOF},
	"over the limit":          {[][]byte{whole(long(testMessageBytes + 1))}, nil, errTooLarge},
	"all fragments over it":   {[][]byte{part(false, ws.OpText, long(60_000)), part(true, ws.OpContinuation, long(10_001))}, nil, errTooLarge},
	"limit counts anew":       {[][]byte{whole(long(60_000)), whole(long(60_000))}, []string{long(60_000), long(60_000)}, io.EOF},
	"huge":                    {[][]byte{header(0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)}, nil, errTooLarge},
	"length with its top bit": {[][]byte{header(0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1)}, nil, errProtocol},
	"16 bits for 125":         {[][]byte{header(0x81, 0xfe, 0, 125), make([]byte, 125)}, nil, errProtocol},
	"64 bits for 65535":       {[][]byte{header(0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff), make([]byte, 65535)}, nil, errProtocol},
	"cut in a header":         {[][]byte{whole("hello")[:1]}, nil, io.ErrUnexpectedEOF},
	"cut in a long header":    {[][]byte{whole(long(300))[:3]}, nil, io.ErrUnexpectedEOF},
	"cut in a payload":        {[][]byte{whole("hello")[:8]}, nil, io.ErrUnexpectedEOF},
	"cut in a long payload":   {[][]byte{whole(long(300))[:290]}, nil, io.ErrUnexpectedEOF},
	"not masked":              {[][]byte{ws.MustCompileFrame(ws.NewTextFrame([]byte("a")))}, nil, errProtocol},
	"control not masked":      {[][]byte{ws.MustCompileFrame(ws.NewPingFrame(nil))}, nil, errProtocol},
	"RSV1":                    {[][]byte{header(0xc1, 0x80)}, nil, errProtocol},
	"RSV2":                    {[][]byte{header(0xa1, 0x80)}, nil, errProtocol},
	"RSV3":                    {[][]byte{header(0x91, 0x80)}, nil, errProtocol},
	"RSV1 on a ping":          {[][]byte{header(0xc9, 0x80)}, nil, errProtocol},
	"op code 3":               {[][]byte{header(0x83, 0x80)}, nil, errProtocol},
	"op code 7":               {[][]byte{header(0x87, 0x80)}, nil, errProtocol},
	"op code 11":              {[][]byte{header(0x8b, 0x80)}, nil, errProtocol},
	"op code 15":              {[][]byte{header(0x8f, 0x80)}, nil, errProtocol},
	"binary":                  {[][]byte{part(true, ws.OpBinary, "a")}, nil, errBinary},
	"binary in fragments":     {[][]byte{part(false, ws.OpBinary, "a")}, nil, errBinary},
	"ping":                    {[][]byte{part(true, ws.OpPing, "p")}, []string{"9:p"}, io.EOF},
	"ping of 125":             {[][]byte{part(true, ws.OpPing, long(125))}, []string{"9:" + long(125)}, io.EOF},
	"ping of 126":             {[][]byte{part(true, ws.OpPing, long(126))}, nil, errProtocol},
	"ping in fragments":       {[][]byte{part(false, ws.OpPing, "p")}, nil, errProtocol},
	"close in fragments":      {[][]byte{part(false, ws.OpClose, "")}, nil, errProtocol},
	"pong":                    {[][]byte{part(true, ws.OpPong, "")}, []string{"a:"}, io.EOF},
	"fragments": {[][]byte{part(false, ws.OpText, "a"), part(false, ws.OpContinuation, ""), part(false, ws.OpContinuation, "b"),
		part(true, ws.OpContinuation, "c")}, []string{"abc"}, io.EOF},
	"fragments, all empty": {[][]byte{part(false, ws.OpText, ""), part(true, ws.OpContinuation, "")}, []string{""}, io.EOF},
	"control frames between fragments": {[][]byte{part(false, ws.OpText, "a"), part(true, ws.OpPing, "p"), part(false, ws.OpContinuation, "b"),
		part(true, ws.OpPong, ""), part(true, ws.OpContinuation, "c"), whole("d")}, []string{"9:p", "a:", "abc", "d"}, io.EOF},
	"text between fragments":         {[][]byte{part(false, ws.OpText, "a"), whole("b")}, nil, errProtocol},
	"first fragment twice":           {[][]byte{part(false, ws.OpText, "a"), part(false, ws.OpText, "b")}, nil, errProtocol},
	"continuation of nothing":        {[][]byte{part(true, ws.OpContinuation, "a")}, nil, errProtocol},
	"continuation after the message": {[][]byte{part(false, ws.OpText, "a"), part(true, ws.OpContinuation, "b"), part(true, ws.OpContinuation, "c")}, []string{"ab"}, errProtocol},
	"UTF-8":                          {[][]byte{whole("κόσμε€😀\x00")}, []string{"κόσμε€😀\x00"}, io.EOF},
	"UTF-8 over fragments":           {[][]byte{part(false, ws.OpText, euro[:1]), part(false, ws.OpContinuation, euro[1:2]), part(true, ws.OpContinuation, euro[2:])}, []string{euro}, io.EOF},
	"UTF-8 cut":                      {[][]byte{whole(euro[:2])}, nil, errUTF8},
	"UTF-8 cut over fragments":       {[][]byte{part(false, ws.OpText, euro[:1]), part(true, ws.OpContinuation, "a")}, nil, errUTF8},
	"UTF-8 overlong":                 {[][]byte{whole("\xc0\xaf")}, nil, errUTF8},
	"UTF-8 surrogate":                {[][]byte{whole("\xed\xa0\x80")}, nil, errUTF8},
	"UTF-8 beyond Unicode":           {[][]byte{whole("\xf4\x90\x80\x80")}, nil, errUTF8},
	"long and not UTF-8":             {[][]byte{whole(long(1000) + "\xff")}, nil, errUTF8},
}

func TestFrameReader(t *testing.T) {
	for name, c := range frameCases {
		in := bytes.Join(c.in, nil)
		for how, r := range map[string]io.Reader{"at once": bytes.NewReader(in), "byte by byte": iotest.OneByteReader(bytes.NewReader(in))} {
			got, err := readAll(readerOf(r))
			if !errors.Is(err, c.err) && !(errors.Is(c.err, io.ErrUnexpectedEOF) && errors.Is(err, io.EOF)) {
				t.Errorf("%s, %s: ends with %v, want %v", name, how, err, c.err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s, %s: got %.100q, want %.100q", name, how, got, c.want)
			}
		}
	}
}

// FuzzFrameReader feeds anything: what comes out obeys the bounds, and does not depend on how it is cut.
func FuzzFrameReader(f *testing.F) {
	f.Add(masked(true, ws.OpText, "hello"))
	f.Add(bytes.Join([][]byte{masked(false, ws.OpText, "a"), masked(true, ws.OpPing, "p"), masked(true, ws.OpContinuation, "€")}, nil))
	f.Add(header(0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readAll(readerOf(bytes.NewReader(in)))
		if err == nil {
			t.Fatal("an end without an error")
		}
		total := 0
		for _, m := range got {
			total += len(m)
			if len(m) > testMessageBytes || !utf8.ValidString(m) && m[1] != ':' {
				t.Errorf("let %.50q through", m)
			}
		}
		if total > len(in) {
			t.Errorf("%d bytes of %d", total, len(in))
		}
		again, errAgain := readAll(readerOf(iotest.OneByteReader(bytes.NewReader(in))))
		if !slices.Equal(got, again) || errors.As(err, new(closeError)) != errors.As(errAgain, new(closeError)) {
			t.Errorf("%.50q, %v and byte by byte %.50q, %v", got, err, again, errAgain)
		}
	})
}

func TestASmallMessageMayComeByteByByte(t *testing.T) {
	text := strings.Repeat("x", 1000)
	in := masked(false, ws.OpText, "")
	for range text {
		in = append(in, masked(false, ws.OpContinuation, "x")...)
	}
	in = append(in, masked(true, ws.OpContinuation, "")...)
	if got, err := readAll(readerOf(bytes.NewReader(in))); len(got) != 1 || got[0] != text || !errors.Is(err, io.EOF) {
		t.Errorf("got %.50q, %v", got, err)
	}
}

// FuzzFragments cuts a text at any places, with pings between: the text comes out.
func FuzzFragments(f *testing.F) {
	f.Add("hello €", []byte{1, 0, 5})
	f.Add(strings.Repeat("😀", 200), []byte{255, 1, 3})
	f.Fuzz(func(t *testing.T, text string, cuts []byte) {
		if !utf8.ValidString(text) || len(text) > testMessageBytes || len(cuts) >= freeParts {
			return
		}
		var in []byte
		op, rest := ws.OpText, text
		for _, n := range cuts {
			n := min(int(n), len(rest))
			in = append(in, masked(false, op, rest[:n])...)
			in = append(in, masked(true, ws.OpPing, "p")...)
			op, rest = ws.OpContinuation, rest[n:]
		}
		in = append(in, masked(true, op, rest)...)
		got, err := readAll(readerOf(bytes.NewReader(in)))
		if !errors.Is(err, io.EOF) || len(got) != len(cuts)+1 || got[len(cuts)] != text {
			t.Errorf("got %.50q, %v", got, err)
		}
	})
}

func TestAnAnnouncedLengthAllocatesLittle(t *testing.T) {
	r := readerOf(bytes.NewReader(header(0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0)))
	if _, _, err := r.next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if n := cap(r.message); n > 2*readStep {
		t.Errorf("%d bytes allocated for nothing", n)
	}
}

func TestSmallFramesAllocateNothing(t *testing.T) {
	pong := masked(true, ws.OpText, "3")
	r := readerOf(&endless{of: pong})
	if n := testing.AllocsPerRun(1000, func() {
		if op, _, err := r.next(); err != nil || op != ws.OpText {
			t.Fatal(op, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// endless repeats a frame.
type endless struct {
	of []byte
	at int
}

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = e.of[e.at]
		e.at = (e.at + 1) % len(e.of)
	}
	return len(b), nil
}
