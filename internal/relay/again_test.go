package relay

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// line answers one call after the other.
type line struct {
	answers []zoho.Answer
	tokens  []string
}

func (l *line) Do(_ context.Context, call *zoho.Call) *zoho.Answer {
	answer := l.answers[len(l.tokens)]
	l.tokens = append(l.tokens, call.Token.Reveal())
	return &answer
}

// renewing has another token, once more for each that failed.
type renewing struct{ parts }

func (renewing) Renew(_ context.Context, _ *connection.Connection, failed token.Token) (token.Token, error) {
	return token.Token{Access: secret.New(failed.Access.Reveal() + "+"), Generation: failed.Generation + 1}, nil
}

// pausing is an org that is paused from the n-th call on.
type pausing struct {
	observed
	from int
}

func (p *pausing) Paused() time.Duration {
	if p.from > 0 && p.calls >= p.from-1 {
		return time.Minute
	}
	return 0
}

// What may be repeated is sent again until its answer is final, after a pause that is no
// shorter than Zoho asks for, and not while its org is paused. What an earlier sending may
// have done counts only where one may have arrived, and changes something.
func TestSentAgain(t *testing.T) {
	t.Parallel()
	silence, unsent := zoho.Answer{Err: zoho.ErrClosed}, zoho.Answer{Err: zoho.ErrRequest, Unsent: true}
	busy := func(d time.Duration) zoho.Answer { return zoho.Answer{Status: 503, RetryAfter: d} }
	done, modified := zoho.Answer{Status: 200, Body: []byte(`{}`)}, zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}
	stale, scope := zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			method  string
			answers []zoho.Answer
			before  Sendings
			paused  int // from that call on
			wait    Reason
			status  int
			code    envelope.Code
			least   time.Duration
			token   string // of the last call
		}{
			"modified":                     {method: "PUT", answers: []zoho.Answer{modified}, status: 412},
			"modified, none left before":   {method: "PUT", answers: []zoho.Answer{unsent, modified}, status: 412},
			"modified, one lost":           {method: "PUT", answers: []zoho.Answer{silence, modified}, status: 412, code: envelope.OutcomeUnknown},
			"modified, one elsewhere":      {method: "PUT", answers: []zoho.Answer{modified}, before: Sendings{Elsewhere: true}, status: 412, code: envelope.OutcomeUnknown},
			"modified, one lost long ago":  {method: "PUT", answers: []zoho.Answer{modified}, before: Sendings{Doubt: true}, status: 412, code: envelope.OutcomeUnknown},
			"a read without scope":         {method: "GET", answers: []zoho.Answer{silence, scope}, status: 401, code: envelope.ScopeMissing},
			"a read, one elsewhere":        {method: "GET", answers: []zoho.Answer{scope}, before: Sendings{Elsewhere: true}, status: 401, code: envelope.ScopeMissing},
			"another token":                {method: "GET", answers: []zoho.Answer{stale, done}, status: 200, token: "access+"},
			"and no third":                 {method: "GET", answers: []zoho.Answer{stale, stale}, status: 401, token: "access+"},
			"busy":                         {method: "GET", answers: []zoho.Answer{busy(20 * time.Second), done}, status: 200, least: 20 * time.Second},
			"busy for long":                {method: "GET", answers: []zoho.Answer{busy(time.Minute)}, wait: WaitRetry},
			"busy beyond the deadline":     {method: "GET", answers: []zoho.Answer{busy(2 * time.Hour)}, status: 503, code: envelope.DeadlineExceeded},
			"paused":                       {method: "GET", paused: 1, wait: WaitPause},
			"paused meanwhile":             {method: "GET", answers: []zoho.Answer{silence}, paused: 2, wait: WaitPause},
			"refused by a limit, one lost": {method: "PUT", answers: []zoho.Answer{silence, {Status: 429}}, wait: WaitPause},
		} {
			zohos, begun := &line{answers: c.answers}, time.Now()
			r := New(Options{
				Connections: parts{}, Tokens: renewing{}, Responses: parts{}, Clock: &register.Clock{}, CallTimeout: time.Minute,
				Zoho: zohos, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			})
			request := &envelope.Request{ID: "again", Method: c.method, Path: "/crm/v8/Leads/7", Deadline: begun.Add(time.Hour)}
			d := &Delivery{
				Observer: &pausing{from: c.paused}, Connection: "demo", Request: request, Sendings: c.before,
				Operation: zoho.OperationOf(c.method, request.Path), ReceivedAt: begun,
			}
			result := r.Do(t.Context(), d)
			var wait Reason
			var status int
			var code envelope.Code
			if result.Wait != nil {
				wait = result.Wait.Reason
			} else if status = result.Response.Status; result.Response.Error != nil {
				code = result.Response.Error.Code
			}
			if wait != c.wait || status != c.status || code != c.code {
				t.Errorf("%s: waits for %q, status %d, code %q; want %q, %d, %q", name, wait, status, code, c.wait, c.status, c.code)
			}
			calls := len(zohos.tokens)
			if calls != len(c.answers) || c.token != "" && zohos.tokens[calls-1] != c.token {
				t.Errorf("%s: called with %v, want %d calls", name, zohos.tokens, len(c.answers))
			}
			if took := time.Since(begun); took < c.least {
				t.Errorf("%s: again after %s, Zoho asked for %s", name, took, c.least)
			}
			if doubt := c.before.Doubt || c.method == "PUT" && errors.Is(c.answers[0].Err, zoho.ErrClosed); d.Sendings.Doubt != doubt {
				t.Errorf("%s: %+v", name, d.Sendings)
			}
		}
	})
}
