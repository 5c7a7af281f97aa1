package main

import (
	"net/netip"
	"time"
)

const (
	inputBurst    = 12 * time.Second       // of input at the full rate that a socket may send at once
	inputFirst    = 100 * time.Millisecond // of its rate that a new socket may send, whatever its address has sent
	inputPatience = 10 * time.Second       // for which a socket may be held back without a pause
	inputPause    = time.Second            // of its rate that a socket has to leave unused for a pause
	inputStep     = 5 * time.Millisecond   // shorter waits are left to add up: a sleep costs more than they are worth
	inputNap      = 100 * time.Millisecond // a waiting reader looks this often whether its connection is closing
)

// inputLimits bound what one socket may send, of whatever kind and layer: frames and packets, and their bytes. A socket
// beyond them is not read from until it is within, so that TCP holds the client back. nil = no limits.
type inputLimits struct {
	packets, bytes *rate         // nil = no limit
	patience       time.Duration // for which a socket may be held back without a pause
	begin          time.Time
	debts          debts // packets and bytes
}

// newInputLimits takes the limits per second; 0 = no limit.
func newInputLimits(packets, bytes int) *inputLimits {
	return &inputLimits{
		packets:  inputRate(packets),
		bytes:    inputRate(bytes),
		patience: inputPatience,
		begin:    time.Now(),
	}
}

func inputRate(perSecond int) *rate {
	if perSecond == 0 {
		return nil
	}
	return &rate{interval: time.Second / time.Duration(perSecond), window: inputBurst}
}

// meter is what one socket has sent. It is for one goroutine at a time.
type meter struct {
	limits         *inputLimits
	from           netip.Prefix
	packets, bytes bucket
	held           time.Duration // when the socket was first held back since its last pause; 0 = it was not
}

// newMeter gives a socket its budget, or what an earlier one of its address has left.
func (l *inputLimits) newMeter(remote string) meter {
	m := meter{limits: l, from: origin(remote)}
	if l != nil {
		used := l.debts.inherit(m.from, time.Since(l.begin), inputBurst-inputFirst)
		m.packets, m.bytes = used[0], used[1]
	}
	return m
}

// end keeps what the socket has used for the next one of its address.
func (m *meter) end() {
	if l := m.limits; l != nil {
		l.debts.leave(m.from, [2]bucket{m.packets, m.bytes}, time.Since(l.begin), inputBurst/2)
	}
}

// take counts a packet of so many bytes. It returns for how long the socket is not to be read from, or errInput when it has
// been held back for too long.
func (m *meter) take(bytes int) (wait time.Duration, err error) {
	l := m.limits
	if l == nil {
		return 0, nil
	}
	now := time.Since(l.begin)
	if max(m.packets, m.bytes) < bucket(now+inputBurst-inputPause) {
		m.held = 0
	}
	wait = max(m.packets.charge(l.packets, 1, now), m.bytes.charge(l.bytes, bytes, now))
	switch {
	case wait < inputStep:
		return 0, nil
	case m.held == 0:
		m.held = now
	case now-m.held > l.patience:
		return 0, errInput
	}
	return wait, nil
}

// holdBack waits while closing is false.
func holdBack(wait time.Duration, closing func() bool) {
	for wait > 0 && !closing() {
		nap := min(wait, inputNap)
		time.Sleep(nap)
		wait -= nap
	}
}
