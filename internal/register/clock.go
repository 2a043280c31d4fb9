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
type sighting struct {
	server, local time.Time
	// set is when the server's clock was last found to have been set, the zero time
	// where it never was, and reached the time that it had come to before.
	set, reached time.Time
}

// jump is from what difference on the server's clock was set. Less may be the way
// that its word took, and is no more than what a lease has to spare.
const jump = 2 * time.Second

// Observe takes in that the server said it was server, a moment before the local
// instant heard.
func (c *Clock) Observe(server, heard time.Time) {
	now := &sighting{server: server, local: heard}
	if before := c.seen.Load(); before != nil {
		now.set, now.reached = before.set, before.reached
		if expected := before.at(heard); server.Sub(expected).Abs() > jump {
			now.set, now.reached = heard, expected
		}
	}
	c.seen.Store(now)
}

func (s *sighting) at(local time.Time) time.Time { return s.server.Add(local.Sub(s.local)) }

// Now is the server's time.
func (c *Clock) Now() time.Time { return c.At(time.Now()) }

// At is the server's time at the local instant.
func (c *Clock) At(local time.Time) time.Time {
	seen := c.seen.Load()
	if seen == nil {
		return local
	}
	return seen.at(local)
}

// Passed is how much time has passed since the server stored something at then. Once
// its clock was set that is no more than what has passed since, as far as is known, and
// no less for what was stored before it was set back.
func (c *Clock) Passed(then time.Time) time.Duration {
	now, seen := time.Now(), c.seen.Load()
	if seen == nil {
		return now.Sub(then)
	}
	passed := seen.at(now).Sub(then)
	switch since := now.Sub(seen.set); {
	case seen.set.IsZero():
		return passed
	case passed < 0 && !then.After(seen.reached):
		return since
	default:
		return min(passed, since)
	}
}

// Left is for how long a lease still lasts that its holder began itself, and that
// ends at until, which has a monotonic reading. That reading stands still while the
// machine sleeps, and the time of day may be set: what says that less is left counts.
func Left(until time.Time) time.Duration {
	return min(time.Until(until), time.Until(until.Round(0)))
}
