package register_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/register"
)

const name = "REGISTERS"

func start(t *testing.T) jetstream.JetStream {
	t.Helper()
	s := natstest.Start(t)
	js := s.JetStream()
	s.Create(js, register.Config(name, "of a test", "reg.*", 1, 0))
	return js
}

// Compare, and set.
func TestPutGet(t *testing.T) {
	t.Parallel()
	r := register.New(start(t), name, 5*time.Second)
	ctx := t.Context()
	if _, err := r.Get(ctx, "reg.a"); !errors.Is(err, register.ErrNotFound) {
		t.Fatalf("an empty register: %v", err)
	}
	first, err := r.Put(ctx, "reg.a", []byte("one"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Put(ctx, "reg.a", []byte("two"), 0); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("created twice: %v", err)
	}
	if _, err := r.Put(ctx, "reg.b", []byte("two"), first); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("an empty register at a revision: %v", err)
	}
	second, err := r.Put(ctx, "reg.a", []byte("two"), first)
	if err != nil || second <= first {
		t.Fatalf("revision %d after %d: %v", second, first, err)
	}
	if _, err := r.Put(ctx, "reg.a", []byte("three"), first); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("an old revision: %v", err)
	}
	entry, err := r.Get(ctx, "reg.a")
	if err != nil || string(entry.Data) != "two" || entry.Revision != second || entry.Subject != "reg.a" || entry.Time.IsZero() {
		t.Fatalf("entry %+v: %v", entry, err)
	}
	if entry.Header.Get(register.NonceHeader) == "" {
		t.Fatal("no nonce")
	}
}

