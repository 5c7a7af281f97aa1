-- Reads a room in one step.
--
-- KEYS    as in room.lua
-- RETURNS {revision, TIME in ms, number of users, conn_meta as pairs, last_seen as pairs, id of the server process}

redis.call('SCARD', CONNS)
return {
  stored_revision(), now_text(), redis.call('HLEN', MEMBERS), redis.call('HGETALL', META),
  redis.call('ZRANGE', LAST_SEEN, 0, -1, 'WITHSCORES'), server_id(),
}
