package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestConcurrentPatchesLoseNothing(t *testing.T) {
	const each = 15
	eachBackend(t, func(t *testing.T, b backend) {
		room := uniqueRoom(t)
		services := []*Service{startService(t, b.open(t), Options{}), startService(t, b.open(t), Options{}), startService(t, b.open(t), Options{})}
		events := record(t, services[0].rdb, room)
		mustJoin(t, services[0], room, "ann", "a", `{}`)
		var work sync.WaitGroup
		for i, s := range services {
			work.Go(func() {
				for j := range each {
					patch := fmt.Sprintf(`{"k%d_%d":%d,"shared":"%d_%d"}`, i, j, j, i, j)
					if changed, _, err := s.Heartbeat(t.Context(), room, "a", raw(patch), 0); err != nil || !changed {
						t.Errorf("patch %s: changed %t, %v", patch, changed, err)
					}
				}
			})
		}
		work.Wait()
		var state map[string]any
		if err := json.Unmarshal([]byte(stateOf(t, services[0], room, "a")), &state); err != nil {
			t.Fatal(err)
		}
		for i := range services {
			for j := range each {
				if state[fmt.Sprintf("k%d_%d", i, j)] != float64(j) {
					t.Errorf("patch %d of service %d was lost", j, i)
				}
			}
		}
		if shared, _ := state["shared"].(string); !regexp.MustCompile(`^[012]_14$`).MatchString(shared) {
			t.Errorf("the shared key ends with %q, want a service's last value", shared)
		}
		assertChain(t, events.upTo(t, services[0], room))
		assertAgree(t, services[0], room)
	})
}

// operation is one use of a script of a room with member a in it, as its node knows it.
type operation struct {
	name string
	do   func(ctx context.Context, s *Service, m *Member) error
}

func operations() []operation {
	return []operation{
		{"join of another", func(ctx context.Context, s *Service, m *Member) error {
			_, err := s.Join(ctx, m.Room, "eve", "new", nil)
			return err
		}},
		{"join again", func(ctx context.Context, s *Service, m *Member) error {
			again, err := s.join(ctx, *m, 0)
			if err == nil {
				*m = again
			}
			return err
		}},
		{"heartbeat", func(ctx context.Context, s *Service, m *Member) error {
			_, _, err := s.heartbeat(ctx, m, nil, 0)
			return err
		}},
		{"patch", func(ctx context.Context, s *Service, m *Member) error {
			_, _, err := s.heartbeat(ctx, m, raw(`{"p":1}`), 0)
			return err
		}},
		{"heartbeat of any process", func(ctx context.Context, s *Service, m *Member) error {
			_, _, err := s.Heartbeat(ctx, m.Room, m.Conn, raw(`{"p":2}`), 0)
			var refused *Error
			if errors.As(err, &refused) && refused.Code == CodeNotJoined {
				return nil // with conn_meta, Redis has lost who is in the room
			}
			return err
		}},
		{"restore", func(ctx context.Context, s *Service, m *Member) error { return s.restore(ctx, m, 0, 0) }},
		{"leave", func(ctx context.Context, s *Service, m *Member) error { return s.Leave(ctx, m.Room, m.Conn) }},
		{"hold", func(ctx context.Context, s *Service, m *Member) error { return s.holdBack(ctx, *m, s.options.Grace) }},
		{"snapshot", func(ctx context.Context, s *Service, m *Member) error {
			_, err := s.Snapshot(ctx, m.Room)
			return err
		}},
		{"reaper's look", func(ctx context.Context, s *Service, m *Member) error {
			_, err := newReaper(s).reap(ctx, m.Room, false)
			return err
		}},
	}
}

// schedule is three services on one room, and what each connection's owner knows of it.
type schedule struct {
	services []*Service
	room     string

	mu      sync.Mutex
	members map[string]Member
}

