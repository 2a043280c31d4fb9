package envelope

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"

	"zoho-worker/schemas"
)

func TestBodyOf(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		contentType, data string
		kind              BodyKind
		want              string
	}{
		{"application/json", "", NoBody, ""},
		{"application/json;charset=UTF-8", `{"a":"<&>"}`, JSONBody, `{"a":"<&>"}`},
		{"Application/JSON", "\r\n [1,\n 2]\n", JSONBody, "[1,\n 2]"},
		{"application/problem+json", `null`, JSONBody, "null"},
		{"application/json", `<html>`, TextBody, `<html>`},
		{"application/json", "\"\xff\"", BytesBody, "\"\xff\""},
		{"application/json", strings.Repeat("[", 200) + strings.Repeat("]", 200), TextBody, strings.Repeat("[", 200) + strings.Repeat("]", 200)},
		{"text/html", `<html>ü</html>`, TextBody, `<html>ü</html>`},
		{"text/html", `{"a":1}`, TextBody, `{"a":1}`},
		{"text/csv; charset=ISO-8859-1", "a;\xfc", BytesBody, "a;\xfc"},
		{"application/xml", `<a/>`, TextBody, `<a/>`},
		{"application/x-download", `{"a":1}`, BytesBody, `{"a":1}`},
		{"", `text`, BytesBody, `text`},
	} {
		body := BodyOf(test.contentType, []byte(test.data))
		if body.Kind != test.kind || string(body.Data) != test.want {
			t.Errorf("%s %q: %v %q", test.contentType, test.data, body.Kind, body.Data)
		}
	}
}

func testResponse() *Response {
	return &Response{
		ID: "r1", Connection: "acme", Status: 201, Attempts: 2, Outcome: Confirmed,
		Headers:    []Header{{"Content-Type", "application/json"}, {"X-A", "1"}, {"x-a", "2"}, {"Set-Cookie", "s3cret"}, {"X-Odd", "\xff\"\x01"}},
		Body:       Body{Kind: JSONBody, Data: []byte("{\n \"a\": \"<&>\"\n}")},
		ReceivedAt: received, FinishedAt: received.Add(1234567890 * time.Nanosecond).In(time.FixedZone("", 3600)),
		Records: &Records{Succeeded: 1, Failed: 3, Codes: map[string]int{"RECORD_LOCKED": 1, "INVALID_DATA": 2}},
		Credits: &Credits{Used: 10, Remaining: 4999, Known: true},
		Error:   &Error{Code: OutcomeUnknown, Message: "look \"it\" up"},
	}
}

func TestResponseAppendJSON(t *testing.T) {
	t.Parallel()
	got := string(testResponse().AppendJSON([]byte("x")))
	want := `x{"id":"r1","connection":"acme","status":201,"headers":{"Content-Type":"application/json","X-A":"1, 2","X-Odd":"` + "\ufffd" + `\"\u0001"},` +
		"\"body\":{\n \"a\": \"<&>\"\n}" + `,"attempts":2,"received_at":"2026-01-31T15:00:00.000Z","finished_at":"2026-01-31T15:00:01.234Z",` +
		`"outcome":"confirmed","records":{"succeeded":1,"failed":3,"codes":{"INVALID_DATA":2,"RECORD_LOCKED":1}},"credits":{"used":10,"remaining":4999},"error":{"code":"outcome_unknown","message":"look \"it\" up"}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	bare := &Response{Connection: "acme", ReceivedAt: received, FinishedAt: received, Error: &Error{Code: InvalidRequest, Message: "id: is required"}}
	bare.Credits = &Credits{Used: 1}
	if got := string(bare.AppendJSON(nil)); !strings.Contains(got, `,"credits":{"used":1},`) {
		t.Errorf("credits: %s", got)
	}
	bare.Credits = nil
	got = string(bare.AppendJSON(nil))
	want = `{"connection":"acme","attempts":0,"received_at":"2026-01-31T15:00:00.000Z","finished_at":"2026-01-31T15:00:00.000Z",` +
		`"error":{"code":"invalid_request","message":"id: is required"}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := DecodeResponse([]byte(got)); err != nil {
		t.Error(err)
	}
}

func TestDecodeResponse(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t, schemas.Response)
	good := string(testResponse().AppendJSON(nil))
	r, err := DecodeResponse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if r.Headers[1] != (Header{"X-A", "1, 2"}) || string(r.Body.Data) != "{\n \"a\": \"<&>\"\n}" || *r.Error != *testResponse().Error || *r.Credits != *testResponse().Credits {
		t.Errorf("%+v", r)
	}
	if err := schemaAccepts(schema, []byte(good)); err != nil {
		t.Errorf("schema: %v", err)
	}
	for old, replacements := range map[string][]string{
		`"id":"r1"`:         {`"id":""`, `"id":"a.b"`, `"id":null`, `"Id":"r1"`, `"id":1`},
		`"acme"`:            {`""`, `"a.b"`, `"a b"`, `null`},
		`"status":201`:      {`"status":99`, `"status":600`, `"status":"201"`, `"status":null`, `"other":1`},
		`"X-A":"1, 2"`:      {`"X A":"1"`, `"set-COOKIE":"1"`, `"X-A":1`, `"X-A":null`},
		`"attempts":2`:      {`"attempts":-1`, `"attempts":2147483648`, `"attempts":"2"`, `"body_text":"x","attempts":2`},
		`"attempts":2,`:     {``},
		`15:00:00.000Z`:     {`15:00:00Z`, `15:00:00.000+00:00`, `15:00:00,000Z`, `25:00:00.000Z`},
		`"confirmed"`:       {`""`, `"sure"`, `null`},
		`"outcome_unknown"`: {`"other"`, `null`},
		`"code"`:            {`"Code"`, `"why":1,"code"`},
		`"succeeded":1`:     {`"succeeded":-1`, `"succeeded":"1"`, `"Succeeded":1`},
		`"failed":3,`:       {``, `"failed":null,`},
		`"INVALID_DATA":2`:  {`"INVALID_DATA":0`, `"INVALID_DATA":null`},
		`"used":10,`:        {``, `"used":-1,`, `"used":"1",`, `"used":1,"left":1,`},
		`"remaining":4999`:  {`"remaining":-1`, `"remaining":null`, `"remaining":9007199254740992`},
		`"credits":{`:       {`"credits":null,"x":{`},
		`"records":{`:       {`"records":null,"x":{`},
		`"error":{`:         {`"error":null,"x":{`},
	} {
		for _, replacement := range replacements {
			doc := []byte(strings.Replace(good, old, replacement, 1))
			if _, f := decodeResponse(doc); f == nil || f.rule != inSchema {
				t.Errorf("%s → %s: %+v", old, replacement, f)
			}
			if schemaAccepts(schema, doc) == nil {
				t.Errorf("%s → %s: the schema takes it", old, replacement)
			}
		}
	}
	for old, replacement := range map[string]string{
		`"id":"r1"`:        `"id":"r1","id":"r1"`,
		`"X-A":"1, 2"`:     `"X-A":"1","x-a":"2"`,
		`"code"`:           `"message":"","code"`,
		`201`:              `201.0`,
		`"attempts":2`:     `"attempts":-0`,
		`"INVALID_DATA":2`: `"INVALID_DATA":2,"INVALID_DATA":2`,
		`"succeeded":1`:    `"succeeded":1,"succeeded":1`,
		`"used":10`:        `"used":10,"used":10`,
		`"remaining":4999`: `"remaining":4999.0`,
	} {
		doc := []byte(strings.Replace(good, old, replacement, 1))
		if _, f := decodeResponse(doc); f == nil || f.rule == inSchema {
			t.Errorf("%s → %s: %+v", old, replacement, f)
		}
		if err := schemaAccepts(schema, doc); err != nil {
			t.Errorf("%s → %s: schema: %v", old, replacement, err)
		}
	}
	for _, doc := range []string{"", "x", "[]", good + "x", good[1:], "\xff", "null"} {
		if _, err := DecodeResponse([]byte(doc)); err == nil {
			t.Errorf("accepted %q", doc)
		}
	}
}

