package flow

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// orgAtZoho is an org as Zoho counts it: exactly, and by the call.
type orgAtZoho struct {
	places, heavy int
	credits       int
	running, sub  int
	spent         []spending // by anybody
}

type spending struct {
	at      time.Time
	credits int
}

func within(log []spending, now time.Time) (n int) {
	for _, s := range log {
		if s.at.After(now.Add(-window)) {
			n += s.credits
		}
	}
	return n
}

// arrive is a call that reaches Zoho: what it will be answered.
func (o *orgAtZoho) arrive(now time.Time, a Ask) (cause Cause, remaining int64) {
	left := o.credits - within(o.spent, now)
	switch {
	case left < a.Credits:
		cause = Credits
	case o.running > 0 && o.running+a.places() > o.places || o.running >= o.places:
		cause = Concurrency
	case a.Heavy && (o.sub > 0 && o.sub+a.heavies() > o.heavy || o.sub >= o.heavy):
		cause = SubConcurrency
	default:
		left -= a.Credits
		o.spent = append(o.spent, spending{now, a.Credits})
		o.running += a.places()
		o.sub += a.heavies()
	}
	if remaining = int64(left); 2*left > o.credits {
		remaining = -1 // Zoho doesn't say (zoho-facts 3.6)
	}
	return cause, remaining
}

// flight is a call on its way.
type flight struct {
	Ask
	began     time.Time
	cause     Cause // of its refusal
	remaining int64
	asks      bool // what was known is old: it asks anew
}

// client is the governor at work.
type client struct {
	rt      *rapid.T
	g       *Governor
	org     *orgAtZoho
	now     time.Time
	limits  Limits
	flying  []flight
	spent   map[string][]spending
	all     []spending
	refused map[Cause]int
}

func newClient(rt *rapid.T, credits int) *client {
	c := &client{
		rt: rt, now: start, spent: map[string][]spending{}, refused: map[Cause]int{},
		limits: Limits{Places: rapid.IntRange(1, 25).Draw(rt, "places"), Reserve: 0.1, Budgets: map[string]int{"bounded": 300}},
	}
	c.org = &orgAtZoho{places: c.limits.Places, heavy: HeavyPlaces, credits: credits}
	c.g = New(c.limits, State{})
	return c
}

func (c *client) draw() Ask {
	return Ask{
		Connection: rapid.SampledFrom([]string{"demo", "bounded"}).Draw(c.rt, "connection"),
		Heavy:      rapid.Bool().Draw(c.rt, "heavy"),
		Places:     rapid.SampledFrom([]int{0, 0, 0, 1, 5}).Draw(c.rt, "places of it"),
		Heavies:    rapid.SampledFrom([]int{0, 0, 0, 1, 6}).Draw(c.rt, "heavies of it"),
		Bulk:       rapid.Bool().Draw(c.rt, "bulk"),
		Credits:    rapid.SampledFrom([]int{1, 1, 1, 10, 50}).Draw(c.rt, "credits"),
	}
}

// try starts a call if it may be, and reports whether it was.
func (c *client) try(a Ask) bool {
	reason, until := c.g.May(c.now, a)
	if again, at := c.g.May(c.now, a); again != reason || !at.Equal(until) {
		c.rt.Fatalf("asked twice: %q until %s, %q until %s", reason, until, again, at)
	}
	if reason != "" {
		if !until.IsZero() && !until.After(c.now) {
			c.rt.Fatalf("%q until %s, which is over", reason, until)
		}
		return false
	}
	remaining, known := c.g.Remaining(c.now)
	asks := known && int64(c.g.pending+a.Credits) > remaining
	if asks && len(c.flying) > 0 {
		c.rt.Fatalf("%d credits left, %d on the way, and %d more given", remaining, c.g.pending, a.Credits)
	}
	c.g.Start(a)
	taken, heavies := a.places(), a.heavies()
	for _, f := range c.flying {
		taken += f.places()
		heavies += f.heavies()
	}
	if most := min(c.g.Places(), c.limits.Places); taken > most && len(c.flying) > 0 {
		c.rt.Fatalf("%d in flight, and one more: %d places taken of %d, %d configured", len(c.flying), taken, c.g.Places(), c.limits.Places)
	}
	if a.Heavy && heavies > min(c.g.heavyLimit(), HeavyPlaces) && heavies > a.heavies() {
		c.rt.Fatalf("%d heavy in flight of %d", heavies, c.g.heavyLimit())
	}
	f := flight{Ask: a, began: c.now, asks: asks}
	f.cause, f.remaining = c.org.arrive(c.now, a)
	c.flying = append(c.flying, f)
	budget := within(c.spent["bounded"], c.now)
	for _, f := range c.flying {
		if f.Connection == "bounded" {
			budget += f.Credits
		}
	}
	if most := c.limits.Budgets["bounded"]; a.Connection == "bounded" && budget > most {
		c.rt.Fatalf("%d credits of a budget of %d", budget, most)
	}
	return true
}

