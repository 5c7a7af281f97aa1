package main

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// onceCluster is a client of a cluster that never sends a script again whose answer was lost. It follows redirections: a
// script that was redirected has not run.
type onceCluster struct {
	*redis.ClusterClient
}

func (c onceCluster) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return c.once(ctx, "evalsha", sha, keys, args)
}

func (c onceCluster) Eval(ctx context.Context, source string, keys []string, args ...any) *redis.Cmd {
	return c.once(ctx, "eval", source, keys, args)
}

func (c onceCluster) once(ctx context.Context, command, script string, keys []string, args []any) *redis.Cmd {
	cmd := scriptCmd(ctx, command, script, keys, args)
	_ = c.Process(ctx, onceCmd{cmd}) // which leaves the error in cmd
	return cmd
}

// scriptCmd is an EVAL or EVALSHA.
func scriptCmd(ctx context.Context, command, script string, keys []string, args []any) *redis.Cmd {
	words := make([]any, 0, 3+len(keys)+len(args))
	words = append(words, command, script, len(keys))
	for _, key := range keys {
		words = append(words, key)
	}
	cmd := redis.NewCmd(ctx, append(words, args...)...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

type onceCmd struct {
	*redis.Cmd
}

func (onceCmd) NoRetry() bool { return true }
