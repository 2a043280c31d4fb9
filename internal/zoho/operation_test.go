package zoho

import (
	"strings"
	"testing"

	"zoho-worker/internal/envelope"
)

func TestOperationOf(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		method, path, name string
		repeatable, heavy  bool
		credits            int
	}{
		{"GET", "/crm/v8/Leads", "records.list", true, false, 1},
		{"GET", "/crm/v2.1/Leads/1", "records.get", true, false, 1},
		{"POST", "/crm/v8/Leads", "records.insert", false, false, 1},
		{"PUT", "/crm/v8/Leads", "records.update", true, false, 1},
		{"PUT", "/crm/v8/Leads/1", "records.update", true, false, 1},
		{"PATCH", "/crm/v8/Leads/1", "records.update", true, false, 1},
		{"DELETE", "/crm/v8/Leads", "records.delete", true, false, 1},
		{"DELETE", "/crm/v8/Leads/1", "records.delete", true, false, 1},
		{"POST", "/crm/v8/Leads/upsert", "records.upsert", false, false, 1},
		{"GET", "/crm/v8/Leads/search", "records.search", true, false, 1},
		{"GET", "/crm/v8/Leads/deleted", "records.deleted", true, false, 2},
		{"GET", "/crm/v8/Leads/actions/count", "records.count", true, false, 50},
		{"POST", "/crm/v8/Leads/actions/count", "records.count", false, false, 50},
		{"POST", "/crm/v8/Quotes/actions/mass_convert", "leads.mass_convert", false, false, 200},
		{"PUT", "/crm/v8/Leads/actions/run_scoring_rules", "records.action", false, false, 1},
		{"PATCH", "/crm/v8/Leads/actions/x", "records.action", false, false, 1},
		{"DELETE", "/crm/v8/Leads/actions/x", "records.action", false, false, 1},
		{"DELETE", "/crm/v8/Leads/1/actions/share", "records.action", false, false, 1},
		{"DELETE", "/crm/v8/Leads/1/Notes/2", "other", true, false, 1},
		{"PUT", "/crm/v8/Campaigns/1/Leads/2", "other", true, false, 1},
		{"GET", "/crm/v8/Leads/1/Notes", "related.list", true, false, 1},
		{"POST", "/crm/v8/Leads/1/Notes", "other", false, false, 1},
		{"POST", "/crm/v8/Leads/1/actions/convert", "leads.convert", false, true, 5},
		{"POST", "/crm/v8/Leads/actions/mass_convert", "leads.mass_convert", false, false, 200},
		{"POST", "/crm/v8/Deals/1/actions/send_mail", "mail.send", false, true, 20},
		{"POST", "/crm/v8/Leads/1/actions/merge", "records.merge", false, false, 50},
		{"POST", "/crm/v8/Leads/1/actions/add_tags", "records.tag", false, false, 1},
		{"POST", "/crm/v8/Leads/actions/remove_tags", "records.tag", false, false, 1},
		{"POST", "/crm/v8/settings/modules", "module.create", false, false, 500},
		{"POST", "/crm/v8/coql", "coql", true, true, 1},
		{"POST", "/crm/v8/coql/", "other", false, false, 1},
		{"POST", "/crm/v8/%63oql", "records.insert", false, false, 1}, // not known to be COQL
		{"POST", "/crm/bulk/v8/coql", "other", false, false, 1},
		{"POST", "/crm/v8/__composite_requests", "composite", false, true, 1},
		{"PUT", "/crm/v8/__composite_requests", "composite", false, true, 1},
		{"DELETE", "/crm/v8/__composite_requests", "composite", false, true, 1},
		{"POST", "/crm/v8/functions/f/actions/execute", "function", false, false, 1},
		{"GET", "/crm/v8/functions/f/actions/execute", "function", false, false, 1},
		{"POST", "/crm/bulk/v8/read", "bulk.read", false, false, 50},
		{"GET", "/crm/bulk/v8/read/1", "bulk.status", true, false, 1},
		{"GET", "/crm/bulk/v8/read/1/result", "bulk.result", true, false, 1},
		{"POST", "/crm/bulk/v8/write", "bulk.write", false, false, 500},
		{"GET", "/crm/bulk/v8/write/1", "bulk.status", true, false, 1},
		{"POST", "/crm/v8/upload", "upload", false, false, 1},
		{"POST", "/crm/v8/files", "upload", false, false, 1},
		{"GET", "/crm/v8/files", "download", true, false, 1},
		{"POST", "/crm/v8/Leads/1/Attachments", "upload", false, false, 1},
		{"GET", "/crm/v8/Leads/1/Attachments", "related.list", true, false, 1},
		{"GET", "/crm/v8/Leads/1/Attachments/2", "download", true, false, 1},
		{"GET", "/crm/v8/Leads/1/photo", "download", true, false, 1},
		{"GET", "/crm/v8/settings/modules", "settings", true, false, 1},
		{"GET", "/crm/v8/settings", "settings", true, false, 1},
		{"POST", "/crm/v8/settings/tags", "other", false, false, 1},
		{"GET", "/crm/v8/users", "other", true, false, 1},
		{"POST", "/crm/v8/users", "other", false, false, 1},
		{"POST", "/crm/v8/actions/watch", "other", false, false, 1},
		{"PUT", "/crm/v8/actions/watch", "other", true, false, 1},
		{"GET", "/crm/v8/__apis", "other", true, false, 1},
		{"POST", "/crm/v8/Leads/1/a/b/c", "other", false, false, 1},
		{"POST", "/crm/Leads", "other", false, false, 1},
		{"POST", "/crm//Leads", "other", false, false, 1},
		{"POST", "/crm/v/Leads", "other", false, false, 1},
		{"POST", "/oauth/v2/token", "other", false, false, 1},
		{"POST", "", "other", false, false, 1},
		{"OPTIONS", "/crm/v8/Leads", "other", false, false, 1},
	} {
		got := OperationOf(row.method, row.path)
		if want := (Operation{row.name, row.repeatable, row.heavy, row.credits}); got != want {
			t.Errorf("%s %s: got %+v, want %+v", row.method, row.path, got, want)
		}
	}
}

