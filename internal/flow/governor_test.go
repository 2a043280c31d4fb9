package flow

import (
	"reflect"
	"testing"
	"time"
)

var (
	start = time.Date(2026, 3, 1, 10, 7, 0, 0, time.UTC)
	light = Ask{Connection: "demo", Credits: 1}
	heavy = Ask{Connection: "demo", Heavy: true, Credits: 1}
	bulk  = Ask{Connection: "demo", Bulk: true, Credits: 1}
)

// may fails unless the reason is the one wanted; it returns until when.
func may(t *testing.T, g *Governor, now time.Time, a Ask, want Reason) time.Time {
	t.Helper()
	got, until := g.May(now, a)
	if got != want {
		t.Fatalf("at %s: %q until %s, want %q", now.Format(time.TimeOnly), got, until, want)
	}
	return until
}

// run has n calls in flight.
func run(g *Governor, n int, a Ask) {
	for range n {
		g.Start(a)
	}
}

func refusal(message string) Refusal {
	return Refusal{Began: start, Code: "TOO_MANY_REQUESTS", Message: message, Remaining: -1}
}

// The three causes of a 429, by Zoho's words, by the credits, by what is in flight.
func TestCause(t *testing.T) {
	t.Parallel()
	const both = "Number of API requests for the 24 hour period is exceeded or the concurrency limit of the user for the app is exceeded."
	for _, row := range []struct {
		name          string
		ask           Ask
		message       string
		remaining     int64 // in the header
		known         int64 // before; -1: not
		light, heavy  int   // in flight
		lowered, sub  int   // limits that were lowered before
		strikes       int
		want, pausing Cause
	}{
		{name: "says concurrency", ask: light, message: "You have exceeded the concurrency limit", remaining: -1, known: -1, want: Concurrency},
		{name: "says concurrent", ask: heavy, message: "Too many concurrent requests", remaining: -1, known: 0, heavy: 10, want: Concurrency},
		{name: "says sub-concurrency", ask: heavy, message: "SUB-CONCURRENCY limit exceeded", remaining: -1, known: -1, want: SubConcurrency},
		{name: "says sub concurrency", ask: heavy, message: "sub concurrency", remaining: -1, known: -1, want: SubConcurrency},
		{name: "says it of a light call", ask: light, message: "sub-concurrency", remaining: -1, known: -1, want: SubConcurrency, pausing: Concurrency},
		{name: "says 24 hours", ask: light, message: "Many requests fired than the allowed limit for the past 24 hours.", remaining: -1, known: -1, want: Credits},
		{name: "says credits", ask: heavy, message: "API credits exceeded", remaining: -1, known: 1000, heavy: 10, want: Credits},
		{name: "names both, nothing known", ask: light, message: both, remaining: -1, known: -1, want: Concurrency},
		{name: "names both, no credits", ask: light, message: both, remaining: 0, known: -1, want: Credits},
		{name: "bare, nothing known", ask: light, remaining: -1, known: -1, light: 1, want: Concurrency},
		{name: "bare, no credits known", ask: light, remaining: -1, known: 0, light: 1, want: Credits},
		{name: "bare, too few credits for it", ask: Ask{Credits: 50}, remaining: 49, known: 1000, want: Credits},
		{name: "bare, the header is newer", ask: light, remaining: 7, known: 0, want: Concurrency},
		{name: "bare, credits in the header", ask: light, remaining: 7, known: -1, want: Concurrency},
		{name: "bare, many heavy in flight", ask: heavy, remaining: -1, known: -1, light: 4, heavy: 9, want: SubConcurrency},
		{name: "bare, light, many heavy in flight", ask: light, remaining: -1, known: -1, light: 4, heavy: 9, want: Concurrency},
		{name: "bare, many light in flight", ask: heavy, remaining: -1, known: -1, light: 17, heavy: 3, want: Concurrency},
		{name: "bare, a heavy one alone", ask: heavy, remaining: -1, known: -1, heavy: 1, want: Concurrency},
		{name: "bare, heavy ones fill a small org", ask: heavy, remaining: -1, known: -1, heavy: 5, lowered: 5, want: Concurrency},
		{name: "bare, heavy ones at their lowered limit", ask: heavy, remaining: -1, known: -1, heavy: 3, sub: 3, want: SubConcurrency},
		{name: "bare, again and again", ask: light, remaining: -1, known: -1, strikes: escalate, want: Credits},
		{name: "bare, again and again, heavy", ask: heavy, remaining: -1, known: -1, heavy: 2, strikes: escalate, want: Credits},
		{name: "bare, not yet again and again", ask: light, remaining: -1, known: -1, strikes: escalate - 1, want: Concurrency},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			g := New(Limits{Places: 20}, State{Limit: row.lowered, HeavyLimit: row.sub})
			if row.known >= 0 {
				g.Spent(start, start, "demo", 0, row.known)
			}
			now := start
			for range row.strikes {
				run(g, 1, row.ask)
				_, p, _ := g.Refused(now, row.ask, Refusal{Began: now, Remaining: -1})
				g.End(row.ask)
				now = p.Until
			}
			run(g, row.light, light)
			run(g, row.heavy, heavy)
			r := refusal(row.message)
			r.Began, r.Remaining = now, row.remaining
			cause, pause, again := g.Refused(now, row.ask, r)
			if cause != row.want || again || pause.Cause != "429 TOO_MANY_REQUESTS" || !pause.Until.After(now) {
				t.Fatalf("%s, pause %v, again %v; want %s", cause, pause, again, row.want)
			}
			if left, known := g.Remaining(now); row.want != Credits && row.remaining > row.known && row.known < 0 && (!known || left != row.remaining) {
				t.Errorf("%d credits left, known %v: the header says %d", left, known, row.remaining)
			}
			if row.pausing == "" {
				row.pausing = row.want
			}
			reason := map[Cause]Reason{Concurrency: Paused, Credits: Paused, SubConcurrency: HeavyPaused}[row.pausing]
			if until := may(t, g, now, row.ask, reason); !until.Equal(pause.Until) {
				t.Errorf("until %s, the pause is %s", until, pause)
			}
			if row.pausing == SubConcurrency {
				may(t, g, now, light, "")
			}
		})
	}
}

