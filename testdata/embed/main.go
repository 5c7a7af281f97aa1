// A program that keeps presence by the copied files alone. Its argument is the address of Redis.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/redis/go-redis/v9"
)

func main() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: os.Args[1]})
	s := NewService(rdb, Options{})
	events := make(chan Event, 8)
	if err := s.Subscribe(ctx, func(e Event) { events <- e }); err != nil {
		log.Fatal(err)
	}
	joined, err := s.Join(ctx, "lobby", "ann", "c1", json.RawMessage(`{"mood":"fine"}`))
	if err != nil {
		log.Fatal(err)
	}
	if _, _, err := s.Heartbeat(ctx, "lobby", "c1", json.RawMessage(`{"mood":"better"}`), joined.Epoch); err != nil {
		log.Fatal(err)
	}
	room, err := s.Snapshot(ctx, "lobby")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(room.Entries), room.Users, string(room.Entries[0].State))
	if err := s.Leave(ctx, "lobby", "c1"); err != nil {
		log.Fatal(err)
	}
	for range 3 {
		e := <-events
		fmt.Println(e.Type, e.RoomID, e.UserID, e.ConnID, e.UserConns, string(e.State), e.Reason)
	}
	s.Stop()
	if err := rdb.Close(); err != nil {
		log.Fatal(err)
	}
}
