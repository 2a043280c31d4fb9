package register

import (
	"sync/atomic"
	"time"
)

// Clock tells the JetStream server's time, as last observed. Leases of records
// are judged against the time at which the server stored them, so a machine
// whose own clock is wrong, or is set, neither breaks a running lease nor waits for
// one that is over. The zero Clock tells the machine's time.
type Clock struct{ seen atomic.Pointer[sighting] }

// sighting is the server's time at an instant, which has a monotonic reading: what
// passes since is told by that.
type sighting struct{ server, local time.Time }

// Observe takes in that the server said it was server between the local
// instants asked and heard.
func (c *Clock) Observe(server, asked, heard time.Time) {
	c.seen.Store(&sighting{server, asked.Add(heard.Sub(asked) / 2)})
}

// Now is the server's time.
func (c *Clock) Now() time.Time { return c.At(time.Now()) }

// At is the server's time at the local instant.
func (c *Clock) At(local time.Time) time.Time {
	seen := c.seen.Load()
	if seen == nil {
		return local
	}
	return seen.server.Add(local.Sub(seen.local))
}

// Left is for how long a lease still lasts that its holder began itself, and that
// ends at until, which has a monotonic reading. That reading stands still while the
// machine sleeps, and the time of day may be set: what says that less is left counts.
func Left(until time.Time) time.Duration {
	return min(time.Until(until), time.Until(until.Round(0)))
}
