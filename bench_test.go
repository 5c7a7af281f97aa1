package main

// The cost of the parts. A whole server under load is measured by bench/.
//
//	go test -run '^$' -bench . -benchtime 1s .
//
// Times are those of both ends and of all that runs in between; cpu-ns is the processor time of this process, redis-ns that of
// the server's main thread.

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/redis/go-redis/v9"
)

// cost is what this process and Redis have used.
type cost struct {
	process, redis time.Duration
	commands       int
}

func spent(b *testing.B, rdb redis.UniversalClient) cost {
	b.Helper()
	info, err := rdb.Info(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var seconds float64
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_sys_main_thread" || name == "used_cpu_user_main_thread" {
			s, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			seconds += s
		}
	}
	return cost{cpu(b), time.Duration(seconds * float64(time.Second)), calls(b, rdb)}
}

// bench is 1,000 members in rooms of one size, on a real Redis and by shared pipelines as in a node.
type bench struct {
	*testing.B
	rdb     redis.UniversalClient
	service *Service
	members []Member
	total   cost
}

const benchMembers = 1000

func newBench(b *testing.B, perRoom int) *bench {
	p := spawnRedis(b)
	rdb := backend{url: p.url}.open(b)
	lines := newPipelines(rdb)
	b.Cleanup(func() { lines.stop(); lines.work.Wait() })
	x := &bench{B: b, rdb: rdb, service: startService(b, lines, Options{Lookback: time.Hour})}
	loadEverywhere(b, x.service, backend{url: p.url})
	for i := range benchMembers {
		room := fmt.Sprint("room", i/perRoom)
		x.members = append(x.members, Member{Room: room, User: fmt.Sprint("user", i), Conn: fmt.Sprintf("c%019d", i), State: json.RawMessage(`{"n":0}`)})
	}
	return x
}

// all does something for every member, for some at the same time, and adds up what it costs if it is measured.
func (x *bench) all(measured bool, f func(i int, m *Member) error) {
	var before cost
	if measured {
		before = spent(x.B, x.rdb)
		x.StartTimer()
	}
	crowd(len(x.members), func(i int) {
		if err := f(i, &x.members[i]); err != nil {
			x.Error(err)
		}
	})
	if measured {
		x.StopTimer()
		now := spent(x.B, x.rdb)
		x.total.process += now.process - before.process
		x.total.redis += now.redis - before.redis
		x.total.commands += now.commands - before.commands
	}
	if x.Failed() {
		x.FailNow()
	}
}

// report gives the costs of one operation.
func (x *bench) report() {
	n := float64(x.N) * float64(len(x.members))
	x.ReportMetric(float64(x.Elapsed())/n, "ns/op")
	x.ReportMetric(float64(x.total.process)/n, "cpu-ns/op")
	x.ReportMetric(float64(x.total.redis)/n, "redis-ns/op")
	x.ReportMetric(float64(x.total.commands)/n, "commands/op")
}

func (x *bench) join(_ int, m *Member) (err error) {
	m.Epoch = 0
	*m, err = x.service.join(x.Context(), *m, m.Rev)
	return err
}

func (x *bench) heartbeat(_ int, m *Member) error {
	_, _, err := x.service.heartbeat(x.Context(), m, nil, m.Rev)
	return err
}

func (x *bench) patch(_ int, m *Member) error {
	_, _, err := x.service.heartbeat(x.Context(), m, json.RawMessage(fmt.Sprintf(`{"n":%d}`, m.Rev)), m.Rev)
	return err
}

func (x *bench) leave(_ int, m *Member) error {
	_, _, err := x.service.remove(x.Context(), m.Room, removal{reason: ReasonLeft, indexedAt: m.indexedAt}, []incarnation{{m.Conn, m.Epoch}})
	return err
}

func (x *bench) snapshot(_ int, m *Member) error {
	_, err := x.service.Snapshot(x.Context(), m.Room)
	return err
}

// BenchmarkOperation measures one operation each, in rooms of several sizes.
func BenchmarkOperation(b *testing.B) {
	kinds := []struct {
		name              string
		before, do, after func(*bench, int, *Member) error
	}{
		{"join", nil, (*bench).join, (*bench).leave},
		{"heartbeat", (*bench).join, (*bench).heartbeat, (*bench).leave},
		{"patch", (*bench).join, (*bench).patch, (*bench).leave},
		{"leave", (*bench).join, (*bench).leave, nil},
		{"snapshot", (*bench).join, (*bench).snapshot, (*bench).leave},
	}
	for _, kind := range kinds {
		for _, perRoom := range []int{1, 10, 100, 1000} {
			if kind.name == "snapshot" && perRoom == 1000 {
				continue // 1,000 times 1,000 entries: BenchmarkSnapshot has it
			}
			b.Run(fmt.Sprintf("%s/room=%d", kind.name, perRoom), func(b *testing.B) {
				x := newBench(b, perRoom)
				step := func(measured bool, f func(*bench, int, *Member) error) {
					if f != nil {
						x.all(measured, func(i int, m *Member) error { return f(x, i, m) })
					}
				}
				for b.Loop() {
					b.StopTimer()
					step(false, kind.before)
					step(true, kind.do)
					step(false, kind.after)
					b.StartTimer()
				}
				x.report()
			})
		}
	}
}

