package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// Where nothing fails, a hold ends so long after the grace at most.
const modelHoldTolerance = 250 * time.Millisecond

// holdsBack tells whether somebody is in a room whose connection is over.
func (m *model) holdsBack() bool {
	return m.grace > 0 && slices.ContainsFunc(m.rooms, func(l *ledger) bool { return len(l.held) > 0 })
}

// enterJoin notes whose holds end with a join.
func (m *model) enterJoin(l *ledger, e message) {
	l.joined = message{}
	if e.Type != EventJoin {
		return
	}
	delete(l.held, e.ConnID)
	delete(l.due, e.ConnID)
	l.joined = e
	for conn := range l.held {
		if l.facts[conn].user == e.UserID && e.Epoch == e.Rev { // what puts a member back ends no hold
			l.due[conn] = true
		}
	}
}

// judgeDue checks, after a call, that those have left with their user's next join who were held back.
func (m *model) judgeDue(l *ledger) {
	for conn := range l.due {
		m.wrong("%s is held back, and stays after its user's next join", conn)
	}
	clear(l.due)
	l.joined = message{}
	m.judgeTwins(l)
}

// judgeHeld checks that who is held back stays until the grace is over, or its user joins, and where nothing fails no longer.
func (m *model) judgeHeld(l *ledger, e message) {
	broken := m.broken[modelPlace{l.room, e.ConnID}]
	early := time.Until(broken.Add(m.grace))
	switch {
	case broken.IsZero() || l.due[e.ConnID] || e.Reason == ReasonLeft:
	case early >= 2*time.Millisecond: // Redis' clock and the time of a hold are whole milliseconds
		m.wrong("%s leaves %v before its grace is over", e.ConnID, early)
	case m.calm && -early > modelHoldTolerance:
		m.wrong("%s leaves %v after its grace is over", e.ConnID, -early)
	}
}

// judgeHolds checks that nobody is held back for too long.
func (p roomPicture) judgeHolds() {
	for conn, member := range p.meta {
		if !member.held() || !p.calm {
			continue
		}
		if late := time.Since(p.broken[modelPlace{p.room, conn}].Add(p.grace)); late > modelHoldTolerance {
			p.wrong("%s is held back %v longer than the grace", conn, late)
		}
	}
}

// judgeEnd checks, where nothing fails, that a connection is out of its rooms that does not wait for its grace.
func (m *model) judgeEnd(c *modelClient) {
	for _, l := range m.rooms {
		if _, there := l.facts[c.id]; there && m.calm && !l.held[c.id] {
			m.wrong("%s has ended and is still there", c.id)
		}
	}
}

// callRoom is the room that a script works on, and how many members it has that count against its limit for a user who joins.
type callRoom struct {
	*ledger
	conn, user string
	device     string // as a literal
	members    int
	there      bool
}

// beforeCall gives what judgeCall wants to know of the time before.
func (m *model) beforeCall(args []any) (before callRoom) {
	name := m.script(args)
	if name != "join" && name != "hold" {
		return callRoom{}
	}
	own := args[3+args[2].(int)+2:]
	for _, l := range m.rooms {
		if !slices.Contains(args, any(keysOf(l.room).meta())) {
			continue
		}
		before = callRoom{ledger: l, conn: fmt.Sprint(own[0])}
		if name == "join" {
			before.conn, before.user, before.device = fmt.Sprint(own[4]), fmt.Sprint(own[5]), fmt.Sprint(own[13])
		}
		_, before.there = l.facts[before.conn]
		for conn, member := range l.facts {
			leaves := l.held[conn] || member.device != "" && literal(member.device) == before.device
			if member.user != before.user || !leaves || conn == before.conn {
				before.members++
			}
		}
	}
	return before
}

// judgeCall notes who is held back, and checks who was let into a room and who was not.
func (m *model) judgeCall(cmd redis.Cmder, before callRoom) {
	if before.ledger == nil {
		return
	}
	answer, _ := cmd.(*redis.Cmd).Val().([]any)
	verdict := reply(answer).list(0).verdict()
	name := m.script(cmd.Args())
	full := m.limit > 0 && !before.there && before.members >= m.limit
	switch {
	case name == "hold" && verdict == "ok":
		before.held[before.conn] = true
	case name == "join" && verdict == "ok" && full:
		m.wrong("%s joins a room that is full", before.conn)
	case name == "join" && verdict == "full" && !full:
		m.wrong("%s cannot join a room of %d", before.conn, before.members)
	}
}
