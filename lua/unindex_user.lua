-- Forgets where a user was, unless a newer incarnation is noted there, keeps when the user was last seen, and tells who
-- watches the user.
--
-- KEYS    1 the user's index, which is the channel's name too, 2 when the user was last seen
-- ARGV    1 PUBLISH or SPUBLISH, 2 ms that KEYS 2 is kept, 0 = it is not written, 3 ms since the latest of these leaves,
--         then for each place: connection and room, the epoch that has left
-- RETURNS nothing

local FIRST = 4
local index, last_seen, publish, kept, age = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])

local gone = 0
for i = FIRST, #ARGV, 2 do
  local field, epoch = ARGV[i], tonumber(ARGV[i + 1])
  local stored = tonumber(redis.call('HGET', index, field))
  if stored and stored <= epoch then gone = gone + redis.call('HDEL', index, field) end
end
-- The index may hold too much, so it does not tell which leave is the user's last one: each may be.
if kept ~= '0' then
  local left = now_ms() - age
  if left > (tonumber(redis.call('GET', last_seen)) or 0) then redis.call('SET', last_seen, digits(left), 'PX', kept) end
end
if gone > 0 then redis.call(publish, index, '-') end
