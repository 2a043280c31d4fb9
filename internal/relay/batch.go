package relay

import (
	"fmt"
	"slices"
	"strings"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho"
)

// batch is a write taken apart into its records, and what is known of each. A
// request has one if it is probed or if its failed records are sent again. The
// zero pointer is a request that is one whole.
type batch struct {
	*envelope.Batch
	// settled is the last word on each record, nil while it is to be sent.
	settled []*zoho.Outcome
	// failed is what Zoho said of a record that failed for a passing reason.
	failed []*zoho.Outcome
	// answer is the last that said something of each record sent, and rounds
	// counts those.
	answer *zoho.Answer
	rounds int
	// looked: a probe said something of a record, and found, that it is there.
	looked, found bool
	// doubt: what is pending was sent, and nobody knows what came of that.
	doubt bool
}

func newBatch(body []byte) (*batch, bool) {
	records, ok := envelope.SplitRecords(body)
	if !ok {
		return nil, false
	}
	n := len(records.Records)
	return &batch{Batch: records, settled: make([]*zoho.Outcome, n), failed: make([]*zoho.Outcome, n)}, true
}

// maxRounds is how often the records of a request are sent at most, while some
// of them fail for a passing reason: about three minutes of newBackoff's pauses.
const maxRounds = 10

// begun reports whether something is known of single records that the next
// worker to get the request would have to find out anew.
func (b *batch) begun() bool { return b != nil && (b.rounds > 0 || b.looked) }

// pending are the places of the records that are to be sent.
func (b *batch) pending() []int {
	var places []int
	for i, o := range b.settled {
		if o == nil {
			places = append(places, i)
		}
	}
	return places
}

// body is what is to be sent: whole itself while nothing is settled.
func (b *batch) body(whole []byte) []byte {
	if b == nil {
		return whole
	}
	places := b.pending()
	if len(places) == len(b.settled) {
		return whole
	}
	return b.Body(places)
}

// collect takes in what a final answer says of each record that was sent, and
// reports whether some of them are to be sent again. probed is the field by whose
// value Zoho refuses a record that it has already, repeatable what Passing wants.
func (b *batch) collect(a *zoho.Answer, probed string, retry, repeatable bool) (again bool) {
	b.doubt = false
	places := b.pending()
	outcomes := zoho.OutcomesOf(a.Body, len(places))
	if outcomes == nil {
		// The call was refused as a whole, for each of its records.
		refusal, ok := zoho.OutcomeOf(a.Body)
		switch {
		case a.Status < 300:
			refusal = zoho.Outcome{Raw: unknownRecord, Code: unknownCode}
		case !ok || refusal.Done:
			refusal = composed(fmt.Sprint("HTTP_", a.Status), "the call was refused as a whole")
		}
		for _, i := range places {
			b.settled[i] = &refusal
		}
		return false
	}
	b.answer = a
	b.rounds++
	for n, i := range places {
		o := &outcomes[n]
		id, duplicate := zoho.Duplicate(o.Raw, probed)
		switch {
		case duplicate:
			b.find(i, id)
			continue
		case retry && b.rounds < maxRounds && zoho.Passing(o.Code, repeatable):
			b.failed[i] = o
			again = true
			continue
		}
		b.settled[i] = o
	}
	return again
}

// find settles a record that is in Zoho.
func (b *batch) find(i int, id string) {
	raw := fmt.Appendf(nil, `{"code":"SUCCESS","details":{"id":%q},"message":"record already added","status":"success"}`, id)
	b.settled[i] = &zoho.Outcome{Raw: raw, Code: "SUCCESS", Done: true}
	b.looked, b.found = true, true
}

// unknownCode stands in place of Zoho's code for a record of which nobody knows
// whether it was written.
const unknownCode = "OUTCOME_UNKNOWN"

var unknownRecord = composed(unknownCode, "it was sent and no answer came: look it up before sending it again").Raw

func composed(code, message string) zoho.Outcome {
	return zoho.Outcome{Code: code, Raw: fmt.Appendf(nil, `{"code":%q,"details":{},"message":%q,"status":"error"}`, code, message)}
}

// merge makes one answer, in the request's order, of what is known of each
// record, unless last is that answer or nothing is known of any. It returns of
// how many nobody knows whether they were written.
func (b *batch) merge(response *envelope.Response, last *zoho.Answer) (unknown int) {
	if !b.begun() || b.rounds == 1 && !b.looked && b.answer == last {
		return 0
	}
	var sum envelope.Records
	body := []byte(`{"data":[`)
	for i, o := range b.settled {
		if o == nil && !b.doubt {
			o = b.failed[i]
		}
		if o == nil {
			o = &zoho.Outcome{Raw: unknownRecord, Code: unknownCode}
		}
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, o.Raw...)
		if o.Code == unknownCode {
			unknown++
		}
		sum.Add(o.Code, o.Done)
	}
	if unknown == len(b.settled) {
		return unknown
	}
	response.Body = envelope.Body{Kind: envelope.JSONBody, Data: append(body, "]}"...)}
	response.Records, response.Status, response.Headers = &sum, 200, nil
	if b.answer != nil {
		response.Status, response.Headers = b.answer.Status, b.answer.Headers
	}
	switch {
	case sum.Failed == 0 && (response.Status == 207 || response.Status >= 300):
		response.Status = 200
	case sum.Failed > 0 && (sum.Succeeded > 0 || unknown > 0):
		response.Status = 207
	}
	if b.found {
		response.Outcome = envelope.Confirmed
	}
	return unknown
}

// absorb takes in what a lookup by field found of the pending records at places.
// A record of which there are several, or which is spelled otherwise, can't be
// told: COQL is blind to case, and who knows what that field does to a value.
func (b *batch) absorb(places []int, values []string, rows []zoho.Row, more bool) {
	for _, row := range rows {
		// One that COQL took for one of them, and that is spelled like none of them,
		// is one of those that are not found.
		if !slices.ContainsFunc(places, func(i int) bool {
			return strings.EqualFold(strings.TrimSpace(row.Value), strings.Trim(values[i], "'"))
		}) {
			more = true
		}
	}
	for _, i := range places {
		value := strings.Trim(values[i], "'")
		var ids []string
		alike := more
		for _, row := range rows {
			switch {
			case row.Value == value:
				ids = append(ids, row.ID)
			case strings.EqualFold(strings.TrimSpace(row.Value), value):
				alike = true
			}
		}
		switch {
		case len(ids) == 1:
			b.find(i, ids[0])
		case len(ids) > 1 || alike:
			b.obscure(i)
		}
	}
}

// obscure settles a record of which the probe can't tell.
func (b *batch) obscure(i int) {
	unknown := composed(unknownCode, "it was sent and no answer came, and the probe finds more than one record, or one that is spelled otherwise")
	b.settled[i], b.looked = &unknown, true
}
