package zohotest

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

const at = "2026-05-10T01:10:47-07:00"

func TestInsertBodies(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.SetUnique(demoOrg, "Leads", "Unique_1")
	b.SetMandatory(demoOrg, "Leads", "Last_Name")
	who := `{"name":"Patricia Boyle","id":"` + demoUser + `"}`
	added := func(id any) string {
		return fmt.Sprintf(`{"code":"SUCCESS","details":{"Modified_Time":"%s","Modified_By":%s,"Created_Time":"%s","id":"%s","Created_By":%s,"$approval_state":"approved"},"message":"record added","status":"success"}`, at, who, at, id, who)
	}
	got := b.call("POST", "/crm/v8/Leads", `{"data":[{"Last_Name":"Burns","Unique_1":"op-1"}],"trigger":[]}`)
	id := got.part(t, "data", 0, "details", "id")
	got.want(t, 201, `{"data":[`+added(id)+`]}`)
	if s, _ := id.(string); len(s) != 19 {
		t.Errorf("id %v", id)
	}
	duplicate := fmt.Sprintf(`{"code":"DUPLICATE_DATA","details":{"api_name":"Unique_1","duplicate_record":{"Owner":{"name":"Patricia Boyle","id":"%s","zuid":"%s"},"id":"%s"},"json_path":"$.data[0].Unique_1","id":"%s","more_records":false},"message":"duplicate data","status":"error"}`, demoUser, demoUser, id, id)
	b.call("POST", "/crm/v8/Leads", `{"data":[{"Last_Name":"Burns","Unique_1":"OP-1"}]}`).want(t, 400, `{"data":[`+duplicate+`]}`)

	got = b.call("POST", "/crm/v8/Leads", `{"data":[{"Last_Name":"A"},{"Last_Name":7},{"First_Name":"B"}]}`)
	got.want(t, 207, `{"data":[`+added(got.part(t, "data", 0, "details", "id"))+`,
		{"code":"INVALID_DATA","details":{"api_name":"Last_Name","json_path":"$.data[1].Last_Name"},"message":"the field api name given seems to be invalid","status":"error"},
		{"code":"MANDATORY_NOT_FOUND","details":{"api_name":"Last_Name","json_path":"$.data[2].Last_Name"},"message":"required field not found","status":"error"}]}`)
	if n := len(b.Records(demoOrg, "Leads")); n != 2 {
		t.Error(n, "records")
	}
	calls := b.Calls()
	if !calls[0].Applied || calls[0].RecordIDs[0] != id || calls[1].Applied || !calls[2].Applied || b.Applied("POST") != 2 {
		t.Error("the ledger is wrong about what was applied")
	}
	if b.Applied("POST", "op-1") != 1 || b.Applied("POST", id.(string)) != 1 || b.Applied("PUT") != 0 {
		t.Error("the ledger doesn't find what was applied")
	}
}

func TestWriteRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	many := strings.TrimSuffix(strings.Repeat(`{"Last_Name":"x"},`, 101), ",")
	for body, code := range map[string]string{
		`{"data":[]}`: "INVALID_DATA", `{"data":{}}`: "INVALID_DATA",
		`{}`: "MANDATORY_NOT_FOUND", `not json`: "INVALID_DATA", `{"data":[{}]} x`: "INVALID_DATA", ``: "INVALID_DATA",
	} {
		if r := b.call("POST", "/crm/v8/Leads", body); r.status != 400 || r.part(t, "code") != code {
			t.Errorf("%.30s: %d %s", body, r.status, r.body)
		}
	}
	// What refuses a write as a whole stands once in data.
	b.call("POST", "/crm/v8/Leads", `{"data":[`+many+`]}`).want(t, 400, `{"data":[{"code":"LIMIT_EXCEEDED","details":{"api_name":"data","maximum_length":100},"message":"count of records in your request exceeds the limit","status":"error"}]}`)
	b.call("PUT", "/crm/v8/1x", `{"data":[{},{}]}`).want(t, 400, `{"data":[{"code":"INVALID_MODULE","details":{"resource_path_index":0},"message":"the module name given seems to be invalid","status":"error"}]}`)
	if n := b.Applied("POST"); n != 0 {
		t.Error(n, "applied")
	}
}

