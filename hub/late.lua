-- A call starts later than it was granted: it counts from then on in the peer's window.
--
-- KEYS[1]  sent     as in admit.lua
-- ARGV[1]  call     as in admit.lua
-- ARGV[2]  by       microseconds; 0: it has not started, and asks whether it must wait for others that were late
-- ARGV[3]  count    ARGV[4] window   as in admit.lua
--
-- Returns {microseconds by which it now starts later}.

local place = redis.call('ZRANK', KEYS[1], ARGV[1])
if not place then return {0} end
local starts, by = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])), tonumber(ARGV[2])
if by == 0 and place >= tonumber(ARGV[3]) then
  local oldest = redis.call('ZRANGE', KEYS[1], place - ARGV[3], place - ARGV[3], 'WITHSCORES')
  by = math.max(0, tonumber(oldest[2]) + ARGV[4] - starts)
end
if by > 0 then redis.call('ZADD', KEYS[1], string.format('%.0f', starts + by), ARGV[1]) end
return {by}
