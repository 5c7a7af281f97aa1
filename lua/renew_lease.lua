-- Begins or renews a node's lease, and forgets rooms that the node has left.
--
-- KEYS    1 leases, 2 the node's rooms
-- ARGV    1 node, 2 ms that the lease lasts, 3 1 = it begins, 4 how many rooms the node has declared, 5 TTL of the keys in ms,
--         then for each room that was left its id and the generation in which it was declared last
-- RETURNS {'ok'}; {'lost'} when the lease is not there or was declared lost: nothing was written;
--         {'short'} when the lease is renewed and rooms are missing

local FIRST = 6
local leases, rooms = KEYS[1], KEYS[2]
local node, life, begins, declared, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5]

local due = tonumber(redis.call('ZSCORE', leases, node))
if not begins and (not due or due ~= math.floor(due)) then return { 'lost' } end
for i = FIRST, #ARGV, 2 do
  local generation = tonumber(redis.call('HGET', rooms, ARGV[i]))
  if generation and generation <= tonumber(ARGV[i + 1]) then redis.call('HDEL', rooms, ARGV[i]) end
end
redis.call('ZADD', leases, digits(now_ms() + life), node)
redis.call('PEXPIRE', leases, ttl)
redis.call('PEXPIRE', rooms, ttl)
if redis.call('HLEN', rooms) < declared then return { 'short' } end
return { 'ok' }
