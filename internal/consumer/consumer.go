// Package consumer is JetStream in and out: it takes requests from the queues
// of the orgs that have work, hands each to the relay, and settles it.
//
// It does not know Zoho: what becomes of a request, the relay says.
//
// Invariants: a request is acked only after its response is stored (or handed
// to the connection, for a read that is answered to an inbox), or after it is a
// dead letter; of two answers to one request the first stored stands and the
// other is dropped for it; no more requests are in hand than there are places;
// a request in hand gives the server a sign of life every third of AckWait; a
// bad request never stops a queue.
package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/trace"
)

// Relay carries out one request.
type Relay interface {
	Do(ctx context.Context, d *relay.Delivery) relay.Result
}

// Options configure a Consumer; those without a default are required.
type Options struct {
	Conn        *nats.Conn
	JetStream   jetstream.JetStream
	Relay       Relay
	Connections *connection.Store
	Tokens      Tokens
	Responses   *Responses
	Ledger      *ledger.Ledger
	Decoder     *envelope.Decoder
	Clock       *register.Clock
	// MaxInFlight bounds the requests in hand of this worker, over all orgs. Too
	// little leaves orgs waiting though Zoho would take more calls; too much
	// costs memory: each may hold a request and a response.
	MaxInFlight int
	// Look is the time between two looks at the stream, which find what a lost
	// activity message left behind. Default 5 s.
	Look time.Duration
	// AckWait is how long the server waits for a sign of life before it hands a
	// request to somebody else; all in hand give one every third of it. Too little
	// hands requests out twice when a network or a process stalls, which costs
	// looks at the ledger; too much leaves the requests of a dead worker waiting.
	// A queue's consumer keeps the one it was made with. Default DefaultAckWait.
	AckWait time.Duration
	Version string
	Logger  *slog.Logger
	Metrics prometheus.Registerer
	// Tracer begins the spans of requests; nil: none.
	Tracer *trace.Tracer
}

// Consumer serves the queues of all orgs that have work.
type Consumer struct {
	Options
	directory *directory
	places    *semaphore.Weighted
	hand      *hand
	metrics   *metrics
	census    census
	strangers chan struct{} // one for each connection nobody knows that is answered for
	stream    jetstream.Stream

	pulling  context.Context // ends when the worker stops taking requests
	stopPull context.CancelFunc
	calling  context.Context // ends when the stop budget is over
	stopCall context.CancelCauseFunc
	loops    sync.WaitGroup // queue loops and watchers
	requests sync.WaitGroup // requests in hand; grows only while loops run
	alive    sync.WaitGroup // their sign of life

	mu      sync.Mutex
	stopped bool
	active  map[string]*queue
	parking map[string]*time.Timer // by connection: when to reconsider it
	backlog map[string]*expiry     // queues with requests in the stream, or paused
	mending singleflight.Group
	closers []func()
	soon    chan struct{} // another worker has woken a queue
}

// queue is an org's queue as this worker serves it.
type queue struct {
	name   string
	poked  bool // under Consumer.mu: there was activity since the loop last looked
	narrow bool // the worker is full: one request is asked for at a time
}

// ErrStopBudget is the cause with which calls are cut that outlive the stop budget.
var ErrStopBudget = errors.New("the worker's stop budget is over")

// New returns a consumer that does nothing yet.
func New(o Options) *Consumer {
	if o.Look == 0 {
		o.Look = 5 * time.Second
	}
	if o.AckWait == 0 {
		o.AckWait = DefaultAckWait
	}
	c := &Consumer{
		Options: o, directory: newDirectory(o.AckWait), places: semaphore.NewWeighted(int64(o.MaxInFlight)),
		hand: newHand(o.AckWait / 3), active: map[string]*queue{}, backlog: map[string]*expiry{}, parking: map[string]*time.Timer{},
		soon: make(chan struct{}, 1), strangers: make(chan struct{}, strangersAtOnce),
	}
	c.metrics = newMetrics(o.Metrics, c)
	c.pulling, c.stopPull = context.WithCancel(context.Background())
	c.calling, c.stopCall = context.WithCancelCause(context.Background())
	return c
}

