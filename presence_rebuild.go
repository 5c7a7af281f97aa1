package main

import (
	"context"
	"slices"
	"strings"
)

func (s *Service) rebuild(ctx context.Context, sc *script, keys []string) (err error) {
	if sc.index != "" {
		var kinds []any
		for _, kind := range strings.Fields(sc.index) {
			kinds = append(kinds, kind)
		}
		_, err = s.call(ctx, s.scripts.rebuildIndex, keys, kinds)
		return err
	}
	return s.rebuildRoom(ctx, keys)
}

// rebuildRoom rebuilds the indices of a room part by part. A caller that finds it half done goes on from there.
func (s *Service) rebuildRoom(ctx context.Context, keys []string) error {
	k := keysOf(roomOfKeys(keys))
	keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool {
		return strings.HasPrefix(key, kickPrefix) || key == k.held() || key == k.devices()
	})
	grace := s.options.Grace > 0
	if grace {
		keys = append(keys, k.held())
	}
	keys = append(keys, k.devices())
	for ctx.Err() == nil {
		answer, err := s.call(ctx, s.scripts.rebuild, keys, []any{grace, s.partOfRoom(), s.fenceLife()})
		if err != nil || answer.verdict() == "ok" {
			return err
		}
	}
	return ctx.Err()
}

// partOfRoom is how many members, with their states, a script reads in one step when it does not return these.
func (s *Service) partOfRoom() int {
	return min(max(sweepBytes/s.options.Limits.StateBytes, 10), sweepMembers)
}
