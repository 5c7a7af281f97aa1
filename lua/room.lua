-- Shared by all scripts of a room, after base.lua.
--
-- KEYS 1 conn_meta, 2 members, 3 last_seen, 4 rev, 5 conns, 6… the hashes of the connections at work.
--
-- A value of conn_meta:
--   {"epoch":E,"rev":R,"node":"N","userLen":L,"userId":<literal of L bytes>,"state":<JSON>}
-- The client's JSON is last and opaque: it is cut out and written back as bytes, never decoded.
--
-- Scripts check first and write then: the hash, the indices, and conn_meta last. A key of another type so stops a script
-- before conn_meta has changed and before anything is published. The caller then runs mend.lua, which builds the indices
-- anew from conn_meta, and the script once more.

local META, MEMBERS, LAST_SEEN, REV, CONNS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local EMPTY_ROOM_TTL = 3600000 -- ms that the counter of an empty room is kept
local META_PATTERN = '^{"epoch":(%d+),"rev":(%d+),"node":"([%w_-]*)","userLen":(%d+),"userId":()'

-- The text behind a JSON literal in which only quote and backslash are escaped.
local function unquote(literal)
  return (string.gsub(string.sub(literal, 2, -2), '\\(.)', '%1'))
end

-- A value of conn_meta taken apart; nil if it is not one of ours.
local function parse_meta(value)
  local epoch, rev, node, length, start = string.match(value or '', META_PATTERN)
  if not epoch then return nil end
  local literal = string.sub(value, start, start + length - 1)
  return {
    epoch = epoch, rev = rev, node = node, literal = literal, user = unquote(literal),
    state = string.sub(value, start + length + string.len(',"state":'), -2),
  }
end

local function meta_value(m)
  return '{"epoch":' .. m.epoch .. ',"rev":' .. m.rev .. ',"node":"' .. m.node .. '","userLen":' .. #m.literal ..
    ',"userId":' .. m.literal .. ',"state":' .. m.state .. '}'
end

-- Publishes one change: e has prev, rev, ts, epoch, user_conns, type, conn, literal, reason, state.
local function publish(room, e)
  local reason = ''
  if e.reason then reason = ',"reason":"' .. e.reason .. '"' end
  redis.call(room.publish, room.channel,
    '{"prev":' .. digits(e.prev) .. ',"rev":' .. digits(e.rev) .. ',"ts":' .. digits(e.ts) .. ',"epoch":' .. e.epoch ..
    ',"userConns":' .. e.user_conns .. ',"type":"' .. e.type .. '","connId":"' .. e.conn .. '","userId":' .. e.literal ..
    ',"roomId":' .. room.literal .. reason .. ',"state":' .. (e.state or 'null') .. '}')
end

local function stored_revision()
  return tonumber(redis.call('GET', REV)) or 0
end

-- The revision of the next change: above what is stored, above what the caller knows, and not behind the clock.
local function next_revision(prev, floor, now)
  return math.max(prev + 1, floor + 1, now)
end

-- Writes all of a connection but its user's count and conn_meta. The hash is first: where Redis refuses a write for want of
-- memory, nothing has changed yet.
local function write_conn(hash, conn, room_id, m, seen, ttl)
  redis.call('HSET', hash, 'conn_id', conn, 'user_id', m.user, 'room_id', room_id,
    'last_seen_ms', digits(seen), 'epoch', m.epoch, 'rev', m.rev, 'node', m.node, 'state', m.state)
  redis.call('PEXPIRE', hash, ttl)
  redis.call('SADD', CONNS, conn)
  redis.call('ZADD', LAST_SEEN, digits(seen), conn)
end

-- Takes one connection off a user's count and returns what is left.
local function release_user(user)
  local left = redis.call('HINCRBY', MEMBERS, user, -1)
  if left > 0 then return left end
  redis.call('HDEL', MEMBERS, user)
  return 0
end
