package zoho

import (
	"strings"
	"testing"

	"zoho-worker/internal/envelope"
)

// Every weight of zoho-facts 3.2 and every heavy operation of 3.3, written down
// once more: the table of operations is judged by this one.
func TestWeigh(t *testing.T) {
	t.Parallel()
	records := func(n int) string {
		return `{"trigger":["a","b"],"data":[` + strings.TrimSuffix(strings.Repeat(`{"Last_Name":"a,b]","Tags":[1,2,{"x":"\"]"}]},`, n), ",") + `],"x":[1,2]}`
	}
	ids := func(n int) string { return strings.TrimSuffix(strings.Repeat("1,", n), ",") }
	coql := func(tail string) string { return `{"select_query":"select id from Leads where a='x'` + tail + `"}` }
	for _, row := range []struct {
		method, path, query, body string
		credits                   int
		heavy                     bool
	}{
		// 1, where nothing else is said.
		{"GET", "/crm/v8/Leads", "", "", 1, false},
		{"GET", "/crm/v2.1/Leads/1", "", "", 1, false},
		{"GET", "/crm/v8/Leads/search", "word=x", "", 1, false},
		{"GET", "/crm/v8/settings/modules", "", "", 1, false},
		{"GET", "/crm/v8/users", "", "", 1, false},
		{"DELETE", "/crm/v8/Leads/1", "", "", 1, false},
		{"DELETE", "/crm/v8/Leads", "ids=" + ids(100), "", 1, false},
		{"POST", "/crm/v8/functions/f/actions/execute", "", "{}", 1, false},
		{"GET", "/crm/bulk/v8/read/1", "", "", 1, false},
		// A list by view 3, and heavy; a sorted one is heavy.
		{"GET", "/crm/v8/Leads", "fields=Last_Name&cvid=1", "", 3, true},
		{"GET", "/crm/v8/Leads", "cvid=1&sort_by=id", "", 3, true},
		{"GET", "/crm/v8/Leads", "sort_by=id", "", 1, true},
		{"GET", "/crm/v8/Leads", "xcvid=1", "", 1, false},
		// Ids of deleted records 2, a count 50.
		{"GET", "/crm/v8/Leads/deleted", "", "", 2, false},
		{"GET", "/crm/v8/Leads/actions/count", "", "", 50, false},
		{"POST", "/crm/v8/Leads/actions/count", "", "{}", 50, false},
		// Writes 1 for each ten records; more than ten are heavy.
		{"POST", "/crm/v8/Leads", "", records(1), 1, false},
		{"POST", "/crm/v8/Leads", "", records(10), 1, false},
		{"POST", "/crm/v8/Leads", "", records(11), 2, true},
		{"POST", "/crm/v8/Leads", "", records(100), 10, true},
		{"PUT", "/crm/v8/Leads", "", records(100), 10, true},
		{"PUT", "/crm/v8/Leads/1", "", records(1), 1, false},
		{"PATCH", "/crm/v8/Leads", "", records(12), 2, true},
		{"POST", "/crm/v8/Leads/upsert", "", records(21), 3, true},
		{"POST", "/crm/v8/Leads", "", `{"data":[]}`, 1, false},
		{"POST", "/crm/v8/Leads", "", "no JSON", 1, false},
		{"POST", "/crm/v8/Leads", "", `{"data":{"data":[1,2,3,4,5,6,7,8,9,10,11,12]}}`, 1, false},
		// Tags 1 for each fifty records.
		{"POST", "/crm/v8/Leads/1/actions/add_tags", "", `{"tags":[{"name":"a"}]}`, 1, false},
		{"POST", "/crm/v8/Leads/1/actions/remove_tags", "", `{"tags":[{"name":"a"}]}`, 1, false},
		{"POST", "/crm/v8/Leads/actions/add_tags", "", `{"tags":[{"name":"a"}],"ids":[` + ids(50) + `]}`, 1, false},
		{"POST", "/crm/v8/Leads/actions/add_tags", "", `{"tags":[{"name":"a"}],"ids":[` + ids(51) + `]}`, 2, false},
		{"POST", "/crm/v8/Leads/actions/add_tags", "over_write=false&ids=" + strings.ReplaceAll(ids(101), ",", "%2C"), "", 3, false},
		{"POST", "/crm/v8/Leads/actions/remove_tags", "ids=" + ids(500), "", 10, false},
		// Mass delete 1 for each hundred.
		{"POST", "/crm/v8/Leads/actions/mass_delete", "", `{"ids":[` + ids(100) + `]}`, 1, false},
		{"POST", "/crm/v8/Leads/actions/mass_delete", "", `{"ids":[` + ids(101) + `]}`, 2, false},
		// Convert 5 and send mail 20, both heavy; merge 50, mass convert 200.
		{"POST", "/crm/v8/Leads/1/actions/convert", "", `{}`, 5, true},
		{"POST", "/crm/v8/Leads/1/actions/send_mail", "", `{}`, 20, true},
		{"POST", "/crm/v8/Leads/1/actions/merge", "", `{}`, 50, false},
		{"POST", "/crm/v8/Leads/actions/mass_convert", "", `{}`, 200, false},
		// Bulk read 50, bulk write 500, a custom module 500.
		{"POST", "/crm/bulk/v8/read", "", `{}`, 50, false},
		{"POST", "/crm/bulk/v8/write", "", `{}`, 500, false},
		{"POST", "/crm/v8/settings/modules", "", `{}`, 500, false},
		// COQL by its rows, a composite 1; both heavy.
		{"POST", "/crm/v8/coql", "", coql(""), 1, true},
		{"POST", "/crm/v8/coql", "", coql(" limit 200"), 1, true},
		{"POST", "/crm/v8/coql", "", coql(" LIMIT 201"), 2, true},
		{"POST", "/crm/v8/coql", "", coql(" limit 1000"), 2, true},
		{"POST", "/crm/v8/coql", "", coql(" limit 1001"), 3, true},
		{"POST", "/crm/v8/coql", "", coql(" limit 400, 2000"), 3, true},
		{"POST", "/crm/v8/coql", "", coql(" limit 1500, 100"), 1, true},
		{"POST", "/crm/v8/coql", "", coql(" limit 100 offset 1500"), 1, true},
		{"POST", "/crm/v8/coql", "", coql(" and Credit_Limit > 1500"), 1, true},
		{"POST", "/crm/v8/coql", "", coql(" order by Credit_Limit limit 900"), 2, true},
		{"POST", "/crm/v8/coql", "", `{"select_query":"select id from Leads limit 10","page":2000}`, 1, true},
		{"POST", "/crm/v8/coql", "", `nonsense`, 1, true},
		{"POST", "/crm/v8/__composite_requests", "", `{}`, 1, true},
		{"POST", "/crm/v8/__composite_requests", "", `{"rollback_on_fail":false,"__composite_requests":[]}`, 1, true},
		{"POST", "/crm/v8/__composite_requests", "", `{"__composite_requests":[{"rollback_on_fail":true}]}`, 1, true},
		{"POST", "/crm/v8/__composite_requests", "", `{"__composite_requests":[],"rollback_on_fail": true}`, 2, true},
		// A mail merge to download 5; an invoice that is sent is a mail, too.
		{"POST", "/crm/v8/Leads/1/actions/download_mail_merge", "", `{}`, 5, false},
		{"PUT", "/crm/v8/Invoices/1/actions/send_mail", "", `{}`, 20, true},
	} {
		r := &envelope.Request{Method: row.method, Path: row.path, RawQuery: row.query}
		if row.body != "" {
			r.Body = envelope.Body{Kind: envelope.JSONBody, Data: []byte(row.body)}
		}
		want := Weight{Credits: row.credits, Heavy: row.heavy}
		if strings.HasSuffix(row.path, "__composite_requests") {
			want.Places, want.Heavies = 5, 1 // calls in flight, zoho-facts 3.3
		}
		if w := OperationOf(r.Method, r.Path).Weigh(r); w != want || OperationOf(r.Method, r.Path).Cost(r, []byte(row.body)) != row.credits {
			t.Errorf("%s %s?%s %.60s: %+v, want %d %v", row.method, row.path, row.query, row.body, w, row.credits, row.heavy)
		}
	}
}

