// Package consumer is JetStream in and out: it takes requests from the lanes of
// the orgs that have work and that this worker serves, decides which is started
// next, hands each to the relay, and settles it.
//
// It does not know Zoho: what becomes of a request, the relay says, and what an
// org's limits allow, package flow.
//
// Invariants: an org is served by one worker at a time, which alone starts calls
// for it; a request is acked only after its response is stored (or handed to the
// connection, for a read that is answered to an inbox), or after it is a dead
// letter; of two answers to one request the first stored stands and the other is
// dropped for it; a request in hand gives the server a sign of life every third
// of AckWait, whether it is under way or waits for its start; of requests with
// the same order key the next starts when the one before is settled; a bad
// request never stops a lane.
package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/token"
	"zoho-worker/internal/trace"
)

// Relay carries out one request.
type Relay interface {
	Do(ctx context.Context, d *relay.Delivery) relay.Result
}

// Tokens says when a connection can get a token again. Every worker knows the
// same, because it is in the connection's token record.
type Tokens interface {
	Look(connection string) token.View
	// Watch has changed called with the name of every connection whose token
	// record changed; changed must not block.
	Watch(changed func(connection string)) (cancel func())
}

// Options configure a Consumer; those without a default are required.
type Options struct {
	Conn        *nats.Conn
	JetStream   jetstream.JetStream
	Stream      jetstream.Stream // RequestStream
	Relay       Relay
	Connections *connection.Store
	Tokens      Tokens
	Responses   *Responses
	Ledger      *ledger.Ledger
	Decoder     *envelope.Decoder
	Clock       *register.Clock
	// MaxInFlight bounds the requests under way in this worker, over all orgs. Too
	// little leaves orgs waiting though Zoho would take more calls; too much
	// costs memory: each may hold a request and a response.
	MaxInFlight int
	// Look is the time between two looks at the stream, which find what a lost
	// activity message left behind. Default 5 s.
	Look time.Duration
	// Reserve is the part of an org's credits, 0 to 1, that bulk work may not touch.
	Reserve float64
	// AckWait is how long the server waits for a sign of life before it hands a
	// request to somebody else; all in hand give one every third of it. Too little
	// hands requests out twice when a network or a process stalls, which costs
	// looks at the ledger; too much leaves the requests of a dead worker waiting.
	// A queue's consumer keeps the one it was made with. Default DefaultAckWait.
	AckWait time.Duration
	// NotReady is why the worker takes no requests, "" where it does: it says so of
	// itself. Nil: it always does.
	NotReady func() string
	Version  string
	Logger   *slog.Logger
	Metrics  prometheus.Registerer
	// Tracer begins the spans of requests; nil: none.
	Tracer *trace.Tracer
}

// Consumer serves the orgs that have work.
type Consumer struct {
	Options
	directory *directory
	leases    *lease.Book
	gate      *gate
	hand      *hand
	removal   *removal
	runners   *runners
	metrics   *metrics
	census    census
	consumers atomic.Int64        // of the stream, when it was last looked at
	crowded   atomic.Int64        // Unix time when it took no more of them
	eras      atomic.Uint64       // signs that the stream may be another one, see era
	strangers chan struct{}       // one for each connection nobody knows that is answered for
	dock      chan struct{}       // one for the accused request that is tried
	storing   *semaphore.Weighted // calls that are being stored

	pulling  context.Context // ends when the worker stops taking requests
	stopPull context.CancelFunc
	calling  context.Context // ends when the stop budget is over
	stopCall context.CancelCauseFunc
	loops    sync.WaitGroup // lanes and watchers
	requests sync.WaitGroup // requests under way; grows only while loops run
	alive    sync.WaitGroup // their sign of life

	mu        sync.Mutex
	stopped   bool
	orgs      map[string]*org
	taking    map[string]map[laneKey]bool // orgs being taken: the lanes to be served then
	leaving   map[string]bool             // orgs that this worker, stopping, is about to hand over
	answering map[string]bool             // subjects nobody serves that are answered for
	backlog   map[string]*expiry          // orgs of this worker with requests that don't move
	handed    time.Time                   // when an org was last handed over; lookOut's own
	returned  time.Time                   // when a lost connection was made again
	woken     map[laneKey]time.Time       // when another worker was last told of a request
	looked    jetstream.StreamInfo        // at the last look; lookOut's own
	waiting   map[string]int              // requests in the stream at the last look, by connection; lookOut's own
	told      map[string]telling          // what was said of requests that wait; lookOut's own
	closers   []func()
	soon      chan struct{} // something changed: look
}

// errStopBudget is the cause with which calls are cut that outlive the stop budget.
var errStopBudget = errors.New("the worker's stop budget is over")

