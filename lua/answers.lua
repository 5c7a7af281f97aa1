-- The end of every script, after its function run.

local function part(list, behind, size)
  if size <= 1000 then return { unpack(list, behind + 1, behind + size) } end
  local copy = {}
  for i = 1, size do copy[i] = list[behind + i] end
  return copy
end

local answers, count, keys, args = {}, 0, 0, 0
local function run_all()
  while args < #all_args do
    local of_keys, of_args = tonumber(all_args[args + 1]), tonumber(all_args[args + 2])
    KEYS, ARGV = part(all_keys, keys, of_keys), part(all_args, args + 2, of_args)
    keys, args, count = keys + of_keys, args + 2 + of_args, count + 1
    enter()
    answers[count] = run() or false
  end
end
repeat
  local worked, why = pcall(run_all)
  if not worked then answers[count] = { 'error', type(why) == 'table' and why.err or tostring(why) } end
until worked
return answers