// No POST of the table is repeatable but COQL.
func TestTable(t *testing.T) {
	t.Parallel()
	for _, r := range rows {
		if r.method == "POST" && r.Repeatable && r.Name != "coql" {
			t.Errorf("%s %s is repeatable", r.method, r.pattern)
		}
		if r.Name == "" || r.Credits < 1 {
			t.Errorf("%s %s: %+v", r.method, r.pattern, r.Operation)
		}
	}
}

func TestMayRepeat(t *testing.T) {
	t.Parallel()
	const insertPath, upsertPath = "/crm/v8/Leads", "/crm/v8/Leads/upsert"
	for _, row := range []struct {
		name, method, path, body, unique string
		want                             bool
	}{
		{"get", "GET", insertPath, "", "", true},
		{"update", "PUT", insertPath, `{"data":[{"id":"1"}]}`, "", true},
		{"coql", "POST", "/crm/v8/coql", `{"select_query":"select id from Leads"}`, "", true},
		{"insert", "POST", insertPath, `{"data":[{"Last_Name":"a"}]}`, "", false},
		{"insert, unique", "POST", insertPath, `{"data":[{"Last_Name":"a","Ext":"id-1"}]}`, "Ext", true},
		{"insert, unique, trigger", "POST", insertPath, `{"trigger":[],"data":[{"Ext":"id-1"}]}`, "Ext", true},
		{"related, unique", "POST", "/crm/v8/Leads/1/Notes", `{"data":[{"Ext":"id-1"}]}`, "Ext", false},
		{"mail, unique", "POST", "/crm/v8/Leads/1/actions/send_mail", `{"data":[{"Ext":"id-1"}]}`, "Ext", false},
		{"upsert", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":["Email"]}`, "", true},
		{"upsert, a number", "POST", upsertPath, `{"data":[{"No":7}],"duplicate_check_fields":["No"]}`, "", true},
		{"upsert, either field", "POST", upsertPath, `{"data":[{"Email":"a@b"},{"Ext":"x"}],"duplicate_check_fields":["Email","Ext"]}`, "", true},
		{"upsert, no fields", "POST", upsertPath, `{"data":[{"Email":"a@b"}]}`, "", false},
		{"upsert, empty fields", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":[]}`, "", false},
		{"upsert, fields null", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":null}`, "", false},
		{"upsert, fields a string", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":"Email"}`, "", false},
		{"upsert, fields within", "POST", upsertPath, `{"data":[{"Email":"a@b","duplicate_check_fields":["Email"]}]}`, "", false},
		{"upsert, fields in another case", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"Duplicate_Check_Fields":["Email"]}`, "", false},
		{"upsert, fields twice", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":["Email"],"duplicate_check_fields":[]}`, "", false},
		{"upsert, fields twice, last right", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":[],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, a record without a value", "POST", upsertPath, `{"data":[{"Email":"a@b"},{"Email":" "}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, a record without the field", "POST", upsertPath, `{"data":[{"Email":"a@b"},{"Last_Name":"a"}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, a value twice", "POST", upsertPath, `{"data":[{"Email":"a@b","Email":"c@d"}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, something else twice", "POST", upsertPath, `{"data":[{"Email":"a@b","Last_Name":"a","Last_Name":"b"}],"duplicate_check_fields":["Email"]}`, "", true},
		{"upsert, records twice", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"data":[{"Email":"a@b"}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, no records", "POST", upsertPath, `{"data":[],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, one of the fields a number", "POST", upsertPath, `{"data":[{"Email":"a@b"}],"duplicate_check_fields":["Email",5]}`, "", false},
		{"upsert, numbers of all kinds", "POST", upsertPath, `{"data":[{"No":0},{"No":9},{"No":-1}],"duplicate_check_fields":["No"]}`, "", true},
		{"upsert, true", "POST", upsertPath, `{"data":[{"No":true}],"duplicate_check_fields":["No"]}`, "", false},
		{"upsert, value null", "POST", upsertPath, `{"data":[{"Email":null}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, no data", "POST", upsertPath, `{"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, a list", "POST", upsertPath, `[]`, "", false},
		{"upsert, a value of 100 letters", "POST", upsertPath, `{"data":[{"Email":"` + strings.Repeat("é", 100) + `"}],"duplicate_check_fields":["Email"]}`, "", true},
		{"upsert, a value that may be cut", "POST", upsertPath, `{"data":[{"Email":"` + strings.Repeat("a", 101) + `"}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, rows", "POST", upsertPath, `{"data":[{"Email":"a@b","Items":[{"Price":1}]}],"duplicate_check_fields":["Email"]}`, "", false},
		{"upsert, rows with ids", "POST", upsertPath, `{"data":[{"Email":"a@b","Items":[{"id":"7","Price":1}]}],"duplicate_check_fields":["Email"]}`, "", true},
		{"insert, unique, rows", "POST", insertPath, `{"data":[{"Ext":"id-1","Items":[{"Price":1}]}]}`, "Ext", true},
		{"update, rows", "PUT", insertPath + "/1", `{"data":[{"Items":[{"Price":1}]}]}`, "", false},
		{"update, rows with ids", "PUT", insertPath + "/1", `{"data":[{"Items":[{"id":"7","Price":1}]}]}`, "", true},
		{"update, a body that isn't JSON", "PATCH", insertPath + "/1", `x`, "", false},
		{"update of a layout, a new field", "PATCH", "/crm/v8/settings/layouts/1", `{"layouts":[{"sections":[{"id":"1","fields":[{"field_label":"x"}]}]}]}`, "", false},
		{"delete", "DELETE", insertPath + "/1", "", "", true},
		{"update without a body", "PUT", insertPath + "/1", "", "", true},
		{"composite", "PUT", "/crm/v8/__composite_requests", `{}`, "", false},
		{"function", "GET", "/crm/v8/functions/f/actions/execute", "", "", false},
	} {
		r := &envelope.Request{ID: "id-1", Method: row.method, Path: row.path, UniqueField: row.unique}
		if row.body != "" {
			r.Body = envelope.Body{Kind: envelope.JSONBody, Data: []byte(row.body)}
		}
		if got := OperationOf(r.Method, r.Path).MayRepeat(r); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
		if r.Body.Kind = envelope.ObjectBody; row.method != "GET" && row.method != "DELETE" && row.name != "coql" && OperationOf(r.Method, r.Path).MayRepeat(r) {
			t.Errorf("%s: repeatable with a body that isn't seen", row.name)
		}
	}
}

func TestDuplicateOf(t *testing.T) {
	t.Parallel()
	const real = `{"data":[{"code":"DUPLICATE_DATA","details":{"api_name":"Unique_1","duplicate_record":{"Owner":{"name":"Pranav","id":"2008662000000454001","zuid":"75092197"},"id":"2008662000006256222"},"json_path":"$.data[0].Unique_1","id":"2008662000006256222","more_records":false},"message":"duplicate data","status":"error"}]}`
	for _, row := range []struct{ body, field, want string }{
		{real, "Unique_1", "2008662000006256222"},
		{real, "Email", ""},
		{real, "", ""},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","id":"9007199254740993"}}]}`, "U", "9007199254740993"},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","duplicate_record":{"id":"7"}}}]}`, "U", "7"},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","id":"8","duplicate_record":{"id":"7"}}}]}`, "U", ""},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","id":9007199254740993}}]}`, "U", ""},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","id":"<b>"}}]}`, "U", ""},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U"}}]}`, "U", ""},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"success","details":{"api_name":"U","id":"7"}}]}`, "U", ""},
		{`{"data":[{"code":"INVALID_DATA","status":"error","details":{"api_name":"U","id":"7"}}]}`, "U", ""},
		{`{"data":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","id":"7"}},{}]}`, "U", ""},
		{`{"data":[{"code":"MULTIPLE_OR_MULTI_ERRORS","status":"error","details":{"errors":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"Email","id":"6"}},{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","duplicate_record":{"id":"7"}}}]}}]}`, "U", "7"},
		{`{"data":[{"code":"MULTIPLE_OR_MULTI_ERRORS","status":"error","details":{"errors":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"Email","id":"6"}},"x",{"code":"INVALID_DATA","status":"error","details":{"api_name":"U","id":"7"}}]}}]}`, "U", ""},
		{`{"data":[{"code":"MULTIPLE_OR_MULTI_ERRORS","status":"success","details":{"errors":[{"code":"DUPLICATE_DATA","status":"error","details":{"api_name":"U","id":"7"}}]}}]}`, "U", ""},
		{`<html>`, "U", ""},
		{``, "U", ""},
	} {
		id, ok := DuplicateOf([]byte(row.body), row.field)
		if id != row.want || ok != (row.want != "") {
			t.Errorf("%s in %s: %q %v", row.field, row.body, id, ok)
		}
	}
}

