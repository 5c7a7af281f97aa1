-- Writes what a heartbeat and the renewal of a lease write, and leaves nothing behind. Its answer shows that this master
-- takes the writes that keep members and nodes.
--
-- KEYS    1 a sorted set, 2 a hash that does not exist, 3 a string; the third may be absent
-- RETURNS {TIME in ms, id of the server process}

local sorted, hash, counter = KEYS[1], KEYS[2], KEYS[3]

if counter then redis.call('GET', counter) end
redis.call('HGET', hash, 'rev')
redis.call('HMGET', hash, 'epoch', 'rev', 'state')
local now = now_text()
redis.call('ZADD', sorted, 'XX', 'CH', now, '') -- no connection and no node is named '': nothing changes
redis.call('ZSCORE', sorted, '')
redis.call('HSET', hash, 'last_seen_ms', now)
redis.call('PEXPIRE', hash, '0') -- deletes it
return { now, server_id() }
