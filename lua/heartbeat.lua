-- Refreshes a connection, and replaces its state when one is given.
--
-- KEYS    as in room.lua, with the connection's hash
-- ARGV    1 connection, 2 its epoch, 3 its own revision, 4 TTL in ms, 5 highest revision known; with a state also
--         6 state, 7 channel, 8 PUBLISH or SPUBLISH, 9 the room's literal
-- RETURNS {'ok', the connection's revision, the room's revision}; {'missing'} when the room or the hash is without it;
--         {'epoch', stored} or {'rev', stored, state} when another incarnation or another state is there.
--         Only 'ok' has written.

local conn, epoch, own_rev, ttl, floor = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local state = ARGV[6]
local hash = KEYS[6]

local function refuse(stored)
  if not stored[1] or not stored[2] then return { 'missing' } end
  if stored[1] ~= epoch then return { 'epoch', stored[1] } end
  if stored[2] ~= own_rev then return { 'rev', stored[2], redis.call('HGET', hash, 'state') } end
end

local function touch(now)
  redis.call('HSET', hash, 'last_seen_ms', digits(now))
  redis.call('ZADD', LAST_SEEN, digits(now), conn)
  redis.call('PEXPIRE', hash, ttl)
end

local function patch(prev, now)
  local room = { channel = ARGV[7], publish = ARGV[8], literal = ARGV[9] }
  local m = parse_meta(redis.call('HGET', META, conn))
  if not m or redis.call('SISMEMBER', CONNS, conn) == 0 then return { 'missing' } end
  local user_conns = redis.call('HGET', MEMBERS, m.user)
  if not user_conns then return { 'missing' } end
  local rev = next_revision(prev, floor, now)
  m.rev, m.state = digits(rev), state
  redis.call('HSET', hash, 'state', state, 'rev', m.rev)
  redis.call('HSET', META, conn, meta_value(m))
  redis.call('SET', REV, m.rev)
  touch(now)
  publish(room, { prev = prev, rev = rev, ts = now, epoch = epoch, user_conns = user_conns, type = 'update', conn = conn,
    literal = m.literal, state = state })
  return { 'ok', m.rev, m.rev }
end

return run(function()
  local refusal = refuse(redis.call('HMGET', hash, 'epoch', 'rev'))
  if refusal then return refusal end
  if not redis.call('ZSCORE', LAST_SEEN, conn) then return { 'missing' } end
  local prev = stored_revision()
  local now = now_ms()
  if state then return patch(prev, now) end
  touch(now)
  return { 'ok', own_rev, digits(prev) }
end)
