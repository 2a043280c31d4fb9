package token

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/lock"
	"zoho-worker/internal/lock/redistest"
)

const crowd = 16

// expired is a box with workers that all know a token that is over.
func expired(t *testing.T, redis string) (*box, []*worker) {
	t.Helper()
	b := newBox(t)
	b.redis = redis
	workers := b.workers(crowd)
	b.connect(workers...)
	workers[0].put(workers[0].sealed(1, time.Hour, -time.Second))
	for _, w := range workers {
		w.until(func(st *state) bool { return st.record.Generation == 1 })
	}
	return b, workers
}

func oneCall(t *testing.T, b *box) {
	t.Helper()
	if n := b.accounts.count(); n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}

// TestOneRefreshInPeace is F29: sixteen workers, fifty requests each, at once.
func TestOneRefreshInPeace(t *testing.T) {
	t.Parallel()
	b, workers := expired(t, redistest.Start(t).URL)
	allGot(t, askAll(workers, 50), 2)
	oneCall(t, b)
}

// TestOneRefreshThroughFlush is F23: the second half comes when the lock is gone.
func TestOneRefreshThroughFlush(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	b, workers := expired(t, redis.URL)
	open := b.accounts.shut()
	defer open()
	first := askAll(workers[:crowd/2], 5)
	<-b.accounts.entered
	<-b.ended // the one that refreshes has the lock
	redis.FlushAll()
	second := askAll(workers[crowd/2:], 5)
	if err := <-b.ended; err != nil && !errors.Is(err, lock.ErrUnavailable) {
		t.Error(err) // another one has it too, or no answer on a slow machine
	}
	open()
	allGot(t, first, 2)
	allGot(t, second, 2)
	oneCall(t, b)
}

// TestOneRefreshThroughKill is F24 and F26: Redis dies, or comes back empty, in
// the middle.
func TestOneRefreshThroughKill(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"stays away": false, "comes back empty": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			b, workers := expired(t, redis.URL)
			open := b.accounts.shut()
			defer open()
			first := askAll(workers[:crowd/2], 5)
			<-b.accounts.entered
			redis.Kill()
			if restart {
				redis.Restart()
			}
			second := askAll(workers[crowd/2:], 5)
			if restart {
				for { // until one that came later has the lock again, or has to do without
					if err := <-b.ended; err == nil || errors.Is(err, lock.ErrUnavailable) {
						break
					}
				}
			} else {
				for range crowd { // all have lost or not got it
					<-b.ended
				}
			}
			open()
			allGot(t, first, 2)
			allGot(t, second, 2)
			oneCall(t, b)
		})
	}
}

// TestOneRefreshWithoutRedis is F25.
func TestOneRefreshWithoutRedis(t *testing.T) {
	t.Parallel()
	b, workers := expired(t, nowhere(t))
	open := b.accounts.shut()
	defer open()
	answers := askAll(workers, 5)
	for range crowd { // all go on without a lock, while one refreshes
		if err := <-b.ended; !errors.Is(err, lock.ErrUnavailable) {
			t.Error(err)
		}
	}
	<-b.accounts.entered
	open()
	allGot(t, answers, 2)
	oneCall(t, b)
}

func TestOneRefreshWithoutLocker(t *testing.T) {
	t.Parallel()
	b, workers := expired(t, "")
	allGot(t, askAll(workers, 5), 2)
	oneCall(t, b)
}

// TestOneMoreAfterACrash is F28: a claim whose holder is dead is waited out.
func TestOneMoreAfterACrash(t *testing.T) {
	t.Parallel()
	for name, redis := range map[string]func() string{
		"with redis": func() string { return redistest.Start(t).URL }, "without": func() string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, workers := expired(t, redis())
			const lease = 700 * time.Millisecond
			dead := workers[0].sealed(1, time.Hour, -time.Second)
			dead = dead.claimed(claim{Nonce: "dead", LeaseMS: lease.Milliseconds(), By: "dead"}, workers[0].serverNow())
			written := time.Now()
			workers[0].put(dead)
			for _, w := range workers {
				w.until(func(st *state) bool { return st.record.Claim != nil })
			}
			allGot(t, askAll(workers, 5), 2)
			oneCall(t, b)
			if took := time.Since(written); took < lease-50*time.Millisecond {
				t.Errorf("took over after %v, before the lease of %v was over", took, lease)
			}
			if mints := workers[0].entry("acme").state.Load().record.Mints; len(mints) != 2 {
				t.Errorf("%d mints counted, want the dead worker's too", len(mints))
			}
		})
	}
}

// TestStormOfInvalidTokens is F32: all workers were refused the same token.
func TestStormOfInvalidTokens(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.redis = redistest.Start(t).URL
	workers := b.workers(crowd)
	b.connect(workers...)
	refused := workers[0].must()
	for _, w := range workers {
		w.until(func(st *state) bool { return st.record.Generation == 1 && st.record.Claim == nil })
	}
	answers := make(chan answer, crowd)
	for _, w := range workers {
		go func() {
			token, err := w.Renew(t.Context(), w.acme(), refused)
			answers <- answer{token, err}
		}()
	}
	for range crowd {
		if a := <-answers; a.err != nil || a.token.Generation != 2 {
			t.Errorf("%+v", a)
		}
	}
	if n := b.accounts.count(); n != 2 {
		t.Errorf("%d refreshes, want 2", n)
	}
}

