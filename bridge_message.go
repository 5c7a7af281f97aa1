package main

// message is an event and the room's revision before it.
type message struct {
	prev int64
	Event
}

// maxRevision is the highest revision and epoch that the scripts write (lua/base.lua).
const maxRevision = 999_999_999_999_999

// parseMessage reads what lua/room.lua published; false for anything else.
func parseMessage(payload string) (message, bool) {
	c := fieldParser{rest: payload}
	var m message
	c.after(`{"prev":`)
	m.prev = c.number()
	c.after(`,"rev":`)
	m.Rev = c.number()
	c.after(`,"ts":`)
	m.TS = c.number()
	c.after(`,"epoch":`)
	m.Epoch = c.number()
	c.after(`,"userConns":`)
	m.UserConns = int(c.number())
	c.after(`,"type":"`)
	m.Type = EventType(c.until(`","connId":"`))
	m.ConnID = c.until(`","userId":`)
	m.UserID = c.literal()
	c.after(`,"roomId":`)
	m.RoomID = c.literal()
	if c.has(`,"reason":"`) {
		m.Reason = Reason(c.until(`"`))
	}
	c.after(`,"state":`)
	m.State, m.DeviceID = c.stateAndDevice()
	sane := m.prev < m.Rev && m.Rev <= maxRevision && m.Epoch <= maxRevision
	known := m.Type == EventJoin || m.Type == EventUpdate || m.Type == EventLeave
	return m, !c.failed && c.rest == "" && known && sane
}
