// Clients with github.com/zishang520/socket.io's own client, told what to do by lines of JSON, as testdata/node/client.mjs is.
package main

import (
	"encoding/json"
	"log"
	"os"
	"sync"

	"github.com/zishang520/socket.io/clients/engine/v3/transports"
	"github.com/zishang520/socket.io/clients/socket/v3"
	"github.com/zishang520/socket.io/v3/pkg/types"
)

// command is a line of standard input.
type command struct {
	Client, Do, URL, Event string
	Join, Payload          map[string]any
}

func main() {
	sockets := map[string]*socket.Socket{}
	lines := json.NewDecoder(os.Stdin)
	for {
		var c command
		if err := lines.Decode(&c); err != nil {
			return // the test has ended
		}
		switch c.Do {
		case "open":
			sockets[c.Client] = open(c)
		case "emit":
			emit(sockets[c.Client], c.Client, "ack", c.Event, c.Payload)
		case "disconnect":
			sockets[c.Client].Disconnect()
		}
	}
}

// open opens a client that joins a room when it is connected. Only WebSocket is used: with polling this client sends nothing
// while a poll is open.
func open(c command) *socket.Socket {
	options := socket.DefaultOptions()
	options.SetTransports(types.NewSet(transports.WebSocket))
	options.SetForceNew(true)
	options.SetReconnection(false)
	s, err := socket.Connect(c.URL, options)
	if err != nil {
		log.Fatal(err)
	}
	s.On("connect_error", func(args ...any) { tell(c.Client, "connect_error", args) })
	s.On("presence:event", func(args ...any) { tell(c.Client, "event", args[0]) })
	s.On("chat", func(args ...any) { tell(c.Client, "chat", args[0]) })
	s.On("disconnect", func(args ...any) { tell(c.Client, "disconnect", args[0]) })
	s.On("connect", func(...any) { emit(s, c.Client, "joined", "presence:join", c.Join) })
	return s
}

func emit(s *socket.Socket, client, kind, event string, payload map[string]any) {
	err := s.Emit(event, payload, func(answer []any, _ error) { tell(client, kind, answer[0]) })
	if err != nil {
		log.Fatal(err)
	}
}

var output sync.Mutex

// tell writes a line of standard output: client, what, and what more there is to it.
func tell(parts ...any) {
	output.Lock()
	defer output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(parts); err != nil {
		log.Fatal(err)
	}
}
