package relay

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/zoho"
)

// known is what is stored of a request, or why that can't be seen.
type known struct {
	stored *Stored
	err    error
}

func (k known) Lookup(context.Context, string, string) (*Stored, error) { return k.stored, k.err }

// replies answers calls and counts those that aren't lookups.
type replies struct {
	answer, lookup zoho.Answer
	calls          int
}

func (r *replies) Do(_ context.Context, call *zoho.Call) *zoho.Answer {
	if strings.HasSuffix(call.Path, "/coql") {
		return &r.lookup
	}
	r.calls++
	return &r.answer
}

// claims is the stream of claims on a server of its own.
func claims(t *testing.T) jetstream.JetStream {
	t.Helper()
	s := natstest.Start(t)
	js := s.JetStream()
	s.Create(js, ledger.StreamConfig(1, time.Hour))
	return js
}

// later is a clock of which d has passed since now.
func later(d time.Duration) *register.Clock {
	clock := &register.Clock{}
	now := time.Now()
	clock.Observe(now.Add(d), now)
	return clock
}

// What stands in the streams decides before anything is sent: a stored response, another's
// claim, and where neither can be seen nothing is sent that must not be sent twice.
func TestWhatStands(t *testing.T) {
	t.Parallel()
	js := claims(t)
	const call, lease = time.Minute, time.Minute + 5*time.Second
	mine, others := [32]byte{1}, [32]byte{2}
	answered, conflicting := known{stored: &Stored{mine, []byte("as it was")}}, Stored{others, nil}
	blind := known{err: errors.New("no response from stream")}
	duplicate := zoho.Answer{Status: 400, Body: []byte(`{"data":[{"code":"DUPLICATE_DATA","details":{"api_name":"R","id":"7"},"message":"duplicate data","status":"error"}]}`)}
	for name, c := range map[string]struct {
		method        string // POST: an insert, which is sent once
		again, probed bool
		late          bool // its deadline is over
		known         known
		claimed       [32]byte      // by somebody, for a request with that content
		passed        time.Duration // since then
		answer        zoho.Answer
		lookup        int // its status
		wait          Reason
		most          time.Duration
		code          envelope.Code
		stored        bool
		outcome       string
		calls         int
		refused       bool // nobody can send it any more
	}{
		"read, and nothing can be seen":         {method: "GET", known: blind, calls: 1},
		"read again, and nothing can be seen":   {method: "GET", again: true, known: blind, wait: WaitStorage},
		"update, and nothing can be seen":       {method: "PUT", known: blind, wait: WaitStorage},
		"insert again, and nothing can be seen": {method: "POST", again: true, known: blind, wait: WaitStorage},
		"answered":                              {method: "PUT", known: answered, stored: true},
		"another is answered":                   {method: "PUT", known: known{stored: &conflicting}, code: envelope.IDConflict},
		"another insert is answered":            {method: "POST", again: true, known: known{stored: &conflicting}, code: envelope.IDConflict},
		"another is claimed":                    {method: "POST", claimed: others, code: envelope.IDConflict},
		"another is claimed, again":             {method: "POST", again: true, claimed: others, code: envelope.IDConflict},
		"another's claim":                       {method: "POST", claimed: mine, wait: WaitClaim, most: 2 * time.Second},
		"another's claim, again":                {method: "POST", again: true, claimed: mine, wait: WaitClaim, most: 2 * time.Second},
		"a copy is sent elsewhere":              {method: "POST", late: true, claimed: mine, wait: WaitClaim, most: 2 * time.Second},
		"its worker is gone":                    {method: "POST", claimed: mine, passed: lease, code: envelope.OutcomeUnknown},
		"its worker is gone, again":             {method: "POST", again: true, claimed: mine, passed: lease, code: envelope.OutcomeUnknown},
		"a copy's worker is gone":               {method: "POST", late: true, claimed: mine, passed: lease, code: envelope.OutcomeUnknown},
		"probed, its worker is gone":            {method: "POST", probed: true, claimed: mine, passed: lease, wait: WaitProbe},
		"probed, a copy's worker is gone":       {method: "POST", late: true, probed: true, claimed: mine, passed: lease, wait: WaitProbe},
		"probed, can't be looked up":            {method: "POST", again: true, probed: true, claimed: mine, passed: lease, lookup: 403, code: envelope.OutcomeUnknown},
		"probed, not there yet":                 {method: "POST", again: true, probed: true, claimed: mine, passed: lease, lookup: 204, wait: WaitProbe},
		"late":                                  {method: "POST", late: true, code: envelope.DeadlineExceeded, refused: true},
		"a value that is there already":         {method: "POST", probed: true, answer: duplicate, calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name)
			if c.claimed != [32]byte{} {
				if _, err := ledger.Open(js, &register.Clock{}, call).Claim(t.Context(), "demo", id, c.claimed); err != nil {
					t.Fatal(err)
				}
			}
			clock := later(c.passed)
			if c.answer.Status == 0 {
				c.answer = zoho.Answer{Status: 200, Body: []byte(`{"data":[` + written(1) + `]}`)}
			}
			zohos := &replies{answer: c.answer, lookup: zoho.Answer{Status: c.lookup}}
			r := New(Options{
				Connections: parts{}, Tokens: parts{}, Responses: c.known, Zoho: zohos, Clock: clock, Ledger: ledger.Open(js, clock, call),
				CallTimeout: call, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			})
			request := &envelope.Request{
				ID: id, Method: c.method, Path: "/crm/v8/Leads", Deadline: clock.Now().Add(time.Hour),
				Body: envelope.Body{Kind: envelope.JSONBody, Data: []byte(`{"data":[{"R":"a","id":"1"}]}`)},
			}
			if c.late {
				request.Deadline = clock.Now().Add(-time.Second)
			}
			if c.probed {
				request.Probe = &envelope.Probe{Field: "R", Values: []string{"'a'"}}
			}
			result := r.Do(t.Context(), &Delivery{
				Observer: new(observed), Connection: "demo", Request: request, Operation: zoho.OperationOf(c.method, request.Path), Digest: mine,
				ReceivedAt: clock.Now(), Redelivered: c.again, Heavy: true,
			})
			var wait Wait
			var code envelope.Code
			var outcome string
			if result.Wait != nil {
				wait = *result.Wait
			} else if result.Response != nil {
				if outcome = result.Response.Outcome; result.Response.Error != nil {
					code = result.Response.Error.Code
				}
			}
			if wait.Reason != c.wait || code != c.code || outcome != c.outcome || string(result.Stored) == "as it was" != c.stored {
				t.Errorf("waits for %q, code %q, outcome %q, stored %q", wait.Reason, code, outcome, result.Stored)
			}
			if zohos.calls != c.calls {
				t.Errorf("%d calls", zohos.calls)
			}
			if c.most > 0 && (wait.For <= 0 || wait.For > c.most) {
				t.Errorf("waits for %s, want %s at most", wait.For, c.most)
			}
			if _, err := r.Ledger.Claim(t.Context(), "demo", id, others); c.known.stored == &conflicting && err != nil {
				t.Errorf("the claim isn't the other's: %v", err)
			}
			if c.refused {
				if _, err := r.Ledger.Claim(t.Context(), "demo", id, mine); !errors.Is(err, ledger.ErrExpired) {
					t.Errorf("it can still be sent: %v", err)
				}
			}
		})
	}
}

