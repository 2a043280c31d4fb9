package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
)

// stage is a server with the streams, and workers played by the test.
type stage struct {
	*Reader
	t *testing.T
}

func newStage(t *testing.T) *stage {
	t.Helper()
	js := natstest.Start(t).JetStream()
	if err := (consumer.Topology{Replicas: 1, Retention: time.Hour}).Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	return &stage{t: t, Reader: &Reader{NC: js.Conn(), JS: js, Quiet: 500 * time.Millisecond}}
}

func (s *stage) put(subject string, v any) uint64 {
	s.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	ack, err := s.JS.Publish(s.t.Context(), subject, data)
	if err != nil {
		s.t.Fatal(err)
	}
	return ack.Sequence
}

func (s *stage) connection(name string, status connection.Status) {
	s.put("zoho.connections."+name, &connection.Connection{
		Name: name, Location: "eu", Environment: connection.Production, OrgID: "1", Edition: "enterprise", Status: status,
		StatusReason: "invalid_code", RevokedAt: time.Now(),
	})
}

func (s *stage) request(lane, id string) uint64 {
	return s.put("zoho.requests."+lane, map[string]any{"id": id, "method": "GET", "url": "/v8/Leads?fields=Last_Name", "reply_to": "answers.1"})
}

// A name with a wildcard is nobody's, whoever the wildcard stands for.
func TestWildcardIsNoConnection(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	s.request("*", "1")
	for _, name := range []string{"*", ">", "a.b", ""} {
		if q, err := s.Queue(t.Context(), name); !errors.Is(err, ErrNoConnection) {
			t.Errorf("%q: %+v, %v", name, q, err)
		}
	}
	_, unqueued, err := s.Queues(t.Context())
	if err != nil || len(unqueued) != 1 || unqueued[0].State != Stranger {
		t.Errorf("%+v, %v", unqueued, err)
	}
}

// serve answers as the worker of an org does.
func (s *stage) serve(sight consumer.Sight) {
	s.t.Helper()
	sub, err := s.NC.Subscribe("zoho.orgs", func(m *nats.Msg) {
		if wanted := string(m.Data); wanted == "" || wanted == sight.Queue {
			data, _ := json.Marshal([]consumer.Sight{sight})
			_ = m.Respond(data)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = sub.Unsubscribe() })
}

// worker is one that says that it is there.
func (s *stage) worker() {
	s.t.Helper()
	service, err := micro.AddService(s.NC, micro.Config{Name: "zoho", Version: "1.0.0"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = service.Stop() })
}

// hold answers for the request of that sequence, with what its workers say, in order.
func (s *stage) hold(sequence uint64, said ...consumer.InHand) {
	s.t.Helper()
	s.answers("zoho.hand.*", func(m *nats.Msg) {
		if string(m.Data) == fmt.Sprint(sequence) {
			for _, h := range said {
				data, _ := json.Marshal(h)
				_ = m.Respond(data)
			}
		}
	})
}

func (s *stage) answers(subject string, answer nats.MsgHandler) {
	s.t.Helper()
	sub, err := s.NC.Subscribe(subject, answer)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = sub.Unsubscribe() })
}

const queue = "org-eu-production-1"