// What can't be said is said to be so, and never a conflict.
func TestUnclear(t *testing.T) {
	t.Parallel()
	js := start(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r := register.New(js, name, 5*time.Second)
	if _, err := r.Put(ended, "reg.a", nil, 0); err == nil || errors.Is(err, register.ErrConflict) {
		t.Errorf("put: %v", err)
	}
	if _, err := r.Get(ended, "reg.a"); err == nil || errors.Is(err, register.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	missing := register.New(js, "MISSING", 2*time.Second)
	if _, err := missing.Get(t.Context(), "reg.a"); err == nil || errors.Is(err, register.ErrNotFound) {
		t.Errorf("get of no stream: %v", err)
	}
	if _, err := missing.Put(t.Context(), "reg.a", nil, 0); err == nil || errors.Is(err, register.ErrConflict) || !strings.Contains(err.Error(), "reg.a") {
		t.Errorf("put to no stream: %v", err)
	}
}

// liar says that writes were refused: those that it stores as well as those it doesn't.
type liar struct {
	jetstream.JetStream
	code   jetstream.ErrorCode
	stores bool
	// between, if set, is written in the meantime.
	between func()
}

func (l *liar) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if l.stores {
		if _, err := l.JetStream.PublishMsg(ctx, msg, o...); err != nil {
			return nil, err
		}
	}
	if l.between != nil {
		l.between()
	}
	return nil, &jetstream.APIError{ErrorCode: l.code}
}

// A write that the server refused although it had stored it counts as done; one
// that it did refuse does not, nor does one that was overwritten since.
func TestFalseConflict(t *testing.T) {
	t.Parallel()
	js := start(t)
	ctx := t.Context()
	honest := register.New(js, name, 5*time.Second)
	for _, code := range []jetstream.ErrorCode{10071, 10164} {
		r := register.New(&liar{JetStream: js, code: code, stores: true}, name, 5*time.Second)
		before, err := honest.Put(ctx, "reg.false", []byte("before"), revision(t, honest, "reg.false"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Put(ctx, "reg.false", []byte("mine"), before)
		if err != nil || got != revision(t, honest, "reg.false") {
			t.Errorf("code %d, stored: revision %d, %v", code, got, err)
		}
		r = register.New(&liar{JetStream: js, code: code}, name, 5*time.Second)
		if _, err := r.Put(ctx, "reg.false", []byte("mine"), got); !errors.Is(err, register.ErrConflict) {
			t.Errorf("code %d, not stored: %v", code, err)
		}
		if _, err := r.Put(ctx, "reg.empty", []byte("mine"), 0); !errors.Is(err, register.ErrConflict) {
			t.Errorf("code %d, not stored and nothing there: %v", code, err)
		}
		overwritten := &liar{JetStream: js, code: code, stores: true}
		overwritten.between = func() {
			if _, err := honest.Put(ctx, "reg.false", []byte("theirs"), revision(t, honest, "reg.false")); err != nil {
				t.Error(err)
			}
		}
		if _, err := register.New(overwritten, name, 5*time.Second).Put(ctx, "reg.false", []byte("mine"), got); !errors.Is(err, register.ErrConflict) {
			t.Errorf("code %d, stored and overwritten: %v", code, err)
		}
	}
	other := &jetstream.APIError{ErrorCode: 10077}
	if register.IsConflict(other) || register.IsConflict(nil) || register.IsConflict(context.DeadlineExceeded) {
		t.Error("other errors are no conflicts")
	}
}

func revision(t *testing.T, r *register.Stream, subject string) uint64 {
	t.Helper()
	entry, err := r.Get(t.Context(), subject)
	if errors.Is(err, register.ErrNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return entry.Revision
}

// The streams of registers keep what every decision depends on.
func TestConfig(t *testing.T) {
	t.Parallel()
	c := register.Config(name, "of a test", "reg.*", 3, time.Hour)
	if c.AllowDirect || c.MaxMsgsPerSubject != 1 || c.Storage != jetstream.FileStorage || c.Discard != jetstream.DiscardNew || c.Replicas != 3 {
		t.Errorf("%+v", c)
	}
	// The server refuses a window for duplicates that is longer than the age.
	for age, want := range map[time.Duration]time.Duration{0: 2 * time.Minute, time.Minute: time.Minute, time.Hour: 2 * time.Minute} {
		if got := register.Config(name, "", "reg.*", 1, age).Duplicates; got != want {
			t.Errorf("max age %s: duplicates %s, want %s", age, got, want)
		}
	}
}

// The clock tells the server's time, however wrong the machine's is.
func TestClock(t *testing.T) {
	t.Parallel()
	var c register.Clock
	if off := time.Until(c.Now()).Abs(); off > time.Minute {
		t.Errorf("the zero clock is off by %s", off)
	}
	now := time.Now()
	c.Observe(now.Add(time.Hour), now)
	if off := (time.Until(c.Now()) - time.Hour).Abs(); off > time.Minute {
		t.Errorf("off by %s", off)
	}
	if then := now.Add(time.Second); !c.At(then).Equal(then.Add(time.Hour)) {
		t.Errorf("it was %v at %v", c.At(then), then)
	}
}

// Nor does it matter if the machine's clock is set between two looks at the server.
func TestClockSet(t *testing.T) {
	t.Parallel()
	for _, d := range []time.Duration{-time.Hour, time.Hour} {
		var c register.Clock
		now := time.Now()
		then := natstest.Dated(now, d)
		c.Observe(now.Round(0), then)
		if off := time.Until(c.Now()).Abs(); off > time.Minute {
			t.Errorf("set by %s: off by %s", -d, off)
		}
	}
}

// What passes by the server's clock is what has passed, also where that clock is set: then
// it is never more than what has passed since, and of what was stored before no less.
func TestServerClockSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{-time.Hour, -10 * time.Second, 10 * time.Second, time.Hour} {
			var c register.Clock
			look := func(ahead time.Duration) { c.Observe(time.Now().Add(ahead).Round(0), time.Now()) }
			want := func(what string, then time.Time, least, most time.Duration) {
				t.Helper()
				if passed := c.Passed(then); passed < least || passed > most {
					t.Errorf("set by %s: %s have passed since %s, want %s to %s", d, passed, what, least, most)
				}
			}
			look(0)
			before := time.Now().Round(0)
			time.Sleep(time.Minute)
			look(time.Second) // which isn't set, but told late or early
			want("a minute ago", before, time.Minute, time.Minute+time.Second)
			look(d)
			want("before it was set, right after", before, 0, 0)
			after := time.Now().Add(d).Round(0)
			time.Sleep(time.Minute)
			look(d)
			want("before it was set", before, time.Minute, time.Minute)
			want("after it was set", after, time.Minute, time.Minute)
			time.Sleep(time.Hour)
			want("it was set, an hour later", after, time.Hour+time.Minute, time.Hour+time.Minute)
		}
	})
}

// A lease is over when either reading of the clock says so.
func TestLeft(t *testing.T) {
	t.Parallel()
	until := time.Now().Add(time.Hour)
	for d, want := range map[time.Duration]time.Duration{0: time.Hour, time.Hour: time.Hour, -2 * time.Hour: -time.Hour} {
		if off := (register.Left(natstest.Dated(until, d)) - want).Abs(); off > time.Minute {
			t.Errorf("%s: off by %s", d, off)
		}
	}
	if left := register.Left(time.Time{}); left > 0 {
		t.Errorf("none: %s left", left)
	}
}
