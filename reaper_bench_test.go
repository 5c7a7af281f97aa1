package main

import (
	"fmt"
	"testing"
	"time"
)

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
