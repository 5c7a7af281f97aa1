package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Limits bound what a client may send.
type Limits struct {
	IDBytes    int // of a room or user id in UTF-8
	StateBytes int // of a state as compact JSON
	StateDepth int // levels of a state, itself included
}

// maxNumberChars is how long a number in a state may be. Some languages refuse to read those of more than 4300 digits.
const maxNumberChars = 400

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

// checkState returns a copy of a state or patch in compact form. What is no JSON object, or not one that all clients can read,
// is CodeInvalidPayload; what is too large is CodeStateTooLarge. field is its name in the message.
func (l Limits) checkState(field string, raw []byte) (json.RawMessage, *Error) {
	compact, ok := compactObject(raw)
	if !ok {
		return nil, invalid(field + " must be a JSON object")
	}
	if err := l.checkCompact(field, compact); err != nil {
		return nil, err
	}
	return compact, nil
}

// checkCompact is checkState for an object in compact form.
func (l Limits) checkCompact(field string, state json.RawMessage) *Error {
	if len(state) > l.StateBytes {
		return stateTooLarge(field, l.StateBytes)
	}
	if fault := l.unreadable(state); fault != "" {
		return invalid(field + " " + fault)
	}
	return nil
}

// unreadable says what keeps some clients from reading a state, "" if nothing does: many parsers recurse, or bound the digits
// of a number. It is quick rather than strict about the grammar.
func (l Limits) unreadable(state []byte) (fault string) {
	if len(state) <= min(2*l.StateDepth, maxNumberChars) { // a level takes two bytes
		return ""
	}
	depth := 0
	for i := 0; i < len(state); i++ {
		end := i + 1
		switch c := state[i]; {
		case c == '"':
			end = endOfString(state, i)
		case c == '-' || '0' <= c && c <= '9':
			end = endOfNumber(state, i)
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
		switch {
		case end < 0:
			return "must be JSON"
		case depth > l.StateDepth:
			return fmt.Sprintf("may be nested at most %d levels deep", l.StateDepth)
		case state[i] != '"' && end-i > maxNumberChars:
			return fmt.Sprintf("may hold numbers of at most %d characters", maxNumberChars)
		}
		i = end - 1
	}
	return ""
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
	DeviceID       string          // "" = none
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
	var room, user, device, state, events, limit []byte
	if err := readFields(raw, field{"roomId", &room}, field{"userId", &user}, field{"deviceId", &device}, field{"state", &state},
		field{"events", &events}, field{"limit", &limit}); err != nil {
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
	if device != nil {
		if p.DeviceID, err = decodeID("deviceId", device, lim); err != nil {
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
