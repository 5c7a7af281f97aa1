-- Notes where a user is. Called before the connection is written to the room.
--
-- KEYS    1 the user's index
-- ARGV    1 connection and room, 2 an epoch not above that of the connection there, 3 TTL in ms
-- RETURNS nothing

local index, field, epoch, ttl = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

redis.call('HSET', index, field, epoch)
redis.call('PEXPIRE', index, ttl)
