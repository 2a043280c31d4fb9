package relay

import (
	"testing"
	"testing/synctest"
	"time"
)

// Retry-After where Zoho says so, bounded.
func TestPauseAsZohoSays(t *testing.T) {
	t.Parallel()
	var p pauses
	for after, want := range map[time.Duration]time.Duration{
		time.Second: time.Second, 20 * time.Minute: 20 * time.Minute, 30 * time.Hour: maxOrgPause,
	} {
		if got := p.next("org", after); got != want {
			t.Errorf("Retry-After %s: %s, want %s", after, got, want)
		}
	}
}

// Without Retry-After the upper ends double from 1 s to 60 s, and an answer
// after the pause starts them anew.
func TestPauseSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rounds = 400
		most := make([]time.Duration, 9)
		for range rounds {
			var p pauses
			for i := range most {
				d := p.next("org", 0)
				if d < 100*time.Millisecond {
					t.Fatalf("a pause of %s", d)
				}
				most[i] = max(most[i], d)
				time.Sleep(d + time.Millisecond)
			}
		}
		for i, m := range most {
			upper := min(time.Second<<i, time.Minute)
			if m > upper || m < upper*8/10 {
				t.Errorf("the longest of %d pauses number %d is %s, want just under %s", rounds, i+1, m, upper)
			}
		}
		var p pauses
		for range 8 {
			time.Sleep(p.next("org", 0) + time.Millisecond)
		}
		p.reset("org")
		if d := p.next("org", 0); d > time.Second {
			t.Errorf("%s after an answer, want at most 1 s", d)
		}
	})
}

// Calls that were in flight together are one strike, and an answer to one of
// them that was sent before the pause does not end it.
func TestPauseOneStrike(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p pauses
		first := p.next("org", 0)
		p.reset("org")
		for range 20 {
			if d := p.next("org", 0); d != first {
				t.Fatalf("refused together: %s and %s", first, d)
			}
		}
		if d := p.next("other", 0); d > time.Second {
			t.Errorf("another org pauses for %s", d)
		}
		time.Sleep(first + time.Millisecond)
		p.reset("org")
		p.reset("nobody")
		if n := p.held.Load(); n != 1 {
			t.Errorf("%d orgs are remembered, want the other one", n)
		}
	})
}
