-- Refreshes a connection and replaces its state.
--
-- KEYS    as in room.lua, with the connection's hash
-- ARGV    1 connection, 2 its epoch, 3 its own revision, 4 TTL in ms, 5 highest revision known, 6 state, 7 channel,
--         8 PUBLISH or SPUBLISH, 9 the room's literal
-- RETURNS as heartbeat.lua

local conn, epoch, own_rev, ttl, floor, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local room = { channel = ARGV[7], publish = ARGV[8], literal = ARGV[9] }
local hash = KEYS[6]

local stored = redis.call('HMGET', hash, 'epoch', 'rev')
if not stored[1] or not stored[2] then return { 'missing' } end
if stored[1] ~= epoch then return { 'epoch', stored[1] } end
if stored[2] ~= own_rev then return { 'rev', stored[2], redis.call('HGET', hash, 'state') } end

local m = parse_meta(redis.call('HGET', META, conn))
local user_conns = m and redis.call('HGET', MEMBERS, m.user)
if not user_conns then return { 'missing' } end

local prev = stored_revision()
local now = now_ms()
-- It changes nothing where the connection is missing, and where it was heard of in this very millisecond.
if redis.call('ZADD', LAST_SEEN, 'XX', 'CH', digits(now), conn) == 0 and not redis.call('ZSCORE', LAST_SEEN, conn) then
  return { 'missing' }
end
local rev = next_revision(prev, floor, now)
m.rev, m.state = digits(rev), state
redis.call('HSET', hash, 'state', state, 'rev', m.rev, 'last_seen_ms', digits(now))
redis.call('PEXPIRE', hash, ttl)
redis.call('SET', REV, m.rev)
redis.call('HSET', META, conn, meta_value(m))
publish(room, { prev = prev, rev = rev, ts = now, epoch = epoch, user_conns = user_conns, type = 'update', conn = conn,
  literal = m.literal, state = state })
return { 'ok', m.rev, m.rev }
