package envelope

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func decode(t *testing.T, doc string) *Request {
	t.Helper()
	r, err := testDecoder.Decode([]byte(doc), received)
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return r
}

func TestDecode(t *testing.T) {
	t.Parallel()
	doc := []byte(`{"query":{"a":"x y","n":554023000000568002123,"ids":[1.50,true,"ü"]},"id":"order-4711","method":"POST",` +
		`"url":"/v8/Leads/gr%c3%b6sse?b=%41&&c","headers":{"X-EXTERNAL":"Leads.Id","If-Match":"a\tb"},` +
		`"body": {"data":[{"Id":"order-4711", "html":"<b>&\u00fc"}]} ,"reply_to":"_INBOX.a","deadline":"2026-01-31T17:00:00+02:00","unique_field":"Id"}`)
	r, err := testDecoder.Decode(doc, received)
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct{ what, got, want string }{
		{"id", r.ID, "order-4711"},
		{"method", r.Method, "POST"},
		{"path", r.Path, "/crm/v8/Leads/gr%C3%B6sse"},
		{"query", r.RawQuery, "b=%41&&c&a=x+y&n=554023000000568002123&ids=1.50&ids=true&ids=%C3%BC"},
		{"body", string(r.Body.Data), `{"data":[{"Id":"order-4711", "html":"<b>&\u00fc"}]}`},
		{"reply_to", r.ReplyTo, "_INBOX.a"},
		{"unique_field", r.UniqueField, "Id"},
		{"deadline", r.Deadline.UTC().Format(time.RFC3339), "2026-01-31T15:00:00Z"},
	} {
		if check.got != check.want {
			t.Errorf("%s: %q, want %q", check.what, check.got, check.want)
		}
	}
	if len(r.Headers) != 2 || r.Headers[0] != (Header{"X-EXTERNAL", "Leads.Id"}) || r.Headers[1] != (Header{"If-Match", "a\tb"}) {
		t.Errorf("headers %v", r.Headers)
	}
	at := bytes.Index(doc, r.Body.Data)
	if &doc[at] != &r.Body.Data[0] {
		t.Error("the body was copied")
	}
	if cap(r.Body.Data) != len(r.Body.Data) {
		t.Error("appending to the body would write into the document")
	}
}

// TestDigestStays holds the digest of a request as its first version made it: a
// claim or response that an older worker wrote is found by a newer one.
func TestDigestStays(t *testing.T) {
	t.Parallel()
	r := decode(t, `{"id":"r1","method":"POST","url":"/v8/Leads?a=1","headers":{"X-A":"1"},"body":{"data":[{"X":"r1"}]},"unique_field":"X"}`)
	const want = "4a9e9e2ecf861bb6d6a64a6e4f1a60a6c0a2e70415b9e21773fcca424aee2c1c"
	if got := hex.EncodeToString(digest(r)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func digest(r *Request) []byte { d := r.Digest(); return d[:] }

func TestDecodeProbe(t *testing.T) {
	t.Parallel()
	const doc = `{"id":"r1","method":"POST","url":"/v8/Leads","body":{"data":[{"Ref":"\u0061"}, {"Ref":18}],"trigger":[]},"order_key":"k","retry_failed_records":true,"probe":{"field":"Ref"}}`
	r := decode(t, doc)
	if r.OrderKey != "k" || !r.RetryFailedRecords || r.Probe.Field != "Ref" || !slices.Equal(r.Probe.Values, []string{"'a'", "18"}) {
		t.Errorf("%+v %+v", r, r.Probe)
	}
	b, ok := SplitRecords(r.Body.Data)
	if !ok || string(b.Body([]int{0, 1})) != `{"data":[{"Ref":"\u0061"},{"Ref":18}],"trigger":[]}` || string(b.Body([]int{1})) != `{"data":[{"Ref":18}],"trigger":[]}` {
		t.Errorf("%v %q", ok, b)
	}
	for _, body := range []string{``, `[]`, `{}`, `{"data":{}}`, `{"data":[1]}`, `{"data":[],"data":[]}`, `{"data":[{}]`} {
		if _, ok := SplitRecords([]byte(body)); ok {
			t.Errorf("%s was taken apart", body)
		}
	}
	const url = `{"id":"r1","method":"POST","url":"/v8/Leads","body":{"data":[{"Ref":"a"}]},"probe":{"headers":{"X-EXTERNAL":"Leads.Ref"},"url":"/v8/Leads/a%2bb?fields=id"}}`
	p := decode(t, url).Probe
	if p.Path != "/crm/v8/Leads/a%2Bb" || p.RawQuery != "fields=id" || len(p.Headers) != 1 || p.Headers[0] != (Header{"X-EXTERNAL", "Leads.Ref"}) {
		t.Errorf("%+v", p)
	}
}

func TestDecodeBodies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		field string
		kind  BodyKind
		data  string
	}{
		{``, NoBody, ""},
		{`,"body":null`, JSONBody, "null"},
		{`,"body": [1, 2] `, JSONBody, "[1, 2]"},
		{`,"body_text":"a\n\u00fc\ud83d\ude00"`, TextBody, "a\nü😀"},
		{`,"body_base64":"AAH/"`, BytesBody, "\x00\x01\xff"},
		{`,"body_object":"big.zip"`, ObjectBody, "big.zip"},
	} {
		r := decode(t, `{"id":"r1","method":"POST","url":"/v8/Leads"`+test.field+`}`)
		if r.Body.Kind != test.kind || string(r.Body.Data) != test.data {
			t.Errorf("%s: %v %q", test.field, r.Body.Kind, r.Body.Data)
		}
	}
}

