package main

import (
	"bytes"
	"cmp"
	"errors"
	"strings"
	"unicode/utf8"
)

// This file is the only place that takes JSON objects apart whose fields decide something: payloads of events, bodies of
// requests, claims and headers of tokens, key sets. encoding/json would ignore the case of names, take the last of two equal
// ones, and repair text that is no Unicode: a program before this one that reads the same text in another way could be misled.

// field is a name that counts in an object, and where its JSON goes. It points to nil before.
type field struct {
	name  string
	value *[]byte
}

var errNoObject = errors.New("must be a JSON object")

// readObject points fields at their values within raw, which must be one JSON object in UTF-8 and nothing else. Names are
// compared byte by byte, without their escapes; those of no field are passed over. It is an error if a name comes twice,
// whatever the name. twin is a field of which the object has the name in another case as well or instead, "" = there is none.
func readObject(raw []byte, fields ...field) (twin string, err error) {
	s := scanner{text: raw}
	if !utf8.Valid(raw) || !s.enter('{') {
		return "", errNoObject
	}
	var others nameSet
	for s.nextKey() {
		name, value := unquote(s.token()), s.nextValue()
		f := findField(fields, name)
		switch {
		case f != nil && *f.value != nil:
			return "", errors.New("must not have " + f.name + " twice")
		case f != nil:
			*f.value = value
		case !others.add(name):
			return "", errors.New("must not have a field twice")
		default:
			twin = cmp.Or(twin, findTwin(fields, name))
		}
	}
	if !s.ended() {
		return "", errNoObject
	}
	return twin, nil
}

func findField(fields []field, name []byte) *field {
	for i := range fields {
		if fields[i].name == string(name) {
			return &fields[i]
		}
	}
	return nil
}

// findTwin returns the field whose name is this one but for the case of letters, as encoding/json compares them: of all
// Unicode. "" = there is none.
func findTwin(fields []field, name []byte) string {
	for _, f := range fields {
		if strings.EqualFold(f.name, string(name)) {
			return f.name
		}
	}
	return ""
}

// nameSet holds names of one object that no field has.
type nameSet struct {
	few  [8][]byte
	size int
	many map[string]bool // all of them, once they are more than few
}

// add reports whether the name is new.
func (n *nameSet) add(name []byte) bool {
	if n.many == nil && n.size < len(n.few) {
		for _, other := range n.few[:n.size] {
			if bytes.Equal(other, name) {
				return false
			}
		}
		n.few[n.size] = name
		n.size++
		return true
	}
	if n.many == nil {
		n.many = make(map[string]bool, 2*len(n.few))
		for _, other := range n.few {
			n.many[string(other)] = true
		}
	}
	if n.many[string(name)] {
		return false
	}
	n.many[string(name)] = true
	return true
}

// readFields is readObject for the payload of an event or the body of a request. An empty raw or null is a payload without
// fields, and null in a field is as if the field were not there.
func readFields(raw []byte, fields ...field) *Error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if _, err := readObject(raw, fields...); err != nil {
		return invalid("the payload " + err.Error())
	}
	for _, f := range fields {
		if string(*f.value) == "null" {
			*f.value = nil
		}
	}
	return nil
}
