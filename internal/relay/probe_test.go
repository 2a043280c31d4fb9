package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/zoho"
)

// lookups answers one lookup after the other, each after a while, and keeps what was asked.
type lookups struct {
	t       *testing.T
	answers []zoho.Answer
	takes   time.Duration
	asked   []string // paths, and the queries of COQL
}

func (l *lookups) Do(ctx context.Context, call *zoho.Call) *zoho.Answer {
	if until, ok := ctx.Deadline(); !ok || time.Until(until) > time.Minute {
		l.t.Error("a lookup may take longer than a call")
	}
	var query struct {
		Select string `json:"select_query"`
	}
	asked := call.Path
	if len(call.Body) > 0 {
		if err := json.Unmarshal(call.Body, &query); err != nil {
			l.t.Error(err)
		}
		asked = query.Select
	}
	n := len(l.asked)
	l.asked = append(l.asked, asked)
	time.Sleep(l.takes)
	if n >= len(l.answers) {
		l.t.Errorf("asked once more: %s", asked)
		return &zoho.Answer{Status: 403}
	}
	return &l.answers[n]
}

// rows is the answer to a lookup that found the records with these values.
func rows(more bool, values ...string) zoho.Answer {
	var data []string
	for i, value := range values {
		data = append(data, fmt.Sprintf(`{"id":"%d","R":%q}`, i+1, value))
	}
	return zoho.Answer{Status: 200, Body: fmt.Appendf(nil, `{"data":[%s],"info":{"more_records":%v}}`, strings.Join(data, ","), more)}
}

