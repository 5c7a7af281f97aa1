package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

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
	ReasonReplaced     Reason = "replaced"     // the same connection joined as another user
	ReasonKicked       Reason = "kicked"       // an operator removed it
)

// Event is one change of a room, as presence:event carries it.
type Event struct {
	Type      EventType       `json:"type"`
	RoomID    string          `json:"roomId"`
	UserID    string          `json:"userId"`
	ConnID    string          `json:"connId"`
	State     json.RawMessage `json:"state"`     // the whole state after the change; nil, sent as null, on a leave
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
	LastSeenMs int64           `json:"lastSeenMs"` // milliseconds since 1970, Redis' clock; may lag by half a TTL
	Epoch      int64           `json:"epoch"`
	Rev        int64           `json:"-"` // revision of the room at the member's last change
}

// appendJSON appends the entry as its clients get it.
func (e *Entry) appendJSON(b []byte) []byte {
	b = appendText(b, `{"connId":`, e.ConnID)
	b = appendText(b, `,"userId":`, e.UserID)
	b = appendRaw(b, `,"state":`, e.State)
	b = appendNumber(b, `,"lastSeenMs":`, e.LastSeenMs)
	b = appendNumber(b, `,"epoch":`, e.Epoch)
	return append(b, '}')
}

// Limits bound what a client may send.
type Limits struct {
	IDBytes    int // of a room or user id in UTF-8
	StateBytes int // of a state as compact JSON
}

// maxStateDepth is how many levels a state may be nested: as many as encoding/json reads.
const maxStateDepth = 10_000

// checkID returns nil for an id of a room or user that may be used: 1 to maxBytes bytes of valid UTF-8 without control
// characters (category Cc). field is the name of the id in the message.
func checkID(field, id string, maxBytes int) *Error {
	switch {
	case id == "":
		return invalid(field + " must not be empty")
	case len(id) > maxBytes:
		return invalid(fmt.Sprintf("%s may have at most %d bytes", field, maxBytes))
	case !utf8.ValidString(id):
		return invalid(field + " must be valid Unicode")
	}
	for _, r := range id {
		if unicode.IsControl(r) {
			return invalid(field + " must not hold control characters")
		}
	}
	return nil
}

// checkConnID returns nil for 1 to 64 characters of A–Z a–z 0–9 _ -.
func checkConnID(id string) error {
	ok := 1 <= len(id) && len(id) <= 64
	for _, c := range []byte(id) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-')
	}
	if !ok {
		return errors.New("connId must be 1 to 64 letters, digits, _ or -")
	}
	return nil
}

// checkState returns a copy of a state or patch in compact form. What is no JSON object, or nested too deep, is
// CodeInvalidPayload; what is too large is CodeStateTooLarge. field is its name in the message.
func (l Limits) checkState(field string, raw []byte) (json.RawMessage, *Error) {
	compact, ok := compactObject(raw)
	switch {
	case !ok:
		return nil, invalid(field + " must be a JSON object")
	case len(compact) > l.StateBytes:
		return nil, stateTooLarge(field, l.StateBytes)
	case len(compact) > 2*maxStateDepth && depthOf(compact) > maxStateDepth: // a level takes two bytes at least
		return nil, invalid(fmt.Sprintf("%s may be nested at most %d levels deep", field, maxStateDepth))
	}
	return compact, nil
}

func invalid(message string) *Error {
	return &Error{Code: CodeInvalidPayload, Message: message}
}

func tooManyUsers(limit int) *Error {
	return &Error{Code: CodeTooManyUsers, Message: fmt.Sprintf("a connection may watch %d users", limit)}
}

func stateTooLarge(field string, maxBytes int) *Error {
	return &Error{Code: CodeStateTooLarge, Message: fmt.Sprintf("%s may have at most %d bytes", field, maxBytes)}
}

// joinPayload is what presence:join carries.
type joinPayload struct {
	RoomID, UserID string
	State          json.RawMessage // compact; {} if the client gave none
	tellingPayload
}

// tellingPayload says how a client wants to be told of a room.
type tellingPayload struct {
	Mode  eventMode // modeAll if the client said nothing
	Limit int       // of the first page, 1 to maxPage; 0 = the whole room
}

