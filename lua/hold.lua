-- Holds a connection back: it stays in the room for a while although it is over, and belongs to no node.
--
-- KEYS    as in room.lua, with the connection's hash, then held
-- ARGV    1 connection, 2 the highest epoch to hold back ('' = any), 3 ms to hold it back, 4 lookback in ms, 5 TTL in ms,
--         6 room, 7 1 = not if its user has another connection in the room that is not held back
-- RETURNS {'ok'}; {'back'} when the user has one; {'missing'} when the room is without it or has it held back already; only 'ok' has written

local conn, newest, hold = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lookback, ttl, room_id, unless_back = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7] == '1'
local hash, held = KEYS[7], KEYS[8]

stored_revision() -- fails while the indices are being rebuilt
local m = parse_meta(redis.call('HGET', META, conn))
if not m or m.node == HELD or (newest and tonumber(m.epoch) > newest) then return { 'missing' } end
if unless_back then
  local others = (tonumber(redis.call('HGET', MEMBERS, m.user)) or 1) - 1
  if others > #held_of(held, m.user, conn) then return { 'back' } end
end

local now = now_ms()
local seen = now + hold - lookback
m.node, m.state = HELD, state_of(m)
local life = ttl - (now - seen)
write_conn(hash, conn, room_id, m, digits(seen), digits(math.max(1, life)))
if life > 0 then
  redis.call('HDEL', hash, 'rev') -- so that no heartbeat, however late, finds it
else
  redis.call('DEL', hash)
end
redis.call('ZADD', held, 0, held_member(m.user, conn))
redis.call('PEXPIRE', held, digits(hold + EMPTY_ROOM_TTL))
redis.call('HSET', META, conn, meta_value(m))
return { 'ok' }
