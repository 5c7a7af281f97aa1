package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
)

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
