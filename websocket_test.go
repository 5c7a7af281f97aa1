package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
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

func TestCloseReplies(t *testing.T) {
	code := func(n uint16, reason string) string { return string(binary.BigEndian.AppendUint16(nil, n)) + reason }
	for name, c := range map[string]struct {
		payload string
		want    ws.StatusCode
	}{
		"none":               {"", 1000},
		"one byte":           {"\x03", 1002},
		"normal":             {code(1000, ""), 1000},
		"with a reason":      {code(1001, "bye"), 1001},
		"reason not UTF-8":   {code(1000, "\xff"), 1002},
		"longest reason":     {code(1000, strings.Repeat("x", 123)), 1000},
		"0":                  {code(0, ""), 1002},
		"999":                {code(999, ""), 1002},
		"1003":               {code(1003, ""), 1003},
		"1004 is reserved":   {code(1004, ""), 1002},
		"1005 is never sent": {code(1005, ""), 1002},
		"1006 is never sent": {code(1006, ""), 1002},
		"1007":               {code(1007, ""), 1007},
		"1011":               {code(1011, ""), 1011},
		"1015 is never sent": {code(1015, ""), 1002},
		"1016 is unknown":    {code(1016, ""), 1002},
		"2999 is unknown":    {code(2999, ""), 1002},
		"3000":               {code(3000, ""), 3000},
		"4999":               {code(4999, ""), 4999},
	} {
		if got := closeReply([]byte(c.payload)); got.status != c.want {
			t.Errorf("%s: answered with %d, want %d", name, got.status, c.want)
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

func TestFrames(t *testing.T) {
	for _, n := range []int{0, 1, 124, 125, 126, 65534, 65535, 65536, 1 << 20} {
		body := bytes.Repeat([]byte{'x'}, n)
		f := newFrame(body[:n/2], body[n/2:])
		if want := append([]byte{'4'}, body...); !bytes.Equal(f.packet(), want) {
			t.Errorf("%d bytes: packet is %.20q of %d bytes", n, f.packet(), len(f.packet()))
		}
		h, err := ws.ReadHeader(bytes.NewReader(f))
		if err != nil || h.Length != int64(n)+1 || !h.Fin || h.OpCode != ws.OpText || h.Masked || ws.HeaderSize(h)+n+1 != len(f) || cap(f) != len(f) {
			t.Errorf("%d bytes: header %+v, %v, frame of %d, capacity %d", n, h, err, len(f), cap(f))
		}
	}
}

func TestNewFrameLeavesItsPartsAlone(t *testing.T) {
	parts := make([][]byte, 1, 3)
	parts[0] = []byte("a")
	newFrame(parts...)
	if string(parts[0]) != "a" || parts[:2][1] != nil {
		t.Errorf("parts are %q", parts[:2])
	}
}

// socketPair is a webSocket of the server and the client's end of its connection, with modest buffers in the kernel.
func socketPair(t testing.TB, change func(*socketOptions)) (*webSocket, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(time.Now().Add(patience))
	_ = client.(*net.TCPConn).SetReadBuffer(64 << 10)
	_ = server.(*net.TCPConn).SetWriteBuffer(64 << 10)
	o := &socketOptions{MaxMessageBytes: 1 << 20, MaxUnsentBytes: 1 << 20, WriteTimeout: patience, TakeTimeout: patience}
	change(o)
	x := &webSocket{}
	x.init(server, nil, o)
	t.Cleanup(func() { x.cut(errClosed); x.awaitEnd() })
	return x, client.(*net.TCPConn)
}

// numbered are frames that tell their place.
func numbered(n, size int) []frame {
	frames := make([]frame, n)
	for i := range frames {
		frames[i] = newFrame(fmt.Appendf(nil, "%0*d", size, i))
	}
	return frames
}

func wantNumbered(t *testing.T, in io.Reader, n, size int) {
	t.Helper()
	for i := range n {
		h, err := ws.ReadHeader(in)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(in, p); err != nil || string(p) != fmt.Sprintf("4%0*d", size, i) {
			t.Fatalf("frame %d is %.30q…%q, %v", i, p, p[max(0, len(p)-10):], err)
		}
	}
}

func TestOutboxKeepsOrderOverAFullKernel(t *testing.T) {
	x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 0 })
	const n, size = 3000, 3000
	for i, f := range numbered(n, size) {
		if i%3 == 0 {
			x.send(f)
		} else if x.queue(f, memberUpdate{}) && i%3 == 2 {
			x.flush()
		}
	}
	x.flush()
	wantNumbered(t, client, n, size)
	eventually(t, patience, "no goroutine is left", func() bool { x.mu.Lock(); defer x.mu.Unlock(); return x.draining == nil && x.backlog.bytes == 0 })
}

func TestOutboxJoinsMoreThanOneWriteTakes(t *testing.T) {
	x, client := socketPair(t, func(*socketOptions) {})
	const n, size = 2*maxGather + 7, 3
	flushes := 0
	for _, f := range numbered(n, size) {
		if x.queue(f, memberUpdate{}) {
			flushes++
		}
	}
	if flushes != 1 {
		t.Errorf("%d flushes wanted of one batch", flushes)
	}
	x.flush()
	wantNumbered(t, client, n, size)
}

func TestOutboxBound(t *testing.T) {
	t.Parallel()
	full := func(t *testing.T, x *webSocket) {
		t.Helper()
		eventually(t, patience, "the kernel is full", func() bool {
			x.send(newFrame(make([]byte, 1000)))
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.draining != nil
		})
	}
	t.Run("a client that does not read is cut", func(t *testing.T) {
		x, _ := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 100_000 })
		full(t, x)
		for range 200 {
			x.send(newFrame(make([]byte, 1000)))
		}
		if err := x.reason(); !errors.Is(err, errTooSlow) {
			t.Errorf("ended of %v", err)
		}
		if _, err := x.receive(); err == nil {
			t.Error("the reader goes on")
		}
	})
	t.Run("one message may be larger", func(t *testing.T) {
		x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 1000 })
		big := numbered(1, 900_000)[0]
		x.send(big)
		wantNumbered(t, client, 1, 900_000)
		x.send(big)
		x.send(big)
		if err := x.reason(); !errors.Is(err, errTooSlow) {
			t.Errorf("ended of %v", err)
		}
	})
	t.Run("a batch that the kernel would take is no reason", func(t *testing.T) {
		x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 500 })
		for _, f := range numbered(100, 100) {
			x.queue(f, memberUpdate{})
		}
		x.flush()
		wantNumbered(t, client, 100, 100)
	})
}

