-- Counts a room in one step.
--
-- KEYS    as in room.lua
-- RETURNS {number of connections, number of users, revision}

return { redis.call('HLEN', META), redis.call('HLEN', MEMBERS), stored_revision() }
