package consumer

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/secret"
)

// does is a relay of one function.
type does func(d *relay.Delivery) relay.Result

func (do does) Do(_ context.Context, d *relay.Delivery) relay.Result { return do(d) }

// one is a worker with one place.
func (w *world) one(do does) *Consumer {
	w.t.Helper()
	return w.with(do, w.js, w.js.Conn(), slog.DiscardHandler)
}

// with is one with what it works with.
func (w *world) with(do does, js jetstream.JetStream, conn *nats.Conn, log slog.Handler) *Consumer {
	w.t.Helper()
	clock := &register.Clock{}
	c := New(Options{
		Conn: conn, JetStream: js, Stream: w.requests(js), Relay: do, Connections: w.store, Tokens: noTokens{}, Responses: NewResponses(js),
		Ledger: ledger.Open(js, clock, time.Minute), Clock: clock, Decoder: &envelope.Decoder{}, MaxInFlight: 1, Look: time.Hour,
		Version: "0.0.0", Logger: slog.New(log),
	})
	if err := c.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Stop(context.Background()) })
	return c
}

// tenure has the worker serve the org of a connection, with one lane that pulls nothing.
func (w *world) tenure(c *Consumer, name string) (*org, *lane) {
	w.t.Helper()
	queue := c.directory.queue(name)
	c.mu.Lock()
	c.leaving[queue] = true // or the worker would serve it by itself
	c.mu.Unlock()
	hold, err := c.leases.Take(w.t.Context(), queue)
	if err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "the org is the worker's", hold.Lasts)
	o := newOrg(c, queue, hold)
	l := o.addLane(laneKey{name, Interactive})
	c.mu.Lock()
	delete(c.leaving, queue)
	c.orgs[queue] = o
	c.mu.Unlock()
	return o, l
}

// add puts a request in hand of a lane.
func (l *lane) add(e *entry) {
	l.org.mu.Lock()
	defer l.org.mu.Unlock()
	e.lane, e.connection = l, l.connection
	l.inHand++
	l.org.hand.take(e)
	l.line(e, false)
}

func asked(id string, sequence uint64, deadline time.Time) *entry {
	return &entry{sequence: sequence, request: &envelope.Request{ID: id, Method: "PUT", Path: "/crm/v8/Leads/1", Deadline: deadline}}
}

func answeredOf(d *relay.Delivery) relay.Result {
	return relay.Result{Response: &envelope.Response{ID: d.Request.ID, Connection: d.Connection, Status: 200, ReceivedAt: d.ReceivedAt, FinishedAt: d.ReceivedAt}}
}

// delivery is one whose acknowledgement the test hears.
func (w *world) delivery() (*nats.Msg, *nats.Subscription) {
	w.t.Helper()
	conn := w.js.Conn()
	inbox := conn.NewInbox()
	acks, err := conn.SubscribeSync(inbox)
	if err != nil {
		w.t.Fatal(err)
	}
	return &nats.Msg{Reply: inbox, Sub: acks}, acks
}

func (w *world) wantAck(acks *nats.Subscription, want string) {
	w.t.Helper()
	msg, err := acks.NextMsg(time.Minute)
	if err != nil || string(msg.Data) != want {
		w.t.Errorf("the server is told %v, %v, want %s", msg, err, want)
	}
}

// idle reports whether the org has nothing under way.
func (o *org) idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hand.len() == 0
}

// What is answered without a call takes no place of the worker, nor of the org. What may
// have to be looked up for it is a call, unless the org may make none.
func TestAnsweredWithoutACall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	seen := map[string]relay.Delivery{}
	c := w.one(func(d *relay.Delivery) relay.Result {
		mu.Lock()
		defer mu.Unlock()
		seen[d.Request.ID] = relay.Delivery{Idle: d.Idle, Waited: d.Waited}
		return answeredOf(d)
	})
	o, l := w.tenure(c, "demo")
	now := time.Now()
	over, later := now.Add(-time.Second), now.Add(time.Hour)
	round := func(entries ...*entry) {
		t.Helper()
		for _, e := range entries {
			l.add(e)
		}
		o.kick()
		eventually(t, "all are answered", o.idle)
		c.requests.Wait()
		taken, _ := c.gate.state()
		o.mu.Lock()
		defer o.mu.Unlock()
		if running, _ := o.flow.Running(); taken != 0 || running != 0 || l.running != 0 || l.share.running != 0 {
			t.Errorf("%d places of the worker are taken, %d of the org; lane %d, connection %d", taken, running, l.running, l.share.running)
		}
	}
	probed := func(id string, sequence uint64) *entry {
		e := asked(id, sequence, over)
		e.request.Probe = &envelope.Probe{COQL: "a = 1"}
		return e
	}
	refused := &entry{sequence: 5, refused: &envelope.Error{Code: envelope.InvalidRequest}}
	round(asked("late", 1, over), asked("later", 2, over), asked("called", 3, later), probed("looked-up", 4), refused)
	o.flow.SetHand(&flow.Pause{Until: later, Cause: "by hand: lunch"})
	round(asked("paused", 6, over), probed("not-looked-up", 7))
	for id, want := range map[string]relay.Delivery{
		"late": {Idle: true}, "later": {Idle: true}, "called": {}, "looked-up": {},
		"paused":        {Idle: true, Waited: "the org is paused (by hand: lunch)"},
		"not-looked-up": {Idle: true, Waited: "the org is paused (by hand: lunch)"},
	} {
		if got := seen[id]; got.Idle != want.Idle || got.Waited != want.Waited {
			t.Errorf("%s: without a call %v, waited for %q", id, got.Idle, got.Waited)
		}
	}
}

