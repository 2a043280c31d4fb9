package token

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// TestBudget: ten tokens in ten minutes, of which the consent brought the first.
func TestBudget(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	token := w.must()
	for range 10 - 2 { // zoho-facts 1.6
		next, err := w.Renew(t.Context(), w.acme(), token)
		if err != nil {
			t.Fatal(err)
		}
		token = next
	}
	other := b.worker()
	for _, w := range []*worker{w, other} {
		_, err := w.Renew(t.Context(), w.acme(), token)
		u := reasonOf(t, err)
		if left := time.Until(u.Until); u.Reason != Budget || left < 9*time.Minute || left > window+time.Second {
			t.Errorf("%v, %v left", u, left)
		}
		if still := w.must(); still.Generation != token.Generation {
			t.Errorf("the token that is there is not given out: %+v", still)
		}
	}
	if n := b.accounts.count(); n != 10-1 {
		t.Errorf("%d refreshes", n)
	}
	// Another consent is another ten.
	if _, err := w.connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
		t.Fatal(err)
	}
	if token := w.must(); token.Access.IsZero() {
		t.Error("no token of the new grant")
	}
}

// What never reached the accounts server doesn't count, or one that was away for some
// minutes would be followed by minutes without a budget. Whatever may have, does.
func TestUnsentCostsNoBudget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		reason Reason
		counts bool
	}{
		"nothing left":  {fmt.Errorf("refresh: %w", &zoho.Error{Kind: zoho.Unavailable, Unsent: true}), AccountsUnavailable, false},
		"late":          {errLate, AccountsUnavailable, false},
		"some may have": {&zoho.Error{Kind: zoho.Unavailable}, AccountsUnavailable, true},
		"timeout":       {context.DeadlineExceeded, AccountsUnavailable, true},
		"throttled":     {&zoho.Error{Kind: zoho.Throttled}, Throttled, true},
	} {
		b, w := one(t)
		token := w.must()
		b.accounts.set(func(int) (*zoho.Grant, error) { return nil, c.err })
		_, err := w.Renew(t.Context(), w.acme(), token)
		if u := reasonOf(t, err); u.Reason != c.reason {
			t.Errorf("%s: %v", name, u)
		}
		want := 2 // the consent's and the first
		if c.counts {
			want++
		}
		if n := len(w.entry("acme").state.Load().record.Mints); n != want {
			t.Errorf("%s: %d count, want %d", name, n, want)
		}
	}
}

// TestBlocksAreShared has F30 and its like: what one worker was told holds for
// all, and none asks again.
func TestBlocksAreShared(t *testing.T) {
	t.Parallel()
	for kind, want := range map[zoho.Kind]struct {
		reason Reason
		least  time.Duration
		most   time.Duration
		events []string
	}{
		zoho.Throttled:     {Throttled, 9 * time.Minute, 10 * time.Minute, []string{"acme paused"}},
		zoho.Misconfigured: {Misconfigured, 50 * time.Second, time.Minute, []string{"acme paused"}},
		zoho.Unavailable:   {AccountsUnavailable, 4 * time.Minute, 5 * time.Minute, nil},
		zoho.BadAnswer:     {AccountsUnavailable, 4 * time.Minute, 5 * time.Minute, nil},
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			workers := b.workers(4)
			b.connect(workers...)
			b.accounts.set(func(int) (*zoho.Grant, error) {
				fault := &zoho.Error{Kind: kind}
				if want.reason == AccountsUnavailable {
					fault.RetryAfter = 5 * time.Minute // or a slow machine outlasts the second it is blocked for
				}
				return nil, fault
			})
			for a := range askAll(workers, 5) {
				u := reasonOf(t, a.err)
				if left := time.Until(u.Until); u.Reason != want.reason || left > want.most+time.Second || left < want.least-20*time.Second {
					t.Errorf("%v, %v left", u, left)
				}
			}
			if n := b.accounts.count(); n != 1 {
				t.Errorf("%d refreshes", n)
			}
			if c := workers[0].acme(); c.Status != connection.Active {
				t.Errorf("connection is %s", c.Status)
			}
			if got := b.told(); !slices.Equal(got, want.events) {
				t.Errorf("events %v", got)
			}
			// A new authorization begins anew.
			b.accounts.set(nil)
			if _, err := workers[0].connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
				t.Fatal(err)
			}
			if token := workers[0].must(); token.Generation != 1 {
				t.Errorf("%+v", token)
			}
		})
	}
}

// TestRefusalInLog: what ends by itself has its end in the log, what doesn't has none.
func TestRefusalInLog(t *testing.T) {
	t.Parallel()
	for kind, ends := range map[zoho.Kind]bool{zoho.DeadGrant: false, zoho.Misconfigured: true} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			b, w := one(t, func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(&log, nil)) })
			b.accounts.set(refuses(kind))
			_, err := w.ask()
			reasonOf(t, err)
			w.Close()
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, `"token is not refreshed"`) {
					if strings.Contains(line, `"until":`) != ends || strings.Contains(line, "0001-01-01") {
						t.Error(line)
					}
					return
				}
			}
			t.Errorf("nothing is said of it: %s", &log)
		})
	}
}

