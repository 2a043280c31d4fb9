package token

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
)

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
