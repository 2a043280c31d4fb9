package consumer

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/register"
)

// addLane adds a lane to an org of a worker that does nothing.
func (o *org) addLane(k laneKey) *lane {
	l := &lane{laneKey: k, org: o, window: 16, share: &turns{}, news: make(chan struct{}, 1)}
	o.lanes[k] = l
	return l
}

// begin starts what is next, nil for nothing.
func (o *org) begin(now time.Time) *entry {
	e, _, _ := o.next(now)
	if e != nil {
		o.start(e, now)
		o.requests.Done()
	}
	return e
}

// end ends a call.
func (o *org) end(e *entry) {
	e.running = false
	e.lane.running--
	e.lane.share.running--
	o.flow.End(e.ask)
}

// Bulk work has one place of an org while it waits for any, and where there is but one,
// every tenth start: counted from when it began to wait.
func TestBulkHasItsTurn(t *testing.T) {
	t.Parallel()
	now := time.Now()
	o, l := orgOf(flow.Limits{Places: 1}, flow.State{}, laneKey{"demo", Interactive})
	bulk := o.addLane(laneKey{"demo", Bulk})
	n := uint64(0)
	add := func(l *lane, count int) {
		for range count {
			n++
			l.line(waiting(l, n, flow.Ask{Bulk: l == bulk}, now.Add(time.Hour)), false)
		}
	}
	// after is how many interactive requests are started before a bulk one.
	after := func() (count int) {
		for ; count < 30; count++ {
			e := o.begin(now)
			o.end(e)
			if e.lane == bulk {
				return count
			}
		}
		return count
	}
	add(l, 100)
	add(bulk, 2)
	if first, second := after(), after(); first != bulkEvery || second != bulkEvery {
		t.Errorf("bulk work has its turn after %d and %d", first, second)
	}
	for range 5 {
		o.end(o.begin(now)) // nothing of it waits
	}
	add(bulk, 1)
	for range 5 {
		o.end(o.begin(now))
	}
	bulk.light = nil // it is given back
	o.end(o.begin(now))
	add(bulk, 1)
	if n := after(); n != bulkEvery {
		t.Errorf("bulk work that begins to wait has its turn after %d", n)
	}

	o.flow.Configure(flow.Limits{Places: 4})
	add(bulk, 8)
	running := func() (count int) {
		for range 4 {
			if o.begin(now).lane == bulk {
				count++
			}
		}
		return count
	}
	if got := running(); got != 1 {
		t.Errorf("bulk work has %d of 4 places", got)
	}
}

