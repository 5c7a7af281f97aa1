package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// roomPicture is all that Redis has of a room.
type roomPicture struct {
	reply
	*model
	*ledger
	meta map[string]Member
	seen map[string]string
}

// judgeStore checks G6, what each key's life is, and that Redis has what it has published.
func (m *model) judgeStore(l *ledger) {
	cmd := redis.NewCmd(m.ctx, append([]any{"EVAL", modelPicture, 6}, append(anys(keysOf(l.room).indices()), l.room)...)...)
	m.do(cmd)
	list, err := cmd.Slice()
	if err != nil {
		m.wrong("the room cannot be read: %v", err)
		return
	}
	p := roomPicture{reply: list, model: m, ledger: l, meta: map[string]Member{}}
	p.seen = p.pairs(4)
	for conn, value := range p.pairs(2) {
		member, ok := parseMeta(value)
		if !ok {
			m.wrong("conn_meta of %s is %q", conn, value)
		}
		p.meta[conn] = member
	}
	p.judgeTruth()
	p.judgeIndices()
	p.judgeCounter()
	p.judgeHashes()
	p.judgeOuterIndices()
}

func anys(texts []string) (list []any) {
	for _, text := range texts {
		list = append(list, text)
	}
	return list
}

func (p roomPicture) judgeTruth() {
	stored := facts{}
	for conn, member := range p.meta {
		stored[conn] = fact{user: member.User, epoch: member.Epoch, rev: member.Rev, state: string(member.State), device: member.Device}
	}
	if !maps.Equal(stored, p.facts) {
		p.wrong("Redis has\n    %s\n  its events make\n    %s", stored, p.facts)
	}
}

func (p roomPicture) judgeIndices() {
	ids := slices.Sorted(maps.Keys(p.meta))
	var conns []string
	for i := range p.list(5) {
		conns = append(conns, p.list(5).text(i))
	}
	slices.Sort(conns)
	inLastSeen := slices.Sorted(maps.Keys(p.seen))
	if !slices.Equal(ids, conns) || !slices.Equal(ids, inLastSeen) {
		p.wrong("G6: conn_meta has %q, conns has %q, last_seen has %q", ids, conns, inLastSeen)
	}
	users := map[string]string{}
	for _, member := range p.meta {
		users[member.User] = strconv.Itoa(p.facts.count(member.User))
	}
	if !maps.Equal(users, p.pairs(3)) {
		p.wrong("G6: members is %v, the users in conn_meta are %v", p.pairs(3), users)
	}
}

func (p roomPicture) judgeCounter() {
	rev, life := p.int(0), time.Duration(p.int(1))*time.Millisecond
	switch {
	case rev != p.rev && !p.forgot:
		p.wrong("the room's revision is %d, the last event's %d", rev, p.rev)
	case len(p.meta) > 0 && life >= 0:
		p.wrong("the counter of a room with members expires in %v", life)
	case len(p.meta) == 0 && rev > 0 && (life <= 0 || life > time.Hour):
		p.wrong("the counter of an empty room expires in %v", life)
	}
}

// judgeHashes checks each connection's hash and when it was last heard of.
func (p roomPicture) judgeHashes() {
	p.judgeHolds()
	for i := range p.list(6) {
		entry := p.list(6).list(i)
		conn, life, hash := entry.text(0), time.Duration(entry.int(1))*time.Millisecond, entry.pairs(2)
		seen, _ := strconv.ParseInt(p.seen[conn], 10, 64)
		p.judgeSeen(conn, seen)
		m := p.meta[conn]
		if len(hash) == 0 {
			if ago := p.clock() - seen; ago < (modelTTL - 2*modelAging).Milliseconds() {
				p.wrong("G6: %s was heard of %d ms ago and has no hash", conn, ago)
			}
			continue
		}
		if life < 0 || life > modelTTL {
			p.wrong("the hash of %s lives %v, want at most %v", conn, life, modelTTL)
		}
		want := map[string]string{
			"conn_id": conn, "user_id": m.User, "room_id": p.room, "last_seen_ms": p.seen[conn],
			"epoch": fmt.Sprint(m.Epoch), "rev": fmt.Sprint(m.Rev), "state": string(m.State),
		}
		if m.held() {
			delete(want, "rev")
		}
		if !maps.Equal(hash, want) {
			p.wrong("G6: the hash of %s is %v, want %v", conn, hash, want)
		}
	}
}

// judgeSeen checks that every acknowledged heartbeat is in Redis (G7), and that nothing else extends a life (G4).
func (p roomPicture) judgeSeen(conn string, seen int64) {
	at := p.place(p.room, conn)
	if !at.in || at.busy || p.held[conn] || p.abandoned() > 0 {
		return
	}
	if seen < at.heard && at.epoch == p.facts[conn].epoch {
		p.wrong("G7: %s was last seen at %d, its heartbeat of %d is acknowledged", conn, seen, at.heard)
	}
	if seen > at.mayBeHeard+1 { // the age that a healer writes is rounded
		p.wrong("G4: %s was last seen at %d, and has sent nothing valid after %d", conn, seen, at.mayBeHeard)
	}
}

// judgeOuterIndices checks that what stands outside of the room's slot holds enough.
func (p roomPicture) judgeOuterIndices() {
	if p.losing() {
		return
	}
	for i := range p.list(7) {
		entry := p.list(7).list(i)
		index := entry.pairs(2)
		for conn, m := range p.meta {
			field := userField(p.room, conn)
			if m.User != entry.text(0) {
				continue
			}
			seen, _ := strconv.ParseInt(p.seen[conn], 10, 64)
			if _, there := index[field]; !there && p.clock()-seen < modelLookback.Milliseconds() && !p.left[placeID{conn, m.Epoch}] {
				p.wrong("the index of %s lacks %s", m.User, conn)
			}
		}
	}
	if len(p.seen) == 0 {
		return
	}
	oldest := int64(1 << 62)
	for _, text := range p.seen {
		seen, _ := strconv.ParseInt(text, 10, 64)
		oldest = min(oldest, seen)
	}
	latest := p.delayed + max(oldest+modelLookback.Milliseconds(), p.clock()+(claimLease+modelReaperInterval).Milliseconds()) + 2
	if due := p.float(8); p.text(8) == "" || int64(due) > latest {
		p.wrong("the reaper looks at the room at %q, it should by %d", p.text(8), latest)
	}
}
