package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/zoho"
)

// org is an org that this worker serves: its lanes, and what may be started.
// All that is in flight for the org is in this process, so its limits are kept
// here and nowhere else.
type org struct {
	*Consumer
	name string
	hold *lease.Hold
	// crashed says that the owner before did not give the org up; inherited, that
	// it did with calls under way.
	crashed, inherited bool

	// Under gate.mu.
	inLine, turn bool

	mu      sync.Mutex
	flow    *flow.Governor
	lanes   map[laneKey]*lane
	started map[laneKey]bool // lanes that were served since the org was taken
	chains  map[string]*chain
	// deaths, trial and convicted are for requests that kill their workers, see lane.mourn.
	died, deaths     map[string]uint64 // of the death before, and with the last one
	trial, convicted uint64
	before           map[laneKey]int // requests in hand of the worker before, of lanes not served yet
	// blocked is why nothing more was started when it was last tried.
	blocked  flow.Reason
	starts   uint64
	inRow    int // interactive requests started in a row while bulk ones waited
	timer    *time.Timer
	closed   bool
	quiet    time.Time // since when it has no lane; zero: it has
	saving   bool
	unsaved  bool // the last write failed
	saved    time.Time
	resumed  time.Time
	pulls    sync.WaitGroup // lanes being served; grows only until the org is closed
	leftover int            // calls of an earlier tenure that still run in this process
}

// entry is a request in hand of this worker.
type entry struct {
	subject, connection string
	header              nats.Header
	data                []byte
	sequence            uint64
	stored              time.Time // by the server's clock
	again               bool      // handed over before

	request *envelope.Request
	refused *envelope.Error // it can't be carried out
	digest  [32]byte
	op      zoho.Operation
	ask     flow.Ask

	lane     *lane         // nil: it was read out of the stream, and not handed over
	delivery jetstream.Msg // under hand.mu
	key      string        // of its chain; "": it is in none
	suspect  bool          // two workers died that had it in hand
	since    time.Time     // in hand since

	// Under org.mu.
	running bool
	timer   *time.Timer
	// waits is why it was not answered when it was last tried, until when.
	waits relay.Reason
	why   string // the same in words
	until time.Time
	// waited is what it waited for when it was started.
	waited string
}

// chain is a row of requests that are carried out one after the other. The first
// is in its lane or under way; these wait for it.
type chain struct{ waiting []*entry }

// lane is one lane of a connection as this worker serves it.
type lane struct {
	laneKey
	org    *org
	window int // requests in hand at most

	// Under org.mu.
	// Waiting for their start, in order: see lines.
	light, heavy, suspects []*entry
	// twice is up to which sequence the requests were in hand of two workers in a
	// row that died.
	twice    uint64
	mourned  bool     // twice is known and written; the lane's own goroutine's
	behind   []*entry // ordered requests, until no other worker has one of the lane
	inHand   int
	received int // since it is served, whatever became of them
	running  int
	last     uint64 // when one was started last, by org.starts
	foreign  int    // in hand of the worker before
	closed   bool
	messages jetstream.MessagesContext
	room     *sync.Cond // inHand fell, or the lane was closed
}

// state is what the record of an org says, in the words of package flow, and
// what a person wants.
type state struct {
	flow.State
	// Resumed is when a person last ended all pauses.
	Resumed time.Time `json:"resumed,omitzero"`
	// Deaths is, by lane, up to which sequence requests were in hand of the last
	// worker that died; Trial is the request that was being tried alone.
	Deaths map[string]uint64 `json:"deaths,omitempty"`
	Trial  uint64            `json:"trial,omitempty"`
	// Running is how many calls were under way when the org was given up.
	Running int `json:"running,omitempty"`
}

// DecodeState reads the state that an org's record carries; one that can't be
// read says nothing.
func DecodeState(data json.RawMessage) (s flow.State) {
	var st state
	if len(data) > 0 && json.Unmarshal(data, &st) == nil {
		return st.State
	}
	return flow.State{}
}

// SetPause is a change of an org's state for lease.Update: nothing of the org is
// started until the pause is over; nil ends all pauses, Zoho's too.
func SetPause(p *flow.Pause, now time.Time) func(json.RawMessage) (json.RawMessage, error) {
	return func(data json.RawMessage) (json.RawMessage, error) {
		var st state
		if len(data) > 0 {
			_ = json.Unmarshal(data, &st) // one that can't be read says nothing
		}
		if st.Hand = p; p == nil {
			st.Pause, st.HeavyPause, st.Resumed = nil, nil, now
		}
		return json.Marshal(st)
	}
}

