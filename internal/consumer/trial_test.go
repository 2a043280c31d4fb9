package consumer

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/relay"
)

// record is what the org's record says.
func (w *world) record(o *org) (st state) {
	w.t.Helper()
	r, err := lease.Read(w.t.Context(), w.js, o.name)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(r.State) > 0 {
		err = json.Unmarshal(r.State, &st)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return st
}

// A suspect whose worker died is accused, an accused one convicted; a worker that gave the
// org up lives, and so accuses nobody.
func TestTrials(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		trial     uint64
		accused   []uint64
		died      bool
		want      []uint64
		convicted uint64
	}{
		"none":                  {died: true},
		"tried, and died":       {trial: 7, died: true, want: []uint64{7}},
		"tried, and lives":      {trial: 7},
		"others were accused":   {trial: 7, accused: []uint64{5, 6}, died: true, want: []uint64{5, 6, 7}},
		"accused, and died":     {trial: 7, accused: []uint64{6, 7}, died: true, want: []uint64{6, 7}, convicted: 7},
		"accused, and lives":    {trial: 7, accused: []uint64{7}, want: []uint64{7}},
		"accused, not on trial": {accused: []uint64{7}, died: true, want: []uint64{7}},
	} {
		st := state{Deaths: map[string]uint64{"demo": 9}, Trial: c.trial, Accused: c.accused}
		got := newTrials(st, c.died)
		if accused := slices.Sorted(maps.Keys(got.accused)); !slices.Equal(accused, c.want) || got.convicted != c.convicted {
			t.Errorf("%s: accused %v, convicted %d", name, accused, got.convicted)
		}
		if got.deaths["other"] = 1; got.deaths["demo"] != 9 || len(got.died) != 1 {
			t.Errorf("%s: deaths %v, and before %v", name, got.deaths, got.died)
		}
	}
}

// A suspect is tried by name, alone of its org, and an accused one alone of its worker.
func TestTriedAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var c *Consumer
	var o *org
	waits, docked := false, 0
	c = w.one(func(d *relay.Delivery) relay.Result {
		o.mu.Lock()
		busy, on := o.trials.busy, o.trials.on
		o.mu.Unlock()
		if noted := w.record(o).Trial; !busy || on != 7 || noted != 7 || len(c.dock) != docked {
			t.Errorf("one at a time: %v; tried: %d, in the record %d; %d in the dock", busy, on, noted, len(c.dock))
		}
		if waits {
			return relay.Result{Wait: &relay.Wait{Reason: relay.WaitRetry, For: time.Hour}}
		}
		return answeredOf(d)
	})
	o, l := w.tenure(c, "demo")
	try := func(accused, wait bool) {
		t.Helper()
		if waits, docked = wait, 0; accused {
			docked = 1
			o.mu.Lock()
			o.trials.accused[7] = true
			o.mu.Unlock()
		}
		e := asked("suspect", 7, time.Now().Add(time.Hour))
		e.suspect = true
		l.add(e)
		o.kick()
		c.requests.Wait()
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.trials.busy || o.trials.on != 0 || len(c.dock) != 0 {
			t.Errorf("afterwards: one is tried: %v, %d; %d in the dock", o.trials.busy, o.trials.on, len(c.dock))
		}
		if noted := w.record(o).Trial; wait && noted != 0 {
			t.Errorf("%d is tried, says the record, and it waits", noted)
		}
		if wait == o.idleNow() || !wait && o.trials.accused[7] {
			t.Errorf("in hand %d, accused %v", o.hand.len(), o.trials.accused)
		}
		if wait {
			e.timer.Stop()
			o.left(e)
		}
	}
	try(false, false)
	try(false, true)
	try(true, true)
	try(true, false)
	// One that stands in line for the dock is given back when the worker stops.
	c.dock <- struct{}{}
	o.mu.Lock()
	o.trials.accused[7] = true
	o.mu.Unlock()
	c.stopPull()
	if wait := o.try(asked("suspect", 7, time.Now().Add(time.Hour))); wait == nil || wait.Reason != relay.WaitStopping {
		t.Errorf("%+v", wait)
	}
	<-c.dock
}

// idleNow is idle for who has the lock.
func (o *org) idleNow() bool { return o.hand.len() == 0 }

// What a worker that died had in hand is noted once, and suspect what two in a row had
// that died and that neither has settled.
func TestMourned(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before      uint64 // up to there at the death before
		own         bool
		settled     int // of the three that were handed out, the first
		died, twice uint64
		noted       uint64
	}{
		"the first":                           {died: 3, noted: 3},
		"the second":                          {before: 2, died: 3, twice: 2, noted: 3},
		"the second, of another life":         {before: 9, died: 3, twice: 3, noted: 3},
		"the second, and they are settled":    {before: 2, settled: 2, died: 3, noted: 3},
		"the second, and one of them is":      {before: 2, settled: 1, died: 3, twice: 2, noted: 3},
		"a session of this worker that ended": {before: 2, own: true, died: 3, noted: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o, l := w.tenure(w.one(answeredOf), "demo")
			if c.before > 0 {
				o.mu.Lock()
				o.trials = newTrials(state{Deaths: map[string]uint64{"demo": c.before}}, true)
				o.mu.Unlock()
			}
			o.hold.Own = c.own
			source, err := ensureConsumer(t.Context(), w.js, l.config())
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				if _, err := w.js.Publish(t.Context(), "zoho.requests.demo", []byte("{}")); err != nil {
					t.Fatal(err)
				}
			}
			batch, err := source.Fetch(3)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for msg := range batch.Messages() {
				if n++; n <= c.settled {
					if err := msg.DoubleAck(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := l.mourn(t.Context()); err != nil {
				t.Fatal(err)
			}
			// It is made anew, which may take more than one try.
			if err := w.js.DeleteConsumer(t.Context(), RequestStream, l.durable()); err != nil {
				t.Fatal(err)
			}
			if err := l.mourn(t.Context()); err != nil {
				t.Fatal(err)
			}
			if l.died != c.died || l.twice != c.twice || o.trials.deaths["demo"] != c.noted {
				t.Errorf("died %d, twice %d, noted %d", l.died, l.twice, o.trials.deaths["demo"])
			}
			if noted := w.record(o).Deaths["demo"]; !c.own && noted != c.noted || c.own && noted != 0 {
				t.Errorf("the record says %d", noted)
			}
		})
	}
}

