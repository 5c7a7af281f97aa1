-- Brings a connection into a room as a new incarnation.
--
-- KEYS    as in room.lua, with the connection's hash
-- ARGV    1 connection, 2 user, 3 the user's literal, 4 state, 5 the epoch that it replaces ('' = none), 6 node,
--         7 TTL in ms, 8 members allowed in the room (0 = no limit), 9 highest revision known,
--         10 channel, 11 PUBLISH or SPUBLISH, 12 room, 13 the room's literal
-- RETURNS {'ok', epoch}, {'epoch', stored} when another incarnation is there,
--         {'full'} when the room has no place; only 'ok' has written

local conn, user, literal, state, replaces, node = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local ttl, limit, floor = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local room = { channel = ARGV[10], publish = ARGV[11], id = ARGV[12], literal = ARGV[13] }
local hash = KEYS[6]

local old = parse_meta(redis.call('HGET', META, conn))
if (old and old.epoch or '') ~= replaces then return { 'epoch', old and old.epoch or '' } end
if not old and limit > 0 and redis.call('HLEN', META) >= limit then return { 'full' } end

local prev = stored_revision()
local now = now_ms()
local rev = next_revision(prev, floor, now)
local moved = old and old.user ~= user
local leave_rev = rev
if moved then rev = rev + 1 end
local epoch = digits(rev)
local mine = { epoch = epoch, rev = epoch, node = node, literal = literal, user = user, state = state }
write_conn(hash, conn, room.id, mine, now, ttl)
local left_conns = moved and release_user(old.user)
local user_conns
if moved or not old then
  user_conns = redis.call('HINCRBY', MEMBERS, user, 1)
else
  user_conns = redis.call('HGET', MEMBERS, user)
end
redis.call('SET', REV, epoch)
redis.call('HSET', META, conn, meta_value(mine))
if moved then
  publish(room, { prev = prev, rev = leave_rev, ts = now, epoch = old.epoch, user_conns = left_conns, type = 'leave',
    conn = conn, literal = old.literal, reason = 'replaced' })
  prev = leave_rev
end
publish(room, { prev = prev, rev = rev, ts = now, epoch = epoch, user_conns = user_conns, type = 'join', conn = conn,
  literal = literal, state = state })
return { 'ok', epoch }
