-- Gives back what of an attempt is not earned back: the local limiter's arithmetic, to the nanosecond.
-- KEYS[1]: the key's state.
-- ARGV: of the attempt, the arrival time before and after, when it was granted, and what had been given back until then (two each);
-- milliseconds to keep state that has passed; the time (two), or Redis' own.
-- Returns whether anything was given back.

local before_s, before_n = argument(1)
local end_s, end_n = argument(3)
local granted_s, granted_n = argument(5)
local then_s, then_n = argument(7)
local keep = tonumber(ARGV[9])
local now_s, now_n = clock(10)

local _, s, n, refunded_s, refunded_n, until_s, until_n = load()

if is_longer(s, n, until_s, until_n) then
    until_s, until_n = s, n
end
local since_s, since_n = subtract(refunded_s, refunded_n, then_s, then_n)
local last_s, last_n = subtract(end_s, end_n, since_s, since_n)
-- Nothing was granted since, or all of that was given back. Nobody's part then ends sooner for this.
local is_last = s == last_s and n == last_n

-- Otherwise the attempt's part ends sooner by what those before it had back since: at most all that anybody had, and what stood before it.
local sooner_s, sooner_n = shorter(since_s, since_n, subtract(before_s, before_n, granted_s, granted_n))
local back_s, back_n = last_s, last_n
if not is_last then
    back_s, back_n = subtract(end_s, end_n, sooner_s, sooner_n)
end
back_s, back_n = subtract(back_s, back_n, now_s, now_n)
back_s, back_n = shorter(back_s, back_n, subtract(end_s, end_n, before_s, before_n))
back_s, back_n = shorter(back_s, back_n, subtract(s, n, now_s, now_n))
if not is_longer(back_s, back_n, 0, 0) then
    return 0
end

if not is_last then
    refunded_s, refunded_n = add(refunded_s, refunded_n, back_s, back_n)
end
s, n = subtract(s, n, back_s, back_n)
save(text_of(s, n, refunded_s, refunded_n, until_s, until_n), until_s, until_n, now_s, now_n, keep)
return 1
