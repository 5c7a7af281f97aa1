// A Socket.IO server made with github.com/zishang520/socket.io that keeps presence beside an event of its own.
package main

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/zishang520/socket.io/servers/socket/v3"
)

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := run(); err != nil {
		slog.Error("the server has ended", "error", err)
		os.Exit(1)
	}
}

// run serves until SIGINT or SIGTERM. REDIS_URL and PORT are its settings.
func run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	options, err := redis.ParseURL(cmp.Or(os.Getenv("REDIS_URL"), "redis://127.0.0.1:6379"))
	if err != nil {
		return err
	}
	options.MaxRetries = -1 // a script that may have run must not be sent again
	rdb := redis.NewClient(options)
	defer rdb.Close()
	service := NewService(rdb, Options{})
	defer service.Stop()

	io := socket.NewServer(nil, nil)
	io.On("connection", func(args ...any) { serve(io, service, args[0].(*socket.Socket)) })
	err = service.Subscribe(ctx, func(e Event) {
		// Local, as every process has a subscription: with an adapter of the library each client would get the event several times.
		if err := io.Local().To(socketRoom(e.RoomID)).Emit("presence:event", e); err != nil {
			slog.Error("an event was not sent", "room", e.RoomID, "error", err)
		}
	})
	if err != nil {
		return err
	}
	return listen(ctx, io)
}

// listen serves until the end of ctx. Afterwards all sockets are disconnected, and their members have left.
func listen(ctx context.Context, io *socket.Server) error {
	listener, err := net.Listen("tcp", ":"+cmp.Or(os.Getenv("PORT"), "3000"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", io.ServeHandler(nil))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	slog.Info("listening", "address", listener.Addr())
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	io.Close(nil)
	_ = server.Close() // nobody is left who could be told
	return err
}
