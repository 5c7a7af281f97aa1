-- Tells whether a room's data are still there.
--
-- KEYS    as in room.lua
-- RETURNS {revision, id of the server process}

return { stored_revision(), server_id() }
