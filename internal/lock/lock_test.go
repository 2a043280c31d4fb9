package lock

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"zoho-worker/internal/lock/redistest"
)

// patience bounds what a test waits for; no test measures it.
const patience = time.Minute

// locker is one that has time for a Redis on a busy machine, where the options say
// nothing else.
func locker(t *testing.T, s *redistest.Server, options Options) *Locker {
	t.Helper()
	client, err := Client(s.URL + "?dial_timeout=3s&read_timeout=3s&write_timeout=3s&pool_timeout=3s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	options.Timeout = cmp.Or(options.Timeout, 3*time.Second)
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return New(client, options)
}

func acquire(t *testing.T, l *Locker, name string) *Lock {
	t.Helper()
	k, err := l.Acquire(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAcquireAndRelease(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	l := locker(t, s, Options{})
	first := acquire(t, l, "acme")
	other := acquire(t, l, "globex") // another name is another lock
	other.Release()
	ttl, err := s.Client().PTTL(t.Context(), "zoho:lock:acme").Result()
	if err != nil || ttl <= 0 || ttl > 15*time.Second {
		t.Fatalf("ttl %v, %v", ttl, err)
	}
	first.Release()
	first.Release()
	acquire(t, l, "acme").Release()
}

func TestReleaseWakesWaiters(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	const lockers, each = 4, 8
	var inside, count atomic.Int32
	// Whoever slept through a release would wait for a third of the holder's life.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for range lockers {
		l := locker(t, s, Options{TTL: 10 * patience})
		for range each {
			wg.Go(func() {
				k, err := l.Acquire(ctx, "acme")
				if err != nil {
					t.Error(err)
					return
				}
				defer k.Release()
				if inside.Add(1) != 1 {
					t.Error("two inside")
				}
				count.Add(1)
				inside.Add(-1)
			})
		}
	}
	wg.Wait()
	if count.Load() != lockers*each {
		t.Errorf("%d got the lock", count.Load())
	}
}

func TestWaiterStopsWithItsContext(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	l := locker(t, s, Options{})
	k := acquire(t, l, "acme")
	defer k.Release()
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	go cancel(reason)
	if _, err := l.Acquire(ctx, "acme"); !errors.Is(err, reason) || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	c := s.Client() // nobody waits any more, so nobody listens
	listening(t, c, 0)
}

// TestWaiterLearnsThatRedisDied: it does not wait for the holder's time to pass.
func TestWaiterLearnsThatRedisDied(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	l := locker(t, s, Options{TTL: time.Hour})
	k := acquire(t, l, "acme")
	failed := make(chan error, 1)
	go func() {
		_, err := l.Acquire(t.Context(), "acme")
		failed <- err
	}()
	listening(t, s.Client(), 1)
	s.Kill()
	if err := <-failed; !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	k.Release()
}

func TestDeadHolderRunsOut(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	if err := s.Client().Set(t.Context(), "zoho:lock:acme", "dead", 300*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if !s.Real {
		s.Pass(time.Second)
	}
	l := locker(t, s, Options{TTL: time.Second})
	acquire(t, l, "acme").Release()
}

func TestRenewalOutlivesTTL(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	if !s.Real {
		t.Skip("time does not pass in miniredis")
	}
	k := acquire(t, locker(t, s, Options{TTL: 3 * time.Second}), "acme")
	defer k.Release()
	c := s.Client()
	over, err := c.PExpireTime(t.Context(), "zoho:lock:acme").Result()
	if err != nil {
		t.Fatal(err)
	}
	for { // until it would be over by Redis' clock
		now, err := c.Time(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		if now.After(time.UnixMilli(over.Milliseconds())) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if v := c.Get(t.Context(), "zoho:lock:acme").Val(); v != k.nonce {
		t.Errorf("the lock is %q's", v)
	}
}

// gone is whoever gives up when Redis has just granted it the lock.
type gone struct{ up context.CancelFunc }

func (g gone) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if granted, ok := cmd.(*redis.Cmd); ok && err == nil && granted.Val() == "OK" {
			g.up()
			cmd.SetErr(context.Canceled)
			return context.Canceled
		}
		return err
	}
}

func (gone) DialHook(next redis.DialHook) redis.DialHook { return next }

func (gone) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// What was granted to who had given up is given back.
func TestGrantedTooLate(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	late := locker(t, s, Options{TTL: time.Hour})
	late.client.AddHook(gone{up: cancel})
	if _, err := late.Acquire(ctx, "acme"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	k, err := locker(t, s, Options{TTL: time.Hour}).Acquire(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	k.Release()
}

// listening waits until so many clients listen for releases: Redis tells of that only
// whoever asks.
func listening(t *testing.T, c *redis.Client, want int64) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		n, err := c.PubSubNumSub(t.Context(), "zoho:released").Result()
		if err == nil && n["zoho:released"] == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v listen, %v", n, err)
		}
	}
}

// A waiter that a release isn't told to looks by itself, before the holder's time is over.
func TestReleaseUnheard(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	l := locker(t, s, Options{TTL: 3 * time.Second})
	c := s.Client()
	c.Set(t.Context(), "zoho:lock:acme", "x", 11*time.Second)
	got := make(chan error, 1)
	go func() {
		k, err := l.Acquire(t.Context(), "acme")
		if err == nil {
			k.Release()
		}
		got <- err
	}()
	listening(t, c, 1)
	over := c.PTTL(t.Context(), "zoho:lock:acme").Val()
	asked := time.Now()
	c.Del(t.Context(), "zoho:lock:acme")
	if err := <-got; err != nil || time.Since(asked) > over {
		t.Errorf("%v, after %v of %v", err, time.Since(asked), over)
	}
}

// What Redis has lost is renewed no more, and what another has by then isn't released.
func TestLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, s *redistest.Server){
		"flushed":       func(_ *testing.T, s *redistest.Server) { s.FlushAll() },
		"begun anew":    func(_ *testing.T, s *redistest.Server) { s.Kill(); s.Restart() },
		"another owner": func(*testing.T, *redistest.Server) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			k := acquire(t, locker(t, s, Options{TTL: 300 * time.Millisecond}), "acme")
			lose(t, s)
			s.Client().Set(t.Context(), "zoho:lock:acme", "x", time.Hour)
			select {
			case <-k.done:
			case <-time.After(patience):
				t.Fatal("it is still renewed")
			}
			k.Release()
			c := s.Client()
			if v, left := c.Get(t.Context(), "zoho:lock:acme").Val(), c.PTTL(t.Context(), "zoho:lock:acme").Val(); v != "x" || left < time.Minute {
				t.Errorf("the other's lock is %q's, for %v", v, left)
			}
		})
	}
}

