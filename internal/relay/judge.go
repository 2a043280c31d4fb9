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
	case a.Status == 408, a.Status == 500, a.Status == 502, a.Status == 503, a.Status == 504:
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
	case (a.Status == 400 || a.Status < 300) && f.uniqueField != "": // zoho-facts 4.1
		if id, ok := zoho.DuplicateOf(a.Body, f.uniqueField); ok {
			return verdict{action: deliver, record: id, done: "added"}
		}
	case a.Status == 412 && (f.doubt || f.elsewhere):
		return verdict{
			action: deliver, code: envelope.OutcomeUnknown,
			message: "the record was modified since, and " + f.earlier() + " may have done that: look the record up",
		}
	case (f.doubt || f.elsewhere) && f.operation.Name == "records.delete":
		return f.deleted()
	}
	return verdict{action: deliver}
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

// deleted is for a deletion that was sent before: a record that is not there to
// be deleted any more was deleted then (zoho-facts 6).
func (f facts) deleted() verdict {
	records := zoho.RecordsOf(f.answer.Body)
	switch {
	case records == nil || records.Codes["INVALID_DATA"] == 0:
		return verdict{action: deliver}
	case f.deletes != "" && f.doubt:
		return verdict{action: deliver, record: f.deletes, done: "deleted"}
	}
	return verdict{
		action: deliver, code: envelope.OutcomeUnknown,
		message: "what was to be deleted was not there, or not all of it, and " + f.earlier() + " may have deleted it: look it up",
	}
}

// earlier is what the request may have done that it finds done, in words.
func (f facts) earlier() string {
	if f.doubt {
		return "an earlier sending of this request, which brought no answer,"
	}
	return "another worker, which had this request before,"
}

func (f facts) unauthorized() verdict {
	switch {
	case f.answer.Code == "OAUTH_SCOPE_MISMATCH":
		return verdict{
			action: deliver, code: envelope.ScopeMissing,
			message: "the connection was not granted a scope that this call needs: re-authorize it with more scopes",
		}
	case f.answer.TokenRefused() && !f.renewed:
		return verdict{action: renew}
	}
	return verdict{action: deliver}
}
