package main

import (
	"context"
	"net/http"
)

// emitToRoom sends an application event to the sockets in a room.
func (w *web) emitToRoom(ctx context.Context, r *http.Request, body []byte) ([]byte, error) {
	room := r.PathValue("roomId")
	if err := checkID("roomId", room, w.service.options.Limits.IDBytes); err != nil {
		return nil, err
	}
	return w.emit(ctx, room, body)
}

// emitToAll sends an application event to all sockets.
func (w *web) emitToAll(ctx context.Context, _ *http.Request, body []byte) ([]byte, error) {
	return w.emit(ctx, "", body)
}

// emit answers once Redis has the event and the sockets of this node have it queued.
func (w *web) emit(ctx context.Context, room string, body []byte) ([]byte, error) {
	if w.casts == nil {
		return nil, &Error{Code: httpAdapterOff, Message: "application events are switched off by PRESENCE_SOCKETIO_ADAPTER"}
	}
	event, args, refused := decodeEmit(body)
	if refused != nil {
		return nil, refused
	}
	if err := w.casts.emit(ctx, room, event, args); err != nil {
		return nil, err
	}
	return accepted, nil
}

// decodeEmit reads the body of a request for an application event.
func decodeEmit(body []byte) (event string, args [][]byte, err *Error) {
	var name, list []byte
	if err := readFields(body, field{"event", &name}, field{"args", &list}); err != nil {
		return "", nil, err
	}
	if name == nil {
		return "", nil, invalid("event is missing")
	}
	if event, err = decodeText("event", name); err != nil {
		return "", nil, err
	}
	if event == "" {
		return "", nil, invalid("event must not be empty")
	}
	if list == nil {
		return event, nil, nil
	}
	elements, ok := splitArray(list)
	if !ok {
		return "", nil, invalid("args must be an array")
	}
	for _, element := range elements {
		args = append(args, element)
	}
	return event, args, nil
}
