-- The beginning of every script. One EVALSHA carries the calls of one caller or of several: KEYS holds the keys of all calls
-- one after another, ARGV for each call the number of its keys, the number of its arguments, and these. What a script does
-- for one call is its function run, which finds KEYS and ARGV as its own. The answers come as a list, in the order of the
-- calls; a call that failed has {'error', what} and leaves the others alone.

local all_keys, all_args = KEYS, ARGV
local KEYS, ARGV = {}, {}
local enter = function() end -- called before each run
local memo = {} -- what one call may leave to those after it

-- Redis' clock in milliseconds, as text: what is only stored and told need not become a number and text again. It stands
-- still for all calls.
local function now_text()
  if not memo.now then
    local time = redis.call('TIME')
    memo.now = time[1] .. string.sub('00000' .. time[2], -6, -4)
  end
  return memo.now
end