func FuzzResponseRoundTrip(f *testing.F) {
	schema := compileSchema(f, schemas.Response)
	f.Add("application/json", []byte(" {\"a\":1}\n"), "X-A", "text/html", 200, 1, int64(1769871600000), "why")
	f.Add("text/csv", []byte("a,b\n\x00ü"), "X-A", "\xff", 404, 0, int64(-1), "")
	f.Add("", []byte("\xff\xfe"), "Set-Cookie", "a", 599, 3, int64(0), "\x00")
	f.Fuzz(func(t *testing.T, contentType string, data []byte, name, value string, status, attempts int, at int64, message string) {
		const first, last = -62167219200000, 253402300799999 // the years 0 to 9999
		if at < first || at > last {
			at = 0
		}
		r := &Response{
			ID: "r1", Connection: "acme", Status: 100 + int(uint(status)%500), Attempts: int(uint(attempts) % 1000),
			Body: BodyOf(contentType, data), ReceivedAt: time.UnixMilli(at).UTC(), FinishedAt: time.UnixMilli(at).UTC(),
		}
		if message != "" {
			r.Error = &Error{Code: Internal, Message: strings.ToValidUTF8(message, "")}
		}
		if httpguts.ValidHeaderFieldName(name) && !sameName(name, "Set-Cookie") {
			r.Headers = []Header{{name, strings.ToValidUTF8(value, "")}}
		}
		doc := r.AppendJSON(nil)
		again, err := DecodeResponse(doc)
		if err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Errorf("got  %+v\nwant %+v", again, r)
		}
		if err := schemaAccepts(schema, doc); err != nil {
			t.Errorf("schema: %s: %v", doc, err)
		}
	})
}

// FuzzDecodeResponse holds that whatever is accepted is written and read alike.
func FuzzDecodeResponse(f *testing.F) {
	schema := compileSchema(f, schemas.Response)
	f.Add(testResponse().AppendJSON(nil))
	f.Add([]byte(`{"connection":"acme","attempts":0,"received_at":"2026-01-31T15:00:00.000Z","finished_at":"2026-01-31T15:00:00.000Z","status":200,"headers":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, fault := decodeResponse(data)
		if fault != nil {
			if fault.rule == inSchema && len(data) < 4096 && !strings.ContainsAny(string(data), "eE") && !hasDuplicates(data) && schemaAccepts(schema, data) == nil {
				t.Fatalf("the schema takes %s, Go says %s", data, fault.message())
			}
			return
		}
		if err := schemaAccepts(schema, data); err != nil {
			t.Fatalf("Go takes %s, the schema doesn't: %v", data, err)
		}
		again, err := DecodeResponse(r.AppendJSON(nil))
		if err != nil {
			t.Fatalf("%s: %v", r.AppendJSON(nil), err)
		}
		if len(r.Headers) == 0 {
			r.Headers, again.Headers = nil, nil
		}
		if len(r.Body.Data) == 0 {
			r.Body.Data, again.Body.Data = nil, nil
		}
		if !reflect.DeepEqual(r, again) {
			t.Errorf("got  %+v\nwant %+v", again, r)
		}
	})
}