func TestAClientThatAcceptsNothingIsCut(t *testing.T) {
	x, _ := socketPair(t, func(o *socketOptions) { o.WriteTimeout = 50 * time.Millisecond; o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 10<<20)))
	eventually(t, patience, "it is cut", func() bool { return x.reason() != nil })
	x.awaitEnd()
}

// A slow client that goes on reading is not cut, though the whole takes many timeouts.
func TestAClientThatAcceptsLittleIsNotCut(t *testing.T) {
	const timeout = 100 * time.Millisecond
	x, client := socketPair(t, func(o *socketOptions) { o.WriteTimeout = timeout; o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 20<<20)))
	begin := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Since(begin) < 4*timeout {
		<-tick.C
		if _, err := io.CopyN(io.Discard, client, 100_000); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.reason(); err != nil {
		t.Errorf("cut: %v", err)
	}
}

// TestAClientIsCutWhileItsFramesLeave: to close a socket waits for who writes to it, who must not wait for who closes.
func TestAClientIsCutWhileItsFramesLeave(t *testing.T) {
	x, client := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 20<<20)))
	drains := func(where string) func() bool {
		return func() bool {
			for _, stack := range goroutines() {
				if strings.Contains(stack, "(*outbox).drain") && strings.Contains(stack, where) {
					return true
				}
			}
			return false
		}
	}
	eventually(t, patience, "the kernel takes no more", drains("waitWrite"))
	x.mu.Lock()
	go func() { _, _ = io.Copy(io.Discard, client) }()
	eventually(t, patience, "the next bytes could leave", drains("(*Mutex).Lock"))
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		defer x.mu.Unlock()
		x.kill(errClosed)
	}()
	select {
	case <-cut:
	case <-time.After(patience):
		t.Fatal("who closes waits for who writes, and who writes for who closes")
	}
}

// plainConn is no file descriptor, as with TLS.
type plainConn struct{ net.Conn }

