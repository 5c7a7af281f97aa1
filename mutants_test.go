package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// mutant is a mistake that the model has to notice: a text of the program, and what stands in its place.
type mutant struct {
	name     string
	file     string
	old, new string
	about    concern // what the schedules have to be about that may kill it
}

// mutants are mistakes in the scripts, which are changed as they are loaded, and in the program, which is built once more
// with all of them in it, asleep: MUTANT stands for "this one is awake".
var mutants = []mutant{
	{"a join counts its user again", "lua/join.lua", "if moved or not old then", "if true then", 0},
	{"a user who was replaced stays counted", "lua/join.lua", "moved and release_user(old.user)", "moved and 0", 0},
	{"two events have one revision", "lua/join.lua", "if moved then rev = digits(rev + 1) end", "", 0},
	{"a join is not in conns", "lua/room.lua", "redis.call('SADD', CONNS, conn)", "", 0},
	{"a revision does not grow", "lua/room.lua", "math.max(prev, KNOWN) + 1", "math.max(prev, KNOWN)", 0},
	{"a counter that was lost goes on below the one before", "lua/room.lua", "  if least <= tonumber(now) then return now end\n", "", aboutLoss},
	{"a connection's hash does not expire", "lua/room.lua", "redis.call('PEXPIRE', hash, ttl)", "", 0},
	{"a patch leaves the hash behind", "lua/patch.lua", "redis.call('HSET', hash, 'state', state, 'rev', m.rev,", "redis.call('HSET', hash, 'rev', m.rev,", 0},
	{"a patch tells nobody", "lua/patch.lua", "publish(prev, m.rev, now, user_conns, 'update', conn, m, nil, state)", "", 0},
	{"a heartbeat extends nothing", "lua/heartbeat.lua", "redis.call('ZADD', LAST_SEEN, 'XX', 'CH', now, conn) == 0 and not", "not", 0},
	{"a heartbeat of the incarnation before counts", "lua/heartbeat.lua", "if redis.call('HGET', hash, 'rev') ~= own_rev then", "if false then", 0},
	{"a late leave takes a newer incarnation", "lua/remove.lua", "newest and m and tonumber(m.epoch) > newest or", "", aboutLateCalls},
	{"a user who left stays counted", "lua/remove.lua", "local user_conns = release_user(m.user)", "local user_conns = 0", 0},
	{"the counter of an empty room stays for ever", "lua/remove.lua", "if redis.call('HLEN', META) == 0 then", "if false then", 0},
	{"who left stays in last_seen", "lua/held.lua", "redis.call('ZREM', LAST_SEEN, conn)", "", 0},
	{"who is put back without need is told", "lua/restore.lua", "if not twin and same and old.rev == mine.rev and known and user_conns > 0 then", "if false then", 0},
	{"a room is not in the reaper's index", "lua/index_room.lua", "if not due or due > now + life then", "if due and due > now + life then", 0},
	{"a kick sets no fence", "lua/kick.lua", "redis.call('SET', fence, fence_value(m.epoch, reason, ends or ending), 'PX', fence_ttl)", "", aboutKicks},
	{"a kick is told as a leave", "lua/kick.lua", "m, reason)", "m, 'left')", aboutKicks},
	{"a repair passes the fence of a kick", "lua/restore.lua", "if type(fence) == 'string' and", "if false and", aboutKicks},
	{"who is held back stays when the user is back", "lua/join.lua", "ipairs(held_of(held_key, mine.user, conn))", "ipairs({})", aboutGrace},
	{"who is held back counts for a full room", "lua/join.lua", "redis.call('HLEN', META) - #leaving >=", "redis.call('HLEN', META) >=", aboutGrace},
	{"who was replaced may come back", "lua/devices.lua", "if m.why == 'replaced' then", "if false then", aboutDevices},
	{"a device is forgotten with the leave of another one", "lua/devices.lua", "if m.device and redis.call('HGET', devices, device_field(m)) == conn then", "if m.device then", aboutDevices},
	{"a patch forgets the device", "lua/room.lua", ".. m.state .. device_part(m) ..", ".. m.state ..", aboutDevices},
	{"the older of two members of a device is put back", "lua/restore.lua", "if twin and tonumber(twin.epoch) > tonumber(mine.epoch) then", "if false then", aboutDevices | aboutLoss},
	{"who is replaced counts for a full room", "lua/join.lua", "if not twin or m.conn ~= twin.conn then", "if true then", aboutDevices | aboutGrace},
	{"a hold is over at once", "lua/hold.lua", "local seen = now + hold - lookback", "local seen = now - lookback", aboutGrace},

	{"a message is applied that does not follow", "room.go", "case r.replica.precedes(m), r.beginsAnew(m):\n\t\tr.apply(m.Event)\n\tcase m.Rev <= r.replica.stored:", "case r.replica.precedes(m) || r.beginsAnew(m) || MUTANT:\n\t\tr.apply(m.Event)\n\tcase m.Rev <= r.replica.stored:", 0},
	{"a read takes the place of events on their way", "room_read.go", "case overtaken || onTheirWay && found.first == nil:", "case !MUTANT && (overtaken || onTheirWay && found.first == nil):", 0},
	{"a join is answered before its revision is there", "room_waiter.go", "if w.rev > r.replica.rev {\n\t\t\trest =", "if w.rev > r.replica.rev && !MUTANT {\n\t\t\trest =", 0},
	{"who joined hears nothing", "room_waiter.go", "case w.to != nil:", "case w.to != nil && !MUTANT:", 0},
	{"who left goes on hearing", "room.go", "r.listeners.dismiss(to, as)", "if !MUTANT {\n\t\tr.listeners.dismiss(to, as)\n\t}", 0},
	{"a revision that comes back is compared with nothing", "room_read.go", "if rev == had || r.comparing {", "if rev == had || r.comparing || MUTANT {", 0},
	{"what a read finds after a loss is not told", "room_read.go", "r.gapSuspected, r.readMayMiss = true, true", "r.gapSuspected, r.readMayMiss = !MUTANT, true", 0},
	{"a leave that was missed is not told", "replica.go", "if had && !spare(old) {", "if had && !spare(old) && !MUTANT {", 0},
	{"an update that was missed is not told", "replica.go", "case old.Rev == e.Rev:", "case old.Rev == e.Rev || MUTANT:", 0},
	{"a snapshot keeps old heartbeats", "room_waiter.go", "> r.hub.freshFor && !r.inPages(w) {", "> r.hub.freshFor && !r.inPages(w) && !MUTANT {", aboutPauses},
	{"frames of a batch stay queued", "dispatcher.go", "r.try(r.settle)\n\t}\n\td.batch.flush()", "r.try(r.settle)\n\t}\n\tif !MUTANT {\n\t\td.batch.flush()\n\t}", 0},
	{"any epoch is taken", "handle_heartbeat.go", "if p.HasEpoch && p.Epoch != m.Epoch {", "if p.HasEpoch && p.Epoch != m.Epoch && !MUTANT {", 0},
	{"who was kicked goes on hearing", "listeners.go", "if c.final {", "if c.final && !MUTANT {", aboutKicks},
	{"who was kicked is refused before what came earlier", "handle_kicked.go", "m.room.reach(ctx, m.kickRev)", "m.room.reach(ctx, map[bool]int64{false: m.kickRev}[MUTANT])", aboutKicks},
	{"a kick whose message was lost is not told", "handle_kicked.go", "m.room.tellKicked(m.Conn, m.Epoch, m.kickRev, cmp.Or(m.kickReason, m.expelledFor()))", "if !MUTANT {\n\t\tm.room.tellKicked(m.Conn, m.Epoch, m.kickRev, cmp.Or(m.kickReason, m.expelledFor()))\n\t}", aboutKicks},
	{"a goodbye waits for the grace", "handle_leave.go", "if (reason == endAbrupt || reason == endSilent) && grace > 0 {", "if (reason == endAbrupt || reason == endSilent || MUTANT) && grace > 0 {", aboutGrace},
	{"a hold is not ended in time", "pending_leaves.go", "if l.held {", "if l.held && !MUTANT {", aboutGrace},
	{"Redis is trusted at once after it refused writes", "reaper_contact.go", "c.since = now\n", "c.since = map[bool]time.Time{false: now}[MUTANT]\n", aboutRefusals},
	{"a command without an answer is taken for one that has it", "presence_call.go", "if len(list) != 1 {", "if len(list) != 1 && !MUTANT {", aboutRefusals},
	{"who is missing after a loss of data is told as gone at once", "room_repair.go", "if !until.After(r.repair.readBegan) {", "if !until.After(r.repair.readBegan) || MUTANT {", aboutLoss},
	{"a member of this node is told as gone after a loss of data", "room_repair.go", "return m.stands() && !m.standsIn(s)", "return m.stands() && !m.standsIn(s) && !MUTANT", aboutLoss},
	{"who left during a loss of data is not told as gone", "room_repair.go", "if r.repair.checking || len(r.repair.keptMissing) == 0 {", "if r.repair.checking || len(r.repair.keptMissing) == 0 || MUTANT {", aboutLoss},
	{"who was lost is not put back", "room.go", "return slices.Collect(maps.Values(r.owned))", "if MUTANT {\n\t\treturn nil\n\t}\n\treturn slices.Collect(maps.Values(r.owned))", aboutLoss},
	{"a kick is forgotten with its fence", "heal.go", "kicked := m.kicked.Load()", "kicked := m.kicked.Load()\n\tif MUTANT {\n\t\treturn false\n\t}", aboutLoss | aboutKicks},
	{"a page skips a member", "room_answer.go", "\t\t\tp.last = last\n", "\t\t\tp.last = map[bool]string{false: last, true: e.ConnID}[MUTANT]\n", aboutModes},
	{"a batch is told again", "listeners.go", "\tl.window.restart(l.room.replica.tally())\n", "\tif !MUTANT {\n\t\tl.window.restart(l.room.replica.tally())\n\t}\n", aboutModes},
	{"who begins within a window is told what its snapshot has", "room_window.go", "if len(w.spans[len(w.spans)-1].touched) > 0 {", "if len(w.spans[len(w.spans)-1].touched) > 0 && !MUTANT {", aboutModes},
	{"a count is not told", "listeners.go", "\tif len(to) > 0 {\n\t\tl.count.next", "\tif len(to) > 0 && !MUTANT {\n\t\tl.count.next", aboutModes},
	{"a role that has ended goes on", "listeners.go", "rest.chosen[as] = 0", "rest.chosen[as] = map[bool]eventMode{true: rest.chosen[as]}[MUTANT]", aboutModes},
	{"a lost join is answered without the member", "handle_join.go", "w.epoch = m.Epoch", "w.epoch = map[bool]int64{false: m.Epoch}[MUTANT]", aboutLoss | aboutLostMessages},
	{"a join of unknown outcome is not taken back", "handle_join.go", "if len(before) > 0 || isUnavailable(err) {", "if !MUTANT && (len(before) > 0 || isUnavailable(err)) {", aboutLateCalls},
}

