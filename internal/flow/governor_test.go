package flow

import (
	"encoding/json"
	"math"
	"reflect"
	"strconv"
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

// Heavy calls have their own places, and those of the worker before count.
func TestPlaces(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 25}, State{})
	run(g, HeavyPlaces, heavy)
	may(t, g, start, heavy, HeavyFull)
	may(t, g, start, light, "")
	run(g, 15, light)
	may(t, g, start, light, Full)
	if all, heavies := g.Running(); all != 25 || heavies != HeavyPlaces {
		t.Error(all, heavies)
	}
	for range HeavyPlaces {
		g.End(heavy)
	}
	g.Foreign(9)
	run(g, 1, heavy)
	may(t, g, start, heavy, Full)
	for range 10 {
		g.End(light)
	}
	may(t, g, start, heavy, HeavyFull)
	may(t, g, start, light, "")
	g.Foreign(30)
	if g.Places() != 0 {
		t.Error("less than none")
	}
	g.Foreign(-1)
	may(t, g, start, heavy, "")
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

// A state is saved and read without loss; what is handed out doesn't change.
func TestStateRoundTrip(t *testing.T) {
	t.Parallel()
	limits := Limits{Places: 20, Budgets: map[string]int{"demo": 100}}
	g := New(limits, State{})
	if data, err := json.Marshal(g.State()); err != nil || string(data) != `{"used":{"first":0}}` {
		t.Errorf("%s, %v", data, err)
	}
	run(g, 20, heavy)
	g.Spent(start, start, "demo", 90, 1000)
	g.Refused(start.Add(time.Minute), heavy, refusal("concurrency"))
	g.Refused(start.Add(time.Minute), heavy, refusal("sub-concurrency"))
	g.SetHand(&Pause{Until: start.Add(time.Hour), Cause: "by hand"})
	data, err := json.Marshal(g.State())
	if err != nil {
		t.Fatal(err)
	}
	var read State
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	next := New(limits, read)
	if again, _ := json.Marshal(next.State()); string(again) != string(data) {
		t.Errorf("%s\nwas %s", again, data)
	}
	if n, known := next.Remaining(start); n != 1000 || !known {
		t.Error(n, known)
	}
	next.SetHand(nil)
	may(t, next, start.Add(time.Hour), Ask{Connection: "demo", Credits: 11}, BudgetSpent)
	taken := g.State()
	before, _ := json.Marshal(taken)
	for i := range 200 {
		g.Spent(start.Add(time.Duration(i)*time.Hour), start, "demo", 1, 5)
		g.Refused(start.Add(time.Minute), heavy, Refusal{Began: start, RetryAfter: time.Hour, Remaining: -1, Message: "sub-concurrency"})
	}
	if after, _ := json.Marshal(taken); string(after) != string(before) {
		t.Errorf("a state that was handed out changed: %s\nwas %s", after, before)
	}
}

