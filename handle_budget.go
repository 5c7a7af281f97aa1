package main

// affords charges a request to the budget of the socket. A heartbeat of one that is in no room costs nothing: like events that
// are no requests, it counts as input only.
func (c *connection) affords(name string) bool {
	if c.rate == nil || name == eventHeartbeat && len(c.rooms) == 0 {
		return true
	}
	return c.budget.of(name).take(c.rate, c.rate.now())
}

// firstEvents is how many events a new socket may send at once, whatever its address has sent.
const firstEvents = 10

// inherit gives the socket its budget, or what an earlier one of its address has left.
func (c *connection) inherit() {
	if c.rate != nil {
		used := c.debts.inherit(origin(c.client.addr), c.rate.now(), c.rate.window-min(c.rate.window, firstEvents*c.rate.interval))
		c.budget.joins, c.budget.others = used[0], used[1]
	}
}

// bequeath keeps what the socket has used for the next one of its address.
func (c *connection) bequeath() {
	if c.rate != nil {
		c.debts.leave(origin(c.client.addr), [2]bucket{c.budget.joins, c.budget.others}, c.rate.now(), c.rate.window/2)
	}
}

const (
	eventBytes = 128 << 10 // of an answer cost as much as an event
	eventUsers = 100       // watched by one request cost as much as an event
)

// charge has a request cost what its answer makes the server read and send, in events, besides the one that it is.
func (c *connection) charge(b *bucket, events int) {
	if c.rate != nil {
		b.charge(c.rate, events, c.rate.now())
	}
}

// tooMany refuses an event over the rate, and closes a socket that goes on and on.
func (c *connection) tooMany(name string, id ackID) {
	limited := c.refusal(name, &Error{Code: CodeRateLimited, Message: "too many events, wait a while"})
	c.client.ack(id, limited.appendAck(nil))
	if c.budget.flooded(c.rate.now()) {
		c.refusals.add(refusedFlood)
		c.client.closeFor(errFlood)
	}
}