// Each heavy call within a composite counts for itself.
func TestWeighComposite(t *testing.T) {
	t.Parallel()
	twelve := `{"data":[` + strings.TrimSuffix(strings.Repeat(`{},`, 12), ",") + `]}`
	for _, c := range []struct {
		calls   string
		heavies int
	}{
		{`{"method":"GET","uri":"/crm/v8/Leads"},{"method":"GET","uri":"/crm/v8/Leads/search","params":{"sort_by":"id"}}`, 1},
		{`{"method":"POST","uri":"/crm/v8/coql","body":{"select_query":"select id from Leads"}},{"method":"GET","uri":"/crm/v8/Leads?sort_by=id"}`, 3},
		{`{"method":"GET","uri":"/crm/v8/Leads","params":{"fields":"id","cvid":5}},{"method":"POST","uri":"/crm/v8/Leads","body":` + twelve + `}`, 3},
		{`{"method":"POST","uri":"/crm/v8/Leads/@{1:$.data[0].details.id}/actions/convert","params":5},{"method":7,"uri":"/crm/v8/coql"}`, 2},
		{strings.TrimSuffix(strings.Repeat(`{"method":"POST","uri":"/crm/v8/coql"},`, 9), ","), 6},
	} {
		r := &envelope.Request{Method: "POST", Path: "/crm/v8/__composite_requests"}
		body := []byte(`{"__composite_requests":[` + c.calls + `],"parallel_execution":true}`)
		for _, kind := range []envelope.BodyKind{envelope.JSONBody, envelope.TextBody, envelope.ObjectBody} {
			r.Body = envelope.Body{Kind: kind, Data: body}
			want := Weight{Credits: 1, Heavy: true, Places: 5, Heavies: c.heavies}
			if kind == envelope.ObjectBody { // unseen
				want.Credits, want.Heavies = 2, 6
			}
			if w := OperationOf(r.Method, r.Path).Weigh(r); w != want {
				t.Errorf("%.60s, kind %v: %+v, want %+v", c.calls, kind, w, want)
			}
		}
	}
}

