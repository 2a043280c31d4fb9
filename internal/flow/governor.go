// Package flow keeps one org's limits: how many calls may be in flight, of them
// how many heavy ones, what its credits allow, and for how long everything waits
// after Zoho refused a call.
//
// It does no I/O, has no clock, and starts nothing: its owner asks before each
// call and tells it what became of it. A Governor is not safe for concurrent use.
//
// Invariants: no more calls are admitted than the org's limit, whatever is told
// in which order; the limit never exceeds the configured one and never falls
// below one; credits that a call in flight may use are not given to another.
package flow

import (
	"math/rand/v2"
	"strings"
	"time"
)

// HeavyPlaces is how many heavy calls of an org Zoho allows at one instant, for
// every edition (zoho-facts 3.3).
const HeavyPlaces = 10

// Ask is what is known of a call before it is made.
type Ask struct {
	Connection string
	Heavy      bool
	// Places are the calls in flight that it counts for, and Heavies, if it is Heavy,
	// those of the heavy ones; 0: one.
	Places, Heavies int
	// Bulk work may not touch the reserve of credits.
	Bulk    bool
	Credits int
}

// places are the calls in flight that it counts for.
func (a Ask) places() int { return max(1, a.Places) }

// heavies are the heavy calls in flight that it counts for.
func (a Ask) heavies() int {
	if !a.Heavy {
		return 0
	}
	return max(1, a.Heavies)
}

// Reason is why a call can't be started now. The list is closed: it is a
// metric's label.
type Reason string

// The reasons; "" is none.
const (
	Full        Reason = "place"       // the org has no free place
	HeavyFull   Reason = "heavy_place" // no free place for a heavy call
	Paused      Reason = "pause"       // Zoho refused a call of the org, or a person paused it
	HeavyPaused Reason = "heavy_pause" // Zoho refused a heavy call
	CreditsOut  Reason = "credits"     // the credits are used up
	Reserved    Reason = "reserve"     // what is left is kept for interactive work
	BudgetSpent Reason = "budget"      // the connection has used its share
)

// Reasons returns the closed list.
func Reasons() []Reason {
	return []Reason{Full, HeavyFull, Paused, HeavyPaused, CreditsOut, Reserved, BudgetSpent}
}

// Limits are set from outside.
type Limits struct {
	// Places is how many calls may be in flight (zoho-facts 3.3).
	Places int
	// Reserve is the part of the credits, from 0 to 1, that bulk work may not touch.
	Reserve float64
	// Budgets are the credits that a connection may use in 24 hours; none: any.
	Budgets map[string]int
}

// Governor keeps one org's limits.
type Governor struct {
	limits  Limits
	state   State
	changed bool // the state is worth saving

	running, heavy int
	calls, heavies pool
	pending        int            // credits that calls in flight may use
	spending       map[string]int // the same by connection
	slid           int64          // the slice up to which the credits are counted
	// doubtful says that a call went through which the credits known couldn't pay.
	doubtful bool
	// foreign is how many calls of another worker may still be in flight.
	foreign int

	// ramp is how many calls may be in flight after a pause: it doubles with
	// each answer. 0: no pause lately.
	ramp int
	// strikes counts the pauses in a row, without an answer in between.
	strikes, heavyStrikes, creditStrikes int
	unanswered                           int // pauses of either kind
	pausedAt, heavyPausedAt              time.Time
	lowered, heavyLowered                climb
}

// climb is when a lowered limit may be raised again.
type climb struct {
	since   time.Time     // the last change
	raised  bool          // it was a step up
	wait    time.Duration // until the next one
	answers int           // since then
}

// New returns a governor that goes on from state.
func New(limits Limits, state State) *Governor {
	g := &Governor{limits: limits, state: state.normalised(), spending: map[string]int{}}
	g.lowered.wait, g.heavyLowered.wait = climbFirst, climbFirst
	if g.state.Pause != nil {
		g.ramp = 1
	}
	return g
}

// Configure takes in changed limits.
func (g *Governor) Configure(limits Limits) { g.limits = limits }

// Places is how many calls may be in flight now, those of another worker that
// may still run taken off.
func (g *Governor) Places() int {
	n := g.Limit()
	if g.ramp > 0 {
		n = min(n, g.ramp)
	}
	return max(0, n-g.foreign)
}

