-- Claims rooms that are due, so that one reaper at a time looks at each.
--
-- KEYS    1 active_rooms
-- ARGV    1 ms that the claim lasts, 2 how many rooms at most, 3 also rooms that are due in more than so many ms, as after
--         the clock fell back ('' = no such rooms)
-- RETURNS {the claim's score, {room, its score before, …}}

local index, lease, limit, latest = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', index, '-inf', digits(now), 'WITHSCORES', 'LIMIT', 0, limit)
if #due == 0 and latest then
  due = redis.call('ZRANGEBYSCORE', index, '(' .. digits(now + latest), '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
end
local claim = string.format('%.1f', now + lease + 0.5)
for i = 1, #due, 2 do redis.call('ZADD', index, claim, due[i]) end
return { claim, due }
