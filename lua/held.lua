-- Shared by the scripts that know of held-back connections, after room.lua.
--
-- A connection is held back when it broke and its leave waits for the grace. In conn_meta its node is HELD; its last_seen
-- is a lookback before the deadline, so that a reaper finds it then.
--
-- The key held is a sorted set of user and connection, all with score 0. It may name connections that are not held back any
-- more: conn_meta decides.

local function held_member(user, conn)
  return user .. '\1' .. conn -- ids hold no control characters
end

-- Those of a user that are held back, but not this connection, in the form of parse_meta and with the connection's id.
local function held_of(held, user, but)
  local list = {}
  local members = redis.call('ZRANGEBYLEX', held, '[' .. held_member(user, ''), '(' .. user .. '\2')
  for _, member in ipairs(members) do
    local conn = string.sub(member, #user + 2)
    local m = conn ~= but and parse_meta(redis.call('HGET', META, conn))
    if m and m.node == HELD and m.user == user then
      m.conn = conn
      list[#list + 1] = m
    end
  end
  return list
end

-- Deletes all of a connection but its user's count and conn_meta.
local function forget(conn, hash)
  redis.call('SREM', CONNS, conn)
  redis.call('ZREM', LAST_SEEN, conn)
  redis.call('DEL', hash)
end
