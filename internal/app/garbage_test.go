package app

import "testing"

func TestPercentFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		live, lanes uint64 // MiB, lanes
		want        int
	}{{0, 0, 400}, {3, 0, 400}, {4, 0, 300}, {8, 0, 150}, {12, 0, 100}, {48, 0, 100}, {12, 1024, 233}, {12, 100_000, 300}, {48, 100_000, 150}} {
		if got := percentFor(c.live<<20, c.lanes); got != c.want {
			t.Errorf("%d MiB alive, %d lanes: %d %%, want %d %%", c.live, c.lanes, got, c.want)
		}
	}
}
