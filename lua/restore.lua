-- Puts a connection back that the room has lost, or has in an older copy. Its epoch stays.
--
-- KEYS    as in room.lua, with the connection's hash
-- ARGV    1 connection, 2 user, 3 the user's literal, 4 state, 5 epoch, 6 the connection's own revision, 7 node,
--         8 TTL in ms, 9 ms since its last heartbeat, 10 highest revision known, 11 channel, 12 PUBLISH or SPUBLISH,
--         13 room, 14 the room's literal, 15 1 = only if the room still has some incarnation of it
-- RETURNS {'ok', the connection's revision, the room's revision}; {'epoch', stored} when a newer incarnation,
--         {'rev', stored, state} when a newer state of it is there; {'missing'}. Only 'ok' has written.

local conn, node, ttl, age, floor = ARGV[1], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local mine = { user = ARGV[2], literal = ARGV[3], state = ARGV[4], epoch = ARGV[5], rev = ARGV[6], node = node }
local room = { channel = ARGV[11], publish = ARGV[12], id = ARGV[13], literal = ARGV[14] }
local guest = ARGV[15] == '1'
local hash = KEYS[6]

local old = parse_meta(redis.call('HGET', META, conn))
local user_conns = tonumber(redis.call('HGET', MEMBERS, mine.user)) or 0
local known = redis.call('SISMEMBER', CONNS, conn) == 1 and redis.call('ZSCORE', LAST_SEEN, conn)
local prev = stored_revision()
if guest and not old then return { 'missing' } end
if old and tonumber(old.epoch) > tonumber(mine.epoch) then return { 'epoch', old.epoch } end
local same = old and old.epoch == mine.epoch
if same and tonumber(old.rev) > tonumber(mine.rev) then return { 'rev', old.rev, old.state } end

local now = now_ms()
local seen = now - age
local life = digits(math.max(1, ttl - age))
if same and old.rev == mine.rev and known and user_conns > 0 then
  -- In the room and without its hash only: nobody saw it go.
  write_conn(hash, conn, room.id, mine, math.max(seen, tonumber(known)), life)
  return { 'ok', mine.rev, digits(prev) }
end
local rev = next_revision(prev, floor, now)
mine.rev = digits(rev)
write_conn(hash, conn, room.id, mine, seen, life)
if old and old.user ~= mine.user then release_user(old.user) end
if not old or old.user ~= mine.user or user_conns == 0 then user_conns = redis.call('HINCRBY', MEMBERS, mine.user, 1) end
redis.call('SET', REV, mine.rev)
redis.call('HSET', META, conn, meta_value(mine))
publish(room, { prev = prev, rev = rev, ts = now, epoch = mine.epoch, user_conns = user_conns, type = same and 'update' or 'join',
  conn = conn, literal = mine.literal, state = mine.state })
return { 'ok', mine.rev, mine.rev }
