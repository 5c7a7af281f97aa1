package main

import (
	"cmp"
	"context"
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Options of a Service. The zero value of a field means its default.
type Options struct {
	TTL            time.Duration // heartbeat window; default 30 s
	Lookback       time.Duration // silence after which a connection is culled; default 2 × TTL
	ReaperInterval time.Duration // how often the reaper looks; default 3 s, negative = this service runs no reaper
	NodeLease      time.Duration // silence after which a node counts as lost and its connections are removed; default 10 s
	Limits         Limits        // default 200 bytes for an id, 16384 bytes and 64 levels for a state
	MaxMembers     int           // connections in a room; default no limit
	Grace          time.Duration // how long a broken connection is held back, at most Lookback; default not at all
	Sharded        bool          // publish to sharded Pub/Sub (Redis 7 Cluster)
	Logger         *slog.Logger  // default slog.Default()

	// What the service does can be counted. These are called while it works, so they must not wait; nil = nobody counts.
	OnCall  func(script string, took time.Duration, err error) // a script was called
	OnLeave func(reason Reason, members int)                   // it removed so many members

	// OnChange is told of joins and leaves that this service has written, and by one service each; nil = nobody is, and nothing
	// is spent on it. It must not wait either.
	OnChange func(room string, changes []Change)
}

// Service keeps who is in which room in Redis. It is safe for concurrent use.
//
// Every operation is one script: it checks first, then changes all indices of the room, raises the room's revision and
// publishes the event, or does nothing. Failures are *Error. One with CodeUnavailable leaves open whether it
// happened; repeating is safe.
type Service struct {
	rdb      redis.UniversalClient
	options  Options
	scripts  scripts
	publish  string // the command that publishes a room's events
	announce string // and that which tells of users
	unflags  atomic.Bool
	loads    scriptLoads
	left     departed
	reaper   atomic.Pointer[reaper] // the one that runs, nil = none

	stop context.CancelFunc
	ctx  context.Context // ends with Stop
	work sync.WaitGroup  // subscriptions and reaper
}

// NewService starts a service on a client. The caller ends it with Stop and closes the client afterwards.
func NewService(rdb redis.UniversalClient, o Options) *Service {
	return newService(rdb, o, loadScripts(o.OnChange != nil))
}

func newService(rdb redis.UniversalClient, o Options, loaded scripts) *Service {
	o.TTL = cmp.Or(o.TTL, 30*time.Second)
	o.Lookback = cmp.Or(o.Lookback, 2*o.TTL)
	o.ReaperInterval = cmp.Or(o.ReaperInterval, 3*time.Second)
	o.NodeLease = cmp.Or(o.NodeLease, 10*time.Second)
	o.Grace = min(o.Grace, o.Lookback)
	o.Limits.IDBytes = cmp.Or(o.Limits.IDBytes, 200)
	o.Limits.StateBytes = cmp.Or(o.Limits.StateBytes, 16384)
	o.Limits.StateDepth = cmp.Or(o.Limits.StateDepth, 64)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		rdb = onceCluster{cluster}
	}
	if o.OnCall == nil {
		o.OnCall = func(string, time.Duration, error) {}
	}
	if o.OnLeave == nil {
		o.OnLeave = func(Reason, int) {}
	}
	if lines, ok := rdb.(interface{ merge(digests ...string) }); ok {
		lines.merge(loaded.light()...)
	}
	s := &Service{rdb: rdb, options: o, scripts: loaded, publish: "PUBLISH", announce: "PUBLISH"}
	if o.Sharded {
		s.publish, s.announce = "SPUBLISH", "SPUBLISH"
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if o.ReaperInterval > 0 {
		newReaper(s).start()
	}
	return s
}

// Stop ends the subscriptions and the reaper and waits for them. Members stay until they leave or their time is over.
func (s *Service) Stop() {
	s.stop()
	s.work.Wait()
}

// Joined is the result of a join.
type Joined struct {
	Epoch    int64
	Snapshot Snapshot // holds the connection itself
}

// Join brings a connection into a room, or replaces its incarnation there: its epoch grows, its state becomes the given
// one. state is a JSON object; nil is {}. No node owns the connection: any process may send its heartbeats, and without
// them it is removed, but not for the loss of a process.
func (s *Service) Join(ctx context.Context, room, user, conn string, state json.RawMessage) (Joined, error) {
	state, err := s.checkJoin(room, user, conn, state)
	if err != nil {
		return Joined{}, err
	}
	if err := s.indexRoom(ctx, room, s.options.Lookback); err != nil {
		return Joined{}, err
	}
	m, err := s.join(ctx, Member{Room: room, User: user, Conn: conn, State: state}, 0)
	if err != nil {
		return Joined{}, err
	}
	// The join did not know the incarnation before it, which may be about to be taken out of the index.
	if err := s.indexUser(ctx, m, m.Epoch); err != nil {
		return Joined{}, err
	}
	snapshot, err := s.Snapshot(ctx, room)
	return Joined{Epoch: m.Epoch, Snapshot: snapshot}, err
}

func (s *Service) checkJoin(room, user, conn string, state json.RawMessage) (json.RawMessage, error) {
	if err := s.checkPlace(room, conn); err != nil {
		return nil, err
	}
	if err := checkID("userId", user, s.options.Limits.IDBytes); err != nil {
		return nil, err
	}
	if state == nil {
		return json.RawMessage("{}"), nil
	}
	compact, err := s.options.Limits.checkState("state", state)
	if err != nil {
		return nil, err
	}
	return compact, nil
}

func (s *Service) checkPlace(room, conn string) error {
	if err := checkID("roomId", room, s.options.Limits.IDBytes); err != nil {
		return err
	}
	if err := checkConnID(conn); err != nil {
		return invalid(err.Error())
	}
	return nil
}

// Heartbeat refreshes a connection and merges patch into its state; a nil patch changes nothing. It works from any
// process. epoch is the one that the caller knows, 0 if none: another current one is CodeStaleEpoch, and nothing is
// written. A connection that is not in the room is CodeNotJoined.
func (s *Service) Heartbeat(ctx context.Context, room, conn string, patch json.RawMessage, epoch int64) (changed bool, current int64, err error) {
	if err := s.checkPlace(room, conn); err != nil {
		return false, 0, err
	}
	if patch != nil {
		compact, err := s.options.Limits.checkState("patchState", patch)
		if err != nil {
			return false, 0, err
		}
		patch = compact
	}
	m, err := s.find(ctx, room, conn)
	if err != nil {
		return false, 0, err
	}
	if m.held() {
		return false, 0, notJoined()
	}
	if epoch != 0 && epoch != m.Epoch {
		return false, 0, staleEpoch(m.Epoch)
	}
	m.guest = true
	changed, _, err = s.heartbeat(ctx, &m, patch, 0)
	return changed, m.Epoch, err
}

// Leave removes a connection from a room. It works from any process. Leaving a room that one is not in is no error.
func (s *Service) Leave(ctx context.Context, room, conn string) error {
	if err := s.checkPlace(room, conn); err != nil {
		return err
	}
	_, _, err := s.remove(ctx, room, removal{reason: ReasonLeft}, []incarnation{{conn: conn}})
	return err
}

// Snapshot is a room at one moment. Of a room with more than 500 members it may hold later changes than Rev: an event
// counts only where its revision is above that of the entry.
type Snapshot struct {
	Rev     int64   // the room's revision
	TS      int64   // Redis' clock in milliseconds
	Entries []Entry // by connection id
	Users   int     // different users among them

	loss  lossSigns
	until int64 // revision at the end, above Rev if a large room changed while it was read
}

// Snapshot reads a room. An empty one has no entries.
func (s *Service) Snapshot(ctx context.Context, room string) (Snapshot, error) {
	if err := checkID("roomId", room, s.options.Limits.IDBytes); err != nil {
		return Snapshot{}, err
	}
	v, err := s.read(ctx, room)
	if err == nil && v.Rev == 0 {
		v.Rev = v.TS - 1 // without its counter the room goes on at the clock
	}
	return v, err
}

// Member is a connection in a room as its owner knows it.
type Member struct {
	Room, User, Conn string
	Node             string // its owner, A–Z a–z 0–9 _ - only; "" = none
	Epoch            int64
	Rev              int64 // the room's revision when this connection last changed
	State            json.RawMessage

	kickedAt int64 // not above the revision at which an operator removed it, 0 = that is not known

	guest bool      // known from Redis only: once it has left, it is not put back
	noted time.Time // when its user's index was last told of it, zero = perhaps never
	late  bool      // putting it back had an unknown outcome: it may still be done
}

// heldNode is the node of a connection that is held back: it belongs to none.
const heldNode = "-"

func (m Member) held() bool { return m.Node == heldNode }

// join writes m as a new incarnation in place of the one with m.Epoch (0 = none) and returns it as it is then. What was held
// back of its user leaves with it. The room's index entry must be there. floor is the highest revision of the room that the
// caller knows.
func (s *Service) join(ctx context.Context, m Member, floor int64) (Member, error) {
	var held []any // connections of the user, as far as they are known to be held back
	m.noted = s.left.recall(m)
	for ctx.Err() == nil {
		if err := s.note(ctx, &m, max(m.Epoch, floor)+1); err != nil {
			return m, err
		}
		answer, err := s.tryJoin(ctx, m, held, floor)
		if err != nil {
			return m, err
		}
		switch answer.verdict() {
		case "ok":
			m.Epoch = answer.int(1)
			m.Rev = m.Epoch
			if m.late { // whoever removes the one before may take this one out of the index
				m.noted = time.Time{}
				_ = s.note(ctx, &m, m.Epoch) // else with the next heartbeat
			}
			if replaced := answer.text(2); replaced != "" {
				s.unindexLater([]Member{{Room: m.Room, User: replaced, Conn: m.Conn, Epoch: answer.int(3)}}, time.Time{})
			}
			s.options.OnLeave(ReasonDisconnected, (len(answer)-4)/2)
			for i := 4; i+1 < len(answer); i += 2 {
				s.unindexUser(ctx, Member{Room: m.Room, User: m.User, Conn: answer.text(i), Epoch: answer.int(i + 1)})
			}
			return m, nil
		case "epoch":
			m.Epoch, m.noted = answer.int(1), time.Time{} // who removed another one takes it out of the index
		case "held":
			held = answer[1:]
		case "full":
			return m, &Error{Code: CodeRoomFull, Message: fmt.Sprintf("the room has its %d connections", s.options.MaxMembers)}
		default:
			return m, answer.strange()
		}
	}
	return m, unavailable(ctx.Err())
}

func (s *Service) tryJoin(ctx context.Context, m Member, held []any, floor int64) (reply, error) {
	replaces := ""
	if m.Epoch != 0 {
		replaces = strconv.FormatInt(m.Epoch, 10)
	}
	conns := []string{m.Conn}
	for i := range held {
		conns = append(conns, reply(held).text(i))
	}
	args := s.telling(m.Room, floor, m.Conn, m.User, literal(m.User), []byte(m.State), replaces, m.Node,
		s.options.TTL.Milliseconds(), s.options.MaxMembers, m.Room)
	return s.run(ctx, s.scripts.join, s.keysWithHeld(m.Room, conns...), append(args, held...)...)
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

// refresh finds a connection missing where a key is of another type: putting it back mends all keys of the room.
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
		s.telling(m.Room, floor, m.Conn, m.Epoch, m.Rev, s.options.TTL.Milliseconds(), []byte(state))...)
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
		return answer.strange()
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
	m.noted = time.Time{}
	if err := s.note(ctx, m, m.Epoch); err != nil {
		return err
	}
	answer, err := s.run(ctx, s.scripts.restore, fencedKeys(m.Room, m.Conn),
		s.telling(m.Room, floor, m.Conn, m.User, literal(m.User), []byte(m.State), m.Epoch, m.Rev, m.Node,
			s.options.TTL.Milliseconds(), (age+time.Since(began)).Milliseconds(), m.Room, m.guest)...)
	switch {
	case err != nil:
		m.late = true
		return err
	case answer.verdict() == "ok":
		if m.Rev != answer.int(1) { // whoever removed it may yet take it out of the index: the next heartbeat notes it again
			m.noted = time.Time{}
		}
		m.Rev = answer.int(1)
	case answer.verdict() == "rev":
		m.Rev, m.State = answer.int(1), json.RawMessage(answer.text(2))
	case answer.verdict() == "epoch":
		return staleEpoch(answer.int(1))
	case answer.verdict() == "missing":
		return notJoined()
	case answer.verdict() == "kicked":
		m.kickedAt = answer.int(1)
		return notJoined()
	default:
		return answer.strange()
	}
	return nil
}

