-- Keep room for a claim before it starts: how many of the wanted calls can start within the horizon?
-- The calls still take their tokens one by one (admit.lua); others leave room for what is kept.
--
-- KEYS[1]  hold     as in admit.lua
-- KEYS[2]  limit    as in admit.lua
-- KEYS[3]  kept     as in admit.lua
-- KEYS[4]  parts    as in admit.lua
-- KEYS[5]  circuits set of the store's circuits that have something to tell, as in circuit.lua
-- ARGV[1]  interval   ARGV[2] depth   ARGV[3] horizon   ARGV[4] rank   ARGV[5] spare   (as in admit.lua)
-- ARGV[6]  want     calls
-- ARGV[7]  ticket   under which they are kept
-- ARGV[8]  life     how long they are kept at most
-- ARGV[9]  store    one that had less than its part does not see what others keep
-- ARGV[10] brief    calls that take no longer are not worth keeping
--
-- A claim of one key costs as much as one of many, so room is given out by the quarter of what was wanted, or of all
-- that there is when that is less: never one call at a time as each token comes.
--
-- Returns {calls granted, wait until that many can be, circuits that have something to tell, 1 when kept}.

local function whole(number) return string.format('%.0f', number) end

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local circuits = redis.call('SCARD', KEYS[5])
local hold = tonumber(redis.call('GET', KEYS[1]) or 0)
if now < hold then return {0, hold - now, circuits, 0} end

local interval, depth, horizon = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local rank, spare, want = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if interval == 0 then return {want, 0, circuits, 0} end

local store = ARGV[9]
local quiet = tonumber(redis.call('HGET', KEYS[4], ':' .. store) or 0) <= now
local kept = 0
local reservations = redis.call('HGETALL', KEYS[3])
for at = 1, #reservations, 2 do
  local calls, till, their_rank = string.match(reservations[at + 1], '^(%d+):(%d+):(%d+)$')
  if tonumber(till) <= now then
    redis.call('HDEL', KEYS[3], reservations[at])
  elseif tonumber(their_rank) <= rank and (not quiet or string.match(reservations[at], '@(.*)$') == store) then
    kept = kept + tonumber(calls)
  end
end

local tat = tonumber(redis.call('HGET', KEYS[2], 'tat') or 0)
local free = depth + horizon - kept * interval - spare
local granted = math.min(want, math.floor((free - math.max(tat - now, 0)) / interval))
local least = math.max(1, math.min(math.ceil(want / 4), math.floor((depth + horizon - spare) / interval / 4)))
if granted < least then  -- one call finds a place in a bucket that has been full for a while, as in admit.lua
  local over = math.max(tat, now - spare) - now + least * interval - free
  if over > 0 then return {0, math.ceil(over), circuits, 0} end
  granted = least
end
if granted * interval <= tonumber(ARGV[10]) then return {granted, 0, circuits, 0} end
redis.call('HSET', KEYS[3], ARGV[7], granted .. ':' .. whole(now + ARGV[8]) .. ':' .. rank)
redis.call('PEXPIRE', KEYS[3], math.ceil(ARGV[8] / 1000) * 2)
return {granted, 0, circuits, 1}
