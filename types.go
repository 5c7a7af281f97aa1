package main

import "encoding/json"

// Code tells a program what went wrong. Codes never change their meaning.
type Code string

const (
	CodeInvalidPayload Code = "invalid_payload" // a field is missing, wrongly typed or out of bounds
	CodeStateTooLarge  Code = "state_too_large" // the state, as it would be after the patch, is over its limit
	CodeNotJoined      Code = "not_joined"      // the connection is not in that room
	CodeStaleEpoch     Code = "stale_epoch"     // another incarnation of the connection is the current one
	CodeTooManyRooms   Code = "too_many_rooms"  // the socket is in as many rooms as it may be
	CodeTooManyUsers   Code = "too_many_users"  // the socket watches as many users as it may
	CodeRoomFull       Code = "room_full"       // the room has as many connections as it may have
	CodeRateLimited    Code = "rate_limited"    // the socket sends more events than it may
	CodeUnauthorized   Code = "unauthorized"    // the token is missing, bad or expired
	CodeForbidden      Code = "forbidden"       // the token does not allow this user or room
	CodeUnavailable    Code = "unavailable"     // Redis did not answer in time; the outcome is unknown
	CodeShuttingDown   Code = "shutting_down"   // this node takes no more joins
)

// Error is a failure with two readers: Code and Message go to the client, Cause to the log only.
type Error struct {
	Code    Code
	Message string // one sentence for a person; names the field at fault
	Epoch   int64  // the connection's current epoch; CodeStaleEpoch only, else 0
	Cause   error  // nil if the client is the cause
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return string(e.Code) + ": " + e.Message
	}
	return string(e.Code) + ": " + e.Message + ": " + e.Cause.Error()
}

func (e *Error) Unwrap() error { return e.Cause }

// appendAck appends the acknowledgement that tells the client of the failure.
func (e *Error) appendAck(b []byte) []byte {
	return e.appendFields(append(b, `{"ok":false,`...))
}

// appendJSON appends what a request by HTTP gets.
func (e *Error) appendJSON(b []byte) []byte { return e.appendFields(append(b, '{')) }

func (e *Error) appendFields(b []byte) []byte {
	b = appendText(b, `"error":`, e.Message)
	b = appendText(b, `,"code":`, string(e.Code))
	if e.Code == CodeStaleEpoch {
		b = appendNumber(b, `,"epoch":`, e.Epoch)
	}
	if e.Code == CodeUnavailable || e.Code == CodeShuttingDown {
		b = append(b, `,"retryable":true`...)
	}
	return append(b, '}')
}

// connectError is the data of Socket.IO's CONNECT_ERROR that tells the client of the failure.
func (e *Error) connectError() []byte {
	b := appendText(nil, `{"message":`, e.Message)
	b = appendText(b, `,"data":{"code":`, string(e.Code))
	return append(b, "}}"...)
}

// EventType is what happened to a member.
type EventType string

const (
	EventJoin   EventType = "join"
	EventUpdate EventType = "update"
	EventLeave  EventType = "leave"
)

// Reason is why a member left.
type Reason string

const (
	ReasonLeft         Reason = "left"         // its client said so
	ReasonDisconnected Reason = "disconnected" // its socket closed
	ReasonTimeout      Reason = "timeout"      // nothing was heard of it for the lookback
	ReasonNodeLost     Reason = "node_lost"    // the node with its socket is gone
	ReasonReplaced     Reason = "replaced"     // the same connection joined as another user, or another one of the user with the same device
	ReasonKicked       Reason = "kicked"       // an operator removed it
)

// reasons are all of them.
var reasons = []Reason{ReasonLeft, ReasonDisconnected, ReasonTimeout, ReasonNodeLost, ReasonReplaced, ReasonKicked}

