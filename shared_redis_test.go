package main

import (
	"strings"
	"sync"
	"testing"
)

// servers are a redis-server and a cluster. Each is started when a test first asks for it, and never flushed: tests keep out of
// each other's way by room names.
type servers struct {
	sync.Mutex
	single  *redisProcess
	cluster *testCluster

	users int // calls of tests that have it now
}

// pool has the servers that tests share. One test has a pair at a time, since a node removes the silent members of all rooms by
// its own settings.
var pool = struct {
	sync.Mutex
	all  []*servers
	lent map[string]*servers // by the name of the test, without those of subtests
}{lent: make(map[string]*servers)}

// borrowServers gives the servers that the test has, or those that nobody has, until the test ends.
func borrowServers(t testing.TB) *servers {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	pool.Lock()
	defer pool.Unlock()
	s := pool.lent[test]
	if s == nil {
		s = freeServers()
		pool.lent[test] = s
	}
	s.users++
	t.Cleanup(func() {
		pool.Lock()
		defer pool.Unlock()
		if s.users--; s.users == 0 {
			delete(pool.lent, test)
		}
	})
	return s
}

// freeServers gives servers that no test has. The caller holds the lock of the pool.
func freeServers() *servers {
	for _, s := range pool.all {
		if s.users == 0 {
			return s
		}
	}
	s := &servers{}
	pool.all = append(pool.all, s)
	return s
}

// realRedis gives a redis-server that other tests use after this one.
func realRedis(t testing.TB) backend {
	t.Helper()
	needRedis(t)
	s := borrowServers(t)
	s.Lock()
	defer s.Unlock()
	if s.single == nil {
		p, err := startRedis(nil)
		if err != nil {
			t.Fatal(err)
		}
		s.single = p
	}
	return backend{name: "redis", url: asUser("presence", s.single.url), tester: asUser("tester", s.single.url), real: true}
}

// redisCluster gives a cluster of three masters that other tests use after this one.
func redisCluster(t testing.TB) backend {
	t.Helper()
	needRedis(t)
	s := borrowServers(t)
	s.Lock()
	defer s.Unlock()
	if s.cluster == nil {
		c, err := startCluster()
		if err != nil {
			t.Fatal(err)
		}
		s.cluster = c
	}
	return backend{name: "cluster", url: asUser("presence", s.cluster.url), tester: asUser("tester", s.cluster.url), real: true, cluster: true}
}

// stopServers ends the servers that tests shared.
func stopServers() {
	pool.Lock()
	defer pool.Unlock()
	for _, s := range pool.all {
		if s.single != nil {
			s.single.remove()
		}
		if s.cluster != nil {
			s.cluster.remove()
		}
	}
}