// Another's claim is looked at again when it is over, or in a while where that is sooner.
func TestWaitForAClaim(t *testing.T) {
	t.Parallel()
	r := New(Options{Clock: &register.Clock{}, Metrics: prometheus.NewRegistry()})
	j := &job{Relay: r, Delivery: &Delivery{Request: &envelope.Request{Deadline: time.Now().Add(time.Hour)}}}
	for _, left := range []time.Duration{10 * time.Millisecond, time.Minute} {
		wait := j.standing(&ledger.HeldError{Left: left}).Wait
		if wait == nil || wait.Reason != WaitClaim || wait.For > min(left, 2*time.Second) || wait.For <= 0 {
			t.Errorf("with %s left: %+v", left, wait)
		}
	}
}

// insert is a job for an insert that is sent once, with what it has of the ledger.
func insert(t *testing.T, l *ledger.Ledger, clock *register.Clock, call time.Duration) *job {
	t.Helper()
	request := &envelope.Request{
		ID: strings.ReplaceAll(t.Name(), "/", "-"), Method: "POST", Path: "/crm/v8/Leads", Deadline: clock.Now().Add(time.Hour),
		Body: envelope.Body{Kind: envelope.JSONBody, Data: []byte(`{"data":[{"R":"a"}]}`)},
	}
	b, ok := newBatch(request.Body.Data)
	if !ok {
		t.Fatal("the body has no records")
	}
	return &job{
		Relay: New(Options{
			Connections: parts{}, Tokens: parts{}, Responses: known{}, Clock: clock, Ledger: l, CallTimeout: call,
			Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		}),
		Delivery: &Delivery{Observer: new(observed), Connection: "demo", Request: request, Operation: zoho.OperationOf(request.Method, request.Path)},
		once:     true, body: request.Body.Data, batch: b,
	}
}

