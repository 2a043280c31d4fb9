package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/zoho/zohotest"
)

// What changes while calls are in flight: limits, owners, connections. The
// simulator judges, and sees order and what is in flight.

// demoQueue is the queue of the connection demo.
const demoQueue = "org-us-production-" + devbox.OrgID

// ordered is a read that says which one of its row it is.
func ordered(key string, i int) doc {
	d := list(fmt.Sprint(key, "-", i))
	d["query"], d["order_key"] = doc{"fields": "Last_Name", "at": d["id"]}, key
	return d
}

// at matches the call of an ordered read.
func at(id string) zohotest.Match {
	return zohotest.Match{Where: func(c zohotest.Call) bool { return strings.Contains(c.RawQuery, "at="+id) }}
}

func callsOf(user string) zohotest.Match {
	return zohotest.Match{Where: func(c zohotest.Call) bool { return c.UserID == user }}
}

// reached waits for a held call.
func (r *rig) reached(hold *zohotest.Hold) {
	r.t.Helper()
	select {
	case <-hold.Reached():
	case <-time.After(patience):
		r.t.Fatal("no call is held")
	}
}

// inOrder fails where calls of the key came in disorder or beside each other.
func (r *rig) inOrder(key string, calls int) {
	r.t.Helper()
	if o := r.Zoho.Orders()[key]; o.Disorder != 0 || o.Overlaps != 0 || o.Calls != calls {
		r.t.Errorf("%s: %+v, want %d calls in order", key, o, calls)
	}
}

// A request that stands behind another of its order is answered at its own
// deadline, however long the one before it takes; those after it still wait.
func TestOrderAndDeadline(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	r.publish("demo", ordered("A", 0))
	r.reached(hold)
	short := ordered("A", 1)
	short["deadline"] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	r.publish("demo", ordered("A", 2))
	wantCode(t, r.call("demo", short), envelope.DeadlineExceeded)
	r.publish("demo", ordered("A", 3))
	r.seen("the others wait", func(s consumer.Sight) bool { return s.Running == 1 && s.Held == 2 })
	hold.Release()
	for _, id := range []string{"A-0", "A-2", "A-3"} {
		wantStatus(t, r.await("demo", id), 200)
	}
	r.inOrder("A", 3)
}

// However many requests stand behind one of their order, those of another key and
// without one go past them.
func TestLongRowLetsOthersPast(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	const n = 100
	for i := range n {
		r.publish("demo", ordered("A", i))
	}
	r.reached(hold)
	for i := range 20 {
		r.publish("demo", ordered("B", i))
	}
	wantStatus(t, r.call("demo", list("other")), 200)
	wantStatus(t, r.await("demo", "B-19"), 200)
	if calls := r.Zoho.Count(zohotest.Match{Method: "GET"}); calls != 22 {
		t.Errorf("%d calls", calls)
	}
	hold.Release()
	r.awaitAll("demo", n+20)
	r.inOrder("A", n)
	r.inOrder("B", 20)
}

