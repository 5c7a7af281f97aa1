package main

import (
	"context"
	"sync/atomic"
)

// kickUser kicks every member of a user that is there when it begins, in whatever room, and returns how many it has kicked.
// With ends, their nodes end the connections as well. After an error some may have been kicked; it may be repeated.
func (s *Service) kickUser(ctx context.Context, user string, ends bool) (removed int, err error) {
	p, err := s.places(ctx, user)
	if err != nil {
		return 0, err
	}
	there, err := s.findPlaces(ctx, user, p)
	if err != nil {
		return 0, err
	}
	var kicked atomic.Int64
	err = inParallel(usersAtOnce, len(there), func(i int) error {
		_, err := s.kick(ctx, there[i].room, there[i].entry.ConnID, kicking{newest: there[i].entry.Epoch, ends: ends})
		switch {
		case err == nil:
			kicked.Add(1)
		case hasCode(err, CodeNotJoined): // it has left, or joined again, since the beginning
			return nil
		}
		return err
	})
	return int(kicked.Load()), err
}