// TestLateHolderIsIgnored: a worker that was suspended during its refresh finds
// that another one did it, and takes that one's token.
func TestLateHolderIsIgnored(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b, w := one(t, func(o *Options) { o.Metrics = registry })
	open := b.accounts.shut()
	defer open()
	answers := askAll([]*worker{w}, 1)
	<-b.accounts.entered
	w.put(w.sealed(5, 0, time.Hour)) // in the place of the claim
	open()
	allGot(t, answers, 5)
	w.until(func(st *state) bool { return st.record.Generation == 5 })
	if counted := counts(t, registry); counted[resultLost] != 1 {
		t.Errorf("counted %v", counted)
	}
}

// unheard loses the answer to every second write of a token record.
type unheard struct {
	jetstream.JetStream
	writes atomic.Int64
}

func (u *unheard) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := u.JetStream.PublishMsg(ctx, msg, o...)
	if u.writes.Add(1)%2 == 1 {
		return nil, context.DeadlineExceeded
	}
	return ack, err
}

// TestOwnWritesAreKnown: a claim and a token that were stored, and nobody said so, are
// the worker's own when it writes them again.
func TestOwnWritesAreKnown(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b := newBox(t)
	js := &unheard{JetStream: b.nats.JetStream()}
	w := b.worker(func(o *Options) { o.JS, o.Metrics = js, registry })
	b.connect(w)
	if token := w.must(); token.Generation != 1 || js.writes.Load() != 4 {
		t.Errorf("%+v after %d writes", token, js.writes.Load())
	}
	oneCall(t, b)
	if counted := counts(t, registry); counted[resultMinted] != 1 || counted[resultLost] != 0 {
		t.Errorf("counted %v", counted)
	}
}

// TestServerRestartsMeanwhile: the token comes back while NATS is away.
func TestServerRestartsMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	workers := b.workers(2)
	b.connect(workers...)
	open := b.accounts.shut()
	defer open()
	answers := askAll(workers[:1], 3)
	<-b.accounts.entered
	b.nats.Stop()
	open()
	b.nats.Restart()
	allGot(t, answers, 1)
	workers[1].until(func(st *state) bool { return st.record.Generation == 1 })
	if token := workers[1].must(); token.Generation != 1 || b.accounts.count() != 1 {
		t.Errorf("%+v, %d refreshes", token, b.accounts.count())
	}
}

func TestStreamLost(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	for range 2 {
		token := w.must()
		if _, err := w.Renew(t.Context(), w.acme(), token); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.js.DeleteStream(t.Context(), StreamName); err != nil {
		t.Fatal(err)
	}
	b.nats.Create(w.js, StreamConfig(1))
	w.until(func(st *state) bool { return st.record.Generation == 0 })
	if token := w.must(); token.Generation != 1 {
		t.Errorf("%+v", token)
	}
}

// TestRecordOfAnotherStream: a record counts as it was read, also where memory has
// another one of its revision, because the stream was made anew and nobody has noticed.
func TestRecordOfAnotherStream(t *testing.T) {
	t.Parallel()
	b, w := one(t, func(o *Options) { o.Check = time.Hour })
	w.put(w.sealed(1, time.Hour, -time.Second))
	w.until(func(st *state) bool { return st.record.Generation == 1 })
	if err := w.js.DeleteStream(t.Context(), StreamName); err != nil {
		t.Fatal(err)
	}
	b.nats.Create(w.js, StreamConfig(1))
	other := w.sealed(1, time.Hour, -time.Second).claimed(claim{Nonce: "other", LeaseMS: time.Hour.Milliseconds()}, w.serverNow())
	w.put(other)
	answers := askAll([]*worker{w}, 1)
	e := w.entry("acme")
	seen := func() string {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.claim
	}
	for end := time.Now().Add(time.Minute); seen() == ""; time.Sleep(time.Millisecond) { // nobody tells that a claim was read
		if time.Now().After(end) {
			t.Fatal("the other worker's claim is not read")
		}
	}
	w.put(w.sealed(2, 0, time.Hour))
	allGot(t, answers, 2)
	if n := b.accounts.count(); n != 0 {
		t.Errorf("%d refreshes beside the one that was claimed", n)
	}
}

// TestReadHearsOfTheNext: whoever waits with a record that was read is woken as one
// who has it from memory.
func TestReadHearsOfTheNext(t *testing.T) {
	t.Parallel()
	_, w := one(t)
	w.must()
	e := w.entry("acme")
	st, err := w.read(t.Context(), e, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if known := e.state.Load(); st.position != known.position || st.next != known.next || st.token != known.token {
		t.Errorf("read %+v, known %+v", st, known)
	}
}
