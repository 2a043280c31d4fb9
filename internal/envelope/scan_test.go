package envelope

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestNesting(t *testing.T) {
	t.Parallel()
	nested := func(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }
	if !validJSON(nested(MaxDepth), MaxDepth) || validJSON(nested(MaxDepth+1), MaxDepth) {
		t.Error("the bound is off")
	}
	if validJSON([]byte(strings.Repeat(`{"a":[`, 1<<19)), salvageDepth) {
		t.Error("half a megabyte of brackets is no JSON")
	}
}

// FuzzScanner has encoding/json for its judge.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{
		`{"a":[1,-0.5e+10,true,false,null,"\u00e9\ud83d\ude00\n"]}`, ` [ ] `, `{}`, `"\ud800"`, `01`, `-`, `1.`, `1e`, `"` + "\x7f\xff", `{"a":1,}`,
		`[1 2]`, `nul`, "\"\t\"", `"\ud800\u0041"`, `"\udc00\ud800"`, "[\x00]",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		want := json.Valid(data) && utf8.Valid(data)
		if got := validJSON(data, salvageDepth); got != want {
			t.Fatalf("%q: %v, encoding/json says %v", data, got, want)
		}
		if want && strings.HasPrefix(strings.TrimSpace(string(data)), `"`) {
			var text string
			if err := json.Unmarshal(data, &text); err != nil {
				t.Fatal(err)
			}
			s := scanner{data: data}
			raw, _ := s.rawString()
			if got, _ := unquote(raw); string(got) != text {
				t.Errorf("%q: %q, encoding/json says %q", data, got, text)
			}
		}
		quoted := appendText(nil, data)
		var text string
		if err := json.Unmarshal(quoted, &text); err != nil {
			t.Fatalf("%q became %q: %v", data, quoted, err)
		}
		if utf8.Valid(data) && text != string(data) {
			t.Errorf("%q became %q", data, text)
		}
		if !utf8.Valid(quoted) {
			t.Errorf("%q is not UTF-8", quoted)
		}
	})
}