// awake is the mutant of the program that lives, "" for none.
var awake string

// mutated is what the mutants of the program ask.
//
//lint:ignore U1000 it is called in the build that TestModelKillsMutantsOfTheProgram makes
func mutated(name string) bool { return awake == name }

var onlyMutants = flag.Bool("mutants", false, "this is a build with the mutants of the program: kill them")

// apply puts the mutant into a text. A text that is not there any more is a mistake in the list.
func (u mutant) apply(t testing.TB, text string) string {
	t.Helper()
	if strings.Count(text, u.old) != 1 {
		t.Fatalf("%s has %d times %q", u.file, strings.Count(text, u.old), u.old)
	}
	return strings.Replace(text, u.old, strings.ReplaceAll(u.new, "MUTANT", fmt.Sprintf("mutated(%q)", u.name)), 1)
}

func (u mutant) script() bool { return strings.HasSuffix(u.file, ".lua") }

// kill runs schedules until one goes wrong. They are the same each time, so that a mutant that is killed once stays dead. Others are
// those after -seed.
func (u mutant) kill(t *testing.T, runners []*modelRunner) {
	const atMost = 2000
	var next, killer atomic.Int64
	next.Store(int64(*modelSeed))
	var first atomic.Pointer[string]
	t.Run(u.name, func(t *testing.T) {
		t.Run("by", func(t *testing.T) {
			for i, r := range runners {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					t.Parallel()
					for seed := next.Add(1); seed <= int64(*modelSeed)+atMost && killer.Load() == 0; seed = next.Add(1) {
						if wrong, _ := r.run(t, uint64(seed), u.about); len(wrong) > 0 {
							killer.CompareAndSwap(0, seed)
							first.CompareAndSwap(nil, &wrong[0])
						}
					}
				})
			}
		})
		if killer.Load() == 0 {
			t.Fatalf("it survives %d schedules", atMost)
		}
		line, _, _ := strings.Cut(*first.Load(), "\n")
		t.Logf("seed %d: %s", killer.Load(), line)
	})
}

