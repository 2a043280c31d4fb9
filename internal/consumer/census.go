package consumer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/flow"
)

// census is what the org queues with work look like, over all workers. Every
// worker takes it for itself, from the same server, so all have the same.
type census struct {
	mu     sync.Mutex
	queues map[string]*tally
	looked time.Time
	oldest time.Time // when the oldest request in the stream was stored, by the server's clock
}

// tally is what a queue looked like at the instant at.
type tally struct {
	at              time.Time
	waiting, inHand int
	places          int
	// served says that a worker serves it, which says itself what it has no places for.
	served, paused, broke, parked bool
	// since is when the queue was first seen paused; calm how often in a row it
	// was seen not paused since. A queue that Zoho refuses tries now and then,
	// and is paused again: that doesn't make it calm.
	since time.Time
	calm  int
}

// unserved is how many of the waiting requests a worker could start now that
// takes the queue up: none of one that is served, paused, out of credits or waits
// for a person, and of the others as many as the org has free places.
func (s *tally) unserved() int {
	if s.served || s.paused || s.broke || s.parked {
		return 0
	}
	return max(0, min(s.waiting, s.places-s.inHand))
}

// totals are the census in numbers.
type totals struct {
	forWorker, forPlace, forPause, forCredits, forPerson int // requests not under way, by what they wait for
	inHand                                               int
	running, full, paused, broke, parked                 int // queues
	pausedFor, oldest                                    time.Duration
}

// totals adds up; wanting is what the workers have no places for.
func (c *census) totals(now, server time.Time, wanting int) totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	var t totals
	for _, s := range c.queues {
		t.inHand += s.inHand
		switch {
		case s.parked:
			t.parked++
			t.forPerson += s.waiting
		case s.paused:
			t.paused++
			t.forPause += s.waiting
		case s.broke:
			t.broke++
			t.forCredits += s.waiting
		default:
			t.forWorker += s.unserved()
			t.forPlace += s.waiting - s.unserved()
			if s.inHand >= s.places {
				t.full++
			} else {
				t.running++
			}
		}
		if !s.since.IsZero() {
			t.pausedFor = max(t.pausedFor, now.Sub(s.since))
		}
	}
	// What a worker says of itself may be newer than what was seen in the stream.
	t.forWorker += wanting
	t.forPlace = max(0, t.forPlace-wanting)
	if !c.oldest.IsZero() {
		t.oldest = max(0, server.Sub(c.oldest))
	}
	return t
}

// Bounds of one census: how many queues it asks the server about, and how many
// at a time. With more queues than that each is asked about in its turn.
const (
	askPerCensus = 256
	askAtOnce    = 8
)

// takeCensus brings the census up to date with a look at the stream; at most
// once in half the time between looks, because news of other workers' queues
// bring extra looks. Too early is not an error.
func (c *Consumer) takeCensus(ctx context.Context, info *jetstream.StreamInfo) {
	stored, lanes := map[string]int{}, map[string][]laneKey{}
	for subject, n := range info.State.Subjects {
		queue := c.queueOr(subject)
		stored[queue] += int(n)
		if k, ok := parseLane(restOf(subject)); ok {
			lanes[queue] = append(lanes[queue], k)
		}
	}
	names, now := c.census.due(stored, info, c.Look/2)
	var asking errgroup.Group
	asking.SetLimit(askAtOnce)
	for _, name := range names {
		asking.Go(func() error {
			c.ask(ctx, name, stored[name], lanes[name], now)
			return nil
		})
	}
	_ = asking.Wait()
}

// due forgets the queues without work and returns those that it is the turn of.
func (c *census) due(stored map[string]int, info *jetstream.StreamInfo, apart time.Duration) ([]string, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.looked) < apart {
		return nil, now
	}
	c.looked, c.oldest = now, time.Time{}
	if info.State.Msgs > 0 {
		c.oldest = info.State.FirstTime
	}
	for name := range c.queues {
		if stored[name] == 0 {
			delete(c.queues, name)
		}
	}
	names := make([]string, 0, len(stored))
	for name := range stored {
		names = append(names, name)
	}
	if len(names) > askPerCensus {
		last := func(name string) time.Time {
			if s := c.queues[name]; s != nil {
				return s.at
			}
			return time.Time{}
		}
		slices.SortFunc(names, func(a, b string) int { return last(a).Compare(last(b)) })
		names = names[:askPerCensus]
	}
	return names, now
}

// ask asks the server about the lanes of one org that have requests: what is in hand is
// in the stream as well. One that no worker has taken up yet has all its requests waiting.
func (c *Consumer) ask(ctx context.Context, name string, stored int, lanes []laneKey, now time.Time) {
	names := c.directory.names(name)
	seen := tally{at: now, waiting: stored, places: c.directory.limits(name).Places, parked: true}
	for _, member := range names {
		seen.parked = seen.parked && !usable(c.directory.member(name, member))
	}
	if len(names) == 0 || seen.parked {
		seen.parked = len(names) > 0
		c.census.put(name, seen) // they have no consumer
		return
	}
	seen.served = c.leases.Owner(name) != "" || c.leases.Mine(name)
	if record, ok := c.leases.Record(name); ok {
		governor := flow.New(c.directory.limits(name), DecodeState(record.State))
		seen.places = governor.Limit()
		switch why, _ := governor.May(c.Clock.Now(), flow.Ask{Credits: 1}); why {
		case flow.Paused:
			seen.paused = true
		case flow.CreditsOut:
			seen.broke = true
		}
	}
	handed := 0
	for _, k := range lanes {
		if handed >= seen.places {
			break // what a worker has in hand beyond them waits for its start there
		}
		there, err := c.Stream.Consumer(ctx, k.durable())
		switch {
		case errors.Is(err, jetstream.ErrConsumerNotFound):
		case err != nil:
			return // the server is away, or busy: what was seen last stands
		default:
			handed += there.CachedInfo().NumAckPending
		}
	}
	seen.inHand = min(handed, seen.places)
	seen.waiting = max(0, stored-seen.inHand)
	c.census.put(name, seen)
}

func (c *census) put(name string, s tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queues == nil {
		c.queues = map[string]*tally{}
	}
	before := c.queues[name]
	switch {
	case before != nil && s.paused:
		s.since = before.since
	case before != nil && !before.since.IsZero() && before.calm == 0:
		s.since, s.calm = before.since, 1
	}
	if s.paused && s.since.IsZero() {
		s.since = s.at
	}
	c.queues[name] = &s
}

// queueOr is the org's queue of a subject, or what stands for it where nobody
// knows the connection.
func (c *Consumer) queueOr(subject string) string {
	name := connectionOf(subject)
	if queue := c.directory.queue(name); queue != "" {
		return queue
	}
	return "unknown/" + name
}
