-- Deletes keys of a room that are of another type. What they held is built anew from conn_meta.
--
-- KEYS    as in room.lua, with the hashes of connections; held may be the last
-- ARGV    1 1 = held is
-- RETURNS nothing

local kinds = { 'hash', 'hash', 'zset', 'string', 'set', 'string' }
local held = ARGV[1] == '1' and KEYS[#KEYS]
if held then kinds[#KEYS] = 'zset' end
for i = 1, #KEYS do ensure_type(KEYS[i], kinds[i] or 'hash') end

local now = now_ms()
local counter = now
local all = redis.call('HGETALL', META)
redis.call('DEL', MEMBERS, CONNS)
for i = 1, #all, 2 do
  local m = parse_meta(all[i + 1])
  if m then
    redis.call('HINCRBY', MEMBERS, m.user, 1)
    redis.call('SADD', CONNS, all[i])
    redis.call('ZADD', LAST_SEEN, 'NX', digits(now), all[i])
    if held and m.node == HELD then redis.call('ZADD', held, 0, held_member(m.user, all[i])) end
    counter = math.max(counter, tonumber(m.rev))
  else
    redis.call('HDEL', META, all[i])
    redis.call('ZREM', LAST_SEEN, all[i])
  end
end
for _, conn in ipairs(redis.call('ZRANGE', LAST_SEEN, 0, -1)) do
  if redis.call('HEXISTS', META, conn) == 0 then redis.call('ZREM', LAST_SEEN, conn) end
end
-- Members may be lost with a key of another type.
redis.call('SET', ORIGIN, digits(now), 'PX', ORIGIN_TTL)
-- A lost counter goes on at the clock, not below any member. In a room that has lost its members it is not kept for ever.
redis.call('SET', REV, digits(counter), 'NX')
if redis.call('HLEN', META) == 0 then redis.call('PEXPIRE', REV, EMPTY_ROOM_TTL) end
