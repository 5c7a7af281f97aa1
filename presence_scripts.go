package main

import (
	"context"
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// How often a call names its script by the digest before it sends the text in any case.
	digestTries = 3

	// Loads that ended so long ago are forgotten: no call that was sent before them still waits for its answer.
	loadKept = time.Minute
)

// scriptLoads loads scripts that a master does not know: each once, however many calls find it missing.
type scriptLoads struct {
	mu     sync.Mutex
	latest map[scriptPlace]*scriptLoad
}

// scriptPlace is a script, by its digest, on a master, by its address.
type scriptPlace struct{ master, sha string }

// scriptLoad is one load. ended and err are set before done is closed.
type scriptLoad struct {
	done  chan struct{}
	ended time.Time
	err   error
}

// load returns when the script was loaded after sent, the time at which a call that found it missing was sent. It waits for
// a load that is under way, else it calls do, and tells that it did. The error is that of the load, or of ctx.
func (l *scriptLoads) load(ctx context.Context, at scriptPlace, sent time.Time, do func() error) (mine bool, err error) {
	for {
		load, mine := l.join(at, sent)
		if mine {
			err := do()
			l.end(at, load, err)
			return true, err
		}
		select {
		case <-load.done:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if !errors.Is(load.err, context.Canceled) && !errors.Is(load.err, context.DeadlineExceeded) {
			return false, load.err
		} // else its caller gave it up, and this one goes on
	}
}

// join gives the load that covers a call sent at that time. If there is none, it begins one, which is then the caller's.
func (l *scriptLoads) join(at scriptPlace, sent time.Time) (load *scriptLoad, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if load = l.latest[at]; load != nil && (load.ended.IsZero() || load.ended.After(sent)) {
		return load, false
	}
	maps.DeleteFunc(l.latest, func(_ scriptPlace, old *scriptLoad) bool {
		return !old.ended.IsZero() && time.Since(old.ended) > loadKept
	})
	if l.latest == nil {
		l.latest = map[scriptPlace]*scriptLoad{}
	}
	load = &scriptLoad{done: make(chan struct{})}
	l.latest[at] = load
	return load, true
}

// end tells those who wait for a load. One that failed covers no later call.
func (l *scriptLoads) end(at scriptPlace, load *scriptLoad, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	load.ended, load.err = time.Now(), err
	if err != nil {
		delete(l.latest, at)
	}
	close(load.done)
}

// evalSha calls a script by its digest. Where the server does not know it, which shows that it has not run, one call sends
// the text, and those that came at the same time repeat the digest. Whatever else fails may have run, and is not sent again.
func (s *Service) evalSha(ctx context.Context, text scriptText, keys []string, call []any) (answer any, err error) {
	eval := func() (err error) {
		answer, err = s.rdb.Eval(ctx, text.source, keys, call...).Result()
		return err
	}
	for range digestTries {
		sent := time.Now()
		answer, err = s.rdb.EvalSha(ctx, text.sha, keys, call...).Result()
		if !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return answer, err
		}
		master, err := s.masterAddress(ctx, keys[0])
		if err != nil {
			return nil, err
		}
		if mine, err := s.loads.load(ctx, scriptPlace{master, text.sha}, sent, eval); mine || err != nil {
			return answer, err
		}
	}
	err = eval() // scripts are flushed again and again
	return answer, err
}

// masterAddress is that of a key's master in a cluster. Elsewhere there is one master, whose name does not matter.
func (s *Service) masterAddress(ctx context.Context, key string) (string, error) {
	cluster, ok := s.rdb.(clusterMasters)
	if !ok {
		return "", nil
	}
	master, err := cluster.MasterForKey(ctx, key)
	if err != nil {
		return "", err
	}
	return master.Options().Addr, nil
}

//go:embed lua/*.lua
var luaFiles embed.FS

// script is one Lua script in two forms: with the flags that Redis 7 checks, and without for older servers.
type script struct {
	name           string
	index          string // the types of the outer indices that it works on; "" = it works on a room
	tells          bool   // its answer may end with what lua/tell.lua adds
	redis7, legacy scriptText
}

type scriptText struct {
	source, sha string
}

type scripts struct {
	join, heartbeat, patch, restore, remove, hold, overdue, rebuild          *script
	read, pulse, places                                                      *script
	kick, count, find                                                        *script
	indexRoom, claimRooms, settleRooms, indexUser, unindexUser, rebuildIndex *script
	owned, renewLease, noteRooms, claimNodes, forgetNode, probe              *script
	probeMore                                                                *script
}

// scriptKind is the first line of a script: with flags, and for servers before Redis 7.
type scriptKind struct {
	flags, plain string
}

