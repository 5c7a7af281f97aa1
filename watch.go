package main

import "context"

// watch answers presence:watch: from then on the client is told of a room that it need not be in, or of users.
func (c *connection) watch(ctx context.Context, payload []byte, id ackID) ([]byte, error) {
	p, refused := decodeWatch(payload, c.service.options.Limits, c.maxUsers)
	if refused != nil {
		return nil, refused
	}
	if p.UserIDs != nil {
		return nil, &Error{Code: CodeInvalidPayload, Message: "userIds cannot be watched yet"}
	}
	return nil, c.watchRoom(ctx, p, id)
}

// watchRoom answers by itself when it worked, as a join does.
func (c *connection) watchRoom(ctx context.Context, p watchPayload, id ackID) error {
	if err := c.grant.checkRoom(p.RoomID); err != nil {
		return err
	}
	r, again := c.watched[p.RoomID]
	if !again {
		if err := c.roomForOneMore(); err != nil {
			return err
		}
		r = c.hub.acquire(p.RoomID)
	}
	rev, _, err := c.hub.source.size(ctx, r.id)
	if err == nil {
		err = r.admit(ctx, newWaiter(rev, c.client, asWatcher, p.Mode, func(v view) {
			if id != nil {
				c.client.ack(id, append(v.first(p.Limit).appendTo([]byte(`{"ok":true`), "snapshot"), '}'))
			}
		}))
	}
	switch {
	case again:
	case err != nil:
		c.hub.release(r)
	case c.watched == nil:
		c.watched = map[string]*room{p.RoomID: r}
	default:
		c.watched[p.RoomID] = r
	}
	return err
}

// unwatch answers presence:unwatch. What is not watched is no error.
func (c *connection) unwatch(_ context.Context, payload []byte, _ ackID) ([]byte, error) {
	p, refused := decodeUnwatch(payload, c.service.options.Limits, c.maxUsers)
	if refused != nil {
		return nil, refused
	}
	if p.UserIDs == nil {
		c.unwatchRooms(p.RoomID)
	}
	return []byte(`{"ok":true}`), nil
}

// unwatchRooms ends the watching of one room, "" = of all.
func (c *connection) unwatchRooms(id string) {
	for at, r := range c.watched {
		if id == "" || id == at {
			r.leave(c.client, asWatcher)
			c.hub.release(r)
			delete(c.watched, at)
		}
	}
}