// New returns a consumer that does nothing yet.
func New(o Options) *Consumer {
	if o.Look == 0 {
		o.Look = 5 * time.Second
	}
	if o.AckWait == 0 {
		o.AckWait = DefaultAckWait
	}
	c := &Consumer{
		Options: o, directory: newDirectory(o.Reserve), gate: newGate(o.MaxInFlight), hand: newHand(o.AckWait / 3),
		orgs: map[string]*org{}, taking: map[string]map[laneKey]bool{}, leaving: map[string]bool{}, answering: map[string]bool{},
		backlog: map[string]*expiry{}, woken: map[laneKey]time.Time{},
		soon: make(chan struct{}, 1), strangers: make(chan struct{}, strangersAtOnce), dock: make(chan struct{}, 1),
		storing: semaphore.NewWeighted(callsAtOnce),
	}
	c.leases = lease.New(lease.Options{
		JS: c.JetStream, About: c.session, Changed: c.leaseChanged, Lost: c.lost, Logger: c.Logger,
	})
	c.metrics = newMetrics(o.Metrics, c)
	c.pulling, c.stopPull = context.WithCancel(context.Background())
	c.runners = newRunners(c.pulling)
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
	if c.removal, err = newRemoval(c.Conn); err != nil {
		return fmt.Errorf("hear of deletions: %w", err)
	}
	// What changes while all are read is told after it.
	read := make(chan struct{})
	c.closers = append(c.closers, c.Connections.Subscribe(func(record *connection.Connection) {
		<-read
		c.changed(record)
	}))
	for _, known := range c.Connections.All() {
		c.directory.put(known)
	}
	close(read)
	if err = c.leases.Start(ctx); err != nil {
		return fmt.Errorf("begin to serve: %w", err)
	}
	c.closers = append(c.closers, c.Tokens.Watch(c.unblocked))
	subscribe := func(subject, group string, handle func(rest string)) {
		if err != nil {
			return
		}
		var sub *nats.Subscription
		if sub, err = c.Conn.QueueSubscribe(subject, group, func(m *nats.Msg) { handle(restOf(m.Subject)) }); err != nil {
			err = fmt.Errorf("subscribe to %s: %w", subject, err)
			return
		}
		c.closers = append(c.closers, func() { _ = sub.Unsubscribe() })
	}
	// One worker hears of a request; if another serves the org, it is told.
	subscribe(activityPrefix+">", "zoho-worker", c.activate)
	subscribe(wakePrefix+">", "", c.woke)
	if err != nil {
		return err
	}
	if err = c.serveCalls(); err != nil {
		return err
	}
	if err := c.look(ctx); err != nil {
		c.Logger.Warn("no look at the stream yet", "err", err) // the next one is due soon
		c.lookSoon()
	}
	c.loops.Go(c.lookOut)
	c.loops.Go(c.watchLanes)
	c.alive.Go(func() {
		c.hand.keepAlive(c.calling, c.removal.tick)
	})
	return nil
}

// Stop takes no more requests, hands its orgs to other workers, lets what is
// under way end, and cuts what is left when ctx ends. Stopping twice is fine.
func (c *Consumer) Stop(ctx context.Context) {
	c.mu.Lock()
	first := !c.stopped
	c.stopped = true
	orgs := slices.Collect(maps.Values(c.orgs))
	clear(c.orgs)
	for _, o := range orgs {
		c.leaving[o.name] = true
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
		// Together: where the server is away, each takes as long as a flush does.
		var closing sync.WaitGroup
		for _, o := range orgs {
			closing.Go(o.close)
		}
		closing.Wait()
		c.handOver(ctx, orgs)
		c.loops.Wait()
		c.requests.Wait()
		c.awaitCalls(ctx)
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		c.Logger.Warn("stop budget is over: cutting the calls that are left", "in_flight", c.hand.len())
		c.stopCall(errStopBudget)
		<-done
	}
	if c.removal != nil {
		c.removal.close()
	}
	c.leases.Close(ctx)
	c.stopCall(nil)
	c.alive.Wait()
}

// activate takes up what follows the prefix of a subject that has a request: by
// serving its org, or by telling the worker that does.
func (c *Consumer) activate(rest string) {
	k, ok := parseLane(rest)
	queue := c.directory.queue(k.connection)
	if !ok || queue == "" {
		c.answerFor(rest)
		return
	}
	if c.serving(queue, k) {
		return
	}
	if owner := c.leases.Owner(queue); owner != "" {
		c.tell(k)
		return
	}
	c.take(queue, k)
}

// org returns the org of the queue, nil where this worker doesn't serve it.
func (c *Consumer) org(queue string) *org {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orgs[queue]
}

// all returns the orgs that this worker serves.
func (c *Consumer) all() []*org {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.orgs))
}

// serving wakes the lane if this worker serves the org, or is about to.
func (c *Consumer) serving(queue string, k laneKey) bool {
	c.mu.Lock()
	o, taking := c.orgs[queue], c.taking[queue]
	if taking != nil {
		taking[k] = true
	}
	c.mu.Unlock()
	if o != nil {
		o.wake(k)
	}
	return o != nil || taking != nil
}

// woke hears that a lane has a request whose org this worker may serve.
func (c *Consumer) woke(rest string) {
	k, ok := parseLane(rest)
	if queue := c.directory.queue(k.connection); ok && !c.serving(queue, k) && c.leases.Mine(queue) {
		c.take(queue, k) // it was closed, and could not be released
	}
}