// incarnation is a connection up to an epoch, 0 = any.
type incarnation struct {
	conn  string
	epoch int64
}

// removal says how connections leave.
type removal struct {
	reason   Reason
	silent   time.Duration // only who was not heard of for so long; 0 = whatever its age
	notAfter int64         // milliseconds, Redis' clock, after which nothing is done; 0 = no such time
	floor    int64         // highest revision of the room that the caller knows
	noted    time.Time     // of the member, if its owner removes it
	own      bool          // its owner removes it, and does not know when the index was told of it
	node     string        // only connections of this node; "" = of any
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
	args := s.telling(room, how.floor, string(how.reason), silent, notAfter, how.node)
	conns := make([]string, 0, len(list))
	for _, i := range list {
		epoch := ""
		if i.epoch != 0 {
			epoch = strconv.FormatInt(i.epoch, 10)
		}
		conns = append(conns, i.conn)
		args = append(args, i.conn, epoch)
	}
	answer, err := s.run(ctx, s.scripts.remove, s.keysWithHeld(room, conns...), args...)
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
	case how.own || !how.noted.IsZero():
		s.unindexLater(gone, how.noted)
	case len(gone) == 1:
		s.unindexUser(ctx, gone[0])
	default:
		s.unindexAll(placesOf(gone))
	}
	return answer.int(0), gone, nil
}

