package main

import (
	"context"
	"maps"
	"slices"
)

const (
	// Lookups about many users at the same time: as many as fill the round trips to Redis.
	usersAtOnce = 2 * pipelineBatch

	// Connections of a room that are looked for in one step.
	findAtOnce = 500
)

// countConns gives the number of connections in all rooms of each user that has some. It fails if one of them cannot be
// looked up. The number of round trips to Redis grows with the users and rooms, divided by pipelineBatch.
func (s *Service) countConns(ctx context.Context, users []string) (map[string]int, error) {
	online, err := s.indexedOf(ctx, slices.Compact(slices.Sorted(slices.Values(users))))
	if err != nil {
		return nil, err
	}
	lists := make([]places, len(online))
	err = inParallel(usersAtOnce, len(online), func(i int) (err error) {
		lists[i], err = s.places(ctx, online[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	rooms := map[string][]seat{}
	for i, user := range online {
		for room, conns := range lists[i].conns {
			for _, conn := range conns {
				rooms[room] = append(rooms[room], seat{user, conn})
			}
		}
	}
	return s.countSeats(ctx, rooms)
}

// seat is where the index of a user says that the user is, in some room.
type seat struct{ user, conn string }

// countSeats counts by user those that are taken.
func (s *Service) countSeats(ctx context.Context, rooms map[string][]seat) (map[string]int, error) {
	type part struct {
		room  string
		seats []seat
	}
	var parts []part
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		for seats := range slices.Chunk(rooms[room], findAtOnce) {
			parts = append(parts, part{room, seats})
		}
	}
	found := make([][]bool, len(parts))
	err := inParallel(usersAtOnce, len(parts), func(i int) (err error) {
		found[i], err = s.taken(ctx, parts[i].room, parts[i].seats)
		return err
	})
	counts := map[string]int{}
	for i, taken := range found {
		for j, is := range taken {
			if is {
				counts[parts[i].seats[j].user]++
			}
		}
	}
	return counts, err
}

// taken tells of each seat in a room whether that connection is there as that user.
func (s *Service) taken(ctx context.Context, room string, seats []seat) ([]bool, error) {
	args := make([]any, len(seats))
	for i, at := range seats {
		args[i] = at.conn
	}
	answer, err := s.run(ctx, s.scripts.find, scriptKeys(room), args...)
	if err != nil {
		return nil, err
	}
	is := make([]bool, len(seats))
	for i, at := range seats {
		m, ok := parseMeta(answer.text(2 * i))
		is[i] = ok && m.User == at.user
	}
	return is, nil
}

// indexedOf are those of the users that have an index: all others are in no room.
func (s *Service) indexedOf(ctx context.Context, users []string) (some []string, err error) {
	for part := range slices.Chunk(users, onlineTogether) {
		there, err := s.indexed(ctx, part)
		if err != nil {
			return nil, err
		}
		for i, user := range part {
			if there[i] {
				some = append(some, user)
			}
		}
	}
	return some, nil
}
