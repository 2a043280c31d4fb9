package consumer

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/dead"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/relay"
)

// expiry watches the deadlines of an org's requests that don't move: it is
// paused, or out of credits, or its connection waits for a person or a token, or
// all in hand of their lane rest. They stay in the stream, and each is read once,
// for its deadline.
type expiry struct {
	read map[string]uint64 // per subject: the last sequence read; of the one who watches

	mu  sync.Mutex
	due deadlines
}

func (e *expiry) room() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.due) < keptPerQueue
}

func (e *expiry) add(d deadline) {
	e.mu.Lock()
	defer e.mu.Unlock()
	heap.Push(&e.due, d)
}

// first is the next deadline.
func (e *expiry) first() (time.Time, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.due) == 0 {
		return time.Time{}, false
	}
	return e.due[0].at, true
}

// over takes out a deadline that is over.
func (e *expiry) over(now time.Time) (deadline, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.due) == 0 || !e.due[0].at.Before(now) {
		return deadline{}, false
	}
	return heap.Pop(&e.due).(deadline), true
}

// deadline is when a request in the stream has to be answered.
type deadline struct {
	at time.Time
	of origin
}

type deadlines []deadline

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}

// Bounds of one watch: how many requests it reads, and how many deadlines it
// keeps (40 bytes each). What is beyond is read when there is room again.
const (
	readPerWatch = 1000
	keptPerQueue = 100_000
)

// forget drops what was read of orgs that have no requests.
func (c *Consumer) forget(waiting map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.backlog {
		if !waiting[name] || c.orgs[name] == nil {
			delete(c.backlog, name)
		}
	}
}

// stuck are the orgs of this worker whose requests don't move, with the
// subjects that don't.
func (c *Consumer) stuck() map[*org][]string {
	stuck := map[*org][]string{}
	for _, o := range c.all() {
		still := o.still()
		for _, name := range c.directory.names(o.name) {
			if c.waiting[name] == 0 {
				continue // none of many connections is asked for in vain
			}
			known := c.directory.member(o.name, name)
			moving := usable(known) && time.Until(c.Tokens.Look(name).BlockedUntil) <= 0
			for _, lane := range lanes {
				if k := (laneKey{name, lane}); !moving || still[k] {
					stuck[o] = append(stuck[o], k.subject())
				}
			}
		}
	}
	return stuck
}

// still are the lanes that have requests in hand of which none can be started, for a
// reason that no call that ends will take away, or of which so many rest, or stand
// behind another of their order, that the lane takes no more in hand.
func (o *org) still() map[laneKey]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	still := map[laneKey]bool{}
	for k, l := range o.lanes {
		still[k] = slices.ContainsFunc(l.blocked[:], func(r flow.Reason) bool { return !moves(r) }) ||
			l.full() && l.running+len(l.light)+len(l.heavy)+len(l.suspects) == 0
	}
	return still
}

// expiryOf returns the org's deadlines.
func (c *Consumer) expiryOf(name string) *expiry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.backlog[name]
	if e == nil {
		e = &expiry{read: map[string]uint64{}}
		c.backlog[name] = e
	}
	return e
}

// untilDue is the time until the first deadline that has to be seen to.
func (c *Consumer) untilDue() time.Duration {
	first := time.Duration(math.MaxInt64)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.backlog {
		if at, ok := e.first(); ok {
			first = min(first, at.Sub(c.Clock.Now()))
		}
	}
	return max(first, 10*time.Millisecond)
}

// expire answers the requests whose deadlines passed while they did not move.
func (c *Consumer) expire(ctx context.Context) (err error) {
	stuck := c.stuck()
	for o, subjects := range stuck {
		if failed := c.watchDeadlines(ctx, o, c.expiryOf(o.name), subjects); failed != nil {
			err = fmt.Errorf("%s: %w", o.name, failed)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.backlog {
		if o := c.orgs[name]; o == nil || stuck[o] == nil {
			delete(c.backlog, name) // it moves
		}
	}
	return err
}

// watchDeadlines reads the deadlines that are new and answers those that are over.
func (c *Consumer) watchDeadlines(ctx context.Context, o *org, e *expiry, subjects []string) error {
	left := readPerWatch
	for _, subject := range subjects {
		for ; left > 0 && e.room(); left-- {
			msg, err := c.Stream.GetMsg(ctx, e.read[subject]+1, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				return err
			}
			e.read[subject] = msg.Sequence
			// What can't be decoded is refused when it is handed over.
			if request, err := c.Decoder.Decode(msg.Data, StoredAt(msg.Subject, msg.Header, msg.Time)); err == nil {
				e.add(deadline{at: request.Deadline, of: origin{msg.Sequence, msg.Time.UnixNano()}})
			}
		}
	}
	for {
		next, ok := e.over(c.Clock.Now())
		if !ok {
			return nil
		}
		if c.hand.has(next.of) {
			// Its org sees to it, or a call of it is under way.
			e.add(deadline{at: c.Clock.Now().Add(time.Second), of: next.of})
			continue
		}
		era := c.era(nil)
		msg, err := c.Stream.GetMsg(ctx, next.of.sequence)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // settled meanwhile
		}
		if err != nil {
			e.add(next)
			return err
		}
		if msg.Time.UnixNano() != next.of.at {
			continue // another, which is read for itself
		}
		// Somebody may have had it in hand: what is stored or claimed comes first.
		r := &entry{
			subject: msg.Subject, connection: connectionOf(msg.Subject), header: msg.Header, data: msg.Data,
			sequence: msg.Sequence, entered: msg.Time, stored: StoredAt(msg.Subject, msg.Header, msg.Time), era: era, again: true,
			sendings: relay.Sendings{Elsewhere: true},
		}
		c.decode(r)
		if r.request != nil {
			o.mu.Lock()
			r.waited = o.limitInWords(r, c.Clock.Now())
			o.mu.Unlock()
		}
		c.requests.Go(func() {
			if wait := c.work(o.name, r); wait != nil {
				e.add(deadline{at: c.Clock.Now().Add(max(wait.For, time.Second)), of: next.of})
			}
		})
	}
}

// StoredAt is when a request was first stored, which is in the stream since at. One
// that the worker moved to a heavy lane says so; elsewhere the header is a caller's.
func StoredAt(subject string, header nats.Header, at time.Time) time.Time {
	moved := header.Get(dead.StoredHeader)
	if moved == "" {
		return at
	}
	key, known := parseLane(restOf(subject))
	if _, callers := key.lane.aside(); !known || callers {
		return at
	}
	if first, err := time.Parse(time.RFC3339Nano, moved); err == nil && first.Before(at) {
		return first
	}
	return at
}