func TestRecordLife(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	id := b.Seed(demoOrg, "Leads", map[string]any{"Last_Name": "Burns", "Big": json.Number("12345678901234567890.10"), "Email": "a@b.example"})[0]
	if r := b.call("GET", "/crm/v8/Leads/"+id, ""); r.status != 200 || !strings.Contains(r.body, "12345678901234567890.10") || r.part(t, "data", 0, "Owner", "id") != demoUser {
		t.Error(r.body)
	}
	since := b.clock.now().Format(time.RFC3339)
	b.call("GET", "/crm/v8/Leads/"+id, "", "If-Modified-Since", since).want(t, 304, "")
	b.call("GET", "/crm/v8/Leads?fields=Last_Name", "", "If-Modified-Since", since).want(t, 304, "")
	b.clock.pass(time.Minute)
	for _, method := range []string{"PUT", "PATCH"} {
		r := b.call(method, "/crm/v8/Leads/"+id, `{"data":[{"Last_Name":"Smithers"}]}`, "If-Unmodified-Since", b.clock.now().Format(time.RFC3339))
		if r.status != 200 || r.part(t, "data", 0, "message") != "record updated" || r.part(t, "data", 0, "details", "Modified_Time") == at {
			t.Error(r.body)
		}
	}
	if r := b.call("PUT", "/crm/v8/Leads/"+id, `{"data":[{"Last_Name":"X"}]}`, "If-Unmodified-Since", since); r.status != 412 || r.part(t, "data", 0, "code") != "ALREADY_MODIFIED" || r.part(t, "data", 0, "details", "id") != id {
		t.Error(r.status, r.body)
	}
	if r := b.call("GET", "/crm/v8/Leads/"+id+"?fields=Last_Name,Email", "", "If-Modified-Since", since); r.body != `{"data":[{"Email":"a@b.example","Last_Name":"Smithers","id":"`+id+`"}]}` {
		t.Error(r.body)
	}
	got := b.call("PUT", "/crm/v8/Leads", `{"data":[{"id":"`+id+`","Email":"c@d.example"},{"id":"1","Email":"x@y.example"}]}`)
	if got.status != 207 || got.part(t, "data", 0, "code") != "SUCCESS" || got.part(t, "data", 1, "code") != "INVALID_DATA" {
		t.Error(got.status, got.body)
	}
	if r := b.call("GET", "/crm/v8/Leads/a@x", "", "X-EXTERNAL", "Leads.Email"); r.status != 204 {
		t.Error(r.status)
	}
	if r := b.call("GET", "/crm/v8/Leads/c@d.example", "", "X-EXTERNAL", "Leads.Email"); r.part(t, "data", 0, "id") != id {
		t.Error(r.body)
	}
	b.call("DELETE", "/crm/v8/Leads/"+id, "").want(t, 200, `{"data":[{"code":"SUCCESS","details":{"id":"`+id+`"},"message":"record deleted","status":"success"}]}`)
	b.call("DELETE", "/crm/v8/Leads/"+id, "").want(t, 400, `{"code":"INVALID_DATA","details":{"resource_path_index":1},"message":"record not deleted","status":"error"}`)
	b.call("DELETE", "/crm/v8/Leads/Boyle", "").want(t, 400, `{"code":"INVALID_DATA","details":{"resource_path_index":0},"message":"invalid record id","status":"error"}`)
	b.call("DELETE", "/crm/v8/Leads?ids="+id, "").want(t, 400, `{"data":[{"code":"INVALID_DATA","details":{"id":"`+id+`"},"message":"record not deleted","status":"error"}]}`)
	b.call("GET", "/crm/v8/Leads/"+id, "").want(t, 204, "")
	if r := b.call("GET", "/crm/v8/Leads/deleted", ""); r.part(t, "data", 0, "id") != id {
		t.Error(r.body)
	}
	b.call("GET", "/crm/v8/Leads?fields=id", "").want(t, 204, "")
}

