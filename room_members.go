package main

import (
	"cmp"
	"iter"
	"slices"
)

// blockSize is how many members a block has at most: what one change of a room copies while somebody looks at it.
const blockSize = 64

// members are those of a room by connection id. A view of them costs as many steps as they have blocks, and stays as it is
// while they change: blocks are copied before they change when a view has them.
type members struct {
	blocks []*block // none of them empty, in order
	count  int
	views  uint64 // that were taken
}

// block holds members in order.
type block struct {
	entries []Entry
	views   uint64 // taken when it was made: no later view has it
}

// membersOf takes over entries in the order of their connection ids.
func membersOf(entries []Entry) members {
	m := members{count: len(entries), blocks: make([]*block, 0, 2*len(entries)/blockSize+1)}
	for some := range slices.Chunk(entries, blockSize/2+blockSize/4) {
		m.blocks = append(m.blocks, &block{entries: slices.Clone(some)})
	}
	return m
}

func (m *members) len() int { return m.count }

// view gives the members as they are now. It may be used from any goroutine.
func (m *members) view() members {
	m.views++
	return members{blocks: slices.Clone(m.blocks), count: m.count}
}

// search gives the block where a connection is or belongs, and its place there.
func (m *members) search(conn string) (at, place int, found bool) {
	at, found = slices.BinarySearchFunc(m.blocks, conn, func(p *block, conn string) int { return cmp.Compare(p.entries[0].ConnID, conn) })
	if found {
		return at, 0, true
	}
	if at--; at < 0 {
		return 0, 0, false
	}
	place, found = slices.BinarySearchFunc(m.blocks[at].entries, conn, byConn)
	return at, place, found
}

func byConn(e Entry, conn string) int { return cmp.Compare(e.ConnID, conn) }

func (m *members) get(conn string) (Entry, bool) {
	at, place, found := m.search(conn)
	if !found {
		return Entry{}, false
	}
	return m.blocks[at].entries[place], true
}

// own gives a block that may be changed.
func (m *members) own(at int) *block {
	p := m.blocks[at]
	if p.views != m.views {
		p = &block{entries: append(make([]Entry, 0, blockSize), p.entries...), views: m.views}
		m.blocks[at] = p
	}
	return p
}

// put adds a member, or takes the place of what was there.
func (m *members) put(e Entry) {
	at, place, found := m.search(e.ConnID)
	if found {
		m.own(at).entries[place] = e
		return
	}
	m.count++
	if len(m.blocks) == 0 {
		m.blocks = append(m.blocks, &block{entries: []Entry{e}, views: m.views})
		return
	}
	p := m.own(at)
	p.entries = slices.Insert(p.entries, place, e)
	if len(p.entries) > blockSize {
		half := len(p.entries) / 2
		behind := &block{entries: append(make([]Entry, 0, blockSize), p.entries[half:]...), views: m.views}
		p.entries = append(make([]Entry, 0, blockSize), p.entries[:half]...)
		m.blocks = slices.Insert(m.blocks, at+1, behind)
	}
}

// drop removes a member.
func (m *members) drop(conn string) {
	at, place, found := m.search(conn)
	if !found {
		return
	}
	m.count--
	p := m.own(at)
	p.entries = slices.Delete(p.entries, place, place+1)
	switch next := at + 1; {
	case len(p.entries) == 0:
		m.blocks = slices.Delete(m.blocks, at, next)
	case next < len(m.blocks) && len(p.entries)+len(m.blocks[next].entries) <= blockSize/2:
		p.entries = append(p.entries, m.blocks[next].entries...)
		m.blocks = slices.Delete(m.blocks, next, next+1)
	}
}

// all gives the members in order.
func (m *members) all() iter.Seq[Entry] { return m.after("") }

// after gives those behind a connection, in order.
func (m *members) after(conn string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		at, place, found := m.search(conn)
		if found {
			place++
		}
		for ; at < len(m.blocks); at, place = at+1, 0 {
			for _, e := range m.blocks[at].entries[place:] {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// comparison is what a reading of the room found other than a view of its members.
type comparison struct {
	differ map[string]bool   // connections that are on one side only, or of another revision
	heard  map[*block]*block // blocks whose members were heard of since, as they are now
}

// compare compares a view with what was read, in the order of connection ids. It takes as long as there are members.
func (m *members) compare(read []Entry) comparison {
	c := comparison{differ: map[string]bool{}, heard: map[*block]*block{}}
	at := 0
	for _, p := range m.blocks {
		var heard *block
		for i, e := range p.entries {
			for ; at < len(read) && read[at].ConnID < e.ConnID; at++ {
				c.differ[read[at].ConnID] = true
			}
			if at == len(read) || read[at].ConnID != e.ConnID {
				c.differ[e.ConnID] = true
				continue
			}
			found := read[at]
			at++
			if found.Epoch != e.Epoch || found.Rev != e.Rev || found.UserID != e.UserID {
				c.differ[e.ConnID] = true
			}
			if found.Epoch == e.Epoch && found.LastSeenMs > e.LastSeenMs {
				if heard == nil {
					heard = &block{entries: append(make([]Entry, 0, blockSize), p.entries...)}
				}
				heard.entries[i].LastSeenMs = found.LastSeenMs
			}
		}
		if heard != nil {
			c.heard[p] = heard
		}
	}
	for ; at < len(read); at++ {
		c.differ[read[at].ConnID] = true
	}
	return c
}

// hear takes over when the members were last heard of. Blocks that have changed since the view take it member by member.
func (m *members) hear(c comparison) {
	for i, p := range m.blocks {
		if heard := c.heard[p]; heard != nil {
			heard.views = m.views
			m.blocks[i] = heard
			delete(c.heard, p)
		}
	}
	for _, heard := range c.heard {
		for _, e := range heard.entries {
			if now, there := m.get(e.ConnID); there && now.Epoch == e.Epoch && now.LastSeenMs < e.LastSeenMs {
				now.LastSeenMs = e.LastSeenMs
				m.put(now)
			}
		}
	}
}
