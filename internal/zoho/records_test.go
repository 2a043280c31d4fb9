package zoho

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"zoho-worker/internal/envelope"
)

func TestRecordsOf(t *testing.T) {
	t.Parallel()
	const ok = `{"code":"SUCCESS","details":{"id":"1"},"message":"record added","status":"success"}`
	const bad = `{"code":"INVALID_DATA","details":{},"message":"invalid data","status":"error"}`
	for name, c := range map[string]struct {
		body string
		want *envelope.Records
	}{
		"all well":      {`{"data":[` + ok + `,` + ok + `]}`, &envelope.Records{Succeeded: 2}},
		"207":           {`{"data":[` + ok + `,` + bad + `]}`, &envelope.Records{Succeeded: 1, Failed: 1, Codes: map[string]int{"INVALID_DATA": 1}}},
		"200 error":     {`{"data":[` + bad + `]}`, &envelope.Records{Failed: 1, Codes: map[string]int{"INVALID_DATA": 1}}},
		"a list":        {`{"data":[{"Last_Name":"x","status":"open"}]}`, nil},
		"no data":       {`{"code":"INVALID_MODULE","status":"error"}`, nil},
		"no JSON":       {`<html>"status"</html>`, nil},
		"nothing":       {``, nil},
		"other results": {`{"actions":[` + ok + `]}`, nil},
		"empty data":    {`{"data":[]}`, nil},
		"cut off":       {`{"data":[` + ok + `,` + bad, nil},
		"more behind":   {`{"data":[` + ok + `]}{"status"`, nil},
		"data twice":    {`{"data":[` + ok + `],"data":[` + bad + `]}`, nil},
		"no object":     {`{"data":["status"]}`, nil},
		"no code":       {`{"data":[{"status":"error"}]}`, &envelope.Records{Failed: 1, Codes: map[string]int{"": 1}}},
		"odd code":      {`{"data":[{"code":429,"status":"error"}]}`, nil},
		"odd status":    {`{"data":[{"code":"X","status":null}]}`, nil},
		"escaped":       {`{"data":[{"code":"A\u0042","status":"\u0065rror"}]}`, &envelope.Records{Failed: 1, Codes: map[string]int{"AB": 1}}},
		"with others":   {` { "info" : {"data":[1]} , "data" : [ ` + bad + ` , ` + ok + ` ] } `, &envelope.Records{Succeeded: 1, Failed: 1, Codes: map[string]int{"INVALID_DATA": 1}}},
	} {
		if got := RecordsOf([]byte(c.body)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

// What is logged and shown as Zoho's code looks like one.
func TestCodeOfAnAnswer(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{
		"TOO_MANY_REQUESTS": "TOO_MANY_REQUESTS", "oauth.mismatch-2": "oauth.mismatch-2",
		`a\nlevel=ERROR`: "", `\u001b]0;x`: "", `\u009b2J`: "", "Access Denied": "Access Denied", strings.Repeat("X", 101): "", "": "",
	} {
		for _, body := range []string{`{"code":"` + code + `"}`, `{"error":"` + code + `"}`, `{"data":[{"code":"` + code + `"}]}`} {
			if got := readFault(429, []byte(body)).code; got != want {
				t.Errorf("%s: %q, want %q", body, got, want)
			}
		}
	}
}

func TestOutcomesOf(t *testing.T) {
	t.Parallel()
	const ok = `{"code":"SUCCESS","details":{"id":"1"},"message":"record added","status":"success"}`
	const bad = `{"code":"INVALID_DATA","details":{},"message":"invalid data","status":"error"}`
	got := OutcomesOf([]byte(`{"data":[`+ok+`, `+bad+`]}`), 2)
	if len(got) != 2 || !got[0].Done || string(got[0].Raw) != ok || got[1].Done || got[1].Code != "INVALID_DATA" || string(got[1].Raw) != bad {
		t.Errorf("%+v", got)
	}
	for body, n := range map[string]int{
		`{"data":[` + ok + `]}`: 2, `{"data":[` + ok + `,` + ok + `]}`: 1, `{"data":[{"Last_Name":"x"}]}`: 1, `{"data":[1]}`: 1,
		`{"code":"INVALID_MODULE","status":"error"}`: 1, `<html>`: 1, ``: 1,
	} {
		if got := OutcomesOf([]byte(body), n); got != nil {
			t.Errorf("%s for %d records is %+v", body, n, got)
		}
	}
}

// The table of passing codes is the one in docs/zoho-facts.md.
func TestPassing(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/zoho-facts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "| code of a record | sent again |")
	if !ok {
		t.Fatal("the table is not there")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for code, certain := range passing {
		want := "| `" + code + "` | yes |"
		if !certain {
			want = "| `" + code + "` | only what may be written twice |"
		}
		if !strings.Contains(table, want) {
			t.Errorf("the page doesn't say %s", want)
		}
		if !Passing(code, true) || Passing(code, false) != certain {
			t.Errorf("%s passes: %v, %v", code, Passing(code, true), Passing(code, false))
		}
	}
	if n := strings.Count(table, "\n| `"); n != len(passing) {
		t.Errorf("the page has %d codes, the code %d", n, len(passing))
	}
	for _, code := range []string{"", "SUCCESS", "INVALID_DATA", "DUPLICATE_DATA", "ALREADY_MODIFIED", "LIMIT_EXCEEDED", "record_locked"} {
		if Passing(code, true) {
			t.Errorf("%q passes", code)
		}
	}
}

func TestRowsOf(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][]Row{
		`{"data":[{"id":"17","Ref":"a"},{"id":"18","Ref":5}],"info":{"more_records":false}}`: {{"17", "a"}, {"18", "5"}},
		`{"data":[{"id":"17"},{"id":"18","Ref":null}]}`:                                      {{"17", ""}, {"18", ""}},
		`{"data":[]}`: {},
	} {
		rows, more, ok := RowsOf([]byte(body), "Ref")
		if !ok || more || !slices.Equal(rows, want) {
			t.Errorf("%s: %v %v %v", body, rows, more, ok)
		}
	}
	if _, more, ok := RowsOf([]byte(`{"data":[{"id":"17"}],"info":{"more_records":true}}`), ""); !ok || !more {
		t.Error("more records are overlooked")
	}
	for _, body := range []string{``, `[]`, `{}`, `{"data":{}}`, `{"data":[{"Ref":"a"}]}`, `{"data":[{"id":17}]}`, `{"data":[{"id":"x"}]}`} {
		if rows, _, ok := RowsOf([]byte(body), "Ref"); ok {
			t.Errorf("%s has rows: %v", body, rows)
		}
	}
}

func TestCost(t *testing.T) {
	t.Parallel()
	body := func(n int) []byte {
		return []byte(`{"data":[` + strings.TrimSuffix(strings.Repeat(`{"a":[1,2]},`, n), ",") + `]}`)
	}
	for _, c := range []struct {
		method, path, query string
		body                []byte
		want                int
	}{
		{"GET", "/crm/v8/Leads/17", "", nil, 1},
		{"GET", "/crm/v8/Leads", "fields=id&cvid=17", nil, 3},
		{"GET", "/crm/v8/Leads", "fields=id", nil, 1},
		{"GET", "/crm/v8/Leads/actions/count", "", nil, 50},
		{"POST", "/crm/v8/Leads", "", body(1), 1},
		{"POST", "/crm/v8/Leads", "", body(10), 1},
		{"PUT", "/crm/v8/Leads", "", body(11), 2},
		{"POST", "/crm/v8/Leads/upsert", "", body(100), 10},
		{"POST", "/crm/v8/Leads", "", []byte("x"), 1},
		{"POST", "/crm/bulk/v8/write", "", []byte("{}"), 500},
	} {
		r := &envelope.Request{Method: c.method, Path: c.path, RawQuery: c.query, Body: envelope.Body{Kind: envelope.JSONBody, Data: c.body}}
		if got := OperationOf(r.Method, r.Path).Cost(r, c.body); got != c.want {
			t.Errorf("%s %s costs %d, want %d", c.method, c.path, got, c.want)
		}
	}
}
