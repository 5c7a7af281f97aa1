package main

// faults are what a client must never see.
type faults struct {
	lost       int64 // updates that were skipped; members and updates that are missing at the end
	doubled    int64 // events of something that the client knows already
	disordered int64 // events out of the room's order, before the snapshot that they belong after, or of a room it is not in
}

func (f *faults) add(other faults) {
	f.lost += other.lost
	f.doubled += other.doubled
	f.disordered += other.disordered
}

const absent = -1

// view is a room as one client knows it: the last update of each member, by the member's number, or absent.
type view struct {
	self    int
	in      bool
	rev     int64
	members []int64
	present int   // members that are there
	sum     int64 // of their updates
	faults  faults
}

func newView(self, size int) view {
	v := view{self: self, members: make([]int64, size)}
	v.clear()
	return v
}

func (v *view) clear() {
	for i := range v.members {
		v.members[i] = absent
	}
	v.present, v.sum = 0, 0
}

func (v *view) set(member int, n int64) {
	if old := v.members[member]; old != absent {
		v.present--
		v.sum -= old
	}
	if n != absent {
		v.present++
		v.sum += n
	}
	v.members[member] = n
}

// joined takes the snapshot of a join. Members that are not of this load make the view differ from the truth.
func (v *view) joined(rev int64, present []int) {
	v.clear()
	v.in, v.rev = true, rev
	for _, member := range present {
		if !v.knows(member) {
			continue
		}
		if v.members[member] != absent {
			v.faults.doubled++
		}
		v.set(member, 0)
	}
}

func (v *view) knows(member int) bool { return 0 <= member && member < len(v.members) }

// event takes what happened to one member, and says whether it was news. Events of one revision may be several: a server
// that missed messages tells the differences with the revision that it read.
func (v *view) event(e event) bool {
	if !v.in || e.rev < v.rev || !v.knows(e.member) {
		v.faults.disordered++
		return false
	}
	v.rev = e.rev
	last := v.members[e.member]
	switch {
	case e.kind == eventUpdate:
		return v.update(e.member, last, e.n)
	case e.kind == eventLeave && last == absent, e.kind == eventJoin && last != absent:
		if e.member != v.self { // a client may get its own join after the snapshot that has it
			v.faults.doubled++
		}
		return false
	case e.kind == eventLeave:
		v.set(e.member, absent)
	default:
		v.set(e.member, 0)
	}
	return true
}

func (v *view) update(member int, last, n int64) bool {
	switch {
	case last == absent:
		v.faults.disordered++
		return false
	case n <= last:
		v.faults.doubled++
		return false
	}
	v.faults.lost += n - last - 1
	v.set(member, n)
	return true
}

// missing compares with the truth: the last update of each member, or absent.
func (v *view) missing(truth []int64) (n int64) {
	for i, is := range truth {
		switch knows := v.members[i]; {
		case is == knows:
		case is == absent || knows == absent:
			n++
		default:
			n += max(is-knows, knows-is)
		}
	}
	return n
}
