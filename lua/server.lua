-- For scripts that notice that Redis has lost data.

-- Names this server process: another one after a restart or a fail-over. '' where that is not to be known.
local function server_id()
  if not memo.server then
    local info = redis.pcall('INFO', 'server')
    memo.server = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
  end
  return memo.server
end