// TestUnavailable has the faults of rows F25, F27 and B42.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	do := func(args ...any) func(*testing.T, *redistest.Server) {
		return func(t *testing.T, s *redistest.Server) {
			if !s.Real {
				t.Skip("needs a real Redis")
			}
			if err := s.Client().Do(context.Background(), args...).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	thisKey := map[string]bool{"no expiry": true, "lives long": true, "a list": true}
	for name, breaks := range map[string]func(*testing.T, *redistest.Server){
		"killed":     func(_ *testing.T, s *redistest.Server) { s.Kill() },
		"read only":  do("REPLICAOF", "127.0.0.1", "1"),
		"full":       do("CONFIG", "SET", "maxmemory", "1"),
		"no expiry":  do("SET", "zoho:lock:acme", strings.Repeat("x", 10<<20)),
		"lives long": do("SET", "zoho:lock:acme", "x", "EX", "86400"),
		"a list":     do("LPUSH", "zoho:lock:acme", "x"),
		"hangs":      do("CLIENT", "PAUSE", "60000"), // who waits for it gets the lock
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			var log bytes.Buffer
			l := locker(t, s, Options{Timeout: 300 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			breaks(t, s)
			gone := false
			for i := range 3 {
				if err := l.Ping(t.Context()); err != nil {
					gone = true
				}
				if _, err := l.Acquire(t.Context(), "acme"); !errors.Is(err, ErrUnavailable) {
					t.Fatalf("try %d: %v", i, err)
				}
			}
			// One line, that it is away, where it is that for all locks.
			if lines := strings.Count(log.String(), "\n"); lines != map[bool]int{true: 1}[gone] || gone == thisKey[name] {
				t.Errorf("gone: %v; the log is\n%s", gone, &log)
			}
			if name == "hangs" {
				s.Kill() // or its clean-up waits for the pause
			}
		})
	}
}

