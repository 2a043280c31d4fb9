package consumer

import (
	"cmp"
	"slices"
	"time"

	"zoho-worker/internal/flow"
	"zoho-worker/internal/relay"
)

// chain is a row of requests that are carried out one after the other: the first is
// in its lane, rests or is under way, the others wait for it.
type chain struct {
	first   *entry // nil: it was given back, and those that wait are about to be
	waiting []*entry
}

// queue puts an entry that is new in hand where it belongs; the lock is held.
func (o *org) queue(e *entry) {
	if e.key != "" {
		if o.awaits(e.connection) {
			e.lane.behind = append(e.lane.behind, e)
			return
		}
		if c := o.chains[e.key]; c != nil {
			c.waiting = append(c.waiting, e)
			e.chained = true
			e.lane.chained++
			return
		}
		o.chains[e.key] = &chain{first: e}
	}
	e.lane.line(e, false)
}

// awaits reports whether a request of the connection may be under way that this
// tenure of the org hasn't begun, or be on its way back. The lock is held.
func (o *org) awaits(connection string) bool {
	if o.leftover > 0 || o.uncounted > 0 {
		return true
	}
	for _, name := range lanes {
		k := laneKey{connection, name}
		if l := o.lanes[k]; o.before[k] > 0 || l != nil && l.awaited > 0 {
			return true
		}
	}
	return false
}

// admitOrdered lets the ordered requests of a connection in that need wait no longer.
// The lock is held.
func (o *org) admitOrdered(connection string) {
	for _, name := range lanes {
		if l := o.lanes[laneKey{connection, name}]; l != nil && len(l.behind) > 0 {
			l.admitOrdered()
		}
	}
}

// lines are the lane's: light requests, heavy ones, and suspects.
func (l *lane) lines() [3]*[]*entry { return [3]*[]*entry{&l.light, &l.heavy, &l.suspects} }

// suspects is the place of the suspects among the lines.
const suspects = 2

