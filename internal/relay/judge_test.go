package relay

import (
	"bytes"
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
	deletion := func(f *facts) {
		f.doubt, f.method, f.operation = true, "DELETE", zoho.Operation{Name: "records.delete"}
	}
	elsewhere := func(f *facts) { f.elsewhere = true }
	insertion := func(f *facts) {
		f.doubt, f.method, f.operation, f.uniqueField = true, "POST", zoho.Operation{Name: "records.insert"}, "Job_Key"
	}
	first := func(f *facts) { insertion(f); f.doubt = false }
	update := func(f *facts) { f.method, f.operation = "PUT", zoho.Operation{Name: "records.update"} }
	again := func(f *facts) { update(f); f.doubt, f.renewed = true, true }
	object := []byte(`{"data":[{"code":"SUCCESS","details":{"id":"1"},"status":"success"}]}`)
	refusals := func(codes ...string) []byte {
		for i := range codes {
			codes[i] = refusedRecord(codes[i])
		}
		return []byte(`{"data":[` + strings.Join(codes, ",") + `]}`)
	}
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
		{"401 of a function's own, whose body is lost", zoho.Answer{Status: 401, BodyError: cut}, function, [2]want{{repeat, ""}, {lost, envelope.OutcomeUnknown}}},
		{"429 of a function's own, whose body is lost", zoho.Answer{Status: 429, BodyError: cut}, function, [2]want{{repeat, ""}, {lost, envelope.OutcomeUnknown}}},
		{"429 of Zoho to a function", zoho.Answer{Status: 429, Code: "TOO_MANY_REQUESTS"}, function, same(hold, "")},
		{"401 of Zoho to a function", zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, function, same(renew, "")},

		{"412", zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}, nil, same(deliver, "")},
		{"412 in doubt", zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}, doubted, same(deliver, envelope.OutcomeUnknown)},
		{"412 in doubt, without a code", zoho.Answer{Status: 412}, doubted, same(deliver, envelope.OutcomeUnknown)},
		{"a record modified since, in doubt", zoho.Answer{Status: 400, Code: "ALREADY_MODIFIED"}, doubted, same(deliver, envelope.OutcomeUnknown)},
		{"412 at another worker", zoho.Answer{Status: 412, Code: "ALREADY_MODIFIED"}, elsewhere, same(deliver, envelope.OutcomeUnknown)},
		{"of two records in doubt, one modified since", zoho.Answer{Status: 207, Body: refusals("ALREADY_MODIFIED", "INVALID_DATA")}, doubted, same(deliver, envelope.OutcomeUnknown)},
		{"of two records, one modified since", zoho.Answer{Status: 207, Body: refusals("ALREADY_MODIFIED", "INVALID_DATA")}, nil, same(deliver, "")},
		{"an update in doubt, refused for itself", zoho.Answer{Status: 400, Code: "INVALID_DATA", Body: refusals("INVALID_DATA")}, again, same(deliver, "")},
		{"an update in doubt, whose second token is refused", zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, again, same(deliver, envelope.OutcomeUnknown)},
		{"an update in doubt, without the scope", zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}, again, same(deliver, envelope.OutcomeUnknown)},
		{"an update, without the scope", zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}, update, same(deliver, envelope.ScopeMissing)},
		{"an update in doubt, 401 of a gateway", zoho.Answer{Status: 401}, again, same(deliver, "")},
		{"an update in doubt, carried out now", zoho.Answer{Status: 200, Body: object}, again, same(deliver, "")},

		{"an insert in doubt, carried out now", zoho.Answer{Status: 201, Body: object}, insertion, same(deliver, "")},
		{"an insert in doubt, whose second token is refused", zoho.Answer{Status: 401, Code: "INVALID_TOKEN"}, func(f *facts) { insertion(f); renewed(f) }, same(deliver, envelope.OutcomeUnknown)},
		{"an insert in doubt, without the scope", zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}, insertion, same(deliver, envelope.OutcomeUnknown)},
		{"an insert in doubt, without permission", zoho.Answer{Status: 403, Code: "NO_PERMISSION"}, insertion, same(deliver, envelope.OutcomeUnknown)},
		{"an insert in doubt, another of its values is there", zoho.Answer{Status: 400, Body: duplicate("Email")}, insertion, same(deliver, envelope.OutcomeUnknown)},
		{"an insert in doubt, refused in a 200", zoho.Answer{Status: 200, Body: refusals("DEPENDENT_SERVICE_ERROR")}, insertion, same(deliver, envelope.OutcomeUnknown)},
		{"an insert in doubt, one of its records refused", zoho.Answer{Status: 207, Body: fmt.Appendf(nil, `{"data":[%s,{"code":"SUCCESS","status":"success"}]}`, refusedRecord("INVALID_DATA"))}, insertion, same(deliver, envelope.OutcomeUnknown)},
		{"an insert in doubt, redirected", zoho.Answer{Status: 300}, insertion, same(deliver, envelope.OutcomeUnknown)},
		{"an insert, redirected", zoho.Answer{Status: 300}, first, same(deliver, "")},
		{"an insert, another of its values is there", zoho.Answer{Status: 400, Body: duplicate("Email")}, first, same(deliver, "")},
		{"an insert, without the scope", zoho.Answer{Status: 401, Code: "OAUTH_SCOPE_MISMATCH"}, first, same(deliver, envelope.ScopeMissing)},
		{"an insert at another worker, refused", zoho.Answer{Status: 400, Body: refusals("INVALID_DATA")}, func(f *facts) { first(f); elsewhere(f) }, same(deliver, envelope.OutcomeUnknown)},

		{"an insert, a page with 200", zoho.Answer{Status: 200, Body: []byte("<html>")}, first, repeatOrLost},
		{"an insert, half an object with 201", zoho.Answer{Status: 201, Body: object[:40]}, first, repeatOrLost},
		{"an insert, nothing with 201", zoho.Answer{Status: 201}, first, repeatOrLost},
		{"an update, a page with 200", zoho.Answer{Status: 200, Body: []byte("<html>")}, update, repeatOrLost},
		{"a deletion, a page with 200", zoho.Answer{Status: 200, Body: []byte("<html>")}, func(f *facts) { deletion(f); f.doubt = false }, repeatOrLost},
		{"an update, 204", zoho.Answer{Status: 204}, update, same(deliver, "")},
		{"an insert, a page with 400", zoho.Answer{Status: 400, Body: []byte("<html>")}, first, same(deliver, "")},

		{"a deletion at another worker, not there", zoho.Answer{Status: 400, Body: []byte(notDeleted)}, func(f *facts) {
			f.elsewhere, f.method, f.deletes, f.operation = true, "DELETE", "1", zoho.Operation{Name: "records.delete"}
		}, same(deliver, envelope.OutcomeUnknown)},
		{"a deletion of something else in doubt, not there", zoho.Answer{Status: 404}, func(f *facts) {
			f.doubt, f.method, f.operation = true, "DELETE", zoho.Operation{Name: "other"}
		}, same(deliver, envelope.OutcomeUnknown)},
		{"a deletion of something else, not there", zoho.Answer{Status: 404}, func(f *facts) { f.method = "DELETE" }, same(deliver, "")},
		{"a deletion of several in doubt, one of which isn't there", zoho.Answer{Status: 207, Body: []byte(notDeleted)}, deletion, same(deliver, envelope.OutcomeUnknown)},
		{"a deletion in doubt, delivered", zoho.Answer{Status: 200, Body: object}, deletion, same(deliver, "")},

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
		{"507", zoho.Answer{Status: 507}, nil, repeatOrLost},
		{"520 of a proxy", zoho.Answer{Status: 520}, nil, repeatOrLost},
		{"524 of a proxy", zoho.Answer{Status: 524}, nil, repeatOrLost},
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
	for field, record := range map[string]string{"Job_Key": "5725767000000100001", "Company": "", "": ""} {
		got := judge(facts{answer: &zoho.Answer{Status: 400, Code: "DUPLICATE_DATA", Body: duplicate("Job_Key")}, repeatable: field != "", uniqueField: field})
		if got.action != deliver || got.code != "" || got.record != record {
			t.Errorf("unique_field %q: %+v, want the record %q", field, got, record)
		}
		both := fmt.Appendf(nil, `{"data":[{"code":"MULTIPLE_OR_MULTI_ERRORS","details":{"errors":[%s,%s]},"message":"multiple errors occurred","status":"error"}]}`,
			bytes.TrimSuffix(bytes.TrimPrefix(duplicate("Email"), []byte(`{"data":[`)), []byte(`]}`)),
			bytes.TrimSuffix(bytes.TrimPrefix(duplicate("Job_Key"), []byte(`{"data":[`)), []byte(`]}`)))
		got = judge(facts{answer: &zoho.Answer{Status: 400, Body: both}, repeatable: field != "", uniqueField: field})
		if got.action != deliver || got.code != "" || got.record != record {
			t.Errorf("unique_field %q, one of two: %+v, want the record %q", field, got, record)
		}
	}
}

