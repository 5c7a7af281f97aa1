-- Removes connections from a room, each with one leave.
--
-- KEYS    as in room.lua, with the hash of each connection, then held where there is a grace, then devices
-- ARGV    as in room.lua, then 5 reason, 6 lookback in ms: removes only who is silent for so long ('' = whatever its age),
--         7 TIME in ms after which this call does nothing ('' = no such time), 8 the node whose connections they are
--         ('' = any), then for each connection its id and the highest epoch to remove ('' = any)
-- RETURNS {the room's revision, connection, user, epoch, reason, connection, …} of those removed; {'late'}

local FIRST = 9
local devices, held_key = KEYS[#KEYS], #KEYS - 7 > (#ARGV - FIRST + 1) / 2 and KEYS[#KEYS - 1] or nil
local reason, lookback, not_after, node = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]

local function silent(conn, now)
  return not lookback or (tonumber(redis.call('ZSCORE', LAST_SEEN, conn)) or 0) <= now - lookback
end

-- A hold that ran out is reported as 'disconnected', not as 'timeout'.
local function reason_for(m)
  return m.node == HELD and reason == 'timeout' and 'disconnected' or reason
end

-- Another incarnation than was meant, or one that another node has taken over.
local function spared(m, newest)
  return newest and m and tonumber(m.epoch) > newest or node ~= '' and not (m and m.node == node)
end

local now = now_text()
if not_after and tonumber(now) > not_after then return { 'late' } end
if held_key then redis.call('ZCARD', held_key) end
local metas = {}
for i = FIRST, #ARGV, 2 do
  metas[i] = member(ARGV[i])
  check_devices(devices, metas[i])
end
local prev, rev
local removed = {}
for i = FIRST, #ARGV, 2 do
  local conn, newest, hash = ARGV[i], tonumber(ARGV[i + 1]), KEYS[7 + (i - FIRST) / 2]
  local m = metas[i]
  if silent(conn, now) and not spared(m, newest) then
    if m and rev then
      rev = next_revision(prev, now)
    elseif m then
      prev, rev = advance(now)
    end
    forget(conn, hash)
    if m then
      if m.node == HELD and held_key then redis.call('ZREM', held_key, held_member(m.user, conn)) end
      drop_device(devices, m, conn)
      local user_conns = release_user(m.user)
      redis.call('HDEL', META, conn)
      local why = reason_for(m)
      publish(prev, rev, now, user_conns, 'leave', conn, m, why)
      prev = rev
      local n = #removed
      removed[n + 1], removed[n + 2], removed[n + 3], removed[n + 4] = conn, m.user, m.epoch, why
    else
      redis.call('HDEL', META, conn) -- it may be something that is not ours
    end
  end
end
if not rev then return { stored_revision() } end
if removed[5] then redis.call('SET', REV, rev) end
if redis.call('HLEN', META) == 0 then expire_counter(rev, now) end
table.insert(removed, 1, rev)
return removed