// telling are the arguments of a script that publishes: what it needs for that, the highest revision of the room that the
// caller knows, and its own.
func (s *Service) telling(room string, known int64, own ...any) []any {
	args := make([]any, 0, 4+len(own)+2)
	args = append(args, keysOf(room).events(), s.publish, literal(room), known)
	return append(args, own...)
}

// Kick removes a connection from a room for good: it leaves as kicked, and only a new join brings it back. It is
// CodeNotJoined if the connection is not there.
func (s *Service) Kick(ctx context.Context, room, conn string) error {
	if err := s.checkPlace(room, conn); err != nil {
		return err
	}
	return s.kick(ctx, room, conn, "", 0)
}

// kick is Kick of an incarnation that is not newer than this epoch; "" = of any. floor is the highest revision of the room
// that the caller knows.
func (s *Service) kick(ctx context.Context, room, conn, newest string, floor int64) error {
	fence := max(2*s.options.Lookback, time.Hour)
	answer, err := s.run(ctx, s.scripts.kick, fencedKeys(room, conn), s.telling(room, floor, conn, fence.Milliseconds(), newest)...)
	switch {
	case err != nil:
		return err
	case answer.verdict() == "ok":
		s.options.OnLeave(ReasonKicked, 1)
		s.unindexUser(ctx, Member{Room: room, Conn: conn, User: answer.text(1), Epoch: answer.int(2)})
		return nil
	case answer.verdict() == "missing":
		return notJoined()
	}
	return answer.strange()
}

