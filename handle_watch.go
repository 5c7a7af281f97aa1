package main

import (
	"context"
	"maps"
	"slices"
)

// watch answers presence:watch: from then on the client is told of a room that it need not be in, or of users.
func (c *connection) watch(ctx context.Context, payload []byte, id ackID) ([]byte, error) {
	p, refused := decodeWatch(payload, c.service.options.Limits, c.maxUsers)
	if refused != nil {
		return nil, refused
	}
	if p.UserIDs != nil {
		return nil, c.watchUsers(ctx, p.UserIDs, id)
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
		w := newWaiter(rev, c.client, asWatcher, p.Mode, func(v *view) frameParts {
			first := v.page("", p.Limit)
			c.charge(&c.budget.others, len(first.entries)/eventBytes)
			return ackOf(id, first.appendHead([]byte(`{"ok":true`), "snapshot", false), first.entries, []byte{'}'})
		})
		w.limit = p.Limit
		err = r.admit(ctx, w)
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
	switch {
	case p.UserIDs != nil:
		c.unwatchUsers(p.UserIDs)
	case p.RoomID != "":
		c.unwatchRooms(p.RoomID)
	default:
		c.unwatchAll()
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

// watchUsers answers by itself when it worked: what the client is told of the users later comes after it.
func (c *connection) watchUsers(ctx context.Context, users []string, id ackID) error {
	if err := c.grant.checkWatch(); err != nil {
		return err
	}
	added := 0
	for _, user := range users {
		if !c.users[user] {
			added++
		}
	}
	if len(c.users)+added > c.maxUsers {
		return tooManyUsers(c.maxUsers)
	}
	c.charge(&c.budget.others, len(users)/eventUsers)
	err := c.userWatchers.watch(ctx, c.client, users, func(known []userOnline) {
		b := []byte(`{"ok":true,"users":[`)
		for i, user := range known {
			b = append(user.appendJSON(append(b, ","[:min(i, 1)]...)), '}')
		}
		c.client.ack(id, append(b, "]}"...))
	})
	if err != nil {
		return err
	}
	if c.users == nil {
		c.users = map[string]bool{}
	}
	for _, user := range users {
		c.users[user] = true
	}
	return nil
}

func (c *connection) unwatchUsers(users []string) {
	c.userWatchers.unwatch(c.client, users)
	for _, user := range users {
		delete(c.users, user)
	}
}

// unwatchAll ends all that the connection watches.
func (c *connection) unwatchAll() {
	c.unwatchRooms("")
	if len(c.users) > 0 {
		c.unwatchUsers(slices.Collect(maps.Keys(c.users)))
	}
}
