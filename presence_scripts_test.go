package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestAScriptIsLoadedOnceHoweverManyMissIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads scriptLoads
		var done atomic.Int64
		slow := func() error {
			done.Add(1)
			pause(t.Context(), time.Second)
			return nil
		}
		sent := time.Now()
		pause(t.Context(), time.Millisecond)
		var work sync.WaitGroup
		for i := range 200 {
			work.Go(func() {
				place := scriptPlace{fmt.Sprint(i % 2), "script"}
				if _, err := loads.load(t.Context(), place, sent, slow); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		must(t, loadErr(loads.load(t.Context(), scriptPlace{"0", "script"}, sent, slow))) // its answer came late
		if n := done.Load(); n != 2 {
			t.Errorf("%d loads on two masters", n)
		}
		pause(t.Context(), time.Millisecond)
		must(t, loadErr(loads.load(t.Context(), scriptPlace{"0", "script"}, time.Now(), slow))) // it was lost again
		if n := done.Load(); n != 3 {
			t.Errorf("%d loads after another loss", n)
		}
		pause(t.Context(), 2*loadKept)
		must(t, loadErr(loads.load(t.Context(), scriptPlace{"2", "script"}, time.Now(), slow)))
		if n := len(loads.latest); n != 1 {
			t.Errorf("%d loads are remembered", n)
		}
	})
}

func loadErr(_ bool, err error) error { return err }

func TestALoadThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads scriptLoads
		place, sent, refused := scriptPlace{"", "script"}, time.Now(), errors.New("refused")
		hang := func(ctx context.Context) func() error {
			return func() error { <-ctx.Done(); return ctx.Err() }
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var work sync.WaitGroup
		work.Go(func() {
			if _, err := loads.load(short, place, sent, hang(short)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("who gave up has %v", err)
			}
		})
		synctest.Wait()
		impatient, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		if _, err := loads.load(impatient, place, sent, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who does not wait has %v", err)
		}
		for range 3 { // one of them goes on, for all
			work.Go(func() {
				_, err := loads.load(t.Context(), place, sent, func() error { pause(t.Context(), time.Second); return refused })
				if !errors.Is(err, refused) {
					t.Errorf("who waited has %v", err)
				}
			})
		}
		work.Wait()
		must(t, loadErr(loads.load(t.Context(), place, sent, func() error { return nil })))
	})
}

// evals counts what servers ran by its text, and their connections.
func evals(t *testing.T, masters []*redis.Client) (commands, connections int) {
	t.Helper()
	of := func(info, pattern string) int {
		n := 0
		if found := regexp.MustCompile(pattern).FindStringSubmatch(info); found != nil {
			n, _ = strconv.Atoi(found[1])
		}
		return n
	}
	for _, master := range masters {
		info, err := master.Info(t.Context(), "all").Result()
		must(t, err)
		commands += of(info, `cmdstat_eval:calls=(\d+)`) + of(info, `cmdstat_script\|load:calls=(\d+)`)
		connections += of(info, `connected_clients:(\d+)`)
	}
	return commands, connections
}

// TestLostScriptsAreLoadedOnceUnderLoad: merged calls and single ones, of several scripts at once.
func TestLostScriptsAreLoadedOnceUnderLoad(t *testing.T) {
	for _, cluster := range []bool{false, true} {
		t.Run(strings.Fields("redis cluster")[map[bool]int{true: 1}[cluster]], func(t *testing.T) {
			servers := startAppServers(t, cluster)
			p := newPipelines(backend{url: servers.url}.open(t))
			t.Cleanup(func() { p.stop(); p.work.Wait() })
			s := startService(t, p, Options{})
			var members []Member
			for i := range 400 {
				m := mustJoin(t, s, fmt.Sprint("room", i%3), "ann", fmt.Sprint("c", i), "{}")
				members = append(members, m)
			}
			leave := func(members []Member) {
				var work sync.WaitGroup
				for i, m := range members {
					work.Go(func() {
						_, gone, err := s.remove(t.Context(), m.Room, removal{reason: ReasonLeft, indexedAt: time.Now()}, []incarnation{{conn: m.Conn}})
						if err != nil || len(gone) != 1 {
							t.Errorf("%d left, %v", len(gone), err)
						}
						if _, err := s.read(t.Context(), m.Room); i%10 == 0 && err != nil {
							t.Error(err)
						}
					})
				}
				work.Wait()
			}
			leave(members[:200])
			s.Stop() // what is left to do for those who left is done
			before, connected := evals(t, servers.admin)
			servers.tell("SCRIPT FLUSH")
			leave(members[200:])
			after, connections := evals(t, servers.admin)
			// Scripts: remove, read. Each on every master that has one of the rooms.
			if n := after - before; n == 0 || n > 2*len(servers.nodes) {
				t.Errorf("%d scripts were sent as text", n)
			}
			if connections > connected {
				t.Errorf("%d connections instead of %d", connections, connected)
			}
		})
	}
}
