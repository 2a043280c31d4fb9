// Package token gives out usable access tokens: a connection's token is minted
// once for all workers, shared through its record at zoho.tokens.<connection>,
// and renewed before it ends.
//
// It does not judge Zoho's answers to API calls: whoever got INVALID_TOKEN says
// so with Renew. It keeps no refresh tokens: package connection does.
//
// Invariants:
//   - Nobody refreshes without a claim in the record, written by a
//     compare-and-set; the Redis lock before it only spares the others the race.
//     So one expiry is one refresh, with Redis, without it, and whatever happens
//     to it meanwhile; two if the worker that holds the claim dies.
//   - A claim runs out by the clock of whoever watches it, from when that one
//     first saw it, and for its holder by its own, from before it was written.
//   - At most 10 tokens of a grant are asked for in 10 minutes, the one that came
//     with the consent included, counted in the record before they are.
//   - What Zoho said to one worker holds for all: the record carries the block.
//   - Only invalid_code marks a connection revoked, once, and only the grant
//     that Zoho refused.
//   - A call for a token that is in memory takes no lock and asks nobody.
package token

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/lock"
	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// StreamName is the stream of token records.
const StreamName = "ZOHO_TOKENS"

const subjectPrefix = "zoho.tokens."

// StreamConfig is the configuration of the stream of token records.
func StreamConfig(replicas int) jetstream.StreamConfig {
	return register.Config(StreamName, "access tokens, sealed, and the claims on their refresh", subjectPrefix+"*", replicas, 0)
}

// Token is an access token. Generation tells it from the connection's other
// ones; Expires is by the clock of this machine.
type Token struct {
	Access     secret.Text
	Generation uint64
	Expires    time.Time
}

// Unavailable says that there is no token now, and when to ask again. It is
// not the request's fault, and no attempt of it.
type Unavailable struct {
	// Until is when it is worth asking again, by this machine's clock; zero
	// where only a new authorization helps.
	Until  time.Time
	Reason Reason
	// Err is what was behind it, where there is something to know.
	Err error
}

// Error implements error.
func (u *Unavailable) Error() string {
	text := "no token: " + string(u.Reason)
	if !u.Until.IsZero() {
		text += " until " + u.Until.UTC().Format(time.RFC3339)
	}
	if u.Err != nil {
		text += ": " + u.Err.Error()
	}
	return text
}

// Unwrap returns what was behind it, or nil.
func (u *Unavailable) Unwrap() error { return u.Err }

// ErrClosed says that the Source was closed.
var ErrClosed = errors.New("token source is closed")

// Locker is what a Source needs of package lock.
type Locker interface {
	Acquire(ctx context.Context, name string) (*lock.Lock, error)
}

// Refresher is what a Source needs of package zoho. An error that is no
// *zoho.Error counts as zoho.Unavailable.
type Refresher interface {
	Refresh(ctx context.Context, location string, refreshToken secret.Text) (*zoho.Grant, error)
}

// The events that Options.Events is told.
const (
	EventRevoked   = "revoked"   // Zoho refused the refresh token for good
	EventRecovered = "recovered" // the first token after a new authorization
	EventPaused    = "paused"    // throttled or misconfigured: no refresh for a while
	EventResumed   = "resumed"   // the first token after that
)