// Start begins to take requests. The streams must exist (Topology.Ensure).
func (c *Consumer) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			c.Stop(ctx)
		}
	}()
	if c.stream, err = c.JetStream.Stream(ctx, RequestStream); err != nil {
		return fmt.Errorf("open stream %s: %w", RequestStream, err)
	}
	for _, known := range c.Connections.All() {
		c.directory.put(known)
	}
	c.closers = append(c.closers, c.Connections.Subscribe(c.changed), c.Tokens.Watch(c.reconsider))
	for _, known := range c.Connections.All() {
		c.reconsider(known.Name)
	}
	subscribe := func(subject, group string, handle nats.MsgHandler) {
		if err != nil {
			return
		}
		var sub *nats.Subscription
		if sub, err = c.Conn.QueueSubscribe(subject, group, handle); err != nil {
			err = fmt.Errorf("subscribe to %s: %w", subject, err)
			return
		}
		c.closers = append(c.closers, func() { _ = sub.Unsubscribe() })
	}
	// One worker hears of a request and wakes its org's queue; creating the
	// consumer tells all the others.
	subscribe("zoho.activity.>", "zoho-worker", func(m *nats.Msg) {
		c.activate(c.directory.queue(connectionOf(m.Subject)))
	})
	subscribe("$JS.EVENT.ADVISORY.CONSUMER.CREATED."+RequestStream+".>", "", func(*nats.Msg) {
		select {
		case c.soon <- struct{}{}:
		default: // a look is due anyway
		}
	})
	if err != nil {
		return err
	}
	if err = c.serveCalls(); err != nil {
		return err
	}
	if err = c.look(ctx); err != nil {
		return err
	}
	c.loops.Go(c.lookOut)
	c.alive.Go(func() { c.hand.keepAlive(c.calling) })
	return nil
}

// Stop takes no more requests, lets those in hand end, gives back what is not
// begun, and cuts what is left when ctx ends. Stopping twice is fine.
func (c *Consumer) Stop(ctx context.Context) {
	c.mu.Lock()
	first := !c.stopped
	c.stopped = true
	for _, timer := range c.parking {
		timer.Stop()
	}
	c.mu.Unlock()
	if !first {
		return
	}
	for _, done := range c.closers {
		done()
	}
	c.stopPull()
	done := make(chan struct{})
	go func() {
		c.loops.Wait()
		c.requests.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		c.Logger.Warn("stop budget is over: cutting the calls that are left", "in_flight", c.hand.len())
		c.stopCall(ErrStopBudget)
		<-done
	}
	c.stopCall(nil)
	c.alive.Wait()
}

// activate serves the queue, if this worker doesn't already.
func (c *Consumer) activate(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	if q := c.active[name]; q != nil {
		q.poked = true
		return
	}
	if strings.HasPrefix(name, parkedPrefix) {
		return // nothing is handed over: its deadlines are watched
	}
	q := &queue{name: name}
	c.active[name] = q
	c.loops.Go(func() { c.serve(q) })
}

// retire ends the service of a queue that has no work, unless it was poked meanwhile.
func (c *Consumer) retire(q *queue) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.poked && !c.stopped {
		q.poked = false
		return false
	}
	delete(c.active, q.name)
	return true
}

// serve takes requests from a queue for as long as there are any.
func (c *Consumer) serve(q *queue) {
	for {
		err := c.pull(q)
		if err != nil && c.pulling.Err() == nil {
			c.Logger.Warn("queue not served for a moment", "queue", q.name, "err", err)
			c.sleep(time.Second)
		}
		if c.retire(q) {
			return
		}
	}
}

// Pulls are open for expiry and show that the server is there every heartbeat.
// A queue without a request for idle is no longer pulled from by this worker.
const (
	pullExpiry    = 10 * time.Second
	pullHeartbeat = 2 * time.Second
	idle          = 10 * time.Second
)

