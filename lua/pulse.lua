-- Tells whether a room's data are still there.
--
-- KEYS    as in room.lua
-- RETURNS {revision, id of the server process, revision with which the counter began (0 = long ago), 1 = some indices are lost}

return { stored_revision(), server_id(), stored_origin(), torn() }