// Calls in flight together are refused once; what follows is refused anew.
func TestRefusedTogether(t *testing.T) {
	t.Parallel()
	for _, a := range []Ask{light, heavy} {
		message := map[bool]string{true: "sub-concurrency", false: "concurrency"}[a.Heavy]
		g := New(Limits{Places: 20}, State{})
		run(g, 10, a)
		now := start.Add(time.Second)
		_, first, again := g.Refused(now, a, refusal(message))
		if again {
			t.Fatal("the first is no repetition")
		}
		limit := []int{g.Limit(), g.heavyLimit()}
		for i := range 9 {
			now = now.Add(time.Duration(i) * 100 * time.Millisecond) // past the pause's end, too
			_, p, again := g.Refused(now, a, refusal(message))
			if !again || p != first {
				t.Fatalf("refused together: %v, %v", p, again)
			}
		}
		if got := []int{g.Limit(), g.heavyLimit()}; !reflect.DeepEqual(got, limit) {
			t.Errorf("limits %v, were %v: lowered more than once", got, limit)
		}
		// One of them says when to come back.
		r := refusal(message)
		r.RetryAfter = time.Minute
		if _, p, again := g.Refused(now, a, r); !again || !p.Until.Equal(now.Add(time.Minute)) {
			t.Errorf("Retry-After of a later answer: %v", p)
		}
		r.RetryAfter = 24 * time.Hour
		if _, p, _ := g.Refused(now, a, r); !p.Until.Equal(now.Add(retryLongest)) {
			t.Errorf("Retry-After of a day: %v", p)
		}
		r = refusal(message)
		r.Began = now
		if _, _, again := g.Refused(now, a, r); again {
			t.Error("one that began after the pause is news")
		}
	}
	// That there are no credits is news, whatever the others in flight were refused for.
	g := New(Limits{Places: 20}, State{})
	now := start.Add(time.Second)
	g.Refused(now, light, refusal("concurrency"))
	for i, want := range []bool{false, true} {
		if cause, p, again := g.Refused(now, light, refusal("24 hours")); cause != Credits || again != want || !p.Until.Equal(now.Add(creditFirst)) {
			t.Errorf("credits, %d: %s, %v, again %v", i, cause, p, again)
		}
	}
}

