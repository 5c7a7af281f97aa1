package main

import "context"

// scanned is a part of a room as one step of a scan found it.
type scanned struct {
	Snapshot        // with the members of this part only
	count    int    // of all members
	next     string // where Redis goes on, "0" = nowhere
}

// scan reads about so many members of a room as step says, from a cursor of Redis on.
func (s *Service) scan(ctx context.Context, room, cursor string, step int) (scanned, error) {
	answer, err := s.readPart(ctx, room, cursor, step)
	if err != nil {
		return scanned{}, err
	}
	s.rebuildTorn(ctx, room, lossSigns{torn: answer.int(8) == 1})
	members := map[string]Entry{}
	s.takeOver(members, answer.pairs(3), answer.pairs(4))
	found := Snapshot{Rev: answer.int(0), TS: answer.int(1), Users: int(answer.int(2)), Entries: inOrder(members)}
	return scanned{Snapshot: found, count: int(answer.int(9)), next: answer.text(6)}, nil
}
