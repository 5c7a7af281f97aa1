package main

import (
	"cmp"
	"context"
	"strconv"
)

// kicking says how a connection is removed from a room for good.
type kicking struct {
	newest int64  // no incarnation that is newer; 0 = whichever is there
	reason Reason // ReasonKicked or ReasonReplaced; "" = ReasonKicked
	ends   bool   // the node of the connection is to end it as well, wherever that is; ReasonKicked only
	floor  int64  // highest revision of the room that the caller knows
}

// kick is Kick. It is CodeNotJoined where the connection is not in the room, or as a newer incarnation. ends is then true if
// an earlier kick, of that incarnation or a newer one, has told the connection's node to end it.
func (s *Service) kick(ctx context.Context, room, conn string, how kicking) (ends bool, err error) {
	newest, reason := "", cmp.Or(how.reason, ReasonKicked)
	if how.newest != 0 {
		newest = strconv.FormatInt(how.newest, 10)
	}
	answer, err := s.run(ctx, s.scripts.kick, fencedKeys(room, conn),
		s.publishArgs(room, how.floor, conn, s.fenceLife(), newest, string(reason), how.ends)...)
	switch {
	case err != nil:
		return false, err
	case answer.verdict() == "ok":
		s.options.OnLeave(reason, 1)
		s.unindexNow(ctx, []Member{{Room: room, Conn: conn, User: answer.text(1), Epoch: answer.int(2)}})
		return false, nil
	case answer.verdict() == "missing":
		return answer.text(1) == "end", notJoined()
	}
	return false, answer.unexpected()
}