// Where the server has forgotten what it had handed out, the first of those that are there
// are taken for it.
func TestMournedAndForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.one(answeredOf)
	_, l := w.tenure(c, "demo")
	for range 2 {
		if _, err := w.js.Publish(t.Context(), "zoho.requests.demo", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.mourn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !l.was(2) || l.was(3) {
		t.Errorf("was in hand: %v, and what came since %v", l.was(2), l.was(3))
	}
	if l.received = windowMost; l.was(2) {
		t.Error("more than a lane has in hand was in hand")
	}
	if l.forgot = false; !l.was(2) {
		t.Error("what is known to have been in hand was not")
	}
}

// handedOver is a request as the server hands it over.
func handedOver(sequence uint64, delivered int, data string, sub *nats.Subscription) *nats.Msg {
	return &nats.Msg{
		Subject: "zoho.requests.demo", Data: []byte(data), Sub: sub,
		Reply: fmt.Sprintf("$JS.ACK.%s.demo.%d.%d.%d.%d.0", RequestStream, delivered, sequence, sequence, time.Now().UnixNano()),
	}
}

// What is known of a request when it comes: whether it was handed over before, whose order
// it stands in, and what it is suspected of.
func TestArrives(t *testing.T) {
	t.Parallel()
	const plain, keyed = `{"id":"1","method":"GET","url":"/v8/Leads"}`, `{"id":"1","method":"GET","url":"/v8/Leads","order_key":"k"}`
	for name, row := range map[string]struct {
		data      string
		delivered int
		ordered   bool
		prepare   func(o *org, l *lane)
		key       string
		again     bool
		suspect   bool
		refused   bool
	}{
		"the first time":           {data: plain, delivered: 1},
		"the second time":          {data: plain, delivered: 2, again: true},
		"in hand of a dead worker": {data: plain, delivered: 1, prepare: func(_ *org, l *lane) { l.died = 5 }, again: true},
		"after its death":          {data: plain, delivered: 1, prepare: func(_ *org, l *lane) { l.died = 4 }},
		"in hand of two":           {data: plain, delivered: 1, prepare: func(_ *org, l *lane) { l.died, l.twice = 9, 5 }, again: true, suspect: true},
		"convicted": {data: plain, delivered: 1, prepare: func(o *org, l *lane) {
			l.died, l.twice, o.trials.convicted = 9, 5, 5
		}, again: true, suspect: true, refused: true},
		"the convict of another life": {data: plain, delivered: 1, prepare: func(o *org, _ *lane) { o.trials.convicted = 5 }},
		"with a key":                  {data: keyed, delivered: 1, key: "demo k"},
		"of an ordered connection":    {data: plain, delivered: 1, ordered: true, key: "demo"},
		"with a key of one":           {data: keyed, delivered: 1, ordered: true, key: "demo k"},
		"no request":                  {data: `{`, delivered: 1, ordered: true, refused: true},
	} {
		c := stub(nil)
		c.stopPull()
		o := c.serveOrgOf(connection.Active, "demo")
		c.directory.put(&connection.Connection{Name: "demo", Location: "us", OrgID: "1", Status: connection.Active, Concurrency: 5, Ordered: row.ordered})
		l := o.addLane(laneKey{"demo", Interactive})
		if l.asked = 3; row.prepare != nil {
			row.prepare(o, l)
		}
		msg := handedOver(5, row.delivered, row.data, &nats.Subscription{})
		o.arrived(l, msg)
		e := c.hand.get(5)
		if e == nil || e.key != row.key || e.again != row.again || e.sendings.Elsewhere != row.again || e.suspect != row.suspect || (e.refused != nil) != row.refused {
			t.Errorf("%s: %+v", name, e)
			continue
		}
		if l.asked != 2 || l.inHand != 1 || l.received != 1 || l.bytes != int64(msg.Size()) || len(l.light)+len(l.suspects) != 1 {
			t.Errorf("%s: the lane: %+v", name, l)
		}
		o.arrived(l, handedOver(5, row.delivered, row.data, &nats.Subscription{})) // stored at another instant
		if c.hand.len() != 2 {
			t.Errorf("%s: %d in hand", name, c.hand.len())
		}
	}
}

// What comes when its lane is closed is given back, and isn't in hand.
func TestArrivesTooLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o, l := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{"demo", Interactive})
	c := stub(nil)
	o.Consumer, l.closed = c, true
	msg := handedOver(5, 1, `{"id":"1","method":"GET","url":"/v8/Leads"}`, nil)
	acks, err := w.js.Conn().SubscribeSync(msg.Reply)
	if err != nil {
		t.Fatal(err)
	}
	msg.Sub = acks
	o.arrived(l, msg)
	w.wantAck(acks, "-NAK")
	if c.hand.len() != 0 || l.inHand != 0 || l.bytes != 0 {
		t.Errorf("%d in hand, of the lane %d, %d bytes", c.hand.len(), l.inHand, l.bytes)
	}
}
