-- Removes connections from a room, each with one leave.
--
-- KEYS    as in room.lua, with the hash of each connection
-- ARGV    1 reason, 2 lookback in ms: removes only who is silent for so long ('' = whatever its age), 3 TIME in ms after
--         which this call does nothing ('' = no such time), 4 highest revision known, 5 channel, 6 PUBLISH or
--         SPUBLISH, 7 the room's literal, then for each connection its id and the highest epoch to remove ('' = any)
-- RETURNS {the room's revision, connection, user, epoch, connection, user, epoch, …} of those removed; {'late'}

local FIRST = 8
local reason, lookback, not_after, floor = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local room = { channel = ARGV[5], publish = ARGV[6], literal = ARGV[7] }

local function silent(conn, now)
  return not lookback or (tonumber(redis.call('ZSCORE', LAST_SEEN, conn)) or 0) <= now - lookback
end

local function forget(conn, hash)
  redis.call('SREM', CONNS, conn)
  redis.call('ZREM', LAST_SEEN, conn)
  redis.call('DEL', hash)
end

local now = now_ms()
if not_after and now > not_after then return { 'late' } end
local prev = stored_revision()
local removed = { digits(prev) }
for i = FIRST, #ARGV, 2 do
  local conn, newest, hash = ARGV[i], tonumber(ARGV[i + 1]), KEYS[6 + (i - FIRST) / 2]
  local m = parse_meta(redis.call('HGET', META, conn))
  if silent(conn, now) and not (m and newest and tonumber(m.epoch) > newest) then
    forget(conn, hash)
    if m then
      local rev = next_revision(prev, floor, now)
      local user_conns = release_user(m.user)
      redis.call('HDEL', META, conn)
      publish(room, { prev = prev, rev = rev, ts = now, epoch = m.epoch, user_conns = user_conns, type = 'leave',
        conn = conn, literal = m.literal, reason = reason })
      prev = rev
      for _, value in ipairs({ conn, m.user, m.epoch }) do removed[#removed + 1] = value end
    else
      redis.call('HDEL', META, conn) -- it may be something that is not ours
    end
  end
end
if #removed == 1 then return removed end
removed[1] = digits(prev)
if redis.call('HLEN', META) > 0 then
  redis.call('SET', REV, removed[1])
else
  redis.call('SET', REV, removed[1], 'PX', EMPTY_ROOM_TTL)
end
return removed
