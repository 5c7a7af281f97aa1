package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// answerWithin bounds the time from the arrival of a request to its answer.
const answerWithin = 2 * time.Second

// The events of the presence protocol.
const (
	eventJoin      = "presence:join"
	eventHeartbeat = "presence:heartbeat"
	eventLeave     = "presence:leave"
	eventGet       = "presence:get"
	eventAuth      = "presence:auth"
	eventWatch     = "presence:watch"
	eventUnwatch   = "presence:unwatch"
	eventPresence  = "presence:event"
	eventBatch     = "presence:batch"
	eventCount     = "presence:count"
	eventUser      = "presence:user"
	eventExpired   = "presence:expired"
)

// presenceFrame is an event as it goes to every socket of its room.
func presenceFrame(e Event) frame {
	return eventFrame(eventPresence, e.appendJSON(nil))
}

func batchFrame(b Batch) frame { return eventFrame(eventBatch, b.appendJSON(nil)) }

func countFrame(b Batch) frame { return eventFrame(eventCount, append(b.appendCount(nil), '}')) }

// handlers answer the presence events of all clients of this node.
type handlers struct {
	workers   *workers
	heavy     *heavyWork
	service   *Service
	hub       *hub
	owed      *owed
	lease     *lease
	maxRooms  int        // of one socket, 0 = no limit
	pongs     bool       // count as heartbeats
	tokens    *authority // nil = anybody is whoever they say
	rate      *rate      // of one socket, nil = no limit
	refusals  *refusals
	maxUsers  int // that one socket may watch
	onlookers *onlookers
	metrics   *metrics
	log       *slog.Logger
	debts     debts // joins and other events
	draining  atomic.Bool
	deadlines deadlines
	everyone  func(func(*client)) // calls back for each client of this node
}

// connect is called by the session layer for each new client.
func (h *handlers) connect(c *client, auth []byte) (p peer, refusal []byte) {
	conn := &connection{handlers: h, client: c, rooms: map[string]*membership{}}
	conn.inherit()
	if h.tokens == nil {
		return conn, nil
	}
	var refused *Error
	h.workers.do(func() { conn.grant, refused = h.identify(c, auth) })
	if refused != nil {
		h.refusals.add(string(refused.Code))
		return nil, refused.connectError()
	}
	conn.expiry = startExpiry(c, conn.grant.expires)
	return conn, nil
}

// identify reads the token of a client from its auth object, or else from the header of its handshake.
func (h *handlers) identify(c *client, auth []byte) (*grant, *Error) {
	token, err := decodeAuth(auth)
	if err != nil {
		return nil, unauthorized(err.Message)
	}
	return h.checkToken(cmp.Or(token, c.bearer))
}

// checkToken checks a signature, which is heavy work with large keys of RSA.
func (h *handlers) checkToken(token string) (g *grant, refused *Error) {
	h.heavy.do(func() { g, refused = h.tokens.check(token) })
	return g, refused
}

// broadcast sends an application event to the clients of this node that are in one of the rooms, or to all if none is
// named, but not to those in one of the others.
func (h *handlers) broadcast(rooms, except []string, f frame) {
	to := h.hub.receivers(rooms)
	if len(rooms) == 0 {
		h.everyone(func(c *client) { to[c] = true })
	}
	for r := range h.hub.receivers(except) {
		delete(to, r)
	}
	h.hub.cast(f, slices.Collect(maps.Keys(to)))
	h.hub.flush()
}

// connection is one client and the rooms it is in. The session layer calls it for one packet at a time.
type connection struct {
	*handlers
	client  *client
	rooms   map[string]*membership
	watched map[string]*room // nil if none
	users   map[string]bool  // that it watches; nil if none
	budget  budget
	grant   *grant  // both nil
	expiry  *expiry // without authentication
}

// membership is a connection's place in one room.
type membership struct {
	room *room

	mu turn // held by who works on the member in Redis: a request of the client, or the healer
	Member
	silentAt time.Time // when the lookback ends after the last join or valid heartbeat
	unsure   bool      // a join again has an unknown outcome: Redis may have a newer incarnation
	over     bool      // the connection is not in the room any more

	entered atomic.Bool  // its first join has worked
	kicked  atomic.Int64 // the highest epoch of it that this node knows to be kicked
}

