package main

import (
	"strings"
)

const (
	// Bytes of the members in one answer at most. With what stands around them, a message has at most 4 MB.
	maxPageBytes = 4<<20 - 1024

	// Bytes of the pages that a view keeps at most, besides the last one, and what each takes beyond its text. So who asks for every
	// page does not fill the memory.
	maxKeptBytes = 2 * maxPageBytes
	keptBytes    = 256

	// Bytes of an entry beyond its ids and its state.
	entryBytes = len(`{"connId":"","userId":"","state":,"deviceId":"","lastSeenMs":,"epoch":},`) + 2*len("1790000000000")
)

// view is a room at one moment, for all who are answered with it. What they are sent is built once, by the first of them,
// and not under the room's lock. It may be used from any goroutine.
type view struct {
	rev     int64
	all     tally
	members members
	version uint64 // of the replica

	mu    mutex[ofNone]
	pages map[wanted]page
	kept  int // bytes in pages
}

// wanted is a part of a room: so many members behind a connection, 0 = all.
type wanted struct {
	after string
	limit int
}

// page is a part of a room's members, by connection id, and what the whole room has.
type page struct {
	rev     int64
	all     tally
	entries []byte // JSON array, which nobody changes
	last    string // connection id of the last one, or the place of a scan where the next page begins; "" if nobody follows
}

func (p *replica) view() *view {
	return &view{rev: p.rev, all: p.tally(), members: p.entries.view(), version: p.version, pages: map[wanted]page{}}
}

// shows tells whether the replica is still as the view has it.
func (v *view) shows(p *replica) bool { return v != nil && v.version == p.version && v.rev == p.rev }

// page gives the members behind a connection, at most limit, 0 = all. It has fewer where they would be larger than an answer may be.
func (v *view) page(after string, limit int) page {
	v.mu.Lock()
	defer v.mu.Unlock()
	what := wanted{after, limit}
	p, built := v.pages[what]
	if !built {
		p = v.build(what)
		if v.kept > maxKeptBytes {
			clear(v.pages)
			v.kept = 0
		}
		v.pages[what] = p
		v.kept += cap(p.entries) + len(after) + keptBytes
	}
	return p
}

func (v *view) build(what wanted) page {
	p := page{rev: v.rev, all: v.all}
	size, members, last := len("[]"), 0, ""
	for e := range v.members.after(what.after) {
		n := e.size()
		if what.limit > 0 && members == what.limit || members > 0 && size+n > maxPageBytes {
			p.last = last
			break
		}
		size, members, last = size+n, members+1, e.ConnID
	}
	p.entries = append(make([]byte, 0, size), '[')
	for e := range v.members.after(what.after) {
		if members == 0 {
			break
		}
		if members--; len(p.entries) > 1 {
			p.entries = append(p.entries, ',')
		}
		p.entries = e.appendJSON(p.entries)
	}
	p.entries = append(p.entries, ']')
	return p
}

// size is how many bytes the entry takes in an answer, or some more.
func (e *Entry) size() int {
	return entryBytes + len(e.ConnID) + escapedLen(e.UserID) + escapedLen(e.DeviceID) + len(e.State)
}

// escapedLen is the length of an id as JSON, without the quotes.
func escapedLen(id string) int { return len(id) + strings.Count(id, `"`) + strings.Count(id, `\`) }

// appendHead appends, within an object, what precedes the members, and the name under which they follow. Without whole it
// tells how many are in the room, and how to ask for the next page.
func (p page) appendHead(b []byte, name string, whole bool) []byte {
	b = appendNumber(b, `,"rev":`, p.rev)
	if !whole || p.last != "" {
		b = appendNumber(b, `,"count":`, int64(p.all.count))
		b = appendNumber(b, `,"users":`, int64(p.all.users))
	}
	if p.last != "" {
		b = appendText(b, `,"cursor":`, encodeCursor(p.last))
	}
	return append(appendString(append(b, ','), name), ':')
}
