package lock

import "github.com/redis/go-redis/v9"

// The three steps of a lock's life, each of them one script, so that nobody
// comes in between. KEYS[1] is the lock, ARGV[1] the owner's nonce.

// acquireScript returns OK where the lock was free and is taken now, else for how many
// milliseconds its holder can still have it.
var acquireScript = redis.NewScript(`
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) or redis.call('PTTL', KEYS[1])
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
