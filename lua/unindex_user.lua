-- Forgets where a user was, unless a newer incarnation is noted there.
--
-- KEYS    1 the user's index
-- ARGV    1 connection and room, 2 the epoch that has left
-- RETURNS nothing

local index, field, epoch = KEYS[1], ARGV[1], tonumber(ARGV[2])

local stored = tonumber(redis.call('HGET', index, field))
if stored and stored <= epoch then redis.call('HDEL', index, field) end
