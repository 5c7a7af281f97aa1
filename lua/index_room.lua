-- Makes sure that a reaper looks at a room in time. Called before a member of it is written.
--
-- KEYS    1 active_rooms
-- ARGV    1 room, 2 ms until its member may be overdue
-- RETURNS nothing
--
-- An entry with a fraction is claimed, or marked as empty, by a reaper: made whole, it is not what that reaper left.

local index, room, life = KEYS[1], ARGV[1], tonumber(ARGV[2])

local now = now_ms()
local due = tonumber(redis.call('ZSCORE', index, room))
if not due or due > now + life then
  redis.call('ZADD', index, digits(now + life), room)
elseif due ~= math.floor(due) then
  redis.call('ZADD', index, digits(now), room)
end