// Options of a Source. JS, Connections, Keyring and Refresher are required.
type Options struct {
	JS          jetstream.JetStream
	Connections *connection.Store
	Keyring     *secret.Keyring
	Refresher   Refresher
	// Locker spares workers the race for the claim. Nil: they race.
	Locker Locker
	// RefreshTimeout bounds one refresh, from before its claim is written. Too
	// short gives up on a slow accounts server and wastes a mint; too long makes
	// the others wait for a worker that died: the claim's lease is this and 5 s
	// more. Default 10 s; not shorter than the client's own timeout.
	RefreshTimeout time.Duration
	// Check is how often the stream is looked at for being another one. Default 15 s.
	Check time.Duration
	// Now is this machine's clock. It need not be right: times in records are
	// the server's. Default time.Now.
	Now func() time.Time
	// Events, if set, is told what happened to a connection, by the worker that
	// made it happen and only by that one. It must not block for long.
	Events func(connection, event string)
	// Metrics, if set, gets the counters.
	Metrics prometheus.Registerer
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// Source gives out tokens. It is safe for concurrent use.
type Source struct {
	options   Options
	registers *register.Stream
	follower  *follow.Follower
	entries   sync.Map // connection name to *entry
	flights   singleflight.Group
	metrics   *metrics
	clock     register.Clock // the server's, by what options.Now says

	ctx  context.Context // ends when Close is called
	stop context.CancelFunc

	mu        sync.Mutex // guards closed, the beginning of work, and watches
	closed    bool
	watches   map[int]func(string)
	nextWatch int
	work      sync.WaitGroup
}

// exchange bounds a single exchange with the JetStream server.
const exchange = 5 * time.Second

// Open returns a Source that knows every token record there is. The stream
// must exist; see StreamConfig.
func Open(ctx context.Context, options Options) (*Source, error) {
	if options.JS == nil || options.Connections == nil || options.Keyring == nil || options.Refresher == nil {
		return nil, errors.New("open token source: JS, Connections, Keyring and Refresher are required")
	}
	if options.RefreshTimeout <= 0 {
		options.RefreshTimeout = 10 * time.Second
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Events == nil {
		options.Events = func(string, string) {}
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	s := &Source{options: options, registers: register.New(options.JS, StreamName, exchange)}
	var err error
	if s.metrics, err = newMetrics(options.Metrics, s); err != nil {
		return nil, fmt.Errorf("open token source: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.follower, err = follow.Start(ctx, options.JS, follow.Options{
		Stream: StreamName, Apply: s.change, Kept: s.kept, Check: options.Check, Now: options.Now, Logger: options.Logger,
		Measured: s.measure,
	})
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("open token source: %w", err)
	}
	return s, nil
}

// Close ends every wait, lets a refresh that is under way finish and store its
// token (RefreshTimeout and 5 s at most), and stops following the stream. It may
// be called more than once.
func (s *Source) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.work.Wait()
	s.follower.Close()
}

// begin counts a piece of work that Close waits for; false when it is too late.
func (s *Source) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

// Token returns a token of the connection that is good for another while. The
// error is an *Unavailable where there is none now and it is known when to ask
// again; the cause of ctx where that ended first; any other error means that
// the record could not be read or written.
func (s *Source) Token(ctx context.Context, c *connection.Connection) (Token, error) {
	if v, ok := s.entries.Load(c.Name); ok {
		e := v.(*entry)
		if st := e.state.Load(); c.Status == connection.Active && st.of(c) {
			now := s.options.Now()
			if now.Before(st.useUntil) {
				e.used.Store(now.UnixNano())
				if now.After(st.aheadFrom) {
					s.ahead(e, c, st, now)
				}
				return st.token, nil
			}
		}
	}
	return s.obtain(ctx, c.Name, 0)
}

// Renew returns a token other than the one that Zoho refused: the one that
// somebody minted meanwhile, else a new one. Errors are those of Token.
func (s *Source) Renew(ctx context.Context, c *connection.Connection, failed Token) (Token, error) {
	return s.obtain(ctx, c.Name, failed.Generation)
}

// obtain is the way to a token that is not simply in memory. Generation failed
// is none that will do.
func (s *Source) obtain(ctx context.Context, name string, failed uint64) (Token, error) {
	c, err := s.connection(name)
	if err != nil {
		return Token{}, err
	}
	e := s.entry(name)
	st := s.opened(e, e.state.Load(), c)
	token, err := s.verdict(st, c, failed)
	if !token.Access.IsZero() || err != nil && !isRevoked(err) {
		return token, err
	}
	// The generation in memory will not do, nor will the one that failed, which
	// memory may not have yet. All who find that out of the same one share a flight.
	// One of a grant that this process has not heard of will do once it has.
	if st.record.Grant <= c.Grant {
		failed = max(st.record.Generation, failed)
	}
	return s.flight(ctx, e, c, failed)
}

// verdict is what a state says without a refresh: a token, an *Unavailable, or
// neither.
func (s *Source) verdict(st *state, c *connection.Connection, except uint64) (Token, error) {
	if st.of(c) && st.token.Generation != except && s.options.Now().Before(st.useUntil) {
		return st.token, nil
	}
	until, blocked := st.record.under(c).blocked(s.serverNow())
	if !blocked {
		return Token{}, nil
	}
	return Token{}, s.unavailable(st.record.Reason, until, nil)
}

// connection returns the newest record of the connection that this process
// knows, or why it can't have a token.
func (s *Source) connection(name string) (*connection.Connection, error) {
	c, ok := s.options.Connections.Get(name)
	if !ok {
		return nil, &Unavailable{Reason: Revoked, Err: connection.ErrNotFound}
	}
	return c, s.refusal(c)
}

func (s *Source) refusal(c *connection.Connection) error {
	switch {
	case c.Status == connection.Revoked || c.Status == connection.Removed:
		return &Unavailable{Reason: Revoked}
	case c.Err() != nil:
		return &Unavailable{Until: s.options.Now().Add(time.Minute), Reason: Misconfigured, Err: c.Err()}
	}
	return nil
}

// unavailable turns a time of the server's into one of this machine's.
func (s *Source) unavailable(reason Reason, until time.Time, err error) *Unavailable {
	u := &Unavailable{Reason: reason, Err: err}
	if !until.IsZero() {
		u.Until = until.Add(-s.skew(s.options.Now()))
	}
	return u
}
