package main

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
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

// afterScript does something after each run of a script.
type afterScript struct {
	redis.UniversalClient
	sha  string
	then atomic.Pointer[func()]
}

func (a *afterScript) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := a.UniversalClient.EvalSha(ctx, sha, keys, args...)
	if then := a.then.Load(); sha == a.sha && cmd.Err() == nil && then != nil {
		(*then)()
	}
	return cmd
}

// TestAKickIsFinalWhenItsFenceIsLost_G8 has a node learn of a kick while it puts the member back into a Redis that has lost all data.
func TestAKickIsFinalWhenItsFenceIsLost_G8(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"the healer", "a heartbeat"} {
		t.Run(way, func(t *testing.T) {
			b := ownRedis(t, false)
			rdb := &afterScript{UniversalClient: b.open(t), sha: loadScripts(false).restore.redis7.sha}
			n, room := startNodeOn(t, rdb), uniqueRoom(t)
			u := n.user(t)
			epoch := u.join(room, "ann", "{}").Self.Epoch
			r := n.hub.find(room)
			r.mu.Lock()
			m := r.owned[u.id]
			r.mu.Unlock()
			var restored atomic.Bool
			kicked := func() {
				restored.Store(true)
				m.kicked.Store(epoch)
			}
			rdb.then.Store(&kicked)
			flushAll(t, rdb)
			if way == "a heartbeat" {
				u.ask(eventHeartbeat, "")
			}
			eventually(t, 5*time.Second, "the member is removed again", func() bool {
				return restored.Load() && len(mustRead(t, n.service, room).Entries) == 0
			})
		})
	}
}

// TestWhoIsExpelled_G8 has a node that knows of a kick decide about a member with epoch 5.
func TestWhoIsExpelled_G8(t *testing.T) {
	for name, c := range map[string]struct {
		kicked   int64
		inFlight bool
		want     bool
	}{
		"nobody was kicked":                            {0, false, false},
		"an earlier incarnation was kicked":            {4, false, false},
		"this one was kicked":                          {5, false, true},
		"a later one was kicked":                       {6, false, true},
		"this one, and perhaps there is a later one":   {5, true, false},
		"a join of unknown outcome was kicked":         {6, true, true},
		"nobody, and perhaps there is a later one":     {0, true, false},
		"an earlier one, and perhaps there is a later": {4, true, false},
	} {
		m := membership{rejoinInFlight: c.inFlight}
		m.Epoch = 5
		m.kicked.Store(c.kicked)
		if got := m.expelled(); got != c.want {
			t.Errorf("%s: expelled is %v", name, got)
		}
	}
}
