package token

import "time"

// View is what is known of a connection's access token, for people: nothing of
// the token itself. Times are by this machine's clock.
type View struct {
	Grant        uint64
	Generation   uint64
	MintedAt     time.Time // zero: none was ever minted
	ExpiresAt    time.Time
	BlockedUntil time.Time // no refresh before
	Reason       Reason    // why the last refresh failed; empty where it did not
}

// Look returns what this process knows of the connection's token; it asks
// nobody.
func (s *Source) Look(name string) View {
	v, ok := s.entries.Load(name)
	if !ok {
		return View{}
	}
	r := v.(*entry).state.Load().record
	local := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return t.Add(-s.skew())
	}
	return View{
		Grant: r.Grant, Generation: r.Generation, MintedAt: local(r.MintedAt), ExpiresAt: local(r.ExpiresAt),
		BlockedUntil: local(r.BlockedUntil), Reason: r.Reason,
	}
}
