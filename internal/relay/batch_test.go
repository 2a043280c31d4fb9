package relay

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho"
)

const writtenRecord = `{"code":"SUCCESS","details":{"id":"%d"},"message":"record added","status":"success"}`

func refusedRecord(code string) string {
	return `{"code":"` + code + `","details":{},"message":"no","status":"error"}`
}

func answered(status int, records ...string) *zoho.Answer {
	return &zoho.Answer{Status: status, Body: []byte(`{"data":[` + strings.Join(records, ",") + `]}`)}
}

func written(id int) string { return fmt.Sprintf(writtenRecord, id) }

// What is known of three records, in the order in which it came, is one answer.
func TestBatchMerge(t *testing.T) {
	t.Parallel()
	type step func(b *batch) *zoho.Answer
	say := func(again bool, a *zoho.Answer) step {
		return func(b *batch) *zoho.Answer {
			if got := b.collect(a, "", true, false); got != again {
				t.Errorf("%s: again is %v", a.Body, got)
			}
			return a
		}
	}
	lose := func(b *batch) *zoho.Answer { b.doubt = true; return &zoho.Answer{} }
	look := func(rows ...zoho.Row) step {
		return func(b *batch) *zoho.Answer {
			b.absorb(b.pending(), []string{"'a'", "'b'", "17"}, rows, false)
			return &zoho.Answer{}
		}
	}
	const there = `{"code":"DUPLICATE_DATA","details":{"api_name":"R","id":"7"},"message":"duplicate data","status":"error"}`
	find := func(a *zoho.Answer) step {
		return func(b *batch) *zoho.Answer {
			if b.collect(a, "R", true, false) {
				t.Errorf("%s: sent again", a.Body)
			}
			return a
		}
	}
	found207, found400 := find(answered(207, there, written(2), written(3))), find(answered(400, there, there, there))
	unknown := string(unknownRecord)
	const locked = "RECORD_LOCKED"
	for name, c := range map[string]struct {
		steps   []step
		codes   []string // of the merged answer; nil: Zoho's own stands
		status  int
		outcome string
		unknown int
	}{
		"one answer":                  {[]step{say(false, answered(201, written(1), written(2), written(3)))}, nil, 0, "", 0},
		"one answer, nothing passes":  {[]step{say(false, answered(207, written(1), refusedRecord("INVALID_DATA"), written(3)))}, nil, 0, "", 0},
		"passing, not sent again":     {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3)))}, nil, 0, "", 0},
		"passing, then written":       {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, answered(201, written(2)))}, []string{written(1), written(2), written(3)}, 201, "", 0},
		"passing, then its own fault": {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, answered(400, refusedRecord("INVALID_DATA")))}, []string{written(1), refusedRecord("INVALID_DATA"), written(3)}, 207, "", 0},
		"passing, then refused whole": {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, &zoho.Answer{Status: 403, Body: []byte(refusedRecord("NO_PERMISSION"))})}, []string{written(1), refusedRecord("NO_PERMISSION"), written(3)}, 207, "", 0},
		"passing, then a page":        {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, &zoho.Answer{Status: 404, Body: []byte("<html>")})}, []string{written(1), string(composed("HTTP_404", "the call was refused as a whole").Raw), written(3)}, 207, "", 0},
		"passing, then no success":    {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, &zoho.Answer{Status: 404, Body: []byte(written(2))})}, []string{written(1), string(composed("HTTP_404", "the call was refused as a whole").Raw), written(3)}, 207, "", 0},
		"passing, then a strange 200": {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, answered(200, written(1), written(2)))}, []string{written(1), unknown, written(3)}, 207, "", 1},
		"refused whole":               {[]step{say(false, &zoho.Answer{Status: 403, Body: []byte(refusedRecord("NO_PERMISSION"))})}, nil, 0, "", 0},
		"passing, then a redirection": {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), say(false, &zoho.Answer{Status: 300})}, []string{written(1), string(composed("HTTP_300", "the call was refused as a whole").Raw), written(3)}, 207, "", 0},
		"passing, then none":          {[]step{say(true, answered(400, refusedRecord(locked), refusedRecord("INVALID_DATA"), refusedRecord(locked))), say(false, answered(400, refusedRecord("INVALID_DATA"), refusedRecord("INVALID_DATA")))}, []string{refusedRecord("INVALID_DATA"), refusedRecord("INVALID_DATA"), refusedRecord("INVALID_DATA")}, 400, "", 0},
		"passing, then one":           {[]step{say(true, answered(400, refusedRecord(locked), refusedRecord("INVALID_DATA"), refusedRecord("INVALID_DATA"))), say(false, answered(201, written(1)))}, []string{written(1), refusedRecord("INVALID_DATA"), refusedRecord("INVALID_DATA")}, 207, "", 0},
		"one passing, then lost":      {[]step{say(true, answered(400, refusedRecord("INVALID_DATA"), refusedRecord(locked), refusedRecord("INVALID_DATA"))), lose}, []string{refusedRecord("INVALID_DATA"), unknown, refusedRecord("INVALID_DATA")}, 207, "", 1},
		"found in a 207":              {[]step{found207}, []string{found("7"), written(2), written(3)}, 200, envelope.Confirmed, 0},
		"found in a 400":              {[]step{found400}, []string{found("7"), found("7"), found("7")}, 200, envelope.Confirmed, 0},
		"passing, then lost":          {[]step{say(true, answered(207, written(1), refusedRecord(locked), written(3))), lose}, []string{written(1), unknown, written(3)}, 207, "", 1},
		"all passing, then lost":      {[]step{say(true, answered(400, refusedRecord(locked), refusedRecord(locked), refusedRecord(locked))), lose}, nil, 0, "", 3},
		"lost, all found":             {[]step{lose, look(zoho.Row{ID: "3", Value: "17"}, zoho.Row{ID: "1", Value: "a"}, zoho.Row{ID: "2", Value: "b"})}, []string{found("1"), found("2"), found("3")}, 200, envelope.Confirmed, 0},
		"lost, one found, rest sent":  {[]step{lose, look(zoho.Row{ID: "2", Value: "b"}), say(false, answered(201, written(1), written(3)))}, []string{written(1), found("2"), written(3)}, 201, envelope.Confirmed, 0},
		"lost, one found, lost again": {[]step{lose, look(zoho.Row{ID: "2", Value: "b"}), lose}, []string{unknown, found("2"), unknown}, 207, envelope.Confirmed, 2},
		"lost, one found, one passes": {[]step{lose, look(zoho.Row{ID: "2", Value: "b"}), say(true, answered(207, written(1), refusedRecord(locked)))}, []string{written(1), found("2"), refusedRecord(locked)}, 207, envelope.Confirmed, 0},
		"lost, one twice":             {[]step{lose, look(zoho.Row{ID: "2", Value: "b"}, zoho.Row{ID: "4", Value: "b"}, zoho.Row{ID: "1", Value: "a"}, zoho.Row{ID: "3", Value: "17"})}, []string{found("1"), "", found("3")}, 207, envelope.Confirmed, 1},
		"lost, one spelled otherwise": {[]step{lose, look(zoho.Row{ID: "2", Value: "B "}, zoho.Row{ID: "1", Value: "a"}, zoho.Row{ID: "3", Value: "17"})}, []string{found("1"), "", found("3")}, 207, envelope.Confirmed, 1},
	} {
		b, ok := newBatch([]byte(`{"data":[{"R":"a"},{"R":"b"},{"R":17}],"trigger":[]}`))
		if !ok {
			t.Fatal("the body has no records")
		}
		var last *zoho.Answer
		for _, s := range c.steps {
			last = s(b)
		}
		response := &envelope.Response{Status: last.Status, Headers: []envelope.Header{{Name: "Content-Type", Value: "text/html"}}}
		if n := b.merge(response, last); n != c.unknown {
			t.Errorf("%s: %d are unknown, want %d", name, n, c.unknown)
		}
		if c.codes == nil {
			if response.Body.Kind != envelope.NoBody || response.Status != last.Status {
				t.Errorf("%s: merged to %d %s", name, response.Status, response.Body.Data)
			}
			continue
		}
		if response.Headers != nil {
			t.Errorf("%s: the answer has headers of another", name)
		}
		got := zoho.OutcomesOf(response.Body.Data, 3)
		if got == nil || response.Status != c.status || response.Outcome != c.outcome || !reflect.DeepEqual(response.Records, zoho.RecordsOf(response.Body.Data)) {
			t.Errorf("%s: %d %q %+v %s", name, response.Status, response.Outcome, response.Records, response.Body.Data)
			continue
		}
		for i, want := range c.codes {
			if want == "" && got[i].Code != unknownCode || want != "" && string(got[i].Raw) != want {
				t.Errorf("%s: record %d is %s, want %s", name, i, got[i].Raw, want)
			}
		}
	}
}