// loadScripts loads every script. With tell, those that write joins and leaves return what they have written.
//
// What only reads, refreshes or removes must work on a Redis that has no memory left: else the reaper culls members there
// whose heartbeats are refused. Redis 7 has a flag for that. Servers before refuse the first write of a script if it is one
// that may take memory, and none after it, so that one goes first that takes none and changes nothing: conn_meta never has
// a TTL, and nothing in an index is named "".
func loadScripts(tell bool) scripts {
	loadTelling := loadScript
	if tell {
		loadTelling = loadTellingScript
	}
	writes := scriptKind{"#!lua\n", ""}
	alwaysWorks := scriptKind{"#!lua flags=allow-oom\n", "redis.call('PERSIST', KEYS[1])\n"}
	indexWorks := scriptKind{"#!lua flags=allow-oom\n", "redis.call('ZREM', KEYS[1], '')\n"}
	deletes := scriptKind{"#!lua flags=allow-oom\n", ""}
	probes := scriptKind{"#!lua flags=allow-oom\n", "redis.call('PERSIST', KEYS[2])\n"} // as alwaysWorks, on a key that is not there
	return scripts{
		join:         loadTelling(writes, "", "base", "room", "held", "devices", "join"),
		heartbeat:    loadScript(alwaysWorks, "", "base", "heartbeat"),
		patch:        loadScript(writes, "", "base", "room", "patch"),
		restore:      loadTelling(writes, "", "base", "room", "held", "devices", "restore"),
		remove:       loadTelling(alwaysWorks, "", "base", "room", "held", "devices", "remove"),
		hold:         loadScript(alwaysWorks, "", "base", "room", "held", "hold"),
		read:         loadScript(alwaysWorks, "", "base", "room", "server", "loss", "read"),
		places:       loadScript(deletes, "hash string", "base", "server", "places"),
		pulse:        loadScript(alwaysWorks, "", "base", "room", "server", "loss", "pulse"),
		overdue:      loadScript(alwaysWorks, "", "base", "room", "overdue"),
		kick:         loadTelling(alwaysWorks, "", "base", "room", "held", "devices", "kick"),
		count:        loadScript(alwaysWorks, "", "base", "room", "count"),
		find:         loadScript(alwaysWorks, "", "base", "room", "find"),
		owned:        loadScript(alwaysWorks, "", "base", "room", "owned"),
		rebuild:      loadScript(alwaysWorks, "", "base", "room", "held", "devices", "loss", "rebuild"),
		indexRoom:    loadScript(writes, "zset", "base", "index_room"),
		claimRooms:   loadScript(indexWorks, "zset", "base", "claim_rooms"),
		settleRooms:  loadScript(indexWorks, "zset", "settle_rooms"),
		indexUser:    loadScript(writes, "hash", "index_user"),
		unindexUser:  loadScript(deletes, "hash string", "base", "unindex_user"),
		rebuildIndex: loadScript(deletes, "", "base", "rebuild_index"),
		renewLease:   loadScript(indexWorks, "zset hash", "base", "renew_lease"),
		noteRooms:    loadScript(writes, "zset hash", "note_rooms"),
		claimNodes:   loadScript(indexWorks, "zset", "base", "claim_nodes"),
		forgetNode:   loadScript(deletes, "zset hash", "forget_node"),
		probe:        loadScript(probes, "", "server", "probe"),
		probeMore:    loadScript(writes, "", "server", "probe"), // as one that takes memory
	}
}

// light gives the digests of the scripts whose work for one call is small whatever the room holds.
func (s scripts) light() (digests []string) {
	for _, sc := range []*script{s.join, s.heartbeat, s.patch, s.restore, s.remove, s.hold, s.indexRoom, s.indexUser, s.unindexUser, s.noteRooms, s.places, s.find} {
		digests = append(digests, sc.redis7.sha, sc.legacy.sha)
	}
	return digests
}

// loadScript joins files of lua/. They are part of the program, so a missing one is a mistake in this file.
func loadScript(kind scriptKind, index string, files ...string) *script {
	libraries, body := luaParts(files)
	return newScript(kind, index, files, libraries+"local function run()\n"+body+"end\n"+luaText("answers"))
}

// loadTellingScript puts lua/tell.lua around the last file.
func loadTellingScript(kind scriptKind, index string, files ...string) *script {
	libraries, body := luaParts(files)
	sc := newScript(kind, index, files, libraries+luaText("tell")+"local function change()\n"+body+"end\n"+
		"local function run() return with_told(change) end\n"+luaText("answers"))
	sc.tells = true
	return sc
}

// luaParts are what stands before a script's function, and what the function does.
func luaParts(files []string) (libraries, body string) {
	last := len(files) - 1
	return luaText(append([]string{"calls"}, files[:last]...)...), luaText(files[last])
}

func luaText(files ...string) string {
	var source strings.Builder
	for _, name := range files {
		file, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			panic(err)
		}
		source.Write(file)
	}
	return source.String()
}

func newScript(kind scriptKind, index string, files []string, source string) *script {
	return &script{
		name:   files[len(files)-1],
		index:  index,
		redis7: newScriptText(kind.flags + source),
		legacy: newScriptText(kind.plain + source),
	}
}

func newScriptText(source string) scriptText {
	sum := sha1.Sum([]byte(source))
	return scriptText{source: source, sha: hex.EncodeToString(sum[:])}
}
