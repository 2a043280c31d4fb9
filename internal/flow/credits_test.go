package flow

import (
	"encoding/json"
	"testing"
	"time"
)

// Credits leave the window when the last call of their slice does, and not before.
func TestWindow(t *testing.T) {
	t.Parallel()
	var u Usage
	for i := range 8 { // 10:07, 10:12, ...
		u.add(start.Add(time.Duration(i)*5*time.Minute), 1)
	}
	for _, row := range []struct {
		after time.Duration
		want  int
	}{
		{23 * time.Hour, 8},
		{24*time.Hour + 7*time.Minute, 8},  // 10:14: 10:07 and 10:12 are out, their slice isn't
		{24*time.Hour + 8*time.Minute, 6},  // 10:15
		{24*time.Hour + 23*time.Minute, 3}, // 10:30
		{24*time.Hour + 38*time.Minute, 0},
	} {
		c := u.clone()
		now := start.Add(row.after)
		if c.slide(number(now), 0); c.total != row.want {
			t.Errorf("after %s: %d, want %d", row.after, c.total, row.want)
		}
	}
	for n, want := range map[int]time.Duration{1: 8 * time.Minute, 2: 8 * time.Minute, 3: 23 * time.Minute, 8: 38 * time.Minute} {
		if at, ok := u.freed(0, n); !ok || at.Sub(start) != 24*time.Hour+want {
			t.Errorf("%d are free at %s", n, at)
		}
	}
	// Of what was known a day later, the first slice was out already.
	if at, ok := u.freed(number(start)+slices, 1); !ok || at.Sub(start) != 24*time.Hour+23*time.Minute {
		t.Errorf("a day later the next is free at %s", at)
	}
	if _, ok := u.freed(0, 9); ok {
		t.Error("more are freed than were used")
	}
	if u.add(start.Add(-time.Hour), 5); u.total != 13 || len(u.Counts) != 3 {
		t.Errorf("a clock that goes back: %+v", u)
	}
	if u.add(start.Add(-100*time.Hour), 5); u.total != 5 {
		t.Errorf("a clock that was days ahead: %+v", u)
	}
	if u.add(start.Add(1000*time.Hour), 1); u.total != 1 || len(u.Counts) != 1 {
		t.Errorf("long after: %+v", u)
	}
}

// What a header said already counts as free isn't freed once more.
func TestFreedOnce(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	g.Spent(start, start, "demo", 100, 50) // 10:07
	g.Spent(start.Add(10*time.Minute), start.Add(9*time.Minute), "demo", 10, 40)
	day := start.Add(24*time.Hour + time.Minute) // 10:08: Zoho has the hundred back
	g.Spent(day, day, "demo", 1, 139)
	later := day.Add(7 * time.Minute) // 10:15: so have we
	if left, _ := g.Remaining(later); left != 139 {
		t.Errorf("%d left, want 139", left)
	}
	if left, _ := g.Remaining(day.Add(22 * time.Minute)); left != 149 {
		t.Errorf("%d left, want 149", left)
	}
}

// Headers come in any order; an older call's is behind.
func TestHeaders(t *testing.T) {
	t.Parallel()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	g := New(Limits{Places: 20}, State{})
	if _, known := g.Remaining(start); known {
		t.Fatal("known from nothing")
	}
	for i, step := range []struct {
		began, ended     int
		credits          int
		remaining, wants int64
	}{
		{0, 1, 1, -1, -1}, // nothing known
		{2, 9, 1, 100, 100},
		{3, 10, 1, 101, 100}, // was charged before that: it is in it
		{4, 11, 1, 90, 90},   // less than thought
		{12, 13, 10, 200, 200},
		{14, 15, 10, -1, 190}, // no word, and yet used
		{20, 21, 0, 0, 0},
	} {
		g.Spent(at(step.ended), at(step.began), "demo", step.credits, step.remaining)
		left, known := g.Remaining(at(step.ended))
		if !known {
			left = -1
		}
		if left != step.wants {
			t.Fatalf("step %d: %d left, want %d", i, left, step.wants)
		}
	}
	if _, known := g.Remaining(at(22).Add(24 * time.Hour)); known {
		t.Error("known for more than a day")
	}
}