// decodeJoin reads the payload of presence:join, where bearer stands for a userId that is not given; "" = it has to be. Like all decoders it takes an empty raw or null as a payload without
// fields, keeps nothing of raw, and fails with CodeInvalidPayload or CodeStateTooLarge.
func decodeJoin(raw []byte, lim Limits, bearer string) (joinPayload, *Error) {
	var room, user, state, events, limit []byte
	if err := readFields(raw, field{"roomId", &room}, field{"userId", &user}, field{"state", &state}, field{"events", &events}, field{"limit", &limit}); err != nil {
		return joinPayload{}, err
	}
	p := joinPayload{State: json.RawMessage("{}")}
	var err *Error
	if p.tellingPayload, err = decodeTelling(events, limit); err != nil {
		return joinPayload{}, err
	}
	if p.RoomID, err = decodeID("roomId", room, lim); err != nil {
		return joinPayload{}, err
	}
	if p.UserID = bearer; user != nil || bearer == "" {
		if p.UserID, err = decodeID("userId", user, lim); err != nil {
			return joinPayload{}, err
		}
	}
	if state == nil {
		return p, nil
	}
	if p.State, err = lim.checkState("state", state); err != nil {
		return joinPayload{}, err
	}
	return p, nil
}

// heartbeatPayload is what presence:heartbeat carries.
type heartbeatPayload struct {
	RoomID   string          // "" = all rooms of the socket
	Patch    json.RawMessage // compact; nil = none
	Epoch    int64           // 0 to MaxInt64, which stands for everything above it too: no epoch is ever that large
	HasEpoch bool
}

// decodeHeartbeat reads the payload of presence:heartbeat.
func decodeHeartbeat(raw []byte, lim Limits) (heartbeatPayload, *Error) {
	var room, patch, epoch []byte
	if err := readFields(raw, field{"roomId", &room}, field{"patchState", &patch}, field{"epoch", &epoch}); err != nil {
		return heartbeatPayload{}, err
	}
	p := heartbeatPayload{HasEpoch: epoch != nil}
	var err *Error
	if room != nil {
		if p.RoomID, err = decodeID("roomId", room, lim); err != nil {
			return heartbeatPayload{}, err
		}
	}
	if epoch != nil {
		if p.Epoch, err = decodeEpoch(epoch); err != nil {
			return heartbeatPayload{}, err
		}
	}
	if patch != nil {
		if p.Patch, err = lim.checkState("patchState", patch); err != nil {
			return heartbeatPayload{}, err
		}
	}
	return p, nil
}

// decodeTelling reads the fields events and limit.
func decodeTelling(events, limit []byte) (p tellingPayload, err *Error) {
	p.Mode = modeAll
	if events != nil {
		if p.Mode, err = decodeMode(events); err != nil {
			return tellingPayload{}, err
		}
	}
	if limit == nil {
		return p, nil
	}
	if p.Limit, err = decodeLimit(limit); err != nil {
		return tellingPayload{}, err
	}
	return p, nil
}

func decodeMode(raw []byte) (eventMode, *Error) {
	if raw[0] == '"' {
		if mode := slices.Index(eventModes[:], string(unquote(raw))); mode >= 0 {
			return eventMode(mode), nil
		}
	}
	return 0, invalid(`events must be "all", "batch", "count" or "none"`)
}

// watchPayload is what presence:watch and presence:unwatch carry: a room, or users, or neither.
type watchPayload struct {
	RoomID  string
	UserIDs []string // nil = none given
	tellingPayload
}

// decodeWatch reads the payload of presence:watch, which names a room or at most maxUsers users.
func decodeWatch(raw []byte, lim Limits, maxUsers int) (watchPayload, *Error) {
	p, err := decodeUnwatch(raw, lim, maxUsers)
	if err == nil && p.RoomID == "" && p.UserIDs == nil {
		return watchPayload{}, invalid("roomId is missing, or userIds")
	}
	return p, err
}

// decodeUnwatch reads the payload of presence:unwatch, which may name neither.
func decodeUnwatch(raw []byte, lim Limits, maxUsers int) (watchPayload, *Error) {
	var room, users, events, limit []byte
	if err := readFields(raw, field{"roomId", &room}, field{"userIds", &users}, field{"events", &events}, field{"limit", &limit}); err != nil {
		return watchPayload{}, err
	}
	if room != nil && users != nil {
		return watchPayload{}, invalid("roomId and userIds must not come together")
	}
	var p watchPayload
	var err *Error
	if p.tellingPayload, err = decodeTelling(events, limit); err != nil {
		return watchPayload{}, err
	}
	if room != nil {
		if p.RoomID, err = decodeID("roomId", room, lim); err != nil {
			return watchPayload{}, err
		}
	}
	if users != nil {
		if p.UserIDs, err = decodeUserIDs(users, lim, maxUsers); err != nil {
			return watchPayload{}, err
		}
	}
	return p, nil
}

