package main

import (
	"cmp"
	"context"
)

// keepOut has a member removed that a request or the healer has just put back, if this node was told of its kick meanwhile: Redis
// may have lost the fence. m.mu is held.
func (m *membership) keepOut() {
	if m.expelled() && m.room.hub.loss != nil {
		m.room.hub.loss.toldOfKick(m, m.Conn, m.Epoch, m.expelledFor())
	}
}

// toldOfKick makes sure that a member of this node that was kicked, or replaced, is out of the room. Anybody who may publish on the room's channel can tell
// of a kick that has not happened. The member's socket has been told of its leave by then, and hears nothing of the room any
// more: it must not stay a member. Where the kick has happened, Redis tells whether the connection is to end as well.
func (h *healer) toldOfKick(m *membership, conn string, epoch int64, reason Reason) {
	if h.ctx.Err() != nil {
		return
	}
	h.work.Go(func() { panics(h.log, "healer", func() { h.confirmKick(m, conn, epoch, reason) }) })
}

// confirmKick repeats the kick until Redis answers.
func (h *healer) confirmKick(m *membership, conn string, epoch int64, reason Reason) {
	r := m.room
	for h.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(h.ctx, healPatience)
		ends, err := h.service.kick(ctx, r.id, conn, kicking{newest: epoch, reason: reason, floor: r.revision()})
		cancel()
		switch {
		case err == nil:
			h.log.Warn("a kick was told that Redis did not know of: the member is removed", "room", r.id, "conn", conn, "reason", string(reason))
			return
		case hasCode(err, CodeNotJoined):
			if ends {
				m.by.endAfterKick()
			}
			return
		}
		pause(h.ctx, healPause)
	}
}

// endKicked ends the connection of a member that was not put back because a kick has ended it, once its socket has got its leave.
func (h *healer) endKicked(m *membership, gone Member) {
	if h.ctx.Err() != nil {
		return
	}
	h.work.Go(func() {
		panics(h.log, "healer", func() {
			ctx, cancel := context.WithTimeout(h.ctx, answerWithin)
			defer cancel()
			if m.room.reach(ctx, gone.kickRev) == nil {
				m.room.tellKicked(gone.Conn, gone.Epoch, gone.kickRev, cmp.Or(gone.kickReason, ReasonKicked))
			}
			m.by.endAfterKick()
		})
	})
}