// A connection that is revoked and authorized again while an ordered request of
// it is in flight: what comes after waits for it, also when it has to be sent again.
func TestOrderAcrossRevocation(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, time.Second).On("GET", ""))
	for i := range 4 {
		r.publish("demo", ordered("A", i))
	}
	r.reached(hold)
	held := func(n int) {
		t.Helper()
		r.seen(fmt.Sprint(n, " are in hand behind it"), func(s consumer.Sight) bool { return s.Running == 1 && s.Held == n })
	}
	held(3)
	status := func(s connection.Status) {
		t.Helper()
		if _, err := r.store.Update(t.Context(), "demo", func(c *connection.Connection) error { c.Status = s; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	status(connection.Revoked)
	held(0)
	status(connection.Active)
	held(3)
	hold.Release()
	for _, response := range r.awaitAll("demo", 4) {
		wantStatus(t, response, 200)
	}
	r.inOrder("A", 5)
}

// A worker whose session ends while an ordered request of it is in flight serves
// the org again: what comes after still waits for it.
func TestOrderAcrossLostSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	for i := range 4 {
		r.publish("demo", ordered("A", i))
	}
	r.reached(hold)
	owner := func() string {
		record, err := lease.Read(t.Context(), r.js, demoQueue)
		if err != nil {
			return ""
		}
		return record.Owner
	}
	first := owner()
	r.anew(lease.WorkerStream)
	r.seen("another session has the org, and the others are in hand", func(s consumer.Sight) bool {
		return owner() != first && s.Held+s.Running == 3
	})
	hold.Release()
	for _, response := range r.awaitAll("demo", 4) {
		wantStatus(t, response, 200)
	}
	r.inOrder("A", 4)
}

// A limit that is raised is used at once, by a lane that has not been without requests
// since: it takes as many more in hand.
func TestRaisedLimitIsUsed(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	const few, many, n = 2, 40, 60
	r.limited(zohotest.Limits{Concurrency: many, SubConcurrency: 10})
	places := func(n int) {
		t.Helper()
		if _, err := r.store.Update(t.Context(), "demo", func(c *connection.Connection) error {
			c.Concurrency = n
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	running := func(n int) {
		t.Helper()
		r.seen(fmt.Sprint(n, " calls in flight"), func(s consumer.Sight) bool { return s.Running == n })
	}
	places(few)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "GET"})
	defer hold.Release()
	for range n {
		r.publish("demo", list(r.id("list")))
	}
	running(few)
	places(many)
	running(many)
	hold.Release()
	for _, response := range r.awaitAll("demo", n) {
		wantStatus(t, response, 200)
	}
}

// A connection whose heavy requests were moved to a lane of their own has no more
// of its org's places for it.
func TestFairBesideHeavyLane(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
	r.connect("small", devbox.OrgID, 20)
	r.Zoho.SetLatency(100 * time.Millisecond)
	const backlog, few = 400, 120
	for i := range backlog {
		for k := range 3 {
			r.publish("demo", coql(fmt.Sprint("heavy-", i, "-", k)))
		}
		r.publish("demo", list(fmt.Sprint("light-", i)))
	}
	r.worker()
	r.seen("heavy and light requests have lanes of their own", func(s consumer.Sight) bool {
		busy := 0
		for _, l := range s.Lanes {
			if l.Running > 0 && l.Held > 0 {
				busy++
			}
		}
		return busy == 2
	})
	calls := func() int { return r.Zoho.Count(callsOf("user-of-demo")) }
	for i := range few {
		r.publish("small", list(fmt.Sprint("few-", i)))
	}
	eventually(t, "the other connection's requests are served", func() bool {
		return r.Zoho.Count(callsOf("user-of-small")) > few/6
	})
	before := calls()
	r.awaitAll("small", few)
	// An equal part is five sixths of few, two lanes' twice that.
	if n := calls() - before; n > few*4/3 {
		t.Errorf("one connection had %d calls while the other had %d", n, few*5/6)
	}
}

// An org that changes hands under load: what the worker before has in flight
// counts, of every connection, before anything is started.
func TestHandOverCountsAll(t *testing.T) {
	t.Parallel()
	const places = 20
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: places, SubConcurrency: 10})
	names := make([]string, places)
	for i := range names {
		names[i] = fmt.Sprint("c", i)
		r.connect(names[i], devbox.OrgID, places)
	}
	first := r.worker()
	held := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{})
	for _, name := range names {
		r.publish(name, list("held"))
	}
	for range names {
		r.reached(held)
	}
	r.worker()
	stopped, published := stopping(first), make(chan int)
	// Requests go on coming, so that the new owner hears of lanes one by one.
	enough := make(chan struct{})
	go func() {
		n := 0
		defer func() { published <- n }()
		for {
			for _, name := range slices.Backward(names) {
				select {
				case <-enough:
					return
				default:
				}
				_, _ = r.js.Publish(t.Context(), "zoho.requests."+name, fmt.Appendf(nil, `{"id":"more-%d","method":"GET","url":"/v8/Leads?fields=Last_Name"}`, n))
				n++
			}
		}
	}()
	r.seen("the new owner has all lanes in hand", func(s consumer.Sight) bool { return len(s.Lanes) == places && s.Held > 2*places })
	close(enough)
	n := <-published
	if c := r.Zoho.Counts(devbox.OrgID); c.InFlight != places || c.Refused.Sum() != 0 {
		t.Errorf("%d calls in flight beside the %d, refused %+v", c.InFlight-places, places, c.Refused)
	}
	held.Release()
	<-stopped
	answered := 0
	for i, name := range names {
		mine := n / places
		if places-1-i < n%places {
			mine++
		}
		answered += len(r.awaitAll(name, mine+1))
	}
	r.drained()
	if c := r.Zoho.Counts(devbox.OrgID); answered != n+places || c.HighestInFlight > places || c.Refused.Sum() != 0 {
		t.Errorf("%d answered of %d; %+v", answered, n+places, c)
	}
}

