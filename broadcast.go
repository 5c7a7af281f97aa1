package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// The wire of @socket.io/redis-adapter: a message for one room goes to the channel
// of that room, any other to the namespace's. Its requests, such as fetchSockets,
// have channels of their own, which we do not subscribe to: who asks counts the
// subscribers and waits for them.
const (
	adapterChannel = "socket.io#/#"
	adapterPattern = adapterChannel + "*"
	adapterNsp     = "/"
	packetEvent    = 2 // of Socket.IO's packet types
)

const (
	// maxNesting bounds the arrays and maps within each other in an argument of an
	// application event.
	maxNesting = 200

	// messageNesting is how many are around an argument.
	messageNesting = 3
)

// localSockets are the sockets of this node.
type localSockets interface {
	// broadcast sends the frame once to each socket that is in one of the rooms, or
	// to all if there are none, but not to those in one of the rooms of except.
	broadcast(rooms, except []string, f frame)
}

// broadcaster carries application events between the sockets of this node and the
// other processes on the same Redis: nodes of this server, Node.js servers with
// @socket.io/redis-adapter, and @socket.io/redis-emitter. Events of presence do not
// go this way.
type broadcaster struct {
	*background
	uid   string // begins those of our own messages, which come back
	rdb   redis.UniversalClient
	local localSockets
	log   *slog.Logger

	emitted atomic.Uint64 // messages of emit so far
	own     ownMessages
}

// newBroadcaster subscribes, and delivers to the local sockets until close.
func newBroadcaster(rdb redis.UniversalClient, local localSockets, log *slog.Logger) *broadcaster {
	b := &broadcaster{background: newBackground(), uid: rand.Text(), rdb: rdb, local: local, log: log}
	b.keep(log, "application events", func() { b.listen(b.ctx) }, nil)
	return b
}

// close ends the subscription and waits for it.
func (b *broadcaster) close() {
	b.end()
}

// Broadcast sends an event to every socket in the room, on whatever node it is. The
// arguments are sent as JSON. The sockets of this node get it even if there is an
// error, which then means that those of others may not have.
func (b *broadcaster) Broadcast(ctx context.Context, room, event string, args ...any) error {
	if reservedEvent(event) {
		return fmt.Errorf("%q is a name of Socket.IO or of presence", event)
	}
	encoded := make([][]byte, len(args))
	for i, arg := range args {
		var err error
		if encoded[i], err = json.Marshal(arg); err != nil {
			return fmt.Errorf("argument %d of %q: %w", i, event, err)
		}
	}
	message, err := encodeMessage(b.uid, []string{room}, event, encoded)
	if err != nil {
		return fmt.Errorf("encode %q: %w", event, err)
	}
	b.local.broadcast([]string{room}, nil, eventFrame(event, encoded...))
	if err := b.publish(ctx, adapterChannel+room+"#", message); err != nil {
		return fmt.Errorf("publish %q: %w", event, err)
	}
	return nil
}

// publish sends all messages of a channel through the same server of a cluster: any
// server takes them, but those that take different ways overtake each other.
func (b *broadcaster) publish(ctx context.Context, channel string, message []byte) error {
	cluster, ok := b.rdb.(*redis.ClusterClient)
	if !ok {
		return b.rdb.Publish(ctx, channel, message).Err()
	}
	master, err := cluster.MasterForKey(ctx, channel)
	if err != nil {
		return err
	}
	return master.Publish(ctx, channel, message).Err()
}

// reservedEvent tells whether a client takes the event for one of Socket.IO or of presence.
func reservedEvent(name string) bool {
	switch name {
	case "connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener":
		return true
	}
	return strings.HasPrefix(name, presencePrefix)
}

// listen subscribes anew whenever the subscription is lost. What is sent meanwhile
// does not reach the sockets of this node; application events have no history.
func (b *broadcaster) listen(ctx context.Context) {
	level := slog.LevelWarn
	for ctx.Err() == nil {
		err := receive(ctx, b.rdb.PSubscribe(ctx, adapterPattern), func(item any) {
			level = slog.LevelWarn
			if m, ok := item.(*redis.Message); ok {
				b.deliver(m.Payload)
			}
		})
		if ctx.Err() == nil {
			b.log.Log(ctx, level, "subscription to application events lost", "error", err)
			level = slog.LevelDebug // until one has worked: each try fails alike
		}
		pause(ctx, subscriptionPause)
	}
}

// deliver hands a message to the local sockets, unless it is our own and they have it,
// not for them, or not to be understood: anybody may publish on these channels.
func (b *broadcaster) deliver(payload string) {
	m, err := decodeMessage(payload)
	switch {
	case err != nil:
		b.log.Debug("application event ignored", "error", err)
	case !strings.HasPrefix(m.uid, b.uid), b.own.take(m.uid):
		b.local.broadcast(m.rooms, m.except, eventFrame(m.event, m.args...))
	}
}

// adapterMessage is an application event on its way between nodes.
type adapterMessage struct {
	uid    string
	rooms  []string // none = all sockets
	except []string
	event  string
	args   [][]byte // JSON
}

