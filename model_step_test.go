package main

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// collect takes what happened since the last time: calls that wait, frames, requests that are over.
func (m *model) collect() {
	pause(m.ctx, time.Duration(1+m.random.IntN(9))*time.Microsecond) // so that hardly ever two timers end at once
	synctest.Wait()
	m.mu.Lock()
	arrived, errors := m.arrived, m.errors
	m.arrived, m.errors = nil, nil
	m.mu.Unlock()
	for _, line := range errors {
		m.wrong("a node complains: %s", line)
	}
	if len(arrived) > 1 {
		slices.SortFunc(arrived, func(a, b *heldCall) int { return cmp.Compare(m.names(a), m.names(b)) })
	}
	m.pending = append(m.pending, arrived...)
	for _, c := range m.clients {
		m.judgeFrames(c)
		m.finishOperation(c)
	}
	m.finishKicks()
	m.judgeViews()
}

// hang lets Redis do nothing for longer than anybody waits for it, those too who ask it meanwhile. What has reached it runs soon
// after it answers again, in any order.
func (m *model) hang() {
	if !m.hung {
		m.drain()
	}
	m.hung = true
	m.note("Redis hangs")
	idle := m.idle()
	if len(idle) == 0 {
		m.pass(answerWithin + 100*time.Millisecond)
		return
	}
	c, l := idle[m.random.IntN(len(idle))], m.rooms[0]
	if c.places[l.room].in && m.chance(40) {
		m.leave(c, l)
	} else {
		m.request(c)
	}
	m.pass(answerWithin + 100*time.Millisecond)
	if c.op == nil && !c.over { // its outcome is not known
		m.request(c)
	}
}

// serve lets one thing happen that the nodes wait for.
func (m *model) serve(c *heldCall) {
	f := itArrives
	if m.troubled && !m.resting && m.chance(6) {
		f = fate(1 + m.random.IntN(2))
	}
	m.run(c, f)
	m.collect()
	if m.chance(25) {
		m.judgeRooms()
	}
}

func (m *model) judgeRooms() {
	for _, l := range m.rooms {
		m.judgeStore(l)
	}
}

// step lets one thing happen.
func (m *model) step() {
	idle := m.idle()
	type choice struct {
		weight int
		do     func()
	}
	var choices []choice
	may := func(weight int, do func()) { choices = append(choices, choice{weight, do}) }
	if len(idle) > 0 {
		may(4, func() { m.request(idle[m.random.IntN(len(idle))]) })
	}
	if m.about&aboutKicks != 0 {
		may(1, m.kick)
	}
	if len(m.pending) > 0 {
		may(10, func() { m.serve(m.pending[m.pick()]) })
	}
	for _, n := range m.nodes {
		if len(n.messages) > 0 {
			may(4, func() { n.deliver(1 + m.random.IntN(4)) })
			if m.lossy {
				may(1, func() { m.note("n%d loses a message", n.index); n.messages = n.messages[1:] })
			}
		}
		for _, room := range n.unconfirmed() {
			may(3, func() { n.confirm(room) })
		}
	}
	m.addFaults(may)
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	dice := m.random.IntN(total)
	for _, c := range choices {
		if dice -= c.weight; dice < 0 {
			c.do()
			break
		}
	}
	m.collect()
}

// pick chooses a call that waits: where calls may be late, rather one of the latest.
func (m *model) pick() int {
	n := len(m.pending)
	if m.troubled && m.chance(70) {
		return n - 1
	}
	return m.random.IntN(n)
}

func (m *model) addFaults(may func(weight int, do func())) {
	if m.resting {
		may(1, func() { m.pass(time.Millisecond) })
		return
	}
	pauses := 5
	if m.about&aboutPauses != 0 {
		pauses = 50
	}
	if m.calm {
		may(1, func() { m.pass(100 * time.Microsecond) })
		if m.chance(pauses) {
			may(2, func() { m.elapse(1500 * time.Millisecond) })
		}
		return
	}
	may(1, func() { m.pass(time.Duration(1+m.random.IntN(30)) * time.Millisecond) })
	if m.about&aboutLoss != 0 && m.refuses == refusesNothing && m.chance(40) {
		may(3, m.lose)
	}
	if m.about&aboutRefusals != 0 && !m.losing() && m.chance(30) {
		may(1, m.refuse)
	}
	if m.lossy && m.chance(20) {
		may(1, func() { m.nodes[m.random.IntN(len(m.nodes))].cut() })
	}
	if m.troubled && len(m.pending) > 0 && !m.losing() && m.chance(40) {
		may(1, m.hang)
	}
	if m.chance(pauses) {
		may(1, func() { m.elapse(time.Duration(1+m.random.IntN(9)) * time.Second) })
	}
	if m.chance(2) {
		may(1, func() {
			m.note("SCRIPT FLUSH")
			m.flushed = true
			m.do(redis.NewCmd(m.ctx, "SCRIPT", "FLUSH"))
		})
	}
}

