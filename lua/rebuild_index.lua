-- Deletes outer indices that are of another type.
--
-- KEYS    1… the indices
-- ARGV    1… the type that each ought to have
-- RETURNS nothing

for i = 1, #KEYS do ensure_type(KEYS[i], ARGV[i]) end