func newOrg(c *Consumer, name string, hold *lease.Hold) *org {
	var st state
	if data := hold.State(); len(data) > 0 {
		if err := json.Unmarshal(data, &st); err != nil {
			c.Logger.Warn("the record of the org can't be read: its limits begin anew", "queue", name, "err", err)
			st = state{}
		}
	}
	o := &org{
		Consumer: c, name: name, hold: hold, crashed: hold.Crashed, inherited: st.Running > 0 && !hold.Crashed,
		flow: flow.New(c.directory.limits(name), st.State), resumed: st.Resumed,
		lanes: map[laneKey]*lane{}, started: map[laneKey]bool{}, chains: map[string]*chain{}, before: map[laneKey]int{},
		quiet: time.Now(), saved: time.Now(), died: st.Deaths, deaths: map[string]uint64{},
	}
	maps.Copy(o.deaths, st.Deaths)
	if hold.Crashed && !hold.Own {
		o.convicted = st.Trial
	}
	return o
}

// wake serves a lane that has requests.
func (o *org) wake(k laneKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.lanes[k] != nil || !usable(o.directory.member(o.name, k.connection)) {
		return
	}
	l := &lane{laneKey: k, org: o, window: o.window()}
	l.room = sync.NewCond(&o.mu)
	o.lanes[k] = l
	o.quiet = time.Time{}
	fresh := !o.started[k]
	o.started[k] = true
	o.pulls.Add(1)
	o.loops.Go(func() {
		defer o.pulls.Done()
		l.serve(fresh)
	})
}

// window is how many requests of a lane are taken in hand: enough that a place
// that falls free needs no round trip, and to look past requests that can't be
// started yet.
func (o *org) window() int { return min(max(2*o.directory.limits(o.name).Places, 16), 2*windowMost/4) }

