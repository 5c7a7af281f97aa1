-- For scripts that tell the readers of a room whether it has lost data, after room.lua.

-- 1 = the indices of the room disagree, so that some of them are lost; 0 = they agree.
local function torn()
  local metas, users = redis.call('HLEN', META), redis.call('HLEN', MEMBERS)
  local whole = redis.call('SCARD', CONNS) == metas and redis.call('ZCARD', LAST_SEEN) == metas and (users == 0) == (metas == 0)
  return whole and 0 or 1
end
