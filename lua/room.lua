-- Shared by all scripts of a room, after base.lua.
--
-- KEYS 1 conn_meta, 2 members, 3 last_seen, 4 rev, 5 conns, 6 origin, 7… the hashes of the connections at work.
-- ARGV of those that publish: 1 channel, 2 PUBLISH or SPUBLISH, 3 the room's literal, 4 highest revision known.
--
-- A value of conn_meta:
--   {"epoch":E,"rev":R,"node":"N","userLen":L,"userId":<literal of L bytes>,"state":<JSON>}
-- The client's JSON is opaque: it is cut out and written back as bytes, never decoded. A member with a device has
-- ,"deviceId":<literal> behind the state, and so has a message: nodes of 0.9 take it for a part of the state, and pass it on.
--
-- Revisions, epochs and times stay the text that they come as, except where they are reckoned with: a number that becomes
-- text costs as much as a small command.
--
-- Scripts check first and write then: the hash, the indices, and conn_meta last. A key of another type so stops a script
-- before conn_meta has changed and before anything is published. The caller then runs rebuild.lua, which builds the indices
-- anew from conn_meta, and the script once more.

local META, MEMBERS, LAST_SEEN, REV, CONNS, ORIGIN
local CHANNEL, PUBLISH, ROOM, KNOWN

function enter()
  META, MEMBERS, LAST_SEEN, REV, CONNS, ORIGIN = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
  CHANNEL, PUBLISH, ROOM, KNOWN = ARGV[1], ARGV[2], ARGV[3], revision(ARGV[4])
end

local HELD = '-' -- the node of a connection that is held back
local EMPTY_ROOM_TTL = 3600000 -- ms that the counter of an empty room is kept at most
local LEAST_EMPTY_ROOM_TTL = 60000 -- and at least; leastCounterLife in Go is the same
local ORIGIN_TTL = '3600000' -- ms that it is kept where the counter began, from when a room is no longer empty
local META_PATTERN = '^{"epoch":(%d+),"rev":(%d+),"node":"([^"]*)","userLen":(%d+),"userId":()'

-- The text behind a JSON literal in which only quote and backslash are escaped.
local function unquote(literal)
  local text = string.sub(literal, 2, -2)
  if not string.find(text, '\\', 1, true) then return text end
  return (string.gsub(text, '\\(.)', '%1'))
end

-- The literal of the device in a value of conn_meta, nil if the member has none. A state, which is an object, does not end with
-- a quote; and in a literal a quote is never without a backslash, so the last place that looks like the beginning is it.
local function device_in(value)
  if string.byte(value, -2) ~= 34 then return nil end
  return string.match(value, '^.*,"deviceId":(".*")}$')
end

-- A value of conn_meta taken apart; nil if it is not one of ours.
local function parse_meta(value)
  if not value then return nil end
  local epoch, rev, node, length, start = string.match(value, META_PATTERN)
  if not epoch then return nil end
  local literal = string.sub(value, start, start + length - 1)
  return {
    epoch = epoch, rev = rev, node = node, literal = literal, user = unquote(literal),
    value = value, behind = start + length, device = device_in(value),
  }
end

-- The member in conn_meta, nil if there is none. Where conns has it nevertheless, conn_meta was lost or spoilt, and the counts of the
-- users do not agree with it: the script ends, and its caller rebuilds the indices. Call it before the first write.
local function member(conn)
  local m = parse_meta(redis.call('HGET', META, conn))
  if not m and redis.call('SISMEMBER', CONNS, conn) == 1 then error({ err = 'TORN conn_meta is without a member' }) end
  return m
end

-- The state in a value that was taken apart.
local function state_of(m)
  local behind = m.device and #',"deviceId":' + #m.device or 0
  return string.sub(m.value, m.behind + 9, -2 - behind) -- behind ,"state":
end

local function device_part(m)
  return m.device and ',"deviceId":' .. m.device or ''
end

local function meta_value(m)
  return '{"epoch":' .. m.epoch .. ',"rev":' .. m.rev .. ',"node":"' .. m.node .. '","userLen":' .. #m.literal ..
    ',"userId":' .. m.literal .. ',"state":' .. m.state .. device_part(m) .. '}'
end

local tell = nil -- a function that is told what publish publishes

