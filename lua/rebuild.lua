-- Deletes keys of a room that are of another type. What the indices held is built anew from conn_meta, one part of the room
-- for each call, also where the indices disagree because some of them were lost.
--
-- Until that is done, a hash stands in the place of the room's counter. Every script that changes conn_meta, members or
-- conns reads the counter before it writes, so none of them runs on indices that are not whole: it fails, and its caller
-- goes on with it.
--
-- KEYS    as in room.lua, with the hashes of connections, then held where there is a grace, then devices
-- ARGV    1 1 = there is a grace, 2 members that are read in one step, 3 ms that devices last
-- RETURNS {'ok'}; {'more'} when it is to be called again

local has_held, limit, life = ARGV[1] == '1', ARGV[2], ARGV[3]
local held, devices = has_held and KEYS[#KEYS - 1], KEYS[#KEYS]

local function begin(counter)
  redis.call('DEL', REV, MEMBERS, CONNS)
  redis.call('HSET', REV, 'mends', 'metas', 'cursor', '0', 'counter', counter or '', 'highest', '0')
end

-- A connection may come twice: it is counted where conns was without it.
local function take(conn, value, now)
  local m = parse_meta(value)
  if not m then
    redis.call('HDEL', META, conn)
    redis.call('ZREM', LAST_SEEN, conn)
  elseif redis.call('SADD', CONNS, conn) == 1 then
    redis.call('HINCRBY', MEMBERS, m.user, 1)
    redis.call('ZADD', LAST_SEEN, 'NX', now, conn)
    note_device(devices, m, conn, life)
    if held and m.node == HELD then redis.call('ZADD', held, 0, held_member(m.user, conn)) end
    return tonumber(m.rev)
  end
  return 0
end

local function read_metas(cursor, highest)
  local part, now = redis.call('HSCAN', META, cursor, 'COUNT', limit), now_text()
  for i = 1, #part[2], 2 do highest = math.max(highest, take(part[2][i], part[2][i + 1], now)) end
  local done = part[1] == '0'
  redis.call('HSET', REV, 'mends', done and 'seen' or 'metas', 'cursor', part[1], 'highest', digits(highest))
  return done
end

-- Forgets heartbeats of connections that are not in the room.
local function read_seen(cursor)
  if redis.call('ZCARD', LAST_SEEN) == redis.call('HLEN', META) then return true end
  local part = redis.call('ZSCAN', LAST_SEEN, cursor, 'COUNT', limit)
  for i = 1, #part[2], 2 do
    if redis.call('HEXISTS', META, part[2][i]) == 0 then redis.call('ZREM', LAST_SEEN, part[2][i]) end
  end
  redis.call('HSET', REV, 'cursor', part[1])
  return part[1] == '0'
end

-- A lost counter goes on at the clock, not below any member. In a room that has lost its members it is not kept for ever.
local function finish()
  local counter, highest = unpack(redis.call('HMGET', REV, 'counter', 'highest'))
  if revision(counter) == '0' then counter = digits(math.max(now_ms(), tonumber(highest))) end
  redis.call('DEL', REV)
  redis.call('SET', REV, counter)
  redis.call('SET', ORIGIN, digits(now_ms()), 'PX', ORIGIN_TTL) -- members may be lost with a key of another type
  if redis.call('HLEN', META) == 0 then expire_counter(counter, now_ms()) end
end

local rebuilding = redis.call('TYPE', REV).ok == 'hash' and redis.call('HGET', REV, 'mends')
local kinds = { 'hash', 'hash', 'zset', rebuilding and 'hash' or 'string', 'set', 'string' }
kinds[#KEYS] = 'hash'
if held then kinds[#KEYS - 1] = 'zset' end
local spoilt = false
for i = 1, #KEYS do
  local deleted = ensure_type(KEYS[i], kinds[i] or 'hash')
  spoilt = spoilt or deleted and kinds[i]
end
if spoilt then
  begin(rebuilding and redis.call('HGET', REV, 'counter') or not rebuilding and redis.call('GET', REV))
elseif not rebuilding then
  if torn() == 0 then return { 'ok' } end
  begin(redis.call('GET', REV))
end
local stage, cursor, highest = unpack(redis.call('HMGET', REV, 'mends', 'cursor', 'highest'))
if stage == 'metas' then
  if not read_metas(cursor, tonumber(highest)) then return { 'more' } end
  cursor = '0'
end
if not read_seen(cursor) then return { 'more' } end
finish()
return { 'ok' }