// Without any worker, the records and the stream still say what they know.
func TestQueuesWithoutWorker(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	s.connection("gone", connection.Revoked)
	for i := range 3 {
		s.request("acme", fmt.Sprint("a", i))
	}
	s.request("acme.bulk", "b")
	s.request("gone", "g")
	s.request("nobody", "n")
	until := time.Now().Add(time.Hour)
	if err := lease.Update(t.Context(), s.JS, queue, consumer.SetPause(&flow.Pause{Until: until, Cause: ByHand + ": lunch"}, time.Now())); err != nil {
		t.Fatal(err)
	}
	queues, unqueued, err := s.Queues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(queues) != 1 || queues[0].Name != queue || queues[0].Waiting != 4 || queues[0].Places != 20 || queues[0].Owner != "" ||
		queues[0].Paused <= 0 || queues[0].Cause != "by hand: lunch" {
		t.Errorf("queues %+v", queues)
	}
	if len(queues[0].Lanes) != 2 || queues[0].Lanes[1] != (Lane{Connection: "acme", Lane: "bulk", Waiting: 1}) {
		t.Errorf("lanes %+v", queues[0].Lanes)
	}
	want := []Waiting{{Connection: "gone", Requests: 1, State: Authorization}, {Connection: "nobody", Requests: 1, State: Stranger}}
	if !slices.Equal(unqueued, want) {
		t.Errorf("without a queue %+v, want %+v", unqueued, want)
	}
	// A connection without work limits its org all the same.
	s.put("zoho.connections.idle", &connection.Connection{
		Name: "idle", Location: "eu", Environment: connection.Production, OrgID: "1", Concurrency: 4, Status: connection.Active,
	})
	if queues, _, err = s.Queues(t.Context()); err != nil || len(queues) != 1 || queues[0].Places != 4 {
		t.Errorf("with another limit %+v, %v", queues, err)
	}
	for _, name := range []string{"acme", "idle"} { // with requests, and without any
		if q, err := s.Queue(t.Context(), name); err != nil || q.Places != 4 || !slices.Contains(q.Connections, name) {
			t.Errorf("with another limit %+v, %v", q, err)
		}
	}
}

// What a worker says of its org is what is shown of it.
func TestQueuesOfWorker(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	for i := range 5 {
		s.request("acme.bulk", fmt.Sprint("b", i))
	}
	s.serve(consumer.Sight{
		Queue: queue, Owner: "w1", Places: 3, Running: 2, Heavy: 1, Held: 1, Blocked: flow.Full, State: flow.State{Limit: 3},
		Lanes: []consumer.LaneSight{{Connection: "acme", Lane: consumer.Bulk, Running: 2, Held: 1}},
	})
	queues, unqueued, err := s.Queues(t.Context())
	if err != nil || len(unqueued) > 0 || len(queues) != 1 {
		t.Fatalf("queues %+v, without %+v, %v", queues, unqueued, err)
	}
	q := queues[0]
	if q.Owner != "w1" || q.Waiting != 3 || q.InFlight != 2 || q.Places != 3 || q.Heavy != 1 || q.HeavyPlaces != 3 || len(q.Lanes) != 1 || q.Lanes[0].Held != 1 {
		t.Errorf("queue %+v", q)
	}
	w, err := s.Why(t.Context(), "acme", "b4")
	if err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"2 of the org's 3 places are taken (fewer than configured", "of its lane bulk are before it", "interactive requests go before bulk ones"} {
		if w.State != Queued || !strings.Contains(w.Sentence, says) {
			t.Errorf("%s: %q does not say %q", w.State, w.Sentence, says)
		}
	}
}

