package main

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// emit sends an event to every socket in the room, or to all if room is "", on whatever node it is. args are JSON. Event and
// arguments that clients cannot be sent are CodeInvalidPayload. CodeUnavailable means that it is not known whether Redis has
// taken the event: then the sockets of this node get it when those of others do, or not at all.
func (b *broadcaster) emit(ctx context.Context, room, event string, args [][]byte) error {
	if reservedEvent(event) {
		return invalid("event must not be a name of Socket.IO or of presence")
	}
	rooms, channel := []string{}, adapterChannel
	if room != "" {
		rooms, channel = []string{room}, adapterChannel+room+"#"
	}
	uid := b.uid + "-" + strconv.FormatUint(b.emitted.Add(1), 36)
	message, err := encodeMessage(uid, rooms, event, args)
	if err != nil {
		return invalid("args " + err.Error())
	}
	m, err := decodeMessage(string(message)) // so that the sockets of this node get what those of others get
	if err != nil {
		return invalid("args cannot be sent: " + err.Error())
	}
	b.own.begin(uid)
	err = b.publish(ctx, channel, message)
	if err == nil || errors.As(err, new(redis.Error)) {
		if b.own.take(uid) && err == nil {
			b.local.broadcast(m.rooms, m.except, eventFrame(m.event, m.args...))
		}
	} else if !b.own.doubt(uid) {
		return nil // it has come back: Redis has taken it
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// maxDoubtful is how many messages are remembered of which it is not known whether Redis has taken them.
const maxDoubtful = 1000

// ownMessages are those of emit that the sockets of this node have not got, by uid. Whoever takes one delivers it: emit when
// Redis has taken it, or who hears it come back.
type ownMessages struct {
	mu       mutex[ofNone]
	waiting  map[string]bool
	doubtful []string // of waiting: those whose publishing has failed, perhaps after Redis had taken them; oldest first
}

func (o *ownMessages) begin(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting == nil {
		o.waiting = map[string]bool{}
	}
	o.waiting[uid] = true
}

// take tells whether the message was still to be delivered.
func (o *ownMessages) take(uid string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	waited := o.waiting[uid]
	delete(o.waiting, uid)
	if i := slices.Index(o.doubtful, uid); i >= 0 {
		o.doubtful = slices.Delete(o.doubtful, i, i+1)
	}
	return waited
}

// doubt keeps a message that may come back. It is false if it has already.
func (o *ownMessages) doubt(uid string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.waiting[uid] {
		return false
	}
	if len(o.doubtful) == maxDoubtful {
		delete(o.waiting, o.doubtful[0])
		o.doubtful = o.doubtful[1:]
	}
	o.doubtful = append(o.doubtful, uid)
	return true
}
