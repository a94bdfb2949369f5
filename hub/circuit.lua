-- What a call's end does to its circuit. One verb per call; each is atomic and harmless when it comes late.
-- Times are microseconds of Redis' own clock.
--
-- KEYS[1]  circuit  hash: state (absent: closed | open | half-open), since, until = may be probed then, opened = times
--                   in a row, why, probe = id of the running probe, probe_until, good = good probes, good_by = id of
--                   the last one, window = begin of the counting window, calls = calls in it, suspect = until then no
--                   call starts, as one ran into its deadline (only while `failed` is there)
-- KEYS[2]  failed   set of distinct failures since the last success
-- KEYS[3]  recent   set of distinct failures in the counting window
-- KEYS[4]  index    set of the store's circuits that have something to tell
-- ARGV[1]  verb     fail | reset | lift | open | good | close | release
-- ARGV[2]  call     id of the call
-- ARGV[3]  member   this circuit's name in the index
-- fail:    ARGV[4]  what failed (operation and key), ARGV[5] failures that open, ARGV[6] length of the window,
--          ARGV[7]  how long failures are remembered, ARGV[8] how long the circuit is suspect; 0: no longer than it is
--          returns {failures that count}: distinct ones since the last success; at least ARGV[5] when two fifths of the
--          calls in the window failed, twice ARGV[5] distinct ones among them (alternating failures)
-- lift:    the peer answers: suspicion ends, failures stay counted
-- open:    ARGV[4]  first open time, ARGV[5] longest, ARGV[6] why
--          returns {open time}, {0} when it was not ours to open
-- good:    returns {good probes}    close: ARGV[4] good probes that close; returns {1} when it closed now, else {0}

local function whole(number) return string.format('%.0f', number) end

local verb, call = ARGV[1], ARGV[2]
local state = redis.call('HGET', KEYS[1], 'state')
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local probing = state == 'half-open' and redis.call('HGET', KEYS[1], 'probe') == call

if verb == 'fail' then
  if state then return {0} end
  local window = tonumber(redis.call('HGET', KEYS[1], 'window') or 0)
  if now - window >= tonumber(ARGV[6]) then
    redis.call('HSET', KEYS[1], 'window', whole(now), 'calls', 1)
    redis.call('DEL', KEYS[3])
  end
  redis.call('SADD', KEYS[2], ARGV[4])
  redis.call('SADD', KEYS[3], ARGV[4])
  if tonumber(ARGV[8]) > 0 then
    local suspect = tonumber(redis.call('HGET', KEYS[1], 'suspect') or 0)
    redis.call('HSET', KEYS[1], 'suspect', whole(math.max(suspect, now + ARGV[8])))
  end
  local life = math.ceil(ARGV[7] / 1000)
  for at = 1, 3 do redis.call('PEXPIRE', KEYS[at], life) end
  local enough = tonumber(ARGV[5])
  local failed, recent = redis.call('SCARD', KEYS[2]), redis.call('SCARD', KEYS[3])
  local calls = tonumber(redis.call('HGET', KEYS[1], 'calls'))
  if recent >= 2 * enough and 5 * recent >= 2 * calls then return {math.max(failed, enough)} end
  return {failed}
end

if verb == 'reset' then
  if not state then
    redis.call('DEL', KEYS[2])
    redis.call('HDEL', KEYS[1], 'suspect')
  end
  return {0}
end

if verb == 'lift' then
  redis.call('HDEL', KEYS[1], 'suspect')
  return {0}
end

if verb == 'open' then
  if state == 'open' or (state == 'half-open' and not probing) then return {0} end
  local opened = tonumber(redis.call('HGET', KEYS[1], 'opened') or 0)
  local length = math.min(ARGV[4] * 2 ^ math.min(opened, 30), tonumber(ARGV[5]))
  redis.call('HSET', KEYS[1], 'state', 'open', 'until', whole(now + length), 'opened', opened + 1, 'why', ARGV[6],
    'good', 0)
  redis.call('HSETNX', KEYS[1], 'since', whole(now))
  redis.call('HDEL', KEYS[1], 'probe', 'probe_until', 'window', 'calls', 'good_by', 'suspect')
  redis.call('DEL', KEYS[2], KEYS[3])
  redis.call('SADD', KEYS[4], ARGV[3])
  -- Nobody asked for a day after it could be probed: forgotten, which is the same as closed.
  redis.call('PEXPIRE', KEYS[1], math.ceil(length / 1000) + 86400000)
  redis.call('PEXPIRE', KEYS[4], math.ceil(length / 1000) + 86400000)
  return {length}
end

if verb == 'good' then
  if not probing then return {0} end
  redis.call('HSET', KEYS[1], 'probe_until', 0, 'good_by', call)
  redis.call('HDEL', KEYS[1], 'probe')
  return {redis.call('HINCRBY', KEYS[1], 'good', 1)}
end

if verb == 'close' then
  if state ~= 'half-open' or redis.call('HGET', KEYS[1], 'good_by') ~= call then return {0} end
  if tonumber(redis.call('HGET', KEYS[1], 'good')) < tonumber(ARGV[4]) then return {0} end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('SREM', KEYS[4], ARGV[3])
  return {1}
end

if verb == 'release' then
  if probing then
    redis.call('HSET', KEYS[1], 'probe_until', 0)
    redis.call('HDEL', KEYS[1], 'probe')
  end
  return {0}
end

return redis.error_reply('unknown verb ' .. verb)