func TestDefaultDeadline(t *testing.T) {
	t.Parallel()
	r := decode(t, `{"id":"r1","method":"GET","url":"/v8/Leads"}`)
	if want := received.Add(DefaultDeadline); !r.Deadline.Equal(want) {
		t.Errorf("deadline %v, want %v", r.Deadline, want)
	}
}

// TestSomebodyCanBeAnswered holds that a refused request still says whom to
// answer, wherever the bad thing stands.
func TestSomebodyCanBeAnswered(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ doc, id, replyTo string }{
		"bad thing first":     {`{"method":"get","x":[{"id":"no"}],"id":"r1","reply_to":"_INBOX.a"}`, "r1", "_INBOX.a"},
		"bad thing last":      {`{"id":"r1","reply_to":"_INBOX.a","method":"get"}`, "r1", "_INBOX.a"},
		"bad id":              {`{"id":"r 1","reply_to":"_INBOX.a"}`, "", "_INBOX.a"},
		"id of another type":  {`{"id":1,"reply_to":"_INBOX.a"}`, "", "_INBOX.a"},
		"bad reply_to":        {`{"id":"r1","reply_to":"$JS.ACK.a","method":"GET","url":"/v8/Leads"}`, "r1", ""},
		"reply_to elsewhere":  {`{"id":"r1","reply_to":"billing.a","method":"GET","url":"/v8/Leads"}`, "r1", ""},
		"id twice":            {`{"id":"r1","id":"r1","reply_to":"_INBOX.a"}`, "", "_INBOX.a"},
		"reply_to twice":      {`{"id":"r1","reply_to":"_INBOX.a","reply_to":"_INBOX.b"}`, "r1", ""},
		"escaped":             {`{"i\u0064":"\u00721","reply_to":"_INBOX.\u0061"}`, "r1", "_INBOX.a"},
		"half a surrogate":    {`{"\ud800":1,"id":"r1","reply_to":"_INBOX.a\ud800"}`, "r1", ""},
		"bytes not UTF-8":     {"{\"body_text\":\"\xff\",\"id\":\"r1\",\"reply_to\":\"_INBOX.a\"}", "r1", "_INBOX.a"},
		"deep before":         {`{"body":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `,"id":"r1","reply_to":"_INBOX.a"}`, "r1", "_INBOX.a"},
		"not JSON at the end": {`{"id":"r1","reply_to":"_INBOX.a","method":"get",}`, "", ""},
		"trailing data":       {`{"id":"r1","reply_to":"_INBOX.a"} x`, "", ""},
		"an array":            {`[{"id":"r1","reply_to":"_INBOX.a"}]`, "", ""},
		"empty":               {``, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := testDecoder.Decode([]byte(test.doc), received)
			if err == nil || r == nil {
				t.Fatalf("request %v, error %v", r, err)
			}
			if r.ID != test.id || r.ReplyTo != test.replyTo {
				t.Errorf("id %q, reply_to %q; want %q, %q (%v)", r.ID, r.ReplyTo, test.id, test.replyTo, err)
			}
			if want := (&Request{ID: test.id, ReplyTo: test.replyTo}); r.Method != "" || r.Path != "" || r.Deadline != want.Deadline {
				t.Errorf("more than id and reply_to: %+v", r)
			}
		})
	}
}

func TestB29_not_JSON_says_so_first(t *testing.T) {
	t.Parallel()
	_, err := testDecoder.Decode([]byte(`{"method":"get",}`), received)
	checkRefusal(t, err, "envelope")
	if want := "envelope: must be valid JSON, but isn't at byte 16"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestB20_B31_too_large(t *testing.T) {
	t.Parallel()
	doc := []byte(`{"id":"r1","method":"DELETE","url":"/v8/Leads","body":"` + strings.Repeat("a", 5<<20) + `"}`)
	r, err := testDecoder.Decode(doc, received)
	var e *Error
	if !errors.As(err, &e) || e.Code != TooLarge || r.ID != "r1" {
		t.Errorf("id %q, error %v", r.ID, err)
	}
	if _, err := testDecoder.Decode(doc[:2<<20], received); !errors.As(err, &e) || e.Code != TooLarge {
		t.Errorf("too large, and cut off: %v", err)
	}
	roomy := &Decoder{MaxBytes: 8 << 20}
	if _, err := roomy.Decode(doc, received); err != nil {
		t.Errorf("with 8 MiB allowed: %v", err)
	}
}

// Each bound is where it is said to be.
func TestBounds(t *testing.T) {
	t.Parallel()
	x := func(n int) string { return strings.Repeat("x", n) }
	header := func(n int) string { return `"X-1":"` + x(n) + `"` }
	for name, bound := range map[string]struct {
		most int
		doc  func(n int) string // with n bytes, or so many things, of what is bounded
	}{
		"path":            {maxPath, func(n int) string { return `"url":"/v8/` + x(n-len("/v8/")) + `"` }},
		"path, encoded":   {maxPath, func(n int) string { return `"url":"/v8/+` + x(n-len("/v8/%2B")) + `"` }},
		"url's query":     {maxQuery, func(n int) string { return `"url":"/v8/Leads?` + x(n) + `"` }},
		"query":           {maxQuery, func(n int) string { return `"url":"/v8/Leads","query":{"a":"` + x(n-len("a=")) + `"}` }},
		"query, encoded":  {maxQuery, func(n int) string { return `"url":"/v8/Leads","query":{"a":"+` + x(n-len("a=%2B")) + `"}` }},
		"query, together": {maxQuery, func(n int) string { return `"url":"/v8/Leads?b","query":{"a":"` + x(n-len("b&a=")) + `"}` }},
		"values": {maxQueryList, func(n int) string {
			return `"url":"/v8/Leads","query":{"a":[` + strings.TrimSuffix(strings.Repeat("1,", n), ",") + `]}`
		}},
		"a header": {maxHeaderValue, func(n int) string { return `"url":"/v8/Leads","headers":{` + header(n) + `}` }},
		"headers": {maxHeaderBytes, func(n int) string {
			half := maxHeaderBytes/2 - len("X-1")
			return `"url":"/v8/Leads","headers":{` + header(half) + `,"X-2":"` + x(n-half-2*len("X-1")) + `"}`
		}},
		"reply_to":  {maxReplyTo, func(n int) string { return `"url":"/v8/Leads","reply_to":"_INBOX.` + x(n-len("_INBOX.")) + `"` }},
		"order_key": {maxOrderKey, func(n int) string { return `"url":"/v8/Leads","order_key":"` + x(n) + `"` }},
	} {
		for n, ok := range map[int]bool{bound.most: true, bound.most + 1: false} {
			if _, err := testDecoder.Decode([]byte(`{"id":"r1","method":"GET",`+bound.doc(n)+`}`), received); (err == nil) != ok {
				t.Errorf("%s of %d: %v", name, n, err)
			}
		}
	}
}

func TestReplyPrefixes(t *testing.T) {
	t.Parallel()
	doc := []byte(`{"id":"r1","method":"GET","url":"/v8/Leads","reply_to":"billing.answers.1"}`)
	for _, test := range []struct {
		prefixes []string
		ok       bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"_INBOX."}, false},
		{[]string{"_INBOX.", "billing."}, true},
		{[]string{"billing.answers.1"}, false}, // a prefix, not the subject itself
		{[]string{"*"}, false},
	} {
		_, err := (&Decoder{ReplyPrefixes: test.prefixes}).Decode(doc, received)
		if (err == nil) != test.ok {
			t.Errorf("%q: %v", test.prefixes, err)
		}
		if err != nil && !strings.Contains(err.Error(), "--reply-prefixes") {
			t.Errorf("%v doesn't say where they are set", err)
		}
	}
	// Nor does any the worker's own inbox: a response there would pass for a PubAck.
	d := &Decoder{ReplyPrefixes: []string{"_INBOX."}, Inbox: "_INBOX.zoho-worker.run."}
	for subject, ok := range map[string]bool{
		"_INBOX.zoho-worker.run.a.b": false, "_INBOX.zoho-worker.run.": false, "_INBOX.zoho-worker.a": true, "_INBOX.zoho-worker.running.a": true,
	} {
		if _, err := d.Decode([]byte(strings.Replace(string(doc), "billing.answers.1", subject, 1)), received); (err == nil) != ok {
			t.Errorf("%s: %v", subject, err)
		}
		if err := d.CheckReplyTo(subject); (err == nil) != ok {
			t.Errorf("a call answered at %s: %v", subject, err)
		}
	}
	// No configuration opens the worker's own subjects, or the server's.
	for _, subject := range []string{"zoho.requests.acme", "$JS.ACK.a"} {
		d := &Decoder{ReplyPrefixes: []string{"zoho.", "$", subject[:1]}}
		doc := strings.Replace(string(doc), "billing.answers.1", subject, 1)
		if _, err := d.Decode([]byte(doc), received); err == nil {
			t.Errorf("%s was allowed", subject)
		}
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]string{
		`{"Method":"GET"}`:        "Method: is not a field: did you mean method?",
		`{"connection":"c2"}`:     "connection: is not a field of a request: the subject names the connection",
		`{"id":"r1","url":"/v8"}`: "url: must begin with /v<N>/ or /bulk/v<N>/, like /v8/Leads, without host and without /crm",
		`{"id":"r1"}`:             "method: is required",
	} {
		_, err := testDecoder.Decode([]byte(doc), received)
		var e *Error
		if !errors.As(err, &e) || e.Message != want {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
}

func TestB26_connection_names(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"acme": true, "a": true, "0": true, "a-b_c": true, strings.Repeat("a", 63): true,
		"": false, "../x": false, "a.b": false, "*": false, ">": false, "Acme": false, "_a": false, "-a": false,
		"аcme": false, "a b": false, "a\n": false, strings.Repeat("a", 64): false, strings.Repeat("a", 1024): false,
	} {
		if ValidConnection(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func TestB28_same_id_other_content(t *testing.T) {
	t.Parallel()
	const doc = `{"id":"r1","method":"POST","url":"/v8/Leads?a=1","headers":{"X-A":"1","X-B":"2"},"body":{"data":[{"X":"r1"}]}}`
	want := decode(t, doc).Digest()
	for _, same := range []string{
		strings.Replace(doc, "r1", "r2", 1),
		strings.Replace(doc, `"headers"`, `"deadline":"2026-01-31T16:00:00Z","reply_to":"_INBOX.a","order_key":"k","retry_failed_records":false,"headers"`, 1),
		strings.Replace(doc, `"X-A":"1","X-B":"2"`, `"x-b":"2","x-a":"1"`, 1),
		strings.Replace(doc, "?a=1", `","query":{"a":1},"x":"`, 1),
		strings.Replace(doc, "Leads", "%4Ceads", 1),
	} {
		same = strings.Replace(same, `,"x":""`, "", 1)
		if decode(t, same).Digest() != want {
			t.Errorf("other digest: %s", same)
		}
	}
	seen := map[[32]byte]string{want: doc}
	for _, other := range []string{
		strings.Replace(doc, "POST", "PUT", 1),
		strings.Replace(doc, "Leads", "Contacts", 1),
		strings.Replace(doc, "a=1", "a=2", 1),
		strings.Replace(doc, "?a=1", "/a=1", 1),
		strings.Replace(doc, `"X-A":"1"`, `"X-A":"2"`, 1),
		strings.Replace(doc, `"X-A":"1",`, ``, 1),
		strings.Replace(doc, `"X-A":"1","X-B":"2"`, `"X-A":"1X-B","Y":"2"`, 1),
		strings.Replace(doc, `{"X":"r1"}`, `{"X":"r3"}`, 1),
		strings.Replace(doc, `"body":{"data":[{"X":"r1"}]}`, `"body_text":"{\"data\":[{\"X\":\"r1\"}]}"`, 1),
		strings.Replace(doc, `"body"`, `"unique_field":"X","body"`, 1),
		strings.Replace(doc, `"body"`, `"retry_failed_records":true,"body"`, 1),
		strings.Replace(doc, `"body"`, `"probe":{"field":"X"},"body"`, 1),
		strings.Replace(doc, `"body"`, `"probe":{"field":"X"},"retry_failed_records":true,"body"`, 1),
		strings.Replace(doc, `"body"`, `"probe":{"coql":"X"},"body"`, 1),
		strings.Replace(doc, `"body"`, `"probe":{"url":"/v8/Leads/X"},"body"`, 1),
		strings.Replace(doc, `"body"`, `"probe":{"url":"/v8/Leads/X?a=1"},"body"`, 1),
		strings.Replace(doc, `"body"`, `"probe":{"url":"/v8/Leads/X","headers":{"X-EXTERNAL":"Leads.X"}},"body"`, 1),
	} {
		digest := decode(t, other).Digest()
		if same, ok := seen[digest]; ok {
			t.Errorf("same digest: %s\n%s", other, same)
		}
		seen[digest] = other
	}
}