// What is left is given to one call only, and not what is kept for others.
func TestCredits(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20, Reserve: 0.2}, State{})
	may(t, g, start, Ask{Credits: 1 << 30}, "") // nothing is known: no restriction
	g.Spent(start, start, "demo", 900, 100)     // of a thousand
	now := start.Add(time.Second)
	may(t, g, now, Ask{Credits: 100}, "")
	may(t, g, now, Ask{Credits: 101}, CreditsOut)
	run(g, 1, Ask{Credits: 60})
	may(t, g, now, Ask{Credits: 41}, CreditsOut)
	may(t, g, now, Ask{Credits: 40}, "")
	until := may(t, g, now, bulk, Reserved)
	if !until.After(now) {
		t.Errorf("worth another look at %s", until)
	}
	g.End(Ask{Credits: 60})
	may(t, g, now, bulk, Reserved)
	g.Spent(now, now, "demo", 1, 300) // somebody bought some: the reserve is 240
	may(t, g, now, Ask{Bulk: true, Credits: 60}, "")
	may(t, g, now, Ask{Bulk: true, Credits: 61}, Reserved)
	// When that is old, a small one asks anew, and leaves half the reserve.
	old := now.Add(creditLongest)
	may(t, g, old, Ask{Bulk: true, Credits: 180}, "")
	may(t, g, old, Ask{Bulk: true, Credits: 181}, Reserved)
	run(g, 1, light)
	may(t, g, old, Ask{Bulk: true, Credits: 61}, Reserved)
}

// After the credits were used up one call asks anew, when the pause is over; a
// refusal has the next one wait longer, an answer is believed.
func TestExhausted(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	now := start
	last := time.Duration(0)
	for i := range 6 {
		run(g, 1, light)
		r := refusal("24 hours")
		r.Began = now
		_, p, _ := g.Refused(now, light, r)
		g.End(light)
		d := p.Until.Sub(now)
		if d < last || d > creditLongest || i == 0 && d != creditFirst {
			t.Errorf("pause %d is %s", i, d)
		}
		last = d
		may(t, g, p.Until.Add(-1), light, Paused)
		now = p.Until
		may(t, g, now, light, "")
		run(g, 1, light)
		may(t, g, now, light, CreditsOut) // one
		g.End(light)
	}
	run(g, 1, light)
	t.Run("and there are some", func(t *testing.T) {
		t.Parallel()
		g := New(Limits{Places: 20}, g.State())
		g.Spent(now, now, "demo", 1, 10)
		g.Answered(now, light)
		may(t, g, now, Ask{Credits: 10}, "")
		may(t, g, now, Ask{Credits: 11}, CreditsOut)
	})
	t.Run("and there are so many that Zoho says nothing", func(t *testing.T) {
		t.Parallel()
		g := New(Limits{Places: 20}, g.State())
		later := now.Add(time.Second)
		g.Spent(later, later, "demo", 1, -1)
		if _, known := g.Remaining(later); !known {
			t.Error("a call that was perhaps not answered says nothing")
		}
		g.Answered(later, light)
		may(t, g, later, Ask{Credits: 1000}, "")
	})
	// Fewer than a call needs are left for others.
	g = New(Limits{Places: 20}, State{})
	r := refusal("24 hours")
	r.Remaining = 5
	_, p, _ := g.Refused(start, Ask{Credits: 10}, r)
	may(t, g, p.Until, Ask{Credits: 5}, "")
	// What was under way then says nothing of what is left now.
	g = New(Limits{Places: 20}, State{})
	run(g, 2, light)
	g.Refused(start, light, refusal("24 hours"))
	g.Spent(start.Add(time.Second), start.Add(-time.Second), "demo", 1, -1)
	g.Answered(start.Add(time.Second), light)
	if left, known := g.Remaining(start.Add(2 * time.Second)); !known || left != 0 {
		t.Errorf("%d left, known %v", left, known)
	}
	// A header ends the doubts of a call that brought no answer.
	later := start.Add(time.Minute)
	g.Spent(later, later, "demo", 1, -1)
	g.Spent(later, later, "demo", 1, 7)
	g.Answered(later, light)
	if left, known := g.Remaining(later); !known || left != 7 {
		t.Errorf("%d left, known %v, want 7", left, known)
	}
}

// A connection uses no more than its share, calls in flight included.
func TestBudget(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20, Budgets: map[string]int{"demo": 100}}, State{})
	other := Ask{Connection: "other", Credits: 1000}
	may(t, g, start, other, "")
	run(g, 1, Ask{Connection: "demo", Credits: 60})
	if until := may(t, g, start, Ask{Connection: "demo", Credits: 41}, BudgetSpent); !until.IsZero() {
		t.Errorf("until %s: when the call in flight ends", until)
	}
	g.Spent(start, start, "demo", 60, -1)
	g.End(Ask{Connection: "demo", Credits: 60})
	g.Spent(start.Add(time.Hour), start, "demo", 40, -1)
	now := start.Add(2 * time.Hour)
	may(t, g, now, other, "")
	until := may(t, g, now, light, BudgetSpent)
	if until.Sub(start) != 24*time.Hour+8*time.Minute {
		t.Errorf("until %s", until)
	}
	may(t, g, until.Add(-1), light, BudgetSpent)
	may(t, g, until, Ask{Connection: "demo", Credits: 60}, "")
	may(t, g, until, Ask{Connection: "demo", Credits: 61}, BudgetSpent)
	if until := may(t, g, until, Ask{Connection: "demo", Credits: 101}, BudgetSpent); !until.IsZero() {
		t.Errorf("a call that costs more than there ever is can't start at %s", until)
	}
	g.Configure(Limits{Places: 20})
	may(t, g, now, light, "")
	g.May(now.Add(100*time.Hour), light)
	g.Spent(now.Add(100*time.Hour), now, "other", 1, -1)
	if callers := g.State().Callers; len(callers) != 0 {
		t.Errorf("%v is of no use", callers)
	}
}

