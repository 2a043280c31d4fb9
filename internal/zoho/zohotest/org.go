package zohotest

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Org is a Zoho organisation.
type Org struct {
	ID   string // zgid; empty: one is made up
	Name string
	// Concurrency is how many calls may be in flight at one instant before a 429; 0: any.
	// Zoho: Free 5, Standard 10, Professional 15, Enterprise 20, Ultimate 25.
	Concurrency int
	// SubConcurrency bounds the heavy calls among them: COQL, composite, lists that
	// are sorted or by view, writes of more than 10 records, conversions, mails
	// sent. Zoho: 10. 0: any.
	SubConcurrency int
	// Edition is the paid_type of its licence: free, standard, professional,
	// enterprise, ultimate. Empty: enterprise.
	Edition string
	// Credits is how many may be used within 24 hours before a 429; 0: any.
	Credits int
}

// User is a person of an org: the one whose consent a connection holds.
type User struct {
	ID       string // the CRM user id
	ZUID     string // empty: like ID
	Email    string
	Name     string
	OrgID    string
	Location string // data centre: us, eu, in, au, jp, cn, ca, sa, uk, ae; empty: us
}

// org is an Org with its records and its counts.
type org struct {
	Org
	mu      sync.RWMutex // guards modules and what is in them
	modules map[string]*module
	jobs    map[string]*job
	latency atomic.Pointer[[2]time.Duration]

	gate    sync.Mutex // guards the limits, the counts and all that follows
	count   Counts
	taken   int       // places of those in flight, refused ones included
	working int       // in flight and not refused
	changed time.Time // until when the integrals go
	spent   []second  // of the last 24 hours, oldest first
	used    int       // their sum

	downloads   []time.Time // of bulk-read results, within the last minute
	noDownloads time.Time   // until then
}

// second holds the credits used within one second.
type second struct {
	at time.Time
	n  int
}

// AddOrg adds an org, or changes the limits and name of one that is there, and
// returns it with its id.
func (s *Server) AddOrg(o Org) Org {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.ID == "" {
		o.ID = s.newID()
	}
	if old := s.orgs[o.ID]; old != nil {
		old.gate.Lock()
		old.Name, old.Concurrency, old.SubConcurrency, old.Credits, old.Edition = o.Name, o.Concurrency, o.SubConcurrency, o.Credits, o.Edition
		old.gate.Unlock()
		return o
	}
	s.orgs[o.ID] = &org{Org: o, modules: map[string]*module{}, jobs: map[string]*job{}}
	return o
}

// AddUser adds a user, or replaces the one with that id. It panics when the org is unknown.
func (s *Server) AddUser(u User) {
	s.org(u.OrgID)
	if u.Location == "" {
		u.Location = "us"
	}
	if u.ZUID == "" {
		u.ZUID = u.ID
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[u.ID] = &u
}

// Users returns all users, by id.
func (s *Server) Users() map[string]User {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := make(map[string]User, len(s.users))
	for id, u := range s.users {
		m[id] = *u
	}
	return m
}

// org returns an org for a test's call; a test that names an unknown one is wrong.
func (s *Server) org(id string) *org {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o := s.orgs[id]
	if o == nil {
		panic("zohotest: no org " + id)
	}
	return o
}

func (s *Server) user(id string) *User {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := s.users[id]
	if u == nil {
		panic("zohotest: no user " + id)
	}
	return u
}

func (o *org) edition() string {
	o.gate.Lock()
	defer o.gate.Unlock()
	return cmp.Or(o.Edition, "enterprise")
}

// name may change while calls are under way.
func (o *org) name() string {
	o.gate.Lock()
	defer o.gate.Unlock()
	return o.Name
}

// MaxInFlight is the highest number of API calls of an org ever seen at one
// instant, those included that were refused for it.
func (s *Server) MaxInFlight(orgID string) int {
	o := s.org(orgID)
	o.gate.Lock()
	defer o.gate.Unlock()
	return o.count.HighestInFlight
}

// InFlight is the number of API calls of an org in flight now.
func (s *Server) InFlight(orgID string) int {
	o := s.org(orgID)
	o.gate.Lock()
	defer o.gate.Unlock()
	return o.count.InFlight
}

// Throttled is the number of calls that an org's own limits refused with 429;
// injected ones are not counted.
func (s *Server) Throttled(orgID string) int {
	o := s.org(orgID)
	o.gate.Lock()
	defer o.gate.Unlock()
	return o.count.Refused.Sum()
}

// CreditsUsed is what the calls of the last 24 hours have cost.
func (s *Server) CreditsUsed(orgID string) int {
	o := s.org(orgID)
	o.gate.Lock()
	defer o.gate.Unlock()
	o.forget(s.now())
	return o.used
}

// Modules returns the names of an org's modules that hold or held records.
func (s *Server) Modules(orgID string) []string {
	o := s.org(orgID)
	o.mu.RLock()
	defer o.mu.RUnlock()
	return slices.Sorted(maps.Keys(o.modules))
}
