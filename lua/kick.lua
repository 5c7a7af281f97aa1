-- Removes a connection from a room for good: only a new join brings it back.
--
-- KEYS    as in room.lua, with the connection's hash, then its kick fence, then devices
-- ARGV    as in room.lua, then 5 connection, 6 ms that the fence lasts, 7 the highest epoch to remove ('' = any),
--         8 reason: kicked, or replaced, 9 1 = the connection's node is to end the connection as well
-- RETURNS {'ok', user, epoch}; {'missing', ''} when it is not in the room, or as a newer incarnation, {'missing', 'end'} where
--         the kick of an incarnation that is not below ARGV 7 has said that the connection is to end

local hash, fence, devices = KEYS[7], KEYS[8], KEYS[9]
local conn, fence_ttl, newest, reason, ends = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9] == '1'

local m = parse_meta(redis.call('HGET', META, conn))
local ending = fence_end(redis.pcall('GET', fence)) -- which is a table if the key is of another type
if not m or newest and tonumber(m.epoch) > newest then
  return { 'missing', newest and ending and ending >= newest and 'end' or '' }
end
check_devices(devices, m)

local now = now_text()
local prev, rev = advance(now)
forget(conn, hash)
redis.call('SET', fence, fence_value(m.epoch, reason, ends or ending), 'PX', fence_ttl)
drop_device(devices, m, conn)
local user_conns = release_user(m.user)
redis.call('HDEL', META, conn)
if redis.call('HLEN', META) == 0 then expire_counter(rev, now) end
publish(prev, rev, now, user_conns, 'leave', conn, m, reason)
return { 'ok', m.user, m.epoch }
