package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gobwas/ws"
)

const (
	dialTime     = 20 * time.Second
	perAddress   = 20_000 // connections from one loopback address: Linux lends about 28,000 ports
	plainConnect = "40"
	engineIOPath = "/socket.io/?EIO=4&transport="
)

// dialer connects Socket.IO clients to namespace "/".
type dialer struct {
	polling *http.Client            // nil = WebSocket at once
	connect func(number int) string // CONNECT packet of a client; nil = one without a token
}

func newDialer(upgraded bool) *dialer {
	if !upgraded {
		return &dialer{}
	}
	return &dialer{polling: &http.Client{Timeout: dialTime, Transport: &http.Transport{MaxIdleConnsPerHost: connecting}}}
}

func (d *dialer) close() {
	if d.polling != nil {
		d.polling.CloseIdleConnections()
	}
}

// dial connects the client of this number to a node.
func (d *dialer) dial(ctx context.Context, node string, number int) (*frames, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if d.polling == nil {
		return direct(ctx, node, number, d.packet(number))
	}
	return d.upgraded(ctx, node, number)
}

func (d *dialer) packet(number int) string {
	if d.connect == nil {
		return plainConnect
	}
	return d.connect(number)
}

// direct connects by a WebSocket, before the end of ctx.
func direct(ctx context.Context, node string, number int, connect string) (*frames, error) {
	f, err := openWebSocket(ctx, node, "websocket", number)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.conn.Close() })
	err = f.converse("", "0{", connect, "40{")
	if !stop() || err != nil {
		return nil, errors.Join(ctx.Err(), err, f.conn.Close())
	}
	return f, nil
}

// upgraded connects as socket.io-client does by default: by polling, and then with a WebSocket that takes over.
func (d *dialer) upgraded(ctx context.Context, node string, number int) (*frames, error) {
	open, err := d.poll(ctx, http.MethodGet, node+engineIOPath+"polling", "", "0{")
	if err != nil {
		return nil, err
	}
	_, sid, _ := strings.Cut(open, `"sid":"`)
	sid, _, _ = strings.Cut(sid, `"`)
	session := "&sid=" + url.QueryEscape(sid)
	if _, err := d.poll(ctx, http.MethodPost, node+engineIOPath+"polling"+session, d.packet(number), "ok"); err != nil {
		return nil, err
	}
	if _, err := d.poll(ctx, http.MethodGet, node+engineIOPath+"polling"+session, "", "40{"); err != nil {
		return nil, err
	}
	f, err := openWebSocket(ctx, node, "websocket"+session, number)
	if err != nil {
		return nil, err
	}
	if err := f.converse("2probe", "3probe"); err != nil {
		return nil, err
	}
	return f, sendText(f.conn, "5")
}

func (d *dialer) poll(ctx context.Context, method, target, body, wanted string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	answer, err := d.polling.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err == nil && !strings.HasPrefix(string(b), wanted) {
		err = fmt.Errorf("%s %s: got %s %q instead of %q", method, target, answer.Status, b[:min(len(b), 100)], wanted)
	}
	return string(b), err
}

// openWebSocket makes the connection from another loopback address when one has run out of ports.
func openWebSocket(ctx context.Context, node, transport string, number int) (*frames, error) {
	var from net.Dialer
	if number >= perAddress {
		from.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+number/perAddress))}
	}
	conn, early, _, err := ws.Dialer{NetDial: from.DialContext}.Dial(ctx, "ws"+strings.TrimPrefix(node, "http")+engineIOPath+transport)
	if err != nil {
		return nil, err
	}
	if early == nil {
		return newFrames(conn, nil), nil
	}
	defer ws.PutReader(early)
	b, err := early.Peek(early.Buffered())
	return newFrames(conn, b), err
}

// converse says a text, unless it is empty, and waits for an answer that begins as it should; and so on.
func (f *frames) converse(texts ...string) error {
	if err := f.conn.SetDeadline(time.Now().Add(dialTime)); err != nil {
		return err
	}
	for i := 0; i < len(texts); i += 2 {
		if texts[i] != "" {
			if err := sendText(f.conn, texts[i]); err != nil {
				return err
			}
		}
		if err := f.expect(texts[i+1]); err != nil {
			return err
		}
	}
	return f.conn.SetDeadline(time.Time{})
}
