package flow

import (
	"testing"
	"time"
)

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