// The limit falls by what was in flight, of which other programs had a part that
// isn't known: not below half of what it was, nor below one.
func TestLimitFallsByHalf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ limit, running, want int }{{20, 20, 15}, {20, 16, 12}, {20, 13, 10}, {20, 1, 10}, {20, 0, 10}, {2, 1, 1}, {1, 1, 1}} {
		g := New(Limits{Places: c.limit}, State{})
		run(g, c.running, light)
		g.Refused(start, light, refusal("concurrency"))
		if g.Limit() != c.want {
			t.Errorf("%d of %d in flight: the limit is %d, want %d", c.running, c.limit, g.Limit(), c.want)
		}
	}
	// What the owner before has in flight counts; so does the next refusal, however soon.
	g := New(Limits{Places: 20}, State{})
	g.Foreign(8)
	run(g, 8, light)
	for i, want := range []int{12, 9} {
		now := start.Add(time.Duration(i) * time.Second)
		r := refusal("concurrency")
		r.Began = now
		if g.Refused(now, light, r); g.Limit() != want {
			t.Errorf("refused %d times: the limit is %d, want %d", i+1, g.Limit(), want)
		}
	}
}

// An answer begins anew: pauses are short again, and a 429 without words is for what is
// in flight. So does a person who ends all pauses.
func TestAnswerBeginsAnew(t *testing.T) {
	t.Parallel()
	for message, a := range map[string]Ask{"concurrency": light, "sub-concurrency": heavy, "24 hours": light} {
		for what, end := range map[string]func(*Governor, time.Time){
			"an answer": func(g *Governor, now time.Time) { g.Answered(now, a) },
			"a person":  func(g *Governor, _ time.Time) { g.Resume() },
		} {
			g := New(Limits{Places: 20}, State{})
			now := start
			refused := func(message string) (Cause, time.Duration) {
				cause, p, _ := g.Refused(now, a, Refusal{Began: now, Message: message, Remaining: -1})
				d := p.Until.Sub(now)
				now = p.Until
				return cause, d
			}
			first := pauseFirst
			if message == "24 hours" {
				first = creditFirst
			}
			for i := range 100 {
				if _, d := refused(message); d > first || d < pauseShortest {
					t.Fatalf("%s after %s, %d: a pause of %s", message, what, i, d)
				}
				for range 10 {
					refused(message)
				}
				if cause, _ := refused(""); cause != Credits {
					t.Fatalf("%s, again and again: taken for %s", message, cause)
				}
				end(g, now)
				g.forget() // else it would be for credits that are known to be none
				if cause, _ := refused(""); cause != Concurrency {
					t.Fatalf("%s after %s: taken for %s", message, what, cause)
				}
				end(g, now)
			}
		}
	}
}

// A step up waits for answers and for time, of its own kind of calls; a step that was one
// too far is taken back alone, and the next one waits for twice as long, up to a bound.
func TestSteps(t *testing.T) {
	t.Parallel()
	for _, a := range []Ask{light, heavy} {
		g := New(Limits{Places: 100}, State{Limit: 5, HeavyLimit: 5})
		limit, climb, message := g.Limit, &g.lowered, "concurrency"
		if a.Heavy {
			limit, climb, message = g.heavyLimit, &g.heavyLowered, "sub-concurrency"
		}
		now := start
		refuse := func() {
			g.Refused(now, a, Refusal{Began: now, Message: message, Remaining: -1})
		}
		if refuse(); limit() != 2 {
			t.Fatalf("limit %d", limit())
		}
		wait := climbFirst
		for i := range 10 {
			now = now.Add(climbLongest)
			for range climbAnswers - 1 {
				g.Answered(now, a)
			}
			if limit() != 2 {
				t.Fatalf("%d: raised to %d before there were enough answers", i, limit())
			}
			if g.Answered(now, a); limit() != 3 {
				t.Fatalf("%d: not raised: %d", i, limit())
			}
			now = now.Add(2*wait - 1)
			if refuse(); limit() != 2 {
				t.Fatalf("%d: one too far, and then %d", i, limit())
			}
			if wait = min(2*wait, climbLongest); climb.wait != wait {
				t.Fatalf("%d: the next one waits %s, want %s", i, climb.wait, wait)
			}
		}
		now = now.Add(climbLongest)
		for range climbAnswers {
			g.Answered(now, a)
		}
		now = now.Add(2 * wait) // it went well
		if refuse(); climb.wait != climbFirst {
			t.Errorf("the next one waits %s", climb.wait)
		}
	}
	g := New(Limits{Places: 20}, State{HeavyLimit: 5})
	for range climbAnswers + 1 {
		g.Answered(start, light)
	}
	if g.heavyLimit() != 5 {
		t.Error("heavy calls have one more place for light calls' answers")
	}
}

