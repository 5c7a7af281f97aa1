package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"
)

// TestAPageOfARoomThatNobodyIsInCostsAPage measures what Redis answers to reads of a large room.
func TestAPageOfARoomThatNobodyIsInCostsAPage(t *testing.T) {
	const reads, perRead = 20, 10_000 // bytes; all members would be 3 MB
	server := spawnRedis(t)
	n, room, rdb := startNodeFor(t, backend{name: "redis", url: server.url, real: true}, "PRESENCE_API_KEY="+testAPIKey), uniqueRoom(t), openRedisAt(t, server.url)
	for _, members := range []int{900, 20_000} { // fewer than a page may have, and more
		fillRoom(t, rdb, room, members)
		u := n.user(t)
		cursor := ""
		for name, read := range map[string]func(){
			"presence:get, first pages": func() { u.ok(eventGet, inRoom(room, `,"limit":1`)) },
			"presence:get, later pages": func() {
				ack := u.ok(eventGet, inRoom(room, `,"limit":1`+cursor))
				cursor = `,"cursor":` + quoted(*ack.Cursor)
			},
			"HTTP": func() { n.http(t, http.MethodGet, "/v1/rooms/"+room+"?limit=1") },
		} {
			before := sentBytes(t, server.url)
			for range reads {
				read()
			}
			if sent := sentBytes(t, server.url) - before; sent > reads*perRead {
				t.Errorf("%s, a room of %d: %d reads of 1 member took %d bytes", name, members, reads, sent)
			}
		}
	}
}

func openRedisAt(t testing.TB, url string) redis.UniversalClient {
	return backend{name: "redis", url: url, real: true}.open(t)
}

// sentBytes gives how much a Redis has sent so far.
func sentBytes(t *testing.T, url string) int {
	t.Helper()
	info, err := openRedisAt(t, url).Info(t.Context(), "stats").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "total_net_output_bytes:")
	digits, _, _ := strings.Cut(rest, "\r")
	n, err := strconv.Atoi(digits)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAScanHasWhoIsThereThroughout goes through a room page by page while others come and go, so that Redis makes the room's table
// larger and smaller.
func TestAScanHasWhoIsThereThroughout(t *testing.T) {
	t.Parallel()
	eachBackend(t, func(t *testing.T, b backend) {
		const members, others = 600, 5_000
		rdb := b.open(t)
		s := startService(t, rdb, Options{})
		for _, limit := range []int{1, 7, 400, 1000} {
			room := uniqueRoom(t)
			fillRoom(t, rdb, room, members)
			seen := map[string]bool{}
			place, after := scanPlace{cursor: "0"}, ""
			for pages := 0; ; pages++ {
				p, entries, err := scan(t.Context(), s, room, place, limit)
				if err != nil || len(entries) > limit || p.rev == 0 {
					t.Fatalf("a page has %d of %d members at revision %d, %v", len(entries), limit, p.rev, err)
				}
				for _, e := range entries {
					seen[e.ConnID] = true
				}
				switch pages * limit {
				case 7 * 4, 400:
					guests(t, rdb, room, others, true)
				case 7 * 40, 800:
					guests(t, rdb, room, others, false)
				}
				if after = p.last; after == "" {
					break
				}
				var scans bool
				if place, scans = parseScanPlace(after); !scans { // Redis gave all
					s, err := s.read(t.Context(), room)
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range s.Entries {
						seen[e.ConnID] = true
					}
					break
				}
			}
			for i := range members {
				if conn := fmt.Sprintf("connection-of-%06d", i); !seen[conn] {
					t.Errorf("pages of %d do not have %s", limit, conn)
				}
			}
		}
	})
}

// guests come into a room, or leave it.
func guests(t *testing.T, rdb redis.UniversalClient, room string, n int, come bool) {
	t.Helper()
	fields := make([]string, n)
	values := make([]any, 0, 2*n)
	for i := range fields {
		fields[i] = fmt.Sprintf("guest-%06d", i)
		values = append(values, fields[i], `{"epoch":1,"rev":1,"node":"","userLen":5,"userId":"ann","state":{}}`)
	}
	if come {
		must(t, rdb.HSet(t.Context(), keysOf(room).meta(), values...).Err())
	} else {
		must(t, rdb.HDel(t.Context(), keysOf(room).meta(), fields...).Err())
	}
}

// bucketSource is a room that is scanned in steps: whatever the step, it gives all of one bucket.
type bucketSource struct {
	fakeSource
	buckets [][]Entry
}

func (b *bucketSource) scan(_ context.Context, _, cursor string, _ int) (scanned, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	at, err := strconv.Atoi(cursor)
	if err != nil || at >= len(b.buckets) {
		return scanned{}, errors.New("not a cursor")
	}
	return scanned{Snapshot{Rev: 10, Entries: slices.Clone(b.buckets[at])}, 6, strconv.Itoa((at + 1) % len(b.buckets))}, nil
}

