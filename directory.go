package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// Rooms of the index in one answer of Redis, so that a long index holds up nobody else's command.
	directoryScan = 1000

	// Rooms that are asked at the same time.
	directoryWorkers = 16
)

// roomCount is a room and how many are in it.
type roomCount struct {
	id           string
	conns, users int
}

// rooms lists rooms that have members in the order of their ids, from the first one behind after. It looks at no more than
// limit entries of the index, which may hold too much. last is the room to go on behind, "" at the end.
//
// A room that exists throughout is in one of the pages: each reads the whole index, and ids keep their order.
func (s *Service) rooms(ctx context.Context, after string, limit int) (page []roomCount, last string, err error) {
	ids, err := s.indexedRooms(ctx, after)
	if err != nil {
		return nil, "", err
	}
	if len(ids) > limit {
		ids = ids[:limit]
		last = ids[limit-1]
	}
	page = make([]roomCount, len(ids))
	err = inParallel(directoryWorkers, len(ids), func(i int) (err error) {
		page[i], err = s.count(ctx, ids[i])
		return err
	})
	return slices.DeleteFunc(page, func(r roomCount) bool { return r.conns == 0 }), last, err
}

// indexedRooms are the ids above after in the reaper's index, in order.
func (s *Service) indexedRooms(ctx context.Context, after string) ([]string, error) {
	var ids []string
	for cursor := uint64(0); ; {
		pairs, next, err := s.rdb.ZScan(ctx, activeRoomsKey, cursor, "", directoryScan).Result()
		if err != nil {
			return nil, unavailable(err)
		}
		for i := 0; i < len(pairs); i += 2 { // the others are scores
			if pairs[i] > after {
				ids = append(ids, pairs[i])
			}
		}
		if cursor = next; cursor == 0 {
			slices.Sort(ids)
			return slices.Compact(ids), nil
		}
	}
}

func (s *Service) count(ctx context.Context, room string) (roomCount, error) {
	answer, err := s.run(ctx, s.scripts.count, scriptKeys(room))
	return roomCount{id: room, conns: int(answer.int(0)), users: int(answer.int(1))}, err
}

// userConn is where a user is.
type userConn struct {
	room  string
	entry Entry
}

// whereabouts are the connections of a user, by room and connection, and when the last one went if there is none (0 = not known).
// The index tells where to look, the rooms what is true.
func (s *Service) whereabouts(ctx context.Context, user string) (all []userConn, lastSeen int64, err error) {
	for began := time.Now(); ; pause(ctx, staleEntriesPause/2) {
		p, err := s.places(ctx, user)
		if err != nil {
			return nil, 0, err
		}
		if all, err = s.findPlaces(ctx, user, p); err != nil || len(all) > 0 {
			return all, 0, err
		}
		if !s.mayNote(p) || time.Since(began) > noteWithin {
			return nil, p.lastSeen, nil
		}
	}
}

// noteWithin is how long it takes after a leave to note when that was, if nothing fails.
const noteWithin = 3 * staleEntriesPause

// mayNote tells whether the leave of a user who is offline may be about to be noted: the index has places that the user has left.
func (s *Service) mayNote(p places) bool { return s.options.LastSeen > 0 && len(p.conns) > 0 }

// findPlaces are the connections of a user that are in their rooms, by room and connection.
func (s *Service) findPlaces(ctx context.Context, user string, p places) ([]userConn, error) {
	rooms := slices.Collect(maps.Keys(p.conns))
	found := make([][]userConn, len(rooms))
	err := inParallel(directoryWorkers, len(rooms), func(i int) (err error) {
		found[i], err = s.findAll(ctx, rooms[i], user, p.conns[rooms[i]])
		return err
	})
	all := slices.Concat(found...)
	slices.SortFunc(all, func(a, b userConn) int {
		return cmp.Or(strings.Compare(a.room, b.room), strings.Compare(a.entry.ConnID, b.entry.ConnID))
	})
	return all, err
}

// places are where a user is, as the index has it.
type places struct {
	ts       int64               // milliseconds, Redis' clock
	server   string              // the process of Redis that has the index, "" if that is not to be known
	lastSeen int64               // milliseconds, Redis' clock, of the user's last leave of a room; 0 = not known
	conns    map[string][]string // by room
}

func (s *Service) places(ctx context.Context, user string) (places, error) {
	answer, err := s.run(ctx, s.scripts.places, userKeys(user))
	if err != nil {
		return places{}, err
	}
	p := places{ts: answer.int(0), server: answer.text(1), conns: map[string][]string{}}
	if s.options.LastSeen > 0 {
		p.lastSeen = answer.int(2)
	}
	for i := 3; i < len(answer); i++ {
		conn, room, _ := strings.Cut(answer.text(i), ":")
		p.conns[room] = append(p.conns[room], conn)
	}
	return p, nil
}

// online tells whether the user is in any room.
func (s *Service) online(ctx context.Context, user string, p places) (bool, error) {
	for room, conns := range p.conns {
		found, err := s.findAll(ctx, room, user, conns)
		if err != nil || len(found) > 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// findAll are those of the connections that are in the room as this user.
func (s *Service) findAll(ctx context.Context, room, user string, conns []string) (found []userConn, err error) {
	args := make([]any, len(conns))
	for i, conn := range conns {
		args[i] = conn
	}
	answer, err := s.run(ctx, s.scripts.find, scriptKeys(room), args...)
	if err != nil {
		return nil, err
	}
	for i, conn := range conns {
		m, ok := parseMeta(answer.text(2 * i))
		if ok && m.User == user {
			found = append(found, userConn{room, s.entry(conn, m, int64(answer.float(2*i+1)))})
		}
	}
	return found, nil
}

// inParallel calls f with 0 to n-1, at most so many at the same time, and returns one of the errors.
func inParallel(most, n int, f func(i int) error) error {
	var (
		work crew
		next atomic.Int64
	)
	errs := make([]error, min(most, n))
	for worker := range errs {
		work.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[worker] == nil; i = int(next.Add(1)) - 1 {
				errs[worker] = f(i)
			}
		})
	}
	work.Wait()
	return cmp.Or(errs...)
}
