package relay

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// However long a connection is blocked, its requests come again soon: it may be
// authorized anew before its queue is parked, and a nak's delay can't be taken back.
func TestTokenWaitIsBounded(t *testing.T) {
	t.Parallel()
	for _, reason := range token.Reasons() {
		for _, block := range []time.Duration{-time.Second, 0, time.Second, 10 * time.Minute, time.Hour} {
			j := &job{
				Relay:    &Relay{Options: Options{Clock: &register.Clock{}}},
				Delivery: &Delivery{Request: &envelope.Request{Deadline: time.Now().Add(12 * time.Hour)}},
			}
			wait := j.withoutToken(&token.Unavailable{Reason: reason, Until: time.Now().Add(block)}).Wait
			switch {
			case wait == nil:
				t.Errorf("%s for %s: no wait", reason, block)
			case wait.For > maxTokenWait+time.Second:
				t.Errorf("%s for %s: waits for %s", reason, block, wait.For)
			case reason != token.Revoked && wait.For < min(block, maxTokenWait)-time.Second:
				t.Errorf("%s for %s: waits only for %s", reason, block, wait.For)
			}
		}
	}
}

// A lost, probed insert whose deadline passes while there is no token is
// answered outcome_unknown, like any other that can't be looked up.
func TestLostWithoutTokenAtDeadline(t *testing.T) {
	t.Parallel()
	for _, reason := range token.Reasons() {
		j := &job{
			Relay:    New(Options{Clock: &register.Clock{}, Metrics: prometheus.NewRegistry()}),
			Delivery: &Delivery{Request: &envelope.Request{ID: "x", Deadline: time.Now().Add(-time.Second), Probe: &envelope.Probe{COQL: "a = 1"}}},
			once:     true, lost: &ledger.LostError{},
		}
		result := j.withoutToken(&token.Unavailable{Reason: reason, Until: time.Now().Add(time.Minute)})
		if result.Response == nil || result.Response.Error == nil || result.Response.Error.Code != envelope.OutcomeUnknown {
			t.Errorf("%s: %+v", reason, result)
		}
	}
}

// What is answered by the worker itself says where the request may have been sent all the
// same, and doesn't where that makes no difference, or can't be.
func TestFailTellsOfSendings(t *testing.T) {
	t.Parallel()
	const doubt, elsewhere = "a sending of it that brought no answer may have been carried out", "whether it was sent before is not known"
	for _, c := range []struct {
		method   string
		sendings Sendings
		want     string
	}{
		{"PUT", Sendings{}, ""},
		{"PUT", Sendings{Attempts: 3}, ""},
		{"PUT", Sendings{Attempts: 3, Doubt: true}, doubt},
		{"PUT", Sendings{Attempts: 3, Doubt: true, Elsewhere: true}, doubt},
		{"PUT", Sendings{Elsewhere: true}, elsewhere},
		{"PUT", Sendings{Attempts: 3, Elsewhere: true}, elsewhere}, // of its own nothing left
		{"GET", Sendings{Attempts: 3, Doubt: true, Elsewhere: true}, ""},
		{"POST", Sendings{Elsewhere: true}, ""}, // it would have a claim
	} {
		r := &envelope.Request{Method: c.method, Path: "/crm/v8/Leads"}
		op := zoho.OperationOf(r.Method, r.Path)
		j := &job{
			Relay: &Relay{Options: Options{Clock: &register.Clock{}}}, once: !op.Repeatable,
			Delivery: &Delivery{Request: r, Operation: op, Sendings: c.sendings},
		}
		said := j.fail(envelope.DeadlineExceeded, "the deadline passed").Response.Error.Message
		if said != strings.TrimSuffix("the deadline passed; "+c.want, "; ") {
			t.Errorf("%s, %+v: %q", c.method, c.sendings, said)
		}
	}
}

