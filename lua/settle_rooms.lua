-- Ends claims: each room gets its next time, or leaves the index. Whatever was changed since the claim stays.
--
-- KEYS    1 active_rooms
-- ARGV    1 the claim's score, then for each room its id and its next score ('' = leave the index)
-- RETURNS nothing

local index, claim = KEYS[1], tonumber(ARGV[1])

for i = 2, #ARGV, 2 do
  local room, next_score = ARGV[i], ARGV[i + 1]
  if tonumber(redis.call('ZSCORE', index, room)) == claim then
    if next_score == '' then
      redis.call('ZREM', index, room)
    else
      redis.call('ZADD', index, next_score, room)
    end
  end
end