func TestModelKillsMutantsOfTheScripts(t *testing.T) {
	takesLong(t)
	runners := startRunners(t)
	for _, u := range mutants {
		if !u.script() {
			continue
		}
		source := u.apply(t, readText(t, u.file))
		original := readText(t, u.file)
		for _, r := range runners {
			r.load(t, func(text string) string { return strings.Replace(text, original, source, 1) })
		}
		u.kill(t, runners)
	}
}

// TestModelKillsMutantsOfTheProgram builds this test once more, with the mutants in it, and runs the next one there.
func TestModelKillsMutantsOfTheProgram(t *testing.T) {
	t.Parallel()
	takesLong(t)
	needRedis(t)
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	changed := map[string]string{}
	for _, u := range mutants {
		if u.script() {
			continue
		}
		if changed[u.file] == "" {
			changed[u.file] = readText(t, u.file)
		}
		changed[u.file] = u.apply(t, changed[u.file])
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range changed {
		overlay.Replace[filepath.Join(here, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, _ := json.Marshal(overlay) // cannot fail
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	binary, began := filepath.Join(dir, "mutants.test"), time.Now()
	if out, err := exec.Command("go", "test", "-c", "-vet=off", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("the mutants cannot be built: %v\n%s", err, out)
	}
	t.Logf("built in %v", time.Since(began))
	out, err := exec.CommandContext(t.Context(), binary, "-test.run", "^TestMutantsOfThisBuild$", "-test.v", "-mutants", fmt.Sprint("-seed=", *modelSeed)).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "seed") || strings.Contains(line, "survives") || strings.Contains(line, "---") && !strings.Contains(line, "/by") {
			t.Log(strings.TrimSpace(line))
		}
	}
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out[max(0, len(out)-8000):])
	}
}

func TestMutantsOfThisBuild(t *testing.T) {
	if !*onlyMutants {
		t.Skip("part of TestModelKillsMutantsOfTheProgram")
	}
	runners := startRunners(t)
	for _, r := range runners {
		r.load(t, func(text string) string { return text })
	}
	for _, u := range mutants {
		if u.script() {
			continue
		}
		awake = u.name
		u.kill(t, runners)
	}
	awake = ""
}
