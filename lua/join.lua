-- Brings a connection into a room as a new incarnation.
--
-- KEYS    as in room.lua, with the connection's hash; where there is a grace also the hashes of ARGV 14…, then held
-- ARGV    as in room.lua, then 5 connection, 6 user, 7 the user's literal, 8 state, 9 the epoch that it replaces
--         ('' = none), 10 node, 11 TTL in ms, 12 members allowed in the room (0 = no limit), 13 room,
--         14… those of the user's connections that the caller knows to be held back
-- RETURNS {'ok', epoch, user, epoch, connection, its epoch, …}: the user who was replaced and that incarnation's epoch ('' =
--         nobody was), then those that were held back and have left;
--         {'epoch', stored} when another incarnation is there, {'held', connection, …} with all that are held back when ARGV
--         lacks one, {'full'} when the room has no place; only 'ok' has written

local hash, conn, replaces, ttl, limit, room = KEYS[7], ARGV[5], ARGV[9], ARGV[11], ARGV[12], ARGV[13]
local mine = { user = ARGV[6], literal = ARGV[7], state = ARGV[8], node = ARGV[10] }
local held_key, held = KEYS[#ARGV - 5], {}

local old = replaces ~= '' and member(conn) or parse_meta(redis.call('HGET', META, conn))
if (old and old.epoch or '') ~= replaces then return { 'epoch', old and old.epoch or '' } end
local hashes = {}
if held_key then
  local answer, known = { 'held' }, true
  held = held_of(held_key, mine.user, conn)
  for i = 14, #ARGV do hashes[ARGV[i]] = KEYS[i - 6] end
  for i, m in ipairs(held) do
    answer[i + 1] = m.conn
    known = known and hashes[m.conn]
  end
  if not known then return answer end
end
if not old and limit ~= '0' and redis.call('HLEN', META) - #held >= tonumber(limit) then return { 'full' } end

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
for _, m in ipairs(held) do
  forget(m.conn, hashes[m.conn])
  redis.call('ZREM', held_key, held_member(m.user, m.conn))
end
if moved or held[1] then redis.call('SET', REV, digits(rev + #held)) end
redis.call('HSET', META, conn, meta_value(mine))
if moved then
  publish(prev, leave_rev, now, left_conns, 'leave', conn, old, 'replaced')
  prev = leave_rev
end
publish(prev, rev, now, user_conns, 'join', conn, mine, nil, mine.state)
local answer = { 'ok', rev, moved and old.user or '', moved and old.epoch or '' }
for i, m in ipairs(held) do
  prev, rev = rev, digits(rev + 1)
  redis.call('HDEL', META, m.conn)
  publish(prev, rev, now, release_user(m.user), 'leave', m.conn, m, 'disconnected')
  answer[2 * i + 3], answer[2 * i + 4] = m.conn, m.epoch
end
return answer
