package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Options of a Service. The zero value of a field means its default.
type Options struct {
	TTL            time.Duration // heartbeat window; default 30 s
	Lookback       time.Duration // silence after which a connection is removed; default 2 × TTL
	ReaperInterval time.Duration // how often the reaper looks; default 3 s, negative = this service runs no reaper
	NodeLease      time.Duration // silence after which a node counts as lost and its connections are removed; default 10 s
	Limits         Limits        // default 200 bytes for an id, 16384 bytes and 64 levels for a state
	MaxMembers     int           // connections in a room; default no limit
	Grace          time.Duration // how long a broken connection is held back, at most Lookback; default not at all
	LastSeen       time.Duration // how long it is kept when a user was last seen; default a week, negative = not at all
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
	*background
	rdb           redis.UniversalClient
	options       Options
	scripts       scripts
	publish       string // the command that publishes a room's events
	announce      string // and that which tells of users
	noScriptFlags atomic.Bool
	loads         scriptLoads
	stale         staleEntries
	reaper        atomic.Pointer[reaper] // the one that runs, nil = none
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
	o.LastSeen = cmp.Or(o.LastSeen, 7*24*time.Hour)
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
	s := &Service{background: newBackground(), rdb: rdb, options: o, scripts: loaded, publish: "PUBLISH", announce: "PUBLISH"}
	if o.Sharded {
		s.publish, s.announce = "SPUBLISH", "SPUBLISH"
	}
	if o.ReaperInterval > 0 {
		newReaper(s).start()
	}
	return s
}

// Stop ends the subscriptions and the reaper and waits for them. Members stay until they leave or their time is over.
func (s *Service) Stop() {
	s.end()
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
	m.noRestore = true
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

// Kick removes a connection from a room for good: it leaves as kicked, and only a new join brings it back. It is
// CodeNotJoined if the connection is not there.
func (s *Service) Kick(ctx context.Context, room, conn string) error {
	if err := s.checkPlace(room, conn); err != nil {
		return err
	}
	_, err := s.kick(ctx, room, conn, kicking{})
	return err
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

// Change is a join or a leave of a connection.
type Change struct {
	Type        EventType
	User, Conn  string
	Rev, TS     int64 // the room's revision after it, and Redis' clock in milliseconds
	Reason      Reason
	UserChanged bool // the user came with it, or went
	RoomChanged bool // the room was empty before, or is now
}
