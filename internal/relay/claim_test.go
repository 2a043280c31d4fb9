package relay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// broken doesn't answer where a claim is to be closed.
type broken struct {
	jetstream.JetStream
	is bool
}

func (b broken) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if b.is && bytes.Contains(msg.Data, []byte(`"closed"`)) {
		return nil, errors.New("no response from stream")
	}
	return b.JetStream.PublishMsg(ctx, msg, o...)
}

// parts are a connection, a token for it, and no stored responses.
type parts struct{}

func (parts) Get(name string) (*connection.Connection, bool) {
	return &connection.Connection{Name: name, Location: "us", Environment: connection.Production, Status: connection.Active}, true
}

func (parts) Fetch(context.Context, string) (*connection.Connection, error) {
	return nil, connection.ErrNotFound
}

func (parts) Token(context.Context, *connection.Connection) (token.Token, error) {
	return token.Token{Access: secret.New("access"), Generation: 1}, nil
}

func (parts) Renew(context.Context, *connection.Connection, token.Token) (token.Token, error) {
	return token.Token{}, &token.Unavailable{Reason: token.Throttled, Until: time.Now().Add(time.Minute)}
}

func (parts) Lookup(context.Context, string, string) (*Stored, error) { return nil, nil }

// says answers the request, and the lookups of what came of it.
type says struct {
	t               *testing.T
	request, lookup zoho.Answer
}

func (s says) Do(_ context.Context, call *zoho.Call) *zoho.Answer {
	if call.Permit == nil { // repeatable
		return &s.lookup
	}
	if call.Permit() != nil || call.Timeout >= time.Minute {
		s.t.Error("what is sent once has no permit, or more time than its claim")
	}
	return &s.request
}

// observed sums up what an org is told of calls.
type observed struct{ calls, credits int }

func (o *observed) Attempted(_ *zoho.Answer, _ time.Time, credits int) {
	o.calls++
	o.credits += credits
}

func (*observed) Remaining() (int64, bool) { return 0, false }

func (*observed) Paused() time.Duration { return 0 }

// A claim is given back only where it is proved that nothing was carried out.
// One that stands says to everybody else that it may have been; one that is sealed,
// that its requester was told to look for himself. What Zoho refused at the door
// costs nothing, and a 429 is no attempt.
func TestClaimAfterwards(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	js := s.JetStream()
	s.Create(js, ledger.StreamConfig(1, time.Hour))
	clock := &register.Clock{}
	const given, stands, lost, sealed = "given back", "stands", "lost", "sealed"
	silence := zoho.Answer{Err: zoho.ErrClosed}
	found := zoho.Answer{Status: 200, Body: []byte(`{"data":[{"id":"7","R":"a"}]}`)}
	for name, c := range map[string]struct {
		answer, lookup zoho.Answer
		probed, broken bool   // its claim can't be closed
		wait           Reason // "": answered
		code           envelope.Code
		claim          string
		attempts       int
		told           observed
	}{
		"written":           {answer: zoho.Answer{Status: 201, Body: []byte(`{"data":[` + written(1) + `]}`)}, claim: stands, attempts: 1, told: observed{1, 1}},
		"invalid":           {answer: zoho.Answer{Status: 400, Body: []byte(`{"data":[` + refusedRecord("INVALID_DATA") + `]}`)}, claim: stands, attempts: 1, told: observed{1, 1}},
		"throttled":         {answer: zoho.Answer{Status: 429}, wait: WaitPause, claim: given, attempts: 0, told: observed{1, 0}},
		"no-token":          {answer: zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, wait: WaitToken, claim: given, attempts: 1, told: observed{1, 0}},
		"silence":           {answer: silence, code: envelope.OutcomeUnknown, claim: stands, attempts: 1, told: observed{1, 1}},
		"not-closed":        {answer: silence, probed: true, broken: true, wait: WaitStorage, claim: stands, attempts: 1, told: observed{1, 1}},
		"found":             {answer: silence, lookup: found, probed: true, claim: lost, attempts: 1, told: observed{2, 2}},
		"not-there-yet":     {answer: silence, lookup: zoho.Answer{Status: 204}, probed: true, wait: WaitProbe, claim: lost, attempts: 1, told: observed{2, 2}},
		"lookup-throttled":  {answer: silence, lookup: zoho.Answer{Status: 429}, probed: true, wait: WaitPause, claim: lost, attempts: 1, told: observed{2, 1}},
		"lookup-in-silence": {answer: silence, lookup: silence, probed: true, wait: WaitProbe, claim: lost, attempts: 1, told: observed{2, 2}},
		"lookup-forbidden":  {answer: silence, lookup: zoho.Answer{Status: 403}, probed: true, code: envelope.OutcomeUnknown, claim: sealed, attempts: 1, told: observed{2, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := New(Options{
				Connections: parts{}, Tokens: parts{}, Responses: parts{}, Zoho: says{t, c.answer, c.lookup}, Clock: clock,
				Ledger:      ledger.Open(broken{js, c.broken}, clock, time.Minute),
				CallTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			})
			request := &envelope.Request{
				ID: name, Method: "POST", Path: "/crm/v8/Leads", Deadline: time.Now().Add(time.Hour),
				Body: envelope.Body{Kind: envelope.JSONBody, Data: []byte(`{"data":[{"R":"a"}]}`)},
			}
			if c.probed {
				request.Probe = &envelope.Probe{Field: "R", Values: []string{"'a'"}}
			}
			told := &observed{}
			d := &Delivery{
				Observer: told, Connection: "demo", Request: request, Operation: zoho.OperationOf(request.Method, request.Path),
				ReceivedAt: time.Now(), Stopping: make(chan struct{}), Heavy: true,
			}
			result := r.Do(t.Context(), d)
			var reason Reason
			if result.Wait != nil {
				reason = result.Wait.Reason
			}
			var code envelope.Code
			if result.Response != nil && result.Response.Error != nil {
				code = result.Response.Error.Code
			}
			if reason != c.wait || code != c.code {
				t.Errorf("%+v: wait %q, code %q; want %q, %q", result, reason, code, c.wait, c.code)
			}
			if d.Sendings.Attempts != c.attempts || *told != c.told {
				t.Errorf("%d attempts, told of %+v; want %d, %+v", d.Sendings.Attempts, *told, c.attempts, c.told)
			}
			claim := given
			err := ledger.Open(js, clock, time.Minute).Look(t.Context(), "demo", name, d.Digest)
			switch {
			case errors.As(err, new(*ledger.HeldError)):
				claim = stands
			case errors.As(err, new(*ledger.LostError)):
				claim = lost
			case errors.Is(err, ledger.ErrExpired):
				claim = sealed
			case err != nil:
				t.Fatal(err)
			}
			if claim != c.claim {
				t.Errorf("the claim is %s, want %s", claim, c.claim)
			}
		})
	}
}
