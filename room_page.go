package main

import (
	"context"
	"fmt"
)

// page has answer called with members of any room, at most limit, from where an earlier page ended; after "" is the first page.
// What answer returns is sent to by, if that is not nil, in its place among the room's events. A room that no local socket is in
// is not read for that, only the page.
func (h *hub) page(ctx context.Context, id, after string, limit int, by receiver, answer func(page) frameParts) error {
	from, scans := parseScanPlace(after)
	switch hosted := h.find(id) != nil; {
	case hosted && scans:
		return h.goOn(ctx, id, from, limit, by, answer)
	case !hosted && (scans || after == ""):
		if !scans {
			from = scanPlace{cursor: "0"}
		}
		return h.pass(ctx, fmt.Sprintf("%q %s %d", id, from, limit), by, answer, func(ctx context.Context) (page, error) {
			p, _, err := scan(ctx, h.source, id, from, limit)
			return p, err
		})
	}
	return h.pageInOrder(ctx, id, after, limit, by, answer)
}

// pass passes a page on that is read once for all who ask for the same.
func (h *hub) pass(ctx context.Context, what string, by receiver, answer func(page) frameParts, read func(context.Context) (page, error)) error {
	p, err := h.pages.do(ctx, what, read)
	if err != nil {
		return err
	}
	w := &waiter{to: by, answer: func(*view) frameParts { return answer(p) }}
	w.show(nil)
	w.finish()
	return nil
}

// goOn is page for who goes on with a scan in a room that a local socket is in by now: it decides who is on the page, and the
// replica what they are, so that the page fits the events.
func (h *hub) goOn(ctx context.Context, id string, from scanPlace, limit int, by receiver, answer func(page) frameParts) error {
	p, entries, err := scan(ctx, h.source, id, from, limit)
	if err != nil {
		return err
	}
	r := h.acquire(id)
	defer h.release(r)
	w := newWaiter(p.rev, by, asMember, modeNone, func(v *view) frameParts { return answer(v.only(entries, from, p.last)) })
	w.limit, w.glances = limit, true
	return r.admit(ctx, w)
}

// pageInOrder is page in the order of connection ids. A small room that no local socket is in is read; of a large one the node
// keeps the replica for a while, because more pages will be asked for.
func (h *hub) pageInOrder(ctx context.Context, id, after string, limit int, by receiver, answer func(page) frameParts) error {
	rev, count, err := h.source.size(ctx, id)
	if err != nil {
		return err
	}
	if count <= maxPage && h.find(id) == nil {
		return h.pass(ctx, fmt.Sprintf("%q %s %d", id, after, limit), by, answer, func(ctx context.Context) (page, error) {
			s, err := h.source.read(ctx, id)
			p := newReplica(id)
			p.adopt(s, nobody)
			return p.view().page(after, limit), err
		})
	}
	r := h.acquire(id)
	defer h.release(r)
	return r.admit(ctx, newGlance(rev, after, limit, by, answer))
}