// tellEvery is the least time between two messages about one lane to the worker
// that serves it.
const tellEvery = 250 * time.Millisecond

// tell tells the worker that serves the lane's org that there is a request. The
// first one at once; those that follow are told of together.
func (c *Consumer) tell(k laneKey) {
	now := time.Now()
	c.mu.Lock()
	last, told := c.woken[k]
	wait := tellEvery - now.Sub(last)
	switch {
	case told && now.Before(last): // one is due already
		c.mu.Unlock()
		return
	case told && wait > 0:
		c.woken[k] = last.Add(tellEvery)
	default:
		c.woken[k], wait = now, 0
	}
	if len(c.woken) > 10_000 {
		maps.DeleteFunc(c.woken, func(_ laneKey, at time.Time) bool { return now.Sub(at) > time.Minute })
	}
	c.mu.Unlock()
	publish := func() {
		if err := c.Conn.Publish(wakePrefix+k.rest(), nil); err != nil {
			c.Logger.Debug("the lane's worker is not told", "lane", k.rest(), "err", err)
		}
	}
	if wait > 0 {
		time.AfterFunc(wait, publish)
		return
	}
	publish()
}

func (c *Consumer) lookSoon() {
	select {
	case c.soon <- struct{}{}:
	default: // a look is due anyway
	}
}

// changed follows a connection's record: it may belong to another org now, or
// its org may have another limit, or it may be usable again.
func (c *Consumer) changed(record *connection.Connection) {
	for _, queue := range append(c.directory.put(record), c.directory.queue(record.Name)) {
		if o := c.org(queue); o != nil {
			o.refresh()
			go o.unblocked(record.Name) // what was said of an earlier grant
		}
	}
	c.lookSoon()
}

// unblocked has the requests of a connection tried again whose token record changed.
func (c *Consumer) unblocked(name string) {
	if o := c.org(c.directory.queue(name)); o != nil {
		go o.unblocked(name)
	}
}

func (c *Consumer) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.pulling.Done():
	}
}

// lookOut is the safety net: it finds work that nobody told this worker of.
func (c *Consumer) lookOut() {
	// Each has its own time: none goes short because of the one before it.
	bounded := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(c.pulling, 10*time.Second)
		defer cancel()
		return do(ctx)
	}
	var pause time.Duration
	for {
		// Workers that started together should not look together.
		timer := time.NewTimer(min(c.Look*3/4+rand.N(c.Look/2), max(c.untilDue(), pause)))
		select {
		case <-c.pulling.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-c.soon:
			timer.Stop()
			c.sleep(gather)
		}
		pause = 0
		if err := bounded(c.look); err != nil && c.pulling.Err() == nil {
			c.Logger.Warn("no look at the stream", "err", err)
		}
		if err := bounded(c.expire); err != nil && c.pulling.Err() == nil {
			c.Logger.Warn("deadlines not watched", "err", err)
			pause = time.Second // what is due stays so
		}
		_ = bounded(func(ctx context.Context) error { c.tidy(ctx); return nil })
		c.tellWaits()
	}
}

// gather is for how long news are gathered, so that a burst of them costs one look.
const gather = 20 * time.Millisecond

// compare notices that the stream isn't the one that was looked at before, or is at an
// earlier state of it: what is known of the requests in it is of others.
func (c *Consumer) compare(info *jetstream.StreamInfo) {
	before := c.looked
	c.looked = jetstream.StreamInfo{Created: info.Created, State: jetstream.StreamState{LastSeq: info.State.LastSeq, LastTime: info.State.LastTime}}
	if before.Created.IsZero() || info.Created.Equal(before.Created) && (info.State.LastSeq > before.State.LastSeq ||
		info.State.LastSeq == before.State.LastSeq && info.State.LastTime.Equal(before.State.LastTime)) {
		return
	}
	c.Logger.Warn("the stream of requests is another one, or has lost its last writes: everything in it is read anew")
	c.eras.Add(1)
	c.watchAll(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.backlog)
}

// look reads how many requests wait per lane, and has them served.
func (c *Consumer) look(ctx context.Context) error {
	info, err := c.Stream.Info(ctx, jetstream.WithSubjectFilter(requestPrefix+">"))
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", RequestStream, err)
	}
	if !info.TimeStamp.IsZero() {
		c.Clock.Observe(info.TimeStamp, time.Now())
	}
	c.compare(info)
	c.metrics.backlog.Set(float64(info.State.Msgs))
	c.consumers.Store(int64(info.State.Consumers))
	defer c.takeCensus(ctx, info)
	waiting := map[string]bool{}
	c.waiting = make(map[string]int, len(info.State.Subjects))
	for subject, n := range info.State.Subjects {
		rest := restOf(subject)
		name, _, _ := strings.Cut(rest, ".")
		c.waiting[name] += int(n)
		queue := c.directory.queue(name)
		waiting[queue] = true
		if owner := c.leases.Owner(queue); queue == "" || owner == "" {
			c.activate(rest)
		}
	}
	c.forget(waiting)
	return nil
}