// Who finds Redis away spares the others the wait: it isn't asked again meanwhile.
func TestCircuit(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, says nothing
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			asked.Add(1)
		}
	})
	client, err := Client("redis://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	l := New(client, Options{Logger: slog.New(slog.DiscardHandler), Cooldown: time.Hour})
	for i := range 20 {
		if _, err := l.Acquire(t.Context(), fmt.Sprint("c", i)); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	}
	listener.Close()
	accepting.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("Redis was asked %d times", n)
	}
}

// When the cooldown is over one may look whether Redis is back, and the others wait for
// what he finds.
func TestCircuitLetsOneLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := circuit{cooldown: time.Second}
		if !c.allow() || !c.open() || c.open() || c.allow() {
			t.Error("a fault, and Redis is asked at once")
		}
		time.Sleep(time.Second)
		if !c.allow() || c.allow() {
			t.Error("nobody looks, or two do")
		}
		if !c.close() || c.close() || !c.allow() {
			t.Error("it is back, and not asked")
		}
	})
}

// Redis goes and comes back: one line of the log each, however often it is asked.
func TestComesBackByItself(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	var log bytes.Buffer
	l := locker(t, s, Options{Cooldown: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	s.Kill()
	// Nobody needs a lock when it goes.
	if err := l.Ping(t.Context()); !errors.Is(err, ErrUnavailable) || strings.Count(log.String(), "redis is unavailable") != 1 {
		t.Errorf("%v; the log is\n%s", err, &log)
	}
	for range 3 {
		if _, err := l.Acquire(t.Context(), "acme"); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		_ = l.Ping(t.Context())
		time.Sleep(30 * time.Millisecond) // it is asked again
	}
	s.Restart()
	for deadline := time.Now().Add(patience); ; {
		k, err := l.Acquire(t.Context(), "acme")
		if err == nil {
			k.Release()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	k, err := l.Acquire(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	k.Release()
	if err := l.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if gone, back := strings.Count(log.String(), "redis is unavailable"), strings.Count(log.String(), "redis is back"); gone != 1 || back != 1 {
		t.Errorf("the log is\n%s", &log)
	}
}

func TestClientURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"redis://localhost:6379/2":                           "*redis.Client",
		"rediss://user:pass@localhost":                       "*redis.Client",
		"unix:///run/redis.sock":                             "*redis.Client",
		"redis://localhost:7000?addr=localhost:7001":         "*redis.ClusterClient",
		"redis://localhost:26379?master_name=mymaster&db=0":  "*redis.Client",
		"http://user:hunter2@localhost":                      "",
		"redis://user:hunter2@local host:6379":               "",
		"redis://user:hunter2@localhost:6379?pool_size=many": "",
		"redis://:12/hunter2@redis:6379":                     "",
		"redis://:12/hunter2@redis:6379/0":                   "",
		"redis://:12/hunter2@redis:6379?master_name=m":       "",
		"redis://redis:6379/0?pasword=hunter2":               "",
		"redis://redis:6379/0?read_timeout=hunter2":          "",
		"redis://a:1?addr=b:2&read_timeout=hunter2":          "",
	} {
		client, err := Client(url)
		if want == "" {
			if err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v", url, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if got := fmt.Sprintf("%T", client); got != want {
			t.Errorf("%s: %s", url, got)
		}
		_ = client.Close()
	}
	client, err := Client("redis://localhost?read_timeout=500ms")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	o := client.(*redis.Client).Options()
	if o.ReadTimeout != 500*time.Millisecond || o.DialTimeout != 300*time.Millisecond || o.MaxRetries > 0 || o.DialerRetries != 1 {
		t.Errorf("%+v", o)
	}
}
