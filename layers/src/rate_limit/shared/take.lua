-- Takes what an attempt costs, all of it or nothing: the local limiter's arithmetic, to the nanosecond.
-- KEYS[1]: the key's arrival time, "seconds.nanoseconds"; none where it has passed.
-- ARGV: what the attempt costs, the whole burst, what the key is known to owe at least (two each); milliseconds to keep state
-- that has passed; the time (two), or Redis' own.
-- Returns {1, now, arrival time before, and after}, or {0, how long to wait}; two numbers each.

-- A time or a span is two numbers, whole seconds and nanoseconds: a double does not hold the nanoseconds since 1970.
local BILLION = 1000000000
local LATE = 1

local function argument(i)
    return tonumber(ARGV[i]), tonumber(ARGV[i + 1])
end

local function add(s, n, ds, dn)
    s, n = s + ds, n + dn
    if n >= BILLION then
        return s + 1, n - BILLION
    end
    return s, n
end

-- Nothing, where the second is longer.
local function subtract(s, n, ds, dn)
    s, n = s - ds, n - dn
    if n < 0 then
        s, n = s - 1, n + BILLION
    end
    if s < 0 then
        return 0, 0
    end
    return s, n
end

local function is_longer(s, n, than_s, than_n)
    return s > than_s or (s == than_s and n > than_n)
end

local charge_s, charge_n = argument(1)
local whole_s, whole_n = argument(3)
local debt_s, debt_n = argument(5)
local keep = tonumber(ARGV[7])
local now_s, now_n = argument(8)
if not now_s then
    local time = redis.call('TIME')
    now_s, now_n = tonumber(time[1]), tonumber(time[2]) * 1000
end

local state = redis.call('GET', KEYS[1])
if state then
    local s, n = string.match(state, '^(%d+)%.(%d+)$')
    -- What is not ours is written over.
    s, n = subtract(tonumber(s) or 0, tonumber(n) or 0, now_s, now_n)
    if is_longer(s, n, debt_s, debt_n) then
        debt_s, debt_n = s, n
    end
end
if is_longer(debt_s, debt_n, whole_s + LATE, whole_n) then
    -- Nobody can have taken that much: the clock went back, or the quota was larger until now.
    debt_s, debt_n = whole_s, whole_n
end

local function put(s, n)
    local text = string.format('%.0f.%09.0f', s, n)
    -- What is unchanged need not go to Redis' own replicas.
    if text ~= state and is_longer(s, n, now_s, now_n) then
        local left_s, left_n = subtract(s, n, now_s, now_n)
        local milliseconds = left_s * 1000 + math.ceil(left_n / 1000000) + keep
        redis.call('SET', KEYS[1], text, 'PX', string.format('%.0f', milliseconds))
    end
end

local before_s, before_n = add(now_s, now_n, debt_s, debt_n)
local owed_s, owed_n = add(debt_s, debt_n, charge_s, charge_n)
if is_longer(owed_s, owed_n, whole_s, whole_n) then
    -- Nothing new, unless the debt was cut or is news: then that must last, or the time we answer would not hold.
    put(before_s, before_n)
    local wait_s, wait_n = subtract(owed_s, owed_n, whole_s, whole_n)
    return {0, wait_s, wait_n}
end
local after_s, after_n = add(before_s, before_n, charge_s, charge_n)
put(after_s, after_n)
return {1, now_s, now_n, before_s, before_n, after_s, after_n}