// line puts an entry into its line, at the front where it has waited before.
func (l *lane) line(e *entry, front bool) {
	if e.chained {
		e.chained = false
		l.chained--
	}
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

// admitOrdered lets the ordered requests in that waited for the worker before; the
// lock is held.
func (l *lane) admitOrdered() {
	slices.SortFunc(l.behind, func(a, b *entry) int { return cmp.Compare(a.sequence, b.sequence) })
	behind := l.behind
	l.behind = nil
	for _, e := range behind {
		l.org.queue(e)
	}
}

// dispatch starts what can be started. It is called with the lock held and
// gives it up.
func (o *org) dispatch() {
	if e := o.advance(); e != nil {
		o.runners.run(e)
	}
}

// advance is dispatch for a goroutine that has nothing more to do: the last of
// what is started is left to it, because its stack has grown to what a request
// needs.
func (o *org) advance() (last *entry) {
	defer o.yield()
	defer o.mu.Unlock()
	// A stopping worker gives requests back, and what stands in order behind one of
	// them mustn't start here. One that was stopped for a while knows by its own
	// clock that another may have the org now.
	if o.closed || o.pulling.Err() != nil || !o.hold.Lasts() {
		return nil
	}
	now := o.Clock.Now()
	for {
		e, reason, until := o.next(now)
		o.holdBack(reason, until)
		if e == nil {
			o.arm(now, until)
			return last
		}
		e.idle = e.refused != nil || e.overdue(now)
		if e.idle && e.refused == nil && e.request.Probe != nil {
			// What became of it may have to be looked up.
			why, _ := o.flow.May(now, e.ask)
			e.idle = why != ""
		}
		if !e.idle && !o.gate.enter(o) {
			o.holdBack(WaitWorker, time.Time{})
			o.arm(now, time.Time{}) // a call that ends comes here
			return last
		}
		o.start(e, now)
		if last != nil {
			o.runners.run(last)
		}
		last = e
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
		if until.Equal(o.waitsTo) {
			return // each request that is answered without a call comes here
		}
		o.waitsTo = until
		forecast := o.flow.Forecast(o.Clock.Now())
		o.Logger.Info("org waits for credits", "queue", o.name, "for", reason, "until", until, "used", forecast.Used, "per_hour", forecast.PerHour)
	}
}

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
			if e != nil && (bulk == nil || l.precedes(bulk.lane)) {
				bulk = e
			}
		} else if e != nil && (best == nil || l.precedes(best.lane)) {
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

// precedes reports whether l's turn comes before m's: first it is between
// connections, then between the two lanes of one.
func (l *lane) precedes(m *lane) bool {
	a, b := *l.share, *m.share
	if l.share == m.share {
		a, b = l.turns, m.turns
	}
	if a.running != b.running {
		return a.running < b.running
	}
	return a.last < b.last
}

// head is the first of the lane's requests that can be started. Where there is
// none, l.blocked says why, of each line.
func (l *lane) head(now time.Time) (e *entry, reason flow.Reason, until time.Time) {
	for i, line := range l.lines() {
		l.blocked[i] = ""
		if len(*line) == 0 || i == suspects && l.org.trials.busy {
			continue // one of them at a time: the next is looked at when it is over
		}
		first := (*line)[0]
		why, at := l.org.flow.May(now, first.ask)
		if first.refused != nil || first.overdue(now) && (first.request.Probe == nil || !moves(why)) {
			return first, "", time.Time{} // answered without a call
		}
		if why == "" {
			if e == nil || first.sequence < e.sequence {
				e = first
			}
			continue
		}
		l.blocked[i] = why
		if reason == "" || rank(why) < rank(reason) {
			reason = why
		}
		// Each line is looked at when it may go on, whatever holds the other back.
		if !at.IsZero() && (until.IsZero() || at.Before(until)) {
			until = at
		}
	}
	return e, reason, until
}

// start takes an entry that is first in its line for started, which carry carries
// out; the lock is held. One that is answered without a call takes no place.
func (o *org) start(e *entry, now time.Time) {
	l := e.lane
	for _, line := range l.lines() {
		if len(*line) > 0 && (*line)[0] == e {
			(*line)[0] = nil
			*line = (*line)[1:]
		}
	}
	if e.suspect && !e.idle {
		o.trials.busy = true
	}
	if e.idle {
		e.waited = o.limitInWords(e, now)
	}
	o.starts++
	l.last, l.share.last = o.starts, o.starts
	e.running = true
	if !e.idle {
		l.running++
		l.share.running++
		o.flow.Start(e.ask)
	}
	o.requests.Add(1)
}

// carry carries an entry that was started as far as it can be now, and returns the
// next one, which was started meanwhile.
func (o *org) carry(e *entry) (next *entry) {
	defer o.requests.Done()
	var wait *relay.Wait
	if e.suspect && !e.idle {
		wait = o.try(e)
	} else {
		wait = o.work(o.name, e)
	}
	var turn *org
	if !e.idle {
		turn = o.gate.leave()
	}
	o.mu.Lock()
	e.running = false
	if !e.idle {
		e.lane.running--
		e.lane.share.running--
		o.flow.End(e.ask)
	}
	switch {
	case wait == nil:
		o.left(e)
	case e.lane.closed:
		o.left(e)
		o.giveBack(e)
	default:
		o.rest(e, wait)
	}
	closed := o.closed
	next = o.advance()
	if turn != nil && turn != o {
		turn.kick()
	}
	if closed {
		o.finished(o.name)
	}
	return next
}

// rest keeps a request in hand that has to wait; it takes no place meanwhile.
// The lock is held.
func (o *org) rest(e *entry, wait *relay.Wait) {
	e.waits, e.why, e.until = wait.Reason, wait.Why, o.Clock.Now().Add(wait.For)
	if wait.Reason == relay.WaitProbe {
		e.ask.Heavy = e.ask.Heavy || e.request.Probe.Queries()
	}
	if wait.Reason == relay.WaitPause || wait.For <= 0 {
		e.lane.line(e, true) // what it waits for is the org's to know
		return
	}
	e.timer = time.AfterFunc(wait.For, func() { o.rested(e) })
}

// rested puts a request that has waited back into its line.
func (o *org) rested(e *entry) {
	o.mu.Lock()
	if e.timer == nil { // it was given back, or may go on already
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
	delete(o.trials.accused, e.sequence)
	l := e.lane
	l.bytes -= e.size
	if l.inHand--; l.inHand == l.window-1 || l.room() >= l.window/4 {
		l.nudge()
	}
	c := o.chains[e.key]
	if e.key == "" || c == nil {
		return
	}
	if len(c.waiting) == 0 {
		delete(o.chains, e.key)
		return
	}
	c.first, c.waiting = c.waiting[0], c.waiting[1:]
	c.first.lane.line(c.first, false)
}

// unchain takes an entry that is given back out of its chain. The lock is held.
func (o *org) unchain(e *entry) {
	c := o.chains[e.key]
	if e.key == "" || c == nil {
		return
	}
	if c.first == e {
		c.first = nil
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(w *entry) bool { return w == e })
	if c.first == nil && len(c.waiting) == 0 {
		delete(o.chains, e.key)
	}
}

// giveBack has the server hand a request out again, at once: what the server keeps
// for later counts as in hand of this worker, and might be a call under way.
func (o *org) giveBack(e *entry) {
	delivery := o.hand.delivery(e)
	if delivery == nil {
		return // read out of the stream, where it is found again
	}
	if err := delivery.Nak(); err != nil {
		o.Logger.Debug("request not given back: it comes again after AckWait", "connection", e.connection, "sequence", e.sequence, "err", err)
	}
}

// arm has the org look again when what holds it back is over, or the first
// deadline of what is held. The lock is held.
func (o *org) arm(now, until time.Time) {
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	if first := o.firstDeadline(); until.IsZero() || !first.IsZero() && first.Before(until) {
		until = first
	}
	if until.IsZero() {
		return
	}
	// Deadlines first: of a line, only the head is looked at.
	o.timer = time.AfterFunc(max(until.Sub(now), time.Millisecond), func() {
		o.mu.Lock()
		o.bringForward(o.Clock.Now())
		o.dispatch()
	})
}

// firstDeadline is the first one of what waits for longer than a call takes: in the
// lines that stand still, and behind another of its order. Zero: there is none.
// The lock is held.
func (o *org) firstDeadline() (first time.Time) {
	look := func(entries []*entry) {
		for _, e := range entries {
			if e.request != nil && (first.IsZero() || e.request.Deadline.Before(first)) {
				first = e.request.Deadline
			}
		}
	}
	for _, l := range o.lanes {
		for i, line := range l.lines() {
			if !moves(l.blocked[i]) {
				look(*line)
			}
		}
		look(l.behind)
	}
	for _, c := range o.chains {
		look(c.waiting)
	}
	return first
}

// moves reports whether what is held back for the reason goes on when a call ends.
func moves(reason flow.Reason) bool {
	switch reason {
	case "", WaitWorker, flow.Full, flow.HeavyFull:
		return true
	}
	return false
}

// bringForward moves what is past its deadline to the front. The lock is held.
func (o *org) bringForward(now time.Time) {
	for _, l := range o.lanes {
		for _, line := range l.lines() {
			slices.SortStableFunc(*line, func(a, b *entry) int {
				return order(a.overdue(now)) - order(b.overdue(now))
			})
		}
		l.behind = o.drop(l.behind, now)
	}
	for _, c := range o.chains {
		c.waiting = o.drop(c.waiting, now)
	}
}

// drop takes those out of a row in order whose deadlines are over: they are
// answered without a call, and what comes after them still waits for the one
// before. The lock is held.
func (o *org) drop(row []*entry, now time.Time) []*entry {
	return slices.DeleteFunc(row, func(e *entry) bool {
		if !e.overdue(now) {
			return false
		}
		e.key = ""
		e.lane.line(e, true)
		return true
	})
}

func order(first bool) int {
	if first {
		return 0
	}
	return 1
}
