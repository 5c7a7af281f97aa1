package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// maxUsersAsked is how many users one request may ask for.
const maxUsersAsked = 1000

// users tells of each user in a list whether it is online, in the order of the list. One that comes twice is told of twice.
func (w *web) users(ctx context.Context, _ *http.Request, body []byte) ([]byte, error) {
	ids, refused := decodeUsersAsked(body, w.service.options.Limits)
	if refused != nil {
		return nil, refused
	}
	all, err := w.service.statuses(ctx, ids)
	if err != nil {
		return nil, err
	}
	b := []byte(`{"users":[`)
	for i, id := range ids {
		b = appendText(append(b, ","[:min(i, 1)]...), `{"userId":`, id)
		b = strconv.AppendBool(append(b, `,"online":`...), all[id].conns > 0)
		b = appendNumber(b, `,"conns":`, int64(all[id].conns))
		if all[id].lastSeen > 0 {
			b = appendNumber(b, `,"lastSeenMs":`, all[id].lastSeen)
		}
		b = append(b, '}')
	}
	return append(b, "]}"...), nil
}

// decodeUsersAsked reads the body of a request that asks for users. Doubles count.
func decodeUsersAsked(body []byte, lim Limits) ([]string, *Error) {
	var users []byte
	if err := readFields(body, field{"userIds", &users}); err != nil {
		return nil, err
	}
	if users == nil {
		return nil, invalid("userIds is missing")
	}
	list, ok := splitArray(users)
	switch {
	case !ok || len(list) == 0:
		return nil, invalid("userIds must be an array of at least one id")
	case len(list) > maxUsersAsked:
		return nil, &Error{Code: CodeTooManyUsers, Message: fmt.Sprintf("userIds may hold at most %d ids", maxUsersAsked)}
	}
	ids := make([]string, len(list))
	for i, element := range list {
		var err *Error
		if ids[i], err = decodeID("each of userIds", element, lim); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// removeUser kicks a user out of all rooms, and ends the connections if it is asked for that.
func (w *web) removeUser(ctx context.Context, r *http.Request) ([]byte, error) {
	id := r.PathValue("userId")
	if err := checkID("userId", id, w.service.options.Limits.IDBytes); err != nil {
		return nil, err
	}
	ends, refused := decodeDisconnect(r.URL.RawQuery)
	if refused != nil {
		return nil, refused
	}
	removed, err := w.service.kickUser(ctx, id, ends)
	if removed > 0 {
		w.log.Info("user kicked", "user", id, "members", removed, "disconnect", ends)
	}
	if err != nil {
		return nil, err
	}
	return append(appendNumber(nil, `{"removed":`, int64(removed)), '}'), nil
}

// decodeDisconnect reads the query of a request to remove a user. Whatever is not clear is refused: the difference matters.
func decodeDisconnect(rawQuery string) (disconnect bool, refused *Error) {
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return false, invalid("the query cannot be read")
	}
	switch values := query["disconnect"]; {
	case len(values) == 0:
		return false, nil
	case len(values) == 1 && (values[0] == "true" || values[0] == "false"):
		return values[0] == "true", nil
	}
	return false, invalid("disconnect must be true or false")
}
