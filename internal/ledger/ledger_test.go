package ledger

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/register"
)

// later has ledgers that were opened when d had passed.
func later(d time.Duration, ledgers ...*Ledger) {
	clock := &register.Clock{}
	now := time.Now()
	clock.Observe(now.Add(d), now)
	for _, l := range ledgers {
		l.clock = clock
	}
}

func start(t *testing.T) (jetstream.JetStream, *register.Clock) {
	t.Helper()
	s := natstest.Start(t)
	js := s.JetStream()
	s.Create(js, StreamConfig(1, time.Hour))
	return js, &register.Clock{}
}

func wantHeld(t *testing.T, err error, most time.Duration) {
	t.Helper()
	var held *HeldError
	if !errors.As(err, &held) || held.Left <= 0 || held.Left > most {
		t.Fatalf("error is %v, want that it is held for %s at most", err, most)
	}
}

// A claim whose holder slept with its machine, whose monotonic clock stood still
// meanwhile, is over by the time of day.
func TestAsleep(t *testing.T) {
	t.Parallel()
	js, clock := start(t)
	claim, err := Open(js, clock, time.Minute).Claim(t.Context(), "demo", "1", digest)
	if err != nil {
		t.Fatal(err)
	}
	claim.until = natstest.Dated(claim.until, -time.Hour)
	if err := claim.Permit(); !errors.Is(err, ErrLeaseOver) {
		t.Errorf("permit: %v", err)
	}
}

// The life of a claim, on a real server.
func TestClaim(t *testing.T) {
	t.Parallel()
	js, clock := start(t)
	l, other := Open(js, clock, time.Minute), Open(js, clock, time.Minute)
	ctx := t.Context()
	if err := other.Look(ctx, "demo", "1", digest); err != nil {
		t.Fatalf("nothing there: %v", err)
	}
	claim, err := l.Claim(ctx, "demo", "1", digest)
	if err != nil {
		t.Fatal(err)
	}
	if left := claim.Left(); left <= 0 || left > time.Minute || claim.Permit() != nil {
		t.Fatalf("left %s, permit %v", left, claim.Permit())
	}
	wantHeld(t, other.Look(ctx, "demo", "1", digest), time.Minute+margin)
	_, err = other.Claim(ctx, "demo", "1", digest)
	wantHeld(t, err, time.Minute+margin)
	// Other content, another id and another connection are other things.
	if _, err := other.Claim(ctx, "demo", "1", [32]byte{2}); !errors.Is(err, ErrConflict) {
		t.Fatalf("claimed with other content: %v", err)
	}
	if err := other.Look(ctx, "demo", "1", [32]byte{2}); !errors.Is(err, ErrConflict) {
		t.Fatalf("looked at with other content: %v", err)
	}
	for _, key := range [][2]string{{"demo", "2"}, {"other", "1"}} {
		if _, err := other.Claim(ctx, key[0], key[1], digest); err != nil {
			t.Fatal(err)
		}
	}
	// Given up, it is anybody's; its content stays.
	if err := claim.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.Look(ctx, "demo", "1", digest); err != nil {
		t.Fatalf("released: %v", err)
	}
	if _, err := other.Claim(ctx, "demo", "1", [32]byte{2}); !errors.Is(err, ErrConflict) {
		t.Fatalf("released, with other content: %v", err)
	}
	second, err := other.Claim(ctx, "demo", "1", digest)
	if err != nil {
		t.Fatal(err)
	}
	// The first one's holder is out of it.
	if err := claim.Extend(ctx); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("extended by the holder before: %v", err)
	}
	if err := second.Extend(ctx); err != nil {
		t.Fatal(err)
	}
	if err := second.Extend(ctx); err != nil {
		t.Fatal("extended again:", err)
	}
}

