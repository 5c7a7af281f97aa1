package main

import "time"

// drain sends this node's clients to the others: /readyz turns red, and after a while, for whoever watches that, nobody is let
// in any more and the connections are closed one after the other, so that they come to the other nodes as a stream and not as
// a blow. Until its turn comes, a client can do everything but join. It is closed without a word: then it comes back by itself.
func (n *node) drain() {
	n.retiring.Store(true)
	time.Sleep(n.drainWait)
	n.handlers.draining.Store(true)
	n.sockets.refuse()
	open := n.sockets.all()
	began := time.Now()
	for i, c := range open {
		time.Sleep(time.Until(began.Add(n.drainOver * time.Duration(i) / time.Duration(len(open)))))
		c.close()
	}
}
