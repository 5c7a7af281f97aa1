package main

import (
	"context"
	"encoding/json"
	"testing"
)

// TestAKickLeavesANewerIncarnationAlone: a node that knows only the incarnation that was kicked is told of the one after it, so that it
// follows that or removes it.
func TestAKickLeavesANewerIncarnationAlone_G4_G5(t *testing.T) {
	eachBackend(t, func(t *testing.T, b backend) {
		ctx, s, room := context.Background(), startService(t, b.open(t), Options{ReaperInterval: -1}), uniqueRoom(t)
		before := Member{Room: room, User: "u", Conn: "c", State: json.RawMessage(`{}`)}
		joined, err := s.Join(ctx, room, "u", "c", nil)
		if err != nil {
			t.Fatal(err)
		}
		before.Epoch, before.Rev = joined.Epoch, joined.Epoch
		if err := s.Kick(ctx, room, "c"); err != nil {
			t.Fatal(err)
		}
		if err := s.restore(ctx, &before, 0, 0); !hasCode(err, CodeNotJoined) {
			t.Errorf("after the kick a repair answers %v, want not_joined", err)
		}
		again, err := s.Join(ctx, room, "u", "c", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.restore(ctx, &before, 0, 0); !hasCode(err, CodeStaleEpoch) {
			t.Errorf("with a newer incarnation there a repair answers %v, want stale_epoch", err)
		}
		if snapshot, err := s.Snapshot(ctx, room); err != nil || len(snapshot.Entries) != 1 || snapshot.Entries[0].Epoch != again.Epoch {
			t.Errorf("the room is %+v, %v", snapshot.Entries, err)
		}
	})
}