// A lease is judged by the server's clock, and is longer for others than for
// its holder. Once somebody was told that it is over, it can't be extended.
func TestLease(t *testing.T) {
	t.Parallel()
	js, clock := start(t)
	l, other := Open(js, clock, time.Minute), Open(js, clock, time.Minute)
	ctx := t.Context()
	claim, err := l.Claim(ctx, "demo", "1", digest)
	if err != nil {
		t.Fatal(err)
	}
	later(time.Minute+margin-2*time.Second, l, other)
	wantHeld(t, other.Look(ctx, "demo", "1", digest), 2*time.Second)
	// The holder may extend until somebody says that it is over.
	later(time.Hour, l, other)
	if err := claim.Extend(ctx); err != nil {
		t.Fatal(err)
	}
	later(0, l, other)
	wantHeld(t, other.Look(ctx, "demo", "1", digest), time.Minute+margin)
	later(time.Hour, l, other)
	if _, err := other.Claim(ctx, "demo", "1", digest); !errors.Is(err, ErrExpired) {
		t.Fatalf("claimed after the lease: %v", err)
	}
	later(0, l, other) // closed is closed, whatever a clock says
	if err := other.Look(ctx, "demo", "1", digest); !errors.Is(err, ErrExpired) {
		t.Fatalf("looked at once it is closed: %v", err)
	}
	if err := claim.Extend(ctx); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("extended once it is closed: %v", err)
	}
	if err := claim.Release(ctx); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("released once it is closed: %v", err)
	}
	if _, err := other.Claim(ctx, "demo", "1", [32]byte{2}); !errors.Is(err, ErrConflict) {
		t.Fatalf("closed, with other content: %v", err)
	}
}

// The server's clock is set while a request is being sent: its claim is neither over
// before its time nor kept for longer than two leases.
func TestServerClockSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{-time.Hour, -30 * time.Second, 30 * time.Second, time.Hour} {
			s, clock := newServer(), &register.Clock{}
			l, other := Open(s, clock, time.Minute), Open(s, clock, time.Minute)
			clock.Observe(s.now(), time.Now())
			claim, err := l.Claim(t.Context(), "demo", "1", digest)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			s.ahead = d
			for claim.Permit() == nil {
				clock.Observe(s.now(), time.Now())
				if err := other.Look(t.Context(), "demo", "1", digest); !errors.As(err, new(*HeldError)) {
					t.Fatalf("set by %s, %s before its holder's lease ends: %v", d, claim.Left(), err)
				}
				time.Sleep(time.Second)
			}
			time.Sleep(time.Minute + 2*margin)
			if err := other.Look(t.Context(), "demo", "1", digest); !errors.As(err, new(*LostError)) {
				t.Errorf("set by %s, long after its lease: %v", d, err)
			}
		}
	})
}

// The holder's own lease begins before the exchange that wrote the claim, however long
// that takes, and ends margin before the others', which begins when it was stored.
func TestPermit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		claim, err := Open(s, &register.Clock{}, time.Minute).Claim(t.Context(), "demo", "1", digest)
		if err != nil {
			t.Fatal(err)
		}
		if left := claim.Left(); left != time.Minute-exchange {
			t.Errorf("%s are left after an exchange of %s", left, exchange)
		}
		time.Sleep(time.Minute - 2*exchange)
		if err := claim.Permit(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * exchange)
		if err := claim.Permit(); !errors.Is(err, ErrLeaseOver) {
			t.Fatalf("permit is %v after the lease", err)
		}
		wantHeld(t, Open(s, &register.Clock{}, time.Minute).Look(t.Context(), "demo", "1", digest), margin)
		if err := claim.Extend(t.Context()); err != nil || claim.Permit() != nil {
			t.Fatalf("extended: %v, permit %v", err, claim.Permit())
		}
	})
}

