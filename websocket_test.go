package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/gobwas/ws"
)

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
