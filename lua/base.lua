-- Shared by all scripts.

-- Whole numbers beyond 2^31 would print as 1.8e+12.
local function digits(n)
  return string.format('%.0f', n)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Deletes what stands in the place of a key of this type.
local function ensure_type(key, kind)
  local stored = redis.call('TYPE', key).ok
  if stored == kind or stored == 'none' then return end
  redis.call('DEL', key)
end