// turn is a mutex whose holder may wait for Redis. It is a channel so that synctest takes who waits for it for blocked.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) Lock() { t <- struct{}{} }

func (t turn) Unlock() { <-t }

func (t turn) TryLock() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

// present is the member as it is to be removed: whatever its epoch, if that is not sure. m.mu is held.
func (m *membership) present() Member {
	member := m.Member
	if m.unsure || m.late {
		member.Epoch = 0
	}
	return member
}

// event answers one request. Names that are not of this protocol are the application's business and not answered.
func (c *connection) event(name string, args []json.RawMessage, id ackID) {
	var answer request
	switch name {
	case eventJoin:
		answer = c.join
	case eventHeartbeat:
		answer = c.heartbeat
	case eventLeave:
		answer = c.leave
	case eventGet:
		answer = c.get
	case eventAuth:
		answer = c.authenticate
	case eventWatch:
		answer = c.watch
	case eventUnwatch:
		answer = c.unwatch
	}
	if answer == nil {
		return
	}
	if !c.affords(name) {
		c.tooMany(name, id)
		return
	}
	var payload []byte
	if len(args) > 0 {
		payload = args[0]
	}
	if name == eventHeartbeat { // the most frequent one, and it needs little stack
		c.answer(name, answer, payload, id)
		return
	}
	c.workers.do(func() { c.answer(name, answer, payload, id) })
}

// affords charges a request to the budget of the socket. A heartbeat of one that is in no room costs nothing: like events that
// are no requests, it counts as input only.
func (c *connection) affords(name string) bool {
	if c.rate == nil || name == eventHeartbeat && len(c.rooms) == 0 {
		return true
	}
	return c.budget.of(name).take(c.rate, c.rate.now())
}

// firstEvents is how many events a new socket may send at once, whatever its address has sent.
const firstEvents = 10

// inherit gives the socket its budget, or what an earlier one of its address has left.
func (c *connection) inherit() {
	if c.rate != nil {
		used := c.debts.inherit(origin(c.client.addr), c.rate.now(), c.rate.window-min(c.rate.window, firstEvents*c.rate.interval))
		c.budget.joins, c.budget.others = used[0], used[1]
	}
}

// bequeath keeps what the socket has used for the next one of its address.
func (c *connection) bequeath() {
	if c.rate != nil {
		c.debts.leave(origin(c.client.addr), [2]bucket{c.budget.joins, c.budget.others}, c.rate.now(), c.rate.window/2)
	}
}

const (
	eventBytes = 128 << 10 // of an answer cost as much as an event
	eventUsers = 100       // watched by one request cost as much as an event
)

// charge has a request cost what its answer makes the server read and send, in events, besides the one that it is.
func (c *connection) charge(b *bucket, events int) {
	if c.rate != nil {
		b.charge(c.rate, events, c.rate.now())
	}
}

// tooMany refuses an event over the rate, and closes a socket that goes on and on.
func (c *connection) tooMany(name string, id ackID) {
	limited := c.refusal(name, &Error{Code: CodeRateLimited, Message: "too many events, wait a while"})
	c.client.ack(id, limited.appendAck(nil))
	if c.budget.flooded(c.rate.now()) {
		c.refusals.add(refusedFlood)
		c.client.closeFor(errFlood)
	}
}

type request func(ctx context.Context, payload []byte, id ackID) (ack []byte, err error)

func (c *connection) answer(name string, respond request, payload []byte, id ackID) {
	ack, err := respond(c.deadlines.next(), payload, id)
	if err != nil {
		ack = c.refusal(name, err).appendAck(nil)
	} else {
		c.metrics.answered(name, "")
	}
	if ack != nil {
		c.client.ack(id, ack)
	}
}

// refusal is the error for the client; its cause is for the log.
func (c *connection) refusal(name string, err error) *Error {
	refused := asError(err)
	c.refusals.add(string(refused.Code))
	c.metrics.answered(name, refused.Code)
	if refused.Cause != nil {
		c.log.Warn("request failed", "event", name, "conn", c.client.ID(), "code", string(refused.Code), "error", refused.Cause)
	}
	return refused
}

