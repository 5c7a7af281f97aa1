package main

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

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
				c.queue(f)
			}
		}
		for _, c := range clients {
			c.queue(f)
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
