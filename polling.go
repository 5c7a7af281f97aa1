package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// pollPiece is how many bytes of an answer are written under one deadline.
const pollPiece = 64 << 10

// pollState is what a session that began with polling uses as its transport.
type pollState int

const (
	pollOnly     pollState = iota
	pollProbing            // a WebSocket answered a probe: the client waits until no poll is open, and then upgrades
	pollUpgraded           // the WebSocket
	pollClosed             // nothing: it was closed before an upgrade
)

// polled is a connection that began with polling, and perhaps went on with a WebSocket.
type polled struct {
	sockets *sockets
	client  *client
	heart   *heartbeat
	sid     string
	release func()

	polling, posting, upgrading atomic.Bool // such a request is being served

	mu      mutex[ofPolled] // the locks of sockets and of the outbox may be taken under it
	state   pollState
	waiting waitingFrames     // for the next poll
	open    chan []frameParts // takes the answer of the poll that is open; nil = none is, or its answer is on its way
	unsent  backlog           // of messages that wait, or are in an answer on its way
	left    bool              // the client has closed the session
	final   bool              // closes when unsent is 0
	stalled *time.Timer       // runs while messages wait and no poll comes
	socket  *webSocket        // beside polling, or instead of it
	meter   meter             // of what comes by requests
}

// beginPolling reports whether there is a new connection, which then calls release at its end.
func (s *sockets) beginPolling(w http.ResponseWriter, r *http.Request, release func()) bool {
	p := &polled{sockets: s, sid: newID(), release: release, meter: s.Input.newMeter(r.RemoteAddr)}
	p.client = s.newClient(r, p)
	p.mu.Lock() // whoever closes the connection from now on waits until it is complete
	entered := s.enter(p.client, p)
	if entered {
		p.heart = s.newHeartbeat(p.ping, p.client.giveUp)
	}
	p.mu.Unlock()
	if !entered {
		refuseWith(http.StatusServiceUnavailable, 3, http.StatusText(http.StatusServiceUnavailable)).write(w)
		return false
	}
	s.await(p.client)
	p.deliver(w, []frameParts{{textFrame(packetOpen, s.open(p.sid, `"websocket"`))}})
	return true
}

// ended tells the application that the connection is over. It does not wait for that: the caller may be the application
// itself, in an event. Call it under mu.
func (p *polled) ended(why error) {
	p.heart.stop()
	p.meter.end()
	s := p.sockets
	s.mu.Lock()
	delete(s.polled, p.sid)
	s.mu.Unlock()
	go func() {
		defer s.running.Done()
		s.leave(p.client, fmt.Errorf("polling session: %w", why), p.release)
	}()
}

// onPolling tells whether requests of polling may still come.
func (p *polled) onPolling() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state != pollUpgraded
}

func (p *polled) ping() {
	if p.queue(p.sockets.ping, memberUpdate{}) {
		p.flush()
	}
}

// queue adds f to what waits for a poll, and reports whether the caller has to flush. A client that has let more than the
// limit pile up is closed. If a client is behind, an update takes the place of one of the same incarnation.
func (p *polled) queue(f frame, of memberUpdate) (mustFlush bool) { return p.add(frameParts{f}, of) }

// queueParts is queue for a frame in parts.
func (p *polled) queueParts(f frameParts) (mustFlush bool) { return p.add(f, memberUpdate{}) }

func (p *polled) add(f frameParts, of memberUpdate) (mustFlush bool) {
	p.mu.Lock()
	if p.state == pollUpgraded {
		p.mu.Unlock()
		return p.socket.add(f, of)
	}
	fits := p.hold(f, of)
	mustFlush = p.open != nil
	p.mu.Unlock()
	if !fits {
		p.tooSlow()
	}
	return mustFlush
}

// held gives the bytes that wait for the client.
func (p *polled) held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unsent.bytes
}

// tooSlow closes a client that does not take what is sent to it.
func (p *polled) tooSlow() {
	p.sockets.Refusals.add(refusedSlow)
	p.sockets.Logger.Debug("closing a connection", "conn", p.client.id, "cause", errTooSlow)
	p.client.giveUp()
}

// hold is queue under mu, before an upgrade. It reports whether f is within the limit.
func (p *polled) hold(f frameParts, of memberUpdate) bool {
	p.skip(of)
	if p.unsent.bytes < pollPiece {
		of = memberUpdate{} // the client is not behind
	}
	n, limit := messageBytes(f), p.sockets.MaxUnsentBytes
	switch {
	case p.state == pollClosed:
	case p.unsent.exceeds(n, limit):
		return false
	default:
		large := p.unsent.add(n, limit)
		if p.waiting.add(f, of); large {
			p.waiting.pin()
		}
		p.sockets.Unsent.add(p, f...)
		if p.open == nil && p.stalled == nil && p.unsent.bytes > 0 {
			p.stalled = time.AfterFunc(p.sockets.WriteTimeout, p.checkStalled)
		}
	}
	return true
}