// Limit is the configured limit, or less where Zoho allowed less.
func (g *Governor) Limit() int {
	n := max(1, g.limits.Places)
	if g.state.Limit > 0 {
		n = min(n, g.state.Limit)
	}
	return n
}

func (g *Governor) heavyLimit() int {
	n := HeavyPlaces
	if g.state.HeavyLimit > 0 {
		n = min(n, g.state.HeavyLimit)
	}
	return min(n, g.Limit())
}

// heavyPlaces is how many heavy calls may be in flight now. Those of another
// worker may all be heavy.
func (g *Governor) heavyPlaces() int { return max(0, g.heavyLimit()-g.foreign) }

// Running is how many calls are in flight, and how many of them heavy.
func (g *Governor) Running() (all, heavy int) { return g.running, g.heavy }

// Free is how many more calls may be in flight now, and how many more heavy ones.
func (g *Governor) Free() (all, heavy int) {
	return max(0, g.Places()-g.calls.taken), max(0, g.heavyPlaces()-g.heavies.taken)
}

// Foreign says how many calls of another worker may still be in flight.
func (g *Governor) Foreign(n int) { g.foreign = max(0, n) }

// May reports why the call can't start now, "" if it can, and until when that
// holds at least, where that is known.
func (g *Governor) May(now time.Time, a Ask) (Reason, time.Time) {
	if reason, until := g.Pauses(now, a); reason != "" {
		return reason, until
	}
	if reason, until := g.credit(now, a); reason != "" {
		return reason, until
	}
	lonely := g.foreign == 0
	heavyFull := a.Heavy && g.heavies.full(now, a.heavies(), g.heavyPlaces(), lonely, true)
	switch {
	case g.calls.full(now, a.places(), g.Places(), lonely, !heavyFull):
		return Full, time.Time{}
	case heavyFull:
		return HeavyFull, time.Time{}
	}
	return "", time.Time{}
}

// Pauses is May as far as it goes by pauses: for a call whose place is taken
// already, and that is to be made again.
func (g *Governor) Pauses(now time.Time, a Ask) (Reason, time.Time) {
	if p := g.state.Hand; p != nil && now.Before(p.Until) {
		return Paused, p.Until
	}
	if p := g.state.Pause; p.holds(now) {
		return Paused, p.Until
	}
	if p := g.state.HeavyPause; a.Heavy && p.holds(now) {
		return HeavyPaused, p.Until
	}
	return "", time.Time{}
}

// Start counts a call that May allowed.
func (g *Governor) Start(a Ask) {
	g.running++
	g.calls.start(a.places())
	g.heavies.start(a.heavies())
	g.pending += a.Credits
	g.spending[a.Connection] += a.Credits
	if a.Heavy {
		g.heavy++
	}
}

// End counts a call that is over.
func (g *Governor) End(a Ask) {
	g.running--
	g.calls.taken -= a.places()
	g.heavies.taken -= a.heavies()
	g.pending -= a.Credits
	if g.spending[a.Connection] -= a.Credits; g.spending[a.Connection] <= 0 {
		delete(g.spending, a.Connection)
	}
	if a.Heavy {
		g.heavy--
	}
}

// Bounds of the careful climb back to the configured limit: one place at a time,
// after so many answers and so much time; twice the time where the last step was
// one too far.
const (
	climbFirst   = 10 * time.Second
	climbLongest = 10 * time.Minute
	climbAnswers = 50
)

// Answered takes in that Zoho answered a call with anything but 429.
func (g *Governor) Answered(now time.Time, a Ask) {
	if g.doubtful {
		g.forget()
		g.changed = true
	}
	if !g.state.Pause.holds(now) {
		if g.ramp > 0 {
			if g.ramp *= 2; g.ramp >= g.Limit() {
				g.ramp = 0
			}
		}
		g.strikes, g.creditStrikes, g.unanswered = 0, 0, 0
		if a.Heavy {
			g.heavyStrikes = 0
		}
	}
	if g.state.Limit > 0 && g.lowered.step(now) {
		if g.state.Limit++; g.state.Limit >= g.limits.Places {
			g.state.Limit = 0
		}
		g.changed = true
	}
	if a.Heavy && g.state.HeavyLimit > 0 && g.heavyLowered.step(now) {
		if g.state.HeavyLimit++; g.state.HeavyLimit >= HeavyPlaces {
			g.state.HeavyLimit = 0
		}
		g.changed = true
	}
}