// claimed is insert with a claim.
func claimed(t *testing.T, l *ledger.Ledger, clock *register.Clock, call time.Duration) *job {
	t.Helper()
	j := insert(t, l, clock, call)
	if _, ok := j.secure(t.Context()); !ok || j.claim == nil {
		t.Fatal("not claimed")
	}
	return j
}

// A call may take no longer than its claim lasts: one that lasts no longer is extended
// first, and what somebody has closed is his to answer.
func TestClaimIsExtended(t *testing.T) {
	t.Parallel()
	js := claims(t)
	clock := &register.Clock{}
	const call = time.Hour
	l := ledger.Open(js, clock, call)
	writes := func() uint64 {
		stream, err := js.Stream(t.Context(), ledger.StreamName)
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().State.LastSeq
	}
	j := claimed(t, l, clock, call)
	before := writes()
	if _, ok := j.secure(t.Context()); !ok || writes() != before {
		t.Error("one that lasts is written anew")
	}
	j.CallTimeout = 2 * call
	if _, ok := j.secure(t.Context()); !ok || writes() != before+1 {
		t.Error("one that is nearly over isn't extended")
	}
	if err := ledger.Open(js, later(2*call), call).Look(t.Context(), "demo", j.Request.ID, j.Digest); !errors.Is(err, ledger.ErrExpired) {
		t.Fatal(err)
	}
	result, ok := j.secure(t.Context())
	if ok || result.Wait == nil || result.Wait.Reason != WaitClaim || j.claim != nil {
		t.Errorf("one that is closed: %+v, claim %v", result, j.claim)
	}
}

// A pause before another attempt keeps the claim where something was carried out under
// it, or its end would be somebody else's to judge; else it is given back.
func TestClaimInAPause(t *testing.T) {
	t.Parallel()
	js := claims(t)
	clock := &register.Clock{}
	const call = time.Minute
	l := ledger.Open(js, clock, call)
	for name, c := range map[string]struct {
		begun bool
		pause time.Duration
		kept  bool
		most  time.Duration
	}{
		"short":            {false, call / 2, true, call / 2},
		"long":             {false, 2 * call, false, 2 * call},
		"begun, and short": {true, call / 2, true, call / 2},
		"begun, and long":  {true, 2 * call, true, call / 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := claimed(t, l, clock, call)
			if c.begun {
				j.batch.rounds = 1
			}
			d, err := j.keep(t.Context(), c.pause)
			if err != nil || (j.claim != nil) != c.kept || d > c.most || !c.kept && d != c.pause {
				t.Errorf("pauses for %s, %v, claim %v", d, err, j.claim)
			}
			err = l.Look(t.Context(), "demo", j.Request.ID, j.Digest)
			if held := errors.As(err, new(*ledger.HeldError)); held != c.kept {
				t.Errorf("the ledger says %v", err)
			}
		})
	}
}

