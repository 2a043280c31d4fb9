package consumer

import (
	"container/heap"
	"context"
	"errors"
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
	mu     sync.Mutex
	until  time.Time         // the queue is paused until then, by the server's clock
	read   map[string]uint64 // per subject: the last sequence read
	due    deadlines
	serial sync.Mutex // one watch at a time
}

func newExpiry() *expiry { return &expiry{read: map[string]uint64{}} }

// pausedFor takes a pause in and reports whether it is longer than the known one.
func (e *expiry) pausedFor(until time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	// A few requests are refused together: their pauses differ by their round trips.
	if until.Before(e.until.Add(50 * time.Millisecond)) {
		return false
	}
	e.until = until
	return true
}

func (e *expiry) paused(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return now.Before(e.until)
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

// expire answers the requests whose deadlines passed in queues that hand
// nothing over.
func (c *Consumer) expire(ctx context.Context) {
	c.mu.Lock()
	var queues []*queue
	for _, q := range c.active {
		queues = append(queues, q)
	}
	c.mu.Unlock()
	for _, q := range queues {
		p := c.directory.plan(q.name)
		if !p.parked && !q.expiry.paused(c.Clock.Now()) {
			continue
		}
		if err := c.watch(ctx, q, p); err != nil && ctx.Err() == nil {
			c.Logger.Warn("deadlines not watched", "queue", q.name, "err", err)
		}
	}
}

func (c *Consumer) watch(ctx context.Context, q *queue, p plan) error {
	e := q.expiry
	if !e.serial.TryLock() {
		return nil
	}
	defer e.serial.Unlock()
	left := readPerWatch
	for _, subject := range p.subjects {
		for ; left > 0 && len(e.due) < keptPerQueue; left-- {
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
				heap.Push(&e.due, deadline{at: request.Deadline, sequence: msg.Sequence})
			}
		}
	}
	for len(e.due) > 0 && e.due[0].at.Before(c.Clock.Now()) {
		next := heap.Pop(&e.due).(deadline)
		msg, err := c.stream.GetMsg(ctx, next.sequence)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // settled meanwhile
		}
		if err == nil {
			err = c.places.Acquire(ctx, 1)
		}
		if err != nil {
			heap.Push(&e.due, next)
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
					e.serial.Lock()
					defer e.serial.Unlock()
					heap.Push(&e.due, deadline{at: c.Clock.Now().Add(max(d, time.Second)), sequence: msg.Sequence})
					return nil
				},
			})
		})
	}
	return nil
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
