package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/flow"
)

// DefaultAckWait is how long the server waits for a sign of life before it hands
// a request to somebody else. All that are in hand give one every third of it.
const DefaultAckWait = 30 * time.Second

// inactive is after what time without pulls the server drops a lane's consumer.
// It is longer than any call can take.
const inactive = 10 * time.Minute

// consumersKept is up to how many consumers of the stream those of idle lanes are
// left to the server. An ack costs it a look at each of them (measured: 0.5 µs of
// processor time), and making one again costs 1 ms, on three replicas 70 to 90.
const consumersKept = 128

// windowMost bounds what is handed out of one lane and not settled, as the
// server sees it.
const windowMost = 512

// lane is one lane of a connection as this worker serves it.
type lane struct {
	laneKey
	org *org

	// Under org.mu.
	window int // requests in hand at most
	// Waiting for their start, in order: see lines.
	light, heavy, suspects []*entry
	// died is up to which sequence the requests had been handed out to a worker that
	// died, and twice up to which to two in a row.
	died     uint64
	twice    uint64
	mourned  bool          // both are known, and written; the lane's own goroutine's
	forgot   bool          // the server did, what was handed out; likewise
	era      uint64        // Consumer.era when it was opened; likewise
	losses   atomic.Uint64 // how often it was lost, and not ended
	behind   []*entry      // ordered requests, until no other worker has one of the lane
	inHand   int
	bytes    int64 // of those
	large    bool  // the next one did not fit into the last pull
	chained  int   // of them, those that stand behind another of their order
	received int   // since it is served, whatever became of them
	turns
	share   *turns // of the connection's lanes of this kind together
	foreign int    // in hand of the worker before: each may be a call in flight
	// awaited are all that were handed out before the lane was opened, and neither
	// are settled nor came to it.
	awaited int
	closed  bool
	blocked [3]flow.Reason // why none of each line could be started when it was last tried
	// wanted says that somebody announced a request since it was last pulled from
	// or handed one over.
	wanted bool
	pulls  *pulls
	asked  int       // requests asked for that haven't come
	came   time.Time // when a request came last, or it was begun to be pulled from
	heard  time.Time // when the server last gave a sign of life
	silent bool      // it gives none any more
	news   chan struct{}
}

// turns are what decides whose turn it is.
type turns struct {
	running int
	last    uint64 // when one was started last, by org.starts
}

func (l *lane) config() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: l.durable(), FilterSubject: l.subject(),
		DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		MaxAckPending: windowMost,
		// Deliveries are not attempts: the deadline ends a request, never a count.
		MaxDeliver: -1, AckWait: l.org.AckWait, InactiveThreshold: inactive,
		// Losing it redelivers what was in hand, nothing else.
		MemoryStorage: true,
	}
}

// Pulls are open for expiry and show that the server is there every heartbeat.
// A lane that has had no request for idle is soon no longer pulled from.
const (
	pullExpiry    = 10 * time.Second
	pullHeartbeat = 2 * time.Second
	idle          = 10 * time.Second
)

// serve takes requests from the lane for as long as there are any. Fresh says
// that it is served for the first time since the org was taken.
func (l *lane) serve(fresh bool) {
	o := l.org
	var told time.Time
	for first := true; ; {
		done := false
		p, err := l.open(fresh, first)
		if err == nil {
			fresh, first = false, false
			if done, err = l.follow(p); !done {
				l.losses.Add(1) // the server may have forgotten what it handed over
				o.lookSoon()    // or have another stream
			}
		}
		if err != nil && !errors.Is(err, errMoved) && o.pulling.Err() == nil {
			level := slog.LevelDebug
			if time.Since(told) > tellAfter {
				level, told = slog.LevelWarn, time.Now()
			}
			o.Logger.Log(o.pulling, level, "lane not served for a moment", "queue", o.name, "subject", l.subject(), "err", err)
			o.sleep(time.Second)
		}
		if (done || o.pulling.Err() != nil) && l.retire() {
			return
		}
	}
}