// hold holds m back, whose connection broke, up to its epoch, or whatever that is if it is 0. It stays in the room for this
// time, unless its user joins the room before. silent says that the connection was silent before its end. If its user then
// has another connection in the room, hold writes nothing and reports back: the user may have joined long before the
// server noticed the end, so a hold would only keep the old connection in the room for longer.
func (s *Service) hold(ctx context.Context, m Member, within time.Duration, silent bool) (back bool, err error) {
	if err := s.indexRoom(ctx, m.Room, within); err != nil {
		return false, err
	}
	newest := ""
	if m.Epoch != 0 {
		newest = strconv.FormatInt(m.Epoch, 10)
	}
	answer, err := s.run(ctx, s.scripts.hold, s.keysWithHeld(m.Room, m.Conn), m.Conn, newest,
		within.Milliseconds(), s.options.Lookback.Milliseconds(), s.options.TTL.Milliseconds(), m.Room, silent)
	return answer.verdict() == "back", err
}

// keysWithHeld are the KEYS of a script that knows of held-back connections where there are any.
func (s *Service) keysWithHeld(room string, conns ...string) []string {
	keys := scriptKeys(room, conns...)
	if s.options.Grace > 0 {
		keys = append(keys, keysOf(room).held())
	}
	return keys
}

// find reads one connection of a room; CodeNotJoined if it is not there.
func (s *Service) find(ctx context.Context, room, conn string) (Member, error) {
	value, err := s.rdb.HGet(ctx, keysOf(room).meta(), conn).Result()
	if err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		return Member{}, unavailable(err)
	}
	m, ok := parseMeta(value)
	if !ok {
		return Member{}, notJoined()
	}
	m.Room, m.Conn = room, conn
	return m, nil
}

// size is the revision of a room's latest change, and how many connections are in it.
func (s *Service) size(ctx context.Context, room string) (rev int64, count int, err error) {
	answer, err := s.run(ctx, s.scripts.count, scriptKeys(room))
	return answer.int(2), int(answer.int(0)), err
}

const (
	// Members that are read in one step, so that Redis is never busy with one room for long.
	readBatch = 500

	// Bound for the answer to one such step.
	readPartWithin = 2 * time.Second

	// What a script reads of a room in one step, when it only looks for something in it: so many bytes of states that are
	// as large as they may be, and so many members at most.
	sweepBytes   = 1 << 20
	sweepMembers = 200
)

// read reads a room. What changes while it is read in parts may be in the result or not: its Rev is that of the beginning,
// its until that of the end.
func (s *Service) read(ctx context.Context, room string) (Snapshot, error) {
	var v Snapshot
	members := map[string]Entry{}
	for cursor := "0"; ; {
		answer, err := s.readPart(ctx, room, cursor, readBatch)
		if err != nil {
			return Snapshot{}, err
		}
		if cursor == "0" {
			v = Snapshot{Rev: answer.int(0), TS: answer.int(1), loss: lossSigns{server: answer.text(5), origin: answer.int(7)}}
		}
		v.until, v.Users = answer.int(0), int(answer.int(2))
		if v.until < v.Rev || isAnother(answer.text(5), v.loss.server) || answer.int(7) != v.loss.origin && answer.int(7) != 0 {
			return Snapshot{}, unavailable(errors.New("data of a room were lost while it was read"))
		}
		v.loss.torn = v.loss.torn || answer.int(8) == 1
		s.takeOver(members, answer.pairs(3), answer.pairs(4))
		if cursor = answer.text(6); cursor == "0" {
			break
		}
	}
	s.mendTorn(ctx, room, v.loss)
	v.Entries = inOrder(members)
	return v, nil
}

// inOrder are members in the order of their connection ids.
func inOrder(members map[string]Entry) []Entry {
	return slices.SortedFunc(maps.Values(members), func(a, b Entry) int { return strings.Compare(a.ConnID, b.ConnID) })
}

func (s *Service) readPart(ctx context.Context, room, cursor string, step int) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, readPartWithin)
	defer cancel()
	return s.run(ctx, s.scripts.read, scriptKeys(room), cursor, step)
}

// lossSigns are what the store tells of a room, by which a later reading knows that data were lost in between.
type lossSigns struct {
	server string // the process of Redis that answered; "" if it does not tell
	origin int64  // the revision with which the room's counter began, or went on after a loss; 0 = over an hour ago, or not known
	torn   bool   // the indices of the room disagree: some of them are lost
}

// lostSince tells whether data were lost between an earlier reading and this one.
func (s lossSigns) lostSince(before lossSigns) bool {
	return isAnother(s.server, before.server) || s.origin != 0 && s.origin != before.origin || s.torn && !before.torn
}

// isAnother tells whether a name is not that of the process of Redis known before. Unknown ones tell nothing.
func isAnother(server, before string) bool {
	return server != "" && before != "" && server != before
}

