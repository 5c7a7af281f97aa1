package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// The members that are made without a server are what a server finds: scripts, keys and arguments are those that it uses.
func TestAServerKnowsTheMembersWithoutSockets(t *testing.T) {
	needRedis(t)
	dir := t.TempDir()
	modes, err := chosenModes(settings{modes: "redis-patch", clients: 6, rooms: 2})
	if err != nil {
		t.Fatal(err)
	}
	c := &capacity{mode: modes[0]}
	if c.store, err = openStore(t.Context(), dir, 1); err != nil {
		t.Fatal(err)
	}
	defer c.store.close()
	if c.scripts, err = loadScripts(t.Context(), c.store.masters); err != nil {
		t.Fatal(err)
	}
	if _, err := c.layOut(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return c.populate(t.Context(), 2) },
		func() error { return c.heartbeats(t.Context(), c.members) },
		func() error { return c.patches(t.Context(), c.members) },
		func() error { return c.churns(t.Context(), c.members[:2]) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	server, err := buildServer(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var s site
	defer s.close()
	if err := s.startServer(t.Context(), trial{settings: settings{server: server}, dir: dir}, 0, "redis://"+c.store.addresses[0]); err != nil {
		t.Fatal(err)
	}
	checkRoom(t, s.nodes[0], "0", map[string]int64{"user-0": 0, "user-2": 1, "user-4": 1})
	checkRoom(t, s.nodes[0], "1", map[string]int64{"user-1": 0, "user-3": 1, "user-5": 1})
}

// checkRoom reads a room through a server: its users and their last updates.
func checkRoom(t *testing.T, node, room string, want map[string]int64) {
	t.Helper()
	f, err := newDialer(false).dial(t.Context(), node, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.conn.Close()
	m := &crowdMember{crowd: &crowd{}, frames: f, fold: newFold()}
	ack, err := m.ask(3, fmt.Sprintf(`["presence:get",{"roomId":"%s"}]`, room))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.packet(ack); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(m.fold.updates) != fmt.Sprint(want) {
		t.Errorf("room %s holds %v, want %v", room, m.fold.updates, want)
	}
}

// A script that does not do what it should ends a measurement; it is not counted.
func TestAnAnswerThatIsNotOkayIsAnError(t *testing.T) {
	needRedis(t)
	c := &capacity{mode: mode{clients: 1, perRoom: 1}}
	var err error
	if c.store, err = openStore(t.Context(), t.TempDir(), 1); err != nil {
		t.Fatal(err)
	}
	defer c.store.close()
	if c.scripts, err = loadScripts(t.Context(), c.store.masters); err != nil {
		t.Fatal(err)
	}
	m := &bareMember{room: "r", conn: "c", epoch: "1", rev: "1"}
	if err := c.heartbeats(t.Context(), []*bareMember{m}); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a heartbeat of nobody gives %v", err)
	}
}

func TestAStoreThatDoesNotStart(t *testing.T) {
	s, err := openStore(t.Context(), filepath.Join(t.TempDir(), "missing"), 1)
	s.close()
	if err == nil {
		t.Error("it started in a folder that is not there")
	}
}