// BenchmarkSnapshot reads one room.
func BenchmarkSnapshot(b *testing.B) {
	for _, size := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("room=%d", size), func(b *testing.B) {
			x := newBench(b, size)
			x.members = x.members[:size]
			x.all(false, x.join)
			before := spent(b, x.rdb)
			for b.Loop() {
				if err := x.snapshot(0, &x.members[0]); err != nil {
					b.Fatal(err)
				}
			}
			now := spent(b, x.rdb)
			b.ReportMetric(float64(now.process-before.process)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(now.redis-before.redis)/float64(b.N), "redis-ns/op")
		})
	}
}

// BenchmarkIdleMember tells what an idle member holds on its node, over a direct WebSocket, in a room of ten with a real
// Redis: heap by the function that asked for it, and stack. Memory of the client's half, which is in this process too, is
// left out. With -v it prints the table of docs/sizing.md.
func BenchmarkIdleMember(b *testing.B) {
	const n = 4000
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 64
	b.Cleanup(func() { runtime.MemProfileRate = rate })
	for b.Loop() {
		p := spawnRedis(b)
		node := startNodeFor(b, backend{url: p.url}, "PRESENCE_TTL_MS=600000", "PRESENCE_LOG_LEVEL=error")
		s := &testSockets{addr: "127.0.0.1:" + node.port()}
		before, stack := heapBy(), stackInUse()
		conns := make([]net.Conn, n)
		crowd(n, func(i int) {
			join := fmt.Sprintf(`421["presence:join",{"roomId":"room%d","userId":"user%d","state":{"n":0}}]`, i/10, i)
			conns[i] = s.quick(b, direct4, `431[{"ok":true`, 1, "40", join)
		})
		eventually(b, patience, "the handshakes' goroutines have ended", func() bool { return runtime.NumGoroutine() < n+200 })
		after, stackNow := heapBy(), stackInUse()
		var rows []string
		var sum float64
		for who, bytes := range after {
			each := float64(bytes-before[who]) / n
			if sum += each; each >= 20 {
				rows = append(rows, fmt.Sprintf("%7.0f B  %s", each, who))
			}
		}
		slices.SortFunc(rows, func(x, y string) int { return cmp.Compare(y, x) })
		b.Logf("heap of one idle member:\n%s", strings.Join(rows, "\n"))
		b.ReportMetric(sum, "heap-B/conn")
		b.ReportMetric(float64(stackNow-stack)/n, "stack-B/conn")
		for _, c := range conns {
			_ = c.Close()
		}
	}
}

// heapBy is the memory in use by the innermost function of this package that asked for it, without what clients hold.
func heapBy() map[string]int64 {
	for range 3 {
		runtime.GC() // the profile is that of the collection before the last
	}
	records := make([]runtime.MemProfileRecord, 50_000)
	n, ok := runtime.MemProfile(records, false)
	if !ok {
		panic("the profile is larger than thought")
	}
	by := map[string]int64{}
	for _, r := range records[:n] {
		if who := owner(r.Stack()); who != "" {
			by[who] += r.InUseBytes()
		}
	}
	return by
}

// owner is the innermost function of this package in a stack, else the innermost outside of the runtime; "" = of a client.
func owner(stack []uintptr) string {
	frames := runtime.CallersFrames(stack)
	var ours, library, all string
	for {
		f, more := frames.Next()
		all += f.Function + "\n"
		if _, name, is := strings.Cut(f.Function, "presence."); is {
			ours = cmp.Or(ours, name)
		} else if !strings.HasPrefix(f.Function, "runtime.") {
			library = cmp.Or(library, f.Function)
		}
		if !more {
			break
		}
	}
	if strings.Contains(all, "testing.") || strings.Contains(all, ").quick") || strings.Contains(all, ".crowd") {
		return ""
	}
	return cmp.Or(ours, library, "runtime: goroutines")
}

