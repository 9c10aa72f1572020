-- Takes what an attempt costs, all of it or nothing: the local limiter's arithmetic, to the nanosecond.
-- KEYS[1]: the key's state.
-- ARGV: what the attempt costs, the whole burst, what the key is known to owe at least (two each); milliseconds to keep state
-- that has passed; the time (two), or Redis' own.
-- Returns {1, now, arrival time before, and after, what was given back so far}, or {0, how long to wait}; two numbers each.

local LATE = 1

local charge_s, charge_n = argument(1)
local whole_s, whole_n = argument(3)
local debt_s, debt_n = argument(5)
local keep = tonumber(ARGV[7])
local now_s, now_n = clock(8)

local state, s, n, refunded_s, refunded_n, until_s, until_n = load()
s, n = subtract(s, n, now_s, now_n)
if is_longer(s, n, debt_s, debt_n) then
    debt_s, debt_n = s, n
end
if is_longer(debt_s, debt_n, whole_s + LATE, whole_n) then
    -- Nobody can have taken that much: the clock went back, or the quota was larger until now.
    debt_s, debt_n = whole_s, whole_n
end

local function put(s, n)
    local text = text_of(s, n, refunded_s, refunded_n, until_s, until_n)
    -- What is unchanged need not go to Redis' own replicas.
    if text ~= state and is_longer(s, n, now_s, now_n) then
        local last_s, last_n = s, n
        if is_longer(until_s, until_n, s, n) then
            last_s, last_n = until_s, until_n
        end
        save(text, last_s, last_n, now_s, now_n, keep)
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
return {1, now_s, now_n, before_s, before_n, after_s, after_n, refunded_s, refunded_n}
