-- A refund with a floor. Compare-and-set: the key's arrival time becomes ARGV[3, 4] if it is ARGV[1, 2], and if nothing was given back
-- but ARGV[5, 6]. Returns whether it was so.

local end_s, end_n = argument(1)
local restored_s, restored_n = argument(3)
local then_s, then_n = argument(5)

local state, s, n, refunded_s, refunded_n, until_s, until_n = load()
if not state or s ~= end_s or n ~= end_n or refunded_s ~= then_s or refunded_n ~= then_n then
    return 0
end
redis.call('SET', KEYS[1], text_of(restored_s, restored_n, refunded_s, refunded_n, until_s, until_n), 'KEEPTTL')
return 1
