-- Reads a room: a small one in one step, a large one part by part.
--
-- KEYS    as in room.lua
-- ARGV    1 where to go on, '0' = at the beginning, 2 members that are read in one step
-- RETURNS {revision, TIME in ms, number of users, conn_meta as pairs, last_seen as pairs, id of the server process,
--         where to go on, '0' = nowhere, revision with which the counter began (0 = long ago), 1 = some indices are lost,
--         number of connections}

local cursor, limit = ARGV[1], tonumber(ARGV[2])

local metas, seen
if cursor == '0' and redis.call('HLEN', META) <= limit then
  metas, seen = redis.call('HGETALL', META), redis.call('ZRANGE', LAST_SEEN, 0, -1, 'WITHSCORES')
else
  local some_less = math.max(1, limit - math.floor(limit / 16)) -- a step gives up to a few more than that
  local part = redis.call('HSCAN', META, cursor, 'COUNT', some_less)
  cursor, metas, seen = part[1], part[2], {}
  for i = 1, #metas, 2 do
    seen[i], seen[i + 1] = metas[i], redis.call('ZSCORE', LAST_SEEN, metas[i]) or ''
  end
end
return { stored_revision(), now_text(), redis.call('HLEN', MEMBERS), metas, seen, server_id(), cursor, stored_origin(), torn(),
  redis.call('HLEN', META) }