// A pause that a clock made which was years ahead gives way to one that is true; and
// credits of an hour ago, which come back in a day, are asked for before.
func TestPausesAreTrue(t *testing.T) {
	t.Parallel()
	far := &Pause{Until: start.AddDate(10, 0, 0), Cause: "429"}
	g := New(Limits{Places: 20}, State{Pause: far, HeavyPause: far})
	g.Spent(start.Add(-time.Hour), start, "demo", 100, -1)
	for message, a := range map[string]Ask{"24 hours": light, "sub-concurrency": heavy} {
		if _, p, _ := g.Refused(start, a, refusal(message)); p.Until.After(start.Add(creditFirst)) {
			t.Errorf("%s: %v", message, p)
		}
	}
	// Less than the refused call costs is left, whatever a header says.
	g = New(Limits{Places: 20}, State{})
	r := refusal("24 hours")
	r.Remaining = 50
	g.Refused(start, Ask{Credits: 10}, r)
	if left, _ := g.Remaining(start); left != 9 {
		t.Errorf("%d left, want 9", left)
	}
}

// The limit falls with refusals and climbs back a step at a time, the longer the
// oftener a step was one too far.
func TestLimitClimbs(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	now := start
	refuse := func() {
		t.Helper()
		r := refusal("concurrency")
		r.Began = now
		if _, _, again := g.Refused(now, light, r); again {
			t.Fatal("again")
		}
		now = now.Add(2 * pauseLongest)
	}
	fill := func() { run(g, g.Limit()-g.running, light) }
	fill()
	for _, want := range []int{15, 11, 8, 6, 4, 3, 2, 1, 1} {
		for g.running > g.Limit() {
			g.End(light)
		}
		if refuse(); g.Limit() != want {
			t.Fatalf("limit %d, want %d", g.Limit(), want)
		}
	}
	climb := func(answers int, each time.Duration) {
		for range answers {
			g.Answered(now, light)
			now = now.Add(each)
		}
	}
	climb(climbAnswers, 0)
	if g.Limit() != 2 {
		t.Fatalf("limit %d after %d answers", g.Limit(), climbAnswers)
	}
	if climb(1000, 0); g.Limit() != 2 {
		t.Fatalf("limit %d: raised again at once", g.Limit())
	}
	now = now.Add(climbFirst)
	if climb(1, 0); g.Limit() != 3 {
		t.Fatalf("limit %d, want 3", g.Limit())
	}
	// One too far: back by that step, and the next one waits twice as long.
	now = now.Add(time.Second)
	if refuse(); g.Limit() != 2 {
		t.Fatalf("limit %d, want 2", g.Limit())
	}
	if g.lowered.wait != 2*climbFirst {
		t.Errorf("waits %s", g.lowered.wait)
	}
	for range 1000 {
		climb(climbAnswers, 0)
		now = now.Add(climbLongest)
		if g.Limit() > 20 {
			t.Fatalf("limit %d", g.Limit())
		}
	}
	if g.Limit() != 20 || g.State().Limit != 0 {
		t.Errorf("limit %d, state %+v", g.Limit(), g.State())
	}
	g.Configure(Limits{Places: 3})
	if g.Limit() != 3 || g.Places() != 3 {
		t.Error("configured anew")
	}
	g.Configure(Limits{})
	if g.Limit() != 1 {
		t.Error("no limit is one place")
	}
}

// After a pause one call is tried, then two, then four.
func TestRamp(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	run(g, 20, light)
	_, p, _ := g.Refused(start, light, refusal("24 hours"))
	for range 20 {
		g.End(light)
	}
	g.Answered(start, light) // during the pause: it began before
	if g.Places() != 1 {
		t.Fatalf("%d places", g.Places())
	}
	now := p.Until
	g.Spent(now, now, "demo", 1, 1000)
	for _, want := range []int{2, 4, 8, 16, 20, 20} {
		if g.Answered(now, light); g.Places() != want {
			t.Fatalf("%d places, want %d", g.Places(), want)
		}
	}
	if again := New(Limits{Places: 20}, g.State()); again.Places() != 1 {
		t.Error("the next owner begins carefully")
	}
}

