// Package zohotest is Zoho for tests and for `worker dev`: the accounts server
// and the CRM API in one http.Handler, with the rules, limits, statuses and
// bodies that docs/zoho-facts.md collects, ordered faults, and a ledger of every
// call it saw.
//
// It is not a model of Zoho's business logic: no workflows, no profiles, no
// field types beyond what a worker can notice. Where the sources conflict it
// takes the stricter reading, so that a worker that passes here is safe there.
//
// Invariants:
//   - Every call is in the ledger from its first byte on, and what a call did is
//     there before its client can learn it, or before its connection is cut.
//   - Who judges a worker's limits finds them counted by zoho-facts 3 alone, see Counts.
//   - A call is no longer counted as in flight when its last byte leaves: a client
//     that keeps the limit is never refused because the server was late to count.
//   - A call that was read whole executes even when its client has gone, as at Zoho.
//   - The server starts no goroutine and writes nothing to disk. All times are
//     read from Options.Now; only delays and latencies use the real clock.
//   - No secret is kept in the ledger: tokens appear as TokenRef, see Call.
package zohotest

import (
	cryptorand "crypto/rand"
	"encoding/hex"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options says how a Server behaves. The zero value is useful.
type Options struct {
	// Now is the clock of tokens, limits, records and the ledger. Nil: time.Now.
	Now func() time.Time

	// ClientID and ClientSecret are those of the one OAuth client. An empty ID
	// accepts every client, an empty secret every secret, but neither may be missing
	// from a token request.
	ClientID, ClientSecret string

	// AccountsURL and APIURL are what redirects and token responses name as
	// accounts-server and api_domain. Empty: the hosts of the user's own data centre,
	// as Zoho does.
	AccountsURL, APIURL string

	// Logger gets one debug line per call. Nil: silent.
	Logger *slog.Logger

	// KeepCalls bounds the list of calls; the oldest go first, the counters stay
	// exact. A call takes 1 to 2 KB and its body. 0: 100,000. Negative: all are kept.
	KeepCalls int

	// KeepBodies bounds how much of each body the ledger keeps, in bytes; the digest
	// is always of the whole body. 0: 64 KiB. Negative: none.
	KeepBodies int

	// MaxBody is the largest request body, in bytes; larger ones are answered 413.
	// 0: 100 MiB.
	MaxBody int64

	// TokenLife is how long an access token lives, in whole seconds. 0: an hour. Short
	// ones bring about many expiries; raise MaxMints with them.
	TokenLife time.Duration

	// MaxMints is how many access tokens a refresh token may mint in 10 minutes
	// before the token endpoint throttles it. 0: 10. Negative: any number.
	MaxMints int

	// SearchLag is for how long a new record is missing from /search, as Zoho's
	// index is late. COQL and lists read the database and see it at once.
	SearchLag time.Duration

	// Order says which ordered sequence a call belongs to and its place in it, so that
	// Orders counts exactly even when no call is kept. Nil or "": none.
	Order func(Call) (key string, place int64)

	// CountOnly keeps no calls, no bodies and no digests, for runs of millions: the
	// counters, Counts and Orders are all that tells what happened.
	CountOnly bool
}

// Server is the simulator. Make one with New; it is safe for concurrent use.
type Server struct {
	opt     Options
	now     func() time.Time
	cookie  string
	closed  chan struct{}
	closing sync.Once

	mu    sync.RWMutex // guards the maps, not what they point to
	orgs  map[string]*org
	users map[string]*User

	auth     authority
	ledger   ledger
	orders   orders
	faults   faults
	hooks    hooks
	latency  atomic.Pointer[[2]time.Duration] // from, to
	throttle atomic.Pointer[string]
	lastID   atomic.Int64
}

// New returns an empty server: no orgs, no users, no grants.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.KeepCalls == 0 {
		o.KeepCalls = 100_000
	}
	if o.KeepBodies == 0 {
		o.KeepBodies = 64 << 10
	}
	if o.MaxBody == 0 {
		o.MaxBody = 100 << 20
	}
	s := &Server{
		opt: o, now: o.Now, cookie: randomHex(16), closed: make(chan struct{}),
		orgs: map[string]*org{}, users: map[string]*User{},
	}
	s.lastID.Store(5725767000000100000) // ids are 19 digits long
	s.auth.init(o)
	s.ledger.init(o)
	return s
}

// Close ends every delay and every held call: those that have not executed never
// will, and their connections are cut. It doesn't wait, and may be called twice.
func (s *Server) Close() { s.closing.Do(func() { close(s.closed) }) }

// SetLatency makes every API call take at least d, spent before it executes; those
// that are refused are answered at once. 0 ends it.
func (s *Server) SetLatency(d time.Duration) { s.SetLatencyBetween(d, d) }

// SetLatencyBetween is SetLatency with a time for each call, evenly spread.
func (s *Server) SetLatencyBetween(from, to time.Duration) {
	s.latency.Store(&[2]time.Duration{from, max(from, to)})
}

// SetOrgLatency is SetLatencyBetween for the calls of one org, instead of the others'.
func (s *Server) SetOrgLatency(orgID string, from, to time.Duration) {
	s.org(orgID).latency.Store(&[2]time.Duration{from, max(from, to)})
}

// work spends the latency of a call; false when the server was closed meanwhile.
func (s *Server) work(o *org) bool {
	between := s.latency.Load()
	if o != nil && o.latency.Load() != nil {
		between = o.latency.Load()
	}
	if between == nil {
		return true
	}
	return s.pause(between[0] + rand.N(between[1]-between[0]+1))
}

// CookieSecret is a value in the Set-Cookie of every response: a worker that lets
// it out has passed on a session.
func (s *Server) CookieSecret() string { return s.cookie }

// newID returns an id that no other record, job or file of this server has.
func (s *Server) newID() string { return strconv.FormatInt(s.lastID.Add(1), 10) }

// pause waits for d in real time; false when the server was closed meanwhile.
func (s *Server) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closed:
		return false
	}
}

// ServeHTTP answers a call, in the order: ledger, identity, limits, fault, body,
// execution, answer.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{s: s, w: w, r: r}
	x.call = Call{
		Endpoint: endpointOf(r.URL.Path), Time: s.now(), Method: r.Method, Path: r.URL.Path,
		RawQuery: r.URL.RawQuery, Header: r.Header,
	}
	if !s.opt.CountOnly {
		x.call.Header = r.Header.Clone()
	}
	if x.call.Endpoint == API {
		x.identify()
	} else {
		x.mask()
	}
	s.ledger.begin(x)
	defer x.finish(0) // for every path that ends without an answer

	s.hooks.run(Arrived, x)
	if x.call.Endpoint == API {
		x.enter()
		s.orders.begin(x)
		if x.fault = s.faults.take(x); x.fault != nil && x.fault.Unread {
			x.answerUnread()
			return
		}
	}
	if !x.read() {
		return
	}
	if x.call.Endpoint != API {
		x.identifyGrant()
		x.fault = s.faults.take(x)
	}
	if x.call.Endpoint == API {
		x.admit()
	}
	s.ledger.publish(x)
	s.hooks.run(BodyRead, x)
	if x.call.Endpoint == API && x.refused == nil && !s.work(x.org) {
		x.cut(Close)
	}
	x.answer()
}

// endpointOf sorts paths: the token endpoint, the API, and the rest of the accounts server.
func endpointOf(path string) string {
	switch {
	case path == "/oauth/v2/token":
		return Token
	case strings.HasPrefix(path, "/oauth/"):
		return Accounts
	}
	return API
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = cryptorand.Read(b) // never fails
	return hex.EncodeToString(b)
}