// takeOver adds a part of a room to what was read before. A connection may come twice.
func (s *Service) takeOver(members map[string]Entry, metas, seen map[string]string) {
	for conn, value := range metas {
		m, ok := parseMeta(value)
		if old, twice := members[conn]; !ok || twice && old.Rev > m.Rev {
			continue
		}
		score, _ := strconv.ParseFloat(seen[conn], 64)
		m.User = strings.Clone(m.User) // else it keeps the whole value in memory
		members[conn] = s.entry(conn, m, int64(score))
	}
}

// lastSeen are the times at which connections of a room were last heard of, milliseconds by Redis' clock; 0 = not there.
func (s *Service) lastSeen(ctx context.Context, room string, conns []string) ([]int64, error) {
	args := make([]any, len(conns))
	for i, conn := range conns {
		args[i] = conn
	}
	answer, err := s.run(ctx, s.scripts.find, scriptKeys(room), args...)
	if err != nil {
		return nil, err
	}
	times := make([]int64, len(conns))
	for i, conn := range conns {
		if m, ok := parseMeta(answer.text(2 * i)); ok {
			times[i] = s.entry(conn, m, int64(answer.float(2*i+1))).LastSeenMs
		}
	}
	return times, nil
}

// entry is a member in a snapshot. lastSeen is that in Redis: of a connection that is held back it says when that ends.
func (s *Service) entry(conn string, m Member, lastSeen int64) Entry {
	if m.held() {
		lastSeen += (s.options.Lookback - s.options.Grace).Milliseconds() // when it broke
	}
	return Entry{ConnID: conn, UserID: m.User, State: s.legible(conn, m.State), LastSeenMs: lastSeen, Epoch: m.Epoch, Rev: m.Rev}
}

// pulse gives a room's revision, and by what a loss of its data is known.
func (s *Service) pulse(ctx context.Context, room string) (rev int64, signs lossSigns, err error) {
	answer, err := s.run(ctx, s.scripts.pulse, scriptKeys(room))
	signs = lossSigns{server: answer.text(1), origin: answer.int(2), torn: answer.int(3) == 1}
	s.mendTorn(ctx, room, signs)
	return answer.int(0), signs, err
}

// takesWrites is why Redis refuses what a join writes, nil if it does not: a room's keys, and those of the nodes. It leaves
// nothing behind.
func (s *Service) takesWrites(ctx context.Context) error {
	for _, keys := range [][]string{probeKeys(probeRoom(0)), leaseProbeKeys()} {
		if _, err := s.call(ctx, s.scripts.probeMore, keys, nil); err != nil {
			return err
		}
	}
	return nil
}

// indexRoom makes sure that a reaper looks at the room before a member of it can be overdue for long.
func (s *Service) indexRoom(ctx context.Context, room string, life time.Duration) error {
	_, err := s.run(ctx, s.scripts.indexRoom, []string{activeRoomsKey}, room, life.Milliseconds())
	return err
}

// note makes sure that the index of its user tells of m, until the next call a lookback later.
func (s *Service) note(ctx context.Context, m *Member, epoch int64) error {
	now := time.Now()
	if now.Sub(m.noted) < s.options.Lookback {
		return nil
	}
	if err := s.indexUser(ctx, *m, epoch); err != nil {
		return err
	}
	m.noted = now
	return nil
}

// indexUser notes where the user is going to be, with an epoch that is not above that of the connection there.
func (s *Service) indexUser(ctx context.Context, m Member, epoch int64) error {
	_, err := s.run(ctx, s.scripts.indexUser, []string{userKey(m.User)},
		userField(m.Room, m.Conn), epoch, 2*s.options.Lookback.Milliseconds(), s.announce)
	return err
}

// unindexUser forgets where a user was.
func (s *Service) unindexUser(ctx context.Context, gone Member) {
	_ = s.unindexPlaces(ctx, gone.User, map[string]departure{userField(gone.Room, gone.Conn): {epoch: gone.Epoch}})
}

// unindexPlaces forgets many at once. The index may hold too much, so a failure is no harm but that who watches the user
// learns late.
func (s *Service) unindexPlaces(ctx context.Context, user string, places map[string]departure) error {
	args := make([]any, 0, 1+2*len(places))
	args = append(args, s.announce)
	for field, d := range places {
		args = append(args, field, d.epoch)
	}
	_, err := s.run(ctx, s.scripts.unindexUser, []string{userKey(user)}, args...)
	if err != nil {
		s.options.Logger.Debug("a user's index keeps connections that left", "error", err)
	}
	return err
}

const (
	// How long the places that members left stay in their users' indices.
	departedPause = 100 * time.Millisecond

	// Indices that are tidied at the same time, and for how long at most.
	departedWorkers = 32
	departedTime    = time.Second

	// Pause before those are tried again that could not be tidied.
	departedAgain = time.Second
)

// departed are places that members left whom their owner removed: nobody puts those back. They are taken out of their
// users' indices a little later, many at once, and not at all if the member comes back before.
type departed struct {
	mu    sync.Mutex
	users map[string]map[string]departure // by user and field
	busy  bool
}

