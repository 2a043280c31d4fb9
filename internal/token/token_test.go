package token

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

func one(t *testing.T, changes ...func(*Options)) (*box, *worker) {
	t.Helper()
	b := newBox(t)
	w := b.worker(changes...)
	b.connect(w)
	return b, w
}

// counts are the counters by what their label says; "unavailable" of the locks
// has none of the refreshes beside it.
func counts(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if len(metric.GetLabel()) == 0 {
				continue // a gauge or a histogram
			}
			counted[metric.GetLabel()[0].GetValue()] = metric.GetCounter().GetValue()
		}
	}
	return counted
}

func TestTokenIsSharedAndKept(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	b, w := one(t, func(o *Options) { o.Metrics = registry })
	token := w.must()
	if token.Access.Reveal() != "access-1" || token.Generation != 1 || time.Until(token.Expires) < 59*time.Minute {
		t.Errorf("%+v", token)
	}
	if again := w.must(); again != token {
		t.Errorf("%+v", again)
	}
	later := b.worker() // knows it from the stream
	if again := later.must(); again.Access.Reveal() != "access-1" || b.accounts.count() != 1 {
		t.Errorf("%+v after %d refreshes", again, b.accounts.count())
	}
	if counted := counts(t, registry); len(counted) != 9 || counted[resultMinted] != 1 {
		t.Errorf("counted %v", counted)
	}
	msg, err := w.registers.Get(t.Context(), subjectPrefix+"acme")
	if err != nil || strings.Contains(string(msg.Data), "access-1") {
		t.Errorf("%s, %v", msg.Data, err)
	}
}

