package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// encodeMessage gives the message as the adapter would send it, for sockets in one of the rooms, or for all if there are none.
// args are JSON. It fails for an argument that MessagePack, or a client, cannot hold.
func encodeMessage(uid string, rooms []string, event string, args [][]byte) ([]byte, error) {
	p := &packer{}
	p.Encoder = msgpack.NewEncoder(&p.out)
	err := errors.Join(
		p.EncodeArrayLen(3), p.EncodeString(uid),
		p.EncodeMapLen(3), p.EncodeString("type"), p.EncodeInt(packetEvent), p.EncodeString("nsp"), p.EncodeString(adapterNsp),
		p.EncodeString("data"), p.EncodeArrayLen(1+len(args)), p.EncodeString(event),
	)
	for _, arg := range args {
		err = errors.Join(err, p.appendJSON(arg))
	}
	err = errors.Join(err, p.EncodeMapLen(3), p.EncodeString("rooms"), p.EncodeArrayLen(len(rooms)))
	for _, room := range rooms {
		err = errors.Join(err, p.EncodeString(room))
	}
	err = errors.Join(err, p.EncodeString("except"), p.EncodeArrayLen(0), p.EncodeString("flags"), p.EncodeMapLen(0))
	return p.out.Bytes(), err
}

var (
	errNested = errors.New("may be nested at most " + strconv.Itoa(maxNesting) + " levels deep")
	errNumber = errors.New("may hold no number beyond those of 64-bit floating point")
	errJSON   = errors.New("must be JSON")
)

// packer turns JSON into MessagePack, with the keys of objects in their order.
type packer struct {
	*msgpack.Encoder
	out  bytes.Buffer
	open []container // within each other, innermost last
}

// container is an array or map whose size is not known yet. Its code is followed by four bytes for that.
type container struct {
	at    int // where its code is in the output
	isMap bool
	size  uint32
}

// appendJSON appends one value. Whole numbers keep all digits as far as they have 64 bits, others become floats.
func (p *packer) appendJSON(raw []byte) error {
	s := scanner{text: raw}
	for s.next() {
		if err := p.appendToken(s.token(), s.state == afterKey); err != nil {
			return err
		}
	}
	if !s.ended() {
		return errJSON
	}
	return nil
}

func (p *packer) appendToken(token []byte, isKey bool) error {
	switch token[0] {
	case '{', '[':
		return p.begin(token[0] == '{')
	case '}', ']':
		p.end()
		return nil
	}
	p.count(isKey)
	switch token[0] {
	case 'n':
		return p.EncodeNil()
	case 't', 'f':
		return p.EncodeBool(token[0] == 't')
	case '"':
		return p.EncodeString(strings.ToValidUTF8(string(unquote(token)), "\ufffd"))
	}
	return p.appendNumber(string(token))
}

// count counts a value as part of its array, or a key as part of its map.
func (p *packer) count(isKey bool) {
	if last := len(p.open) - 1; last >= 0 && p.open[last].isMap == isKey {
		p.open[last].size++
	}
}

func (p *packer) begin(isMap bool) error {
	p.count(false)
	if len(p.open) == maxNesting {
		return errNested
	}
	code := msgpcode.Array32
	if isMap {
		code = msgpcode.Map32
	}
	p.open = append(p.open, container{at: p.out.Len(), isMap: isMap})
	_, err := p.out.Write([]byte{code, 0, 0, 0, 0})
	return err
}

func (p *packer) end() {
	last := len(p.open) - 1
	c := p.open[last]
	binary.BigEndian.PutUint32(p.out.Bytes()[c.at+1:], c.size)
	p.open = p.open[:last]
}

func (p *packer) appendNumber(text string) error {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return p.EncodeInt(n)
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return p.EncodeUint(n)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return errNumber
	}
	return p.EncodeFloat64(f)
}
