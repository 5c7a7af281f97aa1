package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
)

// scanMark begins the place of a page in a scan. No connection id has it.
const scanMark = ":"

// scanPlace is where a page begins in a room that is scanned in the order in which Redis keeps it.
type scanPlace struct {
	cursor string   // of Redis; "0" = the beginning
	given  []string // connections that Redis gives there and that an earlier page had
}

// String gives the place in the form that parseScanPlace takes.
func (p scanPlace) String() string {
	return scanMark + strings.Join(append([]string{p.cursor}, p.given...), ",")
}

func parseScanPlace(text string) (scanPlace, bool) {
	rest, marked := strings.CutPrefix(text, scanMark)
	parts := strings.Split(rest, ",")
	for _, conn := range parts[1:] {
		marked = marked && checkConnID(conn) == nil
	}
	_, err := strconv.ParseUint(parts[0], 10, 64)
	return scanPlace{parts[0], parts[1:]}, marked && err == nil && len(parts) <= 2*maxPage
}

// scan gives a page of a room without reading the others, and the members on it: from a place on, at most limit. The page has
// fewer where a step of Redis gives more than fit: then it is repeated with a smaller step, and the smallest one is divided.
func scan(ctx context.Context, source roomSource, room string, from scanPlace, limit int) (page, []Entry, error) {
	for step := limit; ; step = max(1, step*3/4) {
		found, err := source.scan(ctx, room, from.cursor, step)
		if err != nil {
			return page{}, nil, err
		}
		whole := from.cursor == "0" && found.next == "0" && len(from.given) == 0
		entries := slices.DeleteFunc(found.Entries, func(e Entry) bool { return slices.Contains(from.given, e.ConnID) })
		p := found.page(entries, limit)
		fits, inOrder := p.last == "", whole && len(entries) > limit // Redis gave all of a small room: the order of the ids is enough
		switch {
		case fits && found.next != "0":
			p.last = scanPlace{cursor: found.next}.String()
			fallthrough
		case fits:
			return p, entries, nil
		case inOrder || step == 1:
			had := entries[:1+slices.IndexFunc(entries, func(e Entry) bool { return e.ConnID == p.last })]
			if !inOrder {
				p.last = from.behind(had).String()
			}
			return p, had, nil
		}
	}
}

// behind is the place for who was given some of what Redis gives there.
func (p scanPlace) behind(entries []Entry) scanPlace {
	given := slices.Clone(p.given)
	for _, e := range entries {
		given = append(given, e.ConnID)
	}
	return scanPlace{p.cursor, given}
}

// page is one of some entries that the scan found, in the order of their connection ids.
func (s scanned) page(entries []Entry, limit int) page {
	v := &view{rev: s.Rev, all: tally{s.count, s.Users}, members: membersOf(entries)}
	return v.build(wanted{limit: limit})
}

// only gives those of a page from a place on that the view has, as it has them: they were read a little before or after it.
func (v *view) only(entries []Entry, from scanPlace, next string) page {
	var there []Entry
	for _, read := range entries {
		if e, has := v.members.get(read.ConnID); has {
			if e.Epoch == read.Epoch {
				e.LastSeenMs = max(e.LastSeenMs, read.LastSeenMs)
			}
			there = append(there, e)
		}
	}
	part := &view{rev: v.rev, all: v.all, members: membersOf(there)}
	p := part.build(wanted{})
	if p.last != "" { // their states have grown meanwhile
		had := slices.IndexFunc(there, func(e Entry) bool { return e.ConnID == p.last }) + 1
		next = from.behind(there[:had]).String()
	}
	p.last = next
	return p
}
