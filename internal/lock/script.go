package lock

import "github.com/redis/go-redis/v9"

// The three steps of a lock's life, each of them one script, so that nobody
// comes in between. KEYS[1] is the lock, ARGV[1] the owner's nonce.

// acquireScript returns {fence, 0}, or {0, milliseconds the holder has left}.
// The fence is the server's time in microseconds, or one more than the last one
// where that is later: so it grows also when the counter is lost. Lua's numbers
// are exact up to 2^53, which is the year 2255. The counter is read before
// anything is written, because a script that fails is not undone, and goes when
// nobody has used it for a day.
var acquireScript = redis.NewScript(`
local last = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {0, redis.call('PTTL', KEYS[1])}
end
local now = redis.call('TIME')
local fence = math.max(last + 1, now[1] * 1000000 + now[2])
redis.call('SET', KEYS[2], string.format('%.0f', fence), 'PX', 86400000)
return {fence, 0}
`)

// renewScript returns 1 if the lock is still the owner's, and lives anew.
var renewScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
`)

// releaseScript frees the lock if it is the owner's and says so on the channel.
var releaseScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('PUBLISH', ARGV[2], ARGV[3])
  return 1
end
return 0
`)
