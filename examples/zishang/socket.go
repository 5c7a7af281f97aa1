package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/zishang520/socket.io/servers/socket/v3"
)

// answerWithin bounds the time that a request waits for Redis.
const answerWithin = 2 * time.Second

// session is one socket and the rooms that it has joined.
type session struct {
	io      *socket.Server
	service *Service
	socket  *socket.Socket

	mu    sync.Mutex // held during a request, and during the end: the library calls them in different goroutines
	ended bool
	rooms map[string]bool
}

// socketRoom is the library's room for a presence room. Each socket is alone in a room that is named by its id, so the name of
// a presence room must never be taken as it is.
func socketRoom(room string) socket.Room { return socket.Room("presence:" + room) }

// serve registers what a new socket may send. The end comes first: a socket that ends meanwhile has joined nothing.
func serve(io *socket.Server, service *Service, s *socket.Socket) {
	c := &session{io: io, service: service, socket: s, rooms: map[string]bool{}}
	s.On("disconnect", func(...any) { c.end() })
	c.on("presence:join", c.join)
	c.on("presence:heartbeat", c.heartbeat)
	c.on("presence:leave", c.leave)
	c.on("chat", c.chat)
}

// request is the first argument of an event.
type request map[string]any

// text is a field that has to be a string, else it is "", which is a bad id.
func (r request) text(field string) string {
	text, _ := r[field].(string)
	return text
}

// object is a field as JSON, nil if it is absent or null. The service refuses what is no object.
func (r request) object(field string) (json.RawMessage, error) {
	if r[field] == nil {
		return nil, nil
	}
	text, err := json.Marshal(r[field])
	if err != nil {
		return nil, invalid(field + " is no JSON") // it may hold what came as binary
	}
	return text, nil
}

// epoch is the field of that name, 0 if it is absent, and -1, which no member has, if it is no epoch.
func (r request) epoch() int64 {
	switch epoch := r["epoch"].(type) {
	case nil:
		return 0
	case float64:
		if epoch >= 1 {
			return int64(epoch)
		}
	}
	return -1
}

// on registers a request and answers it, if the client has asked for an acknowledgement.
func (c *session) on(event string, do func(context.Context, request) (any, error)) {
	c.socket.On(event, func(args ...any) {
		var r request
		if len(args) > 0 {
			r, _ = args[0].(map[string]any) // anything else has no fields
		}
		answer := c.answer(r, do)
		if len(args) == 0 {
			return
		}
		if acknowledge, ok := args[len(args)-1].(socket.Ack); ok {
			acknowledge([]any{answer}, nil)
		}
	})
}

func (c *session) answer(r request, do func(context.Context, request) (any, error)) any {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	answer, err := do(ctx, r)
	if err == nil {
		return answer
	}
	refused := unavailable(err)
	errors.As(err, &refused)
	return json.RawMessage(refused.appendAck(nil))
}

// join takes the socket into the library's room before the member is written, so that it misses no event.
func (c *session) join(ctx context.Context, r request) (any, error) {
	room := r.text("roomId")
	state, err := r.object("state")
	if err != nil {
		return nil, err
	}
	again := c.rooms[room]
	c.socket.Join(socketRoom(room))
	c.rooms[room] = true
	joined, err := c.service.Join(ctx, room, r.text("userId"), c.id(), state)
	if err != nil {
		if !again {
			_ = c.depart(ctx, room) // it may be in Redis, where the reaper removes it if this fails
		}
		return nil, err
	}
	return map[string]any{
		"ok": true, "self": map[string]any{"connId": c.id(), "epoch": joined.Epoch},
		"snapshot": joined.Snapshot.Entries, "rev": joined.Snapshot.Rev,
		"ttlMs": c.service.options.TTL.Milliseconds(),
	}, nil
}

func (c *session) heartbeat(ctx context.Context, r request) (any, error) {
	room := r.text("roomId")
	patch, err := r.object("patchState")
	if err != nil {
		return nil, err
	}
	changed, epoch, err := c.service.Heartbeat(ctx, room, c.id(), patch, r.epoch())
	if refused := new(Error); errors.As(err, &refused) && refused.Code == CodeNotJoined {
		_ = c.depart(ctx, room) // it was kicked, or silent for too long
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"ok": true, "changed": changed, "epoch": epoch}, nil
}

func (c *session) leave(ctx context.Context, r request) (any, error) {
	if err := c.depart(ctx, r.text("roomId")); err != nil {
		return nil, err
	}
	return map[string]any{"ok": true}, nil
}

// chat is an event of the application: it goes to the sockets in a room that are connected to this process.
func (c *session) chat(_ context.Context, r request) (any, error) {
	room := r.text("roomId")
	if !c.rooms[room] {
		return nil, notJoined()
	}
	err := c.io.To(socketRoom(room)).Emit("chat", map[string]any{"roomId": room, "connId": c.id(), "text": r["text"]})
	return map[string]any{"ok": err == nil}, err
}

// depart ends the events of a room and removes the member.
func (c *session) depart(ctx context.Context, room string) error {
	c.socket.Leave(socketRoom(room))
	delete(c.rooms, room)
	return c.service.Leave(ctx, room, c.id())
}

// end removes the members. Where Redis does not answer they are removed after two TTLs, as nobody sends heartbeats for them.
func (c *session) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	for room := range c.rooms {
		if err := c.depart(ctx, room); err != nil {
			slog.Warn("the leave of a closed socket is not confirmed", "room", room, "conn", c.id(), "error", err)
		}
	}
}

func (c *session) id() string { return string(c.socket.Id()) }
