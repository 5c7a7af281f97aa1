package main

import (
	"net/netip"
	"time"
)

// debts are what closed sockets had used of their budgets, by address: a client that connects anew goes on with what it had.
// Only those are kept that had used more than half. The zero value is ready.
type debts struct {
	mu mutex[ofNone]
	of map[netip.Prefix]debt
	// at so many addresses those are forgotten whose debts are over
	sweepAt int
}

// debt is what the next sockets of an address begin with.
type debt struct {
	sockets int       // how many
	levels  [2]bucket // of those of the closed sockets the most
}

const minDebtSweep = 1024 // addresses

// leave keeps what a closed socket has used, until that is over. half is half of the window of its budgets.
func (d *debts) leave(from netip.Prefix, levels [2]bucket, now, half time.Duration) {
	if max(levels[0], levels[1]) <= bucket(now+half) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[netip.Prefix]debt{}
	}
	if len(d.of) >= max(d.sweepAt, minDebtSweep) {
		d.forget(now)
	}
	old := d.of[from].since(now)
	d.of[from] = debt{old.sockets + 1, [2]bucket{max(old.levels[0], levels[0]), max(old.levels[1], levels[1])}}
}

// inherit gives what a new socket has used already, each at most as given: something is left for it to begin with.
func (d *debts) inherit(from netip.Prefix, now, most time.Duration) [2]bucket {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.of[from].since(now)
	if known.sockets <= 1 {
		delete(d.of, from)
	} else {
		d.of[from] = debt{known.sockets - 1, known.levels}
	}
	return [2]bucket{min(known.levels[0], bucket(now+most)), min(known.levels[1], bucket(now+most))}
}

// since is what is left of a debt.
func (d debt) since(now time.Duration) debt {
	if max(d.levels[0], d.levels[1]) <= bucket(now) {
		return debt{}
	}
	return d
}

func (d *debts) forget(now time.Duration) {
	for from, left := range d.of {
		if left.since(now).sockets == 0 {
			delete(d.of, from)
		}
	}
	d.sweepAt = 2 * len(d.of)
}
