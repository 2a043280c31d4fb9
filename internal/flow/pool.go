package flow

import "time"

// pool is what calls in flight count for: calls, or heavy ones.
type pool struct {
	taken  int       // by those in flight
	saving int       // kept free for one that counts for several
	saved  time.Time // when that was last asked for
	since  int       // given to others since the last such one
}

// saveFor is how long places are kept free for a call that isn't asked for any more.
const saveFor = time.Second

// full reports whether of most places there are none for a call that counts for n. One
// that needs several would never find them where others take each that falls free: when
// those have had as many since the last one, places are kept for it, if save says so.
// Alone it may have all there are, unless another worker may have calls in flight.
func (p *pool) full(now time.Time, n, most int, lonely, save bool) bool {
	free := most - p.taken
	if n == 1 {
		if age := now.Sub(p.saved); p.taken > 0 && age >= 0 && age < saveFor {
			free -= p.saving
		}
		return free < 1
	}
	if free >= n || free > 0 && p.taken == 0 && lonely {
		return false
	}
	if save && p.since >= n {
		p.saving, p.saved = n, now
	}
	return true
}

// start counts a call that counts for n.
func (p *pool) start(n int) {
	p.taken += n
	if p.since += n; n > 1 {
		p.saving, p.since = 0, 0
	}
}
