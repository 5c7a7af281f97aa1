-- Brings a connection into a room as a new incarnation.
--
-- KEYS    as in room.lua, with the connection's hash, then a hash and a kick fence for each of ARGV 16…, then held where there
--         is a grace, then devices
-- ARGV    as in room.lua, then 5 connection, 6 user, 7 the user's literal, 8 state, 9 the epoch that it replaces
--         ('' = none), 10 node, 11 TTL in ms, 12 members allowed in the room (0 = no limit), 13 room,
--         14 the device's literal ('' = none), 15 ms that fences and devices last,
--         16… those of the user's connections that the caller knows to leave with the join
-- RETURNS {'ok', epoch, user, epoch, connection, its epoch, reason, connection, …}: the user who was replaced and that
--         incarnation's epoch ('' = nobody was), then the user's connections that have left: the one with the same device, and
--         those that were held back;
--         {'epoch', stored} when another incarnation is there, {'others', connection, …} with all that have to leave when ARGV
--         lacks one, {'full'} when the room has no place; only 'ok' has written

local FIRST = 16
local hash, conn, replaces, ttl, limit, room, life = KEYS[7], ARGV[5], ARGV[9], ARGV[11], ARGV[12], ARGV[13], ARGV[15]
local mine = { user = ARGV[6], literal = ARGV[7], state = ARGV[8], node = ARGV[10], device = ARGV[14] ~= '' and ARGV[14] or nil }
local others = known_conns(FIRST, 8)
local devices, held_key = KEYS[#KEYS], #KEYS - 8 > 2 * (#ARGV - FIRST + 1) and KEYS[#KEYS - 1] or nil

local old = replaces ~= '' and member(conn) or parse_meta(redis.call('HGET', META, conn))
if (old and old.epoch or '') ~= replaces then return { 'epoch', old and old.epoch or '' } end
check_devices(devices, old)
local twin = twin_of(devices, mine, conn)
local leaving = { twin }
if held_key then
  for _, m in ipairs(held_of(held_key, mine.user, conn)) do
    m.why = 'disconnected'
    if not twin or m.conn ~= twin.conn then leaving[#leaving + 1] = m end
  end
end
for _, m in ipairs(leaving) do check_devices(devices, m) end
local unknown = unknown_conns(leaving, others)
if unknown then return unknown end
if not old and limit ~= '0' and redis.call('HLEN', META) - #leaving >= tonumber(limit) then return { 'full' } end

local now = now_text()
local prev, rev = advance(now, not old and redis.call('HLEN', META) == 0)
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
if old then drop_device(devices, old, conn) end
note_device(devices, mine, conn, life)
if moved then redis.call('SET', REV, rev) end
redis.call('HSET', META, conn, meta_value(mine))
if moved then
  publish(prev, leave_rev, now, left_conns, 'leave', conn, old, 'replaced')
  prev = leave_rev
end
publish(prev, rev, now, user_conns, 'join', conn, mine, nil, mine.state)
see_off(leaving, others, rev, now, devices, held_key, life)
local answer = { 'ok', rev, moved and old.user or '', moved and old.epoch or '' }
for _, m in ipairs(leaving) do
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3] = m.conn, m.epoch, m.why
end
return answer