// What came of a lost insert is what its lookup says, from a call timeout on after it was
// lost also that it isn't there. What says neither is no word on it.
func TestLookedUp(t *testing.T) {
	t.Parallel()
	const call = time.Minute
	none, stale := zoho.Answer{Status: 204}, zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}
	cut, large := rows(false), rows(false)
	cut.BodyError, large.TooLarge = errors.New("cut"), true
	byField, byQuery, byPath := &envelope.Probe{Field: "R"}, &envelope.Probe{COQL: "R = 'v0'"}, &envelope.Probe{Path: "/crm/v8/Leads/7"}
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			probe   *envelope.Probe
			records int
			lost    time.Duration // ago
			left    time.Duration // until the deadline
			takes   time.Duration
			answers []zoho.Answer
			again   bool // it may be sent again
			wait    Reason
			least   time.Duration
			unknown int // records, -1: it waits, or is sent again
		}{
			"found at once":                  {probe: byField, records: 1, left: time.Hour, answers: []zoho.Answer{rows(false, "v0")}},
			"found by a query":               {probe: byQuery, records: 1, left: time.Hour, answers: []zoho.Answer{rows(false, "v0")}},
			"found at its path":              {probe: byPath, records: 1, left: time.Hour, answers: []zoho.Answer{rows(false, "v0")}},
			"two found by a query":           {probe: byQuery, records: 1, left: time.Hour, answers: []zoho.Answer{rows(false, "v0", "v0")}, unknown: 1},
			"not there yet":                  {probe: byField, records: 1, lost: 50 * time.Second, left: time.Hour, answers: []zoho.Answer{none}, wait: WaitProbe, least: 10 * time.Second, unknown: -1},
			"begun before it counts":         {probe: byField, records: 1, lost: 58 * time.Second, left: time.Hour, takes: 5 * time.Second, answers: []zoho.Answer{none}, wait: WaitProbe, least: 2 * time.Second, unknown: -1},
			"not there":                      {probe: byField, records: 2, lost: call, left: time.Hour, answers: []zoho.Answer{none}, again: true, unknown: -1},
			"no rows":                        {probe: byField, records: 2, lost: call, left: time.Hour, answers: []zoho.Answer{rows(false)}, again: true, unknown: -1},
			"not at its path":                {probe: byPath, records: 1, lost: call, left: time.Hour, answers: []zoho.Answer{none}, again: true, unknown: -1},
			"one of two":                     {probe: byField, records: 2, lost: call, left: time.Hour, answers: []zoho.Answer{rows(false, "v1")}, again: true, unknown: -1},
			"one of two, and there are more": {probe: byField, records: 2, lost: call, left: time.Hour, answers: []zoho.Answer{rows(true, "v1")}, unknown: 1},
			"not there, and late":            {probe: byField, records: 2, lost: call, left: -time.Second, answers: []zoho.Answer{none}, unknown: 2},
			"one of two, and late":           {probe: byField, records: 2, lost: call, left: -time.Second, answers: []zoho.Answer{rows(false, "v1")}, unknown: 1},
			"another token":                  {probe: byField, records: 1, left: time.Hour, answers: []zoho.Answer{stale, rows(false, "v0")}},
			"and no third":                   {probe: byField, records: 1, left: time.Hour, answers: []zoho.Answer{stale, stale}, unknown: 1},
			"cut off":                        {probe: byField, records: 1, lost: call, left: time.Hour, answers: []zoho.Answer{cut}, wait: WaitProbe, unknown: -1},
			"too large":                      {probe: byField, records: 1, lost: call, left: time.Hour, answers: []zoho.Answer{large}, unknown: 1},
			"busy":                           {probe: byField, records: 1, lost: call, left: time.Hour, answers: []zoho.Answer{{Status: 503, RetryAfter: 2 * time.Minute}}, wait: WaitProbe, least: 2 * time.Minute, unknown: -1},
			"throttled":                      {probe: byField, records: 1, lost: call, left: time.Hour, answers: []zoho.Answer{{Status: 429}}, wait: WaitPause, unknown: -1},
			"many, the last is missing":      {probe: byField, records: 51, lost: call, left: time.Hour, answers: []zoho.Answer{rows(false, values(50)...), none}, again: true, unknown: -1},
		} {
			zohos := &lookups{t: t, answers: c.answers, takes: c.takes}
			clock := &register.Clock{}
			probe := *c.probe
			var body []string
			for _, value := range values(c.records) {
				body = append(body, fmt.Sprintf(`{"R":%q}`, value))
				probe.Values = append(probe.Values, "'"+value+"'")
			}
			b, _ := newBatch([]byte(`{"data":[` + strings.Join(body, ",") + `]}`))
			b.doubt = true
			c0 := &job{
				Relay: New(Options{
					Connections: parts{}, Tokens: renewing{}, Clock: clock, Zoho: zohos, CallTimeout: call,
					Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
				}),
				Delivery: &Delivery{Observer: new(observed), Connection: "demo", Request: &envelope.Request{
					ID: "x", Method: "POST", Path: "/crm/v8/Leads", Deadline: clock.Now().Add(c.left), Probe: &probe,
				}},
				once: true, batch: b, lost: &ledger.LostError{Since: clock.Now().Add(-c.lost)},
			}
			c0.connection, _ = parts{}.Get("demo")
			result, again := c0.settle(t.Context())
			if again != c.again || again && b.doubt {
				t.Errorf("%s: sent again: %v, in doubt: %v", name, again, b.doubt)
			}
			var wait Wait
			if result.Wait != nil {
				wait = *result.Wait
			}
			if wait.Reason != c.wait || wait.For < c.least {
				t.Errorf("%s: waits for %q, %s", name, wait.Reason, wait.For)
			}
			if len(zohos.asked) != len(c.answers) {
				t.Errorf("%s: asked %v", name, zohos.asked)
			}
			if c.unknown >= 0 {
				var unknown int
				switch r := result.Response; {
				case r == nil:
					t.Errorf("%s: no answer: %+v", name, result)
					continue
				case r.Records != nil:
					unknown = r.Records.Codes[unknownCode]
				case r.Error != nil && r.Error.Code == envelope.OutcomeUnknown:
					unknown = c.records
				}
				if unknown != c.unknown || (result.Response.Error != nil) != (c.unknown > 0) {
					t.Errorf("%s: of %d nobody knows: %+v", name, unknown, result.Response)
				}
			}
			for _, asked := range zohos.asked {
				switch limit := strings.HasSuffix(asked, " limit 200"); {
				case c.probe == byField && (!limit || strings.Count(asked, "'") > 2*maxIn):
					t.Errorf("%s: asked %s", name, asked)
				case c.probe == byQuery && !strings.HasSuffix(asked, " limit 2"):
					t.Errorf("%s: asked %s, which can't find a second one", name, asked)
				}
			}
			if c.records > maxIn && !strings.Contains(zohos.asked[1], "('v50')") {
				t.Errorf("%s: asked %s", name, zohos.asked[1])
			}
		}
	})
}

// Of a record that failed and was lost when it was sent again, the failure is no last word.
func TestUnsettled(t *testing.T) {
	t.Parallel()
	b, _ := newBatch([]byte(`{"data":[{"R":"a"},{"R":"b"}]}`))
	b.collect(answered(207, written(1), refusedRecord("RECORD_LOCKED")), "", true, true)
	j := &job{
		Relay:    New(Options{Clock: &register.Clock{}, Metrics: prometheus.NewRegistry()}),
		Delivery: &Delivery{Observer: new(observed), Request: &envelope.Request{}}, batch: b, lost: &ledger.LostError{},
	}
	if r := j.unsettled("it can't be looked up").Response; r.Records == nil || r.Records.Codes[unknownCode] != 1 {
		t.Errorf("%+v", r)
	}
}

// values are n values of a field.
func values(n int) (v []string) {
	for i := range n {
		v = append(v, fmt.Sprint("v", i))
	}
	return v
}
