package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestAReplicaTellsTheDifferenceToWhatWasRead_G3(t *testing.T) {
	old := func(conn, user string, epoch, rev int64, state string) Entry {
		return Entry{ConnID: conn, UserID: user, Epoch: epoch, Rev: rev, State: raw(state)}
	}
	before := []Entry{old("a", "ann", 5, 5, "{}"), old("b", "ann", 6, 6, `{"n":1}`), old("c", "cid", 7, 7, "{}")}
	cases := map[string]struct {
		rev   int64
		found []Entry
		want  []string // in this order
	}{
		"nothing new": {9, before, nil},
		"heartbeats only": {9, []Entry{
			{ConnID: "a", UserID: "ann", Epoch: 5, Rev: 5, State: raw("{}"), LastSeenMs: 99}, before[1], before[2]}, nil},
		"a join of a new user": {9, append(slices.Clone(before), old("d", "dan", 8, 8, `{"x":[]}`)),
			[]string{`join d dan 1 @9 {"x":[]}`}},
		"a third connection of a user": {9, append(slices.Clone(before), old("d", "ann", 8, 8, "{}")),
			[]string{"join d ann 3 @9 {}"}},
		"an update": {9, []Entry{before[0], old("b", "ann", 6, 8, `{"n":2}`), before[2]},
			[]string{`update b ann 2 @9 {"n":2}`}},
		"put back with the same state": {9, []Entry{before[0], old("b", "ann", 6, 8, `{"n":1}`), before[2]},
			[]string{`join b ann 2 @9 {"n":1}`}},
		"a new incarnation": {9, []Entry{before[0], old("b", "ann", 8, 8, `{"n":1}`), before[2]},
			[]string{`join b ann 2 @9 {"n":1}`}},
		"another user on the connection": {9, []Entry{before[0], old("b", "bob", 8, 8, "{}"), before[2]},
			[]string{"join b bob 1 @9 {}"}},
		"a leave": {9, before[:2], []string{"leave c cid 0 @9"}},
		"joins and updates before leaves, counted one by one": {
			9, []Entry{old("b", "ann", 6, 8, `{"n":2}`), old("d", "ann", 9, 9, "{}"), old("e", "cid", 8, 8, "{}")},
			[]string{`update b ann 2 @9 {"n":2}`, "join d ann 3 @9 {}", "join e cid 2 @9 {}", "leave a ann 2 @9", "leave c cid 1 @9"}},
		"everybody left":                 {9, nil, []string{"leave a ann 1 @9", "leave b ann 0 @9", "leave c cid 0 @9"}},
		"the store has lost its counter": {0, before[:2], []string{"leave c cid 0 @7"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := newReplica("r")
			p.adopt(Snapshot{Rev: 7, Entries: before}, nobody)
			var got []string
			joins := 0 // events that are no leaves
			for _, e := range p.adopt(Snapshot{Rev: c.rev, TS: 123, Entries: c.found}, nobody) {
				if e.TS != 123 || e.RoomID != "r" || e.Epoch == 0 {
					t.Errorf("an event without its time, room or epoch: %+v", e)
				}
				if e.Type != EventLeave {
					joins++
				}
				got = append(got, said(e.Event))
			}
			sortLeaves(got[joins:])
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			assertHolds(t, p, max(7, c.rev), c.found)
		})
	}
}

// sortLeaves puts leaves, which come in any order, into that of their connections; the counts of a user go with the
// places, not with the connections.
func sortLeaves(leaves []string) {
	counts := map[string][]string{}
	for _, line := range leaves {
		f := strings.Fields(line)
		counts[f[2]] = append(counts[f[2]], f[3])
	}
	slices.Sort(leaves)
	for i, line := range leaves {
		f := strings.Fields(line)
		f[3], counts[f[2]] = counts[f[2]][0], counts[f[2]][1:]
		leaves[i] = strings.Join(f, " ")
	}
}

// entry is a member, without anything if it is not there.
func (p *replica) entry(conn string) Entry {
	e, _ := p.entries.get(conn)
	return e
}

func (p *replica) byConn() map[string]Entry {
	all := map[string]Entry{}
	for e := range p.entries.all() {
		all[e.ConnID] = e
	}
	return all
}

func assertHolds(t *testing.T, p replica, rev int64, want []Entry) {
	t.Helper()
	users := map[string]int{}
	for _, e := range want {
		users[e.UserID]++
		if got := p.entry(e.ConnID); got.UserID != e.UserID || got.Epoch != e.Epoch || got.Rev != e.Rev || string(got.State) != string(e.State) {
			t.Errorf("the replica has %+v, want %+v", got, e)
		}
	}
	if p.entries.len() != len(want) || !maps.Equal(p.users, users) || p.rev != rev {
		t.Errorf("the replica has %d entries, users %v, revision %d; want %d, %v, %d", p.entries.len(), p.users, p.rev, len(want), users, rev)
	}
}

func TestAReplicaFollowsEvents_G3(t *testing.T) {
	p := newReplica("r")
	event := func(kind EventType, conn, user string, epoch, rev int64, state string) {
		p.apply(Event{Type: kind, ConnID: conn, UserID: user, Epoch: epoch, Rev: rev, TS: 100 + rev, State: raw(state)})
	}
	event(EventJoin, "a", "ann", 1, 1, "{}")
	event(EventJoin, "b", "ann", 2, 2, "{}")
	event(EventUpdate, "a", "ann", 1, 3, `{"n":1}`)
	event(EventLeave, "b", "ann", 2, 4, "null")
	event(EventLeave, "b", "ann", 2, 5, "null")
	event(EventJoin, "a", "bob", 6, 6, "{}")
	event(EventUpdate, "c", "cid", 4, 7, "{}")
	assertHolds(t, p, 7, []Entry{
		{ConnID: "a", UserID: "bob", Epoch: 6, Rev: 6, State: raw("{}")},
		{ConnID: "c", UserID: "cid", Epoch: 4, Rev: 7, State: raw("{}")},
	})
	if seen := p.entry("c").LastSeenMs; seen != 107 {
		t.Errorf("last seen at %d, want the event's time", seen)
	}
}
