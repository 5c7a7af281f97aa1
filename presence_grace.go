package main

import (
	"context"
	"strconv"
	"time"
)

// heldNode is the node of a connection that is held back: it belongs to none.
const heldNode = "-"

func (m Member) held() bool { return m.Node == heldNode }

// hold holds m back, whose connection broke, up to its epoch, or whatever that is if it is 0. It stays in the room for this
// time, unless its user joins the room before. silent says that the connection was silent before its end. If its user then
// has another connection in the room, hold writes nothing and reports back: the user may have joined long before the
// server noticed the end, so a hold would only keep the old connection in the room for longer.
func (s *Service) hold(ctx context.Context, m Member, within time.Duration, silent bool) (back bool, err error) {
	if err := s.indexRoom(ctx, m.Room, within); err != nil {
		return false, err
	}
	newest := ""
	if m.Epoch != 0 {
		newest = strconv.FormatInt(m.Epoch, 10)
	}
	answer, err := s.run(ctx, s.scripts.hold, s.keysWithHeld(m.Room, m.Conn), m.Conn, newest,
		within.Milliseconds(), s.options.Lookback.Milliseconds(), s.options.TTL.Milliseconds(), m.Room, silent)
	return answer.verdict() == "back", err
}

// keysWithHeld are the KEYS of a script that knows of held-back connections where there are any.
func (s *Service) keysWithHeld(room string, conns ...string) []string {
	return s.addHeld(scriptKeys(room, conns...), room)
}

func (s *Service) addHeld(keys []string, room string) []string {
	if s.options.Grace > 0 {
		keys = append(keys, keysOf(room).held())
	}
	return keys
}
