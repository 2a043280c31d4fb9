package relay

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho"
)

// Every row of docs/design.md "What the worker does with Zoho's answers" and of
// "Which failures of a call may be repeated", for a request that is repeatable
// and for one that is not.
func TestJudge(t *testing.T) {
	t.Parallel()
	const notDeleted = `{"data":[{"code":"INVALID_DATA","details":{},"message":"record not deleted","status":"error"}]}`
	function := func(f *facts) { f.operation = zoho.Operation{Name: "function"} }
	doubted := func(f *facts) { f.doubt = true }
	deletion := func(f *facts) { f.doubt, f.operation = true, zoho.Operation{Name: "records.delete"} }
	cut := errors.New("connection reset by peer")
	type want struct {
		action action
		code   envelope.Code
	}
	same := func(a action, c envelope.Code) [2]want { return [2]want{{a, c}, {a, c}} }
	repeatOrLost := [2]want{{repeat, ""}, {lost, envelope.OutcomeUnknown}}
	rows := []struct {
		name   string
		answer zoho.Answer
		change func(*facts)
		want   [2]want // repeatable, not repeatable
	}{
		{"no connection was had, or the permit was refused", zoho.Answer{Unsent: true, Err: cut}, nil, same(repeat, "")},
		{"a byte may have left, no answer", zoho.Answer{Err: cut}, nil, repeatOrLost},
		{"timeout after the request was written", zoho.Answer{Err: zoho.ErrCallTimeout}, nil, repeatOrLost},

		{"200", zoho.Answer{Status: 200}, nil, same(deliver, "")},
		{"201", zoho.Answer{Status: 201}, nil, same(deliver, "")},
		{"202", zoho.Answer{Status: 202}, nil, same(deliver, "")},
		{"204", zoho.Answer{Status: 204}, nil, same(deliver, "")},
		{"207 with a failed record", zoho.Answer{Status: 207, Code: "INVALID_DATA"}, nil, same(deliver, "")},
		{"304", zoho.Answer{Status: 304}, nil, same(deliver, "")},
		{"307, which is not followed", zoho.Answer{Status: 307}, nil, same(deliver, "")},

		{"400", zoho.Answer{Status: 400, Code: "MANDATORY_NOT_FOUND"}, nil, same(deliver, "")},
		{"400 DUPLICATE_DATA, no unique_field", zoho.Answer{Status: 400, Body: duplicate("Job_Key")}, nil, same(deliver, "")},
		{"403", zoho.Answer{Status: 403, Code: "NO_PERMISSION"}, nil, same(deliver, "")},
		{"404", zoho.Answer{Status: 404}, nil, same(deliver, "")},
		{"409", zoho.Answer{Status: 409}, nil, same(deliver, "")},
		{"413", zoho.Answer{Status: 413}, nil, same(deliver, "")},
		{"422", zoho.Answer{Status: 422}, nil, same(deliver, "")},

		{"401 INVALID_TOKEN", zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, nil, same(renew, "")},
		{"401 AUTHENTICATION_FAILURE", zoho.Answer{Status: 401, Code: "AUTHENTICATION_FAILURE"}, nil, same(renew, "")},
		{"401 INVALID_OAUTHTOKEN", zoho.Answer{Status: 401, Code: "INVALID_OAUTHTOKEN"}, nil, same(renew, "")},
		{"401 INVALID_TICKET", zoho.Answer{Status: 401, Code: "INVALID_TICKET"}, nil, same(renew, "")},
		{"401 INVALID_TOKEN, a second time", zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, renewed, same(deliver, "")},
		{"401 AUTHENTICATION_FAILURE, a second time", zoho.Answer{Status: 401, Code: "AUTHENTICATION_FAILURE"}, renewed, same(deliver, "")},
		{"401 OAUTH_SCOPE_MISMATCH", zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}, nil, same(deliver, envelope.ScopeMissing)},
		{"401 OAUTH_SCOPE_MISMATCH, after a renewal", zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}, renewed, same(deliver, envelope.ScopeMissing)},
		{"401 of a function's own", zoho.Answer{Status: 401, Code: "NO_STOCK"}, function, same(deliver, "")},
		{"429 of a function's own", zoho.Answer{Status: 429}, function, same(deliver, "")},
		{"429 of a function's own, whose body is lost", zoho.Answer{Status: 429, BodyError: cut}, function, [2]want{{repeat, ""}, {lost, envelope.OutcomeUnknown}}},
		{"429 of Zoho to a function", zoho.Answer{Status: 429, Code: "TOO_MANY_REQUESTS"}, function, same(hold, "")},
		{"401 of Zoho to a function", zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, function, same(renew, "")},

		{"412", zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}, nil, same(deliver, "")},
		{"412 in doubt", zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}, doubted, same(deliver, envelope.OutcomeUnknown)},
		{"412 at another worker", zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}, func(f *facts) { f.elsewhere = true }, same(deliver, envelope.OutcomeUnknown)},
		{"a deletion at another worker, not there", zoho.Answer{Status: 400, Body: []byte(notDeleted)}, func(f *facts) {
			f.elsewhere, f.deletes, f.operation = true, "1", zoho.Operation{Name: "records.delete"}
		}, same(deliver, envelope.OutcomeUnknown)},
		{"a deletion of several in doubt, one of which isn't there", zoho.Answer{Status: 207, Body: []byte(notDeleted)}, deletion, same(deliver, envelope.OutcomeUnknown)},
		{"a deletion in doubt, delivered", zoho.Answer{Status: 200, Body: []byte(`{"data":[{"code":"SUCCESS","details":{"id":"1"},"status":"success"}]}`)}, deletion, same(deliver, "")},

		{"401 of a gateway, without a code", zoho.Answer{Status: 401}, nil, same(deliver, "")},
		{"401 whose body is lost", zoho.Answer{Status: 401, BodyError: cut}, nil, same(repeat, "")},
		{"401 whose body is lost, after a renewal", zoho.Answer{Status: 401, BodyError: cut}, renewed, same(repeat, "")},
		{"401 whose body is too large", zoho.Answer{Status: 401, TooLarge: true}, nil, same(deliver, envelope.TooLarge)},

		{"429", zoho.Answer{Status: 429, Code: "TOO_MANY_REQUESTS"}, nil, same(hold, "")},
		{"429 of a gateway", zoho.Answer{Status: 429}, nil, same(hold, "")},
		{"429 whose body is lost", zoho.Answer{Status: 429, BodyError: cut}, nil, same(hold, "")},
		{"429, after a renewal", zoho.Answer{Status: 429}, renewed, same(hold, "")},

		{"408", zoho.Answer{Status: 408}, nil, repeatOrLost},
		{"500", zoho.Answer{Status: 500, Code: "INTERNAL_ERROR"}, refused(1), repeatOrLost},
		{"500, the fourth", zoho.Answer{Status: 500, Code: "INTERNAL_ERROR"}, refused(4), repeatOrLost},
		{"500, the fifth", zoho.Answer{Status: 500, Code: "INTERNAL_ERROR"}, refused(5), [2]want{{deliver, envelope.RetriesExhausted}, {lost, envelope.OutcomeUnknown}}},
		{"502", zoho.Answer{Status: 502}, nil, repeatOrLost},
		{"503", zoho.Answer{Status: 503}, nil, repeatOrLost},
		{"503 after five times 500", zoho.Answer{Status: 503}, refused(5), repeatOrLost},
		{"504", zoho.Answer{Status: 504}, nil, repeatOrLost},
		{"500 whose body is too large", zoho.Answer{Status: 500, TooLarge: true}, refused(1), repeatOrLost},
		{"502 whose body is lost", zoho.Answer{Status: 502, BodyError: cut}, nil, repeatOrLost},
		{"501", zoho.Answer{Status: 501}, nil, same(deliver, "")},
		{"505", zoho.Answer{Status: 505}, nil, same(deliver, "")},

		{"200 whose body is too large", zoho.Answer{Status: 200, TooLarge: true, Err: zoho.ErrTooLarge}, nil, same(deliver, envelope.TooLarge)},
		{"200 whose body is lost", zoho.Answer{Status: 200, BodyError: cut}, nil, repeatOrLost},
		{"201 whose body is lost", zoho.Answer{Status: 201, BodyError: cut}, nil, repeatOrLost},
		{"400 whose body is lost", zoho.Answer{Status: 400, BodyError: cut}, nil, repeatOrLost},
	}
	for _, row := range rows {
		for i, repeatable := range []bool{true, false} {
			answer := row.answer
			f := facts{answer: &answer, repeatable: repeatable}
			if row.change != nil {
				row.change(&f)
			}
			got := judge(f)
			if got.action != row.want[i].action || got.code != row.want[i].code {
				t.Errorf("%s (repeatable %v): action %d code %q, want action %d code %q", row.name, repeatable, got.action, got.code, row.want[i].action, row.want[i].code)
			}
			if (got.code == "") != (got.message == "") {
				t.Errorf("%s: code %q with the message %q", row.name, got.code, got.message)
			}
			if got.record != "" {
				t.Errorf("%s: names the record %s", row.name, got.record)
			}
		}
	}
}

