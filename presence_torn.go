package main

import "context"

// rebuildTorn has the indices of a room built anew if they disagree, because some of them were lost. What conn_meta has lost is put
// back by the nodes of the members. After a failure the next reading of the room tries again.
func (s *Service) rebuildTorn(ctx context.Context, room string, signs lossSigns) {
	if !signs.torn {
		return
	}
	err := s.rebuildRoom(ctx, scriptKeys(room))
	s.options.Logger.Warn("the indices of a room disagree: they are built anew", "room", room, "error", err)
}
