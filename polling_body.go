package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// pollingBody reads the messages of a POST one after the other, so that a body holds no more memory than one message.
type pollingBody struct {
	in      *bufio.Reader
	control *http.ResponseController
	max     int           // bytes of one message
	left    time.Duration // for the client to send the rest
}

func newPollingBody(w http.ResponseWriter, r *http.Request, o *socketOptions) *pollingBody {
	return &pollingBody{
		in:      bufio.NewReader(http.MaxBytesReader(w, r.Body, int64(o.MaxPollBytes))),
		control: http.NewResponseController(w),
		max:     o.MaxMessageBytes,
		left:    o.WriteTimeout,
	}
}

// next returns a message, which may be kept, and whether it is the last one.
func (b *pollingBody) next() (message []byte, last bool, err error) {
	began := time.Now()
	_ = b.control.SetReadDeadline(began.Add(b.left))
	message, err = b.upToSeparator()
	b.left -= time.Since(began)
	last = errors.Is(err, io.EOF)
	switch {
	case err != nil && !last:
		return nil, false, err
	case len(message) > b.max:
		return nil, false, errTooLarge
	case !utf8.Valid(message):
		return nil, false, errEngine
	}
	return message, last, nil
}

// upToSeparator reads a message without the separator behind it. It stops reading one that is too large.
func (b *pollingBody) upToSeparator() (message []byte, err error) {
	for {
		part, err := b.in.ReadSlice(separator)
		message = append(message, bytes.TrimSuffix(part, []byte{separator})...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return message, err
		}
		if len(message) > b.max {
			return nil, errTooLarge
		}
	}
}

// takePost handles the messages of a POST, each as it arrives: one that is refused does not undo those before it.
func (p *polled) takePost(w http.ResponseWriter, r *http.Request) *refusal {
	err := p.payload(w, r)
	if err == nil || errors.Is(err, errClosed) { // what it sends no longer matters, what waits for it does
		return nil
	}
	if errors.Is(err, errLeft) {
		p.leave()
		return nil
	}
	w.Header().Set("Connection", "close") // the HTTP server does not wait for the rest of the body then
	if errors.Is(err, errTooLarge) || errors.As(err, new(*http.MaxBytesError)) {
		p.sockets.Refusals.add(refusedSize)
		return refuseWith(http.StatusRequestEntityTooLarge, 3, "Payload too large")
	}
	if errors.Is(err, errInput) {
		p.tooMuch()
	}
	p.client.close()
	return badRequest()
}

func (p *polled) payload(w http.ResponseWriter, r *http.Request) (err error) {
	defer p.client.recovered(&err)
	if r.ContentLength > int64(p.sockets.MaxPollBytes) {
		return errTooLarge
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/octet-stream") {
		return errEngine
	}
	body := newPollingBody(w, r, &p.sockets.socketOptions)
	defer func() { _ = body.control.SetReadDeadline(time.Time{}) }()
	for {
		message, last, err := body.next()
		if err == nil {
			err = p.admit(len(message))
		}
		if err == nil {
			err = takePacket(p.client, p.heart, message)
		}
		if err != nil || last {
			return err
		}
	}
}