// An org that changes hands twice while calls of the first worker are in flight:
// the third knows of them, though the second had none of its own.
func TestHandedOnCountsAll(t *testing.T) {
	t.Parallel()
	const places, n = 5, 10
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: places, SubConcurrency: places})
	first := r.worker()
	held := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{})
	for i := range places {
		r.publish("demo", list(fmt.Sprint("held-", i)))
	}
	for range places {
		r.reached(held)
	}
	inHand := func(who string) {
		t.Helper()
		r.seen(who+" has them in hand", func(s consumer.Sight) bool { return s.Running == 0 && s.Held == n })
	}
	second := r.worker()
	stopped := stopping(first)
	for i := range n {
		r.publish("demo", list(fmt.Sprint("more-", i)))
	}
	inHand("the second worker")
	r.worker()
	stop(second)
	inHand("the third worker")
	held.Release()
	<-stopped
	for _, response := range r.awaitAll("demo", places+n) {
		wantStatus(t, response, 200)
	}
	r.drained()
	if c := r.Zoho.Counts(devbox.OrgID); c.HighestInFlight > places || c.Refused.Sum() != 0 {
		t.Errorf("%+v", c)
	}
}

// An edition, or a limit, that is lowered while the org is full: what is in flight
// ends, and nothing starts until there are fewer than the new limit.
func TestLimitLoweredWhileFull(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
	edition := func(name string) {
		t.Helper()
		if _, err := r.store.Update(t.Context(), "demo", func(c *connection.Connection) error {
			c.Concurrency, c.Edition = 0, name
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	edition("enterprise")
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{})
	const n = 60
	for i := range n {
		r.publish("demo", list(fmt.Sprint("r-", i)))
	}
	for range 20 {
		r.reached(hold)
	}
	edition("free")
	r.seen("the worker follows", func(s consumer.Sight) bool { return s.Places == 5 })
	r.Zoho.SetLimits(devbox.OrgID, zohotest.Limits{Concurrency: 5, SubConcurrency: 5})
	hold.Release()
	for _, response := range r.awaitAll("demo", n) {
		wantStatus(t, response, 200)
	}
	r.judged(20, 0)
}

// A 429 uses no attempt up, and after the pause one call is tried, however many wait.
func TestResumesWithOne(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, time.Second).On("GET", ""))
	var refused atomic.Bool
	r.Zoho.OnCall(zohotest.Answered, zohotest.Match{Where: func(c zohotest.Call) bool { return c.Status == 429 }}, func(zohotest.Call) { refused.Store(true) })
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Where: func(zohotest.Call) bool { return refused.Load() }})
	r.publish("demo", list("first"))
	eventually(t, "it is refused", refused.Load)
	const n = 15
	for i := range n {
		r.publish("demo", list(fmt.Sprint("r-", i)))
	}
	r.reached(hold)
	r.seen("the others wait for it", func(s consumer.Sight) bool { return s.Running == 1 && s.Held == n && s.Blocked == flow.Full })
	if c := r.Zoho.Counts(devbox.OrgID); c.InFlight != 1 || c.Calls != 2 {
		t.Errorf("%d calls, %d in flight", c.Calls, c.InFlight)
	}
	hold.Release()
	for id, response := range r.awaitAll("demo", n+1) {
		if response.Status != 200 || response.Error != nil || response.Attempts != 1 {
			t.Errorf("%s is %s", id, response.AppendJSON(nil))
		}
	}
}

// A request that is to be sent again is not sent while its org is paused, though
// it was under way when the pause began.
func TestNoRepetitionInPause(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("under-way"))
	r.busy("under-way", "0")
	d := marked("under-way")
	d["deadline"] = time.Now().Add(10 * time.Second).UTC().Format(time.RFC3339Nano)
	r.publish("demo", d)
	r.reached(hold)
	pause := &flow.Pause{Until: time.Now().Add(10 * time.Minute), Cause: "by hand"}
	if err := lease.Update(t.Context(), r.js, demoQueue, consumer.SetPause(pause, time.Now())); err != nil {
		t.Fatal(err)
	}
	r.seen("the worker knows of the pause", func(s consumer.Sight) bool { return s.State.Hand != nil })
	hold.Release()
	r.seen("it waits for the pause's end", func(s consumer.Sight) bool { return s.Running == 0 && s.Held == 1 })
	wantCode(t, r.await("demo", "under-way"), envelope.DeadlineExceeded, "paused")
	if n := r.Zoho.Count(at("under-way")); n != 1 {
		t.Errorf("%d calls in the pause", n-1)
	}
}

// A refusal for heavy calls holds heavy calls back, and no others.
func TestHeavyPause(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
	r.worker()
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.SubConcurrency, 10*time.Minute).On("POST", "/crm/v8/coql"))
	r.publish("demo", coql("heavy"))
	eventually(t, "heavy calls are paused, for whoever asks", func() bool {
		record, err := lease.Read(t.Context(), r.js, demoQueue)
		if err != nil {
			return false
		}
		s := consumer.DecodeState(record.State)
		return s.HeavyPause != nil && s.Pause == nil
	})
	wantStatus(t, r.call("demo", list("light")), 200)
	short := coql("short")
	short["deadline"] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", short), envelope.DeadlineExceeded, "heavy")
	if n := r.Zoho.Count(zohotest.Match{Path: "/crm/v8/coql"}); n != 1 {
		t.Errorf("the simulator saw %d heavy calls in the pause", n-1)
	}
}

