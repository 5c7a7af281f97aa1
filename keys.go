package main

import (
	"strconv"
	"strings"
)

// Every key and channel in Redis begins with this.
const keyPrefix = "prs:"

// Keys outside of any room's slot. They may hold too much, never too little: whoever reads them checks in the room.
const (
	// activeRoomsKey is the reaper's index. Sorted set: room id → milliseconds, Redis' clock, at which the room is
	// next to be looked at. A score with a fraction marks a claim of a reaper. No TTL.
	activeRoomsKey = keyPrefix + "active_rooms"

	// leasesKey is in the slot of {nodes}. Sorted set: node → milliseconds, Redis' clock, at which its lease ends. A score
	// with a fraction marks a node that was declared lost, and when the claim of the reaper that removes its connections
	// is over. It expires leaseKeysTTL after the last renewal.
	leasesKey = keyPrefix + "{nodes}:leases"
)

// nodeRoomsKey is in the slot of {nodes}. Hash: room in which the node has connections → generation of the lease in which that
// was declared. It expires leaseKeysTTL after the node's last renewal.
func nodeRoomsKey(node string) string {
	return keyPrefix + "{nodes}:" + node + ":rooms"
}

const (
	eventsPrefix = keyPrefix + "{room:"
	eventsSuffix = "}:events"

	// eventsPattern matches the event channel of every room.
	eventsPattern = eventsPrefix + "*" + eventsSuffix
)

// probeChannel is a channel of one subscription connection, which hears on it what it says itself: so it knows that it is
// alive. Its name is chosen so that its slot is at the connection's master.
func probeChannel(id string) string { return keyPrefix + "probe:" + id }

// roomKeys are the keys of one room. The first brace of each opens the hash tag and no part before it can hold
// another, so they share one slot of a cluster whatever the room's id holds.
type roomKeys struct {
	prefix string
}

func keysOf(room string) roomKeys {
	return roomKeys{prefix: keyPrefix + "{room:" + room + "}:"}
}

// meta is a hash: connection id → epoch, revision, node, user and state, as lua/room.lua writes it.
// It is the truth about who is in the room and lives as long as the room has members.
func (k roomKeys) meta() string { return k.prefix + "conn_meta" }

// members is a hash: user id → number of its connections. It lives as long as the room has members.
func (k roomKeys) members() string { return k.prefix + "members" }

// lastSeen is a sorted set: connection id → milliseconds of its last heartbeat. It lives as long as the room has members.
func (k roomKeys) lastSeen() string { return k.prefix + "last_seen" }

// revision is a string: the room's revision and epoch counter. After the room emptied it is kept for as long as it has lived by
// then, at least leastCounterLife and at most an hour.
func (k roomKeys) revision() string { return k.prefix + "rev" }

// conns is a set of connection ids. It lives as long as the room has members.
func (k roomKeys) conns() string { return k.prefix + "conns" }

// origin is a string: the revision with which the room's counter began, or went on after it had lost some. Who reads the room
// learns from it that data were lost, though the counter rose. It expires an hour after that, or after the room was last empty. In an
// empty room it expires with the counter.
func (k roomKeys) origin() string { return k.prefix + "origin" }

// held is a sorted set, all scores 0: user and connection of those that are held back after a broken connection. It may name
// too many. It expires an hour after the last of them has to leave.
func (k roomKeys) held() string { return k.prefix + "held" }

// devices is a hash: user and device → connection of the member with that device. It may name too many. It expires two lookbacks,
// and not within an hour, after the last join of a member with a device, or after a reaper last looked at the room.
func (k roomKeys) devices() string { return k.prefix + "devices" }

// events is the channel that carries each change of the room once.
func (k roomKeys) events() string { return k.prefix + "events" }

// connKey is a hash with the connection's fields. It expires one TTL after the connection's last heartbeat.
// A connection id holds no colon, so two (room, connection) pairs never share a key.
func connKey(room, conn string) string {
	return keyPrefix + "conn:{room:" + room + "}:" + conn
}

// probeRoom names a room of reapers, in one slot or another. No client can name it: ids hold no control characters.
func probeRoom(n int) string { return "\x01" + strconv.Itoa(n) }

// probeKeys are the KEYS of a write that shows whether members in this slot can be refreshed. It leaves none of them behind.
func probeKeys(room string) []string {
	k := keysOf(room)
	return []string{k.lastSeen(), connKey(room, "probe"), k.revision()}
}

// leaseProbeKeys are those of a write that shows whether leases can be renewed. It leaves the second behind no more than it
// changes the first.
func leaseProbeKeys() []string { return []string{leasesKey, nodeRoomsKey("probe")} }

