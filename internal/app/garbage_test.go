package app

import "testing"

func TestPercentFor(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int{0: 800, 1 << 20: 800, 2 << 20: 700, 4 << 20: 300, 8 << 20: 100, 100 << 20: 100} {
		if got := percentFor(live); got != want {
			t.Errorf("%d MiB alive: %d %%, want %d %%", live>>20, got, want)
		}
	}
}