// Inserts whose outcome is looked up once more at their deadline don't exceed the
// org's limit by that.
func TestOverdueLookupsKeepTheLimit(t *testing.T) {
	t.Parallel()
	const places, n = 2, 8
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: places, SubConcurrency: places})
	r.worker() // that nothing is there isn't believed before the call timeout is over, which is after the deadline
	r.Zoho.SetLatency(200 * time.Millisecond)
	deadline := time.Now().Add(12 * time.Second).UTC().Format(time.RFC3339Nano)
	for i := range n {
		id := fmt.Sprint("lost-", i)
		r.Zoho.Inject(strikes(zohotest.CutRead(zohotest.Reset), id))
		d := probed(id, doc{"field": "External_Ref"}, lead(id))
		d["deadline"] = deadline
		r.publish("demo", d)
	}
	for _, response := range r.awaitAll("demo", n) {
		wantCode(t, response, envelope.OutcomeUnknown)
	}
	r.judged(places, places)
}

// Light requests go past heavy ones that have to wait, however many of these are
// in hand.
func TestLightGoPastFewHeavies(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 5, SubConcurrency: 5})
	r.worker()
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.SubConcurrency, 10*time.Minute).On("POST", "/crm/v8/coql"))
	held := 0
	heavy := func() {
		t.Helper()
		r.publish("demo", coql(fmt.Sprint("heavy-", held)))
		held++
		r.seen("it is in hand", func(s consumer.Sight) bool { return s.Held == held && s.Running == 0 })
	}
	for range 12 {
		heavy()
	}
	wantStatus(t, r.call("demo", list("light-0")), 200)
	heavy()
	for i := range 4 {
		wantStatus(t, r.call("demo", list(fmt.Sprint("light-", i+1))), 200)
	}
}

// The deadline of a request whose connection has used its budget is kept, also
// while others of the org are busy and one with a later deadline is before it.
func TestDeadlineBehindBudget(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(1)
	r.connect("small", devbox.OrgID, 1)
	if _, err := r.store.Update(t.Context(), "small", func(c *connection.Connection) error {
		c.DailyCredits = 1
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.worker()
	wantStatus(t, r.call("small", list("budget")), 200)
	r.Zoho.SetLatency(200 * time.Millisecond)
	const n = 100
	for i := range n {
		r.publish("demo", list(fmt.Sprint("busy-", i)))
	}
	overdue := func(id string) {
		t.Helper()
		short := list(id)
		short["deadline"] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
		wantCode(t, r.call("small", short), envelope.DeadlineExceeded)
		if called := r.Zoho.Count(zohotest.Match{Method: "GET"}); called > n {
			t.Error("answered when the org was no longer busy")
		}
	}
	r.publish("small", list("later"))
	overdue("short")
	for i := range 20 { // more than the worker has in hand
		r.publish("small", list(fmt.Sprint("later-", i)))
	}
	overdue("beyond")
}

// The deadline of a request is kept also where all that the worker has in hand of
// its lane rests, because Zoho asked for it, for longer than that.
func TestDeadlineBehindRestingRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.worker()
	const n = 20
	for i := range n {
		id := fmt.Sprint("rests-", i)
		r.busy(id, "300")
		r.publish("demo", marked(id))
	}
	r.seen("they rest", func(s consumer.Sight) bool { return s.Running == 0 && s.Held > n/2 })
	short := list("short")
	short["deadline"] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", short), envelope.DeadlineExceeded)
}

// Lookups by COQL are heavy calls. When the answers of as many inserts are lost as the
// org has places, no more of them are looked up at once than Zoho allows.
func TestLookupsKeepTheHeavyLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
	hold := r.Zoho.Hold(zohotest.Executed, zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", "/crm/v8/Leads").Repeat(20))
	r.worker()
	records, refs := leads("lost", 20)
	for i, ref := range refs {
		r.publish("demo", probed(ref, doc{"field": "External_Ref"}, records[i]))
	}
	for range refs {
		r.reached(hold)
	}
	r.Zoho.SetLatency(300 * time.Millisecond) // so that lookups meet each other
	hold.Release()
	answers := r.awaitAll("demo", len(refs))
	for _, ref := range refs {
		r.wantWhole(answers[ref], ref)
		if c := answers[ref].Credits; c == nil || c.Used != 2 || answers[ref].Attempts != 1 {
			t.Errorf("%s: %s", ref, answers[ref].AppendJSON(nil))
		}
	}
	r.judged(20, 10)
	if n := r.Zoho.Counts(devbox.OrgID).HighestHeavy; n < 2 {
		t.Errorf("%d lookups at once: they didn't meet", n)
	}
}
