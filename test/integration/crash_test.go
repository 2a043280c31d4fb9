package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/zoho/zohotest"
)

// place is where a worker is killed: at one of its fail points, or by the test
// while the simulator has its call at a stage.
type place struct {
	point failpoint.Point
	stage zohotest.Stage
}

func (p place) String() string {
	switch {
	case p.point != "":
		return string(p.point)
	case p.stage == zohotest.BodyRead:
		return "call: body read"
	default:
		return "call: executed"
	}
}

// crash is a place and what one insert, killed there, comes to.
type crash struct {
	place
	unknown  bool // outcome_unknown, else 201
	executed int
	replies  int // to its inbox
}

// crashes has a row for every place. F2, F3 and F4.
var crashes = []crash{
	{place{point: failpoint.Decoded}, false, 1, 1},
	{place{point: failpoint.Claimed}, true, 0, 1},
	{place{stage: zohotest.BodyRead}, true, 1, 1}, // Zoho executes what it has read
	{place{stage: zohotest.Executed}, true, 1, 1},
	{place{point: failpoint.Answered}, true, 1, 1},
	{place{point: failpoint.Stored}, false, 1, 1},
	// The kill may keep what is handed to the connection from leaving.
	{place{point: failpoint.Replied}, false, 1, 2},
	{place{point: failpoint.Acked}, false, 1, 2},
}

// No point without a crash.
func TestEveryPointHasACrash(t *testing.T) {
	t.Parallel()
	rows := map[failpoint.Point]int{}
	for _, c := range crashes {
		if c.point != "" {
			rows[c.point]++
		}
	}
	for _, p := range failpoint.Points() {
		if rows[p] != 1 {
			t.Errorf("point %s has %d rows in the table of crashes", p, rows[p])
		}
		delete(rows, p)
	}
	for p := range rows {
		t.Errorf("the table of crashes names %s, and failpoint.Points does not", p)
	}
}

// doomed starts a worker that dies at the n-th passage of p. Call died to wait
// for its death.
func (w *workload) doomed(p place, n int) (worker *process, died func()) {
	w.t.Helper()
	if p.point != "" {
		worker = w.process(fmt.Sprintf("FAILPOINT=%s:%d", p.point, n))
		return worker, worker.died
	}
	hold := w.Zoho.Hold(p.stage, zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	w.t.Cleanup(hold.Release)
	worker = w.process()
	return worker, func() {
		w.t.Helper()
		for range n {
			select {
			case <-hold.Reached():
			case <-time.After(patience):
				w.t.Fatal("the call never came")
			}
		}
		worker.signal(syscall.SIGKILL)
		worker.died()
		hold.Release()
	}
}

// A worker with one insert in hand dies at each place; another one answers
// exactly what can be known. Rounds are begun one after the other and wait
// together.
func TestCrashWithOneInsert(t *testing.T) {
	t.Parallel()
	type round struct {
		crash
		*workload
		*request
	}
	var rounds []round
	for _, c := range crashes {
		r := newRig(t, zohotest.Options{})
		r.demo(1)
		w := r.workload()
		q := w.add(doc{"id": "one", "method": "POST", "url": "/v8/Leads"}, true)
		w.publishAll(q)
		_, died := w.doomed(c.place, 1)
		died()
		w.process()
		rounds = append(rounds, round{c, w, q})
	}
	for _, r := range rounds {
		got := r.verify()
		if got.unknown["one"] != r.unknown {
			t.Errorf("%s: unknown is %v, want %v", r.place, got.unknown["one"], r.unknown)
		}
		if n := r.rig.executed()[r.name]; n != r.crash.executed {
			t.Errorf("%s: executed %d times, want %d", r.place, n, r.crash.executed)
		}
		r.mu.Lock()
		n := len(r.request.replies)
		r.mu.Unlock()
		if n < 1 || n > r.crash.replies {
			t.Errorf("%s: %d replies, want 1 to %d", r.place, n, r.crash.replies)
		}
	}
}

// A worker with a mix of requests in hand dies at each place, twice: with
// another worker beside it, and with one that comes later. Every request gets
// its one response, no insert is sent twice, and the outcome is unknown for
// exactly those that the dead worker had claimed and not answered.
func TestCrashUnderLoad(t *testing.T) {
	t.Parallel()
	type round struct {
		name string
		*workload
		claimed map[string]bool // nil: not known, because another worker has claims too
	}
	const (
		places   = 5
		requests = 48
	)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var rounds []round
	for _, c := range crashes {
		for _, beside := range []bool{false, true} {
			n := 1 + random.IntN(places)
			if beside {
				n = 1
			}
			r := newRig(t, zohotest.Options{})
			r.demo(places)
			if c.point != "" {
				r.Zoho.SetLatency(5 * time.Millisecond)
			}
			w := r.workload()
			mixed := w.mix(requests)
			this := round{name: fmt.Sprintf("%s:%d, another worker beside: %v", c.place, n, beside), workload: w}
			if beside && c.point != "" {
				n++ // the first passage makes it the org's
			}
			_, died := w.doomed(c.place, n)
			if beside && c.point != "" {
				first := w.add(doc{"id": "first", "method": "POST", "url": "/v8/Leads"}, true)
				w.publishAll(first)
				w.await("demo", "first")
			}
			if beside {
				w.process()
				w.started(2)
			}
			w.publishAll(mixed...)
			died()
			if !beside {
				w.clients(1)
				this.claimed = w.claimed()
				w.process()
			}
			rounds = append(rounds, this)
		}
	}
	for _, r := range rounds {
		got := r.verify()
		if r.claimed != nil && !maps.Equal(got.unknown, r.claimed) {
			t.Errorf("%s: unknown are %v, claimed and not answered were %v", r.name, got.unknown, r.claimed)
		}
		if len(got.unknown) > places {
			t.Errorf("%s: %d unknown, and only %d requests could be in hand", r.name, len(got.unknown), places)
		}
		if t.Failed() {
			t.Fatal("in the round", r.name)
		}
	}
}

// A request that kills every worker that begins it is set aside after the fourth:
// its requester is told, and what came with it is carried out.
func TestRequestThatKillsWorkers(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	inbox := r.nc.NewInbox()
	sub, err := r.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	poison := list("poison")
	poison["reply_to"] = inbox
	r.publish("demo", poison)
	for i := range 4 {
		p := r.process("FAILPOINT=decoded:1")
		select {
		case <-p.gone:
		case <-time.After(patience):
			t.Fatalf("worker %d did not die", i)
		}
	}
	for i := range 5 {
		r.publish("demo", insert(fmt.Sprint("good-", i), fmt.Sprint("Good", i)))
	}
	r.process()
	msg, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatalf("the requester isn't answered: %v", err)
	}
	response, err := envelope.DecodeResponse(msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, response, envelope.Internal, "four workers")
	if n := r.Zoho.Count(zohotest.Match{Method: "GET"}); n != 0 {
		t.Errorf("the request was sent %d times", n)
	}
	for _, good := range r.awaitAll("demo", 5) {
		wantStatus(t, good, 201)
	}
	r.drained()
	// Whoever runs the workers can see what it was.
	letter := r.letter()
	if letter.Code != string(envelope.Internal) || !strings.Contains(letter.Reason, "four workers") || !strings.Contains(string(letter.Data), `"poison"`) {
		t.Errorf("%s: %s: %s", letter.Code, letter.Reason, letter.Data)
	}
}

