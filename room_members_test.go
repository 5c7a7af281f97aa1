package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestMembersAndTheirViews changes members at random, and takes views on the way: each stays what it was.
func TestMembersAndTheirViews(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var entries []Entry
	want := map[string]Entry{}
	for i := range 200 {
		e := here(fmt.Sprintf("c%03d", 2*i), 1, "{}")
		entries, want[e.ConnID] = append(entries, e), e
	}
	m := membersOf(entries)
	type taken struct {
		view members
		want map[string]Entry
	}
	var views []taken
	check := func(m members, want map[string]Entry) {
		t.Helper()
		ids := slices.Sorted(maps.Keys(want))
		var got []string
		for e := range m.all() {
			got = append(got, e.ConnID)
			if e.Rev != want[e.ConnID].Rev {
				t.Fatalf("%s is of revision %d, want %d", e.ConnID, e.Rev, want[e.ConnID].Rev)
			}
		}
		if m.len() != len(want) || !slices.Equal(got, ids) {
			t.Fatalf("the members are\n%v\nwant\n%v", got, ids)
		}
		after := fmt.Sprintf("c%03d", random.IntN(500))
		at, found := slices.BinarySearch(ids, after)
		if found {
			at++
		}
		got = nil
		for e := range m.after(after) {
			got = append(got, e.ConnID)
		}
		if !slices.Equal(got, ids[at:]) {
			t.Fatalf("after %s there are\n%v\nwant\n%v", after, got, ids[at:])
		}
	}
	for rev := range int64(6000) {
		e := here(fmt.Sprintf("c%03d", random.IntN(500)), rev+2, "{}")
		_, there := want[e.ConnID]
		if got, found := m.get(e.ConnID); found != there || got.Rev != want[e.ConnID].Rev {
			t.Fatalf("%s is found: %t, want %t", e.ConnID, found, there)
		}
		if rev > 3000 && random.IntN(3) > 0 || random.IntN(3) == 0 { // the room grows, and then shrinks
			m.drop(e.ConnID)
			delete(want, e.ConnID)
		} else {
			m.put(e)
			want[e.ConnID] = e
		}
		if random.IntN(100) == 0 {
			check(m, want)
			views = append(views, taken{m.view(), maps.Clone(want)})
		}
	}
	for _, v := range views {
		check(v.view, v.want)
	}
	for _, b := range m.blocks {
		if len(b.entries) == 0 || len(b.entries) > blockSize {
			t.Errorf("a block has %d members", len(b.entries))
		}
	}
	if most := 8 * (m.len()/blockSize + 1); len(m.blocks) > most {
		t.Errorf("%d members are in %d blocks", m.len(), len(m.blocks))
	}
}

// TestAComparisonFindsWhatDiffers compares members with what was read.
func TestAComparisonFindsWhatDiffers(t *testing.T) {
	later := here("d", 4, "{}")
	later.LastSeenMs = 500
	m := membersOf([]Entry{here("b", 2, "{}"), here("c", 3, "{}"), here("d", 4, "{}"), here("f", 6, "{}")})
	found := m.compare([]Entry{here("a", 1, "{}"), here("c", 9, "{}"), later, here("e", 5, "{}"), here("g", 7, "{}")})
	if got, want := slices.Sorted(maps.Keys(found.differ)), []string{"a", "b", "c", "e", "f", "g"}; !slices.Equal(got, want) {
		t.Errorf("%v differ, want %v", got, want)
	}
	before := m.view()
	m.hear(found)
	if e, _ := m.get("d"); e.LastSeenMs != 500 {
		t.Errorf("d was heard of at %d", e.LastSeenMs)
	}
	if e, _ := before.get("d"); e.LastSeenMs != 4 {
		t.Errorf("in the view before d was heard of at %d", e.LastSeenMs)
	}
	m.put(here("b", 2, "{}"))
	m.hear(m.compare(nil)) // of a block that is not there any more
	if m.len() != 4 {
		t.Errorf("%d members", m.len())
	}
}