type departure struct {
	epoch int64
	noted time.Time
}

// recall strikes a place to which its member comes back, and tells when the index was told of it. Zero = it is not there.
func (d *departed) recall(m Member) (noted time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	field := userField(m.Room, m.Conn)
	noted = d.users[m.User][field].noted
	if delete(d.users[m.User], field); len(d.users[m.User]) == 0 {
		delete(d.users, m.User)
	}
	return noted
}

// take hands over all places. There are none when it says that nobody is busy with them any more.
func (d *departed) take() (users map[string]map[string]departure, busy bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	users, d.users = d.users, nil
	d.busy = len(users) > 0
	return users, d.busy
}

// unindexLater forgets in a while where users were.
func (s *Service) unindexLater(gone []Member, noted time.Time) {
	s.left.mu.Lock()
	defer s.left.mu.Unlock()
	for _, m := range gone {
		if s.left.users == nil {
			s.left.users = map[string]map[string]departure{}
		}
		if s.left.users[m.User] == nil {
			s.left.users[m.User] = map[string]departure{}
		}
		s.left.users[m.User][userField(m.Room, m.Conn)] = departure{m.Epoch, noted}
	}
	if !s.left.busy && len(gone) > 0 && s.ctx.Err() == nil {
		s.left.busy = true
		s.work.Go(func() { keepRunning(s.ctx, s.options.Logger, "index of users", s.tidy, nil) })
	}
}

// tidy takes out what members left, until there is nothing more. At the end of the service it does so at once.
func (s *Service) tidy() {
	for {
		pause(s.ctx, departedPause)
		users, busy := s.left.take()
		if !busy {
			return
		}
		if failed := s.unindexAll(users); len(failed) > 0 && s.ctx.Err() == nil {
			s.left.putBack(failed)
			pause(s.ctx, departedAgain)
		}
	}
}

// putBack takes places that were perhaps not taken out, unless something newer is known of them. Whoever comes back is noted anew.
func (d *departed) putBack(users map[string]map[string]departure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users == nil {
		d.users = map[string]map[string]departure{}
	}
	for user, places := range users {
		for field, p := range places {
			places[field] = departure{epoch: p.epoch}
		}
		maps.Copy(places, d.users[user])
		d.users[user] = places
	}
}

// placesOf are the places that members left, by user and field.
func placesOf(gone []Member) map[string]map[string]departure {
	users := map[string]map[string]departure{}
	for _, m := range gone {
		if users[m.User] == nil {
			users[m.User] = map[string]departure{}
		}
		users[m.User][userField(m.Room, m.Conn)] = departure{epoch: m.Epoch}
	}
	return users
}

// unindexAll gives those back that it could not take out. After a failure it tries no further.
func (s *Service) unindexAll(users map[string]map[string]departure) (failed map[string]map[string]departure) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), departedTime)
	defer cancel()
	var work sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, departedWorkers)
	for user, places := range users {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			done := false
			panics(s.options.Logger, "index of users", func() { done = ctx.Err() == nil && s.unindexPlaces(ctx, user, places) == nil })
			if done {
				return
			}
			cancel()
			mu.Lock()
			defer mu.Unlock()
			if failed == nil {
				failed = map[string]map[string]departure{}
			}
			failed[user] = places
		})
	}
	work.Wait()
	return failed
}

func staleEpoch(current int64) *Error {
	return &Error{Code: CodeStaleEpoch, Message: "epoch is not the connection's current one", Epoch: current}
}

func notJoined() *Error {
	return &Error{Code: CodeNotJoined, Message: "this connection is not in the room"}
}

func unavailable(cause error) *Error {
	return &Error{Code: CodeUnavailable, Message: "the presence store did not answer in time, try again", Cause: cause}
}

// asError is the *Error that err is or wraps. Any other error is the cause of CodeUnavailable.
func asError(err error) *Error {
	var refused *Error
	if errors.As(err, &refused) {
		return refused
	}
	return unavailable(err)
}

// literal is text as JSON, with nothing escaped but quote and backslash: lua/room.lua undoes that. Ids hold no control characters.
func literal(text string) string {
	return string(appendString(make([]byte, 0, len(text)+2), text))
}

// parseMeta reads a value of conn_meta, written by lua/room.lua. Room and Conn stay empty.
func parseMeta(value string) (Member, bool) {
	c := cutter{rest: value}
	var m Member
	c.after(`{"epoch":`)
	m.Epoch = c.number()
	c.after(`,"rev":`)
	m.Rev = c.number()
	c.after(`,"node":"`)
	m.Node = c.until(`","userLen":`)
	c.number()
	c.after(`,"userId":`)
	m.User = c.literal()
	c.after(`,"state":`)
	m.State = json.RawMessage(c.until("}"))
	return m, !c.failed && c.rest == ""
}

// cutter takes apart what the scripts write in a fixed order. After the first part that is not there it has failed.
type cutter struct {
	rest   string
	failed bool
}

func (c *cutter) after(prefix string) {
	rest, ok := strings.CutPrefix(c.rest, prefix)
	c.rest, c.failed = rest, c.failed || !ok
}

