package main

import "time"

// concern is a set of what a schedule may be about, beside joins, heartbeats and leaves.
type concern uint

const (
	aboutKicks concern = 1 << iota
	aboutGrace
	aboutLateCalls    // or lost ones
	aboutLostMessages // and subscriptions
	aboutPauses       // in which much time goes by
	aboutRefusals     // of writes and logins
	aboutLoss         // of data in Redis
	aboutDevices
	aboutModes // of being told, with watchers and pages
)

// concern draws what the schedule is about, and the settings for it.
func (m *model) concern(forced concern) {
	m.about = forced
	m.calm, m.lossy, m.troubled = m.chance(30), m.chance(50), m.chance(40)
	m.calm = m.calm && forced&(aboutLateCalls|aboutLostMessages) == 0
	m.lossy = !m.calm && (m.lossy || forced&aboutLostMessages != 0)
	m.troubled = !m.calm && (m.troubled || forced&aboutLateCalls != 0)
	for _, c := range []struct {
		concern
		percent int
	}{{aboutKicks, 20}, {aboutGrace, 20}, {aboutRefusals, 10}, {aboutLoss, 20}, {aboutDevices, 30}, {aboutModes, 20}} {
		if m.chance(c.percent) {
			m.about |= c.concern
		}
	}
	m.calm = m.calm && m.about&(aboutRefusals|aboutLoss) == 0
	if m.about&aboutGrace != 0 {
		m.grace = time.Duration(500+m.random.IntN(5000)) * time.Millisecond
		if m.chance(50) {
			m.limit = 2 + m.random.IntN(3)
		}
	}
}
