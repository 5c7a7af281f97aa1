package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// Lookups about many users at the same time: as many as fill the round trips to Redis.
	usersAtOnce = 2 * pipelineBatch

	// Connections of a room that are looked for in one step.
	findAtOnce = 500
)

// userStatus tells whether a user is in any room.
type userStatus struct {
	conns    int   // in all rooms; 0 = the user is offline
	lastSeen int64 // milliseconds, Redis' clock, when the last connection of a user who is offline went; 0 = not known
	open     bool  // the leave of a user who is offline may be about to be noted
}

// statuses tells of each user. It fails if one of them cannot be looked up. The number of round trips to Redis grows with
// the users and rooms, divided by pipelineBatch.
func (s *Service) statuses(ctx context.Context, users []string) (map[string]userStatus, error) {
	all := map[string]userStatus{}
	some := slices.Compact(slices.Sorted(slices.Values(users)))
	for began := time.Now(); ; pause(ctx, staleEntriesPause/2) {
		found, err := s.statusesNow(ctx, some)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, found)
		some = slices.DeleteFunc(some, func(user string) bool { return !found[user].open })
		if len(some) == 0 || time.Since(began) > noteWithin {
			return all, nil
		}
	}
}

// statusesNow is statuses at once.
func (s *Service) statusesNow(ctx context.Context, users []string) (map[string]userStatus, error) {
	known, err := s.indexedAll(ctx, users)
	if err != nil {
		return nil, err
	}
	lists := make([]places, len(users))
	err = inParallel(usersAtOnce, len(users), func(i int) (err error) {
		if known[i].there { // all others are in no room
			lists[i], err = s.places(ctx, users[i])
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	counts, err := s.countSeats(ctx, seatsOf(users, lists))
	all := make(map[string]userStatus, len(users))
	for i, user := range users {
		status := userStatus{conns: counts[user]}
		if status.conns == 0 {
			status.lastSeen, status.open = max(known[i].lastSeen, lists[i].lastSeen), s.mayNote(lists[i])
		}
		all[user] = status
	}
	return all, err
}

// seat is where the index of a user says that the user is, in some room.
type seat struct{ user, conn string }

// seatsOf are the seats of users by room.
func seatsOf(users []string, lists []places) map[string][]seat {
	rooms := map[string][]seat{}
	for i, user := range users {
		for room, conns := range lists[i].conns {
			for _, conn := range conns {
				rooms[room] = append(rooms[room], seat{user, conn})
			}
		}
	}
	return rooms
}

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

// indexedAll is indexed for any number of users.
func (s *Service) indexedAll(ctx context.Context, users []string) (all []indexedUser, err error) {
	for part := range slices.Chunk(users, onlineTogether) {
		some, err := s.indexed(ctx, part)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// indexedUser is what Redis has of a user outside of any room.
type indexedUser struct {
	there    bool  // the user has an index; who has none is in no room
	lastSeen int64 // as in places
}

// indexed tells of users in one round trip.
func (s *Service) indexed(ctx context.Context, users []string) ([]indexedUser, error) {
	counts, times := make([]*redis.IntCmd, len(users)), make([]*redis.StringCmd, len(users))
	_, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, user := range users {
			counts[i] = pipe.Exists(ctx, userKey(user))
			if s.options.LastSeen > 0 {
				times[i] = pipe.Get(ctx, lastSeenKey(user))
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		return nil, unavailable(err)
	}
	list := make([]indexedUser, len(users))
	for i := range users {
		if err := counts[i].Err(); err != nil {
			return nil, unavailable(err)
		}
		list[i].there = counts[i].Val() == 1
		if times[i] != nil { // one that is missing, or of another type, is not known
			list[i].lastSeen, _ = strconv.ParseInt(times[i].Val(), 10, 64)
		}
	}
	return list, nil
}