// land is the answer to a call, in whatever order: bare says that Zoho doesn't
// say which limit it refused it for.
func (c *client) land(i int, bare bool) {
	f := c.flying[i]
	c.flying = append(c.flying[:i], c.flying[i+1:]...)
	if f.cause == "" {
		c.org.running -= f.places()
		c.org.sub -= f.heavies()
		// Counted when it is known.
		c.spent[f.Connection] = append(c.spent[f.Connection], spending{c.now, f.Credits})
		c.all = append(c.all, spending{c.now, f.Credits})
		c.g.Spent(c.now, f.began, f.Connection, f.Credits, f.remaining)
		c.g.Answered(c.now, f.Ask)
	} else {
		r := Refusal{Began: f.began, Remaining: f.remaining}
		if !bare {
			r.Message = map[Cause]string{Credits: "24 hours", Concurrency: "concurrency", SubConcurrency: "sub-concurrency"}[f.cause]
		}
		if !f.asks {
			c.refused[f.cause]++
		}
		cause, _, _ := c.g.Refused(c.now, f.Ask, r)
		if !bare && cause != f.cause {
			c.rt.Fatalf("%s taken for %s", f.cause, cause)
		}
		switch reason, _ := c.g.May(c.now, f.Ask); {
		case reason != "":
		case f.began.Before(c.g.pausedAt), f.began.Before(c.g.heavyPausedAt): // refused together, and the pause is over
		default:
			c.rt.Fatalf("refused for %s, and the next one may start", cause)
		}
	}
	c.g.End(f.Ask)
}

func (c *client) check() {
	pending, heavies := 0, 0
	for _, f := range c.flying {
		pending += f.Credits
		if f.Heavy {
			heavies++
		}
	}
	if all, heavy := c.g.Running(); all != len(c.flying) || heavy != heavies || c.g.pending != pending {
		c.rt.Fatalf("%d, %d, %d counted, %d, %d, %d in flight", all, heavy, c.g.pending, len(c.flying), heavies, pending)
	}
	if limit := c.g.Limit(); limit < 1 || limit > c.limits.Places || c.g.heavyLimit() < 1 || c.g.heavyLimit() > HeavyPlaces {
		c.rt.Fatalf("limits %d and %d", limit, c.g.heavyLimit())
	}
	c.g.slide(c.now)
	if used := within(c.all, c.now); c.g.state.Used.total < used {
		c.rt.Fatalf("%d credits counted, %d used in 24 hours", c.g.state.Used.total, used)
	}
}

var steps = []time.Duration{0, time.Millisecond, 100 * time.Millisecond, time.Second, 5 * time.Second, time.Minute, 11 * time.Minute, 3 * time.Hour}

