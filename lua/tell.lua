-- Goes before a script that publishes where joins and leaves are to be told to somebody else as well: the script is then the
-- function change, and its answer gets one more element,
--   {users before, users after, type, revision, TIME in ms, connections of the user, connection, user, reason, type, …}
-- if there are any. A rejoin is a join; the number of users tells whether somebody came.

local told

function tell(rev, now, user_conns, type, conn, m, reason)
  if type == 'update' then return end
  for _, value in ipairs({ type, rev, now, tostring(user_conns), conn, m.user, reason or '' }) do
    told[#told + 1] = value
  end
end

local function with_told(change)
  told = { redis.call('HLEN', MEMBERS), 0 }
  local answer = change()
  if #told == 2 then return answer end
  told[2] = redis.call('HLEN', MEMBERS)
  answer[#answer + 1] = told
  return answer
end
