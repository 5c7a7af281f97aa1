-- Claims nodes whose lease is over, so that one reaper at a time removes their connections. From then on such a node is
-- lost: its score has a fraction, which no renewal makes whole.
--
-- KEYS    1 leases
-- ARGV    1 ms that the claim lasts, 2 TIME in ms after which this call does nothing
-- RETURNS {node, …}

local leases, claim, not_after = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])

local now = now_ms()
if now > not_after then return {} end
local over = redis.call('ZRANGEBYSCORE', leases, '-inf', digits(now))
for _, node in ipairs(over) do redis.call('ZADD', leases, string.format('%.1f', now + claim + 0.5), node) end
return over
