package consumer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DefaultAckWait is how long the server waits for a sign of life before it hands
// a request to somebody else. All that are in hand give one every third of it.
const DefaultAckWait = 30 * time.Second

// inactive is after what time without pulls the server drops a lane's consumer.
// It is longer than any call can take.
const inactive = 10 * time.Minute

// windowMost bounds what is handed out of one lane and not settled, as the
// server sees it.
const windowMost = 512

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
// A lane without a request for idle is no longer pulled from.
const (
	pullExpiry    = 10 * time.Second
	pullHeartbeat = 2 * time.Second
	idle          = 10 * time.Second
)

// serve takes requests from the lane for as long as there are any. Fresh says
// that it is served for the first time since the org was taken.
func (l *lane) serve(fresh bool) {
	o := l.org
	for {
		done, err := l.pull(fresh)
		if err == nil {
			fresh = false
		} else if o.pulling.Err() == nil {
			o.Logger.Warn("lane not served for a moment", "queue", o.name, "subject", l.subject(), "err", err)
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
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.closed {
		return true
	}
	// While the worker before has some of it in hand, they are counted here.
	if l.inHand > 0 || l.foreign > 0 {
		return o.pulling.Err() != nil
	}
	l.closed = true
	delete(o.lanes, l.laneKey)
	if len(o.lanes) == 0 {
		o.quiet = time.Now()
	}
	return true
}

// pull hands the lane's requests to the org until it is idle or closed (true),
// or has to begin again.
func (l *lane) pull(fresh bool) (done bool, err error) {
	o := l.org
	setup, cancel := context.WithTimeout(o.pulling, 10*time.Second)
	defer cancel()
	if fresh && o.crashed {
		// The worker before is dead, or was away for longer than its session
		// lasts: what it had in hand is handed out anew at once, in order.
		if err := l.mourn(setup); err != nil {
			return false, err
		}
		err := o.JetStream.DeleteConsumer(setup, RequestStream, l.durable())
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return false, fmt.Errorf("make consumer %s anew: %w", l.durable(), err)
		}
	}
	source, err := ensureConsumer(setup, o.JetStream, l.config())
	if err != nil {
		return false, fmt.Errorf("create consumer %s: %w", l.durable(), err)
	}
	if fresh && !o.crashed {
		l.inherit(source, source.CachedInfo())
	}
	messages, err := source.Messages(jetstream.PullMaxMessages(l.window), jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(pullHeartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return false, fmt.Errorf("pull from %s: %w", l.durable(), err)
	}
	if !l.opened(messages) {
		messages.Stop()
		return true, nil
	}
	defer l.drain(messages)
	for l.hasRoom() {
		msg, err := messages.Next(jetstream.NextMaxWait(idle))
		switch {
		case err == nil:
			o.arrived(l, msg)
		case errors.Is(err, nats.ErrTimeout):
			return true, nil
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return true, nil
		case errors.Is(err, jetstream.ErrNoHeartbeat), errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrConsumerNotFound):
			// No sign of life is a new leader on its way, or a consumer that is
			// gone: a server that starts again has forgotten it, says so to every
			// pull with a status the library keeps to itself, and the lane would
			// stand still for ever. To make it again if need be suits both.
			return false, nil
		default:
			return false, err
		}
	}
	return true, nil
}

// mourn notes what a worker that died had in hand. A request that kills its
// worker would kill them all: what was in hand of two in a row that died is tried
// alone, and by name in the org's record, so that the third death convicts it. A
// worker that is killed from outside costs those requests a row to stand in, and
// at the very worst one of them an answer that says internal.
func (l *lane) mourn(ctx context.Context) error {
	o := l.org
	if l.mourned || o.hold.Own {
		return nil
	}
	there, err := o.JetStream.Consumer(ctx, RequestStream, l.durable())
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil // forgotten, with what it had handed out
	}
	if err != nil {
		return fmt.Errorf("look at consumer %s: %w", l.durable(), err)
	}
	handed := there.CachedInfo().Delivered.Stream
	o.mu.Lock()
	// What is loaded is of the death before; a write that failed is written again.
	l.twice = min(o.died[l.rest()], handed)
	o.deaths[l.rest()] = handed
	twice := l.twice
	o.mu.Unlock()
	if twice > 0 {
		o.Logger.Warn("two workers in a row died with requests in hand: these are tried one at a time", "queue", o.name, "subject", l.subject(), "up_to", twice)
	}
	if err := o.hold.Save(ctx, o.merge); err != nil {
		return fmt.Errorf("note the worker's death: %w", err)
	}
	l.mourned = true
	return nil
}

// putOnTrial writes into the org's record which request is tried alone. If that
// can't be written, the request is tried all the same: it may not be the one.
func (o *org) putOnTrial() {
	ctx, cancel := context.WithTimeout(o.calling, 5*time.Second)
	defer cancel()
	if err := o.hold.Save(ctx, o.merge); err != nil {
		o.Logger.Warn("the request that is tried alone is not noted", "queue", o.name, "err", err)
	}
}

// opened notes the pulls, so that shut can end them; false: the lane is closed.
func (l *lane) opened(messages jetstream.MessagesContext) bool {
	l.org.mu.Lock()
	defer l.org.mu.Unlock()
	l.messages = messages
	return !l.closed
}

