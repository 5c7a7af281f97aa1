package main

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
)

// sendAll has a meter take packets one after the other, as a reader does, and gives how many it took before the error.
func sendAll(m *meter, packets, bytes int) (taken int, err error) {
	for ; taken < packets; taken++ {
		wait, err := m.take(bytes)
		if err != nil {
			return taken, err
		}
		holdBack(wait, func() bool { return false })
	}
	return taken, nil
}

func TestMeterLetsBurstsPass(t *testing.T) {
	for name, c := range map[string]struct{ packets, bytes int }{
		"packets": {10_000, 10},
		"bytes":   {160, 65_536},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newInputLimits(1000, 1<<20).newMeter("192.0.2.1:5")
			began := time.Now()
			if n, err := sendAll(&m, c.packets, c.bytes); err != nil || time.Since(began) > 0 {
				t.Errorf("%s: after %d of a burst: %v, held back for %v", name, n, err, time.Since(began))
			}
		})
	}
}

// TestMeterDelaysAClientBackFromAnHourOffline: 20,000 heartbeats that it kept come at once, and its join behind them.
func TestMeterDelaysAClientBackFromAnHourOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newInputLimits(1000, 1<<20).newMeter("192.0.2.1:5")
		began := time.Now()
		if n, err := sendAll(&m, 20_002, 100); err != nil {
			t.Fatalf("closed after %d", n)
		}
		if took := time.Since(began); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("the last one was taken after %v", took)
		}
	})
}

func TestMeterEndsAFlood(t *testing.T) {
	for name, c := range map[string]struct{ bytes, aSecond int }{
		"packets": {10, 1000},
		"bytes":   {65_536, 16},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newInputLimits(1000, 1<<20)
			m := l.newMeter("192.0.2.1:5")
			began := time.Now()
			_, err := sendAll(&m, 1_000_000, c.bytes)
			if took := time.Since(began); !errors.Is(err, errInput) || took < 10*time.Second || took > 11*time.Second {
				t.Errorf("%s: %v after %v", name, err, took)
			}
			m.end()
			again := l.newMeter("192.0.2.1:6")
			began = time.Now()
			if _, err := sendAll(&again, c.aSecond, c.bytes); err != nil || time.Since(began) < 800*time.Millisecond {
				t.Errorf("%s: the same address gets a burst again: %v after %v", name, err, time.Since(began))
			}
			other := l.newMeter("192.0.2.2:6")
			if wait, _ := other.take(10); wait > 0 {
				t.Errorf("%s: another address has no burst: %v", name, wait)
			}
			pause(t.Context(), inputBurst)
			later := l.newMeter("192.0.2.1:7")
			if wait, _ := later.take(10); wait > 0 {
				t.Errorf("%s: later the address has no burst: %v", name, wait)
			}
		})
	}
}

// TestMeterSparesWhoPauses: a client that is over its rate now and then is held back, and not closed.
func TestMeterSparesWhoPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newInputLimits(1000, 0).newMeter("192.0.2.1:5")
		if _, err := sendAll(&m, 10_000, 10); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if n, err := sendAll(&m, 6_000, 10); err != nil {
				t.Fatalf("closed after %d", n)
			}
			pause(t.Context(), 2*time.Second)
		}
	})
}

func TestMeterWithoutLimits(t *testing.T) {
	for name, l := range map[string]*inputLimits{"none": nil, "zero": newInputLimits(0, 0)} {
		m := l.newMeter("192.0.2.1:5")
		if n, err := sendAll(&m, 100_000, 1<<20); n < 100_000 || err != nil {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

// TestInputOfEveryKindIsMetered: a client that floods is held back, and closed in the end, whatever it sends.
func TestInputOfEveryKindIsMetered(t *testing.T) {
	t.Parallel()
	limits := func(o *socketOptions) {
		o.Input = newInputLimits(100, 0)
		o.Input.patience = 300 * time.Millisecond
	}
	ping := ws.MustCompileFrame(ws.MaskFrame(ws.NewPingFrame([]byte("x"))))
	pong := ws.MustCompileFrame(ws.MaskFrame(ws.NewPongFrame([]byte("x"))))
	for name, raw := range map[string][]byte{
		"pings":          ping,
		"pongs":          pong,
		"noops":          textOf("6"),
		"unasked pongs":  textOf("3"),
		"acks":           textOf("431[]"),
		"unknown events": textOf(`42["no such event"]`),
	} {
		t.Run(name, func(t *testing.T) {
			s := startSockets(t, &testApp{}, limits)
			x := s.dial(t, direct4)
			x.connect()
			go flushForever(x, raw)
			eventually(t, patience, "the client is closed", func() bool { return s.count() == 0 })
			eventually(t, patience, "one flood is counted", func() bool { return s.Refusals.of(refusedFlood).Load() == 1 })
		})
	}
	t.Run("polling", func(t *testing.T) {
		s := startSockets(t, &testApp{}, limits)
		c := s.poller(t)
		c.connect()
		body := strings.TrimSuffix(strings.Repeat("6\x1e", 1000), "\x1e")
		for range 3 {
			c.post(body)
		}
		eventually(t, patience, "the client is closed", func() bool { return s.count() == 0 })
	})
}

func textOf(packet string) []byte {
	return ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(packet))))
}

// flushForever sends a frame again and again until the connection fails.
func flushForever(x *wsClient, raw []byte) {
	many := make([]byte, 0, 100*len(raw))
	for range 100 {
		many = append(many, raw...)
	}
	for {
		if _, err := x.conn.Write(many); err != nil {
			return
		}
	}
}
