package consumer

import "testing"

// Where no answer comes, deletions cease, and one batch of them after each tick
// finds out whether one comes again.
func TestDeletionsWithoutAnswers(t *testing.T) {
	t.Parallel()
	for asked, want := range map[uint64]uint64{0: 0, 100: 100, deletionsMost - 1: deletionsMost - 1, deletionsMost: deletionsMost - toldEvery} {
		var r removal
		r.asked.Store(asked)
		r.tick()
		r.tick()
		if got := r.asked.Load() - r.done.Load(); got != want {
			t.Errorf("%d deletions without an answer: %d count as under way, want %d", asked, got, want)
		}
	}
}
