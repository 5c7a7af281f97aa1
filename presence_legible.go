package main

import "encoding/json"

// legible is a state that was read from Redis, as it is told to clients: {} in place of one that would keep some of them from
// reading the room. A node with other settings may have written it, or a version that had none.
func (s *Service) legible(conn string, state json.RawMessage) json.RawMessage {
	fault := s.options.Limits.unreadable(state)
	if fault == "" {
		return state
	}
	s.options.Logger.Warn("a state in Redis is told as {}: clients may fail to read it", "conn", conn, "fault", "it "+fault)
	return json.RawMessage("{}")
}
