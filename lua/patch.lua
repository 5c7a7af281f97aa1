-- Refreshes a connection and replaces its state.
--
-- KEYS    as in room.lua, with the connection's hash
-- ARGV    as in room.lua, then 5 connection, 6 its epoch, 7 its own revision, 8 TTL in ms, 9 state
-- RETURNS {'ok', the connection's revision, the room's revision}, else as heartbeat.lua

local hash, conn, epoch, own_rev, ttl, state = KEYS[7], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local stored = redis.call('HMGET', hash, 'epoch', 'rev')
if not stored[1] or not stored[2] then return { 'missing' } end
if stored[1] ~= epoch then return { 'epoch', stored[1] } end
if stored[2] ~= own_rev then return { 'rev', stored[2], redis.call('HGET', hash, 'state') } end

local m = parse_meta(redis.call('HGET', META, conn))
local user_conns = m and redis.call('HGET', MEMBERS, m.user)
if not user_conns then return { 'missing' } end

local now = now_text()
-- It changes nothing where the connection is missing, and where it was heard of in this very millisecond.
if redis.call('ZADD', LAST_SEEN, 'XX', 'CH', now, conn) == 0 and not redis.call('ZSCORE', LAST_SEEN, conn) then
  return { 'missing' }
end
local prev
prev, m.rev = advance(now)
m.state = state
redis.call('HSET', hash, 'state', state, 'rev', m.rev, 'last_seen_ms', now)
redis.call('PEXPIRE', hash, ttl)
redis.call('HSET', META, conn, meta_value(m))
publish(prev, m.rev, now, user_conns, 'update', conn, m, nil, state)
return { 'ok', m.rev, m.rev }