// arrived takes a delivery in.
func (o *org) arrived(l *lane, msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil {
		o.Logger.Error("not a JetStream message", "subject", msg.Subject(), "err", err)
		return
	}
	e := &entry{
		subject: msg.Subject(), connection: l.connection, header: msg.Headers(), data: msg.Data(),
		sequence: meta.Sequence.Stream, stored: storedAt(msg.Headers(), meta.Timestamp), again: meta.NumDelivered > 1,
		lane: l, delivery: msg, since: time.Now(),
	}
	if e.again {
		o.metrics.redeliveries.Inc()
	} else {
		o.metrics.queued.Observe(max(o.Clock.Now().Sub(meta.Timestamp), 0).Seconds())
	}
	o.decode(e)
	if e.suspect = e.sequence <= l.twice; e.suspect && e.sequence == o.convicted {
		e.refused = &envelope.Error{
			Code:    envelope.Internal,
			Message: "three workers in a row died while they had this request in hand, the last one with no other like it: whether it was carried out is not known",
		}
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
	var w zoho.Weight
	e.op, w = zoho.Weigh(request)
	e.ask = flow.Ask{Connection: e.connection, Heavy: w.Heavy, Bulk: e.lane != nil && e.lane.lane.bulk(), Credits: w.Credits}
}

// queue puts an entry that is new in hand where it belongs; the lock is held.
func (o *org) queue(e *entry) {
	if e.key != "" {
		if e.lane.foreign > 0 {
			e.lane.behind = append(e.lane.behind, e)
			return
		}
		if c := o.chains[e.key]; c != nil {
			c.waiting = append(c.waiting, e)
			return
		}
		o.chains[e.key] = &chain{}
	}
	e.lane.line(e, false)
}

// lines are the lane's: light requests, heavy ones, and suspects.
func (l *lane) lines() [3]*[]*entry { return [3]*[]*entry{&l.light, &l.heavy, &l.suspects} }

// suspects is the place of the suspects among the lines.
const suspects = 2

// line puts an entry into its line, at the front where it has waited before.
func (l *lane) line(e *entry, front bool) {
	to := &l.light
	switch {
	case e.suspect:
		to = &l.suspects
	case e.ask.Heavy:
		to = &l.heavy
	}
	if front {
		*to = slices.Insert(*to, 0, e)
	} else {
		*to = append(*to, e)
	}
}

// settle lets the ordered requests in that waited for the worker before; the
// lock is held.
func (l *lane) settle() {
	slices.SortFunc(l.behind, func(a, b *entry) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	behind := l.behind
	l.behind = nil
	for _, e := range behind {
		l.org.queue(e)
	}
}

// dispatch starts what can be started. It is called with the lock held and
// gives it up.
func (o *org) dispatch() {
	defer o.yield()
	defer o.mu.Unlock()
	// A stopping worker gives requests back, and what stands in order behind one of
	// them mustn't start here. One that was stopped for a while knows by its own
	// clock that another may have the org now.
	if o.closed || o.pulling.Err() != nil || !o.hold.Lasts() {
		return
	}
	now := o.Clock.Now()
	for {
		e, reason, until := o.next(now)
		o.holdBack(reason, until)
		if e == nil {
			o.arm(now, reason, until)
			return
		}
		overdue := e.refused != nil || !e.request.Deadline.After(now)
		if !overdue && !o.gate.enter(o) {
			o.holdBack(waitWorker, time.Time{})
			return
		}
		o.start(e, overdue, now)
	}
}

// holdBack notes what holds the org's next request back, and says so where it is
// the org's credits: pauses are told of where they begin. The lock is held.
func (o *org) holdBack(reason flow.Reason, until time.Time) {
	if reason == o.blocked {
		return
	}
	o.blocked = reason
	switch reason {
	case flow.CreditsOut, flow.Reserved, flow.BudgetSpent:
		forecast := o.flow.Forecast(o.Clock.Now())
		o.Logger.Info("org waits for credits", "queue", o.name, "for", reason, "until", until, "used", forecast.Used, "per_hour", forecast.PerHour)
	}
}

// waitWorker is the reason of an org whose next request waits for a place of
// this worker.
const waitWorker flow.Reason = "worker"

// yield passes a place on that was kept for this org and isn't used.
func (o *org) yield() {
	if next := o.gate.unused(o); next != nil {
		go next.kick()
	}
}

// kick dispatches.
func (o *org) kick() {
	o.mu.Lock()
	o.dispatch()
}

// next chooses the request to be started next: interactive before bulk, of
// equals the lane with the fewest under way, within a lane in order, light ones
// past heavy ones that have to wait. Nil: none, for the reason returned.
func (o *org) next(now time.Time) (best *entry, reason flow.Reason, until time.Time) {
	var bulk *entry
	bulkRunning := 0
	for _, l := range o.lanes {
		e, why, at := l.head(now)
		if e == nil {
			if why != "" && (reason == "" || rank(why) < rank(reason)) {
				reason = why
			}
			if !at.IsZero() && (until.IsZero() || at.Before(until)) {
				until = at
			}
		}
		if l.lane.bulk() {
			bulkRunning += l.running
			if e != nil && (bulk == nil || l.before(bulk.lane)) {
				bulk = e
			}
		} else if e != nil && (best == nil || l.before(best.lane)) {
			best = e
		}
	}
	switch {
	case best == nil:
		best = bulk
	case bulk == nil:
		o.inRow = 0
	case bulkRunning == 0 && (o.flow.Places() > 1 || o.inRow >= bulkEvery):
		// Bulk work has a place, or where there is but one, a turn.
		best, o.inRow = bulk, 0
	default:
		o.inRow++
	}
	return best, reason, until
}

// bulkEvery is after how many interactive requests a bulk one has its turn
// where the org has but one place.
const bulkEvery = 9

// rank orders reasons: what holds the whole org back is told before what holds
// a part of it back.
func rank(r flow.Reason) int {
	return slices.Index([]flow.Reason{flow.Paused, flow.CreditsOut, flow.Full, flow.BudgetSpent, flow.Reserved, flow.HeavyPaused, flow.HeavyFull}, r)
}

// before reports whether l's turn comes before m's.
func (l *lane) before(m *lane) bool {
	if l.running != m.running {
		return l.running < m.running
	}
	return l.last < m.last
}

// head is the first of the lane's requests that can be started.
func (l *lane) head(now time.Time) (e *entry, reason flow.Reason, until time.Time) {
	for i, line := range l.lines() {
		if len(*line) == 0 || i == suspects && l.org.trial != 0 {
			continue // one of them at a time: the next is looked at when it is over
		}
		first := (*line)[0]
		if first.refused != nil || !first.request.Deadline.After(now) {
			return first, "", time.Time{} // answered without a call
		}
		why, at := l.org.flow.May(now, first.ask)
		if why == "" {
			if e == nil || first.sequence < e.sequence {
				e = first
			}
			continue
		}
		if reason == "" || rank(why) < rank(reason) {
			reason, until = why, at
		}
	}
	return e, reason, until
}

// start starts an entry that is first in its line; the lock is held. One that is
// answered without a call takes no place.
func (o *org) start(e *entry, idle bool, now time.Time) {
	l := e.lane
	for _, line := range l.lines() {
		if len(*line) > 0 && (*line)[0] == e {
			(*line)[0] = nil
			*line = (*line)[1:]
		}
	}
	if e.suspect && !idle {
		o.trial = e.sequence
	}
	if idle && e.request != nil {
		e.waited = o.held(e, now)
	}
	o.starts++
	l.last = o.starts
	e.running = true
	if !idle {
		l.running++
		o.flow.Start(e.ask)
	}
	o.requests.Add(1)
	go o.run(e, idle)
}

// run carries an entry as far as it can be now.
func (o *org) run(e *entry, idle bool) {
	defer o.requests.Done()
	onTrial := e.suspect && !idle
	if onTrial {
		o.putOnTrial()
	}
	wait := o.work(o.name, e)
	if onTrial {
		o.mu.Lock()
		o.trial = 0
		o.mu.Unlock()
		if wait != nil {
			o.putOnTrial() // it was none of its doing
		}
	}
	var turn *org
	if !idle {
		turn = o.gate.leave()
	}
	o.mu.Lock()
	e.running = false
	if !idle {
		e.lane.running--
		o.flow.End(e.ask)
	}
	switch {
	case wait == nil:
		o.left(e)
	case o.closed || e.lane.closed || wait.Reason == relay.WaitStopping:
		o.left(e)
		o.giveBack(e, wait)
	default:
		o.rest(e, wait)
	}
	closed := o.closed
	o.dispatch()
	if turn != nil && turn != o {
		turn.kick()
	}
	if closed {
		o.finished(o.name)
	}
}

// rest keeps a request in hand that has to wait; it takes no place meanwhile.
// The lock is held.
func (o *org) rest(e *entry, wait *relay.Wait) {
	e.waits, e.why, e.until = wait.Reason, wait.Why, time.Now().Add(wait.For)
	if wait.Reason == relay.WaitPause || wait.For <= 0 {
		e.lane.line(e, true) // what it waits for is the org's to know
		return
	}
	e.timer = time.AfterFunc(wait.For, func() { o.rested(e) })
}

// rested puts a request that has waited back into its line.
func (o *org) rested(e *entry) {
	o.mu.Lock()
	if e.timer == nil || o.closed || e.lane.closed {
		o.mu.Unlock()
		return
	}
	e.timer = nil
	e.lane.line(e, true)
	o.dispatch()
}

// unblocked puts the requests of a connection back into their lines that wait
// for a token: there may be one now.
func (o *org) unblocked(connection string) {
	o.mu.Lock()
	for _, e := range o.hand.of(o) {
		if e.lane.connection == connection && e.timer != nil && (e.waits == relay.WaitToken || e.waits == relay.WaitRevoked) && e.timer.Stop() {
			e.timer = nil
			e.lane.line(e, true)
		}
	}
	o.dispatch()
}

// left takes an entry out of this worker's hand, and lets the next of its chain
// in. The lock is held.
func (o *org) left(e *entry) {
	o.hand.leave(e)
	e.lane.inHand--
	e.lane.room.Signal()
	if e.key == "" {
		return
	}
	c := o.chains[e.key]
	if c == nil {
		return
	}
	if len(c.waiting) == 0 {
		delete(o.chains, e.key)
		return
	}
	next := c.waiting[0]
	c.waiting = c.waiting[1:]
	next.lane.line(next, false)
}

// giveBack has the server hand a request out again: at once, unless Zoho asked
// for a pause before the next attempt.
func (o *org) giveBack(e *entry, wait *relay.Wait) {
	d := time.Duration(0)
	switch {
	case wait != nil && wait.Reason == relay.WaitRetry:
		d = wait.For
	case wait == nil && e.waits == relay.WaitRetry:
		d = max(0, time.Until(e.until))
	}
	if err := o.later(e, d); err != nil {
		o.Logger.Debug("request not given back: it comes again after AckWait", "connection", e.connection, "sequence", e.sequence, "err", err)
	}
}

// arm has the org look again when what holds it back is over, or the first
// deadline of what is held. The lock is held.
func (o *org) arm(now time.Time, reason flow.Reason, until time.Time) {
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	switch reason {
	case "", flow.Full, flow.HeavyFull:
		return // a call that ends comes here
	}
	for _, l := range o.lanes {
		for _, line := range l.lines() {
			for _, e := range *line {
				if e.request != nil && (until.IsZero() || e.request.Deadline.Before(until)) {
					until = e.request.Deadline
				}
			}
		}
	}
	if until.IsZero() {
		return
	}
	// Deadlines first: of a line, only the head is looked at.
	o.timer = time.AfterFunc(max(until.Sub(now), time.Millisecond), func() {
		o.mu.Lock()
		o.overdue(o.Clock.Now())
		o.dispatch()
	})
}

// overdue moves what is past its deadline to the front. The lock is held.
func (o *org) overdue(now time.Time) {
	for _, l := range o.lanes {
		for _, line := range l.lines() {
			slices.SortStableFunc(*line, func(a, b *entry) int {
				return order(a.overdue(now)) - order(b.overdue(now))
			})
		}
	}
}

func order(first bool) int {
	if first {
		return 0
	}
	return 1
}

func (e *entry) overdue(now time.Time) bool {
	return e.request != nil && !e.request.Deadline.After(now)
}

// Attempted takes in what became of an attempt: relay calls it after each.
func (e *entry) Attempted(answer *zoho.Answer, began time.Time, credits int) {
	if e.lane == nil {
		return
	}
	o := e.lane.org
	now := o.Clock.Now()
	began = now.Add(-time.Since(began))
	o.mu.Lock()
	if credits > 0 || answer.CreditsRemaining >= 0 && answer.Status != 429 {
		o.flow.Spent(now, began, e.ask.Connection, credits, int64(answer.CreditsRemaining))
	}
	if answer.Status != 429 {
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
	o.Logger.Info("queue paused", "queue", o.name, "connection", e.ask.Connection, "for", d.Round(time.Millisecond),
		"cause", pause.Cause, "limit", cause, "places", limit)
	o.save()
	go func() {
		ctx, cancel := context.WithTimeout(o.calling, 5*time.Second)
		defer cancel()
		o.event(ctx, e.ask.Connection, "paused", map[string]any{"queue": o.name, "until": pause.Until.UTC(), "cause": pause.Cause, "for": cause})
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

// save writes the state to the org's record, in the background; one at a time.
func (o *org) save() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.saving || o.closed {
		return
	}
	o.saving = true
	go o.write()
}

// write saves the state, and what changed meanwhile a while later.
func (o *org) write() {
	ctx, cancel := context.WithTimeout(o.calling, 10*time.Second)
	defer cancel()
	err := o.hold.Save(ctx, o.merge)
	o.mu.Lock()
	o.saving, o.saved = false, time.Now()
	o.unsaved = err != nil
	o.dispatch() // what a person wants was read on the way
	switch {
	case errors.Is(err, lease.ErrLost):
		o.lostOrg(o)
	case err != nil && o.calling.Err() == nil:
		o.Logger.Warn("the state of the org is not saved", "queue", o.name, "err", err)
	}
}

// saveEvery is the least time between two writes of an org's state; what is
// used of the credits meanwhile is lost when the worker dies.
const saveEvery = 5 * time.Second

// merge makes the state to be written of the one there: what a person wants is
// there, the rest is here.
func (o *org) merge(data json.RawMessage) (json.RawMessage, error) {
	var there state
	if len(data) > 0 {
		_ = json.Unmarshal(data, &there) // one that can't be read is written anew
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heed(there)
	o.flow.Changed()
	st := state{State: o.flow.State(), Resumed: o.resumed, Deaths: maps.Clone(o.deaths), Trial: o.trial}
	if o.closed {
		st.Running, _ = o.flow.Running()
		st.Running += o.leftover
	}
	return json.Marshal(st)
}

// heed takes in what a person wants. The lock is held.
func (o *org) heed(there state) {
	o.flow.SetHand(there.Hand)
	if there.Resumed.After(o.resumed) {
		o.resumed = there.Resumed
		o.flow.Resume()
	}
}

// told takes in what a person may have changed in the org's record: the latest,
// in whatever order word of changes comes.
func (o *org) told() {
	o.mu.Lock()
	record, _ := o.leases.Record(o.name)
	var there state
	if len(record.State) > 0 && json.Unmarshal(record.State, &there) == nil {
		o.heed(there)
	}
	o.dispatch()
}

// close takes nothing more up and gives back what is not begun; what is under
// way ends as it does.
func (o *org) close() {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.closed = true
	if o.timer != nil {
		o.timer.Stop()
	}
	var back []*entry
	for _, l := range o.lanes {
		back = append(back, l.shut()...)
	}
	o.mu.Unlock()
	for _, e := range back {
		o.giveBack(e, nil)
	}
	o.pulls.Wait() // what was on its way is given back, too
}

// shut closes the lane and returns what is in hand and not begun, in order. The
// org's lock is held.
func (l *lane) shut() []*entry {
	if l.closed {
		return nil
	}
	l.closed = true
	l.room.Broadcast()
	if l.messages != nil {
		l.messages.Drain()
	}
	var back []*entry
	for _, e := range l.org.hand.of(l.org) {
		if e.lane != l || e.running {
			continue
		}
		if e.timer != nil {
			e.timer.Stop()
			e.timer = nil
		}
		back = append(back, e)
	}
	slices.SortFunc(back, func(a, b *entry) int {
		if a.sequence < b.sequence {
			return -1
		}
		return 1
	})
	l.light, l.heavy, l.suspects, l.behind = nil, nil, nil, nil
	for _, e := range back {
		l.org.hand.leave(e)
		l.inHand--
		if c := l.org.chains[e.key]; e.key != "" && c != nil {
			c.waiting = slices.DeleteFunc(c.waiting, func(w *entry) bool { return w == e })
			if len(c.waiting) == 0 && !l.org.chained(e.key) {
				delete(l.org.chains, e.key)
			}
		}
	}
	return back
}

// chained reports whether a request of the chain is in hand. The lock is held.
func (o *org) chained(key string) bool {
	return slices.ContainsFunc(o.hand.of(o), func(e *entry) bool { return e.key == key })
}

// refresh brings the org up to date with the records of its connections.
func (o *org) refresh() {
	limits := o.directory.limits(o.name)
	o.mu.Lock()
	o.flow.Configure(limits)
	var back []*entry
	for k, l := range o.lanes {
		if !usable(o.directory.member(o.name, k.connection)) {
			back = append(back, l.shut()...)
			delete(o.lanes, k)
		}
	}
	if len(o.lanes) == 0 && o.quiet.IsZero() {
		o.quiet = time.Now()
	}
	o.dispatch()
	for _, e := range back {
		o.giveBack(e, nil)
	}
}

// Sight is what the owner of an org says of it.
type Sight struct {
	Queue   string `json:"queue"`
	Owner   string `json:"owner"` // host and process
	Places  int    `json:"places"`
	Running int    `json:"running"`
	Heavy   int    `json:"heavy"`
	// Held are in hand and not begun; Blocked is why, if the org is held back.
	Held    int         `json:"held"`
	Blocked flow.Reason `json:"blocked,omitempty"`
	Lanes   []LaneSight `json:"lanes,omitempty"`
	State   flow.State  `json:"state"`
}

// LaneSight is one lane.
type LaneSight struct {
	Connection string `json:"connection"`
	Lane       Lane   `json:"lane,omitempty"`
	Running    int    `json:"running"`
	Held       int    `json:"held"`
}

func (o *org) sight() Sight {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := Sight{Queue: o.name, Owner: host + "/" + strconv.Itoa(os.Getpid()), Places: o.flow.Limit(), Blocked: o.blocked, State: o.flow.State()}
	s.Running, s.Heavy = o.flow.Running()
	for k, l := range o.lanes {
		s.Held += l.inHand - l.running
		s.Lanes = append(s.Lanes, LaneSight{k.connection, k.lane, l.running, l.inHand - l.running})
	}
	slices.SortFunc(s.Lanes, func(a, b LaneSight) int {
		return strings.Compare(a.Connection+"."+string(a.Lane), b.Connection+"."+string(b.Lane))
	})
	return s
}

// held says in words what keeps the request from its start, "" where nothing
// does. The lock is held.
func (o *org) held(e *entry, now time.Time) string {
	st := o.flow.State()
	because := func(p *flow.Pause) string {
		if p == nil {
			return ""
		}
		return " (" + p.Cause + ")"
	}
	switch reason, _ := o.flow.May(now, e.ask); reason {
	case flow.Paused:
		if st.Hand != nil && now.Before(st.Hand.Until) {
			return "the org is paused by hand" + because(st.Hand)
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
