-- What the scripts share. A time or a span is two numbers, whole seconds and nanoseconds: a double does not hold the nanoseconds
-- since 1970.
local BILLION = 1000000000

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

local function shorter(s, n, other_s, other_n)
    if is_longer(s, n, other_s, other_n) then
        return other_s, other_n
    end
    return s, n
end

-- The time that was given, or Redis' own.
local function clock(i)
    local s, n = argument(i)
    if not s then
        local time = redis.call('TIME')
        s, n = tonumber(time[1]), tonumber(time[2]) * 1000
    end
    return s, n
end

-- A key's state, "seconds.nanoseconds" each, parted by spaces: its arrival time; and if something was given back after which others
-- had been granted, all of that added up, and the latest arrival time that a refund brought forward. What is not ours is as nothing.
local function load()
    local text = redis.call('GET', KEYS[1])
    local number = '(%d*)%.?(%d*)'
    local a, b, c, d, e, f = string.match(text or '', '^' .. number .. ' ?' .. number .. ' ?' .. number .. '$')
    return text, tonumber(a) or 0, tonumber(b) or 0, tonumber(c) or 0, tonumber(d) or 0, tonumber(e) or 0, tonumber(f) or 0
end

local function text_of(s, n, refunded_s, refunded_n, until_s, until_n)
    local text = string.format('%.0f.%09.0f', s, n)
    if is_longer(refunded_s, refunded_n, 0, 0) then
        text = text .. string.format(' %.0f.%09.0f %.0f.%09.0f', refunded_s, refunded_n, until_s, until_n)
    end
    return text
end

-- Sets the state for as long as it matters, and milliseconds more.
local function save(text, s, n, now_s, now_n, more)
    local left_s, left_n = subtract(s, n, now_s, now_n)
    local milliseconds = left_s * 1000 + math.ceil(left_n / 1000000) + more
    redis.call('SET', KEYS[1], text, 'PX', string.format('%.0f', milliseconds))
end

