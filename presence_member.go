package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Member is a connection in a room as its owner knows it.
type Member struct {
	Room, User, Conn string
	Device           string // "" = none; a user has one member with a device in a room
	Node             string // its owner, A–Z a–z 0–9 _ - only; "" = none
	Epoch            int64
	Rev              int64 // the room's revision when this connection last changed
	State            json.RawMessage

	kickRev    int64  // not above the revision at which it was removed for good, 0 = that is not known
	kickReason Reason // why; "" = that is not known
	kickEnds   bool   // its connection is to end for that

	noRestore       bool      // known from Redis only: once it has left, it is not put back
	indexedAt       time.Time // when its user's index was last told of it, zero = perhaps never
	restoreInFlight bool      // putting it back had an unknown outcome: it may still be done
}

// join writes m as a new incarnation in place of the one with m.Epoch (0 = none) and returns it as it is then. Its user's other
// member with its device, and what was held back of its user, leave with it. The room's index entry must be there. floor is the highest revision of the room that the
// caller knows.
func (s *Service) join(ctx context.Context, m Member, floor int64) (Member, error) {
	var others []string // connections of the user, as far as they are known to leave
	if m.indexedAt.IsZero() {
		m.indexedAt = s.stale.cancel(m)
	}
	for ctx.Err() == nil {
		if err := s.indexIfDue(ctx, &m, max(m.Epoch, floor)+1); err != nil {
			return m, err
		}
		answer, err := s.tryJoin(ctx, m, others, floor)
		if err != nil {
			return m, err
		}
		switch answer.verdict() {
		case "ok":
			m.Epoch = answer.int(1)
			m.Rev = m.Epoch
			if m.restoreInFlight { // whoever removes the one before may take this one out of the index
				m.indexedAt = time.Time{}
				_ = s.indexIfDue(ctx, &m, m.Epoch) // else with the next heartbeat
			}
			if replaced := answer.text(2); replaced != "" {
				s.unindexLater([]Member{{Room: m.Room, User: replaced, Conn: m.Conn, Epoch: answer.int(3)}}, time.Time{})
			}
			s.leftWith(ctx, m, answer[4:])
			return m, nil
		case "epoch":
			m.Epoch, m.indexedAt = answer.int(1), time.Time{} // who removed another one takes it out of the index
		case "others":
			others = answer.texts(1)
		case "full":
			return m, &Error{Code: CodeRoomFull, Message: fmt.Sprintf("the room has its %d connections", s.options.MaxMembers)}
		default:
			return m, answer.unexpected()
		}
	}
	return m, unavailable(ctx.Err())
}

// leftWith is told who left with the join of m: connection, epoch and reason of each.
func (s *Service) leftWith(ctx context.Context, m Member, list reply) {
	var gone []Member
	for i := 0; i+2 < len(list); i += 3 {
		gone = append(gone, Member{Room: m.Room, User: m.User, Conn: list.text(i), Epoch: list.int(i + 1)})
		s.options.OnLeave(Reason(list.text(i+2)), 1)
	}
	s.unindexNow(ctx, gone)
}

// deviceArg is a device as the scripts take it; "" = none.
func deviceArg(device string) string {
	if device == "" {
		return ""
	}
	return literal(device)
}

// fenceLife is how long, in milliseconds, fences and the index of devices last.
func (s *Service) fenceLife() int64 { return max(2*s.options.Lookback, time.Hour).Milliseconds() }

// announceJoin writes into the index of its user where m is going to be, unless that has been done. join does it too.
func (s *Service) announceJoin(ctx context.Context, m *Member, floor int64) error {
	m.indexedAt = s.stale.cancel(*m)
	return s.indexIfDue(ctx, m, max(m.Epoch, floor)+1)
}

func (s *Service) tryJoin(ctx context.Context, m Member, others []string, floor int64) (reply, error) {
	replaces := ""
	if m.Epoch != 0 {
		replaces = strconv.FormatInt(m.Epoch, 10)
	}
	args := s.publishArgs(m.Room, floor, m.Conn, m.User, literal(m.User), []byte(m.State), replaces, m.Node,
		s.options.TTL.Milliseconds(), s.options.MaxMembers, m.Room, deviceArg(m.Device), s.fenceLife())
	for _, conn := range others {
		args = append(args, conn)
	}
	keys := s.addHeld(keysOfOthers(scriptKeys(m.Room, m.Conn), m.Room, others), m.Room)
	return s.run(ctx, s.scripts.join, append(keys, keysOf(m.Room).devices()), args...)
}

