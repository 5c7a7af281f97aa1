-- Forgets where a user was, unless a newer incarnation is noted there.
--
-- KEYS    1 the user's index
-- ARGV    for each place: connection and room, the epoch that has left
-- RETURNS nothing

local index = KEYS[1]

for i = 1, #ARGV, 2 do
  local field, epoch = ARGV[i], tonumber(ARGV[i + 1])
  local stored = tonumber(redis.call('HGET', index, field))
  if stored and stored <= epoch then redis.call('HDEL', index, field) end
end