func TestUpsert(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	body := func(email, name string) string {
		return `{"data":[{"Email":"` + email + `","Last_Name":"` + name + `"}],"duplicate_check_fields":["Email"]}`
	}
	one := b.call("POST", "/crm/v8/Contacts/upsert", body("a@b.example", "A"))
	if one.status != 200 || one.part(t, "data", 0, "action") != "insert" || one.part(t, "data", 0, "message") != "record added" {
		t.Error(one.status, one.body)
	}
	b.clock.pass(time.Hour - time.Minute)
	two := b.call("POST", "/crm/v8/Contacts/upsert", body("A@b.example", "B"))
	if two.status != 200 || two.part(t, "data", 0, "action") != "update" || two.part(t, "data", 0, "duplicate_field") != "Email" ||
		two.part(t, "data", 0, "details", "id") != one.part(t, "data", 0, "details", "id") {
		t.Error(two.body)
	}
	if !strings.HasPrefix(two.body, `{"data":[{"code":"SUCCESS","duplicate_field":"Email","action":"update","details":{`) {
		t.Error(two.body)
	}
	b.call("POST", "/crm/v8/Contacts/upsert", `{"data":[{"Email":"a@b.example"}]}`) // the system field
	if rows := b.Records(demoOrg, "Contacts"); len(rows) != 1 || rows[0]["Last_Name"] != "B" {
		t.Error(rows)
	}
}

// Rows of a subform are changed by their ids and added without one, since v3; before,
// what was sent took the place of all.
func TestSubform(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	add := func(version, id, rows string) reply3 {
		return b.call("PUT", "/crm/"+version+"/Leads/"+id, `{"data":[{"Items":`+rows+`}]}`)
	}
	items := func() (list []any) {
		list, _ = b.Records(demoOrg, "Leads")[0]["Items"].([]any)
		return list
	}
	id, _ := b.call("POST", "/crm/v8/Leads", `{"data":[{"Last_Name":"A","Items":[{"N":1}]}]}`).part(t, "data", 0, "details", "id").(string)
	first, _ := items()[0].(map[string]any)["id"].(string)
	if first == "" {
		t.Fatalf("the row has no id: %v", items())
	}
	add("v8", id, `[{"N":2}]`)
	add("v8", id, `[{"N":2}]`)
	add("v8", id, `[{"id":"`+first+`","N":3}]`)
	if list := items(); len(list) != 3 || fmt.Sprint(list[0].(map[string]any)["N"]) != "3" {
		t.Errorf("%v", list)
	}
	add("v8", id, `[{"id":"`+first+`","_delete":null}]`)
	if list := items(); len(list) != 2 {
		t.Errorf("%v", list)
	}
	add("v2", id, `[{"N":9}]`)
	if list := items(); len(list) != 1 {
		t.Errorf("%v", list)
	}
	add("v8", id, `[]`)
	if list := items(); len(list) != 0 {
		t.Errorf("%v", list)
	}
	b.call("PUT", "/crm/v8/Leads/"+id, `{"data":[{"Tag":[{"name":"a"}]}]}`)
	b.call("PUT", "/crm/v8/Leads/"+id, `{"data":[{"Tag":[{"name":"a"}]}]}`)
	if tags, _ := b.Records(demoOrg, "Leads")[0]["Tag"].([]any); len(tags) != 1 {
		t.Errorf("%v", tags)
	}
}

