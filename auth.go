package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The time between the goodbye of an expired token and the end of a client that does not take it.
const goodbye = 500 * time.Millisecond

// grant is what a token allows its bearer.
type grant struct {
	user    string
	rooms   []string // patterns, see matches; nil = all rooms
	watch   bool     // whether users may be watched
	expires time.Time
}

// allows tells whether the bearer may be in a room and read it. Without authentication, g is nil and everybody may.
func (g *grant) allows(room string) bool {
	return g == nil || g.rooms == nil || slices.ContainsFunc(g.rooms, func(pattern string) bool { return matches(pattern, room) })
}

// checkRoom returns nil for a room that the bearer may be in.
func (g *grant) checkRoom(room string) error {
	if g.allows(room) {
		return nil
	}
	return &Error{Code: CodeForbidden, Message: "the token does not allow this room"}
}

// checkWatch returns nil if the bearer may watch users.
func (g *grant) checkWatch() error {
	if g == nil || g.watch {
		return nil
	}
	return &Error{Code: CodeForbidden, Message: "the token does not allow to watch users"}
}

// checkUser returns nil for a user that the bearer may be.
func (g *grant) checkUser(user string) error {
	if g == nil || user == g.user {
		return nil
	}
	return &Error{Code: CodeForbidden, Message: "the token does not allow this userId"}
}

// bearer is the user of the token, "" without authentication.
func (g *grant) bearer() string {
	if g == nil {
		return ""
	}
	return g.user
}

// matches tells whether text has the form of pattern, where each * stands for any characters, also for none.
func matches(pattern, text string) bool {
	part, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, part)
	for ok {
		part, rest, wild = strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(text, part)
		}
		_, text, ok = strings.Cut(text, part)
	}
	return false
}

// authority decides which tokens are good.
type authority struct {
	rules   *jwt.Validator
	idBytes int
	fixed   []tokenKey
	set     *keySet // nil if there is none
	stop    context.CancelFunc
}

// newAuthority reads the keys of the settings. It is nil if there are none: then nobody needs a token. Each error is a line
// about one variable.
func newAuthority(config Config, log *slog.Logger) (a *authority, errs []error) {
	a = &authority{idBytes: config.MaxIDBytes, stop: func() {}}
	if config.JWTSecret != "" {
		a.fixed = append(a.fixed, tokenKey{method: jwt.SigningMethodHS256, key: []byte(config.JWTSecret)})
	}
	if path := config.JWTPublicKeyFile; path != "" {
		key, err := readPublicKey(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("PRESENCE_JWT_PUBLIC_KEY_FILE=%q: must be a PEM file with a public key: %w", path, err))
		}
		a.fixed = append(a.fixed, key)
	}
	if path := config.JWKSFile; path != "" {
		var err error
		if a.set, err = newKeySet(path, log); err != nil {
			errs = append(errs, fmt.Errorf("PRESENCE_JWKS_FILE=%q: must be a file with a JWK set: %w", path, err))
		}
	}
	if len(errs) > 0 || len(a.fixed) == 0 && a.set == nil {
		return nil, errs
	}
	options := []jwt.ParserOption{jwt.WithLeeway(tokenLeeway), jwt.WithExpirationRequired()}
	if config.JWTIssuer != "" {
		options = append(options, jwt.WithIssuer(config.JWTIssuer))
	}
	if config.JWTAudience != "" {
		options = append(options, jwt.WithAudience(config.JWTAudience))
	}
	a.rules = jwt.NewValidator(options...)
	return a, nil
}

// start has the file with the set of keys watched until close.
func (a *authority) start() {
	if a == nil || a.set == nil {
		return
	}
	var ctx context.Context
	ctx, a.stop = context.WithCancel(context.Background())
	go a.set.watch(ctx)
}

// close ends start, and waits for it until the end of ctx: a file system may hang.
func (a *authority) close(ctx context.Context) {
	if a == nil || a.set == nil {
		return
	}
	a.stop()
	select {
	case <-a.set.ended:
	case <-ctx.Done():
	}
}

// expiry ends a client when its token is no longer good: it says goodbye, and soon after closes the connection.
type expiry struct {
	client *client

	mu    mutex[ofNone]
	at    time.Time
	over  bool
	timer *time.Timer
}

func startExpiry(c *client, at time.Time) *expiry {
	e := &expiry{client: c, at: at}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timer = time.AfterFunc(time.Until(at), e.fire)
	return e
}

func (e *expiry) fire() {
	e.mu.Lock()
	wasOver, left := e.over, time.Until(e.at)
	switch {
	case wasOver:
	case left > 0:
		e.timer.Reset(left)
	default:
		e.over = true
		e.timer.Reset(goodbye)
	}
	e.mu.Unlock()
	switch {
	case wasOver:
		e.client.close()
	case left <= 0:
		e.client.send(eventFrame(eventExpired))
		e.client.disconnect()
	}
}

// move sets another time, unless it is too late for that.
func (e *expiry) move(at time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	e.at = at
	e.timer.Reset(time.Until(at))
	return true
}

// stop is for a client that has ended. One that was said goodbye to still gets no more than its time.
func (e *expiry) stop() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.over {
		e.timer.Stop()
	}
}