// Zoho's own word on when to come back is heeded, within bounds.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for message, a := range map[string]Ask{"concurrency": light, "sub-concurrency": heavy, "24 hours": light} {
		for said, want := range map[time.Duration]time.Duration{
			time.Nanosecond: pauseShortest, 7 * time.Second: 7 * time.Second, 24 * time.Hour: retryLongest,
		} {
			g := New(Limits{Places: 20}, State{})
			r := refusal(message)
			r.RetryAfter = said
			_, p, _ := g.Refused(start, a, r)
			if got := p.Until.Sub(start); got != want {
				t.Errorf("%s: Retry-After %s: pause %s, want %s", message, said, got, want)
			}
			if until := p.Until; message != "concurrency" || want != retryLongest {
				g.End(Ask{})
				g.Start(Ask{})
				may(t, g, until, a, "")
			}
		}
	}
	// Without one, pauses grow, and stay within bounds.
	g := New(Limits{Places: 20}, State{})
	now := start
	for i := range 30 {
		r := refusal("concurrency")
		r.Began = now
		_, p, _ := g.Refused(now, light, r)
		d := p.Until.Sub(now)
		if upper := min(pauseFirst<<min(i, 10), pauseLongest); d < pauseShortest || d > upper {
			t.Errorf("pause %d is %s, at most %s", i, d, upper)
		}
		now = p.Until
	}
}

// A pause that a person made, and the end of all pauses that a person makes.
func TestHand(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	g.SetHand(&Pause{Until: start.Add(100 * time.Hour), Cause: "holidays"})
	may(t, g, start, light, Paused)
	may(t, g, start.Add(100*time.Hour), light, "")
	g.SetHand(nil)
	may(t, g, start, light, "")

	g.SetHand(&Pause{Until: start.Add(time.Hour)})
	run(g, 10, heavy)
	g.Refused(start, heavy, refusal("24 hours"))
	g.Refused(start, heavy, refusal("sub-concurrency"))
	g.Changed()
	g.Resume()
	for range 10 {
		g.End(heavy)
	}
	may(t, g, start, heavy, "")
	if g.Places() != 20 || !g.Changed() || g.Changed() {
		t.Error("resumed, but not wholly")
	}
	// What was in flight together says nothing new after it, unless it is about credits.
	now := start.Add(time.Millisecond)
	g.Refused(now, light, Refusal{Began: now, Message: "concurrency"})
	g.Resume()
	if _, p, again := g.Refused(now, light, refusal("concurrency")); !again || p.Until.After(now) {
		t.Error("paused again")
	}
	may(t, g, now, light, "")
}

// A clock that goes back for a while stops nothing for long.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	ahead := start.Add(1000 * time.Hour)
	run(g, 5, light)
	g.Spent(ahead, ahead, "demo", 1, 0)
	g.Refused(ahead, light, Refusal{Began: ahead, Message: "concurrency", Remaining: -1})
	g.End(light)
	if reason, _ := g.May(start, light); reason != Full { // the ramp's one place is taken
		t.Errorf("%q: what is of the future holds it back", reason)
	}
	if _, _, again := g.Refused(start, light, refusal("concurrency")); again {
		t.Error("a pause of the future holds nothing back")
	}
}

// May is asked for every request that waits, and again for each that ends.
func BenchmarkMay(b *testing.B) {
	g := New(Limits{Places: 25, Reserve: 0.1, Budgets: map[string]int{"demo": 1 << 30}}, State{})
	now := start
	for range 96 {
		now = now.Add(slice)
		g.Spent(now, now, "demo", 10, 100_000)
	}
	run(g, 10, bulk)
	b.ReportAllocs()
	for b.Loop() {
		if reason, _ := g.May(now, bulk); reason != "" {
			b.Fatal(reason)
		}
	}
}

// A refusal doesn't end a longer pause that Zoho asked for earlier: a request that
// is tried again inside its place may be refused while the org is paused.
func TestPauseIsNotShortened(t *testing.T) {
	t.Parallel()
	for message, a := range map[string]Ask{"concurrency": light, "sub-concurrency": heavy} {
		g := New(Limits{Places: 20}, State{})
		run(g, 2, a)
		first := refusal(message)
		first.RetryAfter = 10 * time.Minute
		_, long, _ := g.Refused(start, a, first)
		// The other call was answered 503 before, and tried again now.
		second := refusal(message)
		second.Began = start.Add(time.Second)
		_, p, _ := g.Refused(second.Began.Add(100*time.Millisecond), a, second)
		if p.Until.Before(long.Until) {
			t.Errorf("%s: a pause of 10m0s ends after %s", message, p.Until.Sub(start))
		}
	}
}