// hasRoom waits until the lane may take another request in hand; false: it is closed.
func (l *lane) hasRoom() bool {
	o := l.org
	o.mu.Lock()
	defer o.mu.Unlock()
	// Until nothing is in hand of the worker before, everything is taken in that
	// is handed over: what waits in between would be taken for the other's.
	for l.inHand >= l.window && l.foreign == 0 && !l.closed {
		if aside := l.setAside(); aside != nil {
			o.mu.Unlock()
			o.moveAside(aside)
			o.mu.Lock()
			continue
		}
		l.room.Wait()
	}
	return !l.closed
}

// drain ends the pulls and deals with what the server had handed over already.
func (l *lane) drain(messages jetstream.MessagesContext) {
	messages.Drain()
	for {
		msg, err := messages.Next()
		switch {
		case errors.Is(err, jetstream.ErrNoHeartbeat):
		case err != nil:
			return
		default:
			l.org.arrived(l, msg) // gives it back where the lane is closed
		}
	}
}

// inherit counts the requests that the worker before has in hand, which takes up
// nothing more, until they are settled.
func (l *lane) inherit(source jetstream.Consumer, before *jetstream.ConsumerInfo) {
	o, n := l.org, before.NumAckPending
	o.mu.Lock()
	l.foreign = n
	delete(o.before, l.laneKey)
	o.countForeign()
	l.room.Signal()
	o.mu.Unlock()
	if n == 0 {
		return
	}
	go func() {
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
				l.foreign = 0 // forgotten, or made anew: all of it comes to this worker
			} else if err == nil {
				// Of what was delivered since, this worker's are those that it has not
				// settled: in hand, or on their way to it. Its counts may be newer than
				// the server's, which then counts for the other.
				settled := l.received - l.inHand
				ours := int(info.Delivered.Consumer-before.Delivered.Consumer) - settled
				l.foreign = max(0, min(l.foreign, info.NumAckPending-ours))
			}
			left := l.foreign
			o.countForeign()
			if left == 0 {
				l.settle()
			}
			l.room.Signal()
			closed := o.closed || l.closed
			o.dispatch()
			if left == 0 || closed {
				return
			}
		}
	}()
}

// countForeign tells the governor what other workers may still have in flight.
// The lock is held.
func (o *org) countForeign() {
	n := o.leftover
	for _, l := range o.lanes {
		n += l.foreign
	}
	for _, held := range o.before {
		n += held
	}
	o.flow.Foreign(n)
}

// storedHeader carries when a request was first stored, which is moved to
// another lane.
const storedHeader = "Zoho-Stored"

// setAside picks the heavy requests out of a full window that the light ones
// behind them need not wait for. The lock is held.
func (l *lane) setAside() []*entry {
	if _, ok := l.lane.aside(); !ok || len(l.heavy) < l.window/2 {
		return nil
	}
	var aside, stay []*entry
	for i, e := range l.heavy {
		// The first of them stay: they are about to be started.
		if i < l.window/4 || e.key != "" || e.refused != nil {
			stay = append(stay, e)
		} else {
			e.running = true // it is not to be given back meanwhile
			aside = append(aside, e)
		}
	}
	if len(aside) == 0 {
		return nil
	}
	l.heavy = stay
	return aside
}

// moveAside moves heavy requests to a lane of their own, a few at a time: stored
// there first, then taken off here. What dies in between is there twice, and its
// id makes it one request.
func (o *org) moveAside(aside []*entry) {
	next := make(chan *entry, len(aside))
	for _, e := range aside {
		next <- e
	}
	close(next)
	var failed atomic.Bool
	var moving sync.WaitGroup
	for range min(askAtOnce, len(aside)) {
		moving.Go(func() {
			for e := range next {
				if !o.moved(e) {
					failed.Store(true)
				}
			}
		})
	}
	moving.Wait()
	if failed.Load() {
		o.sleep(time.Second) // the stream is full, or the server away
	}
}

// moved moves one heavy request, or puts it back into its line.
func (o *org) moved(e *entry) bool {
	to, _ := e.lane.lane.aside()
	msg := &nats.Msg{Subject: laneKey{e.connection, to}.subject(), Data: e.data, Header: nats.Header{}}
	for name, values := range e.header {
		if name != jetstream.MsgIDHeader && name != jetstream.ExpectedStreamHeader {
			msg.Header[name] = values
		}
	}
	msg.Header.Set(storedHeader, e.stored.UTC().Format(time.RFC3339Nano))
	ctx, cancel := context.WithTimeout(o.calling, 5*time.Second)
	defer cancel()
	_, err := o.JetStream.PublishMsg(ctx, msg, jetstream.WithMsgID("aside."+strconv.FormatUint(e.sequence, 10)))
	if err == nil {
		err = o.done(e)
	}
	o.mu.Lock()
	e.running = false
	switch {
	case err == nil:
		o.left(e)
		o.mu.Unlock()
		o.metrics.moved.Inc()
		o.wake(laneKey{e.connection, to})
		return true
	case e.lane.closed:
		o.left(e)
		o.mu.Unlock()
		o.giveBack(e, nil)
	default:
		o.Logger.Debug("heavy request not moved", "subject", e.subject, "err", err)
		e.lane.line(e, false)
		o.dispatch()
	}
	return false
}
