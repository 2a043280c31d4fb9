package flow

import (
	"encoding/json"
	"math"
	"strconv"
	"testing"
	"time"
)

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