// A holder that was suspended, and whose claim somebody else took over meanwhile,
// changes nothing of it.
func TestHolderThatWakesUp(t *testing.T) {
	t.Parallel()
	js, clock := start(t)
	l, other := Open(js, clock, time.Minute), Open(js, clock, time.Minute)
	ctx := t.Context()
	for id, change := range map[string]func(*Claim) error{
		"extended": func(c *Claim) error { return c.Extend(ctx) },
		"released": func(c *Claim) error { return c.Release(ctx) },
		"lost":     func(c *Claim) error { _, err := c.Lose(ctx); return err },
	} {
		later(0, l, other)
		sleeper, err := l.Claim(ctx, "demo", id, digest)
		if err != nil {
			t.Fatal(err)
		}
		later(time.Hour, l, other)
		var lost *LostError
		if err := other.Look(ctx, "demo", id, digest); !errors.As(err, &lost) {
			t.Fatalf("%s: %v", id, err)
		}
		second, err := other.Resume(ctx, "demo", id, digest, lost)
		if err != nil {
			t.Fatal(err)
		}
		if err := change(sleeper); !errors.Is(err, register.ErrConflict) {
			t.Errorf("%s by its holder of before: %v", id, err)
		}
		later(0, l, other)
		wantHeld(t, l.Look(ctx, "demo", id, digest), time.Minute+margin)
		if err := second.Extend(ctx); err != nil {
			t.Errorf("%s, and its holder can't go on: %v", id, err)
		}
	}
}

// A write whose acknowledgement is lost, or that is refused though it was
// stored, is recognised; one that can't be made out counts as not done.
func TestOwnWriteIsRecognised(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, f := range []fault{lost, unacked, disowned} {
			s := newServer()
			once := func() {
				first := true
				s.fault = func() fault {
					if !first {
						return none
					}
					first = false
					return f
				}
			}
			once()
			claim, err := Open(s, &register.Clock{}, time.Minute).Claim(t.Context(), "demo", "1", digest)
			if err != nil {
				t.Fatalf("claim, fault %d: %v", f, err)
			}
			once()
			if err := claim.Extend(t.Context()); err != nil || claim.Permit() != nil {
				t.Fatalf("extend, fault %d: %v", f, err)
			}
			once()
			if err := claim.Release(t.Context()); err != nil {
				t.Fatalf("release, fault %d: %v", f, err)
			}
			s.fault = func() fault { return none }
			if _, err := Open(s, &register.Clock{}, time.Minute).Claim(t.Context(), "demo", "1", digest); err != nil {
				t.Fatalf("claim after release, fault %d: %v", f, err)
			}
		}
		s := newServer()
		s.fault = func() fault { return lost }
		if claim, err := Open(s, &register.Clock{}, time.Minute).Claim(t.Context(), "demo", "1", digest); err == nil || claim != nil {
			t.Fatalf("claimed without a server: %v", claim)
		}
	})
}

// A claim whose acknowledgement is lost, and that somebody else closes before its writer
// sees that it was written, is not written anew.
func TestOwnWriteIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		other, writes := Open(s, &register.Clock{}, time.Minute), 0
		s.fault = func() fault {
			switch writes++; writes {
			case 1:
				return unacked
			case 2:
				time.Sleep(time.Minute + margin)
				if err := other.Look(t.Context(), "demo", "1", digest); !errors.Is(err, ErrExpired) {
					t.Errorf("looked at after its lease: %v", err)
				}
			}
			return none
		}
		if claim, err := Open(s, &register.Clock{}, time.Minute).Claim(t.Context(), "demo", "1", digest); claim != nil || !errors.Is(err, ErrExpired) {
			t.Errorf("claimed after it was closed: %v", err)
		}
	})
}