func found(id string) string {
	return `{"code":"SUCCESS","details":{"id":"` + id + `"},"message":"record already added","status":"success"}`
}

// Only what is pending is sent, and the rest of the body stays.
func TestBatchBody(t *testing.T) {
	t.Parallel()
	whole := []byte(`{ "data" : [ {"R":"a"} , {"R":"b"} ], "trigger":[]}`)
	b, _ := newBatch(whole)
	if got := b.body(whole); &got[0] != &whole[0] {
		t.Errorf("all is pending, and %s is sent", got)
	}
	b.find(0, "1")
	if got := string(b.body(whole)); got != `{ "data" : [{"R":"b"}], "trigger":[]}` {
		t.Errorf("%s", got)
	}
	var none *batch
	if got := none.body(whole); &got[0] != &whole[0] || none.begun() {
		t.Error("a request without a batch is not one whole")
	}
}

// A value that Zoho has already is a record found, where it is our own.
func TestBatchDuplicate(t *testing.T) {
	t.Parallel()
	const duplicate = `{"code":"DUPLICATE_DATA","details":{"api_name":"R","id":"7"},"message":"duplicate data","status":"error"}`
	for field, want := range map[string]bool{"R": true, "": false, "S": false} {
		b, _ := newBatch([]byte(`{"data":[{"R":"a"},{"R":"b"}]}`))
		if b.collect(answered(207, duplicate, written(2)), field, false, false) {
			t.Error("sent again")
		}
		if b.settled[0].Done != want || b.found != want {
			t.Errorf("field %q: %s", field, b.settled[0].Raw)
		}
	}
}

