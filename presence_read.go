package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// find reads one connection of a room; CodeNotJoined if it is not there.
func (s *Service) find(ctx context.Context, room, conn string) (Member, error) {
	value, err := s.rdb.HGet(ctx, keysOf(room).meta(), conn).Result()
	if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		return Member{}, unavailable(err)
	}
	m, ok := parseMeta(value)
	if !ok {
		return Member{}, notJoined()
	}
	m.Room, m.Conn = room, conn
	return m, nil
}

// size is the revision of a room's latest change, and how many connections are in it.
func (s *Service) size(ctx context.Context, room string) (rev int64, count int, err error) {
	answer, err := s.run(ctx, s.scripts.count, scriptKeys(room))
	return answer.int(2), int(answer.int(0)), err
}

const (
	// Members that are read in one step, so that Redis is never busy with one room for long.
	readBatch = 500

	// Bound for the answer to one such step.
	readPartWithin = 2 * time.Second

	// What a script reads of a room in one step, when it only looks for something in it: so many bytes of states that are
	// as large as they may be, and so many members at most.
	sweepBytes   = 1 << 20
	sweepMembers = 200
)

// read reads a room. What changes while it is read in parts may be in the result or not: its Rev is that of the beginning,
// its until that of the end.
func (s *Service) read(ctx context.Context, room string) (Snapshot, error) {
	var v Snapshot
	members := map[string]Entry{}
	for cursor := "0"; ; {
		answer, err := s.readPart(ctx, room, cursor, readBatch)
		if err != nil {
			return Snapshot{}, err
		}
		if cursor == "0" {
			v = Snapshot{Rev: answer.int(0), TS: answer.int(1), loss: lossSigns{server: answer.text(5), origin: answer.int(7)}}
		}
		v.until, v.Users = answer.int(0), int(answer.int(2))
		if v.until < v.Rev || isAnother(answer.text(5), v.loss.server) || answer.int(7) != v.loss.origin && answer.int(7) != 0 {
			return Snapshot{}, unavailable(errors.New("data of a room were lost while it was read"))
		}
		v.loss.torn = v.loss.torn || answer.int(8) == 1
		s.takeOver(members, answer.pairs(3), answer.pairs(4))
		if cursor = answer.text(6); cursor == "0" {
			break
		}
	}
	s.rebuildTorn(ctx, room, v.loss)
	v.Entries = inOrder(members)
	return v, nil
}

// inOrder are members in the order of their connection ids.
func inOrder(members map[string]Entry) []Entry {
	return slices.SortedFunc(maps.Values(members), func(a, b Entry) int { return strings.Compare(a.ConnID, b.ConnID) })
}

func (s *Service) readPart(ctx context.Context, room, cursor string, step int) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, readPartWithin)
	defer cancel()
	return s.run(ctx, s.scripts.read, scriptKeys(room), cursor, step)
}

// lossSigns are what the store tells of a room, by which a later reading knows that data were lost in between.
type lossSigns struct {
	server string // the process of Redis that answered; "" if it does not tell
	origin int64  // the revision with which the room's counter began, or went on after a loss; 0 = over an hour ago, or not known
	torn   bool   // the indices of the room disagree: some of them are lost
}

// lostSince tells whether data were lost between an earlier reading and this one.
func (s lossSigns) lostSince(before lossSigns) bool {
	return isAnother(s.server, before.server) || s.origin != 0 && s.origin != before.origin || s.torn && !before.torn
}

// isAnother tells whether a name is not that of the process of Redis known before. Unknown ones tell nothing.
func isAnother(server, before string) bool {
	return server != "" && before != "" && server != before
}

// takeOver adds a part of a room to what was read before. A connection may come twice.
func (s *Service) takeOver(members map[string]Entry, metas, seen map[string]string) {
	for conn, value := range metas {
		m, ok := parseMeta(value)
		if old, twice := members[conn]; !ok || twice && old.Rev > m.Rev {
			continue
		}
		score, _ := strconv.ParseFloat(seen[conn], 64)
		m.User, m.Device = strings.Clone(m.User), strings.Clone(m.Device) // else they keep the whole value in memory
		members[conn] = s.entry(conn, m, int64(score))
	}
}

// lastSeen are the times at which connections of a room were last heard of, milliseconds by Redis' clock; 0 = not there.
func (s *Service) lastSeen(ctx context.Context, room string, conns []string) ([]int64, error) {
	args := make([]any, len(conns))
	for i, conn := range conns {
		args[i] = conn
	}
	answer, err := s.run(ctx, s.scripts.find, scriptKeys(room), args...)
	if err != nil {
		return nil, err
	}
	times := make([]int64, len(conns))
	for i, conn := range conns {
		if m, ok := parseMeta(answer.text(2 * i)); ok {
			times[i] = s.entry(conn, m, int64(answer.float(2*i+1))).LastSeenMs
		}
	}
	return times, nil
}

// entry is a member in a snapshot. lastSeen is that in Redis: of a connection that is held back it says when that ends.
func (s *Service) entry(conn string, m Member, lastSeen int64) Entry {
	if m.held() {
		lastSeen += (s.options.Lookback - s.options.Grace).Milliseconds() // when it broke
	}
	return Entry{ConnID: conn, UserID: m.User, State: s.legible(conn, m.State), DeviceID: m.Device, LastSeenMs: lastSeen, Epoch: m.Epoch, Rev: m.Rev}
}

// pulse gives a room's revision, and by what a loss of its data is known.
func (s *Service) pulse(ctx context.Context, room string) (rev int64, signs lossSigns, err error) {
	answer, err := s.run(ctx, s.scripts.pulse, scriptKeys(room))
	signs = lossSigns{server: answer.text(1), origin: answer.int(2), torn: answer.int(3) == 1}
	s.rebuildTorn(ctx, room, signs)
	return answer.int(0), signs, err
}

// takesWrites is why Redis refuses what a join writes, nil if it does not: a room's keys, and those of the nodes. It leaves
// nothing behind.
func (s *Service) takesWrites(ctx context.Context) error {
	for _, keys := range [][]string{probeKeys(probeRoom(0)), leaseProbeKeys()} {
		if _, err := s.call(ctx, s.scripts.probeMore, keys, nil); err != nil {
			return err
		}
	}
	return nil
}
