package main

import "testing"

func change(kind, user string, rev, n int64) crowdEvent {
	e := crowdEvent{Type: kind, UserID: user, Rev: rev}
	e.State.N = n
	return e
}

// Pages may be older or newer than the events around them.
func TestFoldIsByRevision(t *testing.T) {
	for name, test := range map[string]struct {
		events  []crowdEvent
		page    int64 // its revision; it has u0 and u1, both without updates
		missing int64 // of a room with u0 at 0 and u1 at 2
	}{
		"events after the page":     {[]crowdEvent{change("update", "u1", 11, 1), change("update", "u1", 12, 2)}, 10, 0},
		"one is lost":               {[]crowdEvent{change("update", "u1", 11, 1)}, 10, 1},
		"the page is the older one": {[]crowdEvent{change("update", "u1", 12, 2)}, 11, 0},
		"back in order":             {[]crowdEvent{change("update", "u1", 12, 2), change("update", "u1", 11, 1)}, 10, 0},
		"a leave that was none":     {[]crowdEvent{change("update", "u1", 12, 2), change("leave", "u0", 13, 0)}, 10, 1},
		"a stranger":                {[]crowdEvent{change("update", "u1", 12, 2), change("join", "u7", 13, 0)}, 10, 1},
	} {
		t.Run(name, func(t *testing.T) {
			members := []*crowdMember{{number: 0}, {number: 1}}
			members[1].updates.Store(2)
			f := newFold()
			for _, e := range test.events[:1] {
				f.event(e)
			}
			f.page(test.page, []crowdEvent{change("", "u0", 0, 0), change("", "u1", 0, 0)})
			for _, e := range test.events[1:] {
				f.event(e)
			}
			if got := f.missing(members); got != test.missing {
				t.Errorf("%d missing, want %d", got, test.missing)
			}
			var sum int64
			for _, n := range f.updates {
				sum += n
			}
			if f.sum != sum {
				t.Errorf("the sum is %d, want %d", f.sum, sum)
			}
		})
	}
}

func TestMembersWhoWereNotToldAreCounted(t *testing.T) {
	c := &crowd{members: []*crowdMember{{}, {}, {}}}
	c.members[0].rev.Store(7)
	c.members[1].rev.Store(7)
	if n := c.behind(); n != 1 {
		t.Errorf("%d are behind, want 1", n)
	}
}

func TestARevisionThatGoesBackIsAnError(t *testing.T) {
	m := &crowdMember{crowd: &crowd{}, fold: newFold()}
	if err := m.packet([]byte(`42["presence:batch",{"roomId":"r","rev":9,"count":1,"users":1,"events":[{"type":"update","userId":"u0","rev":9,"state":{"n":4}}]}]`)); err != nil || m.fold.sum != 4 {
		t.Fatalf("the sum is %d, %v", m.fold.sum, err)
	}
	if err := m.packet([]byte(`42["presence:event",{"type":"update","userId":"u0","rev":8,"state":{"n":5}}]`)); err == nil {
		t.Error("it was taken")
	}
}