// What is given back was not carried out. Where it may have been in part, or an earlier
// sending was lost, whoever is next looks.
func TestClaimIsGivenBack(t *testing.T) {
	t.Parallel()
	js := claims(t)
	clock := &register.Clock{}
	l := ledger.Open(js, clock, time.Minute)
	for name, c := range map[string]struct {
		prepare func(j *job)
		want    error
	}{
		"unused":          {func(*job) {}, nil},
		"sent":            {func(j *job) { j.sent = true }, &ledger.HeldError{}},
		"written in part": {func(j *job) { j.batch.rounds = 1 }, &ledger.LostError{}},
		"found in part":   {func(j *job) { j.batch.looked = true }, &ledger.LostError{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := claimed(t, l, clock, time.Minute)
			c.prepare(j)
			j.release()
			err := l.Look(t.Context(), "demo", j.Request.ID, j.Digest)
			ok := err == nil
			switch c.want.(type) {
			case *ledger.HeldError:
				ok = errors.As(err, new(*ledger.HeldError)) && j.claim != nil
			case *ledger.LostError:
				ok = errors.As(err, new(*ledger.LostError)) && j.claim == nil && j.lost != nil
			}
			if !ok {
				t.Errorf("the ledger says %v, claim %v, lost %v", err, j.claim, j.lost)
			}
		})
	}
}

// Nobody is told that the outcome is unknown while somebody else may send the request:
// of a lost one that is sealed first, and one that was taken over meanwhile waits.
func TestSealed(t *testing.T) {
	t.Parallel()
	js := claims(t)
	clock := &register.Clock{}
	l := ledger.Open(js, clock, time.Minute)
	for name, c := range map[string]struct {
		code, want envelope.Code
		said       string
		taken      bool
		wait       Reason
	}{
		"found":   {},
		"unknown": {code: envelope.OutcomeUnknown, want: envelope.OutcomeUnknown, said: "why"},
		"can't be looked up": {
			code: envelope.UnknownConnection, want: envelope.OutcomeUnknown,
			said: "the request was sent and no answer came; it can't be looked up: why",
		},
		"taken over": {code: envelope.OutcomeUnknown, taken: true, wait: WaitClaim},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := claimed(t, l, clock, time.Minute)
			j.Request.Probe = &envelope.Probe{Field: "R", Values: []string{"'a'"}}
			if !j.lose() || j.claim != nil || j.lost == nil {
				t.Fatal("the claim isn't closed")
			}
			lost := j.lost
			if c.taken {
				if _, err := l.Resume(t.Context(), "demo", j.Request.ID, j.Digest, lost); err != nil {
					t.Fatal(err)
				}
			}
			response := &envelope.Response{}
			if c.code != "" {
				response.Error = &envelope.Error{Code: c.code, Message: "why"}
			}
			result := j.finish(t.Context(), Result{Response: response})
			if c.wait != "" {
				if result.Wait == nil || result.Wait.Reason != c.wait {
					t.Errorf("%+v", result)
				}
				return
			}
			if e := result.Response.Error; c.want == "" && e != nil || c.want != "" && (e == nil || e.Code != c.want || e.Message != c.said) {
				t.Errorf("%+v", e)
			}
			if _, err := l.Resume(t.Context(), "demo", j.Request.ID, j.Digest, lost); (err == nil) != (c.want == "") {
				t.Errorf("taken over afterwards: %v", err)
			}
		})
	}
}

