// Package lock is an owned, renewed lock in Redis, whose waiters are woken rather
// than poll.
//
// It is not for correctness. Redis may lose a lock (a flush, a failover to a
// replica that lagged, an eviction), and a holder may be suspended for longer
// than its lock lives. Who must be the only one needs a claim, which is a
// compare-and-set in JetStream; this lock spares the others the race for it, and
// everything must stay right without it. So it has no fencing number, and no holder
// is told that it lost it: the revision on which a claim is made refuses all but one.
//
// Invariants: as Redis sees it, a name has at most one owner; only the owner renews
// or releases; a Redis that is away costs an Acquire about one Timeout, and all of
// them together one Timeout per Cooldown.
package lock

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nuid"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// ErrUnavailable says that Redis could not be asked or gave no sensible answer:
// it is down, slow, read-only, full, loading, or the key holds something that is
// no lock. The caller goes on without the lock.
var ErrUnavailable = errors.New("lock is unavailable")

// Options of a Locker; the zero value is good.
type Options struct {
	// Prefix begins the names of all keys and channels. Default "zoho:".
	Prefix string
	// TTL is how long a lock outlives its holder. Too short loses it to a pause
	// of the process; too long makes the others wait for a dead one. Default 15 s.
	TTL time.Duration
	// Timeout bounds one exchange with Redis. Too short takes a slow Redis for a
	// dead one; too long is what every caller pays when it is dead. Default 300 ms.
	Timeout time.Duration
	// Cooldown is for how long, after a fault, Redis is taken for away without
	// being asked. Default 1 s.
	Cooldown time.Duration
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// Locker hands out locks. It is safe for concurrent use and needs no closing:
// it keeps nothing open while nobody holds a lock or waits for one.
type Locker struct {
	client  redis.UniversalClient
	options Options
	circuit circuit
	bell    bell
}

// Client returns a Redis client for locks and counters: redis://, rediss:// or
// unix://; a cluster by further addresses (?addr=…), a Sentinel group by
// ?master_name=…. It never retries by itself and gives up after 300 ms, which
// the URL may change (?read_timeout=500ms). It connects when it is first used.
// A secure that is not nil brings the authorities and the certificate of
// rediss://. The error shows no part of the URL, which may hold a password: the
// library's own would, where the password has a slash that isn't escaped.
func Client(rawURL string, secure ...*tls.Config) (redis.UniversalClient, error) {
	parsed, err := url.Parse(rawURL)
	if err != nil {
		return nil, errURL
	}
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch query := parsed.Query(); {
	case query.Has("master_name"):
		o, err := redis.ParseFailoverURL(rawURL)
		if err != nil {
			return nil, errURL
		}
		o.MaxRetries, o.DialerRetries, o.DisableIdentity, o.ContextTimeoutEnabled = -1, 1, true, true
		impatient(&o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout, &o.PoolTimeout)
		o.ReadBufferSize, o.WriteBufferSize = bufferSize, bufferSize
		with(&o.TLSConfig, secure)
		return redis.NewFailoverClient(o), nil
	case query.Has("addr"):
		o, err := redis.ParseClusterURL(rawURL)
		if err != nil {
			return nil, errURL
		}
		o.MaxRetries, o.DialerRetries, o.DisableIdentity, o.ContextTimeoutEnabled = -1, 1, true, true
		impatient(&o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout, &o.PoolTimeout)
		o.ReadBufferSize, o.WriteBufferSize = bufferSize, bufferSize
		o.MaintNotificationsConfig = quiet
		with(&o.TLSConfig, secure)
		return redis.NewClusterClient(o), nil
	default:
		o, err := redis.ParseURL(rawURL)
		if err != nil {
			return nil, errURL
		}
		o.MaxRetries, o.DialerRetries, o.DisableIdentity, o.ContextTimeoutEnabled = -1, 1, true, true
		impatient(&o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout, &o.PoolTimeout)
		o.ReadBufferSize, o.WriteBufferSize = bufferSize, bufferSize
		o.MaintNotificationsConfig = quiet
		with(&o.TLSConfig, secure)
		return redis.NewClient(o), nil
	}
}

var errURL = errors.New("redis URL: can't be read; write it like redis://user:password@host:6379/0, " +
	"percent-encode user and password, and see which options go-redis takes after a ?")

// with adds the authorities and certificates to a configuration that is for TLS.
func with(config **tls.Config, secure []*tls.Config) {
	if *config == nil || len(secure) == 0 || secure[0] == nil {
		return
	}
	merged := (*config).Clone()
	merged.RootCAs, merged.Certificates = secure[0].RootCAs, secure[0].Certificates
	*config = merged
}

// bufferSize holds each command and answer of locks and counters. The library's
// own 32 KiB, twice for each connection, are a MiB with its pool of 20.
const bufferSize = 4 << 10

// impatient sets the timeouts that the URL doesn't.
func impatient(timeouts ...*time.Duration) {
	for _, timeout := range timeouts {
		*timeout = cmp.Or(*timeout, 300*time.Millisecond)
	}
}

// New returns a Locker. The client must observe the deadline of a context
// (ContextTimeoutEnabled) and not retry, as that of Client does; otherwise
// Timeout does not hold.
func New(client redis.UniversalClient, options Options) *Locker {
	options.Prefix = cmp.Or(options.Prefix, "zoho:")
	options.TTL = cmp.Or(options.TTL, 15*time.Second)
	options.Timeout = cmp.Or(options.Timeout, 300*time.Millisecond)
	options.Cooldown = cmp.Or(options.Cooldown, time.Second)
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	l := &Locker{client: client, options: options}
	l.circuit.cooldown = options.Cooldown
	l.bell = bell{client: client, channel: options.Prefix + "released", timeout: options.Timeout}
	return l
}

// Check goes through a lock's life once, with all that a holder and a waiter ask of
// Redis, and returns what it refuses. A worker would not notice some of that: a
// release that isn't heard of only has others wait longer. It ends with ctx.
func (l *Locker) Check(ctx context.Context, name string) error {
	held, err := l.Acquire(ctx, name)
	if err != nil {
		return err
	}
	defer held.Release()
	if _, err := l.try(ctx, name, nuid.Next()); err != nil { // as a waiter does
		return err
	}
	ear := l.client.Subscribe(ctx, l.bell.channel)
	defer func() { _ = ear.Close() }()
	if _, err := ear.Receive(ctx); err != nil {
		return fmt.Errorf("subscribe to %s: %w", l.bell.channel, err)
	}
	if _, err := l.keep(ctx, name, held.nonce); err != nil {
		return err
	}
	if err := l.free(ctx, name, held.nonce); err != nil {
		return err
	}
	for {
		heard, err := ear.Receive(ctx)
		if err != nil {
			return fmt.Errorf("hear of the release of lock %s: %w", name, err)
		}
		if m, ok := heard.(*redis.Message); ok && m.Payload == name {
			return nil
		}
	}
}

// Ping takes a lock that ends by itself at once, in one exchange, and returns why it
// can't: so that it is known, and in the log, when Redis goes and comes back, also while
// nobody needs a lock. A Redis that only answers, as a replica does, is none.
func (l *Locker) Ping(ctx context.Context) error {
	return l.ask(ctx, "ping", "ping", func(ctx context.Context) error {
		return acquireScript.Run(ctx, l.client, l.keys("ping"), nuid.Next(), 1).Err()
	})
}

// Lock is a lock that is held, until Release or until Redis loses it.
type Lock struct {
	locker *Locker
	name   string
	nonce  string
	stop   context.CancelFunc // ends the renewal
	once   sync.Once
	done   chan struct{} // closed when the renewal has ended
}

// Acquire waits until the name's lock is free and takes it. The error is the
// cause of ctx where that ended first, else ErrUnavailable, wrapped.
func (l *Locker) Acquire(ctx context.Context, name string) (*Lock, error) {
	nonce := nuid.Next()
	left, err := l.try(ctx, name, nonce)
	if err != nil {
		return nil, err
	}
	if left == 0 {
		return l.hold(name, nonce), nil
	}
	// The ear is on the channel before the next try, so that no release falls
	// in between. If it can't be, the timer has to do.
	rung, leave := l.bell.listen(ctx, name)
	defer leave()
	for {
		left, err := l.try(ctx, name, nonce)
		if err != nil {
			return nil, err
		}
		if left == 0 {
			return l.hold(name, nonce), nil
		}
		// A wait ends at the latest with the holder's time; a third of a life is
		// for a connection that is dead without saying so.
		timer := time.NewTimer(min(left, l.options.TTL/3))
		select {
		case <-rung:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("acquire lock %s: %w", name, context.Cause(ctx))
		}
		timer.Stop()
	}
}

// try asks once. It returns for how long another can still have the lock: 0 where it
// was free, and is the nonce's now.
func (l *Locker) try(ctx context.Context, name, nonce string) (left time.Duration, err error) {
	err = l.exchange(ctx, "acquire", name, func(ctx context.Context) error {
		reply, err := acquireScript.Run(ctx, l.client, l.keys(name), nonce, l.options.TTL.Milliseconds()).Result()
		if ms, held := reply.(int64); held {
			left = time.Duration(ms+1) * time.Millisecond
			// A lock of ours lives for about a TTL: what lives longer, or for ever, is none.
			if ms < 0 || left > 4*l.options.TTL {
				err = errNoLock
			}
		}
		return err
	})
	if err != nil && !errors.Is(err, errOpen) && !errors.Is(err, errNoLock) {
		// It may have been granted although nobody said so.
		go l.unlock(name, nonce)
	}
	return left, err
}

var (
	errNoLock = errors.New("the key holds something that is no lock")
	errOpen   = errors.New("no Redis a moment ago")
)

// exchange does one exchange with Redis, unless it is away.
func (l *Locker) exchange(ctx context.Context, verb, name string, ask func(context.Context) error) error {
	if !l.circuit.allow() {
		return fmt.Errorf("%s lock %s: %w: %w", verb, name, ErrUnavailable, errOpen)
	}
	return l.ask(ctx, verb, name, ask)
}

// ask does one exchange with Redis within Timeout. What goes wrong is
// ErrUnavailable, and remembered where it is Redis itself that is away; the end
// of the caller's ctx is nobody's fault.
func (l *Locker) ask(ctx context.Context, verb, name string, ask func(context.Context) error) error {
	asking, cancel := context.WithTimeout(ctx, l.options.Timeout)
	defer cancel()
	err := ask(asking)
	switch {
	case err == nil:
		l.answered()
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s lock %s: %w", verb, name, context.Cause(ctx))
	case errors.Is(err, errNoLock), strings.Contains(err.Error(), "WRONGTYPE"):
		l.answered() // only this key
	case l.circuit.open():
		l.options.Logger.Warn("redis is unavailable, going on without locks", "err", err)
	}
	return fmt.Errorf("%s lock %s: %w: %w", verb, name, ErrUnavailable, err)
}

// answered takes in that Redis is there.
func (l *Locker) answered() {
	if l.circuit.close() {
		l.options.Logger.Info("redis is back, locks are taken again")
	}
}

// hold begins the life of a lock that was granted.
func (l *Locker) hold(name, nonce string) *Lock {
	ctx, stop := context.WithCancel(context.Background())
	k := &Lock{locker: l, name: name, nonce: nonce, stop: stop, done: make(chan struct{})}
	go k.renew(ctx)
	return k
}

// renew keeps the lock at a third of its life, until it is released or lost.
func (k *Lock) renew(ctx context.Context) {
	defer close(k.done)
	tick := time.NewTicker(k.locker.options.TTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if kept, err := k.locker.keep(ctx, k.name, k.nonce); err == nil && !kept {
			return
		}
	}
}

// keep has the lock live anew, if it is still the nonce's.
func (l *Locker) keep(ctx context.Context, name, nonce string) (kept bool, err error) {
	err = l.exchange(ctx, "renew", name, func(ctx context.Context) (err error) {
		kept, err = renewScript.Run(ctx, l.client, l.keys(name), nonce, l.options.TTL.Milliseconds()).Bool()
		return err
	})
	return kept, err
}

// Release gives the lock back and wakes who waits for it. It takes about a
// Timeout at most; where Redis is away the lock ends by itself. It may be called
// more than once.
func (k *Lock) Release() {
	k.once.Do(func() {
		k.stop()
		<-k.done
		k.locker.unlock(k.name, k.nonce)
	})
}

// unlock frees the lock if the nonce owns it, with a context of its own: the
// holder's is often over by then.
func (l *Locker) unlock(name, nonce string) {
	if err := l.free(context.Background(), name, nonce); err != nil {
		l.options.Logger.Debug("lock is left to run out", "err", err)
	}
}

func (l *Locker) free(ctx context.Context, name, nonce string) error {
	return l.exchange(ctx, "release", name, func(ctx context.Context) error {
		return releaseScript.Run(ctx, l.client, l.keys(name), nonce, l.bell.channel, name).Err()
	})
}

func (l *Locker) keys(name string) []string { return []string{l.options.Prefix + "lock:" + name} }