// retire ends the service of a lane that has nothing in hand, and reports
// whether it did.
func (l *lane) retire() bool {
	o := l.org
	if done, idle := l.over(); done || !idle {
		return done
	}
	if o.consumers.Load() > consumersKept || time.Since(time.Unix(o.crowded.Load(), 0)) < inactive {
		// What comes meanwhile is in the stream, and wanted.
		ctx, cancel := context.WithTimeout(o.pulling, 5*time.Second)
		defer cancel()
		if err := o.JetStream.DeleteConsumer(ctx, RequestStream, l.durable()); err != nil && o.pulling.Err() == nil {
			o.Logger.Debug("consumer not deleted: the server drops it later", "consumer", l.durable(), "err", err)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !l.closed && l.wanted {
		return false
	}
	if !l.closed {
		l.closed = true
		delete(o.lanes, l.laneKey)
		if len(o.lanes) == 0 {
			o.quiet = time.Now()
		}
	}
	return true
}

// over reports whether the lane's service is over already, or it has no use for
// its consumer.
func (l *lane) over() (done, idle bool) {
	o := l.org
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.closed || o.pulling.Err() != nil {
		return true, false
	}
	// While the worker before has some of it in hand, they are counted here.
	return false, l.inHand == 0 && l.awaited == 0 && !l.wanted
}

// open makes the lane's consumer if need be, and begins to listen for its requests.
// First says that it wasn't open yet since it is served.
func (l *lane) open(fresh, first bool) (*pulls, error) {
	o := l.org
	window := l.served()
	o.awaitOthers()
	setup, cancel := context.WithTimeout(o.pulling, 5*time.Second)
	defer cancel()
	crashed := fresh && o.hold.Crashed
	if crashed {
		// The worker before is dead, or was away for longer than its session
		// lasts: what it had in hand is handed out anew at once, in order.
		if err := l.mourn(setup); err != nil {
			return nil, err
		}
		err := o.JetStream.DeleteConsumer(setup, RequestStream, l.durable())
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, fmt.Errorf("make consumer %s anew: %w", l.durable(), err)
		}
	}
	l.era = o.era(l)
	source, err := ensureConsumer(setup, o.JetStream, l.config())
	if tooManyConsumers(err) {
		o.crowded.Store(time.Now().Unix())
	}
	if err != nil {
		return nil, fmt.Errorf("create consumer %s: %w", l.durable(), err)
	}
	o.consumers.Add(1) // until the next look says how many there are
	if first && !crashed {
		l.inherit(source, source.CachedInfo())
	}
	o.awaitOthers() // the connection may have been lost meanwhile
	p, err := listen(o.Conn, l.durable(), window)
	if err != nil {
		return nil, fmt.Errorf("listen for requests: %w", err)
	}
	l.opened(p)
	return p, nil
}

// follow asks for what the lane has room for and hands what comes to the org,
// until it is idle or closed (true), or has to be opened again.
func (l *lane) follow(p *pulls) (done bool, err error) {
	defer l.drain(p)
	for {
		t := l.step()
		switch {
		case t.done:
			return true, nil
		case t.silent:
			// A new leader is on its way, or a server that has begun anew has forgotten
			// the consumer: to make it again if need be suits both.
			return false, nil
		case len(t.aside) > 0:
			l.org.moveAside(t.aside)
			continue
		case t.ask > 0:
			if err := p.ask(t.ask, t.bytes); err != nil {
				return false, fmt.Errorf("ask for requests: %w", err)
			}
		}
		for wait := true; wait; wait = len(p.come) > 0 {
			select {
			case <-l.news:
			case msg, open := <-p.come:
				if !open {
					return true, nil
				}
				if err := l.take(msg); err != nil {
					return false, err
				}
			}
		}
	}
}

// step is what a lane has to do next, if anything.
type step struct {
	done   bool     // it is closed
	silent bool     // its pulls are lost
	ask    int      // for so many requests
	bytes  int64    // and no more than this of them
	aside  []*entry // to be moved to another lane
}

func (l *lane) step() (t step) {
	l.org.mu.Lock()
	defer l.org.mu.Unlock()
	switch {
	case l.closed:
		t.done = true
	case l.silent:
		t.silent = true
	case l.full() && l.awaited == 0:
		t.aside = l.setAside()
	case l.room() >= l.window/4, l.awaited > 0 && l.asked == 0 && l.room() > 0:
		t.ask, t.bytes = l.ask()
		l.asked += t.ask
	}
	return t
}

// ask is how many requests are asked for, and how many bytes of them at most, 0 for
// any. One that doesn't fit into a pull comes alone: the server hands over nothing else
// before it. The lock is held.
func (l *lane) ask() (n int, bytes int64) {
	bytes = l.org.hand.room(l.bytes)
	alone := l.large || bytes == 0
	l.large = false
	switch {
	case !alone:
		return l.room(), bytes
	case l.asked == 0:
		return 1, 0
	}
	return 0, 0
}

// full reports whether the lane has so many requests in hand, or so much of them,
// that it asks for no more. The lock is held.
func (l *lane) full() bool {
	return l.most()-l.inHand < l.window/4 || l.inHand > 0 && l.org.hand.room(l.bytes) == 0
}

// most is how many requests the lane has in hand at most. Those that stand behind
// another don't count: there may be some behind them that needn't wait. The lock is held.
func (l *lane) most() int { return min(l.window+l.chained, windowMost) }

// room is for how many requests more the lane has room. The lock is held.
func (l *lane) room() int {
	most := l.most()
	if l.awaited > 0 {
		// Everything that is handed over is taken in: there may be requests among
		// it that the others wait for.
		most = windowMost
	}
	return min(most-l.inHand, l.window) - l.asked
}

// nudge tells the lane's own goroutine that it may have something to do.
func (l *lane) nudge() {
	select {
	case l.news <- struct{}{}:
	default: // it was told already
	}
}

// take takes in what came: a request, or what the server says of a pull.
func (l *lane) take(msg *nats.Msg) error {
	if msg.Reply != "" {
		l.org.arrived(l, msg)
		return nil
	}
	left, there, err := said(msg)
	l.org.mu.Lock()
	defer l.org.mu.Unlock()
	if there {
		l.heard = time.Now()
	}
	l.large = l.large || msg.Header.Get("Description") == tooLarge
	l.asked = max(l.asked-left, 0)
	return err
}

// resize sets how many requests are taken in hand: the org's limit may have changed.
// Pulls that have no room for so many begin again. The lock is held.
func (l *lane) resize(window int) {
	if l.window = window; l.pulls != nil && l.pulls.most < window {
		l.silent = true
		l.nudge()
	}
}

// served says that what was announced up to now is about to be handed over, and returns
// for how many requests at a time.
func (l *lane) served() (window int) {
	l.org.mu.Lock()
	defer l.org.mu.Unlock()
	l.wanted = false
	return l.window
}

// openLanes are the lanes of this process that are pulled from.
var openLanes atomic.Int64

// OpenLanes is how many lanes are pulled from in this process.
func OpenLanes() uint64 { return uint64(max(openLanes.Load(), 0)) }

// opened notes the pulls, so that others can end them.
func (l *lane) opened(p *pulls) {
	openLanes.Add(1)
	l.org.mu.Lock()
	defer l.org.mu.Unlock()
	now := time.Now()
	l.pulls, l.asked, l.silent, l.came, l.heard = p, 0, p.most < l.window, now, now
}

// watchLanes ends the pulls of lanes that have had no request for a while, and has
// those begin again whose pulls are lost.
func (c *Consumer) watchLanes() {
	connected := c.Conn.StatusChanged(nats.CONNECTED)
	defer c.Conn.RemoveStatusListener(connected)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		reconnected := false
		select {
		case <-c.pulling.Done():
			return
		case <-connected:
			reconnected = true
			c.mu.Lock()
			c.returned = time.Now()
			c.mu.Unlock()
			c.lookSoon() // the stream may not be what it was
		case <-ticker.C:
		}
		c.watchAll(reconnected)
	}
}

