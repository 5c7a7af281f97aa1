-- Finds who has been silent for too long in a room.
--
-- KEYS    as in room.lua
-- ARGV    1 lookback in ms, 2 how many connections at most
-- RETURNS {TIME in ms, last heartbeat in ms of the most silent connection ('' = empty room), connection, …}

local lookback, limit = tonumber(ARGV[1]), ARGV[2]

local now = now_ms()
-- A heartbeat in the future, from before the clock fell back, counts as one of now.
for _, conn in ipairs(redis.call('ZRANGEBYSCORE', LAST_SEEN, '(' .. digits(now), '+inf')) do
  redis.call('ZADD', LAST_SEEN, digits(now), conn)
end
local oldest = redis.call('ZRANGE', LAST_SEEN, 0, 0, 'WITHSCORES')
local answer = { digits(now), oldest[2] or '' }
for _, conn in ipairs(redis.call('ZRANGEBYSCORE', LAST_SEEN, '-inf', digits(now - lookback), 'LIMIT', 0, limit)) do
  answer[#answer + 1] = conn
end
return answer
