-- Puts a connection back that the room has lost, or has in an older copy. Its epoch stays.
--
-- KEYS    as in room.lua, with the connection's hash, then its kick fence, then a hash and a kick fence for each of ARGV 18…, then
--         devices
-- ARGV    as in room.lua, then 5 connection, 6 user, 7 the user's literal, 8 state, 9 epoch, 10 the connection's own
--         revision, 11 node, 12 TTL in ms, 13 ms since its last heartbeat, 14 room,
--         15 1 = only if the room still has some incarnation of it, 16 the device's literal ('' = none),
--         17 ms that fences and devices last, 18… connections that the caller knows to leave with it
-- RETURNS {'ok', the connection's revision, the room's revision}; {'epoch', stored} when a newer incarnation,
--         {'rev', stored, state} when a newer state of it is there; {'missing'}, also when it is held back; {'kicked', the room's
--         revision, reason, 'end' if its connection is to end}, also when a newer member of its user has its device; {'others', connection, …} with all that have
--         to leave, because they have its device and are older, when ARGV lacks one. Only 'ok' has written.

local hash, conn, ttl, age, room, guest = KEYS[7], ARGV[5], tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14], ARGV[15] == '1'
local mine = {
  user = ARGV[6], literal = ARGV[7], state = ARGV[8], epoch = ARGV[9], rev = ARGV[10], node = ARGV[11],
  device = ARGV[16] ~= '' and ARGV[16] or nil,
}
local life, others, devices = ARGV[17], known_conns(18, 9), KEYS[#KEYS]

local old = member(conn)
local user_conns = tonumber(redis.call('HGET', MEMBERS, mine.user)) or 0
local known = redis.call('SISMEMBER', CONNS, conn) == 1 and redis.call('ZSCORE', LAST_SEEN, conn)
local prev = stored_revision()
local fence = redis.pcall('GET', KEYS[8]) -- a table if it is of another type, and so none of ours
if old and tonumber(old.epoch) > tonumber(mine.epoch) then return { 'epoch', old.epoch } end
if type(fence) == 'string' and tonumber(fence) >= tonumber(mine.epoch) then
  return { 'kicked', prev, string.find(fence, '.5', 1, true) and 'replaced' or 'kicked', fence_end(fence) and 'end' or '' }
end
if guest and not old or old and old.node == HELD and old.epoch == mine.epoch then return { 'missing' } end
local same = old and old.epoch == mine.epoch
if same and tonumber(old.rev) > tonumber(mine.rev) then return { 'rev', old.rev, state_of(old) } end

check_devices(devices, old)
local twin = twin_of(devices, mine, conn)
if twin and tonumber(twin.epoch) > tonumber(mine.epoch) then return { 'kicked', prev, 'replaced' } end
local leaving = { twin }
local unknown = unknown_conns(leaving, others)
if unknown then return unknown end

local now = now_text()
local seen = now - age
local hash_life = digits(math.max(1, ttl - age))
if not twin and same and old.rev == mine.rev and known and user_conns > 0 then
  -- In the room, and without its hash only, or its node goes by another name: nobody saw it go.
  write_conn(hash, conn, room, mine, digits(math.max(seen, tonumber(known))), hash_life)
  note_device(devices, mine, conn, life)
  if old.node ~= mine.node then redis.call('HSET', META, conn, meta_value(mine)) end
  return { 'ok', mine.rev, prev }
end
prev, mine.rev = advance(now, not old and redis.call('HLEN', META) == 0)
write_conn(hash, conn, room, mine, digits(seen), hash_life)
if old and old.user ~= mine.user then release_user(old.user) end
if not old or old.user ~= mine.user or user_conns == 0 then user_conns = redis.call('HINCRBY', MEMBERS, mine.user, 1) end
if old then drop_device(devices, old, conn) end
note_device(devices, mine, conn, life)
redis.call('HSET', META, conn, meta_value(mine))
publish(prev, mine.rev, now, user_conns, same and 'update' or 'join', conn, mine, nil, mine.state)
return { 'ok', mine.rev, see_off(leaving, others, mine.rev, now, devices, nil, life) }
