package main

import (
	"slices"
	"testing"
)

// inRoom is a view of a room of three, by its member 0, with revision 100.
func inRoom() view {
	v := newView(0, 3)
	v.joined(100, []int{0, 1})
	return v
}

func update(member int, rev, n int64) event { return event{eventUpdate, member, rev, n} }

func TestViewFindsWhatMustNotHappen(t *testing.T) {
	for name, test := range map[string]struct {
		events []event
		truth  []int64
		want   faults
	}{
		"all is well":         {[]event{update(1, 101, 1), {eventJoin, 2, 102, 0}, update(2, 103, 1), {eventLeave, 1, 104, 0}}, []int64{0, absent, 1}, faults{}},
		"its own join":        {[]event{{eventJoin, 0, 100, 0}}, []int64{0, 0, absent}, faults{}},
		"several of one rev":  {[]event{update(1, 101, 1), update(0, 101, 1)}, []int64{1, 1, absent}, faults{}},
		"an update skipped":   {[]event{update(1, 101, 1), update(1, 103, 3)}, []int64{0, 3, absent}, faults{lost: 1}},
		"the last one lost":   {[]event{update(1, 101, 1)}, []int64{0, 2, absent}, faults{lost: 1}},
		"a join lost":         {nil, []int64{0, 0, 0}, faults{lost: 1}},
		"a leave lost":        {nil, []int64{0, absent, absent}, faults{lost: 1}},
		"an update twice":     {[]event{update(1, 101, 1), update(1, 102, 1)}, []int64{0, 1, absent}, faults{doubled: 1}},
		"a join twice":        {[]event{{eventJoin, 1, 101, 0}}, []int64{0, 0, absent}, faults{doubled: 1}},
		"a leave twice":       {[]event{{eventLeave, 2, 101, 0}}, []int64{0, 0, absent}, faults{doubled: 1}},
		"back in order":       {[]event{update(1, 102, 1), update(0, 101, 1)}, []int64{0, 1, absent}, faults{disordered: 1}},
		"before the snapshot": {[]event{{eventJoin, 2, 99, 0}}, []int64{0, 0, absent}, faults{disordered: 1}},
		"of nobody there":     {[]event{update(2, 101, 1)}, []int64{0, 0, absent}, faults{disordered: 1}},
		"of a stranger":       {[]event{update(7, 101, 1)}, []int64{0, 0, absent}, faults{disordered: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			v := inRoom()
			for _, e := range test.events {
				v.event(e)
			}
			got := v.faults
			got.lost += v.missing(test.truth)
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestViewTakesNoEventWithoutBeingIn(t *testing.T) {
	v := newView(0, 3)
	if v.event(event{eventJoin, 1, 1, 0}) || v.faults.disordered != 1 {
		t.Errorf("faults are %+v", v.faults)
	}
}

func TestViewCountsWhatItKnows(t *testing.T) {
	v := inRoom()
	v.event(update(1, 101, 1))
	v.event(update(1, 102, 2))
	if v.present != 2 || v.sum != 2 {
		t.Errorf("%d members with %d updates, want 2 and 2", v.present, v.sum)
	}
	v.event(event{eventLeave, 1, 103, 0})
	if v.present != 1 || v.sum != 0 {
		t.Errorf("%d members with %d updates, want 1 and 0", v.present, v.sum)
	}
}

func TestSnapshotWithAMemberTwice(t *testing.T) {
	v := newView(0, 2)
	v.joined(1, []int{0, 1, 1})
	if v.faults.doubled != 1 {
		t.Errorf("faults are %+v", v.faults)
	}
}

func TestParseEvent(t *testing.T) {
	for text, want := range map[string]event{
		`42["presence:event",{"type":"update","roomId":"r","userId":"u12","connId":"c","state":{"n":34},"ts":5,"epoch":6,"rev":78,"userConns":1}]`: {eventUpdate, 12, 78, 34},
		`42["presence:event",{"rev":7,"userId":"u0","state":{"n":0},"type":"join"}]`:                                                               {eventJoin, 0, 7, 0},
		`42["presence:event",{"type":"leave","userId":"u3","state":null,"rev":9,"reason":"left"}]`:                                                 {eventLeave, 3, 9, 0},
	} {
		if got, ok := parseEvent([]byte(text)); !ok || got != want {
			t.Errorf("%s: got %v, %t, want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{
		`42["presence:event",{}]`,
		`42["presence:event",{"type":"join","userId":"x","state":{"n":0},"rev":9}]`,
		`42["presence:event",{"type":"update","userId":"u1","state":{},"rev":9}]`,
		`42["presence:event",{"type":"join","userId":"u1","state":{"n":0}}]`,
	} {
		if got, ok := parseEvent([]byte(text)); ok {
			t.Errorf("%s: got %v", text, got)
		}
	}
}

func TestParseMembers(t *testing.T) {
	const ack = `431[{"ok":true,"snapshot":[{"connId":"a","userId":"u5"},{"connId":"b","userId":"u10"}]}]`
	if got := parseMembers([]byte(ack)); !slices.Equal(got, []int{5, 10}) {
		t.Errorf("got %v", got)
	}
}
