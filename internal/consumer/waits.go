package consumer

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"zoho-worker/internal/flow"
	"zoho-worker/internal/relay"
)

// The reasons to wait that are neither a limit's nor a relay's. A Sight may have the
// first, an InHand the second.
const (
	WaitWorker flow.Reason = "worker" // the org's next request, for a place of its worker

	WaitOrder         = "order"         // for the one before it
	waitTurn          = "turn"          // others of its lane are before it
	waitAuthorization = "authorization" // for a person
)

// waitsFor is what a request in hand waits for that isn't under way, and until
// when at least, where that is known. The org's lock is held.
func (e *entry) waitsFor(now time.Time) (reason string, until time.Time) {
	o := e.lane.org
	if e.timer != nil {
		return string(e.waits), e.until
	}
	if c := o.chains[e.key]; e.key != "" && (c != nil && slices.Contains(c.waiting, e) || slices.Contains(e.lane.behind, e)) {
		return WaitOrder, time.Time{}
	}
	limit, until := o.flow.May(now, e.ask)
	return string(limit), until
}

// inWords is waitsFor for people who read the log. The org's lock is held.
func (e *entry) inWords(now time.Time) (reason, why string) {
	o := e.lane.org
	reason, until := e.waitsFor(now)
	switch {
	case e.timer != nil:
		why = cmp.Or(e.why, relayWords[e.waits], "it is tried again")
	case reason == WaitOrder:
		why = "it starts when the one before it is answered"
	case reason == string(flow.Full):
		why = fmt.Sprintf("all %d places of the org are taken by its calls under way", o.flow.Limit())
	case reason == string(flow.HeavyFull):
		why = "it is heavy, and as many heavy calls of the org are under way as may be"
	case reason != "":
		why = o.limitInWords(e, now)
	case o.blocked == WaitWorker:
		reason, why = string(WaitWorker), "this worker has as many requests under way as it may (--max-in-flight)"
	default:
		reason, why = waitTurn, "others of its lane are before it"
	}
	if !until.IsZero() {
		why += ", until " + until.UTC().Format(time.RFC3339)
	}
	return reason, why
}

// relayWords are a relay's reasons in words, where it said no more.
var relayWords = map[relay.Reason]string{
	relay.WaitToken:   "there is no access token now",
	relay.WaitRevoked: "its connection has to be authorized again",
	relay.WaitClaim:   "another worker sends it, or did when it died",
	relay.WaitRetry:   "Zoho failed on it: it is tried again",
	relay.WaitProbe:   "its outcome is looked up, and can't be told yet",
	relay.WaitStorage: "JetStream didn't answer",
}

// Bounds of what is said of requests that wait: of those that have waited for
// tellAfter, one line for each org; again after as long, then after twice that and
// so on, tellMost at most; and no more than tellAtOnce lines at a look.
const (
	tellAfter  = 30 * time.Second
	tellMost   = 10 * time.Minute
	tellAtOnce = 20
)

// telling is when something was last told, and for how long it isn't told again.
type telling struct {
	at    time.Time
	pause time.Duration
}

// next reports whether it is time to tell of it, and returns what is to be kept.
func (t telling) next(now time.Time) (telling, bool) {
	switch {
	case t.at.IsZero():
		return telling{now, tellAfter}, true
	case now.Sub(t.at) < t.pause:
		return t, false
	}
	return telling{now, min(2*t.pause, tellMost)}, true
}

// stall is that requests of an org, or of a connection of it, wait.
type stall struct {
	queue, connection, id string
	parked                string        // the connection, where it waits for a person
	waited                time.Duration // of the one that has waited for longest; 0: not known
	requests              int
	reason, why           string
}

// tellWaits says in the log what the requests of this worker's orgs wait for: what
// `worker why` says of one of them.
func (c *Consumer) tellWaits() {
	now := time.Now()
	stalls := append(c.heldStalls(), c.parkedStalls()...)
	kept, lines, more := make(map[string]telling, len(stalls)), 0, 0
	for _, s := range stalls {
		key := s.queue + " " + s.parked
		t, due := c.told[key].next(now)
		if due && lines == tellAtOnce {
			more++ // at the next look
			t = c.told[key]
		} else if due {
			lines++
			c.Logger.Info("requests wait", "queue", s.queue, "connection", s.connection, "id", s.id,
				"waited_ms", milliseconds(s.waited), "requests", s.requests, "reason", s.reason, "why", s.why)
		}
		kept[key] = t
	}
	c.told = kept
	if more > 0 {
		c.Logger.Info("requests of more orgs wait", "orgs", more)
	}
}

// heldStalls are the orgs with requests in hand that have waited for long, and
// which of them has done so for longest.
func (c *Consumer) heldStalls() (stalls []stall) {
	now := c.Clock.Now()
	for o, entries := range c.hand.storedBefore(now.Add(-tellAfter)) {
		o.mu.Lock()
		entries = slices.DeleteFunc(entries, func(e *entry) bool { return e.running })
		if len(entries) > 0 {
			e := slices.MinFunc(entries, func(a, b *entry) int {
				return cmp.Or(a.stored.Compare(b.stored), cmp.Compare(a.sequence, b.sequence))
			})
			s := stall{queue: o.name, connection: e.connection, waited: now.Sub(e.stored), requests: len(entries)}
			if e.request != nil {
				s.id = e.request.ID
			}
			s.reason, s.why = e.inWords(now)
			stalls = append(stalls, s)
		}
		o.mu.Unlock()
	}
	slices.SortFunc(stalls, func(a, b stall) int { return cmp.Compare(b.waited, a.waited) })
	return stalls
}

// parkedStalls are the connections of this worker's orgs whose requests wait in
// the stream for a person.
func (c *Consumer) parkedStalls() (stalls []stall) {
	c.mu.Lock()
	orgs := slices.Sorted(maps.Keys(c.orgs))
	c.mu.Unlock()
	for _, queue := range orgs {
		for _, name := range c.directory.names(queue) {
			known, requests := c.directory.member(queue, name), c.waiting[name]
			if known == nil || requests == 0 || usable(known) {
				continue
			}
			why := "the connection is revoked: it has to be authorized again"
			if err := known.Err(); err != nil {
				why = err.Error()
			}
			stalls = append(stalls, stall{queue: queue, connection: name, parked: name, requests: requests, reason: waitAuthorization, why: why})
		}
	}
	return stalls
}
