package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// echo answers each message with itself, on every WebSocket.
func echo(t *testing.T) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, _, err := ws.UpgradeHTTP(r, w)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for {
			message, err := wsutil.ReadClientText(conn)
			if err != nil || wsutil.WriteServerText(conn, message) != nil {
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestFramesGoThereAndBack(t *testing.T) {
	f, err := openWebSocket(t.Context(), echo(t), "websocket", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.conn.Close()
	var sent []byte
	sizes := []int{0, 1, 125, 126, readBuffer, 65535, 65536, 3}
	go func() {
		for _, n := range sizes {
			_, _ = f.conn.Write(appendFrame(nil, ws.OpText, bytes.Repeat([]byte{'x'}, n)))
		}
	}()
	for _, n := range sizes {
		sent = bytes.Repeat([]byte{'x'}, n)
		op, got, err := f.next()
		if err != nil || op != ws.OpText || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes came back as %d, kind %v, %v", n, len(got), op, err)
		}
	}
	if len(f.buf) != readBuffer && f.start != f.end {
		t.Errorf("a buffer of %d bytes is kept", len(f.buf))
	}
}

// Frames may be cut by reads at any place.
func TestFramesArriveInPieces(t *testing.T) {
	var stream []byte
	for _, n := range []int{5, 0, 200, 70_000, 1} {
		stream = append(stream, ws.MustCompileFrame(ws.NewTextFrame(bytes.Repeat([]byte{'y'}, n)))...)
	}
	for _, step := range []int{1, 3, 1000, len(stream)} {
		here, there := net.Pipe()
		go func() {
			for rest := stream; len(rest) > 0; rest = rest[min(step, len(rest)):] {
				_, _ = there.Write(rest[:min(step, len(rest))])
			}
			_ = there.Close()
		}()
		f := newFrames(here, nil)
		for _, n := range []int{5, 0, 200, 70_000, 1} {
			if _, got, err := f.next(); err != nil || len(got) != n {
				t.Fatalf("in steps of %d: got %d bytes instead of %d, %v", step, len(got), n, err)
			}
		}
		if _, _, err := f.next(); err != io.EOF {
			t.Errorf("in steps of %d: the end is %v", step, err)
		}
	}
}

func TestFramesThatNoServerMaySend(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"a fragment": {0x01, 1, 'x'},
		"masked":     {0x81, 0x81, 0, 0, 0, 0, 'x'},
	} {
		f := newFrames(nil, bytes)
		if _, _, ok, err := f.take(); ok || err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
