package consent

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/token"
)

// Idle finds dead grants of connections that nobody uses, before somebody does:
// once a day each such connection's token is refreshed, by one worker, at a
// time of day of its own. It also gives back grants that nobody decided about.
type Idle struct {
	Flow        *Flow
	Connections *connection.Store
	Tokens      *token.Source
	// Every is the time between two looks. Default a minute.
	Every time.Duration
	// Pause is between two refreshes, so that those of calls come first. Default 2 s.
	Pause time.Duration
	// Now defaults to time.Now.
	Now func() time.Time
}

// idleAfter is the age of the last refresh, or of the last change of the
// record, from which a connection counts as idle.
const idleAfter = 20 * time.Hour

// Run looks until ctx ends.
func (i *Idle) Run(ctx context.Context) {
	if i.Now == nil {
		i.Now = time.Now
	}
	every := cmp.Or(i.Every, time.Minute)
	done := map[string]string{} // name to the day of its last check
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var swept time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		i.check(ctx, done)
		if now := i.Now(); now.Sub(swept) >= 15*time.Minute {
			swept = now
			if err := i.Flow.Sweep(ctx); err != nil && ctx.Err() == nil {
				i.Flow.options.Logger.Debug("no sweep of undecided grants", "err", err)
			}
		}
	}
}

// day is the name of the day that a connection is in: its days begin at a time
// that its name gives, so that the checks are spread over all of them.
func day(name string, now time.Time) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	offset := time.Duration(h.Sum32()%(24*60*60)) * time.Second
	return now.UTC().Add(-offset).Format(time.DateOnly)
}

func (i *Idle) check(ctx context.Context, done map[string]string) {
	for _, c := range i.Connections.All() {
		now := i.Now()
		today := day(c.Name, now)
		if c.Status != connection.Active || c.Err() != nil || done[c.Name] == today ||
			now.Sub(c.UpdatedAt) < idleAfter || now.Sub(i.Tokens.Look(c.Name).MintedAt) < idleAfter {
			continue
		}
		mine, err := i.Flow.store.claimDay(ctx, c.Name, today)
		if err != nil {
			return // storage is away: the next look
		}
		done[c.Name] = today
		if !mine {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		_, err = i.Tokens.Token(bounded, c)
		cancel()
		u, blocked := errors.AsType[*token.Unavailable](err)
		i.Flow.options.Logger.Debug("idle connection checked", "connection", c.Name, "err", err)
		if blocked && u.Reason == token.Throttled {
			return // not the moment for what can wait
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(cmp.Or(i.Pause, 2*time.Second)):
		}
	}
}