// Only a path to one record says which one is deleted.
func TestDeletes(t *testing.T) {
	t.Parallel()
	for target, want := range map[[2]string]string{
		{"/crm/v8/Leads/554023000000568002", ""}:                   "554023000000568002",
		{"/crm/v8/Leads/554023000000568002", "wf_trigger=false"}:   "554023000000568002",
		{"/crm/v8/Leads", "ids=554023000000568002"}:                "",
		{"/crm/v8/Leads", "%69ds=554023000000568002"}:              "",
		{"/crm/v8/Leads/554023000000568002/actions/blueprint", ""}: "",
		{"/crm/v8/Leads/order-4711", ""}:                           "",
	} {
		j := &job{Delivery: &Delivery{
			Request: &envelope.Request{Path: target[0], RawQuery: target[1]}, Operation: zoho.OperationOf("DELETE", target[0]),
		}}
		if got := j.deletes(); got != want {
			t.Errorf("%v: %q", target, got)
		}
		j.Request.Headers = []envelope.Header{{Name: "x-external", Value: "Leads.Order_Id"}}
		if got := j.deletes(); got != "" {
			t.Errorf("%v is a record's id by an external field: %q", target, got)
		}
	}
}

// slow takes two seconds to get a token.
type slow struct{ parts }

func (slow) Token(ctx context.Context, c *connection.Connection) (token.Token, error) {
	time.Sleep(2 * time.Second)
	return parts{}.Token(ctx, c)
}

// A request whose deadline passes while a token is got for it is not sent.
func TestDeadlineWhileATokenIsGot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for deadline, want := range map[time.Duration]envelope.Code{time.Second: envelope.DeadlineExceeded, 3 * time.Second: ""} {
			for _, method := range []string{"GET", "PUT"} {
				told := &observed{}
				r := New(Options{
					Connections: parts{}, Tokens: slow{}, Responses: parts{}, Clock: &register.Clock{}, CallTimeout: time.Minute,
					Zoho: says{t: t, lookup: zoho.Answer{Status: 200}}, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
				})
				request := &envelope.Request{ID: "late", Method: method, Path: "/crm/v8/settings/fields", Deadline: time.Now().Add(deadline)}
				result := r.Do(t.Context(), &Delivery{
					Observer: told, Connection: "demo", Request: request, Operation: zoho.OperationOf(method, request.Path), ReceivedAt: time.Now(),
				})
				var code envelope.Code
				if result.Response == nil {
					t.Fatalf("%+v", result)
				}
				if e := result.Response.Error; e != nil {
					code = e.Code
				}
				if code != want || told.calls > 0 != (want == "") {
					t.Errorf("%s with %s left: code %q, %d calls", method, deadline, code, told.calls)
				}
			}
		}
	})
}

// full has no room for another body.
type full struct{}

func (full) Load(ctx context.Context, _ string) ([]byte, func(), error) {
	<-ctx.Done()
	return nil, nil, ErrNoRoom
}

// A body for which there is no room is waited for until the request's deadline, and no
// longer.
func TestNoRoomForBody(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	j := &job{
		Relay: New(Options{Clock: &register.Clock{}, Objects: full{}, Metrics: prometheus.NewRegistry()}),
		Delivery: &Delivery{Connection: "acme", Request: &envelope.Request{
			Deadline: time.Now().Add(10 * time.Millisecond), Body: envelope.Body{Kind: envelope.ObjectBody, Data: []byte("acme/large")},
		}},
	}
	result, ok := j.load(ctx)
	if ctx.Err() != nil {
		t.Fatal("it waits beyond the deadline")
	}
	if ok || result.Response == nil || result.Response.Error.Code != envelope.DeadlineExceeded || !strings.Contains(result.Response.Error.Message, ErrNoRoom.Error()) {
		t.Errorf("%+v", result)
	}
	// With time left it comes again, and whoever asks is told why.
	j.Request.Deadline = time.Now().Add(time.Hour)
	ended, end := context.WithCancel(t.Context())
	end()
	if result, ok := j.load(ended); ok || result.Wait == nil || result.Wait.Why != ErrNoRoom.Error() {
		t.Errorf("%+v", result)
	}
}
