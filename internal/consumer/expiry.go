package consumer

import (
	"container/heap"
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/relay"
)

// expiry watches the deadlines of a queue that hands nothing over: a paused
// org's, or a parked connection's. Their requests stay in the stream, and each
// is read once, for its deadline.
type expiry struct {
	read map[string]uint64 // per subject: the last sequence read; of the one who watches

	mu    sync.Mutex
	until time.Time // the queue is paused until then, by the server's clock
	noted time.Time // when that was learned
	due   deadlines
}

// pausedFor takes a pause in and reports whether it is longer than the known one.
func (e *expiry) pausedFor(until time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	// A few requests are refused together: their pauses differ by their round trips.
	if until.Before(e.until.Add(50 * time.Millisecond)) {
		return false
	}
	e.until, e.noted = until, time.Now()
	return true
}

// inForce takes in the pause that the server says, or is told, is in force.
func (e *expiry) inForce(until time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.until, e.noted = until, time.Now()
}

// fresh reports whether the pause was noted a moment ago, so that the refusals
// that came together with the one that made it need not ask the server.
func (e *expiry) fresh() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Since(e.noted) < time.Second
}

func (e *expiry) paused(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return now.Before(e.until)
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
	at       time.Time
	sequence uint64
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
// keeps (24 bytes each). What is beyond is read when there is room again.
const (
	readPerWatch = 1000
	keptPerQueue = 100_000
)

// expiryOf returns the queue's deadlines.
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

// forget drops the queues that have no requests and no pause.
func (c *Consumer) forget(waiting map[string]bool) {
	now := c.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, e := range c.backlog {
		if !waiting[name] && !e.paused(now) {
			delete(c.backlog, name)
		}
	}
}

// watched are the queues that hand nothing over.
func (c *Consumer) watched() map[string]*expiry {
	now := c.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	watched := map[string]*expiry{}
	for name, e := range c.backlog {
		if strings.HasPrefix(name, parkedPrefix) || e.paused(now) {
			watched[name] = e
		}
	}
	return watched
}

// untilDue is the time until the first deadline that has to be seen to.
func (c *Consumer) untilDue() time.Duration {
	first := time.Duration(math.MaxInt64)
	for _, e := range c.watched() {
		if at, ok := e.first(); ok {
			first = min(first, at.Sub(c.Clock.Now()))
		}
	}
	return max(first, 10*time.Millisecond)
}

// expire answers the requests whose deadlines passed in queues that hand
// nothing over.
func (c *Consumer) expire(ctx context.Context) {
	for name, e := range c.watched() {
		if err := c.watch(ctx, &queue{name: name}, e, c.directory.plan(name)); err != nil && ctx.Err() == nil {
			c.Logger.Warn("deadlines not watched", "queue", name, "err", err)
		}
	}
}

// watch reads the deadlines that are new and answers those that are over.
func (c *Consumer) watch(ctx context.Context, q *queue, e *expiry, p plan) error {
	left := readPerWatch
	for _, subject := range p.subjects {
		for ; left > 0 && e.room(); left-- {
			msg, err := c.stream.GetMsg(ctx, e.read[subject]+1, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				return err
			}
			e.read[subject] = msg.Sequence
			// What can't be decoded is refused when it is handed over.
			if request, err := c.Decoder.Decode(msg.Data, msg.Time); err == nil {
				e.add(deadline{at: request.Deadline, sequence: msg.Sequence})
			}
		}
	}
	for {
		next, ok := e.over(c.Clock.Now())
		if !ok {
			return nil
		}
		msg, err := c.stream.GetMsg(ctx, next.sequence)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // settled meanwhile
		}
		if err == nil {
			err = c.places.Acquire(ctx, 1)
		}
		if err != nil {
			e.add(next)
			return err
		}
		c.requests.Go(func() {
			defer c.places.Release(1)
			c.work(q, &message{
				subject: msg.Subject, header: msg.Header, data: msg.Data, sequence: msg.Sequence, stored: msg.Time,
				// Somebody may have it in hand: what is stored or claimed comes first.
				again: true,
				done:  func() error { return c.stream.DeleteMsg(c.calling, msg.Sequence) },
				later: func(d time.Duration) error {
					e.add(deadline{at: c.Clock.Now().Add(max(d, time.Second)), sequence: msg.Sequence})
					return nil
				},
			})
		})
	}
}

// Objects are the bodies too large for a message.
type Objects struct {
	store jetstream.ObjectStore
	most  int64
}

// OpenObjects opens the bucket; bodies above most bytes are refused.
func OpenObjects(ctx context.Context, js jetstream.JetStream, most int64) (*Objects, error) {
	store, err := js.ObjectStore(ctx, BodyBucket)
	if err != nil {
		return nil, err
	}
	return &Objects{store: store, most: most}, nil
}

// Load reads a body. The errors are relay.ErrNoObject and *envelope.Error with TooLarge.
func (o *Objects) Load(ctx context.Context, name string) ([]byte, error) {
	info, err := o.store.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, relay.ErrNoObject
	}
	if err != nil {
		return nil, err
	}
	if info.Size > uint64(o.most) {
		return nil, &envelope.Error{Code: envelope.TooLarge, Message: "body_object: the object is larger than a call may be"}
	}
	body, err := o.store.GetBytes(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, relay.ErrNoObject
	}
	return body, err
}