// heartbeat refreshes m, merges patch into its state if there is one, and puts m back where the room has lost it. m
// follows what is stored. roomRev is the room's revision after it.
//
// A patch is a compare-and-set on the connection's own revision (G4): a call that was given up and runs late in Redis can
// neither undo a newer one nor be lost by it.
func (s *Service) heartbeat(ctx context.Context, m *Member, patch json.RawMessage, floor int64) (changed bool, roomRev int64, err error) {
	for ctx.Err() == nil {
		var answer reply
		changed, answer, err = s.beat(ctx, m, patch, floor)
		if err != nil {
			return false, 0, err
		}
		if answer.verdict() == "ok" {
			m.Rev = answer.int(1)
			return changed, answer.int(2), nil
		}
		if err := s.reconcile(ctx, m, answer, floor); err != nil {
			return false, 0, err
		}
	}
	return false, 0, unavailable(ctx.Err())
}

// beat tries once.
func (s *Service) beat(ctx context.Context, m *Member, patch json.RawMessage, floor int64) (changed bool, answer reply, err error) {
	if patch != nil {
		return s.patch(ctx, m, patch, floor)
	}
	answer, err = s.refresh(ctx, m)
	return false, answer, err
}

// refresh finds a connection missing where a key is of another type: restoring it rebuilds all keys of the room.
func (s *Service) refresh(ctx context.Context, m *Member) (reply, error) {
	k := keysOf(m.Room)
	keys := []string{k.lastSeen(), k.revision(), connKey(m.Room, m.Conn)}
	answer, err := s.call(ctx, s.scripts.heartbeat, keys, []any{m.Conn, m.Epoch, m.Rev, s.options.TTL.Milliseconds()})
	switch {
	case spoilt(err):
		return reply{"missing"}, nil
	case err != nil:
		s.refused(ctx, m.Room, err)
		return nil, unavailable(fmt.Errorf("heartbeat: %w", err))
	case len(answer) == 1 && answer.verdict() != "missing": // it is the room's revision
		return reply{"ok", m.Rev, answer[0]}, nil
	}
	return answer, nil
}

func (s *Service) patch(ctx context.Context, m *Member, patch json.RawMessage, floor int64) (changed bool, answer reply, err error) {
	state, changed := mergeState(m.State, patch)
	if err := s.options.Limits.checkCompact("the state after patchState", state); err != nil {
		return false, nil, err
	}
	if !changed {
		answer, err = s.refresh(ctx, m)
		return false, answer, err
	}
	answer, err = s.run(ctx, s.scripts.patch, scriptKeys(m.Room, m.Conn),
		s.publishArgs(m.Room, floor, m.Conn, m.Epoch, m.Rev, s.options.TTL.Milliseconds(), []byte(state))...)
	if isRefusal(err) { // as without memory, which a heartbeat does not need: the member lives
		_, _, _ = s.heartbeat(ctx, m, nil, floor)
	}
	if answer.verdict() == "ok" {
		m.State = state
	}
	return changed, answer, err
}

// reconcile follows an answer that found m otherwise than its owner knows it: what is newer is taken over, what is
// older or missing is replaced by m.
func (s *Service) reconcile(ctx context.Context, m *Member, answer reply, floor int64) error {
	switch verdict := answer.verdict(); {
	case verdict == "missing":
	case verdict == "epoch" && answer.int(1) > m.Epoch:
		return staleEpoch(answer.int(1))
	case verdict == "rev" && answer.int(1) > m.Rev:
		m.Rev, m.State = answer.int(1), json.RawMessage(answer.text(2))
		return nil
	case verdict != "epoch" && verdict != "rev":
		return answer.unexpected()
	}
	return s.restore(ctx, m, 0, floor)
}

// restore puts m back into its room, with its epoch and state, as one that was last heard of so long ago.
func (s *Service) restore(ctx context.Context, m *Member, age time.Duration, floor int64) error {
	err := s.indexRoom(ctx, m.Room, s.options.Lookback-age)
	if err == nil {
		err = s.putBack(ctx, m, age, floor)
	}
	s.refused(ctx, m.Room, err)
	return err
}

// refused tells the reaper when Redis has refused to refresh a member: who is silent then may live.
func (s *Service) refused(ctx context.Context, room string, err error) {
	if r := s.reaper.Load(); r != nil {
		r.refused(ctx, room, err)
	}
}