// watchAll looks after all lanes; again says that each begins again.
func (c *Consumer) watchAll(again bool) {
	for _, o := range c.all() {
		o.mu.Lock()
		for _, l := range o.lanes {
			l.watch(again)
		}
		o.mu.Unlock()
	}
}

// returning is how long others may take to be connected again to a server that
// begins anew: by default, NATS clients try every 2 s, and a little more.
const returning = 3 * time.Second

// awaitOthers waits, after a connection that was lost, for whoever waits for
// answers: what is published to an inbox before its owner is back is lost.
func (c *Consumer) awaitOthers() {
	for c.pulling.Err() == nil {
		c.mu.Lock()
		left := returning - time.Since(c.returned)
		c.mu.Unlock()
		if left <= 0 {
			return
		}
		c.sleep(left)
	}
}

// watch looks after the lane's pulls. The lock is held.
func (l *lane) watch(again bool) {
	switch {
	case l.pulls == nil:
	case l.inHand == 0 && time.Since(l.came) >= idle:
		l.pulls.end()
	case again, l.asked > 0 && time.Since(l.heard) > 2*pullHeartbeat:
		l.silent = true
		l.nudge()
	}
}

// drain ends the pulls and deals with what is on its way.
func (l *lane) drain(p *pulls) {
	openLanes.Add(-1)
	p.end()
	for msg := range p.come {
		if msg.Reply != "" {
			l.org.arrived(l, msg) // gives it back where the lane is closed
		}
	}
}

