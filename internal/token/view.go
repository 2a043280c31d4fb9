package token

import (
	"maps"
	"slices"
	"time"
)

// View is what is known of a connection's access token, for people: nothing of
// the token itself. Times are by this machine's clock.
type View struct {
	Grant        uint64
	MintedAt     time.Time // zero: none was ever minted
	ExpiresAt    time.Time
	BlockedUntil time.Time // no refresh before
	Reason       Reason    // why the last refresh failed; empty where it did not
	UsedAt       time.Time // when this process last gave the token out from memory
}

// Watch has changed called with the name of every connection whose token record
// changed, whoever changed it. It is called in the middle of the change: it must
// not block, and of the Source it may call Look only.
func (s *Source) Watch(changed func(connection string)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches == nil {
		s.watches = map[int]func(string){}
	}
	id := s.nextWatch
	s.nextWatch++
	s.watches[id] = changed
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, id)
	}
}

func (s *Source) tell(name string) {
	s.mu.Lock()
	watches := slices.Collect(maps.Values(s.watches))
	s.mu.Unlock()
	for _, changed := range watches {
		changed(name)
	}
}

// Look returns what this process knows of the connection's token; it asks
// nobody.
func (s *Source) Look(name string) View {
	v, ok := s.entries.Load(name)
	if !ok {
		return View{}
	}
	e := v.(*entry)
	r := e.state.Load().record
	local := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return t.Add(-s.skew(s.options.Now()))
	}
	var used time.Time
	if ns := e.used.Load(); ns != 0 {
		used = time.Unix(0, ns)
	}
	return View{
		UsedAt: used,
		Grant:  r.Grant, MintedAt: local(r.MintedAt), ExpiresAt: local(r.ExpiresAt),
		BlockedUntil: local(r.BlockedUntil), Reason: r.Reason,
	}
}
