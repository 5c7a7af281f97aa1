-- Notes where a user is, and tells who watches the user. Called before the connection is written to the room.
--
-- KEYS    1 the user's index, which is the channel's name too
-- ARGV    1 connection and room, 2 an epoch not above that of the connection there, 3 TTL in ms, 4 PUBLISH or SPUBLISH
-- RETURNS nothing

local index, field, epoch, ttl, publish = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local new = redis.call('HSET', index, field, epoch)
redis.call('PEXPIRE', index, ttl)
if new == 1 then redis.call(publish, index, '+') end
