-- Finds the connections of a node in a room.
--
-- KEYS    as in room.lua
-- ARGV    1 node
-- RETURNS {TIME in ms, connection, epoch, connection, epoch, …}

local node = ARGV[1]

local answer = { digits(now_ms()) }
local all = redis.call('HGETALL', META)
for i = 1, #all, 2 do
  local epoch, _, owner = string.match(all[i + 1], META_PATTERN)
  if owner == node then
    answer[#answer + 1] = all[i]
    answer[#answer + 1] = epoch
  end
end
return answer