// Who gives the org up takes for used what its calls in flight may use: the next
// owner hears nothing of them, and must not give it out again.
func TestLeaving(t *testing.T) {
	t.Parallel()
	limits := Limits{Places: 20, Budgets: map[string]int{"demo": 100}}
	g := New(limits, State{})
	run(g, 1, Ask{Connection: "other", Credits: 7})
	if s := g.Leaving(start); s.Used.total != 7 || len(s.Callers) != 0 || !s.Known.IsZero() {
		t.Errorf("%+v", s)
	}
	g.Spent(start, start, "demo", 30, 90)
	run(g, 1, Ask{Connection: "demo", Credits: 60})
	before, _ := json.Marshal(g.State())
	s := g.Leaving(start)
	if s.Used.total != 97 || s.Callers["demo"].total != 90 || s.Left != 23 {
		t.Errorf("%+v", s)
	}
	if after, _ := json.Marshal(g.State()); string(after) != string(before) {
		t.Error("asked for it, and changed by it")
	}
	next := New(limits, s)
	may(t, next, start, Ask{Connection: "demo", Credits: 11}, BudgetSpent)
	may(t, next, start, Ask{Connection: "demo", Credits: 10}, "")
	may(t, next, start, Ask{Connection: "other", Credits: 24}, CreditsOut)
}

// At this pace.
func TestForecast(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	if f := g.Forecast(start); f != (Forecast{}) {
		t.Errorf("%+v", f)
	}
	now := start.Truncate(time.Hour) // on the hour: whole slices
	for range 4 * 6 {                // 10 in a minute, for six hours
		for range slice / time.Minute {
			now = now.Add(time.Minute)
			g.Spent(now, now, "demo", 10, -1)
		}
	}
	now = now.Add(-time.Second)
	f := g.Forecast(now)
	if f.Used != 3600 || f.Remaining != nil || !f.OutAt.IsZero() || f.PerHour < 550 || f.PerHour > 650 {
		t.Errorf("%+v", f)
	}
	g.Spent(now, now, "demo", 0, int64(2*f.PerHour))
	f = g.Forecast(now)
	if f.Remaining == nil || f.OutAt.Sub(now) != 2*time.Hour {
		t.Errorf("%+v", f)
	}
	state := g.State()
	if s := state.Forecast(now); s.Used != f.Used || s.PerHour != f.PerHour || *s.Remaining != *f.Remaining || !s.OutAt.Equal(f.OutAt) {
		t.Errorf("%+v is not %+v", s, f)
	}
	g.Spent(now, now.Add(time.Second), "demo", 0, 1<<40)
	if f = g.Forecast(now); !f.OutAt.IsZero() {
		t.Errorf("out of so many at %s", f.OutAt)
	}
	if f = g.Forecast(now.Add(48 * time.Hour)); f.Used != 0 || f.PerHour != 0 || f.Remaining != nil {
		t.Errorf("two days later %+v", f)
	}
}

// The call that asks whether there are credits again may be refused for another
// reason: the next one asks when that pause is over, not a quarter of an hour later.
func TestAsksAgainAfterAnotherRefusal(t *testing.T) {
	t.Parallel()
	g := New(Limits{Places: 20}, State{})
	run(g, 1, light)
	r := refusal("24 hours")
	r.RetryAfter = 2 * time.Second
	_, p, _ := g.Refused(start, light, r)
	g.End(light)
	for _, message := range []string{"concurrency", "sub-concurrency", "concurrency"} {
		now := p.Until
		may(t, g, now, light, "")
		run(g, 1, light)
		r = refusal(message)
		r.Began, r.RetryAfter = now, time.Second
		_, p, _ = g.Refused(now.Add(100*time.Millisecond), light, r)
		g.End(light)
		may(t, g, p.Until.Add(-1), light, Paused)
	}
	may(t, g, p.Until, light, "")
	// Nor when a pause is over that a clock made which was years ahead.
	g = New(Limits{Places: 20}, State{Known: start, Pause: &Pause{Until: start.AddDate(10, 0, 0), Cause: "429"}})
	may(t, g, start.Add(creditLongest-1), light, CreditsOut)
	may(t, g, start.Add(creditLongest), light, "")
}
