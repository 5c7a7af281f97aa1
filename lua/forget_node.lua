-- Forgets a node: a lost one that has no connections any more, or one that stops.
--
-- KEYS    1 leases, 2 the node's rooms
-- ARGV    1 node
-- RETURNS nothing

redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