func stackInUse() int64 {
	_, stack := liveMemory()
	return stack
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIdleConnection reports what an idle, connected client over a direct WebSocket holds.
func BenchmarkIdleConnection(b *testing.B) {
	const n = 2000
	for b.Loop() {
		s := startSockets(b, &testApp{forget: true})
		conns := make([]net.Conn, n)
		heap, stack := liveMemory()
		crowd(n, func(i int) { conns[i] = s.quick(b, direct4, `431[`, 1, "40", `421["join",{"roomId":"r"}]`) })
		eventually(b, patience, "the handshakes' goroutines have ended", func() bool { return runtime.NumGoroutine() < n+50 })
		heapNow, stackNow := liveMemory()
		// The client's half is a net.Conn without a goroutine, below 500 bytes.
		b.ReportMetric(float64(heapNow-heap)/n, "heap-B/conn")
		b.ReportMetric(float64(stackNow-stack)/n, "stack-B/conn")
		for _, c := range conns {
			_ = c.Close()
		}
		s.close()
	}
}

// liveMemory is what is in use after collections that also shrink the stacks.
func liveMemory() (heap, stack int64) {
	for range 4 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}

// BenchmarkAck measures one request and its acknowledgement, the client's half included.
func BenchmarkAck(b *testing.B) {
	s := startSockets(b, &testApp{forget: true})
	c := s.connected(b)
	request := masked(true, ws.OpText, `42123["presence:heartbeat",{"roomId":"r","epoch":1}]`)
	answer := make([]byte, len(newFrame([]byte(`3123[{"roomId":"r","epoch":1}]`))))
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		c.raw(request)
		if _, err := io.ReadFull(c.in, answer); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu(b)-begin)/float64(b.N), "cpu-ns/op")
}

// BenchmarkWrite is the unit of BenchmarkFanOut: bare writes of the same frame to sockets from which somebody reads, too.
func BenchmarkWrite(b *testing.B) {
	const room = 100
	f := eventFrame("presence:event", make([]byte, 200))
	var servers []*webSocket
	var clients []net.Conn
	for range room {
		x, client := socketPair(b, func(*socketOptions) {})
		_ = client.SetDeadline(time.Time{})
		servers, clients = append(servers, x), append(clients, client)
		go func() { _, _ = x.receive() }() // ends with the connection
	}
	in := make([]byte, len(f))
	var spent time.Duration
	for b.Loop() {
		begin := cpu(b)
		for _, x := range servers {
			if _, err := x.conn.Write(f); err != nil {
				b.Fatal(err)
			}
		}
		spent += cpu(b) - begin
		for _, c := range clients {
			if _, err := io.ReadFull(c, in); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(spent)/float64(b.N*room), "cpu-ns/frame")
}

// BenchmarkFanOut sends one shared frame to a room: the processor time per delivered frame, without its reading. Batches of
// 10 events are queued and flushed once per client.
func BenchmarkFanOut(b *testing.B) {
	for _, room := range []int{1, 10, 100, 1000} {
		for _, batch := range []int{1, 10} {
			b.Run(fmt.Sprintf("room=%d/batch=%d", room, batch), func(b *testing.B) { benchmarkFanOut(b, room, batch) })
		}
	}
}

func benchmarkFanOut(b *testing.B, room, batch int) {
	s := startSockets(b, &testApp{forget: true})
	conns := make([]net.Conn, room)
	crowd(room, func(i int) { conns[i] = s.quick(b, direct4, "40{", 1, "40") })
	for _, c := range conns {
		_ = c.SetDeadline(time.Time{})
	}
	f := eventFrame("presence:event", make([]byte, 200))
	clients, in := s.all(), make([]byte, batch*len(f))
	b.ReportAllocs()
	var spent time.Duration
	for b.Loop() {
		begin := cpu(b)
		for range batch - 1 {
			for _, c := range clients {
				c.queue(f, memberUpdate{})
			}
		}
		for _, c := range clients {
			c.queue(f, memberUpdate{})
			c.flush()
		}
		spent += cpu(b) - begin
		for _, conn := range conns {
			if _, err := io.ReadFull(conn, in); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(spent)/float64(b.N*room*batch), "cpu-ns/frame")
}

// A pass that removes 10 overdue members costs the same among 1,000 and among 100,000 rooms with a living one.
func BenchmarkReaperPass(b *testing.B) {
	const overdue = 10
	for _, living := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("rooms=%d", living), func(b *testing.B) {
			p := spawnRedis(b)
			rdb := backend{url: p.url}.open(b)
			s := startService(b, rdb, Options{Lookback: time.Hour})
			fillRooms(b, s, 0, living, 0)
			loadEverywhere(b, s, backend{url: p.url})
			commands, passes := 0, 0
			for b.Loop() {
				b.StopTimer()
				fillRooms(b, s, living, living+overdue, time.Hour)
				before := calls(b, rdb)
				b.StartTimer()
				mustPass(b, s)
				b.StopTimer()
				commands += calls(b, rdb) - before
				passes++
				b.StartTimer()
			}
			b.ReportMetric(float64(commands)/float64(passes), "commands/op")
		})
	}
}