// step counts an answer and reports whether the limit may be raised by one.
func (c *climb) step(now time.Time) bool {
	c.answers++
	if c.answers < climbAnswers || now.Sub(c.since) < c.wait {
		return false
	}
	c.since, c.answers, c.raised = now, 0, true
	return true
}

// fall returns the limit after a refusal with so many calls in flight. Soon
// after a step up, it was one too far: back to what went well, and the next one
// waits longer. Else a quarter less than were in flight, but no less than half
// of what it was.
func (c *climb) fall(now time.Time, limit, running int) int {
	if c.raised && now.Sub(c.since) < 2*c.wait {
		limit--
		c.wait = min(2*c.wait, climbLongest)
	} else {
		limit = max(limit/2, min(limit, running)*3/4)
		if c.raised {
			c.wait = climbFirst
		}
	}
	c.since, c.answers, c.raised = now, 0, false
	return max(1, limit)
}

// Refusal is a 429.
type Refusal struct {
	// Began is when the call began: calls that were in flight together are
	// refused together.
	Began      time.Time
	RetryAfter time.Duration
	Code       string
	Message    string
	// Remaining are the credits left as the answer's headers say, -1 where they don't.
	Remaining int64
}

// Cause is which of Zoho's limits a 429 was for. The list is closed.
type Cause string

// The causes.
const (
	Concurrency    Cause = "concurrency"
	SubConcurrency Cause = "sub_concurrency"
	Credits        Cause = "credits"
)

// Words are the limit in words, as in "the limit of …".
func (c Cause) Words() string {
	switch c {
	case Concurrency:
		return "calls in flight"
	case SubConcurrency:
		return "heavy calls"
	case Credits:
		return "credits of 24 hours"
	}
	return ""
}

// Causes returns the closed list.
func Causes() []Cause { return []Cause{Concurrency, SubConcurrency, Credits} }

// escalate is after how many pauses in a row without an answer a 429 whose
// cause isn't said is taken for one for credits.
const escalate = 6

// diagnose tells the three causes apart, which share a status (zoho-facts 3.5):
// by the message's words, by what is left of the credits, by what was in flight.
func (g *Governor) diagnose(now time.Time, a Ask, r Refusal) Cause {
	message := strings.ToLower(r.Message)
	switch {
	case strings.Contains(message, "sub-concurrency"), strings.Contains(message, "sub concurrency"), strings.Contains(message, "subconcurrency"):
		return SubConcurrency
	case strings.Contains(message, "concurren"):
		// Zoho's documentation names both causes in one sentence.
		if !strings.Contains(message, "24 hour") {
			return Concurrency
		}
	case strings.Contains(message, "24 hour"), strings.Contains(message, "credit"):
		return Credits
	}
	remaining, known := g.Remaining(now)
	if r.Remaining >= 0 {
		remaining, known = r.Remaining, true
	}
	switch {
	case known && remaining < int64(max(1, a.Credits)):
		return Credits
	case g.unanswered >= escalate:
		return Credits
	case a.Heavy && g.heavy > 1 && g.heavyLimit()-g.heavies.taken < g.Limit()-g.calls.taken:
		return SubConcurrency // nearer to its limit than the org is to its own
	}
	return Concurrency
}

// Bounds of pauses. A pause for credits is bounded because credits come back at
// any time: other applications' calls of 24 hours ago are not known here.
const (
	pauseFirst    = 500 * time.Millisecond
	pauseLongest  = time.Minute
	creditFirst   = time.Minute
	creditLongest = 15 * time.Minute
	retryLongest  = time.Hour
	pauseShortest = 100 * time.Millisecond
)

