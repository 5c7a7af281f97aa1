package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
)

// forgetful is a Redis that carries out joins and loses them, with their messages, while the flag is set: another server answers them.
type forgetful struct {
	redis.UniversalClient
	other redis.UniversalClient
	joins []string // digests of the script
	after atomic.Pointer[func()]
}

func (f *forgetful) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	after := f.after.Load()
	if after == nil || !slices.Contains(f.joins, sha) {
		return f.UniversalClient.EvalSha(ctx, sha, keys, args...)
	}
	cmd := f.other.EvalSha(ctx, sha, keys, args...)
	(*after)()
	return cmd
}

// TestAJoinThatRedisLosesIsAnsweredWithItself_G7 has Redis lose a join, and its message, before it is answered: as when a master fails that had
// not yet copied it to its replica.
func TestAJoinThatRedisLosesIsAnsweredWithItself_G7(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{"a first join": "", "a join again": "bob", "a join again as another user": "ann"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, lost := backend{url: spawnRedis(t).url, real: true}, backend{url: spawnRedis(t).url, real: true}
			rdb, join := &forgetful{UniversalClient: b.open(t), other: lost.open(t)}, loadScripts(false).join
			for _, text := range []scriptText{join.redis7, join.legacy} {
				rdb.joins = append(rdb.joins, text.sha)
				must(t, rdb.other.ScriptLoad(t.Context(), text.source).Err())
			}
			n, room, changes := startNodeOn(t, rdb), uniqueRoom(t), 0
			witness, u := n.member(t, room, "witness", "{}"), n.user(t)
			if before != "" {
				u.join(room, before, `{"n":1}`)
			}
			change := func() {
				changes++
				witness.ok(eventHeartbeat, fmt.Sprintf(`{"patchState":{"n":%d}}`, changes))
			}
			rdb.after.Store(&change)
			ack := u.join(room, "bob", `{"n":2}`)
			rdb.after.Store(nil)
			if e := entryOf(t, ack, u.id); e.Epoch != ack.Self.Epoch || e.UserID != "bob" || string(e.State) != `{"n":2}` {
				t.Errorf("answered with %s", ack.text)
			}
			if e := entryOf(t, witness.ok(eventGet, inRoom(room, "")), u.id); e.Epoch != ack.Self.Epoch {
				t.Errorf("the room has %+v", e)
			}
			witness.until("of the member that was lost", func(e wireEvent) bool { return e.ConnID == u.id && e.Epoch == ack.Self.Epoch })
		})
	}
}