// Each thing that a request in hand may wait for has its state and its sentence.
func TestWhyInHand(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	now := time.Now()
	soon := now.Add(30 * time.Second)
	pause := &flow.Pause{Until: now.Add(time.Minute), Cause: "429 TOO_MANY_REQUESTS", For: flow.Concurrency}
	told := map[string]bool{}
	for i, row := range []struct {
		waits string
		state flow.State
		want  State
		says  string
	}{
		{"", flow.State{}, Queued, "it is the next, 1 of the org's 5 places are taken"},
		{"place", flow.State{Limit: 5}, Queued, "(fewer than configured, because Zoho refused more)"},
		{"pause", flow.State{Pause: pause}, Paused, "because Zoho answered 429 TOO_MANY_REQUESTS (taken for its limit of calls in flight)"},
		{"pause", flow.State{Hand: &flow.Pause{Until: soon, Cause: ByHand + ": lunch"}}, Paused, "by hand: lunch"},
		{"heavy_pause", flow.State{HeavyPause: pause}, Paused, "whose heavy calls are paused for another"},
		{"heavy_place", flow.State{}, Heavy, "light requests go past it"},
		{"credits", flow.State{Left: 7, Known: now}, Credits, "used up (7 are left, 0 used by this client); looked at again in"},
		{"reserve", flow.State{Left: 7, Known: now}, Credits, "kept for interactive requests"},
		{"reserve", flow.State{Left: 7, Known: now, Used: flow.Usage{First: now.UnixNano() / int64(15*time.Minute), Counts: []int{1000}}}, Credits, "at this pace none are left at"},
		{"budget", flow.State{}, Credits, "connection acme has used its share"},
		{"order", flow.State{}, Ordered, "it starts when the one before it is answered"},
		{"token", flow.State{}, Token, "there is no access token of acme now (what was said), looked at again in"},
		{"revoked", flow.State{}, Authorization, "acme is revoked"},
		{"claim", flow.State{}, Returned, "another worker sends it"},
		{"probe", flow.State{}, Returned, "it is looked up whether Zoho carried it out"},
		{"retry", flow.State{}, Returned, "it is tried again"},
		{"storage", flow.State{}, Returned, "it comes again (storage)"},
		{"stopping", flow.State{}, Returned, "it comes again (stopping)"},
	} {
		told[row.waits] = true
		id := fmt.Sprint("r", i)
		sequence := s.request("acme", id)
		s.hold(sequence, consumer.InHand{
			Host: "w1", PID: 7, Since: now, Waits: row.waits, Why: "what was said", Until: soon,
			Org: consumer.Sight{Queue: queue, Owner: "w1", Places: 5, Running: 1, State: row.state},
		})
		w, err := s.At(t.Context(), "acme", sequence)
		if err != nil {
			t.Fatal(err)
		}
		if w.State != row.want || !strings.Contains(w.Sentence, row.says) || !strings.Contains(w.Sentence, "until its deadline at") {
			t.Errorf("%s: %s, %q; want %s, %q", row.waits, w.State, w.Sentence, row.want, row.says)
		}
		if !slices.Contains(States(), w.State) {
			t.Errorf("%s is not in the list", w.State)
		}
	}
	for _, reason := range relay.Reasons() {
		if !told[string(reason)] {
			t.Errorf("a request that waits for %s is taken for one that waits for its turn", reason)
		}
	}
	sequence := s.request("acme", "running")
	s.hold(sequence, consumer.InHand{Host: "w1", PID: 7, Since: now, Running: true, Org: consumer.Sight{Queue: queue, Places: 5}})
	if w, err := s.At(t.Context(), "acme", sequence); err != nil || w.State != InCall || !strings.Contains(w.Sentence, "in hand of worker w1 (pid 7) since") {
		t.Errorf("%+v, %v", w, err)
	}
	for calls, says := range map[int]string{1: "; 1 call so far: sent to Zoho, which answered 503", 6: "; 6 calls so far, the last: sent to Zoho, which answered 503"} {
		sequence := s.request("acme", fmt.Sprint("called", calls))
		s.hold(sequence, consumer.InHand{
			Host: "w1", PID: 7, Since: now, Running: true, Calls: calls, Last: "sent to Zoho, which answered 503", Org: consumer.Sight{Queue: queue, Places: 5},
		})
		if w, err := s.At(t.Context(), "acme", sequence); err != nil || w.State != InCall || !strings.HasSuffix(w.Sentence, says) {
			t.Errorf("%+v, %v", w, err)
		}
	}
}