// Two values that are there already are told in one error.
func TestTwoDuplicates(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.SetUnique(demoOrg, "Leads", "Email")
	b.SetUnique(demoOrg, "Leads", "Ext")
	const body = `{"data":[{"Last_Name":"A","Email":"a@b.example","Ext":"1"}]}`
	id := b.call("POST", "/crm/v8/Leads", body).part(t, "data", 0, "details", "id")
	r := b.call("POST", "/crm/v8/Leads", body)
	if r.status != 400 || r.part(t, "data", 0, "code") != "MULTIPLE_OR_MULTI_ERRORS" {
		t.Fatal(r.status, r.body)
	}
	for i, f := range []string{"Email", "Ext"} {
		if r.part(t, "data", 0, "details", "errors", i, "code") != "DUPLICATE_DATA" || r.part(t, "data", 0, "details", "errors", i, "details", "api_name") != f ||
			r.part(t, "data", 0, "details", "errors", i, "details", "duplicate_record", "id") != id {
			t.Errorf("%s: %s", f, r.body)
		}
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	rows := make([]map[string]any, 2500)
	for i := range rows {
		rows[i] = map[string]any{"N": i}
	}
	ids := b.Seed(demoOrg, "Leads", rows...)
	b.call("GET", "/crm/v8/Leads", "").want(t, 400, `{"code":"REQUIRED_PARAM_MISSING","details":{"param_name":"fields"},"message":"One of the expected parameter is missing","status":"error"}`)
	if r := b.call("GET", "/crm/v2/Leads", ""); r.status != 200 || r.part(t, "info", "count") != 200.0 {
		t.Error(r.status)
	}
	r := b.call("GET", "/crm/v8/Leads?fields=N&per_page=200&page=10", "")
	if r.part(t, "data", 0, "id") != ids[2499-1800] || r.part(t, "info", "more_records") != true || r.part(t, "info", "sort_by") != "id" {
		t.Error(r.part(t, "info"), r.part(t, "data", 0))
	}
	next, _ := r.part(t, "info", "next_page_token").(string)
	if over := b.call("GET", "/crm/v8/Leads?fields=N&per_page=200&page=11", ""); over.part(t, "code") != "DISCRETE_PAGINATION_LIMIT_EXCEEDED" {
		t.Error(over.body)
	}
	for range 3 {
		r = b.call("GET", "/crm/v8/Leads?fields=N&per_page=200&page_token="+next, "")
		next, _ = r.part(t, "info", "next_page_token").(string)
	}
	if r.part(t, "info", "more_records") != false || r.part(t, "info", "count") != 100.0 || r.part(t, "data", 99, "id") != ids[0] {
		t.Error(r.part(t, "info"))
	}
	previous, _ := r.part(t, "info", "previous_page_token").(string)
	for query, code := range map[string]string{
		"fields=N&per_page=100&page_token=" + previous:        "TOKEN_BOUND_DATA_MISMATCH",
		"fields=N&per_page=200&page=2&page_token=" + previous: "AMBIGUITY_DURING_PROCESSING",
		"fields=N&page_token=rubbish":                         "INVALID_DATA",
		"fields=N&per_page=201":                               "INVALID_DATA",
		"fields=a" + strings.Repeat(",a", 50):                 "LIMIT_EXCEEDED",
	} {
		if r := b.call("GET", "/crm/v8/Leads?"+query, ""); r.status != 400 || r.part(t, "code") != code {
			t.Errorf("%s: %s", query, r.body)
		}
	}
	if r := b.call("GET", "/crm/v8/Leads?fields=N&sort_by=Created_Time&sort_order=asc&per_page=1", ""); r.part(t, "data", 0, "id") != ids[0] {
		t.Error(r.body)
	}
	b.clock.pass(time.Minute)
	b.call("PUT", "/crm/v8/Leads/"+ids[7], `{"data":[{"N":"seven"}]}`)
	if r := b.call("GET", "/crm/v8/Leads?fields=N&sort_by=Modified_Time&per_page=1", ""); r.part(t, "data", 0, "N") != "seven" {
		t.Error(r.body)
	}
	if r := b.call("GET", "/crm/v8/Leads?fields=N", "", "If-Modified-Since", at); r.part(t, "info", "count") != 1.0 {
		t.Error(r.body)
	}
	b.clock.pass(25 * time.Hour)
	b.access = b.AccessToken(b.refresh)
	if r := b.call("GET", "/crm/v8/Leads?fields=N&per_page=200&page_token="+previous, ""); r.part(t, "code") != "EXPIRED_VALUE" {
		t.Error(r.body)
	}
}

func seedQueries(b *box) []string {
	return b.Seed(demoOrg, "Deals",
		map[string]any{"Deal_Name": "Tea, (black)", "Amount": 100, "Stage": "Open", "Email": "a@b.example", "Account_Name": map[string]any{"id": "9", "name": "Northwind"}},
		map[string]any{"Deal_Name": "It's coffee", "Amount": 9, "Stage": "Won", "Note": nil},
		map[string]any{"Deal_Name": "Cocoa", "Amount": 55.5, "Stage": "Open", "Note": "x"},
	)
}

func TestCOQL(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	ids := seedQueries(b)
	for query, want := range map[string]string{
		`select Deal_Name from Deals where Stage = 'open'`:                                         "02",
		`select Deal_Name from Deals where Amount > 9 and Amount <= 100`:                           "02",
		`select Deal_Name from Deals where Amount > 54 order by Amount asc`:                        "20",
		`select id from Deals where Deal_Name = 'It\'s coffee'`:                                    "1",
		`select id from Deals where Deal_Name like '%co%'`:                                         "12",
		`select id from Deals where Deal_Name not like 'C%'`:                                       "01",
		`SELECT id FROM Deals WHERE Stage in ('Won', 'Lost') OR Amount in (100)`:                   "01",
		`select id from Deals where Stage not in ('Won')`:                                          "02",
		`select id from Deals where Note is null`:                                                  "01",
		`select id from Deals where Note is not null`:                                              "2",
		`select id from Deals where ((Stage = 'Open' and Amount > 60) or Note = 'x') and id > 1`:   "02",
		`select id from Deals where Amount between 9 and 55.5`:                                     "12",
		`select id from Deals where Account_Name.name = 'northwind'`:                               "0",
		`select id from Deals where Account_Name = '9'`:                                            "0",
		`select id from Deals where id != 0 order by id desc limit 1, 5`:                           "10",
		`select id from Deals limit 2`:                                                             "01",
		`select id from Deals limit 2 offset 2`:                                                    "2",
		`select id from Deals where Created_Time >= '2026-05-10T08:10:47Z' order by id limit 0, 1`: "0",
		`select id from Deals where Stage = 'None'`:                                                "",
	} {
		body, _ := json.Marshal(map[string]string{"select_query": query})
		r := b.call("POST", "/crm/v8/coql", string(body))
		if want == "" {
			r.want(t, 204, "")
			continue
		}
		if r.status != 200 {
			t.Errorf("%s: %s", query, r.body)
			continue
		}
		got := ""
		for i := range int(r.part(t, "info", "count").(float64)) {
			for k, id := range ids {
				if r.part(t, "data", i, "id") == id {
					got += fmt.Sprint(k)
				}
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	for query, code := range map[string]string{
		`selekt id from Deals`: "SYNTAX_ERROR", `select id from Deals where Stage = 'x`: "SYNTAX_ERROR", `select id from Deals where`: "SYNTAX_ERROR",
		`select id from Deals where a = 1 b`: "SYNTAX_ERROR", `select from Deals`: "SYNTAX_ERROR", `select id from Deals where a in ()`: "SYNTAX_ERROR",
		`select id from Deals limit x`: "SYNTAX_ERROR", `select id from Deals limit 2001`: "LIMIT_EXCEEDED", `select id from Deals where a not = 1`: "SYNTAX_ERROR",
	} {
		body, _ := json.Marshal(map[string]string{"select_query": query})
		if r := b.call("POST", "/crm/v8/coql", string(body)); r.status != 400 || r.part(t, "code") != code {
			t.Errorf("%s: %s", query, r.body)
		}
	}
	if b.Applied("POST") != 0 {
		t.Error("a query was counted as a write")
	}
}

func FuzzCOQL(f *testing.F) {
	f.Add(`select a, b.c from M where (a = 'x' or b not like '%y') and c in (1, 2) order by a desc limit 1, 2`)
	f.Fuzz(func(t *testing.T, q string) {
		if s, _ := parseCOQL(q); s != nil {
			s.where(map[string]any{"a": "x"})
		}
		if c, err := parseCriteria(q); err == nil {
			c(map[string]any{"a": "x"})
		}
	})
}

func TestSearch(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, _ *Org) { o.SearchLag = time.Minute })
	ids := seedQueries(b)
	target := "/crm/v8/Deals/search?"
	b.call("GET", target+"word=coffee", "").want(t, 204, "") // the index is late
	b.clock.pass(time.Minute)
	for query, want := range map[string]string{
		"word=coffee": ids[1], "email=a@b.example": ids[0],
		"criteria=" + url.QueryEscape(`(Deal_Name:equals:Tea\, \(black\))`):                            ids[0],
		"criteria=" + url.QueryEscape(`((Stage:equals:Open)and(Deal_Name:starts_with:Co))`):            ids[2],
		"criteria=" + url.QueryEscape(`(Amount:between:50,60)`):                                        ids[2],
		"criteria=" + url.QueryEscape(`(Stage:in:Won,Lost)`):                                           ids[1],
		"criteria=" + url.QueryEscape(`((Stage:equals:Won)or(Amount:greater_than:1000)) `) + "&page=1": ids[1],
	} {
		if r := b.call("GET", target+query, ""); r.status != 200 || r.part(t, "info", "count") != 1.0 || r.part(t, "data", 0, "id") != want {
			t.Errorf("%s: %d %s", query, r.status, r.body)
		}
	}
	for _, wrong := range []string{"criteria=x", "criteria=(a:b)", "criteria=(a:equals:b", "criteria=(a:is:b)", "criteria=((a:equals:b)", ""} {
		if r := b.call("GET", target+wrong, ""); r.status != 400 {
			t.Errorf("%s: %d", wrong, r.status)
		}
	}
}

func TestPathsAndMethods(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/crm/v8", "INVALID_URL_PATTERN"},
		{"GET", "/crm/v8/", "INVALID_URL_PATTERN"},
		{"GET", "/crm/x/Leads", "INVALID_URL_PATTERN"},
		{"GET", "/crm/v8/Leads/1/2/3", "INVALID_URL_PATTERN"},
		{"GET", "/crm/v8/settings/nothing", "INVALID_URL_PATTERN"},
		{"GET", "/crm/bulk/v8/backup", "INVALID_URL_PATTERN"},
		{"GET", "/crm/bulk/v8", "INVALID_URL_PATTERN"},
		{"POST", "/crm/v8/Leads/1", "INVALID_REQUEST_METHOD"},
		{"GET", "/crm/v8/coql", "INVALID_REQUEST_METHOD"},
		{"DELETE", "/crm/v8/org", "INVALID_REQUEST_METHOD"},
		{"OPTIONS", "/crm/v8/Leads", "INVALID_REQUEST_METHOD"},
		{"GET", "/crm/v8/1x?fields=id", "INVALID_MODULE"},
		{"DELETE", "/crm/v8/Leads", "REQUIRED_PARAM_MISSING"},
	} {
		r := b.call(c.method, c.path, "")
		if r.part(t, "code") != c.want || (r.status == 404) != (c.want == "INVALID_URL_PATTERN") {
			t.Errorf("%s %s: %d %s", c.method, c.path, r.status, r.body)
		}
	}
}

func TestHeadersAndInfo(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.call("GET", "/crm/v8/org", "")
	if r.part(t, "org", 0, "company_name") != "Demo" || !strings.Contains(strings.Join(r.header.Values("Set-Cookie"), ";"), b.CookieSecret()) ||
		r.header.Get("Content-Type") != "application/json;charset=UTF-8" || r.header.Get("X-ACCESSTOKEN-RESET") != "2026-05-10T02:10:47-07:00" {
		t.Error(r)
	}
	if r := b.call("GET", "/crm/v8/users?type=CurrentUser", ""); r.part(t, "users", 0, "id") != demoUser {
		t.Error(r.body)
	}
	b.call("GET", "/crm/v8/settings/modules", "").want(t, 204, "")
	b.SeedDemo(demoOrg)
	if r := b.call("GET", "/crm/v8/settings/modules", ""); r.part(t, "modules", 3, "api_name") != "Leads" {
		t.Error(r.body)
	}
	if r := b.call("GET", "/crm/v8/Deals/actions/count", ""); r.body != `{"count":15}` {
		t.Error(r.body)
	}
	for _, d := range b.Records(demoOrg, "Deals") {
		if field(d, "Account_Name.id") == nil || field(d, "Contact_Name.name") == nil || d["Stage"] == nil {
			t.Error(d)
		}
	}
}

func TestComposite(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	r := b.call("POST", "/crm/v8/__composite_requests", `{"rollback_on_fail":false,"__composite_requests":[
		{"sub_request_id":"1","method":"POST","uri":"/crm/v8/Leads","body":{"data":[{"Last_Name":"A"}]}},
		{"sub_request_id":"2","method":"GET","uri":"/crm/v8/Leads","params":{"fields":"Last_Name"}},
		{"sub_request_id":"3","method":"GET","uri":"/crm/v8/Leads"}]}`)
	if r.status != 207 || r.part(t, "__composite_requests", 0, "details", "response", "status_code") != 201.0 ||
		r.part(t, "__composite_requests", 1, "details", "response", "body", "data", 0, "Last_Name") != "A" ||
		r.part(t, "__composite_requests", 2, "status") != "error" {
		t.Error(r.status, r.body)
	}
	if b.Applied("POST") != 1 {
		t.Error("not applied")
	}
}

func TestBulkRead(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	seedQueries(b)
	r := b.call("POST", "/crm/bulk/v8/read", `{"query":{"module":{"api_name":"Deals"},"fields":["Deal_Name","Amount"]}}`)
	id, _ := r.part(t, "data", 0, "details", "id").(string)
	if r.status != 201 || r.part(t, "data", 0, "code") != "ADDED_SUCCESSFULLY" {
		t.Fatal(r.body)
	}
	if r := b.call("GET", "/crm/bulk/v8/read/"+id, ""); r.part(t, "data", 0, "state") != "IN PROGRESS" {
		t.Error(r.body)
	}
	target, _ := b.call("GET", "/crm/bulk/v8/read/"+id, "").part(t, "data", 0, "result", "download_url").(string)
	file := b.call("GET", target, "")
	z, err := zip.NewReader(bytes.NewReader([]byte(file.body)), int64(len(file.body)))
	if err != nil || len(z.File) != 1 || file.header.Get("Content-Type") != "application/zip" {
		t.Fatal(err, file.header)
	}
	for range 9 {
		b.call("GET", target, "")
	}
	if r := b.call("GET", target, ""); r.status != 429 {
		t.Error(r.status)
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, _ *Org) { o.MaxBody = 100 })
	long := strings.Repeat("x", 101)
	if r := b.call("POST", "/crm/v8/Leads", long); r.status != 413 || r.part(t, "code") != "BODY_SIZE_REACHED" {
		t.Error(r.body)
	}
	r, _ := http.NewRequest("POST", b.http.URL+"/crm/v8/Leads", struct{ *strings.Reader }{strings.NewReader(long)}) // chunked
	r.Header.Set("Authorization", "Bearer "+b.access)
	res, err := b.client.Do(r)
	if err != nil || res.StatusCode != 413 {
		t.Error(res, err)
	}
	_ = res.Body.Close()
}
