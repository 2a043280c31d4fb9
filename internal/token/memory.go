package token

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/secret"
)

// A token is renewed in the background when less than ahead is left of it, and
// not given out any more when less than spare is: the call that it is for must
// reach Zoho in time. Tokens that live less than an hour have proportionally less
// of both, at most a tenth of their life.
const (
	ahead = 5 * time.Minute
	spare = 10 * time.Second
)

// entry is what the source holds of a connection.
type entry struct {
	state atomic.Pointer[state]

	mu sync.Mutex // orders the changes of state; guards what follows
	// claim is the claim last seen, and seen when that was first, monotonic.
	claim string
	seen  time.Time

	used     atomic.Int64 // Unix nanoseconds when a token was last given out from memory
	renewing atomic.Bool  // a background refresh is under way
	patience atomic.Int64 // Unix nanoseconds before which no other one begins
}

// state is a record as this process knows it. It is never changed; next is
// closed when another one takes its place.
type state struct {
	position follow.Position
	record   record
	next     chan struct{}

	// token is the opened one, zero where there is none or it can't be opened.
	token     Token
	created   time.Time // of the connection for which it was opened, or tried
	useUntil  time.Time // by this machine's clock
	aheadFrom time.Time
}

// of reports whether there is a token and it is of the connection's present grant.
func (st *state) of(c *connection.Connection) bool {
	return !st.token.Access.IsZero() && st.record.of(c) && st.created.Equal(c.CreatedAt)
}

func (s *Source) entry(name string) *entry {
	if v, ok := s.entries.Load(name); ok {
		return v.(*entry)
	}
	e := &entry{}
	e.state.Store(&state{next: make(chan struct{})})
	v, _ := s.entries.LoadOrStore(name, e)
	return v.(*entry)
}

// kept are the subjects of the records in memory.
func (s *Source) kept() (subjects []string) {
	s.entries.Range(func(name, _ any) bool {
		subjects = append(subjects, subjectPrefix+name.(string))
		return true
	})
	return subjects
}

// change takes in what the stream says.
func (s *Source) change(change follow.Change) {
	name := strings.TrimPrefix(change.Subject, subjectPrefix)
	if change.Gone {
		s.apply(s.entry(name), name, change.Position, record{})
		return
	}
	r, err := decodeRecord(change.Data)
	if err != nil {
		// As good as none: the next refresh writes a new one over it.
		s.options.Logger.Error("token record is ignored", "connection", name, "err", err)
	}
	s.apply(s.entry(name), name, change.Position, r)
}

// apply makes a state of the record and puts it into memory, unless one of its
// position is there, or a newer one. It returns the record's state in any case: a stream
// that was made anew has other records of the same revisions before anybody notices.
func (s *Source) apply(e *entry, name string, position follow.Position, r record) *state {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.Claim != nil && r.Claim.Nonce != e.claim {
		e.claim, e.seen = r.Claim.Nonce, time.Now()
	}
	old := e.state.Load()
	st := &state{position: position, record: r, next: make(chan struct{})}
	if same := old.record; same.Generation == r.Generation && same.Grant == r.Grant && bytes.Equal(same.Sealed, r.Sealed) {
		st.token, st.created, st.useUntil, st.aheadFrom = old.token, old.created, old.useUntil, old.aheadFrom
	} else if c, ok := s.options.Connections.Get(name); ok {
		s.open(st, c)
	}
	switch {
	case position.After(old.position):
		e.state.Store(st)
		close(old.next)
		s.tell(name)
	case position == old.position:
		st.next = old.next
	}
	return st
}

// opened is the state with its token opened for the connection, where that was
// not possible when the record came, because the connection was not known yet.
func (s *Source) opened(e *entry, st *state, c *connection.Connection) *state {
	if len(st.record.Sealed) == 0 || st.created.Equal(c.CreatedAt) {
		return st
	}
	again := &state{position: st.position, record: st.record, next: st.next}
	s.open(again, c)
	e.state.CompareAndSwap(st, again)
	return again
}

// open opens the state's token. One that can't be opened is no token: it is
// said once, and the next who needs one refreshes.
func (s *Source) open(st *state, c *connection.Connection) {
	r := st.record
	st.created = c.CreatedAt
	if len(r.Sealed) == 0 {
		return
	}
	access, err := s.options.Keyring.Open(r.Sealed, r.associated(c)...)
	if err != nil {
		s.options.Logger.Warn("access token is ignored", "connection", c.Name, "generation", r.Generation, "err", err)
		return
	}
	now := s.options.Now()
	expires := now.Add(r.ExpiresAt.Sub(now.Add(s.skew(now))))
	life := r.ExpiresAt.Sub(r.MintedAt)
	early := min(ahead, life/10)
	st.token = Token{Access: secret.New(string(access)), Generation: r.Generation, Expires: expires}
	st.useUntil = expires.Add(-min(spare, life/60))
	// Up to a fifth earlier or later, so that the workers don't all begin at once.
	st.aheadFrom = expires.Add(-early + time.Duration((rand.Float64()-0.5)*0.4*float64(early)))
}

// leaseLeft is how much of the claim's lease is left to whoever watches it.
func (e *entry) leaseLeft(c *claim) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.Nonce != e.claim {
		return c.lease() // seen by now, and superseded: look again
	}
	return c.lease() - time.Since(e.seen)
}

// measure takes in what must be added to this machine's clock to get the server's.
func (s *Source) measure(offset time.Duration) {
	now := s.options.Now()
	s.clock.Observe(now.Add(offset).Round(0), now)
}

// skew is what must be added to this machine's clock to get the server's, if it says now.
func (s *Source) skew(now time.Time) time.Duration { return s.clock.At(now).Sub(now) }

func (s *Source) serverNow() time.Time {
	return s.clock.At(s.options.Now()).UTC().Truncate(time.Millisecond)
}