// A request that nobody has in hand.
func TestWhyInStream(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	s.connection("gone", connection.Revoked)
	s.connection("removed", connection.Removed)
	want := func(lane string, state State, says string) {
		t.Helper()
		name, _, _ := strings.Cut(lane, ".")
		sequence := s.request(lane, fmt.Sprint(state, len(says)))
		w, err := s.At(t.Context(), name, sequence)
		if err != nil || w.State != state || !strings.Contains(w.Sentence, says) {
			t.Errorf("%s: %v %q, %v; want %s, %q", lane, w.State, w.Sentence, err, state, says)
		}
	}
	want("nobody", NoWorker, "there is no connection nobody, and no worker")
	s.worker()
	want("nobody", Stranger, "there is no connection nobody: the request is about to be answered")
	want("removed", Stranger, "there is no connection removed: the request is about to be answered")
	want("gone", Authorization, "gone is revoked since")
	want("acme", NoWorker, "is one running?")
	s.serve(consumer.Sight{Queue: queue, Owner: "w1", Places: 5, Running: 5, Blocked: flow.Full})
	want("acme", Queued, "1 request is before it, 5 of the org's 5 places are taken; it starts when a call ends")
	sequence := s.request("acme", "fault")
	fault := consumer.InHand{Host: "w1", PID: 7, Fault: "sealed with key k2"}
	s.hold(sequence, fault)
	if w, err := s.At(t.Context(), "acme", sequence); err != nil || w.State != Authorization || !strings.Contains(w.Sentence, "worker w1 (pid 7) can't use connection acme (sealed with key k2)") {
		t.Errorf("%+v, %v", w, err)
	}
	// Another worker has it in hand all the same, and says so later.
	sequence = s.request("acme", "in use elsewhere")
	s.hold(sequence, fault, consumer.InHand{Host: "w2", PID: 8, Running: true, Org: consumer.Sight{Queue: queue, Places: 5}})
	if w, err := s.At(t.Context(), "acme", sequence); err != nil || w.State != InCall || !strings.Contains(w.Sentence, "worker w2 (pid 8)") {
		t.Errorf("%+v, %v", w, err)
	}
	if w, err := s.Why(t.Context(), "acme", "none"); err != nil || w.State != Unknown {
		t.Errorf("%+v, %v", w, err)
	}
}

// What is heavy waits for the pause of heavy calls, in the stream too; what is light doesn't.
func TestWhyHeavyInStream(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	pause := &flow.Pause{Until: time.Now().Add(time.Hour), Cause: "429 TOO_MANY_REQUESTS", For: flow.SubConcurrency}
	s.serve(consumer.Sight{Queue: queue, Owner: "w1", Places: 5, Running: 5, Blocked: flow.Full, State: flow.State{HeavyPause: pause}})
	light := s.request("acme", "light")
	heavy := s.put("zoho.requests.acme", map[string]any{"id": "heavy", "method": "POST", "url": "/v8/coql", "body": map[string]any{"select_query": "select id from Leads"}})
	for sequence, want := range map[uint64]State{light: Queued, heavy: Paused} {
		w, err := s.At(t.Context(), "acme", sequence)
		if err != nil || w.State != want || strings.Contains(w.Sentence, "whose heavy calls are paused for another") != (want == Paused) {
			t.Errorf("%+v, %v; want %s", w, err, want)
		}
	}
}

// What is left until a deadline goes by the server's clock: this machine's may be wrong.
func TestDeadlineByServersClock(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(time.Hour)
	for now, says := range map[time.Time]string{
		deadline.Add(-time.Minute): "(in 1m0s)",
		deadline.Add(time.Minute):  "its deadline is over",
	} {
		if w := (&Why{Deadline: deadline, now: now}); !strings.Contains(w.until(), says) {
			t.Errorf("%q does not say %q", w.until(), says)
		}
	}
}

