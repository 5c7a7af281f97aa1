package main

import (
	"context"
	"maps"
	"sync"
	"time"
)

// indexRoom makes sure that a reaper looks at the room before a member of it can be overdue for long.
func (s *Service) indexRoom(ctx context.Context, room string, life time.Duration) error {
	_, err := s.run(ctx, s.scripts.indexRoom, []string{activeRoomsKey}, room, life.Milliseconds())
	return err
}

// indexIfDue makes sure that the index of its user tells of m, until the next call a lookback later.
func (s *Service) indexIfDue(ctx context.Context, m *Member, epoch int64) error {
	now := time.Now()
	if now.Sub(m.indexedAt) < s.options.Lookback {
		return nil
	}
	if err := s.indexUser(ctx, *m, epoch); err != nil {
		return err
	}
	m.indexedAt = now
	return nil
}

// indexUser notes where the user is going to be, with an epoch that is not above that of the connection there.
func (s *Service) indexUser(ctx context.Context, m Member, epoch int64) error {
	_, err := s.run(ctx, s.scripts.indexUser, []string{userKey(m.User)},
		userField(m.Room, m.Conn), epoch, 2*s.options.Lookback.Milliseconds(), s.announce)
	return err
}

// unindexNow forgets where users were whose members left, and keeps when that was.
func (s *Service) unindexNow(ctx context.Context, gone []Member) {
	users := placesOf(gone)
	if len(gone) > 1 {
		s.seenLater(s.unindexAll(users))
		return
	}
	for user, places := range users {
		if s.unindexPlaces(ctx, user, places) != nil {
			s.seenLater(users)
		}
	}
}

// seenLater tries again to keep when users were last seen. Their places stay in the index: a node may have put the members back.
func (s *Service) seenLater(failed map[string]map[string]staleEntry) {
	if len(failed) == 0 || s.options.LastSeen <= 0 {
		return
	}
	for _, places := range failed {
		for field, p := range places {
			p.epoch = 0
			places[field] = p
		}
	}
	s.stale.putBack(failed)
	s.stale.mu.Lock()
	defer s.stale.mu.Unlock()
	s.dropSoon()
}

// unindexPlaces forgets many at once. The index may hold too much, so a failure is no harm but that who watches the user
// learns late.
func (s *Service) unindexPlaces(ctx context.Context, user string, places map[string]staleEntry) error {
	args := make([]any, 3, 3+2*len(places))
	var last time.Time
	for field, d := range places {
		args = append(args, field, d.epoch)
		if d.leftAt.After(last) {
			last = d.leftAt
		}
	}
	args[0], args[1], args[2] = s.announce, max(s.options.LastSeen.Milliseconds(), 0), time.Since(last).Milliseconds()
	_, err := s.run(ctx, s.scripts.unindexUser, userKeys(user), args...)
	if err != nil {
		s.options.Logger.Debug("a user's index keeps connections that left", "error", err)
	}
	return err
}

const (
	// How long the places that members left stay in their users' indices.
	staleEntriesPause = 100 * time.Millisecond

	// Indices that stale entries are taken out of at the same time, and for how long at most.
	staleEntriesWorkers = 32
	staleEntriesTime    = time.Second

	// Pause before those are tried again that failed.
	staleEntriesAgain = time.Second
)

// staleEntries are places that members left whom their owner removed: nobody puts those back. They are taken out of their
// users' indices a little later, many at once, and not at all if the member comes back before.
type staleEntries struct {
	mu    sync.Mutex
	users map[string]map[string]staleEntry // by user and field
	busy  bool
}

type staleEntry struct {
	epoch     int64 // 0 = the index keeps the place
	indexedAt time.Time
	leftAt    time.Time
}

// cancel drops the entry of a member that comes back, and returns when the index was told of it. Zero = it is not there.
func (d *staleEntries) cancel(m Member) (indexedAt time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	field := userField(m.Room, m.Conn)
	indexedAt = d.users[m.User][field].indexedAt
	if delete(d.users[m.User], field); len(d.users[m.User]) == 0 {
		delete(d.users, m.User)
	}
	return indexedAt
}

// takeAll hands over all places. There are none when it says that nobody is busy with them any more.
func (d *staleEntries) takeAll() (users map[string]map[string]staleEntry, busy bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	users, d.users = d.users, nil
	d.busy = len(users) > 0
	return users, d.busy
}

// unindexLater forgets in a while where users were.
func (s *Service) unindexLater(gone []Member, indexedAt time.Time) {
	s.stale.mu.Lock()
	defer s.stale.mu.Unlock()
	now := time.Now()
	for _, m := range gone {
		if s.stale.users == nil {
			s.stale.users = map[string]map[string]staleEntry{}
		}
		if s.stale.users[m.User] == nil {
			s.stale.users[m.User] = map[string]staleEntry{}
		}
		s.stale.users[m.User][userField(m.Room, m.Conn)] = staleEntry{m.Epoch, indexedAt, now}
	}
	if len(gone) > 0 {
		s.dropSoon()
	}
}

// dropSoon has stale places taken out. s.stale.mu is held.
func (s *Service) dropSoon() {
	if !s.stale.busy && s.ctx.Err() == nil {
		s.stale.busy = true
		s.keep(s.options.Logger, "index of users", s.dropStale, nil)
	}
}

// dropStale takes out what members left, until there is nothing more. At the end of the service it does so at once.
func (s *Service) dropStale() {
	for {
		pause(s.ctx, staleEntriesPause)
		users, busy := s.stale.takeAll()
		if !busy {
			return
		}
		if failed := s.unindexAll(users); len(failed) > 0 && s.ctx.Err() == nil {
			s.stale.putBack(failed)
			pause(s.ctx, staleEntriesAgain)
		}
	}
}

// putBack takes places that were perhaps not taken out, unless something newer is known of them. Whoever comes back is indexed anew.
func (d *staleEntries) putBack(users map[string]map[string]staleEntry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users == nil {
		d.users = map[string]map[string]staleEntry{}
	}
	for user, places := range users {
		for field, p := range places {
			places[field] = staleEntry{epoch: p.epoch, leftAt: p.leftAt}
		}
		maps.Copy(places, d.users[user])
		d.users[user] = places
	}
}

// placesOf are the places that members left, by user and field.
func placesOf(gone []Member) map[string]map[string]staleEntry {
	users := map[string]map[string]staleEntry{}
	now := time.Now()
	for _, m := range gone {
		if users[m.User] == nil {
			users[m.User] = map[string]staleEntry{}
		}
		users[m.User][userField(m.Room, m.Conn)] = staleEntry{epoch: m.Epoch, leftAt: now}
	}
	return users
}

// unindexAll gives those back that it could not take out. After a failure it tries no further.
func (s *Service) unindexAll(users map[string]map[string]staleEntry) (failed map[string]map[string]staleEntry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), staleEntriesTime)
	defer cancel()
	var work sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, staleEntriesWorkers)
	for user, places := range users {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			done := false
			panics(s.options.Logger, "index of users", func() { done = ctx.Err() == nil && s.unindexPlaces(ctx, user, places) == nil })
			if done {
				return
			}
			cancel()
			mu.Lock()
			defer mu.Unlock()
			if failed == nil {
				failed = map[string]map[string]staleEntry{}
			}
			failed[user] = places
		})
	}
	work.Wait()
	return failed
}