// A worker whose session is over begins nothing: somebody else may serve the org.
func TestNothingBeginsAfterTheSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.one(answeredOf)
	o, l := w.tenure(c, "demo")
	l.add(asked("before", 1, time.Now().Add(time.Hour)))
	o.kick()
	eventually(t, "one is answered", o.idle)
	c.leases.Close(t.Context())
	l.add(asked("after", 2, time.Now().Add(time.Hour)))
	o.kick()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.starts != 1 || len(l.light) != 1 {
		t.Errorf("%d are started", o.starts)
	}
}

// What has to wait when its lane is closed is given back, at once, and whoever serves the
// org next, in the same process, knows that it isn't under way any more.
func TestGivenBackWhenItHasToWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	reached, release := make(chan struct{}), make(chan struct{})
	c := w.one(func(*relay.Delivery) relay.Result {
		close(reached)
		<-release
		return relay.Result{Wait: &relay.Wait{Reason: relay.WaitRetry, For: time.Hour}}
	})
	o, l := w.tenure(c, "demo")
	under, underAcks := w.delivery()
	held, heldAcks := w.delivery()
	first, second := asked("first", 1, time.Now().Add(time.Hour)), asked("second", 2, time.Now().Add(time.Hour))
	first.delivery, second.delivery = under, held
	l.add(first)
	l.add(second)
	o.kick()
	<-reached
	o.close()
	w.wantAck(heldAcks, "-NAK")
	next, _ := w.tenure(c, "demo")
	next.mu.Lock()
	next.leftover = c.hand.leftovers(next)
	next.countForeign()
	if next.leftover != 1 {
		t.Errorf("%d calls of the earlier tenure are known", next.leftover)
	}
	next.mu.Unlock()
	close(release)
	w.wantAck(underAcks, "-NAK")
	eventually(t, "it is counted off", func() bool {
		next.mu.Lock()
		defer next.mu.Unlock()
		return next.leftover == 0
	})
	if n := c.hand.len(); n != 0 {
		t.Errorf("%d are in hand", n)
	}
}

// A place that falls free is the next org's, and one that has no use for its turn any more
// passes it on.
func TestPlaceIsPassedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"second", "third"} {
		if _, err := w.store.Add(t.Context(), connection.Connection{Name: name, Location: "us", OrgID: name, UserID: name, Concurrency: 1}, secret.New("1000."+name)); err != nil {
			t.Fatal(err)
		}
	}
	reached, release := make(chan struct{}), make(chan struct{})
	c := w.one(func(d *relay.Delivery) relay.Result {
		if d.Request.ID == "first" {
			close(reached)
			<-release
		}
		return answeredOf(d)
	})
	eventually(t, "the connections are known", func() bool { return c.directory.queue("second") != "" && c.directory.queue("third") != "" })
	o, l := w.tenure(c, "demo")
	l.add(asked("first", 1, time.Now().Add(time.Hour)))
	o.kick()
	<-reached
	idle, none := w.tenure(c, "second")
	last, lane := w.tenure(c, "third")
	none.add(asked("second", 2, time.Now().Add(time.Hour)))
	lane.add(asked("third", 3, time.Now().Add(time.Hour)))
	idle.kick()
	last.kick()
	if taken, waiting := c.gate.state(); taken != 1 || waiting != 2 {
		t.Fatalf("%d places are taken, %d orgs wait", taken, waiting)
	}
	idle.mu.Lock()
	c.hand.leave(none.light[0])
	none.light = nil
	idle.mu.Unlock()
	close(release)
	eventually(t, "the last org has its turn", last.idle)
	c.requests.Wait()
	eventually(t, "its place is free", func() bool { taken, waiting := c.gate.state(); return taken == 0 && waiting == 0 })
}

// stopped has an org of a worker that starts nothing any more.
func stopped(t *testing.T, o *org) {
	t.Helper()
	ended, end := context.WithCancel(t.Context())
	end()
	o.Consumer.Clock, o.Consumer.Logger = &register.Clock{}, slog.New(slog.DiscardHandler)
	o.Consumer.pulling, o.Consumer.gate, o.Consumer.orgs = ended, newGate(1), map[string]*org{}
}

func sequences(entries []*entry) (s []uint64) {
	for _, e := range entries {
		s = append(s, e.sequence)
	}
	return s
}

