-- Brings a connection into a room as a new incarnation.
--
-- KEYS    as in room.lua, with the connection's hash
-- ARGV    as in room.lua, then 5 connection, 6 user, 7 the user's literal, 8 state, 9 the epoch that it replaces
--         ('' = none), 10 node, 11 TTL in ms, 12 members allowed in the room (0 = no limit), 13 room
-- RETURNS {'ok', epoch}, {'epoch', stored} when another incarnation is there,
--         {'full'} when the room has no place; only 'ok' has written

local hash, conn, replaces, ttl, limit, room = KEYS[6], ARGV[5], ARGV[9], ARGV[11], ARGV[12], ARGV[13]
local mine = { user = ARGV[6], literal = ARGV[7], state = ARGV[8], node = ARGV[10] }

local old = parse_meta(redis.call('HGET', META, conn))
if (old and old.epoch or '') ~= replaces then return { 'epoch', old and old.epoch or '' } end
if not old and limit ~= '0' and redis.call('HLEN', META) >= tonumber(limit) then return { 'full' } end

local prev = stored_revision()
local now = now_text()
local rev = next_revision(prev, now)
local moved = old and old.user ~= mine.user
local leave_rev = rev
if moved then rev = digits(rev + 1) end
mine.epoch, mine.rev = rev, rev
write_conn(hash, conn, room, mine, now, ttl)
local left_conns = moved and release_user(old.user)
local user_conns
if moved or not old then
  user_conns = redis.call('HINCRBY', MEMBERS, mine.user, '1')
else
  user_conns = redis.call('HGET', MEMBERS, mine.user)
end
redis.call('SET', REV, rev)
redis.call('HSET', META, conn, meta_value(mine))
if moved then
  publish(prev, leave_rev, now, left_conns, 'leave', conn, old, 'replaced')
  prev = leave_rev
end
publish(prev, rev, now, user_conns, 'join', conn, mine, nil, mine.state)
return { 'ok', rev }
