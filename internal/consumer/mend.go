package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
)

// changed follows a connection's record: its requests may belong to another
// queue now, or its org may have another limit.
func (c *Consumer) changed(record *connection.Connection) {
	c.follow(c.directory.put(record))
	c.reconsider(record.Name) // a new grant is not throttled
}

// follow brings queues up to date that a change touched.
func (c *Consumer) follow(touched []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped && len(touched) > 0 {
		c.loops.Go(func() { c.bring(touched) })
	}
}

// bring makes the queues what they should be now, and serves them.
func (c *Consumer) bring(touched []string) {
	// Every worker sees the change: let one be first, the others find it done.
	c.sleep(rand.N(100 * time.Millisecond))
	for _, name := range touched {
		if err := c.mend(name); err != nil && c.pulling.Err() == nil {
			c.Logger.Warn("queue not brought up to date: trying again when it is served", "queue", name, "err", err)
		}
	}
	for _, name := range touched {
		c.activate(name)
	}
}

// mend makes the queue's consumer, if there is one, what the plan says. One
// mend of a queue runs in this process at a time; who joins one that is under
// way has another follow, because the plan may have changed since it began.
func (c *Consumer) mend(name string) error {
	remodel := func() (any, error) {
		ctx, cancel := context.WithTimeout(c.pulling, 30*time.Second)
		defer cancel()
		return nil, c.remodel(ctx, c.directory.plan(name))
	}
	_, err, joined := c.mending.Do(name, remodel)
	if joined {
		_, err, _ = c.mending.Do(name, remodel)
	}
	return err
}

// A change of a queue's connections waits for the calls in flight, settleDown
// at most, and no longer than settled after the last of them ended: what is
// left then is not being called but waits. A call that takes longer is handed
// over twice: inserts are claimed, so the second one waits, and the rest is
// safe to repeat.
const (
	settleDown = 5 * time.Second
	settled    = 500 * time.Millisecond
)

func (c *Consumer) remodel(ctx context.Context, p plan) error {
	if p.empty() {
		err := c.JetStream.DeleteConsumer(ctx, RequestStream, p.name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil
		}
		return err
	}
	there, err := c.JetStream.Consumer(ctx, RequestStream, p.name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil // made when there is work
	}
	if err != nil {
		return err
	}
	config := there.CachedInfo().Config
	if p.covers(config) {
		return nil
	}
	if p.sameSubjects(config) {
		_, err = c.JetStream.UpdateConsumer(ctx, RequestStream, p.config())
		return err
	}
	// A consumer does not go back for older messages of a subject it did not
	// have before, and keeps those in hand of one it has no longer. So it starts
	// over, at rest. It is at the start of the stream before its subjects change:
	// what lies below a consumer's ack floor counts as answered when its leader
	// changes, and the server would remove requests of a new subject that nobody
	// has had yet (seen on a cluster of three, nats-server 2.15.2). The pause is
	// far longer than these steps take, so that the floor stays where it is.
	if _, err = c.JetStream.PauseConsumer(ctx, RequestStream, p.name, c.Clock.Now().Add(6*settleDown)); err != nil {
		return err
	}
	inHand, changed := -1, time.Now()
	for until := time.Now().Add(settleDown); time.Now().Before(until); c.sleep(20 * time.Millisecond) {
		info, err := there.Info(ctx)
		if err != nil {
			return err
		}
		if p.covers(info.Config) {
			return c.resume(ctx, p) // another worker was first
		}
		if info.NumAckPending != inHand {
			inHand, changed = info.NumAckPending, time.Now()
		}
		if inHand == 0 || time.Since(changed) > settled {
			break
		}
	}
	if _, err = c.JetStream.ResetConsumerToSequence(ctx, RequestStream, p.name, 1); err != nil {
		return err
	}
	if _, err = c.JetStream.UpdateConsumer(ctx, RequestStream, p.config()); err != nil {
		return err
	}
	return c.resume(ctx, p)
}

// resume ends a pause by letting it run out: a consumer that is resumed by hand
// does not look for messages until the next pull (seen on nats-server 2.15.2),
// one whose pause runs out does.
func (c *Consumer) resume(ctx context.Context, p plan) error {
	_, err := c.JetStream.PauseConsumer(ctx, RequestStream, p.name, c.Clock.Now().Add(50*time.Millisecond))
	return err
}

// pause keeps all workers from starting requests of the queue.
func (c *Consumer) pause(q *queue, name string, d time.Duration, cause string) {
	ctx, cancel := context.WithTimeout(c.calling, 5*time.Second)
	defer cancel()
	until := c.Clock.Now().Add(d)
	p := c.directory.plan(q.name)
	if e := c.expiryOf(q.name); !e.pausedFor(until) && e.fresh() {
		return // a longer one is in force
	}
	// What this worker believes may be over: a person resumes a queue, and a
	// consumer that is made anew isn't paused. And a person's pause may be longer.
	if there, err := c.stream.Consumer(ctx, p.name); err == nil {
		if info := there.CachedInfo(); info.Paused && info.PauseRemaining > d-50*time.Millisecond {
			until = c.Clock.Now().Add(info.PauseRemaining)
			c.expiryOf(q.name).inForce(until)
			return
		}
	}
	c.expiryOf(q.name).inForce(until)
	if _, err := c.JetStream.PauseConsumer(ctx, RequestStream, p.name, until); err != nil {
		c.Logger.Warn("queue not paused", "queue", q.name, "err", err)
		return
	}
	c.metrics.pauses.Inc()
	c.Logger.Info("queue paused", "queue", q.name, "connection", name, "for", d.Round(time.Millisecond), "cause", cause)
	c.event(ctx, name, "paused", map[string]any{"queue": q.name, "until": until.UTC(), "cause": cause})
}

// notePause takes in a pause that another worker made.
func (c *Consumer) notePause(q *queue, info *jetstream.ConsumerInfo) {
	if info.Paused {
		c.expiryOf(q.name).pausedFor(c.Clock.Now().Add(info.PauseRemaining))
	}
}

// event tells whoever listens at zoho.events.<connection>. Nothing depends on
// it, so it is not retried.
func (c *Consumer) event(ctx context.Context, name, event string, more map[string]any) {
	more["event"], more["connection"], more["at"] = event, name, c.Clock.Now().UTC()
	data, err := json.Marshal(more)
	if err == nil {
		_, err = c.JetStream.Publish(ctx, "zoho.events."+name, data)
	}
	if err != nil {
		c.Logger.Warn("event not published", "event", event, "connection", name, "err", err)
	}
}