func TestConcurrentOperationsInAnyOrder_G4_G5_G6(t *testing.T) {
	t.Parallel()
	const conns, rounds, steps = 8, 4, 12
	eachBackend(t, func(t *testing.T, b backend) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		d := &schedule{room: uniqueRoom(t), members: map[string]Member{}}
		for range 3 {
			d.services = append(d.services, startService(t, b.open(t), Options{Lookback: time.Minute}))
		}
		events := record(t, d.services[0].rdb, d.room)
		for round := range rounds {
			var work sync.WaitGroup
			for i := range conns {
				random := rand.New(rand.NewPCG(seed, uint64(round*conns+i)))
				work.Go(func() {
					for range steps {
						d.step(t, random, fmt.Sprint("c", i))
					}
				})
			}
			work.Go(func() { d.sweep(t, rand.New(rand.NewPCG(seed, 1<<40+uint64(round)))) })
			work.Wait()
			assertAgree(t, d.services[0], d.room)
			all := events.upTo(t, d.services[0], d.room)
			assertChain(t, all)
			assertOneLeave(t, all)
			d.assertFolded(t, all)
		}
	})
}

// step does something with a connection that only its own goroutine joins and patches.
func (d *schedule) step(t *testing.T, random *rand.Rand, conn string) {
	s := d.services[random.IntN(len(d.services))]
	ctx := t.Context()
	d.mu.Lock()
	old := d.members[conn]
	d.mu.Unlock()
	var err error
	switch random.IntN(6) {
	case 0, 1:
		var joined Joined
		joined, err = s.Join(ctx, d.room, fmt.Sprint("u", random.IntN(3)), conn, raw(fmt.Sprintf(`{"n":%d}`, random.IntN(9))))
		if err == nil && joined.Epoch <= old.Epoch {
			t.Errorf("%s: epoch %d after %d", conn, joined.Epoch, old.Epoch)
		}
		d.mu.Lock()
		d.members[conn] = Member{Epoch: joined.Epoch}
		d.mu.Unlock()
	case 2:
		_, _, err = s.Heartbeat(ctx, d.room, conn, raw(fmt.Sprintf(`{"p":%d}`, random.IntN(3))), 0)
	case 3:
		_, _, err = s.Heartbeat(ctx, d.room, conn, nil, old.Epoch)
	case 4:
		if old.Epoch > 0 {
			_, _, err = s.Heartbeat(ctx, d.room, conn, raw(`{"evil":true}`), old.Epoch-1)
			if err == nil {
				t.Errorf("%s: a patch with an epoch that was never issued was taken", conn)
			}
		}
	case 5:
		err = s.Leave(ctx, d.room, conn)
	}
	var refused *Error
	if errors.As(err, &refused) && refused.Code != CodeNotJoined && refused.Code != CodeStaleEpoch {
		t.Errorf("%s: %v", conn, err)
	}
}

// sweep is what reapers and kicks do: it removes connections whoever owns them, of any or of an older epoch.
func (d *schedule) sweep(t *testing.T, random *rand.Rand) {
	for range 20 {
		s := d.services[random.IntN(len(d.services))]
		conn := fmt.Sprint("c", random.IntN(8))
		d.mu.Lock()
		epoch := d.members[conn].Epoch - int64(random.IntN(2))
		d.mu.Unlock()
		how := removal{reason: ReasonTimeout}
		if random.IntN(2) == 0 {
			how.silent = time.Millisecond
		}
		if _, _, err := s.remove(t.Context(), d.room, how, []incarnation{{conn, max(epoch, 0)}}); err != nil {
			t.Error(err)
		}
	}
}

// assertFolded checks that the events, applied one after the other, give the room, and that each userConns was right.
func (d *schedule) assertFolded(t *testing.T, all []message) {
	t.Helper()
	replica := newReplica(d.room)
	for _, m := range all {
		replica.apply(m.Event)
		if got := replica.users[m.UserID]; got != m.UserConns {
			t.Errorf("revision %d says that %s has %d connections, the events before it make %d", m.Rev, m.UserID, m.UserConns, got)
		}
		if strings.Contains(string(m.State), "evil") {
			t.Errorf("a fenced patch became state: %s", m.State)
		}
	}
	v := mustRead(t, d.services[1], d.room)
	if len(v.Entries) != replica.entries.len() || v.Users != len(replica.users) {
		t.Errorf("the room has %d connections of %d users, its events make %d of %d", len(v.Entries), v.Users, replica.entries.len(), len(replica.users))
	}
	for _, e := range v.Entries {
		if p := replica.entry(e.ConnID); p.Epoch != e.Epoch || p.Rev != e.Rev || string(p.State) != string(e.State) || p.UserID != e.UserID {
			t.Errorf("the room has %+v, its events make %+v", e, p)
		}
	}
}
