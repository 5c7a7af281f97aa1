-- Finds who has been silent for too long in a room.
--
-- KEYS    as in room.lua, then devices
-- ARGV    1 lookback in ms, 2 how many connections at most, 3 ms that devices last from now on
-- RETURNS {TIME in ms, last heartbeat in ms of the most silent connection ('' = empty room), 'more' when it is to be called
--         again at once, else '', connection, …}

local AHEAD = 500 -- heartbeats in the future that are set right in one step

local lookback, limit = tonumber(ARGV[1]), ARGV[2]

stored_revision() -- fails while the indices are being rebuilt
redis.call('PEXPIRE', KEYS[7], ARGV[3])
local now = now_ms()
-- A heartbeat in the future, from before the clock fell back, counts as one of now.
local ahead = redis.call('ZRANGEBYSCORE', LAST_SEEN, '(' .. digits(now), '+inf', 'LIMIT', 0, AHEAD)
for _, conn in ipairs(ahead) do redis.call('ZADD', LAST_SEEN, digits(now), conn) end
local oldest = redis.call('ZRANGE', LAST_SEEN, 0, 0, 'WITHSCORES')
local answer = { digits(now), oldest[2] or '', #ahead == AHEAD and 'more' or '' }
for _, conn in ipairs(redis.call('ZRANGEBYSCORE', LAST_SEEN, '-inf', digits(now - lookback), 'LIMIT', 0, limit)) do
  answer[#answer + 1] = conn
end
return answer
