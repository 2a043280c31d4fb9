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
}

func (b broken) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if bytes.Contains(msg.Data, []byte(`"closed"`)) {
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

// says answers every call alike.
type says zoho.Answer

func (s says) Do(context.Context, *zoho.Call) *zoho.Answer {
	answer := zoho.Answer(s)
	return &answer
}

// A claim is given back only where it is proved that nothing was carried out;
// one that stands says to everybody else that it may have been.
func TestClaimGivenBack(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	js := s.JetStream()
	s.Create(js, ledger.StreamConfig(1, time.Hour))
	clock := &register.Clock{}
	for name, c := range map[string]struct {
		answer zoho.Answer
		probed bool
		wait   Reason // "": answered
		code   envelope.Code
		stands bool
	}{
		"written":               {answer: zoho.Answer{Status: 201, Body: []byte(`{"data":[` + written(1) + `]}`)}, stands: true},
		"refused for its data":  {answer: zoho.Answer{Status: 400, Body: []byte(`{"data":[` + refusedRecord("INVALID_DATA") + `]}`)}, stands: true},
		"throttled":             {answer: zoho.Answer{Status: 429}, wait: WaitPause},
		"no token":              {answer: zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, wait: WaitToken},
		"no answer":             {answer: zoho.Answer{Err: zoho.ErrClosed}, code: envelope.OutcomeUnknown, stands: true},
		"no answer, and probed": {answer: zoho.Answer{Err: zoho.ErrClosed}, probed: true, wait: WaitStorage, stands: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := New(Options{
				Connections: parts{}, Tokens: parts{}, Responses: parts{}, Zoho: says(c.answer), Clock: clock,
				Ledger:      ledger.Open(broken{js}, clock, time.Minute),
				CallTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			})
			request := &envelope.Request{
				ID: t.Name()[len("TestClaimGivenBack/"):], Method: "POST", Path: "/crm/v8/Leads", Deadline: time.Now().Add(time.Hour),
				Body: envelope.Body{Kind: envelope.JSONBody, Data: []byte(`{"data":[{"R":"a"}]}`)},
			}
			if c.probed {
				request.Probe = &envelope.Probe{Field: "R", Values: []string{"'a'"}}
			}
			d := &Delivery{
				Connection: "demo", Request: request, Operation: zoho.OperationOf(request.Method, request.Path),
				ReceivedAt: time.Now(), Stopping: make(chan struct{}),
			}
			result := r.Do(t.Context(), d)
			switch {
			case result.Wait != nil && result.Wait.Reason != c.wait, result.Wait == nil && c.wait != "":
				t.Errorf("%+v, want a wait for %q", result, c.wait)
			case result.Response != nil && c.code == "" && result.Response.Error != nil,
				result.Response != nil && c.code != "" && (result.Response.Error == nil || result.Response.Error.Code != c.code):
				t.Errorf("answered %s, want the code %q", result.Response.AppendJSON(nil), c.code)
			}
			err := ledger.Open(js, clock, time.Minute).Look(t.Context(), "demo", request.ID, d.Digest)
			if held := errors.As(err, new(*ledger.HeldError)); held != c.stands || err != nil && !held {
				t.Errorf("of the claim others hear: %v", err)
			}
		})
	}
}