// Refused takes in a 429 and returns its cause and the pause that is now in
// force for it; again says that the pause was there already, because of a call
// that was in flight together with this one.
func (g *Governor) Refused(now time.Time, a Ask, r Refusal) (cause Cause, p Pause, again bool) {
	cause = g.diagnose(now, a, r)
	g.changed = true
	what := strings.TrimSpace("429 " + r.Code)
	if cause != Credits {
		g.learn(now, r.Began, r.Remaining)
	}
	if cause == SubConcurrency && a.Heavy {
		if together(now, r.Began, g.heavyPausedAt) {
			g.state.HeavyPause = g.state.HeavyPause.extended(now, r.RetryAfter)
			return cause, *g.state.HeavyPause, true
		}
		g.heavyStrikes++
		g.unanswered++
		g.heavyPausedAt = now
		g.state.HeavyLimit = g.heavyLowered.fall(now, g.heavyLimit(), g.heavies.taken)
		g.state.HeavyPause = g.state.HeavyPause.or(now, &Pause{Until: now.Add(brief(g.heavyStrikes, r)), Cause: what, For: cause})
		return cause, *g.state.HeavyPause, false
	}
	// A call that is heavy for Zoho and not for us finds no heavy pause: it pauses all.
	if p := g.state.Pause; together(now, r.Began, g.pausedAt) && (cause != Credits || p != nil && p.For == cause) {
		g.state.Pause = p.extended(now, r.RetryAfter)
		return cause, *g.state.Pause, true
	}
	g.pausedAt = now
	g.strikes++
	g.unanswered++
	var d time.Duration
	if cause == Credits {
		g.creditStrikes++
		left := int64(max(0, a.Credits-1)) // less than the call costs
		g.remember(now, min(left, max(0, r.Remaining)))
		d = g.untilCredits(now, a, r)
	} else {
		g.state.Limit = g.lowered.fall(now, g.Limit(), g.calls.taken+g.foreign)
		d = brief(g.strikes, r)
	}
	g.ramp = 1
	g.state.Pause = g.state.Pause.or(now, &Pause{Until: now.Add(d), Cause: what, For: cause})
	return cause, *g.state.Pause, false
}

// together reports whether a call was in flight already when the pause was made,
// whose refusal says nothing new.
func together(now, began, paused time.Time) bool {
	return began.Before(paused) && !paused.After(now) // a clock that went back proves nothing
}

// brief is the pause for a strike: Retry-After, else a time whose upper end
// doubles, with full jitter.
func brief(strikes int, r Refusal) time.Duration {
	if r.RetryAfter > 0 {
		return min(max(r.RetryAfter, pauseShortest), retryLongest)
	}
	upper := min(pauseFirst<<min(strikes-1, 10), pauseLongest)
	return max(rand.N(upper), pauseShortest)
}

// untilCredits is the time until enough of the window has passed.
func (g *Governor) untilCredits(now time.Time, a Ask, r Refusal) time.Duration {
	if r.RetryAfter > 0 {
		return min(max(r.RetryAfter, pauseShortest), retryLongest)
	}
	upper := min(creditFirst<<min(g.creditStrikes-1, 10), creditLongest)
	if at, ok := g.state.Used.freed(number(now), max(1, a.Credits)); ok {
		return min(max(at.Sub(now), time.Second), upper)
	}
	return upper
}

// Pause says until when nothing starts, and for which answer of Zoho's.
type Pause struct {
	Until time.Time `json:"until"`
	Cause string    `json:"cause"`
	For   Cause     `json:"for,omitempty"`
}

// holds reports whether the pause is in force; nil is none. One that ends much
// later than any that is made here was written by a clock that was wrong.
func (p *Pause) holds(now time.Time) bool {
	return p != nil && now.Before(p.Until) && p.Until.Sub(now) <= 2*retryLongest
}

// or is the pause that ends later: this one, if it is in force, or another.
func (p *Pause) or(now time.Time, other *Pause) *Pause {
	if p.holds(now) && p.Until.After(other.Until) {
		return p
	}
	return other
}

// extended is the pause with a later end where Retry-After asks for it. A pause
// that a person ended, nil, is over.
func (p *Pause) extended(now time.Time, retryAfter time.Duration) *Pause {
	if p == nil {
		p = &Pause{Until: now}
	}
	until := now.Add(min(retryAfter, retryLongest))
	if retryAfter <= 0 || !until.After(p.Until) {
		return p
	}
	return &Pause{Until: until, Cause: p.Cause, For: p.For}
}