// join answers by itself when it worked: its acknowledgement has its place in the order of the room.
func (c *connection) join(ctx context.Context, payload []byte, id ackID) ([]byte, error) {
	var p joinPayload
	var refused *Error
	c.heavy.read(len(payload), func() { p, refused = decodeJoin(payload, c.service.options.Limits, c.grant.bearer()) })
	if refused != nil {
		return nil, refused
	}
	if err := cmp.Or(c.grant.checkUser(p.UserID), c.grant.checkRoom(p.RoomID)); err != nil {
		return nil, err
	}
	if c.draining.Load() {
		return nil, shuttingDown()
	}
	m, again := c.rooms[p.RoomID]
	if !again {
		if err := c.roomForOneMore(); err != nil {
			return nil, err
		}
		m = &membership{room: c.hub.acquire(p.RoomID), mu: newTurn()}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var before []Member // what an earlier join or leave left open
	if !again {
		m.room.own(c.client.ID(), m)
		if before = c.owed.take(c.client.ID(), p.RoomID); len(before) > 0 {
			m.Epoch, m.late = before[0].Epoch, before[0].Epoch == 0
		}
	}
	arrived := time.Now()
	wish := Member{Room: p.RoomID, User: p.UserID, Conn: c.client.ID(), State: p.State, Epoch: m.Epoch, late: m.late}
	joined, err := c.enter(ctx, m.room, wish, p.tellingPayload, id)
	switch {
	case err == nil:
		if again && m.User != joined.User {
			c.metrics.left(ReasonReplaced, 1)
		}
		m.Member, m.unsure, m.over = joined, false, false
		m.entered.Store(true)
		m.silentAt = arrived.Add(c.service.options.Lookback)
		c.rooms[p.RoomID] = m
	case !again:
		m.over = true
		m.room.disown(c.client.ID())
		c.hub.release(m.room)
		if len(before) > 0 || isUnavailable(err) {
			c.owed.add(joined, ReasonDisconnected)
		}
	case joined.Epoch > m.Epoch:
		m.Member = joined
	default:
		m.unsure = m.unsure || isUnavailable(err)
	}
	return nil, err
}

// roomForOneMore refuses what would be one room too many: a watched one counts as well.
func (c *connection) roomForOneMore() error {
	if c.maxRooms > 0 && len(c.rooms)+len(c.watched) >= c.maxRooms {
		return &Error{Code: CodeTooManyRooms, Message: fmt.Sprintf("a connection may be in %d rooms, or watch them", c.maxRooms)}
	}
	return nil
}

// enter writes a member and waits until this node's replica has it; then the acknowledgement goes out. When it fails, the
// epoch says what is known: that of the new incarnation, or 0 if there may be none.
func (c *connection) enter(ctx context.Context, r *room, wish Member, how tellingPayload, id ackID) (Member, error) {
	floor, err := r.ready(ctx)
	if err != nil {
		return wish, err
	}
	err = r.index(ctx, func(ctx context.Context) error {
		return c.service.indexRoom(ctx, wish.Room, c.service.options.Lookback)
	})
	if err != nil {
		return wish, err
	}
	if wish.Node, err = c.lease.host(ctx, wish.Room); err != nil {
		return wish, err
	}
	joined, err := c.service.join(ctx, wish, floor)
	if err == nil {
		err = c.keep(ctx, &joined, floor)
	}
	if err != nil {
		joined.Epoch = 0
		return joined, err
	}
	w := newWaiter(joined.Epoch, c.client, asMember, how.Mode, func(v *view) frameParts {
		return c.joinAck(id, joined, v.page("", how.Limit), how.Limit == 0)
	})
	w.limit = how.Limit
	return joined, r.admit(ctx, w)
}

// keep writes a new member once more if the node has lost its lease meanwhile: nobody puts back what was not there yet.
func (c *connection) keep(ctx context.Context, m *Member, floor int64) error {
	if m.Node == c.lease.name() {
		return nil
	}
	var err error
	if m.Node, err = c.lease.host(ctx, m.Room); err != nil {
		return err
	}
	return c.service.restore(ctx, m, 0, floor)
}

// joinAck is the acknowledgement of a join. The whole room needs no counts.
func (c *connection) joinAck(id ackID, m Member, first page, whole bool) frameParts {
	b := appendText(nil, `{"ok":true,"self":{"connId":`, m.Conn)
	b = append(appendNumber(b, `,"epoch":`, m.Epoch), '}')
	b = appendNumber(b, `,"ttlMs":`, c.service.options.TTL.Milliseconds())
	c.charge(&c.budget.joins, len(first.entries)/eventBytes)
	return ackOf(id, first.appendHead(b, "snapshot", whole), first.entries, []byte{'}'})
}

func (c *connection) heartbeat(ctx context.Context, payload []byte, _ ackID) ([]byte, error) {
	var p heartbeatPayload
	var refused *Error
	c.heavy.read(len(payload), func() { p, refused = decodeHeartbeat(payload, c.service.options.Limits) })
	if refused != nil {
		return nil, refused
	}
	if p.RoomID == "" && len(c.rooms) > 1 {
		return c.heartbeatOfAll(ctx, p)
	}
	m := c.named(p.RoomID)
	if m == nil {
		return nil, c.absent(p.RoomID)
	}
	if p.HasEpoch && p.Epoch != m.Epoch {
		return nil, staleEpoch(m.Epoch)
	}
	changed, err := c.refresh(ctx, m, p.Patch, p.HasEpoch)
	if err != nil {
		return nil, err
	}
	b := append(heartbeatAck(changed), `,"epoch":`...)
	return append(strconv.AppendInt(b, m.Epoch, 10), '}'), nil
}

// named is the membership in a room, or the only one if no room is named; nil if there is none.
func (c *connection) named(room string) *membership {
	if room != "" {
		return c.rooms[room]
	}
	for _, m := range c.rooms {
		return m
	}
	return nil
}

// absent is the answer to a heartbeat for a room that the connection is not in, "" = any. It costs nothing, unless the token
// has ended it.
func (c *connection) absent(room string) error {
	if room != "" && !c.grant.allows(room) {
		return c.grant.checkRoom(room)
	}
	if c.rate != nil && len(c.rooms) > 0 {
		c.budget.others.giveBack(c.rate)
	}
	return notJoined()
}

// heartbeatOfAll answers a heartbeat without roomId of a connection that is in several rooms. An epoch names the room that
// it is current in.
func (c *connection) heartbeatOfAll(ctx context.Context, p heartbeatPayload) ([]byte, error) {
	named, same := c.ofEpoch(p)
	if p.HasEpoch && same == 0 {
		return nil, &Error{Code: CodeStaleEpoch, Message: "the epoch is current in none of the connection's rooms"}
	}
	var patch json.RawMessage
	if named != nil {
		patch = p.Patch
	}
	changed, err := c.refreshAll(ctx, named, patch)
	if err == nil && p.Patch != nil && named == nil {
		err = &Error{Code: CodeInvalidPayload, Message: "roomId is needed for this patchState: the connection is in several rooms"}
	}
	if err != nil {
		return nil, err
	}
	b := heartbeatAck(changed)
	if p.HasEpoch {
		b = appendNumber(b, `,"epoch":`, p.Epoch)
	}
	if named != nil {
		b = appendText(b, `,"roomId":`, named.Room)
	}
	return append(b, '}'), nil
}

// ofEpoch gives the membership whose epoch a heartbeat carries, nil if same, their number, is not 1.
func (c *connection) ofEpoch(p heartbeatPayload) (named *membership, same int) {
	for _, m := range c.rooms {
		if p.HasEpoch && p.Epoch == m.Epoch {
			named = m
			same++
		}
	}
	if same > 1 {
		return nil, same
	}
	return named, same
}

// refreshAll refreshes the connection in all its rooms, and patches its state in the one that is named, if one is. changed is
// about that state. The error is the first one.
func (c *connection) refreshAll(ctx context.Context, named *membership, patch json.RawMessage) (changed bool, err error) {
	for _, m := range slices.Collect(maps.Values(c.rooms)) {
		var failed error
		if m == named {
			changed, failed = c.refresh(ctx, m, patch, true)
		} else {
			_, failed = c.refresh(ctx, m, nil, false)
		}
		err = cmp.Or(err, failed)
	}
	return changed, err
}

func (c *connection) pong() {
	if !c.pongs {
		return
	}
	ctx := c.deadlines.next()
	for _, m := range c.rooms {
		if _, err := c.refresh(ctx, m, nil, false); err != nil {
			c.log.Debug("a pong has not refreshed a member", "room", m.Room, "conn", m.Conn, "error", err)
		}
	}
}

// heartbeatAck is the open beginning of an acknowledgement.
func heartbeatAck(changed bool) []byte {
	b := make([]byte, 0, 64)
	b = append(b, `{"ok":true,"changed":`...)
	return strconv.AppendBool(b, changed)
}

// refresh refreshes the incarnation that Redis has, unless the client has named another (fenced).
func (c *connection) refresh(ctx context.Context, m *membership, patch json.RawMessage, fenced bool) (changed bool, err error) {
	changed, err = c.beat(ctx, m, patch, fenced)
	if hasCode(err, CodeNotJoined) {
		err = c.kicked(ctx, m)
	}
	return changed, err
}

func (c *connection) beat(ctx context.Context, m *membership, patch json.RawMessage, fenced bool) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over || m.expelled() {
		m.over = true
		return false, notJoined()
	}
	m.silentAt = time.Now().Add(c.service.options.Lookback)
	m.guest = m.unsure // a newer incarnation may have been there, and left: this one does not come back (G4)
	changed, rev, err := c.service.heartbeat(ctx, &m.Member, patch, m.room.revision())
	if hasCode(err, CodeStaleEpoch) {
		switch lost := c.follow(ctx, m); {
		case fenced:
		case lost != nil:
			err = lost
		default:
			changed, rev, err = c.service.heartbeat(ctx, &m.Member, patch, m.room.revision())
		}
	}
	if err == nil {
		m.room.compare(rev)
		_ = c.service.note(ctx, &m.Member, m.Epoch) // after two lookbacks the index would forget it: the next heartbeat tries again
	}
	m.over = hasCode(err, CodeNotJoined)
	return changed, err
}