// A PUT that carries out a step of a process is no update: twice is two steps.
// https://www.zoho.com/crm/developer/docs/api/v8/update-blueprint.html
func TestBlueprintTransitionIsNotRepeatable(t *testing.T) {
	t.Parallel()
	if o := OperationOf("PUT", "/crm/v8/Leads/3652397000003931001/actions/blueprint"); o.Repeatable {
		t.Errorf("%+v", o)
	}
}

// 401 and 429 are refusals at the door, but for a function, which sets the status of
// its answer itself: there Zoho's code has to say it.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		status             int
		code               string
		function, anything bool
	}{
		{401, "", false, true},
		{401, "INVALID_TOKEN", true, true},
		{401, "AUTHENTICATION_FAILURE", true, true},
		{401, "OAUTH_SCOPE_MISMATCH", true, true},
		{401, "NO_STOCK", false, true},
		{401, "TOO_MANY_REQUESTS", false, true},
		{429, "", false, true},
		{429, "TOO_MANY_REQUESTS", true, true},
		{429, "INVALID_TOKEN", false, true},
		{429, "OAUTH_SCOPE_MISMATCH", false, true},
		{0, "", false, false},
		{200, "INVALID_TOKEN", false, false},
		{400, "INVALID_TOKEN", false, false},
		{402, "", false, false},
		{403, "OAUTH_SCOPE_MISMATCH", false, false},
		{430, "", false, false},
		{500, "TOO_MANY_REQUESTS", false, false},
		{503, "", false, false},
	} {
		for name, want := range map[string]bool{"function": row.function, "records.insert": row.anything, "": row.anything} {
			if got := (Operation{Name: name}).Refused(&Answer{Status: row.status, Code: row.code}); got != want {
				t.Errorf("%q: %d %s: %v", name, row.status, row.code, got)
			}
		}
	}
}
