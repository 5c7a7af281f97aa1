package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
)

// mergeState merges a patch into a state at the top level, both compact objects: a key given replaces the whole value in
// place, new keys follow, all other bytes stay, and of duplicate keys only the last value is left. When that is the same
// JSON as the state, changed is false and merged is state itself.
func mergeState(state, patch json.RawMessage) (merged json.RawMessage, changed bool) {
	var o orderedObject
	for s := openObject(state); s.nextKey(); {
		m := o.field(s.token())
		m.old = s.nextValue()
		m.new = m.old
	}
	for s := openObject(patch); s.nextKey(); {
		o.field(s.token()).new = s.nextValue()
	}
	if !o.changed() {
		return state, false
	}
	return o.appendJSON(make([]byte, 0, len(state)+len(patch))), true
}

// orderedObject is an object under change. Its members are in the order in which their keys came first.
type orderedObject struct {
	members []jsonField
	places  map[string]int // name → index in members; nil while there are few
}

type jsonField struct {
	name     []byte // the key, unquoted
	key      []byte // the key as it was written first
	old, new []byte // values; old is nil for a key that the patch brings
}

// fewMembers are found sooner one by one than by a map.
const fewMembers = 16

// field returns the member with that key, made if there is none. It is valid until the next call.
func (o *orderedObject) field(key []byte) *jsonField {
	name := unquote(key)
	if at, ok := o.find(name); ok {
		return &o.members[at]
	}
	o.members = append(o.members, jsonField{name: name, key: key})
	if last := len(o.members) - 1; o.places != nil {
		o.places[string(name)] = last
	} else if last == fewMembers {
		o.places = make(map[string]int, 2*fewMembers)
		for i, m := range o.members {
			o.places[string(m.name)] = i
		}
	}
	return &o.members[len(o.members)-1]
}

func (o *orderedObject) find(name []byte) (place int, ok bool) {
	if o.places != nil {
		place, ok = o.places[string(name)]
		return place, ok
	}
	place = slices.IndexFunc(o.members, func(m jsonField) bool { return bytes.Equal(m.name, name) })
	return place, place >= 0
}

func (o *orderedObject) changed() bool {
	return slices.ContainsFunc(o.members, func(m jsonField) bool {
		return m.old == nil || !sameJSON(m.old, m.new)
	})
}

func (o *orderedObject) appendJSON(b []byte) []byte {
	for i, m := range o.members {
		b = append(b, "{,"[min(i, 1)])
		b = append(b, m.key...)
		b = append(b, ':')
		b = append(b, m.new...)
	}
	return append(b, '}')
}

// sameJSON reports whether two valid JSON texts mean the same. Order of keys and spacing are no difference, of duplicate
// keys the last value counts, numbers are equal when their text is, strings when their UTF-16 code units are.
func sameJSON(a, b []byte) bool {
	switch {
	case bytes.Equal(a, b):
		return true
	case isPlain(a) && isPlain(b): // spares the common values what follows
		return false
	}
	known := canonicalIDs{}
	return slices.Equal(known.values(a), known.values(b))
}

// isPlain reports whether a value has no container, no escape and no space around it: it is written in one way only.
func isPlain(b []byte) bool {
	return len(b) > 0 && b[0] > ' ' && b[0] != '{' && b[0] != '[' && b[len(b)-1] > ' ' && bytes.IndexByte(b, '\\') < 0
}

// canonicalIDs gives values that mean the same the same number, and others another one. Its keys are scalars without their
// escapes, "]" with the numbers of the elements, and "}" with the numbers of keys and values, sorted by key. So values
// are compared exactly, from the inside outwards, and each is looked at once.
type canonicalIDs map[string]uint32

// values returns the numbers of the values that b holds side by side: one if it is valid.
func (n canonicalIDs) values(b []byte) []uint32 {
	var (
		done   []uint32 // numbers of complete values and keys whose container is open
		opened []int    // for each open container, outermost first, how many of them are outside of it
		buf    []byte
	)
	for s := (scanner{text: b}); s.next(); {
		switch token := s.token(); token[0] {
		case '{', '[':
			opened = append(opened, len(done))
			continue
		case '}', ']':
			first := opened[len(opened)-1]
			opened = opened[:len(opened)-1]
			buf = appendContainer(buf[:0], token[0], done[first:])
			done = done[:first]
		case '"':
			buf = append(append(buf[:0], '"'), unquote(token)...)
		default:
			buf = append(buf[:0], token...)
		}
		done = append(done, n.of(buf))
	}
	return done
}

func (n canonicalIDs) of(key []byte) uint32 {
	number, ok := n[string(key)]
	if !ok {
		number = uint32(len(n))
		n[string(key)] = number
	}
	return number
}

// appendContainer appends what identifies a container with these elements, or keys and values in turn.
func appendContainer(b []byte, bracket byte, parts []uint32) []byte {
	b = append(b, bracket)
	if bracket == ']' {
		for _, part := range parts {
			b = binary.LittleEndian.AppendUint32(b, part)
		}
		return b
	}
	keys := make([]uint64, 0, len(parts)/2) // number of the key, then its place: sorted, the last of duplicates is last
	for i := 0; i < len(parts); i += 2 {
		keys = append(keys, uint64(parts[i])<<32|uint64(i))
	}
	slices.Sort(keys)
	for i, key := range keys {
		if i+1 < len(keys) && keys[i+1]>>32 == key>>32 {
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(key>>32))
		b = binary.LittleEndian.AppendUint32(b, parts[uint32(key)+1])
	}
	return b
}