// pull hands the queue's requests out until it is idle (nil) or can't be
// pulled from.
func (c *Consumer) pull(q *queue) error {
	p := c.directory.plan(q.name)
	if p.empty() {
		return nil
	}
	if strings.HasPrefix(q.name, strangerPrefix) {
		return c.answerStranger(q, p)
	}
	setup, cancel := context.WithTimeout(c.pulling, 10*time.Second)
	defer cancel()
	source, err := ensureConsumer(setup, c.JetStream, p.config())
	if err != nil {
		return fmt.Errorf("create consumer %s: %w", p.name, err)
	}
	info := source.CachedInfo()
	if !p.covers(info.Config) {
		c.again(q, q.narrow)
		return c.mend(q.name)
	}
	c.notePause(q, info)
	batch := p.places
	if q.narrow {
		batch = 1
	}
	messages, err := source.Messages(jetstream.PullMaxMessages(batch), jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(pullHeartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("pull from %s: %w", p.name, err)
	}
	// A stopping worker waits for no request that nobody wants any more.
	defer context.AfterFunc(c.pulling, messages.Drain)()
	defer c.drain(q, messages)
	for free := 0; ; {
		// A place first: none grows old in this worker while another has a place.
		if c.places.TryAcquire(1) {
			if free++; q.narrow && free == widen {
				c.places.Release(1)
				c.again(q, false)
				return nil
			}
		} else {
			// This worker is full. What was asked for ahead is given back, and
			// queues take turns at the places, one request each.
			if !q.narrow {
				c.again(q, true)
				return nil
			}
			if free = 0; c.places.Acquire(c.pulling, 1) != nil {
				return nil
			}
		}
		msg, err := messages.Next(jetstream.NextMaxWait(idle))
		if err == nil && c.pulling.Err() == nil {
			c.requests.Add(1)
			go c.handle(q, msg)
			continue
		}
		c.places.Release(1)
		switch {
		case err == nil: // stopping
			_ = msg.Nak()
			return nil
		case c.pulling.Err() != nil, errors.Is(err, nats.ErrTimeout):
			return nil
		case errors.Is(err, jetstream.ErrNoHeartbeat), errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrConsumerNotFound):
			// No sign of life is a new leader on its way, or a consumer that is
			// gone: a server that starts again has forgotten it, says so to every
			// pull with a status the library keeps to itself, and the queue would
			// stand still for ever. To make it again if need be suits both.
			c.again(q, q.narrow)
			return nil
		default:
			c.again(q, q.narrow)
			return err
		}
	}
}

// widen is after how many places got without waiting a queue asks ahead again.
const widen = 100

// again has the queue served anew, with one request asked for at a time (narrow)
// or as many as the org may have in flight.
func (c *Consumer) again(q *queue, narrow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.poked, q.narrow = true, narrow
}

// drain ends the pulls and deals with what the server had handed over already:
// what can't be started is given back, uncounted.
func (c *Consumer) drain(q *queue, messages jetstream.MessagesContext) {
	messages.Drain()
	for {
		msg, err := messages.Next()
		switch {
		case errors.Is(err, jetstream.ErrNoHeartbeat):
		case err != nil:
			return
		case c.pulling.Err() == nil && c.places.TryAcquire(1):
			c.requests.Add(1)
			go c.handle(q, msg)
		default:
			_ = msg.Nak()
		}
	}
}

func (c *Consumer) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.pulling.Done():
	}
}

// lookOut is the safety net: it finds work that nobody told this worker of.
func (c *Consumer) lookOut() {
	for {
		// Workers that started together should not look together.
		timer := time.NewTimer(min(c.Look*3/4+rand.N(c.Look/2), c.untilDue()))
		select {
		case <-c.pulling.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-c.soon:
			timer.Stop()
			c.sleep(gather)
		}
		ctx, cancel := context.WithTimeout(c.pulling, 10*time.Second)
		if err := c.look(ctx); err != nil && c.pulling.Err() == nil {
			c.Logger.Warn("no look at the stream", "err", err)
		}
		c.expire(ctx)
		cancel()
	}
}

// gather is for how long news of other workers' queues are gathered, so that a
// burst of them costs one look.
const gather = 20 * time.Millisecond

// look reads how many requests wait per connection and serves their queues.
func (c *Consumer) look(ctx context.Context) error {
	asked := time.Now()
	info, err := c.stream.Info(ctx, jetstream.WithSubjectFilter("zoho.requests.>"))
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", RequestStream, err)
	}
	if !info.TimeStamp.IsZero() {
		c.Clock.Observe(info.TimeStamp, asked, time.Now())
	}
	c.metrics.backlog.Set(float64(info.State.Msgs))
	defer c.takeCensus(ctx, info)
	waiting := map[string]bool{}
	for subject := range info.State.Subjects {
		waiting[c.directory.queue(connectionOf(subject))] = true
	}
	for name := range waiting {
		c.activate(name)
		c.expiryOf(name)
	}
	c.forget(waiting)
	return nil
}