// skip removes the update that waits of an incarnation, if there is one: a later one is added. Call it under mu.
func (p *polled) skip(of memberUpdate) {
	if f, found := p.waiting.skip(of); found {
		p.unsent.skip(messageBytes(f))
		p.sockets.Unsent.remove(p, f...)
	}
}

// checkStalled closes a client that has not polled for the timeout, although messages wait for it.
func (p *polled) checkStalled() {
	p.mu.Lock()
	slow := p.stalled != nil
	p.mu.Unlock()
	if slow {
		p.tooSlow()
	}
}

// messageBytes is how much a frame counts as unsent. Packets of Engine.IO's own, such as pings, do not count.
func messageBytes(f frameParts) int {
	if frame(f[0]).packet()[0] == packetMessage {
		return f.packetSize()
	}
	return 0
}

// flush answers the open poll with what waits.
func (p *polled) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == pollUpgraded {
		p.socket.flush()
	} else {
		p.answerPoll()
	}
}

// answerPoll answers the open poll, if there is one and something waits. Call it under mu, before an upgrade.
func (p *polled) answerPoll() {
	if p.open == nil || p.waiting.len() == 0 {
		return
	}
	p.open <- p.waiting.takeAll()
	p.open = nil
}

// endPoll answers the open poll, if there is one, with a packet that has no data. Call it under mu, before an upgrade.
func (p *polled) endPoll(kind byte) {
	if p.open != nil {
		p.open <- []frameParts{{textFrame(kind)}}
		p.open = nil
	}
}

// finish closes when the last poll has been answered, or after the timeout.
func (p *polled) finish(why closeError) {
	p.mu.Lock()
	p.final = true
	upgraded, waiting := p.state == pollUpgraded, p.unsent.bytes > 0
	p.mu.Unlock()
	switch {
	case upgraded:
		p.socket.finish(why)
	case waiting:
		time.AfterFunc(p.sockets.WriteTimeout, func() { p.shut(why) })
	default:
		p.shut(why)
	}
}

func (p *polled) shut(why closeError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == pollOnly || p.state == pollProbing {
		p.endPoll(p.goodbye())
		p.forget(p.waiting.takeAll())
		p.state = pollClosed
		p.resume()
		p.ended(why)
	}
	if p.socket != nil {
		p.socket.shut(why) // after an upgrade its reader calls ended, in order
	}
}

// goodbye is the packet that answers a poll of a closed session. A client that has closed it itself gets what Node's server
// sends then. Call it under mu.
func (p *polled) goodbye() byte {
	if p.left {
		return packetNoop
	}
	return packetClose
}

// leave notes that the client has closed the session, and closes it.
func (p *polled) leave() {
	p.mu.Lock()
	p.left = true
	p.mu.Unlock()
	p.client.close()
}

// resume ends the time that a client has until its next poll. Call it under mu.
func (p *polled) resume() {
	if p.stalled != nil {
		p.stalled.Stop()
		p.stalled = nil
	}
}

// poll answers a GET when there is something to send, or when nothing will come any more.
func (p *polled) poll(w http.ResponseWriter, r *http.Request) {
	if p.polling.Swap(true) {
		p.client.close()
		badRequest().write(w)
		return
	}
	stop := context.AfterFunc(r.Context(), p.client.close) // a client that gives up a poll gives up the session
	if err := p.admit(0); err != nil {
		p.tooMuch()
	}
	answer := p.await()
	stop()
	p.polling.Store(false) // the next one may come as soon as this one is answered
	p.deliver(w, answer)
}

// admit counts what a client sends by a request, and waits while that is too much.
func (p *polled) admit(bytes int) error {
	p.mu.Lock()
	wait, err := p.meter.take(bytes)
	p.mu.Unlock()
	holdBack(wait, p.closed)
	return err
}

func (p *polled) closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == pollClosed
}

// tooMuch closes a client that goes on to send too much.
func (p *polled) tooMuch() {
	p.sockets.Refusals.add(refusedFlood)
	p.client.closeFor(errInput)
}

// await returns the answer to a poll, which comes when the session is closed or upgraded at the latest.
func (p *polled) await() []frameParts {
	open := make(chan []frameParts, 1)
	p.mu.Lock()
	p.open = open
	p.resume()
	switch p.state {
	case pollUpgraded: // since the request was checked
		p.endPoll(packetNoop)
	case pollClosed:
		p.endPoll(p.goodbye())
	default:
		p.answerPoll()
		if p.state == pollProbing {
			p.endPoll(packetNoop)
		}
	}
	p.mu.Unlock()
	return <-open
}

