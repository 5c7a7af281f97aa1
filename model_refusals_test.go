package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// modelRefusal is what Redis answers with an error.
type modelRefusal int

const (
	refusesNothing modelRefusal = iota
	refusesWrites               // it answers what only reads
	refusesLogins               // of connections, which each call needs anew
)

// modelError is an error reply.
type modelError string

func (e modelError) Error() string { return string(e) }
func (modelError) RedisError()     {}

const (
	writeRefused = modelError("NOREPLICAS Not enough good replicas to write.")
	loginRefused = modelError("NOAUTH Authentication required.")
)

// modelPipelines sends each script in a pipeline of its own, and does not look at what the pipeline returns: the command has to have
// a value or an error. That is how a server sends scripts. The hook completeAnswers is not there.
type modelPipelines struct{ *redis.Client }

func (p modelPipelines) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	pipe := p.Pipeline()
	cmd := pipe.EvalSha(ctx, sha, keys, args...)
	_, _ = pipe.Exec(ctx)
	return cmd
}

func (p modelPipelines) Eval(ctx context.Context, text string, keys []string, args ...any) *redis.Cmd {
	pipe := p.Pipeline()
	cmd := pipe.Eval(ctx, text, keys, args...)
	_, _ = pipe.Exec(ctx)
	return cmd
}

// refuse lets Redis begin or end to refuse something.
func (m *model) refuse() {
	if m.refuses != refusesNothing {
		m.accept()
		return
	}
	m.refuses = modelRefusal(1 + m.random.IntN(2))
	m.note("Redis refuses %s", []string{"", "writes", "logins"}[m.refuses])
	if m.chance(50) {
		m.elapse(time.Duration(1+m.random.IntN(12)) * time.Second)
	}
}

// accept ends what refuse began.
func (m *model) accept() {
	if m.refuses == refusesNothing {
		return
	}
	m.note("Redis refuses nothing any more")
	if m.refuses = refusesNothing; m.refusedRefresh {
		m.refusedAt, m.refusedRefresh = time.Now(), false
	}
}

// refused is the error that Redis answers a call with, nil if it runs it.
func (m *model) refused(c *heldCall) error {
	var err error
	switch {
	case m.refuses == refusesLogins:
		err = loginRefused
	case m.refuses == refusesWrites && !m.onlyReads(c.cmds[0].Args()):
		err = writeRefused
	}
	refreshes := []string{"heartbeat", "patch", "restore", "probe", "renew_lease"}
	if err != nil && slices.Contains(refreshes, m.script(c.cmds[0].Args())) {
		m.refusedRefresh = true // else nobody can know that a refresh would have been refused
	}
	return err
}

// onlyReads tells whether a call leaves everything as it is.
func (m *model) onlyReads(args []any) bool {
	for _, sc := range m.scripts.all() {
		if sc.name == m.script(args) {
			flags, _, _ := strings.Cut(sc.redis7.source, "\n")
			return strings.Contains(flags, "no-writes")
		}
	}
	return true
}

// judgeContact checks that nobody is removed whom Redis refused to refresh, before there was the time for that.
func (m *model) judgeContact(conn string) {
	if m.refuses != refusesNothing || !m.refusedAt.IsZero() && time.Since(m.refusedAt) < modelTTL {
		m.wrong("%s is removed while Redis refuses, or %v after that", conn, time.Since(m.refusedAt))
	}
}
