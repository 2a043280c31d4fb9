package zohotest

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"
)

// The endpoints a call may be for.
const (
	API      = "api"      // /crm/…
	Token    = "token"    // /oauth/v2/token
	Accounts = "accounts" // the rest of /oauth/…: consent, revoke, serverinfo
	Any      = "*"        // in a Match: all of them
)

// TokenRef names an access token without telling it. The zero value: none, or one
// that this server never made.
type TokenRef struct {
	Serial     int    // the nth access token this server minted, from 1
	Generation int    // the nth of its refresh token, from 1
	Grant      string // of its refresh token, see Server.GrantID
	State      string // "live", or why it was not: "expired", "evicted", "revoked"
}

// Call is what the ledger knows of one call. It is a copy, but Header, Body and
// RecordIDs are shared: read only.
type Call struct {
	Seq      uint64 // from 1, in order of arrival
	Time     time.Time
	Endpoint string // API, Token or Accounts
	Method   string
	Path     string
	RawQuery string      // on the accounts server with its secrets masked
	Header   http.Header // with Authorization masked
	// Body is the beginning of the body (Options.KeepBodies). On the accounts server
	// it is the form with its secrets masked.
	Body       []byte
	BodyBytes  int64
	BodySHA256 string // hex, of the whole body as it came; "" until it was read whole
	Token      TokenRef
	Grant      string // the refresh token used (token endpoint) or behind the access token
	GrantType  string // token endpoint only
	OrgID      string
	UserID     string
	// Code is what executing the call came to: SUCCESS, INVALID_TOKEN, invalid_code, …,
	// "minted" for a token; "" for a read with an answer, and when a fault kept it from executing.
	Code      string
	Applied   bool // a write was carried out, at least in part
	RecordIDs []string
	Fault     string    // name of the injected fault that the call met
	Status    int       // 0: no answer was sent
	Finished  time.Time // zero while in flight
	Err       string    // why the body could not be read
}

// Match picks calls. Empty fields match everything, but an empty Endpoint is API.
// Where must not call back into the server.
type Match struct {
	Endpoint string
	Method   string
	Path     string // a prefix; with a * in it, a whole path as of path.Match
	Org      string
	Where    func(Call) bool
}

func (m Match) matches(c *Call) bool {
	if e := cmp.Or(m.Endpoint, API); e != Any && e != c.Endpoint {
		return false
	}
	if m.Method != "" && m.Method != c.Method || m.Org != "" && m.Org != c.OrgID {
		return false
	}
	if strings.Contains(m.Path, "*") {
		if ok, _ := path.Match(m.Path, c.Path); !ok {
			return false
		}
	} else if !strings.HasPrefix(c.Path, m.Path) {
		return false
	}
	return m.Where == nil || m.Where(*c)
}

// ledger keeps the calls. Its counters are exact however few calls it keeps.
type ledger struct {
	mu        sync.Mutex
	keep      int     // negative: all
	calls     []*Call // in order; a ring that starts at next once it is full
	next      int
	seq       uint64
	attempts  int // refreshes asked for
	refreshes int // refreshes granted
	applied   map[string]int
	changed   chan struct{} // closed at the next finished call, if anybody waits
}

func (l *ledger) init(o Options) {
	l.keep = o.KeepCalls
	if o.CountOnly {
		l.keep = 0
	}
	l.applied = map[string]int{}
}

func (l *ledger) begin(x *exchange) {
	x.entry = new(Call)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	x.call.Seq = l.seq
	*x.entry = x.call
	if l.keep == 0 {
		return
	}
	if l.keep < 0 || len(l.calls) < l.keep {
		l.calls = append(l.calls, x.entry)
		return
	}
	l.calls[l.next] = x.entry
	l.next = (l.next + 1) % l.keep
}

func (l *ledger) publish(x *exchange) {
	l.mu.Lock()
	*x.entry = x.call
	l.mu.Unlock()
}

func (l *ledger) executed(x *exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*x.entry = x.call
	if x.call.GrantType == "refresh_token" && x.call.Code == minted {
		l.refreshes++
	}
	if x.call.Applied {
		l.applied[x.call.Method]++
	}
}

func (l *ledger) finish(x *exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*x.entry = x.call
	if x.call.GrantType == "refresh_token" {
		l.attempts++
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// each visits the kept calls in order, under the lock, until f says false.
func (l *ledger) each(f func(*Call) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.calls {
		if !f(l.calls[(l.next+i)%len(l.calls)]) {
			return
		}
	}
}

// Calls returns the calls that the ledger keeps, in order of arrival.
func (s *Server) Calls() []Call { return s.Find(Match{Endpoint: Any}) }

// Find returns the kept calls that m matches, in order of arrival.
func (s *Server) Find(m Match) []Call {
	var found []Call
	s.ledger.each(func(c *Call) bool {
		if m.matches(c) {
			found = append(found, *c)
		}
		return true
	})
	return found
}

// Count counts the kept calls that m matches.
func (s *Server) Count(m Match) int {
	n := 0
	s.ledger.each(func(c *Call) bool {
		if m.matches(c) {
			n++
		}
		return true
	})
	return n
}

// Seen is the number of calls ever seen.
func (s *Server) Seen() uint64 {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.seq
}

// Refreshes is the number of access tokens ever minted by grant_type=refresh_token.
func (s *Server) Refreshes() int {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.refreshes
}

// RefreshAttempts is the number of finished refresh calls, granted or not.
func (s *Server) RefreshAttempts() int {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.attempts
}

// Applied is the number of writes that were carried out by that method. With
// strings, only the kept calls count that have each of them as a record id or in
// their path, query or kept body: the id of a record, or of a request in the body.
func (s *Server) Applied(method string, with ...string) int {
	if len(with) == 0 {
		s.ledger.mu.Lock()
		defer s.ledger.mu.Unlock()
		return s.ledger.applied[method]
	}
	return s.Count(Match{Method: method, Where: func(c Call) bool {
		if !c.Applied {
			return false
		}
		for _, w := range with {
			if !c.has(w) {
				return false
			}
		}
		return true
	}})
}

func (c *Call) has(text string) bool {
	for _, id := range c.RecordIDs {
		if id == text {
			return true
		}
	}
	return strings.Contains(c.Path, text) || strings.Contains(c.RawQuery, text) || bytes.Contains(c.Body, []byte(text))
}

// Await waits until at least n finished calls match, or returns the context's cause.
func (s *Server) Await(ctx context.Context, n int, m Match) error {
	for {
		s.ledger.mu.Lock()
		found := 0
		for _, c := range s.ledger.calls {
			if !c.Finished.IsZero() && m.matches(c) {
				found++
			}
		}
		if found >= n {
			s.ledger.mu.Unlock()
			return nil
		}
		if s.ledger.changed == nil {
			s.ledger.changed = make(chan struct{})
		}
		changed := s.ledger.changed
		s.ledger.mu.Unlock()
		select {
		case <-changed:
		case <-s.closed:
			return errClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
