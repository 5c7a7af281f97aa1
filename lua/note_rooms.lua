-- Notes that a node has connections in rooms. Called before the first of them is written to the room.
--
-- KEYS    1 leases, 2 the node's rooms
-- ARGV    1 node, 2 TTL of the rooms in ms, then for each room its id and the generation
-- RETURNS {'ok'}; {'lost'} when the lease is not there or was declared lost: nothing was written

local FIRST = 3
local leases, rooms, node, ttl = KEYS[1], KEYS[2], ARGV[1], ARGV[2]

local due = tonumber(redis.call('ZSCORE', leases, node))
if not due or due ~= math.floor(due) then return { 'lost' } end
for i = FIRST, #ARGV, 2 do redis.call('HSET', rooms, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', rooms, ttl)
return { 'ok' }
