package main

// The cost of the parts. A whole server under load is measured by bench/.
//
//	go test -run '^$' -bench . -benchtime 1s .
//
// Times are those of both ends and of all that runs in between; cpu-ns is the processor time of this process, redis-ns that of
// the server's main thread.

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

func BenchmarkSplitArray(b *testing.B) {
	packet := []byte(`["presence:heartbeat",{"epoch":1764036096000}]`)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := splitArray(packet); !ok {
			b.Fatal("not an array")
		}
	}
}

func BenchmarkDecodeHeartbeat(b *testing.B) {
	payloads := []struct{ name, raw string }{
		{"epoch", `{"epoch":1764036096000}`},
		{"room and epoch", `{"roomId":"room-1","epoch":1764036096000}`},
		{"patch", `{"epoch":1764036096000,"patchState":{"cursor":{"x":10,"y":20}}}`},
	}
	for _, p := range payloads {
		b.Run(p.name, func(b *testing.B) {
			raw := []byte(p.raw)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decodeHeartbeat(raw, testLimits); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecodeJoin(b *testing.B) {
	raw := []byte(`{"roomId":"room-1","userId":"user-1","state":{"status":"online","cursor":{"x":1,"y":2}}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeJoin(raw, testLimits, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMergeState(b *testing.B) {
	small := json.RawMessage(`{"status":"online","cursor":{"x":1,"y":2},"name":"Ada"}`)
	wide := func(value string) json.RawMessage { return json.RawMessage(wideObject(1000, value)) }
	merges := []struct {
		name         string
		state, patch json.RawMessage
	}{
		{"scalar", small, json.RawMessage(`{"status":"away"}`)},
		{"object", small, json.RawMessage(`{"cursor":{"x":1,"y":3}}`)},
		{"unchanged", small, json.RawMessage(`{"cursor":{"x":1,"y":2}}`)},
		{"1000 keys", wide("1"), wide("2")},
		{"1000 keys reordered", wide(`{"a":1,"b":2}`), wide(`{"b":2,"a":1}`)},
	}
	for _, m := range merges {
		b.Run(m.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				mergeState(m.state, m.patch)
			}
		})
	}
}

// BenchmarkSameJSON compares values that are the same in another order of keys, the slowest outcome. Time should grow
// with the number of keys, and with the levels.
func BenchmarkSameJSON(b *testing.B) {
	for _, keys := range []int{2, 30, 300, 3000} {
		reversed := "{"
		for i := keys - 1; i >= 0; i-- {
			reversed += `"k` + strconv.Itoa(i) + `":1,`
		}
		benchmarkSame(b, "keys="+strconv.Itoa(keys), wideObject(keys, "1"), strings.TrimSuffix(reversed, ",")+"}")
	}
	for _, levels := range []int{100, 10_000} {
		nested := func(value string) string {
			return strings.Repeat("[", levels) + value + strings.Repeat("]", levels)
		}
		benchmarkSame(b, "levels="+strconv.Itoa(levels), nested("1"), nested(" 1"))
	}
}

func benchmarkSame(b *testing.B, name, x, y string) {
	left, right := []byte(x), []byte(y)
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !sameJSON(left, right) {
				b.Fatal("not the same")
			}
		}
	})
}

func BenchmarkEventAppendJSON(b *testing.B) {
	event := Event{Type: EventUpdate, RoomID: "room-1", UserID: "user-1", ConnID: "0123456789abcdefghij", State: json.RawMessage(`{"status":"online"}`),
		TS: 1764036096000, Epoch: 1764036096000, Rev: 1764036096001, UserConns: 1}
	buf := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		buf = event.appendJSON(buf[:0])
	}
}
