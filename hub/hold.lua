-- The peer wants no call of this account and group for a while; a longer hold that is already there stays.
--
-- KEYS[1]  hold     as in admit.lua
-- ARGV[1]  for      microseconds from now
--
-- Returns {microseconds left}.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local till = math.max(now + ARGV[1], tonumber(redis.call('GET', KEYS[1]) or 0))
redis.call('SET', KEYS[1], string.format('%.0f', till), 'PX', math.ceil((till - now) / 1000) + 1000)
return {till - now}
