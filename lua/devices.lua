-- Shared by the scripts that know of devices, after held.lua.
--
-- A user has one member with a device in a room. The next join with it has the member before leave, as 'replaced'.
--
-- The key devices is a hash: user and device → connection. It may name connections that are not in the room any more, or
-- have another device: conn_meta decides.

local function device_field(m)
  return m.user .. '\1' .. m.device -- ids hold no control characters
end

-- The other member with the user and the device of m, in the form of parse_meta and with the connection's id; nil if there is none.
local function twin_of(devices, m, conn)
  local other = m.device and redis.call('HGET', devices, device_field(m))
  local twin = other and other ~= conn and parse_meta(redis.call('HGET', META, other))
  if not twin or twin.user ~= m.user or twin.device ~= m.device then return nil end
  twin.conn, twin.why = other, 'replaced'
  return twin
end

local function note_device(devices, m, conn, life)
  if not m.device then return end
  redis.call('HSET', devices, device_field(m), conn)
  redis.call('PEXPIRE', devices, life)
end

-- Fails before the first write where the key is of another type.
local function check_devices(devices, m)
  if m and m.device then redis.call('HLEN', devices) end
end

local function drop_device(devices, m, conn)
  if m.device and redis.call('HGET', devices, device_field(m)) == conn then redis.call('HDEL', devices, device_field(m)) end
end

-- The connections in ARGV from one place on, by id, with their keys: each has a hash and a fence in KEYS.
local function known_conns(first_arg, first_key)
  local known = {}
  for i = first_arg, #ARGV do
    local at = first_key + 2 * (i - first_arg)
    known[ARGV[i]] = { hash = KEYS[at], fence = KEYS[at + 1] }
  end
  return known
end

-- The connections of a list as an answer if one of them is not known, else nil.
local function unknown_conns(list, known)
  local answer, all = { 'others' }, true
  for i, m in ipairs(list) do
    answer[i + 1] = m.conn
    all = all and known[m.conn]
  end
  return not all and answer or nil
end

-- Has members leave right after the change of a room that has this revision, and gives the revision after it. Who was replaced
-- is fenced off, as after a kick.
local function see_off(list, known, rev, now, devices, held_key, life)
  for _, m in ipairs(list) do
    local keys, prev = known[m.conn], rev
    rev = digits(rev + 1)
    forget(m.conn, keys.hash)
    if m.why == 'replaced' then redis.call('SET', keys.fence, fence_value(m.epoch, m.why), 'PX', life) end
    if held_key then redis.call('ZREM', held_key, held_member(m.user, m.conn)) end
    drop_device(devices, m, m.conn)
    redis.call('HDEL', META, m.conn)
    publish(prev, rev, now, release_user(m.user), 'leave', m.conn, m, m.why)
  end
  if list[1] then redis.call('SET', REV, rev) end
  return rev
end
