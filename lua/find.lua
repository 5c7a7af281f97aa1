-- Reads some connections of a room in one step.
--
-- KEYS    as in room.lua
-- ARGV    connections
-- RETURNS {value of conn_meta, last heartbeat in ms, …} in the order of ARGV, with '' for what is not there

local answer = {}
for i = 1, #ARGV do
  answer[2 * i - 1] = redis.call('HGET', META, ARGV[i]) or ''
  answer[2 * i] = redis.call('ZSCORE', LAST_SEEN, ARGV[i]) or ''
end
return answer