// What has waited goes to the front of its line: at once where the org knows until when,
// else when its time is over or its token may be there; and never twice.
func TestRestsAndGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, l := orgOf(flow.Limits{Places: 10}, flow.State{}, laneKey{"demo", Interactive})
		other := o.addLane(laneKey{"other", Interactive})
		stopped(t, o)
		deadline := time.Now().Add(time.Hour)
		rest := func(sequence uint64, l *lane, wait relay.Wait) *entry {
			e := waiting(l, sequence, flow.Ask{}, deadline)
			e.request.Probe = &envelope.Probe{COQL: "a = 1"}
			l.inHand++
			o.hand.take(e)
			o.mu.Lock()
			defer o.mu.Unlock()
			o.rest(e, &wait)
			return e
		}
		line := func(when string, l *lane, want ...uint64) {
			t.Helper()
			synctest.Wait()
			o.mu.Lock()
			defer o.mu.Unlock()
			if got := sequences(l.light); !slices.Equal(got, want) {
				t.Errorf("%s: the line is %v, want %v", when, got, want)
			}
		}
		l.line(waiting(l, 1, flow.Ask{}, deadline), false)
		rest(2, l, relay.Wait{Reason: relay.WaitPause, For: time.Minute})
		line("paused", l, 2, 1)
		if e := rest(3, l, relay.Wait{Reason: relay.WaitProbe}); !e.ask.Heavy || e.timer != nil || len(l.heavy) != 1 {
			t.Errorf("a lookup by COQL that needs a place for heavy calls: %+v", e)
		}
		rest(4, l, relay.Wait{Reason: relay.WaitRetry, For: 10 * time.Second})
		rest(5, l, relay.Wait{Reason: relay.WaitToken, For: 20 * time.Second})
		rest(6, l, relay.Wait{Reason: relay.WaitRevoked, For: 20 * time.Second})
		rest(7, other, relay.Wait{Reason: relay.WaitToken, For: 20 * time.Second})
		line("they rest", l, 2, 1)
		time.Sleep(11 * time.Second)
		line("ten seconds are over", l, 4, 2, 1)
		rest(8, l, relay.Wait{Reason: relay.WaitRetry, For: time.Minute})
		o.unblocked("demo")
		synctest.Wait()
		o.mu.Lock()
		if got := sequences(l.light); len(got) != 5 || !slices.Contains(got[:2], 5) || !slices.Contains(got[:2], 6) {
			t.Errorf("with a token: the line is %v", got)
		}
		o.mu.Unlock()
		line("another connection's", other)
		time.Sleep(10 * time.Second)
		line("twenty seconds are over", other, 7)
		o.mu.Lock()
		if len(l.light) != 5 {
			t.Errorf("some are in line twice: %v", sequences(l.light))
		}
		o.mu.Unlock()
		// A timer that has fired when its request is put into line, or given back, does
		// nothing, and one that is about to put it there is left to do so.
		fired := rest(9, other, relay.Wait{Reason: relay.WaitToken, For: time.Minute})
		fired.timer.Stop()
		o.unblocked("other")
		line("its time is over, and its token is there", other, 7)
		o.rested(fired)
		o.rested(fired)
		line("its time was over", other, 9, 7)
		late := rest(10, l, relay.Wait{Reason: relay.WaitRetry, For: time.Minute})
		o.mu.Lock()
		back := o.shut([]*lane{l, other})
		o.mu.Unlock()
		if len(back) != 9 {
			t.Errorf("%v are given back", sequences(back))
		}
		o.rested(late)
		time.Sleep(time.Hour)
		line("closed", l)
	})
}

// An org looks again at the first deadline of what stands still, once, and brings what is
// over to the front. What is under way isn't given back meanwhile.
func TestLooksAtTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		pause := &flow.Pause{Until: now.Add(time.Hour), Cause: "429", For: flow.SubConcurrency}
		o, l := orgOf(flow.Limits{Places: 10}, flow.State{HeavyPause: pause}, laneKey{"demo", Interactive})
		stopped(t, o)
		for i, deadline := range []time.Duration{time.Hour, time.Minute} {
			e := waiting(l, uint64(i+1), flow.Ask{Heavy: true}, now.Add(deadline))
			o.hand.take(e)
			l.line(e, false)
		}
		look := func() *time.Timer {
			o.mu.Lock()
			defer o.mu.Unlock()
			_, _, until := o.next(now)
			o.arm(now, until)
			return o.timer
		}
		first := look()
		if look(); first.Stop() {
			t.Error("the timer before goes on")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		o.mu.Lock()
		defer o.mu.Unlock()
		if got := sequences(l.heavy); !slices.Equal(got, []uint64{2, 1}) {
			t.Errorf("the line is %v", got)
		}
		if e := o.begin(time.Now()); e == nil || e.sequence != 2 {
			t.Fatalf("%+v is started", e)
		}
		if back := o.shut([]*lane{l}); !slices.Equal(sequences(back), []uint64{1}) {
			t.Errorf("%v are given back", sequences(back))
		}
	})
}