// TestRevoked is F31: one verdict, one event, no further try; and the way back.
func TestRevoked(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	workers := b.workers(8)
	b.connect(workers...)
	old := workers[0].must()
	b.accounts.set(refuses(zoho.DeadGrant))
	answers := make(chan error, len(workers))
	for _, w := range workers {
		go func() {
			_, err := w.Renew(t.Context(), w.acme(), old)
			answers <- err
		}()
	}
	for range workers {
		if u := reasonOf(t, <-answers); u.Reason != Revoked || !u.Until.IsZero() {
			t.Errorf("%v", u)
		}
	}
	for _, w := range workers {
		if c, err := w.connections.Fetch(t.Context(), "acme"); err != nil || c.Status != connection.Revoked {
			t.Errorf("%+v, %v", c, err)
		}
		_, err := w.ask()
		if u := reasonOf(t, err); u.Reason != Revoked {
			t.Errorf("%v", u)
		}
	}
	if n := b.accounts.count(); n != 2 {
		t.Errorf("%d refreshes", n)
	}
	if got := b.told(); !slices.Equal(got, []string{"acme revoked"}) {
		t.Errorf("events %v", got)
	}

	b.accounts.set(nil)
	if _, err := workers[3].connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
		t.Fatal(err)
	}
	for _, w := range workers {
		if _, err := w.connections.Fetch(t.Context(), "acme"); err != nil {
			t.Fatal(err)
		}
	}
	allGot(t, askAll(workers, 5), 2)
	if n := b.accounts.count(); n != 3 || b.accounts.tokens[2] != "refresh-2" {
		t.Errorf("%d refreshes, with %v", n, b.accounts.tokens)
	}
	if got := b.told(); !slices.Equal(got, []string{"acme revoked", "acme recovered"}) {
		t.Errorf("events %v", got)
	}
}

// TestRevokedIsFinished: the worker that recorded the verdict died before it
// marked the connection.
func TestRevokedIsFinished(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	w.put(record{Grant: 1, Reason: Revoked, Failures: 1})
	w.until(func(st *state) bool { return st.record.Reason == Revoked })
	_, err := w.ask()
	if u := reasonOf(t, err); u.Reason != Revoked || b.accounts.count() != 0 {
		t.Errorf("%v", u)
	}
	if c, err := w.connections.Fetch(t.Context(), "acme"); err != nil || c.Status != connection.Revoked {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestWhatWasToldEnds: the first token tells that a pause is over, or the lack of a
// grant, also where another failure or a worker's death came in between.
func TestWhatWasToldEnds(t *testing.T) {
	t.Parallel()
	for kind, want := range map[zoho.Kind][]string{
		zoho.Throttled:     {"acme paused", "acme resumed"},
		zoho.Misconfigured: {"acme paused", "acme resumed"},
		zoho.DeadGrant:     {"acme revoked", "acme revoked", "acme recovered"},
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			b, w := one(t)
			for i, k := range []zoho.Kind{kind, kind, zoho.Unavailable, zoho.Unavailable} {
				b.accounts.set(refuses(k))
				_, err := w.ask()
				reasonOf(t, err)
				if w.acme().Status == connection.Revoked {
					if _, err := w.connections.Reauthorize(t.Context(), "acme", secret.New(fmt.Sprint("again-", i)), nil); err != nil {
						t.Fatal(err)
					}
				}
				r := w.entry("acme").state.Load().record
				r.BlockedUntil = time.Time{} // it is over
				if k == zoho.Unavailable {
					r = r.under(w.acme()).claimed(claim{Nonce: fmt.Sprint("dead-", i)}, w.serverNow())
				}
				w.put(r)
				w.until(func(st *state) bool { return st.record.Failures == r.Failures && st.record.BlockedUntil.IsZero() })
			}
			if got, early := b.told(), want[len(want)-1]; slices.Contains(got, early) {
				t.Errorf("events %v, and there is no token yet", got)
			}
			b.accounts.set(nil)
			w.must()
			w.must()
			if got := b.told(); !slices.Equal(got, want) {
				t.Errorf("events %v, want %v", got, want)
			}
		})
	}
}

func TestThrottledAheadKeepsTheToken(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	b.accounts.set(refuses(zoho.Throttled))
	w.put(w.sealed(1, 58*time.Minute, 2*time.Minute))
	w.until(func(st *state) bool { return st.record.Generation == 1 })
	w.must()
	w.until(func(st *state) bool { return st.record.Reason == Throttled })
	for range 20 {
		if token := w.must(); token.Generation != 1 {
			t.Fatalf("%+v", token)
		}
	}
	if n := b.accounts.count(); n != 1 {
		t.Errorf("%d refreshes", n)
	}
}
