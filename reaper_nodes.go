package main

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
)

var (
	errNoContact = errors.New("contact with a master of Redis was too short to judge who is lost")
	errSpared    = errors.New("connections of a lost node were not removed")
)

// passNodes removes the connections of every node whose lease is over.
func (r *reaper) passNodes(ctx context.Context) error {
	t, err := r.leaseTarget(ctx)
	if err != nil {
		return err
	}
	clock, trusted, err := r.probe(ctx, t)
	if err != nil || !trusted {
		return nil // others may judge, or we later
	}
	s := r.service
	answer, err := s.run(ctx, s.scripts.claimNodes, []string{leasesKey}, claimLease.Milliseconds(), clock+r.loss.patience.Milliseconds())
	if err != nil {
		r.lostContact(t.contact)
		return err
	}
	for i := range answer {
		err = errors.Join(err, r.removeNode(ctx, answer.text(i)))
	}
	return err
}

// Rooms of a lost node that are read in one step.
const nodeRoomsPart = 500

// removeNode removes all connections of a lost node. When some cannot be removed now, the node is claimed again later.
func (r *reaper) removeNode(ctx context.Context, node string) error {
	s := r.service
	s.options.Logger.Warn("a node is lost", "node", node)
	if err := s.tellOfLoss(ctx); err != nil {
		return err
	}
	for cursor := uint64(0); ; {
		pairs, next, err := s.rdb.HScan(ctx, nodeRoomsKey(node), cursor, "", nodeRoomsPart).Result()
		if err != nil {
			return err
		}
		if err := r.evictFrom(ctx, pairs, node); err != nil {
			return err
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	_, err := s.run(ctx, s.scripts.forgetNode, []string{leasesKey, nodeRoomsKey(node)}, node)
	return err
}

// evictFrom removes the connections of a lost node from rooms, which every other of the strings names.
func (r *reaper) evictFrom(ctx context.Context, pairs []string, node string) error {
	rooms := make([]string, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		rooms = append(rooms, pairs[i])
	}
	var failed atomic.Pointer[error]
	each(rooms, func(room *string) {
		if err := r.removeFromRoom(ctx, *room, node); err != nil {
			failed.Store(&err)
		}
	})
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// removeFromRoom removes the connections of a lost node from a room. It goes through the room until it finds none: a join that was
// on its way when the node died may have come meanwhile.
func (r *reaper) removeFromRoom(ctx context.Context, room, node string) error {
	removed := 0
	for {
		found, gone, err := r.sweep(ctx, room, node)
		removed += gone
		if err == nil && found > 0 && gone == 0 {
			err = errSpared
		}
		if err == nil && found > 0 {
			continue
		}
		if removed > 0 {
			r.service.options.Logger.Info("connections of a lost node removed", "room", room, "connections", removed)
		}
		return err
	}
}

// sweep goes through a room once, part by part, and removes the connections of a lost node. Those of other reapers that do
// the same are found and not gone.
func (r *reaper) sweep(ctx context.Context, room, node string) (found, gone int, err error) {
	for cursor := "0"; ; {
		part, next, err := r.owned(ctx, room, node, cursor)
		if err != nil {
			return found, gone, err
		}
		if len(part.list) > 0 && !part.trusted {
			return found, gone, errNoContact
		}
		found += len(part.list)
		how := removal{reason: ReasonNodeLost, node: node, notAfter: part.now + r.answerWithin()}
		for list := range slices.Chunk(part.list, removeBatch) {
			_, left, err := r.service.remove(ctx, room, how, list)
			r.refused(ctx, room, err)
			if err != nil {
				return found, gone, err
			}
			gone += len(left)
		}
		if cursor = next; cursor == "0" {
			return found, gone, nil
		}
	}
}

// owned finds the connections of a node in a part of a room.
func (r *reaper) owned(ctx context.Context, room, node, cursor string) (part overdueScan, next string, err error) {
	s := r.service
	answer, lasted, err := r.look(ctx, r.loss, s.scripts.owned, scriptKeys(room), node, cursor, s.partOfRoom())
	if err != nil {
		return overdueScan{}, "", err
	}
	part = overdueScan{now: answer.int(0), trusted: lasted >= r.loss.need}
	for i := 2; i+1 < len(answer); i += 2 {
		part.list = append(part.list, incarnation{answer.text(i), answer.int(i + 1)})
	}
	return part, answer.text(1), nil
}

// tellOfLoss has every node look at the users that its clients watch: the lost one may have removed members and not told
// who watches their users.
func (s *Service) tellOfLoss(ctx context.Context) error {
	if s.announce == "SPUBLISH" {
		return s.rdb.SPublish(ctx, userChannel(lostNodes), "-").Err()
	}
	return s.rdb.Publish(ctx, userChannel(lostNodes), "-").Err()
}
