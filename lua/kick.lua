-- Removes a connection from a room for good: only a new join brings it back.
--
-- KEYS    as in room.lua, with the connection's hash, then its kick fence, then devices
-- ARGV    as in room.lua, then 5 connection, 6 ms that the fence lasts, 7 the highest epoch to remove ('' = any),
--         8 reason: kicked, or replaced
-- RETURNS {'ok', user, epoch}; {'missing'} when it is not in the room, or as a newer incarnation

local hash, fence, devices = KEYS[7], KEYS[8], KEYS[9]
local conn, fence_ttl, newest, reason = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]

local m = parse_meta(redis.call('HGET', META, conn))
if not m or newest and tonumber(m.epoch) > newest then return { 'missing' } end
check_devices(devices, m)

local now = now_text()
local prev, rev = advance(now)
forget(conn, hash)
redis.call('SET', fence, fence_value(m.epoch, reason), 'PX', fence_ttl)
drop_device(devices, m, conn)
local user_conns = release_user(m.user)
redis.call('HDEL', META, conn)
if redis.call('HLEN', META) == 0 then expire_counter(rev, now) end
publish(prev, rev, now, user_conns, 'leave', conn, m, reason)
return { 'ok', m.user, m.epoch }