// kicked forgets a membership that Redis does not put back, once the socket has been told of its leave.
func (c *connection) kicked(ctx context.Context, m *membership) error {
	if err := m.room.reach(ctx, m.kickedAt); err != nil {
		return err
	}
	m.room.tellKicked(m.Conn, m.Epoch, m.kickedAt)
	c.forget(m)
	return notJoined()
}

// follow takes over an incarnation that is newer than the one in memory: a join whose answer did not come in time.
func (c *connection) follow(ctx context.Context, m *membership) error {
	stored, err := c.service.find(ctx, m.Room, m.Conn)
	if err == nil {
		stored.late = m.late
		m.Member, m.unsure = stored, false
	}
	return err
}

func (c *connection) leave(ctx context.Context, payload []byte, _ ackID) ([]byte, error) {
	p, refused := decodeLeave(payload, c.service.options.Limits)
	if refused != nil {
		return nil, refused
	}
	members := c.owed.take(c.client.ID(), p.RoomID)
	for room, m := range c.rooms {
		if p.RoomID == "" || p.RoomID == room {
			members = append(members, c.forget(m))
		}
	}
	if err := c.confirmAll(ctx, members); err != nil {
		return nil, err
	}
	return []byte(`{"ok":true}`), nil
}

// authenticate replaces the token. Rooms that the new one does not allow are left.
func (c *connection) authenticate(ctx context.Context, payload []byte, _ ackID) ([]byte, error) {
	token, refused := decodeAuth(payload)
	switch {
	case refused != nil:
		return nil, refused
	case c.tokens == nil:
		return nil, invalid("this server knows no tokens")
	}
	g, refused := c.checkToken(token)
	if refused != nil {
		return nil, refused
	}
	if err := c.grant.checkUser(g.user); err != nil {
		return nil, err
	}
	if !c.expiry.move(g.expires) {
		return nil, unauthorized("the token before has expired")
	}
	c.grant = g
	var members []Member
	for room, m := range c.rooms {
		if !g.allows(room) {
			members = append(members, c.forget(m))
		}
	}
	for room := range c.watched {
		if !g.allows(room) {
			c.unwatchRooms(room)
		}
	}
	if !g.watch && len(c.users) > 0 {
		c.unwatchUsers(slices.Collect(maps.Keys(c.users)))
	}
	if err := c.confirmAll(ctx, members); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"ok":true,"expMs":%d}`, g.expires.UnixMilli()), nil
}

// confirmAll has Redis remove members that have left, and gives the first failure.
func (c *connection) confirmAll(ctx context.Context, members []Member) (first error) {
	for _, m := range members {
		first = cmp.Or(first, c.confirm(ctx, m, removal{reason: ReasonLeft}))
	}
	return first
}

// forget ends the events of a room for this connection, and gives the member that is to be removed: nobody puts it back
// from here on.
func (c *connection) forget(m *membership) Member {
	m.room.leave(c.client, asMember)
	m.room.disown(c.client.ID())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	c.hub.release(m.room)
	delete(c.rooms, m.Room)
	return m.present()
}

// confirm has Redis remove a member that has left. A failure is made good later; the client may ask again.
func (c *connection) confirm(ctx context.Context, m Member, how removal) error {
	stored, err := c.owed.known(ctx, m)
	switch {
	case err == nil:
		how.noted = m.noted
		_, _, err = c.service.remove(ctx, m.Room, how, []incarnation{{m.Conn, stored.Epoch}})
	case hasCode(err, CodeNotJoined):
		err = nil
	}
	if err != nil || m.Epoch == 0 { // a join of unknown outcome may still run
		c.owed.add(m, how.reason)
	}
	return err
}

// ended is called once, after the last event.
func (c *connection) ended(reason endReason) {
	c.expiry.stop()
	c.bequeath()
	ctx := c.deadlines.next()
	c.unwatchAll()
	grace := c.service.options.Grace
	until := time.Now().Add(grace)
	for _, m := range c.rooms {
		member := c.forget(m)
		var err error
		if (reason == endAbrupt || reason == endSilent) && grace > 0 {
			err = c.owed.hold(ctx, member, until, reason == endSilent)
		} else {
			err = c.confirm(ctx, member, removal{reason: ReasonDisconnected, floor: m.room.revision()})
		}
		if err != nil {
			c.log.Warn("leave of a closed connection is not confirmed", "room", m.Room, "conn", m.Conn, "error", err)
		}
	}
}

// get answers by itself when it worked.
func (c *connection) get(ctx context.Context, payload []byte, id ackID) ([]byte, error) {
	p, refused := decodeGet(payload, c.service.options.Limits)
	if refused != nil {
		return nil, refused
	}
	if err := c.grant.checkRoom(p.RoomID); err != nil {
		return nil, err
	}
	after, err := decodeCursor(p.Cursor)
	if err != nil {
		return nil, err
	}
	return nil, c.hub.page(ctx, p.RoomID, after, p.Limit, c.client, func(part page) frameParts {
		c.charge(&c.budget.others, len(part.entries)/eventBytes)
		return ackOf(id, part.appendHead([]byte(`{"ok":true`), "snapshot", false), part.entries, []byte{'}'})
	})
}

func encodeCursor(after string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(after))
}

// decodeCursor gives where a page begins: behind a connection, or at a place of a scan.
func decodeCursor(cursor string) (after string, err error) {
	if cursor == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return "", badCursor()
	}
	if _, scans := parseScanPlace(string(raw)); !scans && checkConnID(string(raw)) != nil {
		return "", badCursor()
	}
	return string(raw), nil
}

func badCursor() *Error { return invalid("cursor is none that this server gave") }

func shuttingDown() *Error {
	return &Error{Code: CodeShuttingDown, Message: "this node is shutting down, connect again"}
}

func isUnavailable(err error) bool { return hasCode(err, CodeUnavailable) }

func hasCode(err error, code Code) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Code == code
}
