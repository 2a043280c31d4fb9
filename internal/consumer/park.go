package consumer

import (
	"time"

	"zoho-worker/internal/token"
)

// Tokens says when a connection can get a token again. Every worker knows the
// same, because it is in the connection's token record.
type Tokens interface {
	Look(connection string) token.View
	// Watch has changed called with the name of every connection whose token
	// record changed; changed must not block.
	Watch(changed func(connection string)) (cancel func())
}

// worthParking is how long a connection must be without a token for its
// requests to leave the org's queue. Shorter waits are spent in the queue, each
// at a place of the org; moving costs the org a moment at rest.
const worthParking = 30 * time.Second

// reconsider parks a connection that can get no token for a while, so that its
// requests don't sit on the org's places, and takes it back when it can.
func (c *Consumer) reconsider(name string) {
	view, now := c.Tokens.Look(name), time.Now()
	blocked := view.BlockedUntil.Sub(now)
	if known, ok := c.Connections.Get(name); ok && known.Grant > view.Grant {
		blocked = 0 // what Zoho said of an earlier grant
	}
	c.follow(c.park(name, view, blocked, now))
}

// park decides whether the connection is parked, and when to ask again.
func (c *Consumer) park(name string, view token.View, blocked time.Duration, now time.Time) (touched []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return nil
	}
	if timer := c.parking[name]; timer != nil {
		timer.Stop()
		delete(c.parking, name)
	}
	parked := c.directory.isBlocked(name)
	again := time.Duration(0)
	switch {
	case blocked <= 0 || blocked < worthParking && !parked:
		parked = false
	case view.ExpiresAt.After(now):
		// The token there is does until it ends.
		parked, again = false, view.ExpiresAt.Sub(now)
	default:
		parked, again = true, blocked
	}
	if again > 0 {
		c.parking[name] = time.AfterFunc(again, func() { c.reconsider(name) })
	}
	touched = c.directory.block(name, parked)
	if len(touched) > 0 && parked {
		c.Logger.Info("connection parked: it can get no token for a while", "connection", name,
			"for", blocked.Round(time.Second), "reason", view.Reason)
	}
	return touched
}
