package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// publishArgs are the arguments of a script that publishes: what it needs for that, the highest revision of the room that the
// caller knows, and its own.
func (s *Service) publishArgs(room string, known int64, own ...any) []any {
	args := make([]any, 0, 4+len(own)+2)
	args = append(args, keysOf(room).events(), s.publish, literal(room), known)
	return append(args, own...)
}

// literal is text as JSON, with nothing escaped but quote and backslash: lua/room.lua undoes that. Ids hold no control characters.
func literal(text string) string {
	return string(appendString(make([]byte, 0, len(text)+2), text))
}

// reply is a script's answer: a flat list, its first element the verdict. An answer that is no list is its only element.
type reply []any

func (r reply) text(i int) string {
	if i >= len(r) {
		return ""
	}
	text, _ := r[i].(string)
	return text
}

// texts are those from a place on.
func (r reply) texts(from int) (list []string) {
	for i := from; i < len(r); i++ {
		list = append(list, r.text(i))
	}
	return list
}

func (r reply) verdict() string { return r.text(0) }

func (r reply) int(i int) int64 {
	if i < len(r) {
		if n, ok := r[i].(int64); ok {
			return n
		}
	}
	n, _ := strconv.ParseInt(r.text(i), 10, 64)
	return n
}

func (r reply) float(i int) float64 {
	f, _ := strconv.ParseFloat(r.text(i), 64)
	return f
}

// list is the list at i.
func (r reply) list(i int) reply {
	if i >= len(r) {
		return nil
	}
	list, _ := r[i].([]any)
	return list
}

// pairs is the list of names and values at i.
func (r reply) pairs(i int) map[string]string {
	list := r.list(i)
	pairs := make(map[string]string, len(list)/2)
	for j := 0; j+1 < len(list); j += 2 {
		pairs[list.text(j)] = list.text(j + 1)
	}
	return pairs
}

func (r reply) unexpected() *Error {
	return unavailable(fmt.Errorf("unexpected answer of a script: %q", r.verdict()))
}

// errNoAnswer is the error of a script whose command has neither an answer nor an error. Every script answers with a list.
var errNoAnswer = errors.New("a command has neither an answer nor an error")

// run calls a script. Where its keys are spoilt, which stops a script before its first write, they are rebuilt and
// the script called once more. Every failure is CodeUnavailable.
func (s *Service) run(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
	answer, err := s.call(ctx, sc, keys, args)
	if spoilt(err) {
		if err = s.rebuild(ctx, sc, keys); err == nil {
			answer, err = s.call(ctx, sc, keys, args)
		}
	}
	if err != nil {
		return nil, unavailable(fmt.Errorf("%s: %w", sc.name, err))
	}
	if sc.tells {
		answer = s.tell(roomOfKeys(keys), answer)
	}
	return answer, nil
}

// spoilt tells whether a script has met what none of ours has written: a key of another type, or a room whose indices disagree.
func spoilt(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "WRONGTYPE") || strings.Contains(err.Error(), "TORN"))
}

// tell passes on what lua/tell.lua has put at the end of an answer, and gives the rest of it.
func (s *Service) tell(room string, answer reply) reply {
	told := answer.list(max(len(answer)-1, 0))
	if len(told) == 0 {
		return answer
	}
	before, after := told.int(0), told.int(1)
	came := after - before
	var changes []Change
	for i := 2; i+6 < len(told); i += 7 {
		c := Change{Type: EventType(told.text(i)), Rev: told.int(i + 1), TS: told.int(i + 2), Conn: told.text(i + 4), User: told.text(i + 5), Reason: Reason(told.text(i + 6))}
		if c.Type == EventLeave && told.int(i+3) == 0 {
			c.UserChanged = true
			came++
		}
		changes = append(changes, c)
	}
	for i := range changes {
		c := &changes[i]
		if c.Type == EventJoin { // of which a script writes one at most
			c.UserChanged = came > 0
			c.RoomChanged = c.UserChanged && before == 0
		}
	}
	if last := &changes[len(changes)-1]; after == 0 {
		last.RoomChanged = last.UserChanged
	}
	s.options.OnChange(room, changes)
	return answer[:len(answer)-1]
}

// call calls a script, and has the call counted.
func (s *Service) call(ctx context.Context, sc *script, keys []string, args []any) (reply, error) {
	began := time.Now()
	answer, err := s.send(ctx, sc, keys, args)
	s.options.OnCall(sc.name, time.Since(began), err)
	return answer, err
}

// send calls a script in the form that the server takes, and gives the answer to its only call.
func (s *Service) send(ctx context.Context, sc *script, keys []string, args []any) (reply, error) {
	hasFlags := !s.noScriptFlags.Load()
	text := sc.legacy
	if hasFlags {
		text = sc.redis7
	}
	call := append([]any{len(keys), len(args)}, args...)
	answer, err := s.evalSha(ctx, text, keys, call)
	if hasFlags && err != nil && strings.Contains(err.Error(), "ompil") {
		s.noScriptFlags.Store(true)
		return s.send(ctx, sc, keys, args)
	}
	if err != nil {
		return nil, err
	}
	list, _ := answer.([]any)
	if len(list) != 1 {
		return nil, errNoAnswer
	}
	if number := reply(list).text(0); number != "" {
		return reply{number}, nil
	}
	own := reply(list).list(0)
	if own.verdict() == "error" {
		return nil, scriptError(own.text(1))
	}
	return own, nil
}

// scriptError is what stopped a script, as lua/answers.lua tells it.
type scriptError string

func (e scriptError) Error() string { return string(e) }

// RedisError marks it as an answer of Redis.
func (scriptError) RedisError() {}