// A value that Zoho has already is this request's own where it was sent before, and
// somebody else's where it wasn't.
func TestWhoseDuplicate(t *testing.T) {
	t.Parallel()
	const duplicate = `{"code":"DUPLICATE_DATA","details":{"api_name":%q,"id":"7"},"message":"duplicate data","status":"error"}`
	probe := &envelope.Probe{Field: "R", Values: []string{"'a'"}}
	for name, c := range map[string]struct {
		unique  string
		probe   *envelope.Probe
		resumed bool
		field   string
		answer  zoho.Answer
		found   bool
	}{
		"sent for the first time":  {probe: probe, field: "R"},
		"sent again":               {probe: probe, resumed: true, field: "R", found: true},
		"of another field":         {probe: probe, resumed: true, field: "S"},
		"unique":                   {unique: "R", field: "R", found: true},
		"unique, of another field": {unique: "R", field: "S"},
	} {
		b, _ := newBatch([]byte(`{"data":[{"R":"a"}]}`))
		j := &job{Delivery: &Delivery{Request: &envelope.Request{UniqueField: c.unique, Probe: c.probe}}, batch: b, resumed: c.resumed}
		if j.collect(answered(400, strings.Replace(duplicate, "%q", `"`+c.field+`"`, 1))) || b.found != c.found {
			t.Errorf("%s: found %v", name, b.found)
		}
	}
	// What is missing of an answer says nothing of any record.
	for _, a := range []*zoho.Answer{
		{Status: 200, TooLarge: true}, {Status: 200, BodyError: errors.New("cut"), Body: answered(201, written(1)).Body},
	} {
		b, _ := newBatch([]byte(`{"data":[{"R":"a"}]}`))
		b.rounds = 1
		j := &job{Delivery: &Delivery{Request: &envelope.Request{}}, batch: b}
		if j.collect(a) || len(b.pending()) != 1 {
			t.Errorf("%+v: %s", a, b.settled[0].Raw)
		}
	}
}

// What is known here alone of a request's records is answered with; what anybody can look
// up is not, while the request has to wait.
func TestKnownHereAlone(t *testing.T) {
	t.Parallel()
	for _, probe := range []*envelope.Probe{nil, {Field: "R", Values: []string{"'a'", "'b'"}}} {
		b, _ := newBatch([]byte(`{"data":[{"R":"a"},{"R":"b"}]}`))
		b.collect(answered(207, written(1), refusedRecord("RECORD_LOCKED")), "", true, true)
		j := &job{Relay: &Relay{Options: Options{Clock: &register.Clock{}}}, Delivery: &Delivery{Request: &envelope.Request{Probe: probe}}, batch: b}
		result := j.finish(t.Context(), Result{Wait: &Wait{Reason: WaitStopping}})
		if waits := result.Wait != nil; waits != (probe != nil) || waits == (result.Response != nil) {
			t.Errorf("probe %v: %+v", probe, result)
		}
	}
}

// A lost insert that is not there is sent again, under a claim of its own, and looked up
// no more for that. What Zoho has of it by then is found.
func TestSentAfterItWasLookedUp(t *testing.T) {
	t.Parallel()
	js := claims(t)
	const call = time.Minute
	duplicate := zoho.Answer{Status: 400, Body: []byte(`{"data":[{"code":"DUPLICATE_DATA","details":{"api_name":"R","id":"7"},"message":"duplicate data","status":"error"}]}`)}
	unsent, none := zoho.Answer{Unsent: true, Err: zoho.ErrRequest}, zoho.Answer{Status: 204}
	lost := claimed(t, ledger.Open(js, &register.Clock{}, call), &register.Clock{}, call)
	if !lost.lose() {
		t.Fatal("the claim isn't closed")
	}
	clock := later(2 * call)
	zohos := &line{answers: []zoho.Answer{none, unsent, duplicate}}
	r := New(Options{
		Connections: parts{}, Tokens: parts{}, Responses: known{}, Zoho: zohos, Clock: clock, Ledger: ledger.Open(js, clock, call),
		CallTimeout: call, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	request := *lost.Request
	request.Deadline, request.Probe = clock.Now().Add(time.Hour), &envelope.Probe{Field: "R", Values: []string{"'a'"}}
	result := r.Do(t.Context(), &Delivery{
		Observer: new(observed), Connection: "demo", Request: &request, Operation: lost.Operation, ReceivedAt: clock.Now(), Redelivered: true, Heavy: true,
	})
	if result.Response == nil || result.Response.Outcome != envelope.Confirmed || len(zohos.tokens) != 3 {
		t.Errorf("%+v after %d calls", result.Response, len(zohos.tokens))
	}
}
