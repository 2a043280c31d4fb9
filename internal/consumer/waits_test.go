package consumer

import (
	"slices"
	"testing"
	"time"

	"zoho-worker/internal/flow"
)

// What goes on waiting is told more and more seldom, and never given up.
func TestTelling(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	var kept telling
	var told []int
	for second := 0; second < 3600; second += 5 {
		var due bool
		if kept, due = kept.next(begun.Add(time.Duration(second) * time.Second)); due {
			told = append(told, second)
		}
	}
	want := []int{0, 30, 90, 210, 450, 930, 1530, 2130, 2730, 3330}
	if !slices.Equal(told, want) {
		t.Errorf("told at %v, want %v", told, want)
	}
}

// A pause by hand is told in the words that its cause has.
func TestHeldByHand(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for cause, want := range map[string]string{
		"by hand: lunch": "the org is paused (by hand: lunch)",
		"by hand":        "the org is paused (by hand)",
		"":               "the org is paused",
	} {
		o := &org{flow: flow.New(flow.Limits{Places: 5}, flow.State{Hand: &flow.Pause{Until: now.Add(time.Hour), Cause: cause}})}
		if got := o.held(&entry{}, now); got != want {
			t.Errorf("cause %q: %q, want %q", cause, got, want)
		}
	}
}