func (m *model) idle() (list []*modelClient) {
	for _, c := range m.clients {
		if c.op == nil && !c.over {
			list = append(list, c)
		}
	}
	return list
}

// pass lets time go by, in which Redis does nothing.
func (m *model) pass(d time.Duration) {
	pause(m.ctx, d)
	m.collect()
}

// elapse lets time go by, in which all goes well.
func (m *model) elapse(d time.Duration) {
	m.note("%v go by", d)
	for end := time.Now().Add(d); time.Now().Before(end) && len(m.wrongs) == 0; {
		m.drain()
		m.pass(min(100*time.Millisecond, time.Until(end)))
	}
	m.drain()
	if d < modelLookback || m.resting {
		return
	}
	m.resting = true // who is overdue by now may be heard of while a reaper comes
	for range 10 {
		m.pass(100 * time.Millisecond)
		for range 3 {
			m.step()
		}
	}
	m.resting = false
}

// drain lets everything happen that waits.
func (m *model) drain() {
	for calls := 0; len(m.wrongs) == 0; calls++ {
		if calls == modelMaxCalls {
			m.wrong("the nodes have called Redis %d times, and go on", calls)
			return
		}
		if len(m.pending) > 0 {
			m.run(m.pending[0], itArrives)
			m.collect()
			continue
		}
		busy := false
		for _, n := range m.nodes {
			for _, room := range n.unconfirmed() {
				n.confirm(room)
			}
			if len(n.messages) > 0 {
				busy = true
				n.deliver(len(n.messages))
				m.collect()
			}
		}
		if !busy {
			return
		}
	}
}

// quiet ends all trouble, and judges when everything has come to rest.
func (m *model) quiet() {
	m.note("quiet")
	m.resting = true
	defer func() { m.resting = false }()
	m.accept()
	m.drain()
	for until := time.Now().Add(15 * time.Second); len(m.wrongs) == 0 && !m.settled(); {
		if time.Now().After(until) {
			m.wrong("something is under way for 15 s: %d calls, %d of %d clients idle", len(m.pending), len(m.idle()), len(m.clients))
		}
		m.elapse(100 * time.Millisecond)
	}
	for _, c := range m.clients {
		for _, l := range m.rooms {
			if p := c.places[l.room]; p.in && !c.over && len(m.wrongs) == 0 && m.needsHeartbeat(p) {
				m.beat(c, l)
				m.await(c)
			}
		}
	}
	within := 2 * time.Second
	if m.culled || m.losing() {
		within = modelLossOver
	}
	for end := time.Now().Add(within); len(m.wrongs) == 0 && m.converged() != ""; {
		if time.Now().After(end) {
			m.wrong("G3: not converged after %v: %s", within, m.converged())
		}
		m.elapse(100 * time.Millisecond)
	}
	m.judgeRooms()
	m.judgeMembers()
	if m.exact() {
		m.judgeExpulsions()
	}
}

// await has a client's request be answered.
func (m *model) await(c *modelClient) {
	m.collect()
	m.drain()
	for c.op != nil && len(m.wrongs) == 0 {
		m.elapse(100 * time.Millisecond)
	}
}

// settled tells whether no request is under way, and no leave is pending.
func (m *model) settled() bool {
	for _, n := range m.nodes {
		if !n.pendingLeaves.idle() {
			return false
		}
	}
	for _, c := range m.clients {
		if c.op != nil {
			return false
		}
	}
	return len(m.kicks) == 0 && !m.holdsBack()
}

// judgeMembers checks that those are in the room who should be, with the state that they sent.
func (m *model) judgeMembers() {
	for _, l := range m.rooms {
		for conn := range l.facts {
			if !slices.ContainsFunc(m.clients, func(c *modelClient) bool { return c.id == conn && c.places[l.room].in && !c.over }) {
				m.wrong("G5: %s is a ghost", conn)
			}
		}
		for _, c := range m.clients {
			p := c.places[l.room]
			if !p.in || c.over {
				continue
			}
			member, there := l.facts[c.id]
			if m.kickedOut(l, c) || !there && m.clock()-p.heard >= modelLookback.Milliseconds() {
				continue
			}
			if !there || !p.unsure && (member.user != p.user || member.epoch != p.epoch) {
				m.wrong("G8: %s is not in the room, or as another: %+v", c.id, member)
				continue
			}
			m.judgeState(c, p, member)
		}
	}
}

func (m *model) judgeState(c *modelClient, p *place, member fact) {
	var state map[string]int
	if err := json.Unmarshal([]byte(member.state), &state); err != nil || p.loose {
		return
	}
	for key, value := range p.state {
		if state[key] != value && !slices.Contains(p.maybe[key], state[key]) {
			m.wrong("G7: %s has %s = %d, it set %d", c.id, key, state[key], value)
		}
	}
}