const kickPrefix = keyPrefix + "kick:"

// kickKey is a string: the epoch up to which the connection was removed for good, by an operator, with ".25" behind it if its node is
// to end it as well, or with ".5" by a member with the same device. It expires after two lookbacks, and not within an hour.
func kickKey(room, conn string) string {
	return kickPrefix + "{room:" + room + "}:" + conn
}

// indices are the keys that every script of a room takes first, in this order.
func (k roomKeys) indices() []string {
	return []string{k.meta(), k.members(), k.lastSeen(), k.revision(), k.conns(), k.origin()}
}

// scriptKeys are the KEYS of a script that works on these connections of a room.
func scriptKeys(room string, conns ...string) []string {
	keys := make([]string, 0, 6+len(conns))
	keys = append(keys, keysOf(room).indices()...)
	for _, conn := range conns {
		keys = append(keys, connKey(room, conn))
	}
	return keys
}

// fencedKeys are the KEYS of a script that heeds or sets the kick fence of a connection, and may have others leave.
func fencedKeys(room, conn string, others ...string) []string {
	keys := append(scriptKeys(room, conn), kickKey(room, conn))
	return append(keysOfOthers(keys, room, others), keysOf(room).devices())
}

// keysOfOthers adds the keys of connections that a script may have leave.
func keysOfOthers(keys []string, room string, others []string) []string {
	for _, conn := range others {
		keys = append(keys, connKey(room, conn), kickKey(room, conn))
	}
	return keys
}

// userKey is a hash: "connection:room" → an epoch not above that of the connection there. It expires two lookbacks
// after its last renewal.
func userKey(user string) string {
	return keyPrefix + "user:" + user + ":conns"
}

// lastSeenKey is a string in the slot of userKey: milliseconds, Redis' clock, of the user's last leave of a room. It expires
// Options.LastSeen after that.
//
// A user's id with a hash tag puts both keys into its slot. Else the slot of userKey is that of its whole text, which is the hash tag
// here; a text that cannot be one, because of a brace in it, is matched by a suffix.
func lastSeenKey(user string) string {
	index := userKey(user)
	switch {
	case hashTag(index) != index:
		return keyPrefix + "user:" + user + ":last_seen"
	case !strings.Contains(user, "}"):
		return keyPrefix + "last_seen:{" + index + "}"
	default:
		return inSlotOf(index, keyPrefix+"user:"+user+":last_seen:")
	}
}

// userKeys are the KEYS of a script that works on the index of a user.
func userKeys(user string) []string { return []string{userKey(user), lastSeenKey(user)} }

// lostNodes is in the place of a user, and no user's id: its channel carries that a node was lost, which may have removed
// members and told nobody that their users went.
const lostNodes = "\n"

// userChannel carries that a user may have come or gone. It is named like the index, and so in its slot.
func userChannel(user string) string { return userKey(user) }

// userOfChannel is the user that the channel is about.
func userOfChannel(channel string) (user string, ok bool) {
	rest, ok := strings.CutPrefix(channel, keyPrefix+"user:")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, ":conns")
}

// userField names a connection in a room within userKey. The first colon ends the connection id.
func userField(room, conn string) string {
	return conn + ":" + room
}

// roomOfKeys is the room of a script's KEYS.
func roomOfKeys(keys []string) string {
	return strings.TrimSuffix(strings.TrimPrefix(keys[0], eventsPrefix), "}:conn_meta")
}

// roomOfChannel is the room whose events the channel carries.
func roomOfChannel(channel string) (room string, ok bool) {
	rest, ok := strings.CutPrefix(channel, eventsPrefix)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, eventsSuffix)
}

// inSlotOf is the prefix with three letters or digits behind it that put it into the slot of a key. Neither has a hash tag.
func inSlotOf(key, prefix string) string {
	const letters, slots = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", 16384
	want, begun := crc16(0, key)%slots, crc16(0, prefix)
	for _, a := range letters {
		for _, b := range letters {
			pair := string(a) + string(b)
			before := crc16(begun, pair)
			for _, c := range letters {
				if crc16(before, string(c))%slots == want {
					return prefix + pair + string(c)
				}
			}
		}
	}
	return prefix // three of 62 characters reach every slot
}

// crc16 goes on with the checksum by which a cluster assigns keys to slots: CRC16 (XMODEM).
func crc16(crc uint16, text string) uint16 {
	for _, c := range []byte(text) {
		crc ^= uint16(c) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return crc
}

// hashTag is the part of a key that decides where in a cluster it is.
func hashTag(key string) string {
	if _, behind, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(behind, "}"); ok && tag != "" {
			return tag
		}
	}
	return key
}
