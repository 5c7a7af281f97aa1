-- Deletes an outer index that is of another type.
--
-- KEYS    1 the index
-- ARGV    1 the type that it ought to have
-- RETURNS nothing

ensure_type(KEYS[1], ARGV[1])
