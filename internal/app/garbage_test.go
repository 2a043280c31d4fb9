package app

import "testing"

func TestPercentFor(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int{0: 400, 1 << 20: 400, 3 << 20: 400, 4 << 20: 300, 6 << 20: 200, 8 << 20: 150, 12 << 20: 100, 16 << 20: 175, 20 << 20: 220, 48 << 20: 150, 1 << 30: 102} {
		if got := percentFor(live); got != want {
			t.Errorf("%d MiB alive: %d %%, want %d %%", live>>20, got, want)
		}
	}
}
