-- May this call start now? Circuit, hold and token in one step, so that all processes agree.
-- Times are microseconds of Redis' own clock. Nothing is written unless the call may start or has to wait for the limit.
--
-- KEYS[1]  circuit  hash: state, until, probe, probe_until, window, calls, suspect, … (see circuit.lua)
-- KEYS[2]  failed   set of distinct failures since the last success
-- KEYS[3]  hold     time until which the peer wants no call of this account and group
-- KEYS[4]  limit    hash: tat = when the bucket is full again (GCRA), denied = when somebody was last sent away,
--                   pressed = the last moment for which somebody waited, back = when the last load sent away returns
-- KEYS[5]  waiting  hash: store -> "when:rank" of the last time it had to wait
-- KEYS[6]  parts    hash: ':store' -> its own clock: ahead of now by what it got beyond its part
-- KEYS[7]  kept     hash: "ticket@store" -> "calls:until:rank" that a claim keeps for itself
-- KEYS[8]  sent     sorted set: call -> when it starts, of all that count in the peer's window
-- ARGV[1]  call     id of this call; a probe is known by it
-- ARGV[2]  probe    how long a probe may take before another may be sent
-- ARGV[3]  interval between two calls; 0: no limit
-- ARGV[4]  depth    of the bucket: burst × interval
-- ARGV[5]  horizon  how far ahead this rank may book
-- ARGV[6]  rank     order of service, 0 goes first
-- ARGV[7]  spare    what this rank must leave in the bucket
-- ARGV[8]  store
-- ARGV[9]  ticket   of the claim that this call belongs to, or empty
-- ARGV[10] turn     how long a store that had to wait counts as waiting
-- ARGV[11] near     how far ahead a store may book that had its part
-- ARGV[12] waited   how long this call has waited already
-- ARGV[13] count    calls that may start in any window; 0: nobody counts them
-- ARGV[14] window   its length
-- ARGV[15] arrears  how much that was missed while somebody waited may be made up for
-- ARGV[16] queue    how much later than its token a load that is sent away may be told to return
-- ARGV[17] time     0: Redis' own clock; tests bring theirs
--
-- Returns {1 go | 2 circuit open | 3 held | 4 limit | 5 suspect, wait, failures so far, 1 when this call is the probe}.

local function whole(number) return string.format('%.0f', number) end

local now = tonumber(ARGV[17])
if now == 0 then
  local clock = redis.call('TIME')
  now = clock[1] * 1000000 + clock[2]
end

local circuit = redis.call('HMGET', KEYS[1], 'state', 'until', 'probe_until', 'window', 'suspect')
local probing = 0
if circuit[1] == 'open' then
  local till = tonumber(circuit[2])
  if now < till then return {2, till - now, 0, 0} end
  probing = 1
elseif circuit[1] == 'half-open' then
  local till = tonumber(circuit[3] or 0)
  if now < till then return {2, till - now, 0, 1} end
  probing = 1
elseif circuit[5] then
  -- A success of an older version's worker empties `failed` and knows nothing of suspicion.
  local till = tonumber(circuit[5])
  if now < till and redis.call('EXISTS', KEYS[2]) == 1 then return {5, till - now, 0, 0} end
end

local hold = tonumber(redis.call('GET', KEYS[3]) or 0)
if now < hold then return {3, hold - now, 0, 0} end