// decodeMessage reads what the adapter or the emitter sends. What has no form in
// JSON, binary data above all, is an error, as is any packet but an event of the
// namespace "/".
func decodeMessage(payload string) (m adapterMessage, err error) {
	text, err := (&transcoder{msgpack.NewDecoder(strings.NewReader(payload))}).appendValue(nil, messageNesting+maxNesting)
	if err != nil {
		return m, err
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(text, &parts); err != nil || len(parts) != 3 || string(parts[2]) == "null" {
		return m, errors.New("not the three parts of a message")
	}
	packet := struct {
		Type int
		Data []json.RawMessage
		Nsp  *string
	}{}
	options := struct{ Rooms, Except []string }{}
	err = errors.Join(json.Unmarshal(parts[0], &m.uid), json.Unmarshal(parts[1], &packet), json.Unmarshal(parts[2], &options))
	switch {
	case err != nil:
		return m, err
	case packet.Type != packetEvent:
		return m, fmt.Errorf("packet of type %d", packet.Type)
	case packet.Nsp != nil && *packet.Nsp != adapterNsp:
		return m, fmt.Errorf("namespace %q", *packet.Nsp)
	case len(packet.Data) == 0 || json.Unmarshal(packet.Data[0], &m.event) != nil || packet.Data[0][0] != '"':
		return m, errors.New("event without a name")
	}
	for _, arg := range packet.Data[1:] {
		m.args = append(m.args, arg)
	}
	m.rooms, m.except = options.Rooms, options.Except
	return m, nil
}

// transcoder turns MessagePack into JSON.
type transcoder struct{ *msgpack.Decoder }

// appendValue appends the next value to b as JSON.stringify would write it after the
// adapter's own decoding, but with all digits of 64-bit numbers. It fails where more
// than depth arrays and maps are within each other.
func (t *transcoder) appendValue(b []byte, depth int) ([]byte, error) {
	if depth < 0 {
		return nil, errors.New("nested too deeply")
	}
	code, err := t.PeekCode()
	if err != nil {
		return nil, err
	}
	switch {
	case code == msgpcode.Nil:
		return append(b, "null"...), t.DecodeNil()
	case code == msgpcode.True, code == msgpcode.False:
		v, err := t.DecodeBool()
		return strconv.AppendBool(b, v), err
	case code == msgpcode.Float, code == msgpcode.Double:
		return t.appendFloat(b)
	case code == msgpcode.Uint64:
		n, err := t.DecodeUint64()
		return strconv.AppendUint(b, n, 10), err
	case msgpcode.IsFixedNum(code), code >= msgpcode.Uint8 && code <= msgpcode.Int64:
		n, err := t.DecodeInt64()
		return strconv.AppendInt(b, n, 10), err
	case msgpcode.IsString(code):
		s, err := t.DecodeString()
		return appendString(b, strings.ToValidUTF8(s, "\ufffd")), err
	case msgpcode.IsFixedArray(code), code == msgpcode.Array16, code == msgpcode.Array32:
		return t.appendArray(b, depth)
	case msgpcode.IsFixedMap(code), code == msgpcode.Map16, code == msgpcode.Map32:
		return t.appendMap(b, depth)
	case msgpcode.IsExt(code):
		return t.appendTime(b)
	}
	return nil, fmt.Errorf("MessagePack code %#x has no form in JSON", code)
}

// appendFloat writes null for what is no number, as JSON.stringify does.
func (t *transcoder) appendFloat(b []byte) ([]byte, error) {
	f, err := t.DecodeFloat64()
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return append(b, "null"...), err
	}
	text, err := json.Marshal(f)
	return append(b, text...), err
}

func (t *transcoder) appendArray(b []byte, depth int) ([]byte, error) {
	n, err := t.DecodeArrayLen()
	if err != nil {
		return nil, err
	}
	b = append(b, '[')
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = t.appendValue(b, depth-1); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func (t *transcoder) appendMap(b []byte, depth int) ([]byte, error) {
	n, err := t.DecodeMapLen()
	if err != nil {
		return nil, err
	}
	b = append(b, '{')
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		if code, err := t.PeekCode(); err != nil || !msgpcode.IsString(code) {
			return nil, errors.Join(errors.New("the key of a map is not a text"), err)
		}
		if b, err = t.appendValue(b, depth-1); err != nil {
			return nil, err
		}
		if b, err = t.appendValue(append(b, ':'), depth-1); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// appendTime writes a Date of JavaScript, the only extension that has a form in JSON.
func (t *transcoder) appendTime(b []byte) ([]byte, error) {
	v, err := t.DecodeTime()
	if err != nil {
		return nil, err
	}
	if v = v.UTC(); v.Year() < 0 || v.Year() > 9999 {
		return nil, errors.New("a date beyond the years of four digits")
	}
	return v.AppendFormat(append(b, '"'), `2006-01-02T15:04:05.000Z"`), nil
}