// A body that isn't seen yet is taken for the largest there can be; what the call
// costs is counted by the body that is sent. One that is sent as text or bytes is
// seen.
func TestWeighUnseen(t *testing.T) {
	t.Parallel()
	twelve := []byte(`{"data":[` + strings.TrimSuffix(strings.Repeat(`{},`, 12), ",") + `]}`)
	for _, path := range []string{"/crm/v8/Leads", "/crm/v8/Leads/upsert"} {
		r := &envelope.Request{Method: "POST", Path: path, Body: envelope.Body{Kind: envelope.ObjectBody, Data: []byte("name")}}
		if w := OperationOf(r.Method, r.Path).Weigh(r); w != (Weight{Credits: 10, Heavy: true}) || OperationOf(r.Method, r.Path).Cost(r, twelve) != 2 {
			t.Errorf("%s: %+v, and costs %d", path, w, OperationOf(r.Method, r.Path).Cost(r, twelve))
		}
		for _, kind := range []envelope.BodyKind{envelope.TextBody, envelope.BytesBody} {
			r.Body = envelope.Body{Kind: kind, Data: twelve}
			if w := OperationOf(r.Method, r.Path).Weigh(r); w != (Weight{Credits: 2, Heavy: true}) {
				t.Errorf("%s, kind %v: %+v", path, kind, w)
			}
		}
	}
	coql := &envelope.Request{Method: "POST", Path: "/crm/v8/coql", Body: envelope.Body{Kind: envelope.ObjectBody, Data: []byte("name")}}
	if w := OperationOf(coql.Method, coql.Path).Weigh(coql); w != (Weight{Credits: 3, Heavy: true}) {
		t.Errorf("a query: %+v", w)
	}
	upload := &envelope.Request{Method: "POST", Path: "/crm/v8/Leads/1/Attachments", Body: envelope.Body{Kind: envelope.ObjectBody, Data: []byte("name")}}
	if w := OperationOf(upload.Method, upload.Path).Weigh(upload); w != (Weight{Credits: 1}) {
		t.Errorf("a file: %+v", w)
	}
}