-- Publishes one change of the connection. m has what its event tells of the member; reason and state may be nil.
local function publish(prev, rev, now, user_conns, type, conn, m, reason, state)
  redis.call(PUBLISH, CHANNEL,
    '{"prev":' .. prev .. ',"rev":' .. rev .. ',"ts":' .. now .. ',"epoch":' .. m.epoch .. ',"userConns":' .. user_conns ..
    ',"type":"' .. type .. '","connId":"' .. conn .. '","userId":' .. m.literal .. ',"roomId":' .. ROOM ..
    (reason and ',"reason":"' .. reason .. '"' or '') .. ',"state":' .. (state or 'null') .. device_part(m) .. '}')
  if tell then tell(rev, now, user_conns, type, conn, m, reason) end
end

local function stored_revision()
  return revision(redis.call('GET', REV))
end

-- The revision of the next change: above what is stored, above what the caller knows, and not behind the clock.
local function next_revision(prev, now)
  local least = math.max(prev, KNOWN) + 1
  if least <= tonumber(now) then return now end
  return digits(least)
end

-- Takes the next revision, and gives the one before as well; empty: the room has no members. It comes after all reads and before all other writes: where
-- Redis refuses a write for want of memory, it refuses this one, and nothing has changed.
--
-- A counter that is missing or spoilt, below what the caller knows, or kept for ever though the room is empty shows that data were lost,
-- or that the room is new. The key origin tells the readers of the room, who otherwise see no more than a counter that rose.
-- A room that empties shortens the life of origin (see expire_counter), so a room that fills again restores it.
local function advance(now, empty)
  local prev, lost
  if empty then
    prev = redis.call('GET', REV)
    redis.call('SET', REV, now, 'KEEPTTL')
    lost = redis.call('PERSIST', REV) == 0
  else
    prev = redis.call('GETSET', REV, now) -- one command where nothing is ahead of the clock
  end
  prev = revision(prev)
  local rev = next_revision(prev, now)
  if rev ~= now then redis.call('SET', REV, rev) end
  if lost or prev == '0' or tonumber(KNOWN) > tonumber(prev) then
    redis.call('SET', ORIGIN, rev, 'PX', ORIGIN_TTL)
  elseif empty then
    redis.call('PEXPIRE', ORIGIN, ORIGIN_TTL)
  end
  return prev, rev
end

-- The revision with which the room's counter began, or went on after it had lost some; '0' if that was long ago.
local function stored_origin()
  local stored = redis.pcall('GET', ORIGIN) -- a table if it is of another type
  return type(stored) == 'string' and tonumber(stored) and stored or '0'
end

-- Lets the counter of a room that has emptied expire, and origin with it: after as long as the counter has lived, within the
-- limits above. A room that lived shortly so leaves its counter behind for a short time only. Where origin is gone, the
-- counter has lived for longer than the upper limit.
--
-- The counter stays until the clock is LEAST_EMPTY_ROOM_TTL past rev, also where rev is ahead of the clock. A counter that
-- begins anew, at the clock, is therefore above the old one. The readers of the room rely on this distance: see room_expired.go.
local function expire_counter(rev, now)
  local age = now - revision(stored_origin())
  local ahead = math.max(0, rev - now)
  local life = digits(math.min(EMPTY_ROOM_TTL, ahead + math.max(LEAST_EMPTY_ROOM_TTL, age)))
  redis.call('PEXPIRE', REV, life)
  redis.call('PEXPIRE', ORIGIN, life)
end

-- Writes all of a connection but its user's count and conn_meta. In the hash, what a heartbeat reads and writes is first, because Redis looks for it from
-- the beginning.
local function write_conn(hash, conn, room_id, m, seen, ttl)
  redis.call('HSET', hash, 'epoch', m.epoch, 'rev', m.rev, 'last_seen_ms', seen,
    'conn_id', conn, 'user_id', m.user, 'room_id', room_id, 'state', m.state)
  redis.call('PEXPIRE', hash, ttl)
  redis.call('SADD', CONNS, conn)
  redis.call('ZADD', LAST_SEEN, seen, conn)
end

-- The value of a fence, which keeps incarnations up to this epoch out. As a number it is the epoch, with a fraction if the
-- member was replaced and not kicked, and with another one if it was kicked and its node is to end the connection as well. To nodes that
-- do not know of fractions it is that epoch, too.
local function fence_value(epoch, reason, ends)
  return epoch .. (reason == 'replaced' and '.5' or ends and '.25' or '')
end

-- The epoch of a fence that says that the connection is to end, nil if it does not.
local function fence_end(fence)
  local epoch = type(fence) == 'string' and string.match(fence, '^(%d+)%.25$')
  return epoch and tonumber(epoch) or nil
end

-- Takes one connection off a user's count and returns what is left.
local function release_user(user)
  local left = redis.call('HINCRBY', MEMBERS, user, '-1')
  if left > 0 then return left end
  redis.call('HDEL', MEMBERS, user)
  return 0
end