// deliver answers a poll. The messages in the answer count as unsent until then. A client that does not take it in time is
// closed.
func (p *polled) deliver(w http.ResponseWriter, answer []frameParts) {
	err := p.write(w, answer)
	p.mu.Lock()
	p.forget(answer)
	done := err != nil || p.final && p.unsent.bytes == 0
	p.mu.Unlock()
	if done {
		p.client.close()
	}
}

// forget takes frames back from what waits for the client. Call it under mu.
func (p *polled) forget(frames []frameParts) {
	for _, f := range frames {
		p.unsent.sub(messageBytes(f))
		p.sockets.Unsent.remove(p, f...)
	}
}

// write writes the answer to a poll, part by part: what several clients are sent is in memory once.
func (p *polled) write(w http.ResponseWriter, answer []frameParts) error {
	length := len(answer) - 1
	for _, f := range answer {
		length += f.packetSize()
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=UTF-8")
	header.Set("Content-Length", strconv.Itoa(length))
	header.Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	last := time.Now().Add(p.sockets.TakeTimeout)
	for i, f := range answer {
		if i > 0 {
			_, _ = w.Write([]byte{separator}) // buffered; an error stays for the next write
		}
		for piece := range f.pieces(pollPiece) {
			_ = control.SetWriteDeadline(earlier(time.Now().Add(p.sockets.WriteTimeout), last))
			if _, err := w.Write(piece); err != nil {
				return err
			}
		}
	}
	return control.Flush()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// post takes the packets of a POST.
func (p *polled) post(w http.ResponseWriter, r *http.Request) {
	if p.posting.Swap(true) {
		p.client.close()
		badRequest().write(w)
		return
	}
	no := p.takePost(w, r)
	p.posting.Store(false) // the next one may come as soon as this one is answered
	if no != nil {
		no.write(w)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, "ok")
}

// upgrade opens a WebSocket beside the polling, which becomes the transport when the client says so.
func (p *polled) upgrade(w http.ResponseWriter, r *http.Request) {
	if p.upgrading.Swap(true) {
		badRequest().write(w)
		return
	}
	x, err := accept(w, r, &p.sockets.socketOptions)
	if err != nil {
		p.upgrading.Store(false)
		return
	}
	_ = x.conn.SetReadDeadline(time.Now().Add(p.sockets.ConnectTimeout))
	p.mu.Lock()
	p.socket = x
	open := p.state != pollClosed
	p.mu.Unlock()
	if !open || !p.sockets.alongside(p.client, func() { p.serve(x) }) {
		x.abort(errClosed)
	}
}

// serve reads from the WebSocket until its end, which is that of the connection once it was upgraded.
func (p *polled) serve(x *webSocket) {
	cause := p.read(x)
	p.mu.Lock()
	switch p.state {
	case pollUpgraded:
		p.ended(cmp.Or(x.reason(), cause))
	case pollProbing:
		p.state = pollOnly
		fallthrough
	default:
		p.socket = nil
		p.upgrading.Store(false) // may be tried again
	}
	p.mu.Unlock()
	x.end(cause)
}

// read returns why no more packets come over x.
func (p *polled) read(x *webSocket) (err error) {
	defer p.client.recovered(&err)
	for upgraded := false; ; {
		message, err := x.receive()
		switch {
		case err != nil:
		case upgraded:
			err = takePacket(p.client, p.heart, kept(message))
		default:
			upgraded, err = p.probe(x, string(message))
		}
		if err != nil {
			return err
		}
	}
}

// probe takes a packet that comes before the upgrade: the probe, then the upgrade itself.
func (p *polled) probe(x *webSocket, message string) (upgraded bool, err error) {
	switch message {
	case "2probe":
		x.send(textFrame(packetPong, []byte("probe")))
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.state == pollOnly {
			p.state = pollProbing
		}
		p.endPoll(packetNoop)
		return false, nil
	case "5":
		return true, p.switchTo(x)
	}
	return false, errEngine
}

// switchTo makes x the transport. What waits for a poll goes first; what is sent from now on waits for the lock.
func (p *polled) switchTo(x *webSocket) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == pollClosed {
		return errClosed
	}
	_ = x.conn.SetReadDeadline(time.Time{})
	p.endPoll(packetNoop)
	waiting := p.waiting.takeAll()
	for _, f := range waiting {
		x.queueParts(f)
	}
	x.flush()
	p.forget(waiting)
	p.state = pollUpgraded
	p.resume()
	if p.final {
		x.finish(errLeft)
	}
	return nil
}
