package main

import (
	"context"
	"slices"

	"github.com/redis/go-redis/v9"
)

// completeAnswers is a hook after which every command has an answer or an error. go-redis 9 leaves the commands of a
// pipeline with neither where the connection was refused by an error reply: to HELLO, AUTH or SELECT, or by a sentinel.
type completeAnswers struct{}

func (completeAnswers) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (completeAnswers) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook is called for transactions as well. An error that none of the commands has is that of the connection.
func (completeAnswers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if err == nil || slices.ContainsFunc(cmds, failed) {
			return err
		}
		for _, cmd := range cmds {
			cmd.SetErr(err)
		}
		return err
	}
}

func failed(cmd redis.Cmder) bool { return cmd.Err() != nil }
