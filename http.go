package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// readyWithin bounds the question to Redis that each request of /readyz is.
const readyWithin = 500 * time.Millisecond

// Codes that only answers by HTTP have.
const (
	httpNotFound         Code = "not_found"
	httpMethodNotAllowed Code = "method_not_allowed"
	httpTooLarge         Code = "payload_too_large"
	httpAdapterOff       Code = "adapter_off"
)

// web answers what comes by HTTP and is no Socket.IO.
type web struct {
	service *Service
	hub     *hub
	casts   *broadcaster                     // nil = there are no application events
	apiKey  string                           // "" = no /v1
	unready func(ctx context.Context) *Error // why clients should go elsewhere, nil = they should not
	log     *slog.Logger

	wasUnready atomic.Bool
}

// accepted is the body of an answer that says that the request will be carried out.
var accepted = []byte{}

// route is one request that operators and programs may make.
type route struct {
	method, path string
	respond      func(ctx context.Context, r *http.Request) (body []byte, err error) // nil = 204, accepted = 202
}

func (w *web) routes() []route {
	routes := []route{
		{http.MethodGet, "/healthz", w.healthz},
		{http.MethodGet, "/readyz", w.readyz},
	}
	if w.apiKey != "" {
		routes = append(routes,
			route{http.MethodGet, "/v1/rooms", w.rooms},
			route{http.MethodGet, "/v1/rooms/{roomId}", w.room},
			route{http.MethodPost, "/v1/rooms/{roomId}/emit", withBody(w.emitToRoom)},
			route{http.MethodPost, "/v1/emit", withBody(w.emitToAll)},
			route{http.MethodPost, "/v1/users", withBody(w.users)},
			route{http.MethodGet, "/v1/users/{userId}", w.user},
			route{http.MethodDelete, "/v1/users/{userId}", w.removeUser},
			route{http.MethodDelete, "/v1/rooms/{roomId}/conns/{connId}", w.kick},
		)
	}
	return routes
}

// before has requests of these paths reach w, and all others next. An http.ServeMux is not asked to find the routes: it takes
// an id that is one slash for no segment, and the ids . and .. for steps of a path.
func (w *web) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if path := r.URL.Path; path == "/healthz" || path == "/readyz" || strings.HasPrefix(path, "/v1/") {
			w.ServeHTTP(out, r)
			return
		}
		next.ServeHTTP(out, r)
	})
}

// ServeHTTP finds the route. What is beside the routes is answered in JSON as well.
func (w *web) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var others []string
	for _, at := range w.routes() {
		switch {
		case !at.matches(r):
		case at.method == method:
			w.answer(at, out, r)
			return
		default:
			others = append(others, at.method)
		}
	}
	if len(others) == 0 {
		writeError(out, &Error{Code: httpNotFound, Message: "there is nothing at this path"})
		return
	}
	out.Header().Set("Allow", strings.Join(others, ", "))
	writeError(out, &Error{Code: httpMethodNotAllowed, Message: "this path is there for " + strings.Join(others, " and ")})
}

// matches tells whether the request has the path of the route, and gives it the values of the path then.
func (at route) matches(r *http.Request) bool {
	names, segments := strings.Split(at.path, "/"), strings.Split(r.URL.EscapedPath(), "/")
	if len(names) != len(segments) {
		return false
	}
	for i, name := range names {
		value, err := url.PathUnescape(segments[i])
		switch {
		case err != nil || value == "" && i > 0:
			return false
		case name != "" && name[0] == '{':
			r.SetPathValue(name[1:len(name)-1], value)
		case name != segments[i]:
			return false
		}
	}
	return true
}