// Whatever happens at Zoho and in whatever order it is heard of, the limits hold,
// and work goes on in the end.
func TestLimitsHold(t *testing.T) {
	t.Parallel()
	reached := map[Cause]int{}
	rapid.Check(t, func(rt *rapid.T) {
		c := newClient(rt, rapid.SampledFrom([]int{100, 1000, 10_000}).Draw(rt, "credits"))
		for range rapid.IntRange(20, 300).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"try", "try", "try", "try", "land", "land", "land", "lost", "time", "change", "others", "configure", "restart", "resume"}).Draw(rt, "what") {
			case "try":
				for a := c.draw(); c.try(a) && rapid.Bool().Draw(rt, "more"); {
				}
			case "land":
				if len(c.flying) > 0 {
					c.land(rapid.IntRange(0, len(c.flying)-1).Draw(rt, "which"), rapid.Bool().Draw(rt, "bare"))
				}
			case "lost": // no answer
				if n := len(c.flying); n > 0 && c.flying[n-1].cause == "" {
					f := c.flying[n-1]
					c.flying = c.flying[:n-1]
					c.org.running -= f.places()
					c.org.sub -= f.heavies()
					c.spent[f.Connection] = append(c.spent[f.Connection], spending{c.now, f.Credits})
					c.all = append(c.all, spending{c.now, f.Credits})
					c.g.Spent(c.now, f.began, f.Connection, f.Credits, -1)
					c.g.End(f.Ask)
				}
			case "time":
				c.now = c.now.Add(rapid.SampledFrom(steps).Draw(rt, "pause"))
			case "change":
				c.org.places = rapid.IntRange(1, 25).Draw(rt, "true places")
				c.org.heavy = rapid.IntRange(1, 10).Draw(rt, "true heavy places")
			case "others":
				c.org.spent = append(c.org.spent, spending{c.now, rapid.IntRange(0, c.org.credits/2).Draw(rt, "others' credits")})
			case "configure":
				if len(c.flying) == 0 {
					c.limits.Places = rapid.IntRange(1, 25).Draw(rt, "places")
					c.g.Configure(c.limits)
				}
			case "restart":
				if len(c.flying) == 0 {
					c.restart()
				}
			case "resume":
				if rapid.IntRange(0, 9).Draw(rt, "really") == 0 {
					c.g.Resume()
				}
			}
			c.check()
		}
		for len(c.flying) > 0 {
			c.land(0, true)
			c.check()
		}
		for cause, n := range c.refused {
			reached[cause] += n
		}
		c.org.places, c.org.heavy = 25, 10
		c.goOn()
	})
	for _, cause := range Causes() {
		if reached[cause] == 0 {
			t.Errorf("never refused for %s: %v", cause, reached)
		}
	}
}

// restart goes on with what was saved.
func (c *client) restart() {
	data, err := json.Marshal(c.g.State())
	if err != nil {
		c.rt.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		c.rt.Fatal(err)
	}
	c.g = New(c.limits, s)
}

// goOn fails unless calls of each kind go through again, looked at no oftener
// than the governor says, and within a few days.
func (c *client) goOn() {
	for _, a := range []Ask{light, heavy, bulk, {Connection: "bounded", Credits: 50}, {Connection: "demo", Bulk: true, Heavy: true, Credits: 50}} {
		end, looks := c.now.Add(3*window), 0
		for done := 0; done < 2; {
			if c.try(a) {
				if c.flying[0].cause == "" {
					done++
				}
				c.now = c.now.Add(time.Second)
				c.land(0, true)
				c.check()
			} else {
				_, until := c.g.May(c.now, a)
				if until.IsZero() {
					c.rt.Fatalf("%+v waits, and nobody knows until when", a)
				}
				c.now = until
			}
			if looks++; looks > 1000 || c.now.After(end) {
				reason, until := c.g.May(c.now, a)
				c.rt.Fatalf("%+v: %q until %s after %d looks, since %s: %+v", a, reason, until, looks, end.Add(-3*window), c.g.State())
			}
		}
	}
}

// Where nobody else uses the org and it is what it is taken for, Zoho never has
// to refuse anything.
func TestNothingIsRefused(t *testing.T) {
	t.Parallel()
	waited := 0
	rapid.Check(t, func(rt *rapid.T) {
		c := newClient(rt, 3000)
		c.limits.Budgets["bounded"] = 1500
		for range rapid.IntRange(100, 400).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"try", "try", "land", "time"}).Draw(rt, "what") {
			case "try":
				a := c.draw()
				for c.try(a) {
				}
				if reason, _ := c.g.May(c.now, a); reason == CreditsOut {
					waited++
				}
			case "land":
				for range rapid.IntRange(1, 25).Draw(rt, "how many") {
					if len(c.flying) > 0 {
						c.land(rapid.IntRange(0, len(c.flying)-1).Draw(rt, "which"), false)
					}
				}
			case "time":
				c.now = c.now.Add(rapid.SampledFrom(steps[:7]).Draw(rt, "pause"))
			}
			if c.check(); len(c.refused) > 0 {
				rt.Fatalf("refused: %v", c.refused)
			}
		}
	})
	if waited == 0 {
		t.Error("the credits were never used up")
	}
}