// onTheWay is for how long a request that the server has handed over is awaited:
// longer than any that isn't lost takes.
const onTheWay = 2 * time.Second

// inherit counts the requests that were in hand before the lane was opened, until
// they are settled or come to this lane: of the worker before, which takes up
// nothing more, or of this one, which closed the lane while its connection was
// revoked.
func (l *lane) inherit(source jetstream.Consumer, before *jetstream.ConsumerInfo) {
	o, n := l.org, before.NumAckPending
	o.mu.Lock()
	// Only a worker that gave the org up with calls under way has some in flight.
	calls := o.inherited && !o.counted[l.laneKey]
	l.await(n, calls)
	o.counted[l.laneKey] = true
	delete(o.before, l.laneKey)
	o.countForeign()
	l.nudge()
	if n == 0 {
		o.admitOrdered(l.connection)
		o.dispatch()
		return
	}
	o.mu.Unlock()
	go func() {
		var gone time.Time // since when nothing is in hand of others
		for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
			o.sleep(pause)
			ctx, cancel := context.WithTimeout(o.pulling, 5*time.Second)
			info, err := source.Info(ctx)
			cancel()
			if o.pulling.Err() != nil {
				return
			}
			o.mu.Lock()
			if errors.Is(err, jetstream.ErrConsumerNotFound) || err == nil && !info.Created.Equal(before.Created) {
				l.await(0, calls) // forgotten, or made anew: all of it comes to this worker
			} else if err == nil {
				// Of what was delivered since, this worker's are those that it has not
				// settled: in hand, or on their way to it. Its counts may be newer than
				// the server's, which then counts for the other.
				settled := l.received - l.inHand
				delivered := int(info.Delivered.Consumer - before.Delivered.Consumer)
				others := max(0, min(l.awaited, info.NumAckPending-(delivered-settled)))
				// What is on its way may have to go before what is in hand.
				if others > 0 {
					gone = time.Time{}
				} else if gone.IsZero() {
					gone = time.Now()
				}
				if others > 0 || l.received >= delivered || time.Since(gone) > onTheWay {
					l.await(others, calls)
				}
			}
			left := l.awaited
			o.countForeign()
			if left == 0 {
				o.admitOrdered(l.connection)
			}
			l.nudge()
			closed := o.closed || l.closed
			o.dispatch()
			if left == 0 || closed {
				return
			}
		}
	}()
}

// await notes how many are awaited; calls says that they may be calls in flight.
func (l *lane) await(n int, calls bool) {
	if l.awaited = n; calls {
		l.foreign = n
	}
}

// countForeign tells the governor what others may still have in flight.
// The lock is held.
func (o *org) countForeign() { o.flow.Foreign(o.foreign()) }

// foreign is how many calls may still be in flight that this tenure of the org
// hasn't begun. The lock is held.
func (o *org) foreign() int {
	n := o.leftover + o.uncounted
	for _, l := range o.lanes {
		n += l.foreign
	}
	for _, held := range o.before {
		n += held
	}
	return n
}

// shut closes lanes and returns what is in hand of them and not begun, in order. The
// lock is held.
func (o *org) shut(lanes []*lane) (back []*entry) {
	shut := map[*lane]bool{}
	for _, l := range lanes {
		if l.closed {
			continue
		}
		shut[l], l.closed = true, true
		l.nudge()
		if l.pulls != nil {
			l.pulls.end()
		}
		l.light, l.heavy, l.suspects, l.behind, l.chained = nil, nil, nil, nil, 0
	}
	if len(shut) == 0 {
		return nil
	}
	for _, e := range o.hand.of(o) {
		if !shut[e.lane] || e.running {
			continue
		}
		if e.timer != nil {
			e.timer.Stop()
			e.timer = nil
		}
		o.hand.leave(e)
		e.lane.inHand--
		e.lane.bytes -= e.size
		o.unchain(e)
		back = append(back, e)
	}
	slices.SortFunc(back, func(a, b *entry) int { return cmp.Compare(a.sequence, b.sequence) })
	return back
}
