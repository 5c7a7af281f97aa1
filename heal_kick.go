package main

import (
	"context"
	"strconv"
)

// keepOut has a member removed that a request or the healer has just put back, if this node was told of its kick meanwhile: Redis
// may have lost the fence. m.mu is held.
func (m *membership) keepOut() {
	if m.expelled() && m.room.hub.loss != nil {
		m.room.hub.loss.toldOfKick(m.room, m.Conn, m.Epoch, m.expelledFor())
	}
}

// toldOfKick makes sure that a member of this node that was kicked, or replaced, is out of the room. Anybody who may publish on the room's channel can tell
// of a kick that has not happened. The member's socket has been told of its leave by then, and hears nothing of the room any
// more: it must not stay a member.
func (h *healer) toldOfKick(r *room, conn string, epoch int64, reason Reason) {
	if h.ctx.Err() != nil {
		return
	}
	h.work.Go(func() { panics(h.log, "healer", func() { h.confirmKick(r, conn, epoch, reason) }) })
}

// confirmKick repeats the kick until Redis answers.
func (h *healer) confirmKick(r *room, conn string, epoch int64, reason Reason) {
	for h.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(h.ctx, healPatience)
		err := h.service.kick(ctx, r.id, conn, strconv.FormatInt(epoch, 10), reason, r.revision())
		cancel()
		switch {
		case err == nil:
			h.log.Warn("a kick was told that Redis did not know of: the member is removed", "room", r.id, "conn", conn, "reason", string(reason))
			return
		case hasCode(err, CodeNotJoined):
			return
		}
		pause(h.ctx, healPause)
	}
}
