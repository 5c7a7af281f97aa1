-- For scripts that notice that Redis has lost data.

-- Names this server process: another one after a restart or a fail-over. '' where that is not to be known.
local function server_id()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
end