func TestRenew(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	first := w.must()
	second, err := w.Renew(t.Context(), w.acme(), first)
	if err != nil || second.Generation != 2 {
		t.Fatalf("%+v, %v", second, err)
	}
	// Refused late, when there is a newer one: no refresh.
	if again, err := w.Renew(t.Context(), w.acme(), first); err != nil || again != second || b.accounts.count() != 2 {
		t.Errorf("%+v, %v, %d", again, err, b.accounts.count())
	}
	if again, err := w.Renew(t.Context(), w.acme(), Token{}); err != nil || again != second || b.accounts.count() != 2 {
		t.Errorf("%+v, %v, %d", again, err, b.accounts.count())
	}
}

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
// minutes would be followed by minutes without a budget.
func TestUnsentCostsNoBudget(t *testing.T) {
	t.Parallel()
	for unsent, want := range map[bool]int{true: 2, false: 3} {
		b, w := one(t) // its consent is the first
		token := w.must()
		b.accounts.set(func(int) (*zoho.Grant, error) { return nil, &zoho.Error{Kind: zoho.Unavailable, Unsent: unsent} })
		_, err := w.Renew(t.Context(), w.acme(), token)
		if u := reasonOf(t, err); u.Reason != AccountsUnavailable {
			t.Error(u)
		}
		if n := len(w.entry("acme").state.Load().record.Mints); n != want {
			t.Errorf("unsent %v: %d count, want %d", unsent, n, want)
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

func TestResumed(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	w.put(record{Grant: 1, Reason: Throttled, Failures: 2, BlockedUntil: w.serverNow().Add(-time.Second)})
	w.until(func(st *state) bool { return st.record.Reason == Throttled })
	w.must()
	if got := b.told(); !slices.Equal(got, []string{"acme resumed"}) {
		t.Errorf("events %v", got)
	}
}

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
		if left := token.Expires.Sub(w.options.Now()); left < 7*time.Minute || left > 8*time.Minute {
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

func TestRenewedAhead(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	w.put(w.sealed(1, 58*time.Minute, 2*time.Minute))
	w.until(func(st *state) bool { return st.record.Generation == 1 })
	open := b.accounts.shut()
	defer open()
	for range 20 {
		if token := w.must(); token.Generation != 1 {
			t.Fatalf("%+v", token)
		}
	}
	<-b.accounts.entered
	open()
	w.until(func(st *state) bool { return st.record.Generation == 2 })
	if token := w.must(); token.Generation != 2 || b.accounts.count() != 1 {
		t.Errorf("%+v, %d", token, b.accounts.count())
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

func TestNearlyOverIsNotGivenOut(t *testing.T) {
	t.Parallel()
	_, w := one(t)
	w.put(w.sealed(1, time.Hour, 5*time.Second))
	w.until(func(st *state) bool { return st.record.Generation == 1 })
	if token := w.must(); token.Generation != 2 {
		t.Errorf("%+v", token)
	}
}

func TestUnopenableTokenIsNone(t *testing.T) {
	t.Parallel()
	_, w := one(t)
	r := w.sealed(7, 0, time.Hour)
	r.Generation = 8 // sealed for another generation: swapped, or tampered with
	w.put(r)
	w.until(func(st *state) bool { return st.record.Generation == 8 })
	if token := w.must(); token.Generation != 9 {
		t.Errorf("%+v", token)
	}
	if _, err := w.js.Publish(t.Context(), subjectPrefix+"acme", []byte("{")); err != nil {
		t.Fatal(err)
	}
	w.until(func(st *state) bool { return st.record.Generation == 0 })
	if token := w.must(); token.Generation != 1 {
		t.Errorf("%+v", token)
	}
}

// TestFlightOutlivesItsFirstCaller: who gives up takes nothing from the others.
func TestFlightOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	open := b.accounts.shut()
	defer open()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	gone := make(chan error, 1)
	go func() {
		_, err := w.Token(ctx, w.acme())
		gone <- err
	}()
	<-b.accounts.entered
	second := askAll([]*worker{w}, 1)
	cancel(enough)
	if err := <-gone; !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	open()
	allGot(t, second, 1)
	oneCall(t, b)
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

// TestAuthorizedAnewMeanwhile: the verdict on the old grant comes when there is
// a new one.
func TestAuthorizedAnewMeanwhile(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	b.accounts.set(refuses(zoho.DeadGrant))
	open := b.accounts.shut()
	defer open()
	answers := askAll([]*worker{w}, 1)
	<-b.accounts.entered
	if _, err := w.connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
		t.Fatal(err)
	}
	open()
	if u := reasonOf(t, (<-answers).err); u.Reason != Revoked {
		t.Errorf("%v", u)
	}
	if c := w.acme(); c.Status != connection.Active || len(b.told()) != 0 {
		t.Errorf("connection is %s, events %v", c.Status, b.told())
	}
	b.accounts.set(nil)
	w.must()
}

// TestAuthorizedAnewUnheard: a worker that has not heard of the new grant finds
// its token in the record, and doesn't put one of the old grant in its place.
func TestAuthorizedAnewUnheard(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	store, err := connection.Open(t.Context(), b.nats.JetStream(), b.keys, connection.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	store.Close() // it hears of nothing any more
	deaf := b.worker(func(o *Options) { o.Connections = store })
	if _, err := w.connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
		t.Fatal(err)
	}
	token := w.must()
	deaf.until(func(st *state) bool { return st.record.Grant == 2 })
	old, ok := store.Get("acme")
	if !ok || old.Grant != 1 {
		t.Fatalf("%+v", old)
	}
	got, err := deaf.Token(t.Context(), old)
	if err != nil || got.Access != token.Access || b.accounts.count() != 1 {
		t.Errorf("generation %d, %v, %d refreshes", got.Generation, err, b.accounts.count())
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

// TestUnsentIsNotCounted: Zoho counts only what reaches it.
func TestUnsentIsNotCounted(t *testing.T) {
	t.Parallel()
	_, w := one(t)
	for name, c := range map[string]struct {
		err   error
		mints int
	}{
		"nothing left":  {fmt.Errorf("refresh: %w", &zoho.Error{Kind: zoho.Unavailable, Unsent: true}), 1},
		"late":          {errLate, 1},
		"some may have": {&zoho.Error{Kind: zoho.Unavailable}, 2},
		"timeout":       {context.DeadlineExceeded, 2},
		"throttled":     {&zoho.Error{Kind: zoho.Throttled}, 2},
	} {
		before := record{Grant: 1, Mints: []time.Time{w.serverNow()}}
		after, _ := w.judge(t.Context(), w.acme(), before.claimed(claim{}, w.serverNow()), c.err)
		if len(after.Mints) != c.mints {
			t.Errorf("%s: %d mints are counted", name, len(after.Mints))
		}
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

func TestRotatedRefreshTokenIsKept(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	b.accounts.set(func(int) (*zoho.Grant, error) {
		return &zoho.Grant{AccessToken: secret.New("a"), RefreshToken: secret.New("refresh-2"), ExpiresIn: time.Hour}, nil
	})
	w.must()
	w.must()
	c := w.acme()
	token, err := c.RefreshToken(b.keys)
	if err != nil || token.Reveal() != "refresh-2" || c.Grant != 2 || b.accounts.count() != 1 {
		t.Errorf("%v, %v, grant %d, %d refreshes", token.Reveal(), err, c.Grant, b.accounts.count())
	}
}

// TestNameUsedAgain: a connection that was removed and added for another org
// never gets the old one's token.
func TestNameUsedAgain(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	w.must()
	if err := w.connections.Remove(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Token(t.Context(), &connection.Connection{Name: "acme"})
	if u := reasonOf(t, err); u.Reason != Revoked {
		t.Errorf("%v", u)
	}
	b.connect(w)
	if token := w.must(); token.Access.Reveal() != "access-2" {
		t.Errorf("%+v", token.Access.Reveal())
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

func BenchmarkTokenInMemory(b *testing.B) {
	s := &Source{options: Options{Now: time.Now}}
	c := &connection.Connection{Name: "acme", Status: connection.Active, Grant: 1}
	now := time.Now()
	s.entry("acme").state.Store(&state{
		record: record{Grant: 1}, token: Token{Access: secret.New("x"), Generation: 1},
		useUntil: now.Add(time.Hour), aheadFrom: now.Add(time.Hour),
	})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Token(context.Background(), c); err != nil {
				b.Error(err)
			}
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	open := b.accounts.shut()
	defer open()
	answers := askAll([]*worker{w}, 1)
	<-b.accounts.entered
	closed := make(chan struct{})
	go func() {
		w.Close()
		close(closed)
	}()
	<-w.ctx.Done()
	open()
	<-closed
	allGot(t, answers, 1) // what was begun is finished
	w.Close()
	if _, err := w.Renew(t.Context(), w.acme(), Token{Generation: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// away fails the first writes of a subject, as a leader that is being elected.
type away struct {
	jetstream.JetStream
	left atomic.Int64
}

func (a *away) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if msg.Subject == "zoho.connections.acme" && a.left.Add(-1) >= 0 {
		return nil, errors.New("no response from stream")
	}
	return a.JetStream.PublishMsg(ctx, msg, o...)
}

// A refresh token that Zoho replaced is kept, also where the first write of it
// fails: the old one may be dead.
func TestRotatedTokenIsKept(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	js := &away{JetStream: b.nats.JetStream()}
	store, err := connection.Open(t.Context(), js, b.keys, connection.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	w := b.worker(func(o *Options) { o.Connections = store })
	w.connections = store
	b.connect(w)
	b.accounts.set(func(call int) (*zoho.Grant, error) {
		return &zoho.Grant{AccessToken: secret.New("access"), RefreshToken: secret.New("refresh-2"), ExpiresIn: time.Hour}, nil
	})
	js.left.Store(1)
	w.must()
	c, err := store.Fetch(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.RefreshToken(b.keys)
	if err != nil || got.Reveal() != "refresh-2" {
		t.Errorf("Zoho gave refresh-2, %q is stored (%v)", got.Reveal(), err)
	}
}