// It is the turn of the connection with the fewest requests under way; of equals that of
// the one that was served longest ago; likewise between the two lanes of a connection.
func TestWhoseTurn(t *testing.T) {
	t.Parallel()
	one, two := &turns{running: 1, last: 1}, &turns{running: 2, last: 9}
	for name, c := range map[string]struct {
		l, m  *lane
		first bool
	}{
		"fewer under way":                 {&lane{share: &turns{running: 1, last: 9}}, &lane{share: &turns{running: 2, last: 1}}, true},
		"more under way":                  {&lane{share: &turns{running: 2, last: 1}}, &lane{share: &turns{running: 1, last: 9}}, false},
		"served longer ago":               {&lane{share: &turns{running: 1, last: 1}}, &lane{share: &turns{running: 1, last: 9}}, true},
		"served just now":                 {&lane{share: &turns{running: 1, last: 9}}, &lane{share: &turns{running: 1, last: 1}}, false},
		"a connection's, though its lane": {&lane{turns: turns{running: 9}, share: one}, &lane{share: two}, true},
		"of one connection, fewer":        {&lane{turns: turns{running: 1, last: 9}, share: two}, &lane{turns: turns{running: 2}, share: two}, true},
		"of one connection, longer ago":   {&lane{turns: turns{last: 1}, share: two}, &lane{turns: turns{last: 2}, share: two}, true},
		"of one connection, just now":     {&lane{turns: turns{last: 2}, share: two}, &lane{turns: turns{last: 1}, share: two}, false},
	} {
		if got := c.l.precedes(c.m); got != c.first {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Of a lane's lines the request that came first is first. Of suspects one is started at a
// time, which others go past.
func TestHeadOfLane(t *testing.T) {
	t.Parallel()
	now := time.Now()
	o, l := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
	for sequence := range uint64(6) {
		e := waiting(l, sequence+1, flow.Ask{Heavy: sequence%2 == 0}, now.Add(time.Hour))
		e.suspect = sequence == 1 || sequence == 4
		l.line(e, false)
	}
	var order []uint64
	for e := o.begin(now); e != nil; e = o.begin(now) {
		order = append(order, e.sequence)
	}
	if !slices.Equal(order, []uint64{1, 2, 3, 4, 6}) {
		t.Errorf("started %v: the second suspect has to wait", order)
	}
	o.trials.busy = false
	if e := o.begin(now); e == nil || e.sequence != 5 {
		t.Errorf("%+v is started when the first suspect is settled", e)
	}
}

// An org looks again when the first of its lanes may go on.
func TestFirstOfManyLanes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, first := range []string{"a", "b"} { // the lanes come in no order
		o, l := orgOf(flow.Limits{Places: 10, Budgets: map[string]int{"a": 1, "b": 1}}, flow.State{}, laneKey{"a", Interactive})
		other := o.addLane(laneKey{"b", Interactive})
		soon, late := now.Add(-23*time.Hour), now.Add(-time.Hour)
		for _, name := range []string{"a", "b"} {
			at := late
			if name == first {
				at = soon
			}
			o.flow.Spent(at, at, name, 1, -1)
		}
		l.line(waiting(l, 1, flow.Ask{Connection: "a", Credits: 1}, now.Add(time.Hour)), false)
		other.line(waiting(other, 2, flow.Ask{Connection: "b", Credits: 1}, now.Add(time.Hour)), false)
		e, reason, until := o.next(now)
		if e != nil || reason != flow.BudgetSpent || until.After(now.Add(2*time.Hour)) {
			t.Errorf("%+v, %s, looked again after %s", e, reason, until.Sub(now))
		}
	}
}

// Ordered requests of a connection begin when nothing of it that was handed out before may
// be under way any more, in the order of the stream; what has no order, and what is of
// other connections, begins at once.
func TestOrderedRequestsWait(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, over func(o *org, l *lane)
	}{
		"an earlier tenure's":       {func(o *org, _ *lane) { o.leftover = 1 }, func(o *org, _ *lane) { o.leftover = 0 }},
		"not counted yet":           {func(o *org, _ *lane) { o.uncounted = 1 }, func(o *org, _ *lane) { o.uncounted = 0 }},
		"of a lane that is counted": {func(o *org, l *lane) { o.before[laneKey{l.connection, Bulk}] = 1 }, func(o *org, _ *lane) { clear(o.before) }},
		"of its own lane":           {func(_ *org, l *lane) { l.awaited = 1 }, func(_ *org, l *lane) { l.awaited = 0 }},
	} {
		o, l := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
		c.before(o, l)
		deadline := time.Now().Add(time.Hour)
		for _, sequence := range []uint64{3, 1, 2, 4} {
			e := waiting(l, sequence, flow.Ask{}, deadline)
			e.connection = l.connection
			if sequence < 4 {
				e.key = "demo k"
			}
			o.queue(e)
		}
		if len(l.light) != 1 || l.light[0].sequence != 4 || len(l.behind) != 3 || !o.firstDeadline().Equal(deadline) {
			t.Errorf("%s: %d begin, %d wait, looked at again at %s", name, len(l.light), len(l.behind), o.firstDeadline())
		}
		c.over(o, l)
		o.admitOrdered("demo")
		chain := o.chains["demo k"]
		if len(l.light) != 2 || l.light[1].sequence != 1 || chain == nil || chain.first != l.light[1] || l.chained != 2 {
			t.Fatalf("%s: %d begin, %d are chained", name, len(l.light), l.chained)
		}
		var order []uint64
		for _, e := range chain.waiting {
			order = append(order, e.sequence)
		}
		if !slices.Equal(order, []uint64{2, 3}) {
			t.Errorf("%s: then come %v", name, order)
		}
		l.light = l.light[2:]
		if o.left(chain.first); l.chained != 1 || len(l.light) != 1 || l.light[0].sequence != 2 {
			t.Errorf("%s: %d are chained when the first is settled", name, l.chained)
		}
	}
	o, _ := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
	o.before[laneKey{"other", Interactive}] = 1
	if o.awaits("demo") {
		t.Error("it waits for another connection's")
	}
}

// What is past its deadline is brought to the front, wherever it stands, and whoever
// stands behind it in order goes on waiting for the one before.
func TestBroughtForward(t *testing.T) {
	t.Parallel()
	now := time.Now()
	o, l := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
	later, over := now.Add(time.Hour), now.Add(-time.Second)
	ordered := func(sequence uint64, deadline time.Time) *entry {
		e := waiting(l, sequence, flow.Ask{}, deadline)
		e.connection, e.key = "demo", "demo k"
		return e
	}
	first := ordered(1, later)
	o.queue(first)
	o.queue(ordered(2, over))
	o.queue(ordered(3, now.Add(time.Minute)))
	if at := o.firstDeadline(); !at.Equal(over) {
		t.Errorf("looked at again at %s", at)
	}
	l.line(waiting(l, 4, flow.Ask{}, over), false)
	l.line(waiting(l, 5, flow.Ask{Heavy: true}, later), false)
	l.line(waiting(l, 6, flow.Ask{Heavy: true}, over), false)
	l.behind = []*entry{ordered(7, later), ordered(8, over)}
	o.bringForward(now)
	if got := sequences(l.light); !slices.Contains(got[:3], 2) || !slices.Contains(got[:3], 4) || !slices.Contains(got[:3], 8) || len(got) != 4 {
		t.Errorf("the line is %v", got)
	}
	if got := sequences(l.heavy); !slices.Equal(got, []uint64{6, 5}) {
		t.Errorf("the line of heavy ones is %v", got)
	}
	if got := sequences(l.behind); !slices.Equal(got, []uint64{7}) || l.chained != 1 {
		t.Errorf("%v wait for the worker before, %d are chained", got, l.chained)
	}
	for _, e := range l.light {
		if e.sequence == 2 {
			o.left(e)
		}
	}
	if c := o.chains["demo k"]; c == nil || c.first != first || len(c.waiting) != 1 || c.waiting[0].sequence != 3 {
		t.Errorf("the chain is %+v when the second is answered", c)
	}
}

// That an org waits for credits is said once, however often others of it are answered
// meanwhile, and once more where it waits for longer.
func TestWaitForCreditsIsToldOnce(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	o, _ := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
	o.Clock, o.Logger = &register.Clock{}, slog.New(slog.NewTextHandler(&log, nil))
	until := time.Now().Add(time.Hour)
	for i, to := range []time.Time{until, until, until.Add(time.Hour), until.Add(time.Hour)} {
		o.holdBack(flow.CreditsOut, to)
		o.holdBack("", time.Time{})
		if n := strings.Count(log.String(), "waits for credits"); n != i/2+1 {
			t.Errorf("look %d: told %d times", i, n)
		}
	}
}

// What leaves the hand makes room for others, of which the lane is told.
func TestRoomIsMade(t *testing.T) {
	t.Parallel()
	o, l := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
	l.window = 16
	told := func() bool {
		select {
		case <-l.news:
			return true
		default:
			return false
		}
	}
	var entries []*entry
	for i := range 16 {
		e := &entry{lane: l, sequence: uint64(i + 1), size: 100, request: &envelope.Request{}}
		o.hand.take(e)
		entries = append(entries, e)
		l.inHand++
		l.bytes += e.size
	}
	var when []string
	for i, e := range entries {
		if o.left(e); told() {
			when = append(when, fmt.Sprint(i+1))
		}
	}
	// The first says that it isn't full any more, the others that a pull is worth its while.
	if got := strings.Join(when, " "); got != "1 4 5 6 7 8 9 10 11 12 13 14 15 16" {
		t.Errorf("the lane is told when so many have left: %s", got)
	}
	if l.bytes != 0 || l.inHand != 0 || o.hand.len() != 0 || o.hand.bytes.Load() != 0 {
		t.Errorf("%d bytes of %d requests are left in the lane, %d of %d in hand", l.bytes, l.inHand, o.hand.bytes.Load(), o.hand.len())
	}
}
