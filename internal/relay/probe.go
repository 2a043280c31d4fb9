package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/trace"
	"zoho-worker/internal/zoho"
)

// maxIn is how many values a list of COQL may have (zoho-facts 4.3).
const maxIn = 50

// settle finds out what came of a lost request, by its probe. It returns true
// where the records still pending were not carried out, and may be sent again
// under a new claim.
//
// Found is found, at any time. That something isn't there counts only from a
// lookup that began a call timeout or more after the request was given up:
// before, Zoho may still be at it. Zoho promises no bound; one call timeout after
// the connection was cut is what the worker grants every other call.
func (j *job) settle(ctx context.Context) (Result, bool) {
	passed := j.Clock.Passed(j.lost.Since) // when the first lookup began
	for {
		answer := j.look(ctx)
		if answer == nil {
			break
		}
		switch judge(facts{answer: answer, repeatable: true, renewed: j.renewed}).action {
		case renew:
			j.renewed = true
			var err error
			if j.access, err = j.Tokens.Renew(ctx, j.connection, j.access); err != nil {
				return j.withoutToken(err), false
			}
		case hold:
			return j.wait(WaitPause, 0), false
		case repeat:
			return j.wait(WaitProbe, max(answer.RetryAfter, storagePause())), false
		case deliver, lost:
			what := fmt.Sprintf("the probe can't be answered: Zoho said %d %s", answer.Status, answer.Code)
			return j.unsettled(strings.TrimSpace(what)), false
		}
	}
	quiet := j.CallTimeout - passed
	switch {
	case len(j.batch.pending()) == 0:
		return j.conclude(verdict{action: deliver}), false
	case j.left() <= 0:
		return j.unsettled("the deadline passed before it could be sent again"), false
	case quiet > 0:
		return j.wait(WaitProbe, quiet+time.Millisecond), false
	}
	j.batch.doubt = false
	return Result{}, true
}

// look looks for the pending records and settles those that it finds. Where it
// couldn't look it returns the answer that says why.
func (j *job) look(ctx context.Context) *zoho.Answer {
	p, places := j.Request.Probe, j.batch.pending()
	if p.Field == "" {
		return j.lookOne(ctx, p, places)
	}
	for part := range slices.Chunk(places, maxIn) {
		values := make([]string, 0, len(part))
		for _, i := range part {
			values = append(values, p.Values[i])
		}
		answer, rows, more := j.query(ctx, p.Field, p.Field+" in ("+strings.Join(values, ",")+") limit 200")
		if answer != nil {
			return answer
		}
		j.batch.absorb(part, p.Values, rows, more)
	}
	return nil
}

// lookOne looks for the one record of a request.
func (j *job) lookOne(ctx context.Context, p *envelope.Probe, places []int) (answer *zoho.Answer) {
	var rows []zoho.Row
	if p.COQL != "" {
		answer, rows, _ = j.query(ctx, "", p.COQL+" limit 2")
	} else {
		answer, rows, _ = j.found(j.ask(ctx, &zoho.Call{Method: "GET", Path: p.Path, RawQuery: p.RawQuery, Headers: p.Headers}, 1), "")
	}
	switch {
	case answer != nil:
	case len(rows) == 1:
		j.batch.find(places[0], rows[0].ID)
	case len(rows) > 1:
		j.batch.obscure(places[0])
	}
	return answer
}

// query asks by COQL for the ids, and one field, of records of the request's module.
func (j *job) query(ctx context.Context, field, condition string) (*zoho.Answer, []zoho.Row, bool) {
	root, module := j.Request.Path[:strings.LastIndexByte(j.Request.Path, '/')], j.Request.Path[strings.LastIndexByte(j.Request.Path, '/')+1:]
	columns := "id"
	if field != "" {
		columns += ", " + field
	}
	body, err := json.Marshal(map[string]string{"select_query": "select " + columns + " from " + module + " where " + condition})
	if err != nil {
		return &zoho.Answer{Unsent: true, Err: err}, nil, false
	}
	return j.found(j.ask(ctx, &zoho.Call{Method: "POST", Path: root + "/coql", ContentType: "application/json", Body: body}, 1), field)
}

// found reads the answer to a lookup; it returns it where it says neither that
// there are records nor that there are none: 204 (zoho-facts 4.1).
func (j *job) found(a *zoho.Answer, field string) (*zoho.Answer, []zoho.Row, bool) {
	switch {
	case a.Status == 204:
		return nil, nil, false
	case a.Status == 200 && a.BodyError == nil && !a.TooLarge:
		if rows, more, ok := zoho.RowsOf(a.Body, field); ok {
			return nil, rows, more
		}
	}
	return a, nil, false
}

// ask sends a lookup once. It costs so many credits.
func (j *job) ask(ctx context.Context, call *zoho.Call, credits int) *zoho.Answer {
	ctx, cancel := context.WithTimeout(ctx, j.CallTimeout)
	defer cancel()
	ctx, span := trace.BeginCall(ctx, "probe")
	defer span.End()
	return j.exchange(ctx, call, credits)
}

// unsettled answers a lost request of which nothing more can be found out.
func (j *job) unsettled(why string) Result {
	if j.batch != nil {
		j.batch.doubt = true
	}
	return j.conclude(verdict{
		action: lost, code: envelope.OutcomeUnknown,
		message: "the request was sent and no answer came; " + why + ": look the record up before sending again",
	})
}
