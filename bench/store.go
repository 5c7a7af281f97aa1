package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const slots = 16384 // of a cluster

// store is a Redis without servers: one, or a cluster of several masters.
type store struct {
	rdb       redis.UniversalClient
	masters   []*redis.Client
	addresses []string
	bus       []string // ports between masters
	processes []*process
	listeners []net.Conn
}

// openStore starts the masters. What has been started is in the store, also after an error.
func openStore(ctx context.Context, dir string, masters int) (s *store, err error) {
	s = &store{}
	for i := range masters {
		if err := s.startMaster(ctx, filepath.Join(dir, "redis-"+strconv.Itoa(i)+".log"), dir, masters > 1); err != nil {
			return s, err
		}
	}
	if masters == 1 {
		s.rdb = s.masters[0]
		return s, nil
	}
	if err := s.form(ctx); err != nil {
		return s, err
	}
	s.rdb = redis.NewClusterClient(&redis.ClusterOptions{Addrs: s.addresses, ReadTimeout: time.Minute})
	return s, nil
}

func (s *store) startMaster(ctx context.Context, log, dir string, clustered bool) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(address)
	args := []string{"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", dir}
	if clustered {
		bus, err := freeAddress()
		if err != nil {
			return err
		}
		_, busPort, _ := net.SplitHostPort(bus)
		s.bus = append(s.bus, busPort)
		args = append(args, "--cluster-enabled", "yes", "--cluster-port", busPort, "--cluster-config-file", "nodes-"+port+".conf",
			"--cluster-node-timeout", "15000")
	}
	master := redis.NewClient(&redis.Options{Addr: address, ReadTimeout: time.Minute})
	s.masters, s.addresses = append(s.masters, master), append(s.addresses, address)
	p, err := start(ctx, log, exec.Command("redis-server", args...), func() bool { return master.Ping(ctx).Err() == nil })
	if err != nil {
		return err
	}
	s.processes = append(s.processes, p)
	return nil
}

// form shares out the slots, introduces the masters to the first one, and waits until all agree.
func (s *store) form(ctx context.Context) error {
	host, port, _ := net.SplitHostPort(s.addresses[0])
	for i, master := range s.masters {
		pipe := master.Pipeline()
		pipe.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		pipe.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", slots*i/len(s.masters), slots*(i+1)/len(s.masters)-1)
		pipe.Do(ctx, "CLUSTER", "MEET", host, port, s.bus[0])
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("forming a cluster: %w", err)
		}
	}
	for _, master := range s.masters {
		if !poll(ctx, time.Minute, func() bool {
			info := master.ClusterInfo(ctx).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_size:%d\r", len(s.masters)))
		}) {
			return errors.Join(ctx.Err(), errors.New("the cluster does not come up"))
		}
	}
	return nil
}

// masterOf is the number of the master that has a key.
func (s *store) masterOf(ctx context.Context, key string) (int, error) {
	if len(s.masters) == 1 {
		return 0, nil
	}
	slot, err := s.masters[0].ClusterKeySlot(ctx, key).Result()
	// The ranges are those of form.
	return int((slot+1)*int64(len(s.masters))-1) / slots, err
}

// listen opens a connection for each of so many nodes, or one to each master with sharded Pub/Sub, subscribes it to the
// channels as a node does that has members in all these rooms, and throws away what comes.
func (s *store) listen(ctx context.Context, nodes int, channels [][]string, sharded bool) error {
	for node := range nodes {
		if !sharded {
			all := make([]string, 0, len(channels)*len(channels[0]))
			for _, some := range channels {
				all = append(all, some...)
			}
			if err := s.subscribe(node%len(s.addresses), "SUBSCRIBE", all); err != nil {
				return err
			}
			continue
		}
		for master, some := range channels {
			if err := s.subscribe(master, "SSUBSCRIBE", some); err != nil {
				return err
			}
		}
	}
	for _, some := range channels {
		if len(some) > 0 && !poll(ctx, time.Minute, func() bool { return s.hearers(ctx, some[len(some)-1], sharded) == nodes }) {
			return errors.Join(ctx.Err(), errors.New("a node could not subscribe"))
		}
	}
	return nil
}

// hearers counts the subscribers of a channel.
func (s *store) hearers(ctx context.Context, channel string, sharded bool) (n int) {
	for _, master := range s.masters {
		count := master.PubSubNumSub
		if sharded {
			count = master.PubSubShardNumSub
		}
		n += int(count(ctx, channel).Val()[channel])
	}
	return n
}

func (s *store) subscribe(master int, command string, channels []string) error {
	conn, err := net.Dial("tcp", s.addresses[master])
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, conn)
	go func() { _, _ = io.Copy(io.Discard, conn) }() // until close
	var b bytes.Buffer
	for _, channel := range channels {
		fmt.Fprintf(&b, "*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(command), command, len(channel), channel)
	}
	_, err = conn.Write(b.Bytes())
	return err
}

// memory is what the masters use, in bytes.
func (s *store) memory(ctx context.Context) (sum int64, err error) {
	for _, master := range s.masters {
		info, err := master.Info(ctx, "memory").Result()
		if err != nil {
			return 0, err
		}
		n, ok := number([]byte(info), "used_memory:")
		if !ok {
			return 0, errors.New("a Redis does not tell its memory")
		}
		sum += n
	}
	return sum, nil
}

// cpu is the CPU time of each master.
func (s *store) cpu() (used []time.Duration, err error) {
	for _, p := range s.processes {
		t, err := cpuTime(p.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		used = append(used, t)
	}
	return used, nil
}

func (s *store) close() {
	for _, conn := range s.listeners {
		_ = conn.Close()
	}
	for _, master := range s.masters {
		_ = master.Close()
	}
	if s.rdb != nil && len(s.masters) > 1 {
		_ = s.rdb.Close()
	}
	for _, p := range s.processes {
		p.stop(syscall.SIGKILL)
	}
}
