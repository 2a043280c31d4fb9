package consumer

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/event"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/zoho"
)

// entry is a request in hand of this worker.
type entry struct {
	subject, connection string
	header              nats.Header
	data                []byte
	size                int64 // in hand, headers included
	sequence            uint64
	entered             time.Time // into the stream, by the server's clock
	stored              time.Time // the same, or when it was before it was moved to another lane
	era                 uint64    // Consumer.era when it came
	again               bool      // handed over before

	request *envelope.Request
	refused *envelope.Error // it can't be carried out
	digest  [32]byte
	op      zoho.Operation
	ask     flow.Ask

	lane     *lane     // nil: it was read out of the stream, and not handed over
	delivery *nats.Msg // under hand.mu
	key      string    // of its chain; "": it is in none
	suspect  bool      // two workers died that had it in hand
	since    time.Time // in hand since

	// Calls of Zoho for it, the last few. Only the goroutine that works on it adds to
	// them, under org.mu where it has an org.
	tries  []try
	first  [1]try // the memory of one, which is all that most need
	untold int    // those before

	sendings relay.Sendings // of the goroutine that works on it

	unstored atomic.Pointer[string] // why its answer could not be stored when that was last tried

	// Under org.mu.
	running bool
	chained bool // it stands behind another of its order
	idle    bool // it is answered without a call
	timer   *time.Timer
	// waits is why it was not answered when it was last tried, until when.
	waits relay.Reason
	why   string // the same in words
	until time.Time
	// waited is what it waited for when it was started.
	waited string
}

func (e *entry) origin() origin { return origin{e.sequence, e.entered.UnixNano()} }

// tried takes in how a try to store what ends the request went.
func (e *entry) tried(err error) {
	if err == nil {
		if e.unstored.Load() != nil {
			e.unstored.Store(nil)
		}
		return
	}
	text := err.Error()
	e.unstored.Store(&text)
}

// arrived takes a delivery in.
func (o *org) arrived(l *lane, msg *nats.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		o.Logger.Error("not a JetStream message", "subject", msg.Subject, "err", err)
		return
	}
	e := &entry{
		subject: msg.Subject, connection: l.connection, header: msg.Header, data: msg.Data, size: int64(msg.Size()),
		sequence: meta.Sequence.Stream, entered: meta.Timestamp, stored: StoredAt(msg.Subject, msg.Header, meta.Timestamp), era: l.era,
		// A consumer that is made anew after a death counts its deliveries from one.
		again: meta.NumDelivered > 1 || l.was(meta.Sequence.Stream),
		lane:  l, delivery: msg, since: time.Now(),
	}
	if e.again {
		e.sendings.Elsewhere = true
		o.metrics.redeliveries.Inc()
	} else {
		o.metrics.queued.Observe(max(o.Clock.Now().Sub(meta.Timestamp), 0).Seconds())
	}
	o.decode(e)
	if e.suspect = e.sequence <= l.twice; e.suspect && e.sequence == o.trials.convicted {
		e.refused = errConvicted
	}
	switch c := o.directory.member(o.name, l.connection); {
	case e.refused != nil:
	case e.request.OrderKey != "":
		e.key = l.connection + " " + e.request.OrderKey
	case c != nil && c.Ordered:
		e.key = l.connection
	}
	taken := o.hand.take(e)
	o.mu.Lock()
	l.received++
	l.asked = max(l.asked-1, 0)
	l.wanted, l.came, l.heard = false, e.since, e.since
	if !taken {
		o.mu.Unlock()
		return // in hand already: the consumer was made anew, or the server thought this worker dead
	}
	if o.closed || l.closed {
		o.mu.Unlock()
		o.hand.leave(e)
		_ = msg.Nak()
		return
	}
	l.inHand++
	l.bytes += e.size
	o.queue(e)
	o.dispatch()
}

// decode reads the envelope, and what its call will weigh.
func (c *Consumer) decode(e *entry) {
	defer func() {
		if p := recover(); p != nil {
			c.Logger.Error("an envelope made the worker panic", "connection", e.connection, "panic", p, "stack", string(debug.Stack()))
			e.refused = asError(nil)
		}
	}()
	request, err := c.Decoder.Decode(e.data, e.stored)
	e.request = request
	if err != nil {
		e.refused = asError(err)
		return
	}
	e.digest = request.Digest()
	e.op = zoho.OperationOf(request.Method, request.Path)
	w := e.op.Weigh(request)
	e.ask = flow.Ask{Connection: e.connection, Heavy: w.Heavy, Places: w.Places, Heavies: w.Heavies, Bulk: e.lane != nil && e.lane.lane.bulk(), Credits: w.Credits}
}

func (e *entry) overdue(now time.Time) bool {
	return e.request != nil && !e.request.Deadline.After(now)
}

// try is a call of Zoho as a dead letter tells it.
type try struct {
	began  time.Time
	status int // 0: no answer
	unsent bool
	code   string // Zoho's
	err    error  // why there is no answer
}