// has skips a part that may be absent.
func (c *cutter) has(prefix string) bool {
	rest, ok := strings.CutPrefix(c.rest, prefix)
	c.rest = rest
	return ok
}

func (c *cutter) number() int64 {
	end := 0
	for end < len(c.rest) && '0' <= c.rest[end] && c.rest[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(c.rest[:end], 10, 64)
	c.rest, c.failed = c.rest[end:], c.failed || err != nil
	return n
}

// until gives the text before a mark and skips the mark. The mark "}" stands for the last byte.
func (c *cutter) until(mark string) string {
	at := strings.Index(c.rest, mark)
	if mark == "}" {
		at = strings.LastIndexByte(c.rest, '}')
	}
	if at < 0 {
		c.failed = true
		return ""
	}
	text := c.rest[:at]
	c.rest = c.rest[at+len(mark):]
	return text
}

// literal gives the text behind a literal that func literal made.
func (c *cutter) literal() string {
	end := 1
	for end < len(c.rest) && c.rest[end] != '"' {
		if c.rest[end] == '\\' {
			end++
		}
		end++
	}
	if end >= len(c.rest) || c.rest[0] != '"' {
		c.failed = true
		return ""
	}
	text := c.rest[1:end]
	c.rest = c.rest[end+1:]
	if strings.IndexByte(text, '\\') < 0 {
		return text
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(text)
}

//go:embed lua/*.lua
var luaFiles embed.FS

// script is one Lua script in two forms: with the flags that Redis 7 checks, and without for older servers.
type script struct {
	name           string
	index          string // the types of the outer indices that it works on; "" = it works on a room
	holds          bool   // its KEYS are keysWithHeld
	tells          bool   // its answer may end with what lua/tell.lua adds
	flagged, plain scriptText
}

type scriptText struct {
	source, sha string
}

type scripts struct {
	join, heartbeat, patch, restore, remove, hold, overdue, mend          *script
	read, pulse, places                                                   *script
	kick, count, find                                                     *script
	indexRoom, claimRooms, settleRooms, indexUser, unindexUser, mendIndex *script
	owned, renewLease, noteRooms, claimNodes, forgetNode, probe           *script
	probeMore                                                             *script
}

// scriptKind is the first line of a script: with flags, and for servers before Redis 7.
type scriptKind struct {
	flags, plain string
}

// loadScripts loads every script. With tell, those that write joins and leaves return what they have written.
//
// What only reads, refreshes or removes must work on a Redis that has no memory left: else the reaper culls members there
// whose heartbeats are refused. Redis 7 has a flag for that. Servers before refuse the first write of a script if it is one
// that may take memory, and none after it, so that one goes first that takes none and changes nothing: conn_meta never has
// a TTL, and nothing in an index is named "".
func loadScripts(tell bool) scripts {
	loadTelling := loadScript
	if tell {
		loadTelling = loadTellingScript
	}
	writes := scriptKind{"#!lua\n", ""}
	alwaysWorks := scriptKind{"#!lua flags=allow-oom\n", "redis.call('PERSIST', KEYS[1])\n"}
	indexWorks := scriptKind{"#!lua flags=allow-oom\n", "redis.call('ZREM', KEYS[1], '')\n"}
	deletes := scriptKind{"#!lua flags=allow-oom\n", ""}
	probes := scriptKind{"#!lua flags=allow-oom\n", "redis.call('PERSIST', KEYS[2])\n"} // as alwaysWorks, on a key that is not there
	return scripts{
		join:        loadTelling(writes, "", "base", "room", "held", "join"),
		heartbeat:   loadScript(alwaysWorks, "", "base", "heartbeat"),
		patch:       loadScript(writes, "", "base", "room", "patch"),
		restore:     loadTelling(writes, "", "base", "room", "restore"),
		remove:      loadTelling(alwaysWorks, "", "base", "room", "held", "remove"),
		hold:        loadScript(alwaysWorks, "", "base", "room", "held", "hold"),
		read:        loadScript(alwaysWorks, "", "base", "room", "server", "loss", "read"),
		places:      loadScript(deletes, "hash", "base", "server", "places"),
		pulse:       loadScript(alwaysWorks, "", "base", "room", "server", "loss", "pulse"),
		overdue:     loadScript(alwaysWorks, "", "base", "room", "overdue"),
		kick:        loadTelling(alwaysWorks, "", "base", "room", "kick"),
		count:       loadScript(alwaysWorks, "", "base", "room", "count"),
		find:        loadScript(alwaysWorks, "", "base", "room", "find"),
		owned:       loadScript(alwaysWorks, "", "base", "room", "owned"),
		mend:        loadScript(alwaysWorks, "", "base", "room", "held", "loss", "mend"),
		indexRoom:   loadScript(writes, "zset", "base", "index_room"),
		claimRooms:  loadScript(indexWorks, "zset", "base", "claim_rooms"),
		settleRooms: loadScript(indexWorks, "zset", "settle_rooms"),
		indexUser:   loadScript(writes, "hash", "index_user"),
		unindexUser: loadScript(deletes, "hash", "unindex_user"),
		mendIndex:   loadScript(deletes, "", "base", "mend_index"),
		renewLease:  loadScript(indexWorks, "zset hash", "base", "renew_lease"),
		noteRooms:   loadScript(writes, "zset hash", "note_rooms"),
		claimNodes:  loadScript(indexWorks, "zset", "base", "claim_nodes"),
		forgetNode:  loadScript(deletes, "zset hash", "forget_node"),
		probe:       loadScript(probes, "", "server", "probe"),
		probeMore:   loadScript(writes, "", "server", "probe"), // as one that takes memory
	}
}

// light gives the digests of the scripts whose work for one call is small whatever the room holds.
func (s scripts) light() (digests []string) {
	for _, sc := range []*script{s.join, s.heartbeat, s.patch, s.restore, s.remove, s.hold, s.indexRoom, s.indexUser, s.unindexUser, s.noteRooms, s.places, s.find} {
		digests = append(digests, sc.flagged.sha, sc.plain.sha)
	}
	return digests
}

// loadScript joins files of lua/. They are part of the program, so a missing one is a mistake in this file.
func loadScript(kind scriptKind, index string, files ...string) *script {
	libraries, body := luaParts(files)
	return newScript(kind, index, files, libraries+"local function run()\n"+body+"end\n"+luaText("answers"))
}

// loadTellingScript puts lua/tell.lua around the last file.
func loadTellingScript(kind scriptKind, index string, files ...string) *script {
	libraries, body := luaParts(files)
	sc := newScript(kind, index, files, libraries+luaText("tell")+"local function change()\n"+body+"end\n"+
		"local function run() return with_told(change) end\n"+luaText("answers"))
	sc.tells = true
	return sc
}

// luaParts are what stands before a script's function, and what the function does.
func luaParts(files []string) (libraries, body string) {
	last := len(files) - 1
	return luaText(append([]string{"calls"}, files[:last]...)...), luaText(files[last])
}

func luaText(files ...string) string {
	var source strings.Builder
	for _, name := range files {
		file, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			panic(err)
		}
		source.Write(file)
	}
	return source.String()
}

func newScript(kind scriptKind, index string, files []string, source string) *script {
	return &script{
		name:    files[len(files)-1],
		index:   index,
		holds:   slices.Contains(files, "held"),
		flagged: newScriptText(kind.flags + source),
		plain:   newScriptText(kind.plain + source),
	}
}

func newScriptText(source string) scriptText {
	sum := sha1.Sum([]byte(source))
	return scriptText{source: source, sha: hex.EncodeToString(sum[:])}
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

func (r reply) strange() *Error {
	return unavailable(fmt.Errorf("unexpected answer of a script: %q", r.verdict()))
}

// errNoAnswer is the error of a script whose command has neither an answer nor an error. Every script answers with a list.
var errNoAnswer = errors.New("a command has neither an answer nor an error")

// run calls a script. Where its keys are spoilt, which stops a script before its first write, they are mended and
// the script called once more. Every failure is CodeUnavailable.
func (s *Service) run(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
	answer, err := s.call(ctx, sc, keys, args)
	if spoilt(err) {
		if err = s.mend(ctx, sc, keys); err == nil {
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

// Change is a join or a leave of a connection.
type Change struct {
	Type        EventType
	User, Conn  string
	Rev, TS     int64 // the room's revision after it, and Redis' clock in milliseconds
	Reason      Reason
	UserChanged bool // the user came with it, or went
	RoomChanged bool // the room was empty before, or is now
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

func (s *Service) mend(ctx context.Context, sc *script, keys []string) (err error) {
	if sc.index != "" {
		var kinds []any
		for _, kind := range strings.Fields(sc.index) {
			kinds = append(kinds, kind)
		}
		_, err = s.call(ctx, s.scripts.mendIndex, keys, kinds)
		return err
	}
	return s.mendRoom(ctx, sc, keys)
}

// mendRoom mends a room part by part. Whoever else finds the room unmended meanwhile goes on where this one is.
func (s *Service) mendRoom(ctx context.Context, sc *script, keys []string) error {
	keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return strings.HasPrefix(key, kickPrefix) })
	grace := s.options.Grace > 0
	if grace && !sc.holds {
		keys = append(keys, keysOf(roomOfKeys(keys)).held())
	}
	for ctx.Err() == nil {
		answer, err := s.call(ctx, s.scripts.mend, keys, []any{grace, s.partOfRoom()})
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

// call calls a script, and has the call counted.
func (s *Service) call(ctx context.Context, sc *script, keys []string, args []any) (reply, error) {
	began := time.Now()
	answer, err := s.send(ctx, sc, keys, args)
	s.options.OnCall(sc.name, time.Since(began), err)
	return answer, err
}

// send calls a script in the form that the server takes, and gives the answer to its only call.
func (s *Service) send(ctx context.Context, sc *script, keys []string, args []any) (reply, error) {
	flagged := !s.unflags.Load()
	text := sc.plain
	if flagged {
		text = sc.flagged
	}
	call := append([]any{len(keys), len(args)}, args...)
	answer, err := s.evalSha(ctx, text, keys, call)
	if flagged && err != nil && strings.Contains(err.Error(), "ompil") {
		s.unflags.Store(true)
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