// decodeUserIDs reads a list of at most limit users; one that comes twice counts once.
func decodeUserIDs(raw []byte, lim Limits, limit int) ([]string, *Error) {
	list, ok := splitArray(raw)
	if !ok {
		return nil, invalid("userIds must be an array")
	}
	if len(list) > limit {
		return nil, tooManyUsers(limit)
	}
	ids := make([]string, 0, len(list))
	for _, element := range list {
		id, err := decodeID("each of userIds", element, lim)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// leavePayload is what presence:leave carries.
type leavePayload struct {
	RoomID string // "" = all rooms of the socket
}

// decodeLeave reads the payload of presence:leave.
func decodeLeave(raw []byte, lim Limits) (leavePayload, *Error) {
	var room []byte
	if err := readFields(raw, field{"roomId", &room}); err != nil || room == nil {
		return leavePayload{}, err
	}
	id, err := decodeID("roomId", room, lim)
	return leavePayload{RoomID: id}, err
}

// maxPage is the most members that one page of a room holds.
const maxPage = 1000

// getPayload is what presence:get carries.
type getPayload struct {
	RoomID string
	Limit  int    // 1 to maxPage; maxPage if the client gave none
	Cursor string // where the page begins, as an earlier answer said; "" = the room's first page
}

// decodeGet reads the payload of presence:get.
func decodeGet(raw []byte, lim Limits) (getPayload, *Error) {
	var room, limit, cursor []byte
	if err := readFields(raw, field{"roomId", &room}, field{"limit", &limit}, field{"cursor", &cursor}); err != nil {
		return getPayload{}, err
	}
	p := getPayload{Limit: maxPage}
	var err *Error
	if p.RoomID, err = decodeID("roomId", room, lim); err != nil {
		return getPayload{}, err
	}
	if limit != nil {
		if p.Limit, err = decodeLimit(limit); err != nil {
			return getPayload{}, err
		}
	}
	if cursor != nil {
		if p.Cursor, err = decodeText("cursor", cursor); err != nil {
			return getPayload{}, err
		}
	}
	return p, nil
}

// decodeAuth reads the token of presence:auth, or of the auth object of a connection; "" = none.
func decodeAuth(raw []byte) (token string, err *Error) {
	var text []byte
	if err := readFields(raw, field{"token", &text}); err != nil || text == nil {
		return "", err
	}
	return decodeText("token", text)
}

// field is one that a payload may have, and where its JSON goes.
type field struct {
	name  string
	value *[]byte
}

// readFields points fields at their values within raw; those that raw has not, or as null, stay nil. Names are
// case-sensitive; of two values for one name the last one counts; other names are passed over.
func readFields(raw []byte, fields ...field) *Error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	s := scanner{text: raw}
	if !utf8.Valid(raw) || !s.enter('{') {
		return invalid("the payload must be a JSON object")
	}
	for s.nextKey() {
		name, value := unquote(s.token()), s.nextValue()
		if string(value) == "null" {
			value = nil
		}
		for _, f := range fields {
			if f.name == string(name) {
				*f.value = value
			}
		}
	}
	if !s.ended() {
		return invalid("the payload must be a JSON object")
	}
	return nil
}

// decodeID reads the id of a room or user; a nil raw is a missing one.
func decodeID(field string, raw []byte, lim Limits) (string, *Error) {
	if raw == nil {
		return "", invalid(field + " is missing")
	}
	id, err := decodeText(field, raw)
	if err != nil {
		return "", err
	}
	if err := checkID(field, id, lim.IDBytes); err != nil {
		return "", err
	}
	return id, nil
}

// decodeText reads a string of valid Unicode.
func decodeText(field string, raw []byte) (string, *Error) {
	if raw[0] != '"' {
		return "", invalid(field + " must be a string")
	}
	text := unquote(raw)
	if !utf8.Valid(text) {
		return "", invalid(field + " must be valid Unicode")
	}
	return string(text), nil
}

// decodeEpoch takes the text of a number too, as clients send it whose own numbers are too small for an epoch.
func decodeEpoch(raw []byte) (int64, *Error) {
	if raw[0] == '"' {
		raw = unquote(raw)
	}
	n, ok := wholeNumber(raw)
	if !ok {
		return 0, invalid("epoch must be a whole number of 0 or more, or its digits as text")
	}
	return n, nil
}

// decodeLimit reads the size of a page: 1 to maxPage, and more is maxPage.
func decodeLimit(raw []byte) (int, *Error) {
	n, ok := wholeNumber(raw)
	if !ok || n == 0 {
		return 0, invalid("limit must be a whole number of 1 or more")
	}
	return int(min(n, maxPage)), nil
}

// wholeNumber reads decimal digits. MaxInt64 stands for everything above it, also in the form that JavaScript gives
// numbers from 1e21 on, such as 1.5e+21; all of those are whole.
func wholeNumber(text []byte) (int64, bool) {
	if bytes.Contains(text, []byte("e+")) {
		f, _ := strconv.ParseFloat(string(text), 64) // +Inf when out of range, 0 when it is no number
		return math.MaxInt64, f >= 1e21
	}
	var n int64
	for _, c := range text {
		digit := int64(c) - '0'
		if digit < 0 || digit > 9 {
			return 0, false
		}
		if n > (math.MaxInt64-digit)/10 {
			n = math.MaxInt64
		} else {
			n = n*10 + digit
		}
	}
	return n, len(text) > 0
}

// What follows keeps JSON as the bytes that its sender wrote: decoding and encoding would round large integers. Nothing of
// it recurses and all of it takes (nearly) linear time, whatever the depth or width of what a client sends.

// splitArray takes a JSON array apart. The elements are sub-slices of b. ok is false for any other text; as in
// encoding/json, strings may hold invalid UTF-8.
func splitArray(b []byte) (elements []json.RawMessage, ok bool) {
	s := scanner{text: b}
	if !s.enter('[') {
		return nil, false
	}
	elements = make([]json.RawMessage, 0, 3) // an event's name, payload and room for one more
	for s.next() && s.depth > 0 {
		elements = append(elements, s.wholeValue())
	}
	if !s.ended() {
		return nil, false
	}
	return elements, true
}

// compactObject returns a copy of a JSON object without the spaces between its tokens. ok is false for any other text and
// for invalid UTF-8, which would end the connection of every browser it is sent to.
func compactObject(b []byte) (compact json.RawMessage, ok bool) {
	s := scanner{text: b}
	if !utf8.Valid(b) || !s.enter('{') {
		return nil, false
	}
	compact = append(make([]byte, 0, len(b)), '{')
	for s.next() {
		if s.comma {
			compact = append(compact, ',')
		}
		compact = append(compact, s.token()...)
		if s.state == afterKey {
			compact = append(compact, ':')
		}
	}
	if !s.ended() {
		return nil, false
	}
	if len(compact) < len(b) {
		compact = bytes.Clone(compact) // the state may be kept for days, the room for its spaces not
	}
	return compact, true
}

// depthOf returns how many levels a valid JSON text is nested.
func depthOf(b []byte) int {
	deepest := 0
	for s := (scanner{text: b}); s.next(); {
		deepest = max(deepest, s.depth)
	}
	return deepest
}

// mergeState merges a patch into a state at the top level, both compact objects: a key given replaces the whole value in
// place, new keys follow, all other bytes stay, and of duplicate keys only the last value is left. When that is the same
// JSON as the state, changed is false and merged is state itself.
func mergeState(state, patch json.RawMessage) (merged json.RawMessage, changed bool) {
	var o orderedObject
	for s := openObject(state); s.nextKey(); {
		m := o.member(s.token())
		m.old = s.nextValue()
		m.new = m.old
	}
	for s := openObject(patch); s.nextKey(); {
		o.member(s.token()).new = s.nextValue()
	}
	if !o.changed() {
		return state, false
	}
	return o.appendJSON(make([]byte, 0, len(state)+len(patch))), true
}

// orderedObject is an object under change. Its members are in the order in which their keys came first.
type orderedObject struct {
	members []member
	places  map[string]int // name → index in members; nil while there are few
}

type member struct {
	name     []byte // the key, unquoted
	key      []byte // the key as it was written first
	old, new []byte // values; old is nil for a key that the patch brings
}

// fewMembers are found sooner one by one than by a map.
const fewMembers = 16

// member returns the member with that key, made if there is none. It is valid until the next call.
func (o *orderedObject) member(key []byte) *member {
	name := unquote(key)
	if at, ok := o.find(name); ok {
		return &o.members[at]
	}
	o.members = append(o.members, member{name: name, key: key})
	if last := len(o.members) - 1; o.places != nil {
		o.places[string(name)] = last
	} else if last == fewMembers {
		o.places = make(map[string]int, 2*fewMembers)
		for i, m := range o.members {
			o.places[string(m.name)] = i
		}
	}
	return &o.members[len(o.members)-1]
}

func (o *orderedObject) find(name []byte) (place int, ok bool) {
	if o.places != nil {
		place, ok = o.places[string(name)]
		return place, ok
	}
	place = slices.IndexFunc(o.members, func(m member) bool { return bytes.Equal(m.name, name) })
	return place, place >= 0
}

func (o *orderedObject) changed() bool {
	return slices.ContainsFunc(o.members, func(m member) bool {
		return m.old == nil || !sameJSON(m.old, m.new)
	})
}

func (o *orderedObject) appendJSON(b []byte) []byte {
	for i, m := range o.members {
		b = append(b, "{,"[min(i, 1)])
		b = append(b, m.key...)
		b = append(b, ':')
		b = append(b, m.new...)
	}
	return append(b, '}')
}

// sameJSON reports whether two valid JSON texts mean the same. Order of keys and spacing are no difference, of duplicate
// keys the last value counts, numbers are equal when their text is, strings when their UTF-16 code units are.
func sameJSON(a, b []byte) bool {
	switch {
	case bytes.Equal(a, b):
		return true
	case isPlain(a) && isPlain(b): // spares the common values what follows
		return false
	}
	known := numbering{}
	return slices.Equal(known.values(a), known.values(b))
}

// isPlain reports whether a value has no container, no escape and no space around it: it is written in one way only.
func isPlain(b []byte) bool {
	return len(b) > 0 && b[0] > ' ' && b[0] != '{' && b[0] != '[' && b[len(b)-1] > ' ' && bytes.IndexByte(b, '\\') < 0
}

// numbering gives values that mean the same the same number, and others another one. Its keys are scalars without their
// escapes, "]" with the numbers of the elements, and "}" with the numbers of keys and values, sorted by key. So values
// are compared exactly, from the inside outwards, and each is looked at once.
type numbering map[string]uint32

// values returns the numbers of the values that b holds side by side: one if it is valid.
func (n numbering) values(b []byte) []uint32 {
	var (
		done   []uint32 // numbers of complete values and keys whose container is open
		opened []int    // for each open container, outermost first, how many of them are outside of it
		buf    []byte
	)
	for s := (scanner{text: b}); s.next(); {
		switch token := s.token(); token[0] {
		case '{', '[':
			opened = append(opened, len(done))
			continue
		case '}', ']':
			first := opened[len(opened)-1]
			opened = opened[:len(opened)-1]
			buf = appendContainer(buf[:0], token[0], done[first:])
			done = done[:first]
		case '"':
			buf = append(append(buf[:0], '"'), unquote(token)...)
		default:
			buf = append(buf[:0], token...)
		}
		done = append(done, n.of(buf))
	}
	return done
}

func (n numbering) of(key []byte) uint32 {
	number, ok := n[string(key)]
	if !ok {
		number = uint32(len(n))
		n[string(key)] = number
	}
	return number
}

// appendContainer appends what identifies a container with these elements, or keys and values in turn.
func appendContainer(b []byte, bracket byte, parts []uint32) []byte {
	b = append(b, bracket)
	if bracket == ']' {
		for _, part := range parts {
			b = binary.LittleEndian.AppendUint32(b, part)
		}
		return b
	}
	keys := make([]uint64, 0, len(parts)/2) // number of the key, then its place: sorted, the last of duplicates is last
	for i := 0; i < len(parts); i += 2 {
		keys = append(keys, uint64(parts[i])<<32|uint64(i))
	}
	slices.Sort(keys)
	for i, key := range keys {
		if i+1 < len(keys) && keys[i+1]>>32 == key>>32 {
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(key>>32))
		b = binary.LittleEndian.AppendUint32(b, parts[uint32(key)+1])
	}
	return b
}

// appendString appends text, which is valid UTF-8, as JSON. For the scripts of a room, which undo it by a pattern, it
// escapes nothing but quote, backslash and what JSON forbids, U+0000 to U+001F, which ids do not hold.
func appendString(b []byte, text string) []byte {
	b = append(b, '"')
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// appendText appends a key, with the comma and colon around it, and its value; appendNumber and appendRaw likewise.
func appendText(b []byte, key, value string) []byte { return appendString(append(b, key...), value) }

func appendNumber(b []byte, key string, value int64) []byte {
	return strconv.AppendInt(append(b, key...), value, 10)
}

// appendRaw appends null for a nil value.
func appendRaw(b []byte, key string, value json.RawMessage) []byte {
	b = append(b, key...)
	if value == nil {
		return append(b, "null"...)
	}
	return append(b, value...)
}

// unquote returns the text of a valid JSON string, a part of it if nothing is escaped. A surrogate without its other half
// becomes the three bytes that UTF-8 forbids (WTF-8), so texts are equal exactly when their UTF-16 code units are, and
// utf8.Valid tells those that are no Unicode.
func unquote(literal []byte) []byte {
	literal = literal[1 : len(literal)-1]
	at := bytes.IndexByte(literal, '\\')
	if at < 0 {
		return literal
	}
	text := make([]byte, 0, len(literal))
	for ; at >= 0; at = bytes.IndexByte(literal, '\\') {
		text = append(text, literal[:at]...)
		text, literal = appendUnescaped(text, literal[at:])
	}
	return append(text, literal...)
}

// appendUnescaped appends the character whose escape literal begins with, and returns what follows it in literal.
func appendUnescaped(text, literal []byte) (longer, rest []byte) {
	switch c := literal[1]; c {
	case 'b':
		return append(text, '\b'), literal[2:]
	case 'f':
		return append(text, '\f'), literal[2:]
	case 'n':
		return append(text, '\n'), literal[2:]
	case 'r':
		return append(text, '\r'), literal[2:]
	case 't':
		return append(text, '\t'), literal[2:]
	case 'u':
		r, rest := codeUnit(literal), literal[6:]
		if utf16.IsSurrogate(r) {
			if pair := utf16.DecodeRune(r, codeUnit(rest)); pair != utf8.RuneError {
				return utf8.AppendRune(text, pair), rest[6:]
			}
			return append(text, 0xE0|byte(r>>12), 0x80|byte(r>>6)&0x3F, 0x80|byte(r)&0x3F), rest
		}
		return utf8.AppendRune(text, r), rest
	default: // quote, backslash, slash
		return append(text, c), literal[2:]
	}
}

// codeUnit returns the code unit whose \u escape text begins with, -1 if it begins with something else.
func codeUnit(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	var unit rune
	for _, c := range text[2:6] {
		switch {
		case '0' <= c && c <= '9':
			unit = unit<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			unit = unit<<4 | rune(c|0x20-'a'+10)
		default:
			return -1
		}
	}
	return unit
}

// scanner takes a JSON text apart into tokens, in one pass, and checks its grammar on the way. Depth costs it one bit a
// level. Commas and colons are no tokens.
type scanner struct {
	text       []byte
	start, end int // the current token is text[start:end]
	at         int // what comes next is looked for here
	state      scanState
	comma      bool // a comma was before the current token
	depth      int  // open containers, the token's own included

	// Of the open containers, 1 for an object: the innermost ones, innermost last, and for each 64 outside of them a word.
	objects uint64
	outer   []uint64
}

// scanState is what was read last.
type scanState uint8

const (
	atBeginning  scanState = iota // nothing
	afterOpening                  // an opening bracket
	afterKey                      // a key and its colon
	afterValue                    // a scalar or a closing bracket
	broken                        // a fault; there are no more tokens
)

// next moves to the next token and reports whether there is one.
func (s *scanner) next() bool {
	s.skipSpace()
	s.comma = false
	switch s.state {
	case atBeginning, afterKey:
		return s.value()
	case afterOpening:
		return s.closing() || s.element()
	case afterValue:
		if s.depth == 0 {
			return s.at < len(s.text) && s.fail()
		}
		if s.closing() {
			return true
		}
		if s.comma = s.peek() == ','; !s.comma {
			return s.fail()
		}
		s.at++
		s.skipSpace()
		return s.element()
	}
	return false
}

// element reads what comes after an opening bracket or a comma.
func (s *scanner) element() bool {
	if s.inObject() {
		return s.key()
	}
	return s.value()
}

func (s *scanner) key() bool {
	if !s.take(endOfString(s.text, s.at), afterKey) {
		return false
	}
	s.skipSpace()
	if s.peek() != ':' {
		return s.fail()
	}
	s.at++
	return true
}

func (s *scanner) value() bool {
	c := s.peek()
	if c != '{' && c != '[' {
		return s.take(endOfScalar(s.text, s.at), afterValue)
	}
	if s.depth > 0 && s.depth%64 == 0 {
		s.outer = append(s.outer, s.objects)
	}
	s.objects <<= 1
	if c == '{' {
		s.objects |= 1
	}
	s.depth++
	return s.take(s.at+1, afterOpening)
}

// closing reads the bracket that closes the innermost container, if that is next.
func (s *scanner) closing() bool {
	c := s.peek()
	if c != '}' && c != ']' || (c == '}') != s.inObject() {
		return false
	}
	s.depth--
	s.objects >>= 1
	if s.depth > 0 && s.depth%64 == 0 {
		last := len(s.outer) - 1
		s.objects, s.outer = s.outer[last], s.outer[:last]
	}
	return s.take(s.at+1, afterValue)
}

// take makes the text up to end the current token; a negative end is a fault.
func (s *scanner) take(end int, state scanState) bool {
	if end < 0 {
		return s.fail()
	}
	s.start, s.end, s.at, s.state = s.at, end, end, state
	return true
}

func (s *scanner) fail() bool {
	s.state = broken
	return false
}

func (s *scanner) inObject() bool { return s.objects&1 == 1 }

func (s *scanner) token() []byte { return s.text[s.start:s.end] }

// peek returns the next byte; 0, which begins no token, at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return 0
}

func (s *scanner) skipSpace() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// enter reads the bracket that opens the outermost container.
func (s *scanner) enter(bracket byte) bool {
	return s.next() && s.text[s.start] == bracket
}

// openObject returns a scanner within the outermost object of b. If there is none, it has no keys.
func openObject(b []byte) *scanner {
	s := &scanner{text: b}
	if !s.enter('{') {
		s.fail()
	}
	return s
}

// nextKey moves to the next key of the outermost object; the value before it has been read by nextValue.
func (s *scanner) nextKey() bool { return s.next() && s.state == afterKey }

// nextValue reads the value after a key of the outermost object.
func (s *scanner) nextValue() []byte {
	s.next()
	return s.wholeValue()
}

// wholeValue reads on from its first token, the current one, to the end of a value within the outermost container.
func (s *scanner) wholeValue() []byte {
	start := s.start
	for s.depth > 1 && s.next() {
	}
	return s.text[start:s.end:s.end]
}

// ended reports whether the outermost value was complete and nothing follows it.
func (s *scanner) ended() bool {
	return s.depth == 0 && !s.next() && s.state == afterValue
}

// endOfString returns where the string ends that begins at i, -1 if there is none.
func endOfString(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c == '\\':
			if i = endOfEscape(b, i) - 1; i < 0 {
				return -1
			}
		}
	}
	return -1
}

