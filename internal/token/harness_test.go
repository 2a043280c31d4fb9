package token

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/lock"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// accounts is the accounts server: it counts, and answers as it is told.
type accounts struct {
	mu     sync.Mutex
	calls  int
	tokens []string // refresh tokens it was shown
	answer func(call int) (*zoho.Grant, error)

	entered chan struct{} // a value for every call, before it is answered
	gate    chan struct{} // if set, a call is answered when it is closed
}

func newAccounts() *accounts { return &accounts{entered: make(chan struct{}, 1000)} }

func (a *accounts) Refresh(ctx context.Context, _ string, refreshToken secret.Text) (*zoho.Grant, error) {
	a.mu.Lock()
	a.calls++
	call, answer, gate := a.calls, a.answer, a.gate
	a.tokens = append(a.tokens, refreshToken.Reveal())
	a.mu.Unlock()
	a.entered <- struct{}{}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, &zoho.Error{Kind: zoho.Unavailable}
		}
	}
	if answer != nil {
		return answer(call)
	}
	return lives(time.Hour)(call)
}

func lives(d time.Duration) func(call int) (*zoho.Grant, error) {
	return func(call int) (*zoho.Grant, error) {
		return &zoho.Grant{AccessToken: secret.New("access-" + strconv.Itoa(call)), ExpiresIn: d}, nil
	}
}

func refuses(kind zoho.Kind) func(int) (*zoho.Grant, error) {
	return func(int) (*zoho.Grant, error) { return nil, &zoho.Error{Kind: kind} }
}

func (a *accounts) set(answer func(int) (*zoho.Grant, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// shut makes calls wait until the returned function is called.
func (a *accounts) shut() (open func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gate := make(chan struct{})
	a.gate = gate
	return sync.OnceFunc(func() {
		a.mu.Lock()
		a.gate = nil
		a.mu.Unlock()
		close(gate)
	})
}

func (a *accounts) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// signalling signals how each Acquire ended.
type signalling struct {
	Locker
	ended chan error
}

func (l signalling) Acquire(ctx context.Context, name string) (*lock.Lock, error) {
	k, err := l.Locker.Acquire(ctx, name)
	l.ended <- err
	return k, err
}

// box is a NATS server, an accounts server, and as many workers as a test wants.
type box struct {
	t        *testing.T
	nats     *natstest.Server
	keys     *secret.Keyring
	accounts *accounts
	redis    string // URL; empty: workers have no locker
	ended    chan error

	mu     sync.Mutex
	events []string
}

func newBox(t *testing.T) *box {
	t.Helper()
	keys, err := secret.ParseKeyring(secret.Generate().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, nats: natstest.Start(t), keys: keys, accounts: newAccounts(), ended: make(chan error, 1000)}
	b.nats.Create(b.nats.JetStream(), connection.StreamConfig(1), StreamConfig(1))
	return b
}

// worker is what one process has.
type worker struct {
	*Source
	t           *testing.T
	js          jetstream.JetStream
	connections *connection.Store
}

func (b *box) worker(changes ...func(*Options)) *worker {
	b.t.Helper()
	js := b.nats.JetStream()
	log := slog.New(slog.DiscardHandler)
	connections, err := connection.Open(b.t.Context(), js, b.keys, connection.Options{Logger: log})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(connections.Close)
	options := Options{
		JS: js, Connections: connections, Keyring: b.keys, Refresher: b.accounts, Logger: log, Check: 200 * time.Millisecond,
		Events: func(connection, event string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, connection+" "+event)
		},
	}
	if b.redis != "" {
		client, err := lock.Client(b.redis)
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { _ = client.Close() })
		options.Locker = signalling{Locker: lock.New(client, lock.Options{Logger: log}), ended: b.ended}
	}
	for _, change := range changes {
		change(&options)
	}
	source, err := Open(b.t.Context(), options)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(source.Close)
	return &worker{Source: source, t: b.t, js: js, connections: connections}
}

func (b *box) workers(n int) []*worker {
	workers := make([]*worker, n)
	for i := range workers {
		workers[i] = b.worker()
	}
	return workers
}

func (b *box) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.events...)
}

// connect adds the connection acme and waits until all workers know it.
func (b *box) connect(workers ...*worker) {
	b.t.Helper()
	_, err := workers[0].connections.Add(b.t.Context(), connection.Connection{
		Name: "acme", Location: "eu", OrgID: "1", UserID: "2",
	}, secret.New("refresh-1"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, w := range workers {
		if _, err := w.connections.Fetch(b.t.Context(), "acme"); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (w *worker) acme() *connection.Connection {
	c, ok := w.connections.Get("acme")
	if !ok {
		w.t.Error("no connection acme")
		return &connection.Connection{Name: "acme"}
	}
	return c
}

func (w *worker) ask() (Token, error) { return w.Token(w.t.Context(), w.acme()) }

func (w *worker) must() Token {
	w.t.Helper()
	token, err := w.ask()
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// answer is what came of one question.
type answer struct {
	token Token
	err   error
}

// askAll has every worker ask k times at once.
func askAll(workers []*worker, k int) <-chan answer {
	answers := make(chan answer, len(workers)*k)
	var wg sync.WaitGroup
	for _, w := range workers {
		for range k {
			wg.Go(func() {
				token, err := w.ask()
				answers <- answer{token, err}
			})
		}
	}
	go func() {
		wg.Wait()
		close(answers)
	}()
	return answers
}

func allGot(t *testing.T, answers <-chan answer, generation uint64) {
	t.Helper()
	for a := range answers {
		if a.err != nil || a.token.Generation != generation {
			t.Errorf("generation %d, %v; want %d", a.token.Generation, a.err, generation)
		}
	}
}

// until waits for a change of the worker's memory that ok likes.
func (w *worker) until(ok func(st *state) bool) {
	w.t.Helper()
	// A stream that is another one is noticed by a look every 15 s, and one of them may fail.
	timeout := time.After(time.Minute)
	for {
		st := w.entry("acme").state.Load()
		if ok(st) {
			return
		}
		select {
		case <-st.next:
		case <-timeout:
			w.t.Fatalf("still %+v", st.record)
		}
	}
}

// put writes a record as somebody else would.
func (w *worker) put(r record) {
	w.t.Helper()
	if _, err := w.js.Publish(w.t.Context(), subjectPrefix+"acme", r.encode()); err != nil {
		w.t.Fatal(err)
	}
}

// sealed is a record with a token that was minted some time ago.
func (w *worker) sealed(generation uint64, age, left time.Duration) record {
	now := w.serverNow()
	r := record{Grant: w.acme().Grant, Generation: generation, MintedAt: now.Add(-age), ExpiresAt: now.Add(left)}
	r.Sealed = w.options.Keyring.Seal(fmt.Appendf(nil, "put-%d", generation), r.associated(w.acme())...)
	return r
}

func reasonOf(t *testing.T, err error) *Unavailable {
	t.Helper()
	var u *Unavailable
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want *Unavailable", err)
	}
	return u
}

// nowhere is the URL of a Redis that does not exist.
func nowhere(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "redis://" + l.Addr().String()
}

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
