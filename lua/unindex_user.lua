-- Forgets where a user was, unless a newer incarnation is noted there, and tells who watches the user.
--
-- KEYS    1 the user's index, which is the channel's name too
-- ARGV    1 PUBLISH or SPUBLISH, then for each place: connection and room, the epoch that has left
-- RETURNS nothing

local index, publish = KEYS[1], ARGV[1]

local gone = 0
for i = 2, #ARGV, 2 do
  local field, epoch = ARGV[i], tonumber(ARGV[i + 1])
  local stored = tonumber(redis.call('HGET', index, field))
  if stored and stored <= epoch then gone = gone + redis.call('HDEL', index, field) end
end
if gone > 0 then redis.call(publish, index, '-') end
