-- Refreshes a connection. It is the script that runs most, so it has as few keys and commands as it can.
--
-- KEYS    1 last_seen, 2 rev, 3 the connection's hash
-- ARGV    1 connection, 2 its epoch, 3 its own revision, 4 TTL in ms
-- RETURNS the room's revision, and no list, when it has written; {'missing'} when the room or the hash is without it;
--         {'epoch', stored} or {'rev', stored, state} when another incarnation or another state is there.

local LAST_SEEN, REV, hash = KEYS[1], KEYS[2], KEYS[3]
local conn, epoch, own_rev, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if redis.call('HGET', hash, 'rev') ~= own_rev then -- no two incarnations have a revision in common
  local stored = redis.call('HMGET', hash, 'epoch', 'rev', 'state')
  if not stored[1] or not stored[2] then return { 'missing' } end
  if stored[1] ~= epoch then return { 'epoch', stored[1] } end
  return { 'rev', stored[2], stored[3] }
end

memo[REV] = memo[REV] or revision(redis.call('GET', REV)) -- no heartbeat changes it
local now = now_text()
-- It changes nothing where the connection is missing, and where it was heard of in this very millisecond.
if redis.call('ZADD', LAST_SEEN, 'XX', 'CH', now, conn) == 0 and not redis.call('ZSCORE', LAST_SEEN, conn) then
  return { 'missing' }
end
redis.call('HSET', hash, 'last_seen_ms', now)
redis.call('PEXPIRE', hash, ttl)
return memo[REV]