func (t try) what() string {
	switch {
	case t.unsent:
		return "not sent to Zoho: " + cmp.Or(t.why(), "no connection")
	case t.status == 0:
		return strings.TrimSuffix("sent to Zoho, no answer came: "+t.why(), ": ")
	case t.code == "":
		return fmt.Sprintf("sent to Zoho, which answered %d", t.status)
	}
	return fmt.Sprintf("sent to Zoho, which answered %d %s", t.status, t.code)
}

// why is why there is no answer, in one line; "" where there is one.
func (t try) why() string {
	if t.err == nil {
		return ""
	}
	why := strings.Join(strings.Fields(t.err.Error()), " ")
	return why[:min(len(why), 300)]
}

// triesTold bounds the calls that a dead letter tells of.
const triesTold = 10

// tell notes a call, for who asks what becomes of the request, and for the dead
// letter that it may become.
func (e *entry) tell(answer *zoho.Answer, began time.Time) {
	if e.tries == nil {
		e.tries = e.first[:0]
	}
	if len(e.tries) == triesTold {
		e.tries = append(e.tries[:0], e.tries[1:]...)
		e.untold++
	}
	e.tries = append(e.tries, try{began: began, status: answer.Status, unsent: answer.Unsent, code: answer.Code, err: answer.Err})
}

// Attempted takes in what became of an attempt: relay calls it after each.
func (e *entry) Attempted(answer *zoho.Answer, began time.Time, credits int) {
	if e.lane == nil {
		e.tell(answer, began)
		return
	}
	o := e.lane.org
	o.mu.Lock()
	e.tell(answer, began)
	now := o.Clock.Now()
	began = now.Add(-time.Since(began))
	limited := answer.Status == 429 && e.op.Refused(answer)
	if credits > 0 || answer.CreditsRemaining >= 0 && !limited {
		o.flow.Spent(now, began, e.ask.Connection, credits, int64(answer.CreditsRemaining))
	}
	if !limited {
		if answer.Status > 0 {
			o.flow.Answered(now, e.ask)
		}
		o.mu.Unlock()
		return
	}
	cause, pause, again := o.flow.Refused(now, e.ask, flow.Refusal{
		Began: began, RetryAfter: answer.RetryAfter, Code: answer.Code,
		Message: string(answer.Body[:min(len(answer.Body), 2048)]), Remaining: int64(answer.CreditsRemaining),
	})
	limit := o.flow.Limit()
	o.mu.Unlock()
	o.metrics.refusals[cause].Inc()
	if again {
		return
	}
	d := pause.Until.Sub(now)
	o.metrics.pauses.Inc()
	o.Logger.Info("queue paused", "queue", o.name, "connection", e.ask.Connection, "for_ms", d.Milliseconds(),
		"cause", pause.Cause, "limit", cause, "places", limit)
	o.save()
	go func() {
		ctx, cancel := context.WithTimeout(o.calling, 5*time.Second)
		defer cancel()
		err := event.Send(ctx, o.JetStream, event.Event{
			Event: "paused", Connection: e.ask.Connection, At: o.Clock.Now().UTC(),
			Queue: o.name, Until: pause.Until.UTC(), Cause: pause.Cause, For: string(cause),
		})
		if err != nil {
			o.Logger.Warn("event not published", "event", "paused", "connection", e.ask.Connection, "err", err)
		}
	}()
}

// Remaining are the credits that the org has left, as far as is known.
func (e *entry) Remaining() (remaining int64, known bool) {
	if e.lane == nil {
		return 0, false
	}
	o := e.lane.org
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.flow.Remaining(o.Clock.Now())
}

// Paused is for how long the org is paused for the request, 0 where it isn't.
func (e *entry) Paused() time.Duration {
	if e.lane == nil {
		return 0
	}
	o := e.lane.org
	now := o.Clock.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if reason, until := o.flow.Pauses(now, e.ask); reason != "" {
		return until.Sub(now)
	}
	return 0
}

// limitInWords says what keeps the request from its start, "" where nothing
// does. The lock is held.
func (o *org) limitInWords(e *entry, now time.Time) string {
	st := o.flow.State()
	because := func(p *flow.Pause) string {
		if p == nil || p.Cause == "" {
			return ""
		}
		return " (" + p.Cause + ")"
	}
	switch reason, _ := o.flow.May(now, e.ask); reason {
	case flow.Paused:
		if st.Hand != nil && now.Before(st.Hand.Until) {
			return "the org is paused" + because(st.Hand)
		}
		return "Zoho refuses more calls of the org" + because(st.Pause)
	case flow.HeavyPaused:
		return "Zoho refuses more heavy calls of the org" + because(st.HeavyPause)
	case flow.CreditsOut:
		return "the org's API credits are used up"
	case flow.Reserved:
		return "the org's last API credits are kept for interactive requests"
	case flow.BudgetSpent:
		return "the connection's API credits of the day are used up"
	case flow.Full, flow.HeavyFull:
		return "the org's places were taken"
	}
	if e.waits != "" {
		return e.why
	}
	return ""
}