// Workers that are killed from outside convict nobody but the one request that was
// under way alone, the third time and the fourth: neither what a third death finds
// on trial, nor what is on trial in another org of the same worker.
func TestRequestsOfKilledWorkers(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	names := []string{"first", "second"}
	for i, name := range names {
		org := fmt.Sprintf("77000000%d", i)
		r.Zoho.AddOrg(zohotest.Org{ID: org, Name: name, Concurrency: 5})
		r.Zoho.Seed(org, "Leads", map[string]any{"Last_Name": "Seed"})
		r.connect(name, org, 5)
	}
	slow := zohotest.Match{Where: func(c zohotest.Call) bool { return c.RawQuery == "fields=Company" }}
	ask := func(id, field string) {
		for _, name := range names {
			r.publish(name, doc{"id": id, "method": "GET", "url": "/v8/Leads", "query": doc{"fields": field}})
		}
	}
	ask("slow", "Company")
	for death := 1; death <= 4; death++ {
		hold := r.Zoho.Hold(zohotest.Arrived, slow)
		p := r.process()
		r.reached(hold)
		if death < 4 {
			r.reached(hold) // of both orgs
		} else {
			ask("fast", "Last_Name")
			for _, name := range names {
				wantStatus(t, r.await(name, "fast"), 200)
			}
		}
		p.signal(syscall.SIGKILL)
		p.died()
		hold.Release()
	}
	r.process()
	convicted := 0
	for _, name := range names {
		if response := r.await(name, "slow"); response.Error != nil {
			wantCode(t, response, envelope.Internal, "four workers")
			convicted++
		} else {
			wantStatus(t, response, 200)
		}
	}
	if convicted != 1 {
		t.Errorf("%d requests are convicted, and one was tried when the fourth worker died", convicted)
	}
}

// Two workers that die with other requests in hand, months apart as it were, are no
// two in a row: what the first had in hand is long answered.
func TestDeathsThatHaveNothingInCommon(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	die := func(p *process, id string) {
		hold := r.Zoho.Hold(zohotest.Arrived, zohotest.Match{Method: "GET"})
		r.publish("demo", list(id))
		r.reached(hold)
		p.signal(syscall.SIGKILL)
		p.died()
		hold.Release()
	}
	die(r.process(), "first")
	next := r.process()
	wantStatus(t, r.await("demo", "first"), 200)
	r.drained()
	die(next, "second")
	r.process()
	wantStatus(t, r.await("demo", "second"), 200)
	if strings.Contains(r.logs.text.String(), "two workers in a row died") {
		t.Error("the log takes what was answered for what killed the worker")
	}
}