// Records that fail again and again are given up.
func TestBatchRounds(t *testing.T) {
	t.Parallel()
	b, _ := newBatch([]byte(`{"data":[{"R":"a"}]}`))
	n := 1
	for b.collect(answered(400, refusedRecord("RECORD_LOCKED")), "", true, false) {
		n++
	}
	if n != maxRounds {
		t.Errorf("sent %d times, want %d", n, maxRounds)
	}
	// What may have been written all the same is sent again only where that does no harm.
	for _, repeatable := range []bool{true, false} {
		b, _ := newBatch([]byte(`{"data":[{"R":"a"}]}`))
		if b.collect(answered(400, refusedRecord("INTERNAL_ERROR")), "", true, repeatable) != repeatable {
			t.Errorf("INTERNAL_ERROR, repeatable %v: the opposite", repeatable)
		}
	}
}

// A row that COQL found for one of the values, but that is spelled in another
// way than either of them, is one of those records: neither is "not there".
func TestRowSpelledOtherwise(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ value, found string }{
		"decimal field": {"17", "17.0"},
		"number field":  {"'0042'", "42"},
		"accents":       {"'M\u00fcller'", "Muller"},
		"normalised":    {"'Mu\u0308ller'", "M\u00fcller"},
		"phone":         {"'+49 30 1234'", "+49301234"},
		"space inside":  {"'a  b'", "a b"},
		"not told":      {"'a'", ""},
		"case":          {"'a'", "A"},
		"space around":  {"'a'", "a "},
	} {
		b, _ := newBatch([]byte(`{"data":[{"F":1}]}`))
		b.absorb(b.pending(), []string{c.value}, []zoho.Row{{ID: "1", Value: c.found}}, false)
		if n := len(b.pending()); n != 0 {
			t.Errorf("%s: `F in (%s)` found F = %q, and the record is taken for not there", name, c.value, c.found)
		}
	}
}

// Several rows with one value can't be told apart, and that is known from then on. A
// lookup that Zoho has more rows for says of none that it isn't there.
func TestRowsThatCannotBeTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rows []zoho.Row
		more bool
		code string // of the first record; "": pending
	}{
		"none":  {nil, false, ""},
		"one":   {[]zoho.Row{{ID: "1", Value: "a"}}, false, "SUCCESS"},
		"two":   {[]zoho.Row{{ID: "1", Value: "a"}, {ID: "2", Value: "a"}}, false, unknownCode},
		"three": {[]zoho.Row{{ID: "1", Value: "a"}, {ID: "2", Value: "a"}, {ID: "3", Value: "a"}}, false, unknownCode},
		"more":  {nil, true, unknownCode},
	} {
		b, _ := newBatch([]byte(`{"data":[{"F":"a"}]}`))
		b.absorb(b.pending(), []string{"'a'"}, c.rows, c.more)
		code := ""
		if o := b.settled[0]; o != nil {
			code = o.Code
		}
		if code != c.code || b.begun() != (code != "") {
			t.Errorf("%s: %q, begun %v", name, code, b.begun())
		}
	}
}