// A state that can't be true keeps nobody from working.
func TestOddStates(t *testing.T) {
	t.Parallel()
	huge := strconv.Itoa(math.MaxInt64)
	slot := strconv.FormatInt(number(start), 10)
	for _, data := range []string{
		`{}`, `{"used":{}}`, `{"callers":null}`, `{"callers":{"demo":null}}`,
		`{"limit":-1,"heavy_limit":-5,"left":-7}`, `{"limit":` + huge + `,"heavy_limit":` + huge + `}`,
		`{"used":{"first":-1,"counts":[1,2]}}`, `{"used":{"first":` + huge + `,"counts":[1]}}`, `{"used":{"first":-` + huge + `,"counts":[1]}}`,
		`{"used":{"first":` + slot + `,"counts":[-5,` + huge + `,` + huge + `]},"callers":{"demo":{"first":` + slot + `,"counts":[-100,` + huge + `]}}}`,
		`{"used":{"first":9000000,"counts":[5]},"callers":{"demo":{"first":9000000,"counts":[500]}}}`,
		`{"left":` + huge + `,"known":"2026-03-01T10:00:00Z"}`,
		`{"known":"9999-01-01T00:00:00Z","left":0}`, `{"known":"0001-01-01T00:00:01Z"}`,
		`{"pause":{"until":"9999-01-01T00:00:00Z"},"heavy_pause":{"until":"9999-01-01T00:00:00Z","for":"nonsense"}}`,
		`{"pause":{"until":"9999-01-01T00:00:00Z","for":"credits"},"known":"2026-03-01T10:06:00Z"}`,
		`{"pause":{},"heavy_pause":{},"hand":{}}`,
	} {
		var s State
		if err := json.Unmarshal([]byte(data), &s); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if f := s.Forecast(start); f.Used < 0 || f.PerHour < 0 {
			t.Errorf("%s: %+v", data, f)
		}
		g := New(Limits{Places: 5, Reserve: 0.1, Budgets: map[string]int{"demo": 100}}, s)
		now, done := start, 0
		for ; done < 50 && now.Before(start.Add(26*time.Hour)); now = now.Add(time.Minute) {
			if reason, _ := g.May(now, heavy); reason != "" {
				continue
			}
			g.Start(heavy)
			g.Spent(now, now, "demo", 1, -1)
			g.Answered(now, heavy)
			g.End(heavy)
			done++
		}
		if done < 50 {
			t.Errorf("%s: %d calls in a day", data, done)
		}
		if g.pending != 0 || g.running != 0 || len(g.spending) != 0 || g.Limit() > 5 {
			t.Errorf("%s: %+v", data, g)
		}
		if left, known := g.Remaining(now); known && left < 0 {
			t.Errorf("%s: %d left", data, left)
		}
	}
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

// A call that counts for five is never one too many, alone has all places there are, and
// beside those that take each place that falls free, gets as many as they do.
func TestCallsOfSeveralPlaces(t *testing.T) {
	t.Parallel()
	big := Ask{Connection: "demo", Places: 5, Credits: 1}
	heavies := Ask{Connection: "demo", Heavy: true, Heavies: 6, Credits: 1}
	for _, c := range []struct {
		places, most int
		big, small   Ask
		weigh        func(Ask) int
	}{
		{1, 1, big, light, Ask.places},
		{3, 3, big, light, Ask.places},
		{5, 5, big, light, Ask.places},
		{12, 12, big, light, Ask.places},
		{25, 25, big, light, Ask.places},
		{3, 3, heavies, heavy, Ask.heavies},
		{25, HeavyPlaces, heavies, heavy, Ask.heavies},
	} {
		g := New(Limits{Places: c.places}, State{})
		now, started := start, map[int]int{}
		var flying []Ask
		for turn := range 1000 {
			now = now.Add(10 * time.Millisecond)
			for i := range 4 {
				a := []Ask{c.big, c.small, c.small, c.small}[(i+turn)%4]
				if reason, _ := g.May(now, a); reason != "" {
					continue
				}
				g.Start(a)
				started[c.weigh(a)]++
				flying = append(flying, a)
			}
			taken := 0
			for _, a := range flying {
				taken += c.weigh(a)
			}
			if all, _ := g.Running(); all != len(flying) || taken > c.most && len(flying) > 1 {
				t.Fatalf("%d of %d places taken by %d calls, %d counted", taken, c.most, len(flying), all)
			}
			g.End(flying[0])
			flying = flying[1:]
		}
		if big := started[c.weigh(c.big)]; big*30 < started[1] || started[1]*3 < big {
			t.Errorf("%+v beside those that count for one: %v were started", c.big, started)
		}
	}
	// Places are kept for one that is asked for, and no longer.
	g := New(Limits{Places: 6}, State{})
	run(g, 6, light)
	may(t, g, start, big, Full)
	g.End(light)
	may(t, g, start, light, Full)
	may(t, g, start.Add(saveFor), light, "")
	g.Foreign(6)
	may(t, g, start.Add(saveFor), big, Full)
	// Nor are those that another worker may have taken.
	heavies.Places = 5
	g = New(Limits{Places: 25}, State{})
	g.Foreign(5)
	may(t, g, start, heavies, HeavyFull)
	// A refusal is for what they count for, not for how many there are.
	g = New(Limits{Places: 12}, State{})
	run(g, 1, heavies)
	run(g, 3, heavy)
	if cause, _, _ := g.Refused(start, heavy, refusal("")); cause != SubConcurrency || g.heavyLimit() != 6 {
		t.Errorf("refused for %s, and the limit is %d", cause, g.heavyLimit())
	}
	// What falls free of one kind is of no use to a call that lacks the other.
	g = New(Limits{Places: 20}, State{})
	run(g, 5, heavy)
	run(g, 14, light)
	may(t, g, start, Ask{Heavy: true, Heavies: 6, Places: 5}, Full)
	may(t, g, start, light, "")
}

// A call that counts for more places than the org has is made alone, and calls of the
// worker before are company.
func TestSeveralPlacesBesideCallsOfOthers(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	g := New(Limits{Places: 3}, State{})
	g.Foreign(1)
	if reason, _ := g.May(now, Ask{Places: 5}); reason != Full {
		t.Errorf("%q beside a call of another worker", reason)
	}
	g.Foreign(0)
	if reason, _ := g.May(now, Ask{Places: 5}); reason != "" {
		t.Errorf("%q, and it is alone", reason)
	}
}

// No places are kept free for a call that waits for a heavy place.
func TestNoPlacesForWhatWaitsForAHeavyOne(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	g := New(Limits{Places: HeavyPlaces + 2}, State{})
	for range HeavyPlaces {
		g.Start(Ask{Heavy: true})
	}
	if reason, _ := g.May(now, Ask{Heavy: true, Places: 5}); reason != Full {
		t.Errorf("%q for the heavy one", reason)
	}
	if reason, _ := g.May(now, Ask{}); reason != "" {
		t.Errorf("%q for a light one beside it", reason)
	}
}
