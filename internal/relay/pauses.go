package relay

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// pauses supplies for how long an org's queue pauses after a 429: Retry-After
// where Zoho says so, else a schedule that grows with every 429 in a row and
// starts anew after an answer. Upper ends without Retry-After, full jitter:
// 1 s, 2 s, 4 s, … 60 s.
type pauses struct {
	held  atomic.Int64 // orgs in schedules: keeps reset off the lock in the normal case
	mu    sync.Mutex
	queue map[string]*strike
}

type strike struct {
	schedule *backoff.ExponentialBackOff
	until    time.Time
}

// maxOrgPause bounds a Retry-After: beyond it Zoho is asked again.
const maxOrgPause = time.Hour

// next returns the pause for another 429 of the org. Calls that were in flight
// together are refused together and count as one strike.
func (p *pauses) next(queue string, retryAfter time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue == nil {
		p.queue = make(map[string]*strike)
	}
	s := p.queue[queue]
	if s == nil {
		s = &strike{schedule: backoff.NewExponentialBackOff(
			backoff.WithInitialInterval(500*time.Millisecond),
			backoff.WithMultiplier(2),
			backoff.WithRandomizationFactor(1),
			backoff.WithMaxInterval(30*time.Second),
			backoff.WithMaxElapsedTime(0),
		)}
		p.queue[queue] = s
		p.held.Add(1)
	}
	now := time.Now()
	d := min(retryAfter, maxOrgPause)
	if d <= 0 {
		if left := s.until.Sub(now); left > 0 {
			return left
		}
		// At least some pause: jitter alone may come out at nothing.
		d = max(s.schedule.NextBackOff(), 100*time.Millisecond)
	}
	if until := now.Add(d); until.After(s.until) {
		s.until = until
	}
	return d
}

// reset forgets the org's strikes once a call of it was answered after the pause.
func (p *pauses) reset(queue string) {
	if p.held.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.queue[queue]; s != nil && time.Now().After(s.until) {
		delete(p.queue, queue)
		p.held.Add(-1)
	}
}
