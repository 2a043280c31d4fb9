package lock

import (
	"sync"
	"time"
)

// circuit remembers that Redis is away. Open, it lets one exchange through per
// cooldown, to see whether Redis is back.
type circuit struct {
	cooldown time.Duration

	mu     sync.Mutex
	opened bool
	until  time.Time
}

// allow reports whether Redis may be asked.
func (c *circuit) allow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.opened {
		return true
	}
	now := time.Now()
	if now.Before(c.until) {
		return false
	}
	c.until = now.Add(c.cooldown)
	return true
}

// open takes in a fault and reports whether it is the first one.
func (c *circuit) open() (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first = !c.opened
	c.opened, c.until = true, time.Now().Add(c.cooldown)
	return first
}

// close takes in that Redis answered, and reports whether it had not before.
func (c *circuit) close() (back bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	back, c.opened = c.opened, false
	return back
}
