-- Reads where a user is.
--
-- KEYS    1 the user's index, 2 when the user was last seen
-- RETURNS {TIME in ms, id of the server process, when the user was last seen in ms ('' = not known), connection and room, …}

local answer = redis.call('HKEYS', KEYS[1])
table.insert(answer, 1, redis.call('GET', KEYS[2]) or '')
table.insert(answer, 1, server_id())
table.insert(answer, 1, digits(now_ms()))
return answer
