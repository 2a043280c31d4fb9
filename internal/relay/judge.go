package relay

import (
	"fmt"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho"
)

// action is what follows from an attempt.
type action uint8

const (
	deliver action = iota // the answer is final
	renew                 // get another access token and send once more
	repeat                // send again after a pause
	hold                  // the org is over a limit: the request waits, and its whole queue pauses
	lost                  // it may have been carried out, nobody knows: looked up, or never sent again
)

// facts is everything a judgement depends on.
type facts struct {
	answer     *zoho.Answer
	method     string
	operation  zoho.Operation
	repeatable bool
	// uniqueField is set where the request names the field that carries its id.
	uniqueField string
	// deletes is the id of the one record that the request deletes, else "".
	deletes string
	// doubt: an earlier attempt may have been carried out, and brought no answer.
	doubt bool
	// elsewhere: so may one of another worker, if that made any.
	elsewhere bool
	// renewed: the token was already renewed for this request.
	renewed bool
	// refusals counts the answers 500 to this request, this one included.
	refusals int
}

// verdict is an action, and what the response says beside Zoho's own answer.
type verdict struct {
	action  action
	code    envelope.Code
	message string
	// record is the id of the record where the answer proves that an earlier attempt
	// of the same insert or deletion was carried out, and done what it did.
	record, done string
}

// maxRefusals is how many answers 500 a request gets before it is taken to be
// the cause itself. 502, 503 and 504 speak of Zoho, not of the request, and are
// repeated until the deadline.
const maxRefusals = 5

// judge says what follows from the facts of an attempt. It is the table of
// docs/design.md, "What the worker does with Zoho's answers", and does nothing else.
func judge(f facts) verdict {
	a := f.answer
	switch {
	case a.Status == 0 && a.Unsent:
		return verdict{action: repeat}
	case a.Status == 0:
		return f.ambiguous("no answer came")
	case a.Status == 401 && a.BodyError != nil && f.operation.Refused(a):
		// Refused at the door, and the code that says why is lost: ask again.
		return verdict{action: repeat}
	case a.Status == 401 && !a.TooLarge && f.operation.Refused(a):
		return f.unauthorized()
	case a.Status == 429 && f.operation.Refused(a):
		return verdict{action: hold}
	case a.Status == 500 && f.repeatable && f.refusals >= maxRefusals:
		return verdict{
			action: deliver, code: envelope.RetriesExhausted,
			message: fmt.Sprintf("Zoho answered 500 to each of %d attempts", f.refusals),
		}
	case a.Status == 408, a.Status >= 500 && a.Status != 501 && a.Status != 505:
		return f.ambiguous(fmt.Sprintf("Zoho answered %d", a.Status))
	case a.TooLarge:
		return verdict{
			action: deliver, code: envelope.TooLarge,
			message: "Zoho's answer is larger than a response can carry: ask for fewer records or fields",
		}
	case a.BodyError != nil && f.repeatable:
		return verdict{action: repeat}
	case a.BodyError != nil:
		return verdict{
			action: lost, code: envelope.OutcomeUnknown,
			message: fmt.Sprintf("Zoho answered %d, then the connection broke and the body is lost: look the record up before sending again", a.Status),
		}
	case a.Status < 300 && a.Status != 204 && f.operation.OfRecords() && !zoho.IsObject(a.Body):
		return f.ambiguous(fmt.Sprintf("Zoho answered %d, but with nothing that its API says", a.Status))
	case f.uniqueField != "": // with any status: zoho-facts 4.1
		if id, ok := zoho.DuplicateOf(a.Body, f.uniqueField); ok {
			return verdict{action: deliver, record: id, done: "added"}
		}
	}
	return f.settled(verdict{action: deliver})
}

// settled is for an answer that ends the request. Where an earlier sending may have
// been carried out, success is the last word on that one, too; a refusal is not,
// if it may be because of that one, or says nothing of it.
func (f facts) settled(v verdict) verdict {
	if !f.doubt && !f.elsewhere {
		return v
	}
	a := f.answer
	records := zoho.RecordsOf(a.Body)
	if a.Status < 300 && (records == nil || records.Failed == 0) {
		return v
	}
	switch {
	case f.doubt && f.deletes != "" && zoho.NotThere(a.Body):
		// Not there to be deleted any more: it was deleted then (zoho-facts 6).
		return verdict{action: deliver, record: f.deletes, done: "deleted"}
	case f.method == "DELETE":
		return f.unsettled("Zoho refused the deletion, or a part of it, and %s may have deleted it: look it up")
	case f.operation.Name == "records.insert":
		return f.unsettled("Zoho refused the insert, and %s may have been carried out: look the record up before sending again")
	case a.Status == 412, a.Code == "ALREADY_MODIFIED", records != nil && records.Codes["ALREADY_MODIFIED"] > 0:
		return f.unsettled("the record was modified since, and %s may have done that: look the record up")
	case v.code == envelope.ScopeMissing:
		return f.unsettled(v.message + "; and %s may have been carried out: look the record up")
	case a.Status == 401 && a.TokenRefused():
		return f.unsettled("Zoho refused the access token, and %s may have been carried out: look the record up")
	}
	return v
}

// unsettled says in words what an earlier sending may have done.
func (f facts) unsettled(what string) verdict {
	earlier := "an earlier sending, by another worker,"
	if f.doubt {
		earlier = "an earlier sending of this request, which brought no answer,"
	}
	return verdict{action: deliver, code: envelope.OutcomeUnknown, message: fmt.Sprintf(what, earlier)}
}

// ambiguous is for an attempt that may or may not have been carried out.
func (f facts) ambiguous(what string) verdict {
	if f.repeatable {
		return verdict{action: repeat}
	}
	return verdict{
		action: lost, code: envelope.OutcomeUnknown,
		message: what + ", and the request may have been carried out: look the record up before sending again, or name a unique_field or a probe",
	}
}

func (f facts) unauthorized() verdict {
	switch {
	case f.answer.Code == "OAUTH_SCOPE_MISMATCH":
		return f.settled(verdict{
			action: deliver, code: envelope.ScopeMissing,
			message: "the connection was not granted a scope that this call needs: re-authorize it with more scopes",
		})
	case f.answer.TokenRefused() && !f.renewed:
		return verdict{action: renew}
	}
	return f.settled(verdict{action: deliver})
}