func renewed(f *facts) { f.renewed = true }

func refused(n int) func(*facts) { return func(f *facts) { f.refusals = n } }

func duplicate(field string) []byte {
	return fmt.Appendf(nil, `{"data":[{"code":"DUPLICATE_DATA","details":{"api_name":%q,"id":"5725767000000100001"},"message":"duplicate data","status":"error"}]}`, field)
}

// A DUPLICATE_DATA is success only for the field that the request named.
func TestJudgeDuplicate(t *testing.T) {
	t.Parallel()
	for field, record := range map[string]string{"Job_Key": "5725767000000100001", "Email": "", "": ""} {
		got := judge(facts{answer: &zoho.Answer{Status: 400, Code: "DUPLICATE_DATA", Body: duplicate("Job_Key")}, repeatable: field != "", uniqueField: field})
		if got.action != deliver || got.code != "" || got.record != record {
			t.Errorf("unique_field %q: %+v, want the record %q", field, got, record)
		}
	}
}

// Whatever comes back, one that is not repeatable is sent again only where it is
// proved that it was not carried out.
func TestJudgeNeverRepeatsWhatMayHaveHappened(t *testing.T) {
	t.Parallel()
	for status := 0; status < 600; status++ {
		for _, code := range []string{"", "INVALID_TOKEN", "INTERNAL_ERROR", "DUPLICATE_DATA"} {
			for flags := range 8 {
				a := zoho.Answer{Status: status, Code: code, TooLarge: flags&1 != 0}
				if flags&2 != 0 {
					a.BodyError = errors.New("cut")
				}
				f := facts{answer: &a, renewed: flags&4 != 0, refusals: flags}
				got := judge(f)
				again := got.action == repeat || got.action == renew || got.action == hold
				if again && status != 401 && status != 429 {
					t.Fatalf("%d %s: %+v", status, code, got)
				}
				if got.action == lost && (got.code != envelope.OutcomeUnknown || !strings.Contains(got.message, "look the record up")) {
					t.Fatalf("%d %s: lost without saying so: %+v", status, code, got)
				}
			}
		}
	}
}

// zoho-facts 4.1: a single failed record may come with 400, 207 or 200.
func TestOwnDuplicateWithAnyStatus(t *testing.T) {
	t.Parallel()
	const body = `{"data":[{"code":"DUPLICATE_DATA","details":{"api_name":"External_Id","id":"2008662000006256222","json_path":"$.data[0].External_Id"},"message":"duplicate data","status":"error"}]}`
	for _, status := range []int{400, 207, 202, 200} {
		v := judge(facts{answer: &zoho.Answer{Status: status, Body: []byte(body)}, repeatable: true, uniqueField: "External_Id"})
		if v.record != "2008662000006256222" {
			t.Errorf("%d: %+v", status, v)
		}
	}
}
