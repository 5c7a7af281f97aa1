-- Shared by all scripts.

-- A whole number in full: by itself 2^41 would print as 2.1990232555e+12. In two halves, because %d may have 32 bits and
-- %.0f is slow.
local function digits(n)
  if n < 1e9 then return string.format('%d', n) end
  return string.format('%d%09d', math.floor(n / 1e9), n % 1e9)
end

-- A room's revision as the scripts write it, '0' for anything else. It has at most 15 digits: far from 2^53, from which on Lua
-- and JavaScript do not hold every whole number, and further from what the clock gives than any room counts.
local function revision(text)
  return text and #text <= 15 and string.find(text, '^[1-9]%d*$') and text or '0'
end

local function now_ms()
  return tonumber(now_text())
end

-- Deletes what stands in the place of a key of this type, and tells whether there was something.
local function ensure_type(key, kind)
  local stored = redis.call('TYPE', key).ok
  if stored == kind or stored == 'none' then return false end
  redis.call('DEL', key)
  return true
end