// One record that is not there to be deleted any more was deleted before, whether Zoho
// says so of the record or of the call.
func TestJudgeDeleted(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"code":"INVALID_DATA","message":"record not deleted","details":{"resource_path_index":1},"status":"error"}`,
		`{"data":[{"code":"INVALID_DATA","details":{"id":"7"},"message":"record not deleted","status":"error"}]}`,
	} {
		f := facts{
			answer: &zoho.Answer{Status: 400, Code: "INVALID_DATA", Body: []byte(body)}, method: "DELETE",
			operation: zoho.Operation{Name: "records.delete"}, repeatable: true, deletes: "7",
		}
		if v := judge(f); v.action != deliver || v.record != "" || v.code != "" {
			t.Errorf("without a doubt: %+v", v)
		}
		f.doubt = true
		if v := judge(f); v.action != deliver || v.record != "7" || v.done != "deleted" || v.code != "" {
			t.Errorf("in doubt: %+v", v)
		}
		for _, other := range []string{
			refusedRecord("RECORD_LOCKED"), `{"data":[` + refusedRecord("INVALID_DATA") + `]}`,
			`{"code":"INVALID_DATA","message":"invalid record id","details":{"resource_path_index":0},"status":"error"}`,
			`{"code":"INVALID_DATA","message":"either the request body or parameters is in wrong format","details":{"resource_path_index":1},"status":"error"}`,
			`{"code":"X","message":"record not deleted","status":"error"}`, `<html>record not deleted</html>`,
		} {
			f.answer.Code, f.answer.Body = "INVALID_DATA", []byte(other)
			if v := judge(f); v.record != "" || v.code != envelope.OutcomeUnknown {
				t.Errorf("%s: %+v", other, v)
			}
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
	for _, status := range []int{400, 207, 202, 200, 409, 422} {
		v := judge(facts{answer: &zoho.Answer{Status: status, Body: []byte(body)}, repeatable: true, uniqueField: "External_Id"})
		if v.record != "2008662000006256222" {
			t.Errorf("%d: %+v", status, v)
		}
	}
}