// What a worker says of its org, in the numbers of a queue.
func TestSee(t *testing.T) {
	t.Parallel()
	now := time.Now()
	pause := func(d time.Duration) *flow.Pause { return &flow.Pause{Until: now.Add(d), Cause: d.String()} }
	see := func(state flow.State) *Queue {
		q := &Queue{Name: queue}
		q.see(consumer.Sight{
			Queue: queue, Places: 8, State: state, Lanes: []consumer.LaneSight{{Connection: "acme", Running: 5, Held: 1}},
		}, &stored{now: now, counts: map[string]map[string]int{"acme": {"": 3}}}) // of which some were settled since
		q.finish()
		return q
	}
	const short, long, past = time.Minute, 2 * time.Minute, -time.Minute
	for _, of := range [][2]time.Duration{{short, long}, {long, short}, {long, past}, {past, long}} {
		if q := see(flow.State{Pause: pause(of[0]), Hand: pause(of[1])}); q.Paused != long || q.Cause != long.String() {
			t.Errorf("%v: %+v", of, q)
		}
	}
	q := see(flow.State{Pause: pause(past), HeavyPause: pause(past), HeavyLimit: 3, Limit: 20})
	if q.Paused != 0 || !q.PausedUntil.IsZero() || q.HeavyPause != nil || q.HeavyPlaces != 3 || q.lowered || q.Waiting != 1 || q.Credits != nil {
		t.Errorf("%+v", q)
	}
	if q := see(flow.State{Limit: 8, HeavyPause: pause(long)}); !q.lowered || q.HeavyPlaces != 8 || q.HeavyPause == nil {
		t.Errorf("%+v", q)
	}
	if q := see(flow.State{Left: 7, Known: now}); q.Credits == nil || *q.Credits.Remaining != 7 {
		t.Errorf("%+v", q.Credits)
	}
	used := flow.Usage{First: now.UnixNano() / int64(15*time.Minute), Counts: []int{5}}
	if q := see(flow.State{Used: used}); q.Credits == nil || q.Credits.Used != 5 {
		t.Errorf("%+v", q.Credits)
	}
}

// A claim whose lease is over ends as the request has asked for: looked up, or not.
func TestWhyClaimIsOver(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.connection("acme", connection.Active)
	insert := map[string]any{"id": "plain", "method": "POST", "url": "/v8/Leads", "body": map[string]any{"data": []any{map[string]any{"Ref": "1"}}}}
	plain := s.put("zoho.requests.acme", insert)
	insert["id"], insert["probe"] = "probed", map[string]any{"field": "Ref"}
	probed := s.put("zoho.requests.acme", insert)
	claims := ledger.Open(s.JS, &register.Clock{}, -time.Hour) // a lease that is over as it begins
	for id, row := range map[string]struct {
		sequence uint64
		says     string
	}{
		"plain":  {plain, "the claim is over: it will be answered outcome_unknown"},
		"probed": {probed, "the claim is over: it will be looked up whether Zoho carried it out"},
	} {
		if _, err := claims.Claim(t.Context(), "acme", id, [32]byte{}); err != nil {
			t.Fatal(err)
		}
		s.hold(row.sequence, consumer.InHand{Host: "w1", PID: 7, Since: time.Now(), Waits: string(relay.WaitClaim), Org: consumer.Sight{Queue: queue, Places: 5}})
		if w, err := s.Why(t.Context(), "acme", id); err != nil || !strings.Contains(w.Sentence, row.says) {
			t.Errorf("%s: %+v, %v", id, w, err)
		}
	}
}

// aheadJetStream is a server that says it is an hour later than it is.
type aheadJetStream struct{ jetstream.JetStream }

type aheadStream struct{ jetstream.Stream }

func (a aheadJetStream) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	stream, err := a.JetStream.Stream(ctx, name)
	return aheadStream{stream}, err
}

func (a aheadStream) CachedInfo() *jetstream.StreamInfo {
	info := *a.Stream.CachedInfo()
	info.TimeStamp = info.TimeStamp.Add(time.Hour)
	return &info
}

// How long ago it was answered is told by the server's clock, which stored the answer.
func TestWhyAnsweredByServersClock(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	now := time.Now()
	response := envelope.Response{ID: "1", Connection: "acme", Status: 200, Attempts: 1, ReceivedAt: now, FinishedAt: now}
	if _, err := s.JS.Publish(t.Context(), "zoho.responses.acme.1", response.AppendJSON(nil)); err != nil {
		t.Fatal(err)
	}
	s.JS = aheadJetStream{s.JS}
	if w, err := s.Why(t.Context(), "acme", "1"); err != nil || w.State != Answered || !strings.Contains(w.Sentence, "answered 1h") {
		t.Errorf("%+v, %v", w, err)
	}
	if overview, err := s.Overview(t.Context()); err != nil || overview.At.Before(now.Add(time.Hour)) {
		t.Errorf("%+v, %v", overview, err)
	}
}