// TestABucketThatIsLargerThanAPageIsDivided, also when it changes meanwhile.
func TestABucketThatIsLargerThanAPageIsDivided(t *testing.T) {
	source := &bucketSource{buckets: [][]Entry{{here("a", 1, "{}"), here("c", 2, "{}"), here("e", 3, "{}")}, {}, {here("b", 4, "{}"), here("d", 5, "{}")}}}
	place, got := scanPlace{cursor: "0"}, []string{}
	for pages := 0; ; pages++ {
		p, entries, err := scan(t.Context(), source, "r", place, 1)
		if err != nil || len(entries) > 1 {
			t.Fatalf("a page has %d members, %v", len(entries), err)
		}
		for _, e := range entries {
			got = append(got, e.ConnID)
		}
		if pages == 1 { // "a" and "c" are given
			source.buckets[0] = []Entry{here("aa", 6, "{}"), here("c", 2, "{}"), here("e", 3, "{}")}
		}
		if p.last == "" {
			break
		}
		var scans bool
		if place, scans = parseScanPlace(p.last); !scans {
			t.Fatalf("the next page is at %q", p.last)
		}
	}
	if want := []string{"a", "c", "aa", "e", "b", "d"}; !slices.Equal(got, want) {
		t.Errorf("the pages have %v, want %v", got, want)
	}
}

func TestPlacesOfAScan(t *testing.T) {
	for text, good := range map[string]bool{
		":0": true, ":17": true, ":17,a,b-_9": true, ":18446744073709551615": true,
		"": false, "17": false, "a": false, ":": false, ":x": false, ":-1": false, ":18446744073709551616": false, ":1,": false, ":1,a b": false,
		":1" + strings.Repeat(",a", 2*maxPage): false,
	} {
		place, ok := parseScanPlace(text)
		if ok != good || ok && place.String() != text {
			t.Errorf("%.40q is %.40q, %t", text, place, ok)
		}
	}
}

// TestAScanGoesOnInARoomThatIsHostedMeanwhile_G2: a page that begins in a scan fits the events that its reader hears by then.
func TestAScanGoesOnInARoomThatIsHostedMeanwhile_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		source := &bucketSource{buckets: [][]Entry{{here("a", 1, "{}")}, {here("b", 2, "{}"), here("c", 3, "{}")}}}
		source.store(10, here("a", 1, "{}"), here("b", 2, "{}"), here("c", 3, "{}"))
		w.hub.source = source
		var first page
		take := func(to *page) func(page) frameParts {
			return func(p page) frameParts {
				*to = p
				return nil
			}
		}
		if err := w.hub.page(w.Context(), "r", "", 2, nil, take(&first)); err != nil || source.count() != 1 {
			t.Fatalf("%d reads, %v", source.count(), err)
		}
		e := w.guest(w.room())
		w.tell(patched(10, 11, "b", `{"n":1}`), gone(11, 12, "c"))
		var second page
		if err := w.hub.page(w.Context(), "r", first.last, 2, e, take(&second)); err != nil {
			t.Fatal(err)
		}
		if text := string(second.entries); second.rev != 12 || second.last != "" || !strings.Contains(text, `"b"`) || !strings.Contains(text, `{"n":1}`) || strings.Contains(text, `"c"`) {
			t.Errorf("the second page is %+v with %s", second, text)
		}
	})
}

// TestEqualReadsAreOne has many ask for a page while it is read: all of them share the next read, for nobody is given what was
// read before he asked.
func TestEqualReadsAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights(testLogger(t))
		var reads, others atomic.Int64
		first := make(chan bool)
		read := func(context.Context) (page, error) {
			n := reads.Add(1)
			if n == 1 {
				<-first
			}
			return page{rev: n}, nil
		}
		results := make(chan int64, 100)
		ask := func() {
			go func() {
				p, err := f.do(t.Context(), "a", read)
				if err != nil {
					t.Error(err)
				}
				results <- p.rev
			}()
			synctest.Wait()
		}
		for range 50 {
			ask()
		}
		if _, err := f.do(t.Context(), "b", func(context.Context) (page, error) { others.Add(1); return page{}, nil }); err != nil || others.Load() != 1 {
			t.Errorf("another read: %v", err)
		}
		close(first)
		synctest.Wait()
		got := map[int64]int{}
		for range 50 {
			got[<-results]++
		}
		if want := map[int64]int{1: 1, 2: 49}; !maps.Equal(got, want) {
			t.Errorf("the reads had so many readers: %v, want %v", got, want)
		}
		if len(f.flying)+len(f.waiting) != 0 {
			t.Error("reads that are over are kept")
		}
	})
}

func TestAReadOfAPageThatPanicsIsUnavailable(t *testing.T) {
	f := newFlights(testLogger(t))
	if _, err := f.do(t.Context(), "a", func(context.Context) (page, error) { panic("injected") }); !hasCode(err, CodeUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := f.do(t.Context(), "a", func(context.Context) (page, error) { return page{}, nil }); err != nil {
		t.Errorf("the next one got %v", err)
	}
}
