package consumer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
)

// orgOf is an org of a worker that does nothing, with one lane.
func orgOf(limits flow.Limits, state flow.State, k laneKey) (*org, *lane) {
	o := &org{
		Consumer: &Consumer{directory: newDirectory(0), hand: newHand(time.Hour)}, flow: flow.New(limits, state),
		lanes: map[laneKey]*lane{}, chains: map[string]*chain{}, before: map[laneKey]int{}, counted: map[laneKey]bool{},
	}
	l := &lane{laneKey: k, org: o, share: &turns{}}
	l.news = make(chan struct{}, 1)
	o.lanes[k] = l
	return o, l
}

func waiting(l *lane, sequence uint64, ask flow.Ask, deadline time.Time) *entry {
	return &entry{lane: l, sequence: sequence, ask: ask, request: &envelope.Request{Deadline: deadline}}
}

// An org is looked at again when the first of its lines may go on, whatever holds
// the others back for longer.
func TestLookedAtAgain(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	pause := &flow.Pause{Until: now.Add(5 * time.Second), Cause: "429", For: flow.SubConcurrency}
	o, l := orgOf(flow.Limits{Places: 20, Reserve: 0.1}, flow.State{HeavyPause: pause, Known: now, Left: 100}, laneKey{"demo", Bulk})
	// A light one that costs more than bulk work may have, a heavy one that costs little.
	deadline := now.Add(time.Hour)
	l.line(waiting(l, 1, flow.Ask{Connection: "demo", Bulk: true, Credits: 95}, deadline), false)
	l.line(waiting(l, 2, flow.Ask{Connection: "demo", Bulk: true, Heavy: true, Credits: 1}, deadline), false)
	best, reason, until := o.next(now)
	if best != nil || reason != flow.Reserved || !until.Equal(pause.Until) {
		t.Errorf("%+v, %q, looked at again at %s, want %s", best, reason, until, pause.Until)
	}
	if best, _, _ = o.next(pause.Until); best == nil || best.sequence != 2 {
		t.Errorf("after the pause %+v is next", best)
	}
}

// An org looks again at the first deadline of the lines that stand still, though
// others of the same lane move; and not at one that is over already and waits for a
// call to end, or it would look without an end.
func TestDeadlinesOfLinesThatStandStill(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	pause := &flow.Pause{Until: now.Add(time.Hour), Cause: "429", For: flow.SubConcurrency}
	o, l := orgOf(flow.Limits{Places: 1}, flow.State{HeavyPause: pause}, laneKey{"demo", Interactive})
	o.flow.Start(flow.Ask{})
	l.line(waiting(l, 1, flow.Ask{}, now.Add(time.Second)), false)
	l.line(waiting(l, 2, flow.Ask{Heavy: true}, now.Add(time.Hour)), false)
	l.line(waiting(l, 3, flow.Ask{Heavy: true}, now.Add(time.Minute)), false)
	if e, reason, _ := o.next(now); e != nil || reason != flow.Full {
		t.Fatalf("%+v, %q", e, reason)
	}
	if first := o.firstDeadline(); !first.Equal(now.Add(time.Minute)) {
		t.Errorf("looked again at %s", first)
	}

	o, l = orgOf(flow.Limits{Places: 1}, flow.State{Known: now, Left: 1}, laneKey{"demo", Interactive})
	o.flow.Start(flow.Ask{})
	lost := waiting(l, 1, flow.Ask{Credits: 1}, now.Add(-time.Second))
	lost.request.Probe = &envelope.Probe{}
	l.line(lost, false)
	dear := &lane{laneKey: laneKey{"dear", Interactive}, org: o, share: &turns{}}
	o.lanes[dear.laneKey] = dear
	dear.line(waiting(dear, 2, flow.Ask{Credits: 50}, now.Add(time.Minute)), false)
	if e, reason, _ := o.next(now); e != nil || reason != flow.CreditsOut {
		t.Fatalf("%+v, %q", e, reason)
	}
	if first := o.firstDeadline(); !first.Equal(now.Add(time.Minute)) {
		t.Errorf("looked again at %s", first)
	}
}

// Requests in hand of the worker before are no longer counted for a lane that
// can't be served: its connection was revoked, or moved to another org.
func TestNotCountedForEver(t *testing.T) {
	t.Parallel()
	o, _ := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{"demo", Interactive})
	gone := laneKey{"gone", Interactive}
	o.before[gone] = 5
	o.countForeign()
	if o.flow.Places() != 0 {
		t.Fatalf("%d places", o.flow.Places())
	}
	o.wake(gone)
	if o.flow.Places() != 5 {
		t.Errorf("%d places", o.flow.Places())
	}
}

