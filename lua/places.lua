-- Reads where a user is.
--
-- KEYS    1 the user's index
-- RETURNS {TIME in ms, id of the server process, connection and room, …}

local answer = redis.call('HKEYS', KEYS[1])
table.insert(answer, 1, server_id())
table.insert(answer, 1, digits(now_ms()))
return answer
