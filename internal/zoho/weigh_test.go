package zoho

import (
	"strings"
	"testing"

	"zoho-worker/internal/envelope"
)

// What calls cost, and which are heavy (zoho-facts 3.2, 3.3).
func TestWeigh(t *testing.T) {
	t.Parallel()
	records := func(n int) string {
		return `{"trigger":["a","b"],"data":[` + strings.TrimSuffix(strings.Repeat(`{"Last_Name":"a,b]","Tags":[1,2,{"x":"\"]"}]},`, n), ",") + `],"x":[1,2]}`
	}
	for _, row := range []struct {
		method, path, query, body string
		credits                   int
		heavy                     bool
	}{
		{"GET", "/crm/v8/Leads", "", "", 1, false},
		{"GET", "/crm/v8/Leads", "fields=Last_Name&cvid=1", "", 3, true},
		{"GET", "/crm/v8/Leads", "sort_by=id", "", 1, true},
		{"GET", "/crm/v8/Leads", "xcvid=1", "", 1, false},
		{"GET", "/crm/v8/Leads/deleted", "", "", 2, false},
		{"GET", "/crm/v8/Leads/actions/count", "", "", 50, false},
		{"POST", "/crm/v8/Leads", "", records(1), 1, false},
		{"POST", "/crm/v8/Leads", "", records(10), 1, false},
		{"POST", "/crm/v8/Leads", "", records(11), 2, true},
		{"PUT", "/crm/v8/Leads", "", records(100), 10, true},
		{"POST", "/crm/v8/Leads/upsert", "", records(21), 3, true},
		{"POST", "/crm/v8/Leads", "", `{"data":[]}`, 1, false},
		{"POST", "/crm/v8/Leads", "", `{"data":{"data":[1,2,3,4,5,6,7,8,9,10,11,12]}}`, 1, false},
		{"POST", "/crm/v8/Leads/actions/mass_delete", "", `{"ids":["1","2"]}`, 1, false},
		{"POST", "/crm/v8/coql", "", `{"select_query":"select id from Leads where a='x'"}`, 1, true},
		{"POST", "/crm/v8/coql", "", `{"select_query":"select id from Leads where a='x' LIMIT 201"}`, 2, true},
		{"POST", "/crm/v8/coql", "", `{"select_query":"select id from Leads where a='x' limit 400, 2000"}`, 3, true},
		{"POST", "/crm/v8/Leads/1/actions/convert", "", `{}`, 5, true},
		{"POST", "/crm/v8/Leads/1/actions/send_mail", "", `{}`, 20, true},
		{"POST", "/crm/bulk/v8/write", "", `{}`, 500, false},
		{"POST", "/crm/v8/__composite_requests", "", `{}`, 1, true},
	} {
		r := &envelope.Request{Method: row.method, Path: row.path, RawQuery: row.query}
		if row.body != "" {
			r.Body = envelope.Body{Kind: envelope.JSONBody, Data: []byte(row.body)}
		}
		if _, w := Weigh(r); w.Credits != row.credits || w.Heavy != row.heavy {
			t.Errorf("%s %s?%s %.60s: %+v, want %d %v", row.method, row.path, row.query, row.body, w, row.credits, row.heavy)
		}
	}
}