// Event is one change of a room, as presence:event carries it.
type Event struct {
	Type      EventType       `json:"type"`
	RoomID    string          `json:"roomId"`
	UserID    string          `json:"userId"`
	ConnID    string          `json:"connId"`
	State     json.RawMessage `json:"state"` // the whole state after the change; nil, sent as null, on a leave
	DeviceID  string          `json:"deviceId,omitempty"`
	TS        int64           `json:"ts"`        // milliseconds since 1970, Redis' clock
	Epoch     int64           `json:"epoch"`     // incarnation of the connection
	Rev       int64           `json:"rev"`       // revision of the room after the change
	UserConns int             `json:"userConns"` // connections of the user in the room after the change
	Reason    Reason          `json:"reason,omitempty"`
}

// appendJSON appends the event as its clients get it.
func (e *Event) appendJSON(b []byte) []byte {
	b = appendText(b, `{"type":`, string(e.Type))
	b = appendText(b, `,"roomId":`, e.RoomID)
	b = appendText(b, `,"userId":`, e.UserID)
	b = appendText(b, `,"connId":`, e.ConnID)
	b = appendRaw(b, `,"state":`, e.State)
	if e.DeviceID != "" {
		b = appendText(b, `,"deviceId":`, e.DeviceID)
	}
	b = appendNumber(b, `,"ts":`, e.TS)
	b = appendNumber(b, `,"epoch":`, e.Epoch)
	b = appendNumber(b, `,"rev":`, e.Rev)
	b = appendNumber(b, `,"userConns":`, int64(e.UserConns))
	if e.Reason != "" {
		b = appendText(b, `,"reason":`, string(e.Reason))
	}
	return append(b, '}')
}

// eventMode is how a socket is told of a room's changes.
type eventMode uint8

const (
	modeNone  eventMode = iota // not at all
	modeCount                  // how many are there
	modeBatch                  // the effect of all changes in a while
	modeAll                    // each change
)

// eventModes are the modes as clients name them.
var eventModes = [...]string{modeNone: "none", modeCount: "count", modeBatch: "batch", modeAll: "all"}

// Batch is the effect of several changes of a room, as presence:batch carries it.
type Batch struct {
	RoomID string
	Rev    int64 // the last revision that it covers
	Count  int   // connections in the room
	Users  int   // different users among them
	Events []Event
}

// appendJSON appends the batch as its clients get it.
func (t *Batch) appendJSON(b []byte) []byte {
	b = append(t.appendCount(b), `,"events":[`...)
	for i := range t.Events {
		if i > 0 {
			b = append(b, ',')
		}
		b = t.Events[i].appendJSON(b)
	}
	return append(b, "]}"...)
}

// appendCount appends the open beginning, which is presence:count but for its end.
func (t *Batch) appendCount(b []byte) []byte {
	b = appendText(b, `{"roomId":`, t.RoomID)
	b = appendNumber(b, `,"rev":`, t.Rev)
	b = appendNumber(b, `,"count":`, int64(t.Count))
	return appendNumber(b, `,"users":`, int64(t.Users))
}

// Entry is one member in a snapshot.
type Entry struct {
	ConnID     string          `json:"connId"`
	UserID     string          `json:"userId"`
	State      json.RawMessage `json:"state"`
	DeviceID   string          `json:"deviceId,omitempty"`
	LastSeenMs int64           `json:"lastSeenMs"` // milliseconds since 1970, Redis' clock; may lag by half a TTL
	Epoch      int64           `json:"epoch"`
	Rev        int64           `json:"-"` // revision of the room at the member's last change
}

// appendJSON appends the entry as its clients get it.
func (e *Entry) appendJSON(b []byte) []byte {
	b = appendText(b, `{"connId":`, e.ConnID)
	b = appendText(b, `,"userId":`, e.UserID)
	b = appendRaw(b, `,"state":`, e.State)
	if e.DeviceID != "" {
		b = appendText(b, `,"deviceId":`, e.DeviceID)
	}
	b = appendNumber(b, `,"lastSeenMs":`, e.LastSeenMs)
	b = appendNumber(b, `,"epoch":`, e.Epoch)
	return append(b, '}')
}
