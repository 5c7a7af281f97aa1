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
		err = errors.Join(err, r.bury(ctx, answer.text(i)))
	}
	return err
}

// bury removes all connections of a lost node. When some cannot be removed now, the node is claimed again later.
func (r *reaper) bury(ctx context.Context, node string) error {
	s := r.service
	rooms, err := s.rdb.HKeys(ctx, nodeRoomsKey(node)).Result()
	if err != nil {
		return err
	}
	s.options.Logger.Warn("a node is lost", "node", node, "rooms", len(rooms))
	var failed atomic.Pointer[error]
	each(rooms, func(room *string) {
		if err := r.evict(ctx, *room, node); err != nil {
			failed.Store(&err)
		}
	})
	if err := failed.Load(); err != nil {
		return *err
	}
	_, err = s.run(ctx, s.scripts.forgetNode, []string{leasesKey, nodeRoomsKey(node)}, node)
	return err
}

// evict removes the connections of a lost node from a room.
func (r *reaper) evict(ctx context.Context, room, node string) error {
	for {
		found, err := r.owned(ctx, room, node)
		if err != nil || len(found.list) == 0 {
			return err
		}
		if !found.trusted {
			return errNoContact
		}
		how := removal{reason: ReasonNodeLost, node: node, notAfter: found.now + r.patience()}
		for list := range slices.Chunk(found.list, removeBatch) {
			_, gone, err := r.service.remove(ctx, room, how, list)
			r.refused(ctx, room, err)
			if err != nil {
				return err
			}
			if len(gone) == 0 {
				return errSpared
			}
		}
		r.service.options.Logger.Info("connections of a lost node removed", "room", room, "connections", len(found.list))
	}
}

// owned finds the connections of a node in a room.
func (r *reaper) owned(ctx context.Context, room, node string) (found silence, err error) {
	answer, lasted, err := r.look(ctx, r.loss, r.service.scripts.owned, room, node)
	if err != nil {
		return silence{}, err
	}
	found = silence{now: answer.int(0), trusted: lasted >= r.loss.need}
	for i := 1; i+1 < len(answer); i += 2 {
		found.list = append(found.list, incarnation{answer.text(i), answer.int(i + 1)})
	}
	return found, nil
}
