-- Finds the connections of a node in a part of a room.
--
-- KEYS    as in room.lua
-- ARGV    1 node, 2 where to go on, '0' = at the beginning, 3 members that are read in one step
-- RETURNS {TIME in ms, where to go on, '0' = nowhere, connection, epoch, connection, epoch, …}

local node, cursor, limit = ARGV[1], ARGV[2], ARGV[3]

stored_revision() -- fails while the indices are being rebuilt
local part = redis.call('HSCAN', META, cursor, 'COUNT', limit)
local answer, metas = { now_text(), part[1] }, part[2]
for i = 1, #metas, 2 do
  local epoch, _, owner = string.match(metas[i + 1], META_PATTERN)
  if owner == node then
    answer[#answer + 1] = metas[i]
    answer[#answer + 1] = epoch
  end
end
return answer
