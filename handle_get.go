package main

import (
	"context"
	"encoding/base64"
)

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
