-- Removes a connection from a room for good: only a new join brings it back.
--
-- KEYS    as in room.lua, with the connection's hash, then its kick fence
-- ARGV    as in room.lua, then 5 connection, 6 ms that the fence lasts, 7 the highest epoch to remove ('' = any)
-- RETURNS {'ok', user, epoch}; {'missing'} when it is not in the room, or as a newer incarnation

local hash, fence, conn, fence_ttl, newest = KEYS[7], KEYS[8], ARGV[5], ARGV[6], tonumber(ARGV[7])

local m = parse_meta(redis.call('HGET', META, conn))
if not m or newest and tonumber(m.epoch) > newest then return { 'missing' } end

local now = now_text()
local prev, rev = advance(now)
redis.call('SREM', CONNS, conn)
redis.call('ZREM', LAST_SEEN, conn)
redis.call('DEL', hash)
redis.call('SET', fence, m.epoch, 'PX', fence_ttl)
local user_conns = release_user(m.user)
redis.call('HDEL', META, conn)
if redis.call('HLEN', META) == 0 then expire_counter(rev, now) end
publish(prev, rev, now, user_conns, 'leave', conn, m, 'kicked')
return { 'ok', m.user, m.epoch }
