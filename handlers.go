package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// answerWithin bounds the time from the arrival of a request to its answer.
const answerWithin = 2 * time.Second

// presencePrefix begins the names of all events of the presence protocol, also of those to come.
const presencePrefix = "presence:"

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
	workers       *workers
	heavy         *heavyWork
	service       *Service
	hub           *hub
	pendingLeaves *pendingLeaves
	lease         *lease
	maxRooms      int        // of one socket, 0 = no limit
	pongs         bool       // count as heartbeats
	tokens        *authority // nil = anybody is whoever they say
	rate          *rate      // of one socket, nil = no limit
	refusals      *refusals
	maxUsers      int // that one socket may watch
	userWatchers  *userWatchers
	metrics       *metrics
	log           *slog.Logger
	debts         debts // joins and other events
	draining      atomic.Bool
	deadlines     deadlines
	everyone      func(func(*client)) // calls back for each client of this node
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
	h.hub.send(f, slices.Collect(maps.Keys(to)))
}

// connection is one client and the rooms it is in. The session layer calls it for one packet at a time.
type connection struct {
	*handlers
	client    *client
	rooms     map[string]*membership
	watched   map[string]*room // nil if none
	users     map[string]bool  // that it watches; nil if none
	wasMember bool             // of a room that it is not in any more: its user's index may yet be told of that
	budget    budget
	grant     *grant  // both nil
	expiry    *expiry // without authentication
}

// A request answers an event of a client: with an ack, later on its own (nil), or with an error.
type request func(c *connection, ctx context.Context, payload []byte, id ackID) (ack []byte, err error)

// requests are the events that are answered. All others are the application's business.
var requests = map[string]request{
	eventJoin:      (*connection).join,
	eventHeartbeat: (*connection).heartbeat,
	eventLeave:     (*connection).leave,
	eventGet:       (*connection).get,
	eventAuth:      (*connection).authenticate,
	eventWatch:     (*connection).watch,
	eventUnwatch:   (*connection).unwatch,
}

// event answers one request.
func (c *connection) event(name string, args []json.RawMessage, id ackID) {
	answer := requests[name]
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

func (c *connection) answer(name string, respond request, payload []byte, id ackID) {
	ack, err := respond(c, c.deadlines.next(), payload, id)
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

func shuttingDown() *Error {
	return &Error{Code: CodeShuttingDown, Message: "this node is shutting down, connect again"}
}

func isUnavailable(err error) bool { return hasCode(err, CodeUnavailable) }

func hasCode(err error, code Code) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Code == code
}