func (w *web) answer(at route, out http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(at.path, "/v1/") && !w.authorized(r) {
		writeError(out, &Error{Code: CodeUnauthorized, Message: "the API key is missing or wrong"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerWithin)
	defer cancel()
	body, err := at.respond(ctx, r)
	switch {
	case err == nil && body == nil:
		out.WriteHeader(http.StatusNoContent)
	case err == nil && len(body) == 0:
		out.WriteHeader(http.StatusAccepted)
	case err == nil:
		writeJSON(out, http.StatusOK, body)
	default:
		refused := asError(err)
		if refused.Cause != nil {
			w.log.Warn("request failed", "method", at.method, "route", at.path, "code", string(refused.Code), "error", refused.Cause)
		}
		writeError(out, refused)
	}
}

// authorized compares digests, so that the time it takes tells nothing of the key, its length included.
func (w *web) authorized(r *http.Request) bool {
	given, wanted := sha256.Sum256([]byte(bearerToken(r.Header))), sha256.Sum256([]byte(w.apiKey))
	return subtle.ConstantTimeCompare(given[:], wanted[:]) == 1
}

// bearerToken is the token of a request's Authorization header (RFC 6750, section 2.1), "" without one.
func bearerToken(h http.Header) string {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// healthz tells that the process lives.
func (w *web) healthz(context.Context, *http.Request) ([]byte, error) {
	return []byte(`{"status":"ok"}`), nil
}

// readyz tells whether clients should be sent here.
func (w *web) readyz(ctx context.Context, _ *http.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	refused := w.unready(ctx)
	if w.wasUnready.Swap(refused != nil) != (refused != nil) {
		w.log.Info("readiness has changed", "ready", refused == nil)
	}
	if refused != nil {
		return nil, refused
	}
	return []byte(`{"status":"ready"}`), nil
}

func (w *web) rooms(ctx context.Context, r *http.Request) ([]byte, error) {
	limit, cursor, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	after, bad := base64.RawURLEncoding.DecodeString(cursor)
	if bad != nil {
		return nil, badCursor()
	}
	page, last, err := w.service.rooms(ctx, string(after), limit)
	if err != nil {
		return nil, err
	}
	b := []byte(`{"rooms":[`)
	for i, room := range page {
		b = append(b, ","[:min(i, 1)]...)
		b = appendText(b, `{"roomId":`, room.id)
		b = appendNumber(b, `,"count":`, int64(room.conns))
		b = append(appendNumber(b, `,"users":`, int64(room.users)), '}')
	}
	b = append(b, ']')
	if last != "" {
		b = appendText(b, `,"cursor":`, base64.RawURLEncoding.EncodeToString([]byte(last)))
	}
	return append(b, '}'), nil
}

func (w *web) room(ctx context.Context, r *http.Request) ([]byte, error) {
	limit, cursor, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	after, err := decodeCursor(cursor)
	if err != nil {
		return nil, err
	}
	id := r.PathValue("roomId")
	if err := checkID("roomId", id, w.service.options.Limits.IDBytes); err != nil {
		return nil, err
	}
	var part page
	err = w.hub.page(ctx, id, after, limit, nil, func(given page) frameParts {
		part = given
		return nil
	})
	if err != nil {
		return nil, err
	}
	b := part.appendHead(appendText(nil, `{"roomId":`, id), "members", false)
	return append(append(slices.Grow(b, len(part.entries)+1), part.entries...), '}'), nil
}

func (w *web) user(ctx context.Context, r *http.Request) ([]byte, error) {
	id := r.PathValue("userId")
	if err := checkID("userId", id, w.service.options.Limits.IDBytes); err != nil {
		return nil, err
	}
	conns, lastSeen, err := w.service.whereabouts(ctx, id)
	if err != nil {
		return nil, err
	}
	b := appendText(nil, `{"userId":`, id)
	if len(conns) > 0 {
		b = append(b, `,"online":true,"conns":[`...)
	} else {
		b = append(b, `,"online":false,"conns":[`...)
	}
	for i, c := range conns {
		b = append(b, ","[:min(i, 1)]...)
		b = append(appendText(b, `{"roomId":`, c.room), ',')
		b = append(b, c.entry.appendJSON(nil)[1:]...)
	}
	b = append(b, ']')
	if lastSeen > 0 {
		b = appendNumber(b, `,"lastSeenMs":`, lastSeen)
	}
	return append(b, '}'), nil
}

func (w *web) kick(ctx context.Context, r *http.Request) ([]byte, error) {
	room, conn := r.PathValue("roomId"), r.PathValue("connId")
	if err := w.service.Kick(ctx, room, conn); err != nil {
		return nil, err
	}
	w.log.Info("connection kicked", "room", room, "conn", conn)
	return nil, nil
}

// pageOf reads the query of a request for a page.
func pageOf(r *http.Request) (limit int, cursor string, err error) {
	query := r.URL.Query()
	limit = maxPage
	if text := query.Get("limit"); text != "" {
		var refused *Error
		if limit, refused = decodeLimit([]byte(text)); refused != nil {
			return 0, "", refused
		}
	}
	return limit, query.Get("cursor"), nil
}

// statusOf is the status of an answer with that code.
func statusOf(code Code) int {
	switch code {
	case CodeInvalidPayload, CodeTooManyUsers:
		return http.StatusBadRequest
	case CodeUnauthorized:
		return http.StatusUnauthorized
	case CodeNotJoined, httpNotFound:
		return http.StatusNotFound
	case httpMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case httpAdapterOff:
		return http.StatusConflict
	case httpTooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusServiceUnavailable // CodeUnavailable, CodeShuttingDown
}

func writeError(out http.ResponseWriter, err *Error) {
	if err.Code == CodeUnauthorized {
		out.Header().Set("WWW-Authenticate", "Bearer")
	}
	writeJSON(out, statusOf(err.Code), err.appendJSON(nil))
}

func writeJSON(out http.ResponseWriter, status int, body []byte) {
	out.Header().Set("Content-Type", "application/json")
	out.Header().Set("Cache-Control", "no-store")
	out.Header().Set("X-Content-Type-Options", "nosniff")
	out.WriteHeader(status)
	_, _ = out.Write(body) // who asked may be gone
}
