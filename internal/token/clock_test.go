package token

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// TestStep: a clock that steps between two looks at the server's ends no block, and
// begins none.
func TestStep(t *testing.T) {
	t.Parallel()
	var step atomic.Int64
	b, w := one(t, func(o *Options) {
		o.Now = func() time.Time { return natstest.Dated(time.Now(), time.Duration(step.Load())) }
		o.Check = time.Hour
	})
	b.accounts.set(refuses(zoho.Throttled))
	for _, by := range []time.Duration{0, time.Hour, -time.Hour} {
		step.Store(int64(by))
		_, err := w.ask()
		u := reasonOf(t, err)
		if left := u.Until.Sub(w.options.Now().Round(0)); u.Reason != Throttled || left < 9*time.Minute || left > 10*time.Minute {
			t.Errorf("stepped by %v: %v, %v left", by, u, left)
		}
	}
	if n := b.accounts.count(); n != 1 {
		t.Errorf("%d refreshes", n)
	}
}

// TestSkew: clocks 20 minutes apart agree on a token's life, on blocks and on
// who refreshes.
func TestSkew(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	clock := func(by time.Duration) func(*Options) {
		return func(o *Options) { o.Now = func() time.Time { return time.Now().Add(by) } }
	}
	early, late := b.worker(clock(-10*time.Minute)), b.worker(clock(10*time.Minute))
	b.connect(early, late)
	b.accounts.set(lives(8 * time.Minute))
	for i, w := range []*worker{early, late, early, late} {
		token := w.must()
		if left := token.Expires.Sub(w.options.Now()); left < 7*time.Minute || left > 9*time.Minute {
			t.Errorf("ask %d: %v left", i, left)
		}
	}
	if n := b.accounts.count(); n != 1 {
		t.Fatalf("%d refreshes", n)
	}
	b.accounts.set(refuses(zoho.Throttled))
	for i, w := range []*worker{late, early} {
		_, err := w.Renew(t.Context(), w.acme(), Token{Generation: 1})
		u := reasonOf(t, err)
		if left := u.Until.Sub(w.options.Now()); u.Reason != Throttled || left < 9*time.Minute || left > 11*time.Minute {
			t.Errorf("ask %d: %v, %v left", i, u, left)
		}
	}
	if n := b.accounts.count(); n != 2 {
		t.Errorf("%d refreshes", n)
	}
}

// TestLifeBeginsWhenAsked: by how long an answer takes a token lives shorter here.
func TestLifeBeginsWhenAsked(t *testing.T) {
	t.Parallel()
	_, w := one(t)
	asked := w.serverNow().Add(-8 * time.Second)
	grant := &zoho.Grant{AccessToken: secret.New("a"), ExpiresIn: time.Hour}
	r := w.minted(t.Context(), w.acme(), record{Grant: 1}.claimed(claim{}, asked), grant, secret.New("refresh-1"), asked)
	if want := asked.Add(time.Hour); !r.ExpiresAt.Equal(want) || !r.MintedAt.Equal(asked) {
		t.Errorf("minted at %s, expires at %s, want %s", r.MintedAt, r.ExpiresAt, want)
	}
}

// noting notes when the first write of a token record began.
type noting struct {
	jetstream.JetStream
	first atomic.Pointer[time.Time]
}

func (n *noting) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if now := time.Now(); msg.Subject == "zoho.tokens.acme" {
		n.first.CompareAndSwap(nil, &now)
	}
	return n.JetStream.PublishMsg(ctx, msg, o...)
}

// until notes when a refresh must be over.
type until struct {
	*accounts
	at time.Time
}

func (u *until) Refresh(ctx context.Context, location string, refreshToken secret.Text) (*zoho.Grant, error) {
	u.at, _ = ctx.Deadline()
	return u.accounts.Refresh(ctx, location, refreshToken)
}

// TestRefreshEndsBeforeItsClaim: its time began before its claim was written,
// however long that took.
func TestRefreshEndsBeforeItsClaim(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	js, refresher := &noting{JetStream: b.nats.JetStream()}, &until{accounts: b.accounts}
	w := b.worker(func(o *Options) { o.JS, o.Refresher, o.RefreshTimeout = js, refresher, 20*time.Second })
	b.connect(w)
	w.must()
	if claimed := *js.first.Load(); refresher.at.IsZero() || refresher.at.After(claimed.Add(20*time.Second)) {
		t.Errorf("a refresh may last until %s after its claim was written", refresher.at.Sub(claimed))
	}
}