local interval, depth, horizon = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local rank, spare, store, ticket = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]
local wait = 0
if interval > 0 then
  local turn = tonumber(ARGV[10])
  local count, window = tonumber(ARGV[13]), tonumber(ARGV[14])
  local arrears, queue = tonumber(ARGV[15]), tonumber(ARGV[16])
  local limit = redis.call('HMGET', KEYS[4], 'tat', 'denied', 'pressed', 'back')
  local tat, denied, pressed = tonumber(limit[1] or 0), tonumber(limit[2] or 0), tonumber(limit[3] or 0)
  if now - pressed > arrears + interval then arrears = 0 end  -- a quiet time misses nothing

  local own = math.max(now, tonumber(redis.call('HGET', KEYS[6], ':' .. store) or 0))
  local quiet = own <= now
  local near, waited = tonumber(ARGV[11]), tonumber(ARGV[12])

  local kept, mine = 0, nil
  local reservations = redis.call('HGETALL', KEYS[7])
  for at = 1, #reservations, 2 do
    local calls, till, their_rank = string.match(reservations[at + 1], '^(%d+):(%d+):(%d+)$')
    if tonumber(till) <= now then
      redis.call('HDEL', KEYS[7], reservations[at])
    elseif reservations[at] == ticket then
      mine = {tonumber(calls), till, their_rank}
    elseif tonumber(their_rank) <= rank and (not quiet or string.match(reservations[at], '@(.*)$') == store) then
      kept = kept + tonumber(calls)
    end
  end
  if mine then kept, spare, horizon = 0, 0, math.max(horizon, 1000000 - waited) end
  if not quiet then horizon = math.min(horizon, near + waited / 4) end

  wait = math.max(tat, now - math.max(spare, arrears)) + interval + kept * interval - depth - now + spare
  if count > 0 then
    local place = math.max(0, count - 1 - kept)
    local oldest = redis.call('ZREVRANGE', KEYS[8], place, place, 'WITHSCORES')
    if oldest[2] then wait = math.max(wait, tonumber(oldest[2]) + window - now) end
  end

  local others, over = 0, false
  if now - denied < turn then
    local waiting = redis.call('HGETALL', KEYS[5])
    for at = 1, #waiting, 2 do
      local since, their_rank = string.match(waiting[at + 1], '^(%d+):(%d+)$')
      if now - tonumber(since) >= turn then
        redis.call('HDEL', KEYS[5], waiting[at])
      elseif waiting[at] ~= store and tonumber(their_rank) <= rank then
        others = others + 1
      end
    end
    if others > 0 and own - now > near then
      over = true
      wait = math.max(wait, own - now - near)
    end
  end

  if over or wait > math.max(horizon, 0) then
    local last = redis.call('HGET', KEYS[5], store)
    local best = rank
    if last then
      local since, their_rank = string.match(last, '^(%d+):(%d+)$')
      if now - tonumber(since) < turn then best = math.min(best, tonumber(their_rank)) end
    end
    redis.call('HSET', KEYS[5], store, whole(now) .. ':' .. best)
    redis.call('HSET', KEYS[4], 'denied', whole(now), 'pressed', whole(math.max(pressed, now + math.max(wait, 0))))
    if near == 0 then  -- who may not book returns after the others, not together with them to take the same token
      local back = math.min(tonumber(limit[4] or 0) + interval, now + wait + queue)
      if back > now + wait and back - now + waited <= 1000000 then wait = back - now end
      redis.call('HSET', KEYS[4], 'back', whole(now + wait))
    end
    redis.call('PEXPIRE', KEYS[5], math.ceil(turn / 500))
    redis.call('PEXPIRE', KEYS[4], math.ceil((math.max(tat - now, 0) + turn) / 1000) + 1000)
    return {4, math.ceil(wait), 0, 0}
  end

  wait = math.max(0, math.ceil(wait))
  tat = math.max(tat, now - arrears) + interval
  redis.call('HSET', KEYS[4], 'tat', whole(tat))
  if wait > 0 then redis.call('HSET', KEYS[4], 'pressed', whole(math.max(pressed, now + wait))) end
  if count > 0 then
    redis.call('ZADD', KEYS[8], whole(now + wait), ARGV[1])
    redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', whole(now - window))
    redis.call('PEXPIRE', KEYS[8], math.ceil((wait + window) / 1000) + 9000)
  end
  redis.call('PEXPIRE', KEYS[4], math.ceil((tat - now + turn) / 1000) + 1000)
  redis.call('HSET', KEYS[6], ':' .. store, whole(own + interval * (others + 1)))
  redis.call('PEXPIRE', KEYS[6], math.ceil(math.max(tat - now, own - now) / 1000) + math.ceil(turn / 500))
  if mine then
    if mine[1] > 1 then
      redis.call('HSET', KEYS[7], ticket, (mine[1] - 1) .. ':' .. mine[2] .. ':' .. mine[3])
    else
      redis.call('HDEL', KEYS[7], ticket)
    end
  end
end

if probing == 1 then
  redis.call('HSET', KEYS[1], 'state', 'half-open', 'probe', ARGV[1], 'probe_until', whole(now + wait + ARGV[2]))
  return {1, wait, 0, 1}
end
if circuit[4] then redis.call('HINCRBY', KEYS[1], 'calls', 1) end
return {1, wait, redis.call('SCARD', KEYS[2]), 0}
