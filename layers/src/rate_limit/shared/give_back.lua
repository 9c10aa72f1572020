-- Compare-and-set: the key's arrival time becomes ARGV[2] if it is ARGV[1]. Returns whether it was.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