// endOfEscape returns where the escape ends that begins with the backslash at i, -1 if it is none.
func endOfEscape(b []byte, i int) int {
	if i+1 == len(b) {
		return -1
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if codeUnit(b[i:]) >= 0 {
			return i + 6
		}
	}
	return -1
}

// endOfScalar returns where the string, number or name ends that begins at i, -1 if there is none.
func endOfScalar(b []byte, i int) int {
	rest := b[i:]
	switch {
	case bytes.HasPrefix(rest, []byte(`"`)):
		return endOfString(b, i)
	case bytes.HasPrefix(rest, []byte("true")), bytes.HasPrefix(rest, []byte("null")):
		return i + 4
	case bytes.HasPrefix(rest, []byte("false")):
		return i + 5
	}
	return endOfNumber(b, i)
}

// endOfNumber returns where the number ends that begins at i, -1 if there is none.
func endOfNumber(b []byte, i int) int {
	if i < len(b) && b[i] == '-' {
		i++
	}
	whole := i
	if i = endOfDigits(b, i); i < 0 || b[whole] == '0' && i > whole+1 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		if i = endOfDigits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return endOfDigits(b, i)
	}
	return i
}

// endOfDigits returns where the digits end that begin at i, -1 if there are none.
func endOfDigits(b []byte, i int) int {
	start := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}