// A request that is answered without being sent is never sent; nobody is told
// that it was not where a claim says that it may have been.
func TestClose(t *testing.T) {
	t.Parallel()
	js, clock := start(t)
	l, other := Open(js, clock, time.Minute), Open(js, clock, time.Minute)
	ctx := t.Context()
	for range 2 { // a worker that died in between does it again
		if err := l.Close(ctx, "demo", "new", digest); err != nil {
			t.Fatal(err)
		}
		if err := other.Look(ctx, "demo", "new", digest); err != nil {
			t.Fatalf("refused, not sent: %v", err)
		}
	}
	if _, err := other.Claim(ctx, "demo", "new", digest); !errors.Is(err, ErrExpired) || errors.As(err, new(*LostError)) {
		t.Fatalf("claimed after it was refused: %v", err)
	}
	claim, err := other.Claim(ctx, "demo", "sending", digest)
	if err != nil {
		t.Fatal(err)
	}
	wantHeld(t, l.Close(ctx, "demo", "sending", digest), time.Minute+margin)
	if err := l.Close(ctx, "demo", "sending", [32]byte{2}); err != nil {
		t.Fatalf("another request's claim: %v", err)
	}
	if err := claim.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(ctx, "demo", "sending", digest); err != nil {
		t.Fatal("released:", err)
	}
	if err := claim.Extend(ctx); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("extended once it is refused: %v", err)
	}
	gone, err := other.Claim(ctx, "demo", "gone", digest)
	if err != nil {
		t.Fatal(err)
	}
	later(time.Hour, l, other)
	for range 2 {
		if err := l.Close(ctx, "demo", "gone", digest); !errors.Is(err, ErrExpired) {
			t.Fatalf("the worker that may have sent it is gone: %v", err)
		}
	}
	if err := gone.Extend(ctx); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("extended once it is closed: %v", err)
	}
}

// The life of a lost claim, on a real server: of all that have looked it up, one
// takes it over, and nobody once it is sealed.
func TestLostClaim(t *testing.T) {
	t.Parallel()
	js, clock := start(t)
	l, other := Open(js, clock, time.Minute), Open(js, clock, time.Minute)
	ctx := t.Context()
	claim, err := l.Claim(ctx, "demo", "1", digest)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := claim.Lose(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if claim.Permit() == nil || !errors.Is(claim.Extend(ctx), register.ErrConflict) {
		t.Fatal("the holder may send what it gave up")
	}
	var theirs *LostError
	if err := other.Look(ctx, "demo", "1", digest); !errors.As(err, &theirs) || !errors.Is(err, ErrExpired) {
		t.Fatalf("looked at: %v", err)
	}
	if d := mine.Since.Sub(theirs.Since); d < 0 || d > time.Second {
		t.Fatalf("closed at %s for one and at %s for the other", mine.Since, theirs.Since)
	}
	if _, err := other.Claim(ctx, "demo", "1", digest); !errors.Is(err, ErrExpired) {
		t.Fatalf("claimed without a look: %v", err)
	}
	second, err := other.Resume(ctx, "demo", "1", digest, theirs)
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Resume(ctx, "demo", "1", digest, mine)
	wantHeld(t, err, time.Minute+margin)
	wantHeld(t, l.Seal(ctx, "demo", "1", mine), time.Minute+margin)
	// Given back unused, it is as lost as it was before, and to be looked up anew.
	if err := second.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Resume(ctx, "demo", "1", digest, mine); !errors.As(err, &mine) {
		t.Fatalf("taken over after an old look: %v", err)
	}
	if err := other.Seal(ctx, "demo", "1", mine); err != nil {
		t.Fatal(err)
	}
	if err := other.Seal(ctx, "demo", "1", mine); err != nil {
		t.Fatal("sealed again:", err)
	}
	for what, err := range map[string]error{
		"looked at":  l.Look(ctx, "demo", "1", digest),
		"closed":     l.Close(ctx, "demo", "1", digest),
		"taken over": func() error { _, err := l.Resume(ctx, "demo", "1", digest, mine); return err }(),
		"claimed":    func() error { _, err := l.Claim(ctx, "demo", "1", digest); return err }(),
	} {
		var lost *LostError
		if !errors.Is(err, ErrExpired) || errors.As(err, &lost) {
			t.Errorf("sealed, and %s: %v", what, err)
		}
	}
}