// What an earlier tenure of an org has in hand without a call under way, and gives
// back only now, is no longer counted as such for the present one.
func TestGivenBackLate(t *testing.T) {
	t.Parallel()
	k := laneKey{"demo", Interactive}
	before, l := orgOf(flow.Limits{Places: 5}, flow.State{}, k)
	rests := waiting(l, 1, flow.Ask{}, time.Now().Add(time.Hour))
	l.inHand++
	before.hand.take(rests)
	now, _ := orgOf(flow.Limits{Places: 5}, flow.State{}, k)
	ended, end := context.WithCancel(t.Context())
	end()
	now.Consumer, before.name, now.name = before.Consumer, "org", "org"
	now.orgs, now.gate, now.pulling = map[string]*org{"org": now}, newGate(1), ended
	now.leftover = now.hand.leftovers(now)
	if now.countForeign(); now.flow.Places() != 4 {
		t.Fatalf("%d places", now.flow.Places())
	}
	if before.close(); now.flow.Places() != 5 || now.leftover != 0 {
		t.Errorf("%d places, %d counted", now.flow.Places(), now.leftover)
	}
}

// To close an org looks at what is in hand once, and not once for each lane and each
// request: nobody serves it meanwhile.
func TestClosingManyLanes(t *testing.T) {
	t.Parallel()
	const n, each = 200, 40
	// shut says how long it takes, and how long one look does.
	shut := func() (took, once time.Duration) {
		o, first := orgOf(flow.Limits{Places: 25}, flow.State{}, laneKey{"c", Interactive})
		delete(o.lanes, first.laneKey)
		for i := range n {
			l := o.addLane(laneKey{fmt.Sprint("c", i), Interactive})
			for j := range each {
				e := waiting(l, uint64(i*each+j+1), flow.Ask{}, time.Time{})
				e.key = fmt.Sprint(l.connection, j)
				o.hand.take(e)
				o.queue(e)
			}
		}
		begun := time.Now()
		o.hand.of(o)
		once = time.Since(begun)
		begun = time.Now()
		back := o.shut(slices.Collect(maps.Values(o.lanes)))
		took = time.Since(begun)
		if len(back) != n*each || len(o.chains) != 0 || o.hand.len() != 0 {
			t.Errorf("%d are given back, %d chains and %d requests are left", len(back), len(o.chains), o.hand.len())
		}
		return took, once
	}
	took, once := shut()
	for range 4 { // the shortest of each, or a busy machine would be taken for it
		again, look := shut()
		took, once = min(took, again), min(once, look)
	}
	if took > 1000*once { // each request's own look would be 8,000
		t.Errorf("it takes %s, and one look at what is in hand %s", took, once)
	}
}

// An org that counts ten thousand connections chooses among those with requests.
func BenchmarkNext(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			now := time.Now()
			o, first := orgOf(flow.Limits{Places: 25}, flow.State{}, laneKey{"c", Interactive})
			delete(o.lanes, first.laneKey)
			for i := range n {
				k := laneKey{fmt.Sprint("c", i), Interactive}
				l := &lane{laneKey: k, org: o, share: &turns{}}
				l.line(waiting(l, uint64(i), flow.Ask{Connection: k.connection, Credits: 1}, now.Add(time.Hour)), false)
				o.lanes[k] = l
			}
			for b.Loop() {
				if best, _, _ := o.next(now); best == nil {
					b.Fatal("none")
				}
			}
		})
	}
}

// A person's end of all pauses is heeded by whosever clock it was given.
func TestResumedByAnyClock(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	var data json.RawMessage
	var before time.Time
	// Ten minutes ahead, right, ten minutes behind, and at the same instant again.
	for i, at := range []time.Duration{10 * time.Minute, 0, -10 * time.Minute, -10 * time.Minute} {
		var err error
		if data, err = SetPause(nil, now.Add(at))(data); err != nil {
			t.Fatal(err)
		}
		var st state
		if err := json.Unmarshal(data, &st); err != nil {
			t.Fatal(err)
		}
		if !st.Resumed.After(before) {
			t.Errorf("%d: resumed at %s, not after %s: nobody would heed it", i, st.Resumed, before)
		}
		before = st.Resumed
	}
}

// An org's limits follow its connections, of which the smallest counts.
func TestLimitsOfOrg(t *testing.T) {
	t.Parallel()
	d := newDirectory(0.1)
	put := func(name, org, edition string, credits int) {
		d.put(&connection.Connection{Name: name, Location: "us", Environment: connection.Production, OrgID: org, Edition: edition, DailyCredits: credits, Status: connection.Active})
	}
	put("a", "1", "ultimate", 0)
	put("b", "1", "free", 100)
	queue := d.queue("a")
	if l := d.limits(queue); l.Places != 5 || l.Budgets["b"] != 100 || l.Budgets["a"] != 0 {
		t.Errorf("%+v", l)
	}
	put("b", "2", "free", 100) // moved to another org
	if l := d.limits(queue); l.Places != 25 || len(l.Budgets) != 0 || d.queue("b") == queue {
		t.Errorf("%+v", l)
	}
	put("a", "1", "standard", 0)
	if l := d.limits(queue); l.Places != 10 {
		t.Errorf("%+v", l)
	}
}