func TestOutboxWithoutADescriptor(t *testing.T) {
	server, client := net.Pipe()
	x := &webSocket{}
	x.init(plainConn{server}, nil, &socketOptions{MaxMessageBytes: 1000, WriteTimeout: patience, TakeTimeout: patience})
	const n, size = 100, 1000
	for _, f := range numbered(n, size) {
		x.send(f)
	}
	wantNumbered(t, client, n, size)
	x.cut(errClosed)
	x.awaitEnd()
}

func TestFinishDeliversWhatWasSent(t *testing.T) {
	x, client := socketPair(t, func(*socketOptions) {})
	const n, size = 100, 5000
	for _, f := range numbered(n, size) {
		x.send(f)
	}
	// Unread input: to close right away would reset the connection, and the client would lose all this.
	if _, err := client.Write(masked(true, ws.OpText, "unread")); err != nil {
		t.Fatal(err)
	}
	x.finish(errLeft)
	x.send(newFrame([]byte("too late")))
	done := make(chan struct{})
	go func() { defer close(done); x.end(errClosed) }()
	wantNumbered(t, client, n, size)
	rest, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(rest, closeFrame(errLeft)) {
		t.Errorf("then %q, %v", rest, err)
	}
	_ = client.Close()
	<-done
}

func TestShutDoesNotWaitForASlowClient(t *testing.T) {
	x, _ := socketPair(t, func(o *socketOptions) { o.MaxUnsentBytes = 0 })
	x.send(newFrame(make([]byte, 10<<20)))
	x.shut(errClosed)
	if !x.gone {
		t.Error("it is still open")
	}
	x.awaitEnd()
}

// The violations of RFC 6455 as a client sees them: the status of the close frame, and nobody else is hurt.
func TestViolationsCloseWithTheirStatus(t *testing.T) {
	s := startSockets(t, &testApp{})
	other := s.connected(t)
	for name, c := range map[string]struct {
		in     []byte
		status ws.StatusCode
	}{
		"not masked":     {ws.MustCompileFrame(ws.NewTextFrame([]byte("2"))), 1002},
		"binary":         {masked(true, ws.OpBinary, "4"), 1003},
		"not UTF-8":      {masked(true, ws.OpText, "4\xff"), 1007},
		"too large":      {masked(true, ws.OpText, strings.Repeat("4", 65537)), 1009},
		"no packet":      {masked(true, ws.OpText, ""), 1008},
		"unknown packet": {masked(true, ws.OpText, "9"), 1008},
		"client's ping":  {masked(true, ws.OpText, "2"), 1008},
		"close":          {masked(true, ws.OpClose, "\x0f\xa0"), 4000},
		"bad close":      {masked(true, ws.OpClose, "\x03\xed"), 1002},
		"CLOSE packet":   {masked(true, ws.OpText, "1"), 1000},
	} {
		x := s.connected(t)
		x.raw(c.in)
		if got := x.closed(); got != c.status {
			t.Errorf("%s: closed with %d, want %d", name, got, c.status)
		}
	}
	x := s.connected(t)
	x.raw(masked(true, ws.OpPing, "are you there"))
	if op, p, err := x.next(); op != ws.OpPong || p != "are you there" || err != nil {
		t.Errorf("ping answered with %d %q %v", op, p, err)
	}
	var pings []byte
	for i := range 20 {
		pings = append(pings, masked(true, ws.OpPing, fmt.Sprintf("%02d", i))...)
	}
	x.raw(pings[:len(pings)-1])
	if op, p, err := x.next(); op != ws.OpPong || p != "18" || err != nil {
		t.Errorf("19 pings that came together are answered with %d %q %v first", op, p, err)
	}
	x.raw(pings[len(pings)-1:])
	if op, p, err := x.next(); op != ws.OpPong || p != "19" || err != nil {
		t.Errorf("the last ping is answered with %d %q %v", op, p, err)
	}
	other.send(`421["alive"]`)
	other.want(`431[null]`)
}

func TestLargeEvents(t *testing.T) {
	s := startSockets(t, &testApp{})
	c := s.connected(t)
	for _, n := range []int{100, 200, 240, 250, 260, 4000, 65000} {
		text := strings.Repeat("x", n)
		c.send(`421["a","` + text + `"]`)
		c.want(`431["` + text + `"]`)
	}
}