// putBack is restore for a room whose index entry is there.
func (s *Service) putBack(ctx context.Context, m *Member, age time.Duration, floor int64) error {
	began := time.Now()
	m.indexedAt = time.Time{}
	if err := s.indexIfDue(ctx, m, m.Epoch); err != nil {
		return err
	}
	answer, err := s.tryPutBack(ctx, m, age+time.Since(began), nil, floor)
	if answer.verdict() == "others" {
		answer, err = s.tryPutBack(ctx, m, age+time.Since(began), answer.texts(1), floor)
	}
	switch {
	case err != nil:
		m.restoreInFlight = true
		return err
	case answer.verdict() == "ok":
		if m.Rev != answer.int(1) { // whoever removed it may yet take it out of the index: the next heartbeat notes it again
			m.indexedAt = time.Time{}
		}
		m.Rev = answer.int(1)
	case answer.verdict() == "rev":
		m.Rev, m.State = answer.int(1), json.RawMessage(answer.text(2))
	case answer.verdict() == "epoch":
		return staleEpoch(answer.int(1))
	case answer.verdict() == "missing":
		return notJoined()
	case answer.verdict() == "kicked":
		m.kickRev, m.kickReason, m.kickEnds = answer.int(1), Reason(answer.text(2)), answer.text(3) == "end"
		return notJoined()
	default:
		return answer.unexpected()
	}
	return nil
}

// tryPutBack calls the script. others are connections that are known to leave with it.
func (s *Service) tryPutBack(ctx context.Context, m *Member, age time.Duration, others []string, floor int64) (reply, error) {
	args := s.publishArgs(m.Room, floor, m.Conn, m.User, literal(m.User), []byte(m.State), m.Epoch, m.Rev, m.Node,
		s.options.TTL.Milliseconds(), age.Milliseconds(), m.Room, m.noRestore, deviceArg(m.Device), s.fenceLife())
	for _, conn := range others {
		args = append(args, conn)
	}
	return s.run(ctx, s.scripts.restore, fencedKeys(m.Room, m.Conn, others...), args...)
}

// incarnation is a connection up to an epoch, 0 = any.
type incarnation struct {
	conn  string
	epoch int64
}

// removal says how connections leave.
type removal struct {
	reason    Reason
	silent    time.Duration // only who was not heard of for so long; 0 = whatever its age
	notAfter  int64         // milliseconds, Redis' clock, after which nothing is done; 0 = no such time
	floor     int64         // highest revision of the room that the caller knows
	indexedAt time.Time     // of the member, if its owner removes it
	own       bool          // its owner removes it, and does not know when the index was told of it
	node      string        // only connections of this node; "" = of any
}

// remove takes connections out of a room, one leave for each, and returns those that it found there and the room's
// revision after it.
func (s *Service) remove(ctx context.Context, room string, how removal, list []incarnation) (rev int64, gone []Member, err error) {
	silent, notAfter := "", ""
	if how.silent > 0 {
		silent = strconv.FormatInt(how.silent.Milliseconds(), 10)
	}
	if how.notAfter > 0 {
		notAfter = strconv.FormatInt(how.notAfter, 10)
	}
	args := s.publishArgs(room, how.floor, string(how.reason), silent, notAfter, how.node)
	conns := make([]string, 0, len(list))
	for _, i := range list {
		epoch := ""
		if i.epoch != 0 {
			epoch = strconv.FormatInt(i.epoch, 10)
		}
		conns = append(conns, i.conn)
		args = append(args, i.conn, epoch)
	}
	keys := append(s.keysWithHeld(room, conns...), keysOf(room).devices())
	answer, err := s.run(ctx, s.scripts.remove, keys, args...)
	if err != nil || answer.verdict() == "late" {
		return 0, nil, err
	}
	reasons := map[Reason]int{}
	for i := 1; i+3 < len(answer); i += 4 {
		gone = append(gone, Member{Room: room, Conn: answer.text(i), User: answer.text(i + 1), Epoch: answer.int(i + 2)})
		reasons[Reason(answer.text(i+3))]++
	}
	for reason, n := range reasons {
		s.options.OnLeave(reason, n)
	}
	switch {
	case how.own || !how.indexedAt.IsZero():
		s.unindexLater(gone, how.indexedAt)
	default:
		s.unindexNow(ctx, gone)
	}
	return answer.int(0), gone, nil
}
