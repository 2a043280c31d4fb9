package envelope

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestAddsRows(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]bool{
		`{"data":[{"id":"1","Last_Name":"a"}]}`:                                   false,
		`{"data":[{"Last_Name":"a"},{"Last_Name":"b"}],"trigger":["workflow"]}`:   false,
		`{"data":[{"Owner":{"id":"1"},"Picks":["a","b"],"None":[],"Null":null}]}`: false,
		`{"data":[{"Items":[{"id":"7","Price":1},{"id":8}]}]}`:                    false,
		`{"data":[{"Items":[{"Price":1,"id":"7","_delete":null}]}]}`:              false,
		`{"data":[{"Items":[{"Price":1}]}]}`:                                      true,
		`{"data":[{"Items":[{"id":"7"},{"Price":1}]}]}`:                           true,
		`{"data":[{"Last_Name":"a"},{"Items":[{"Price":1}]}]}`:                    true,
		`{"data":[{"Items":[{"id":null,"Price":1}]}]}`:                            true,
		`{"data":[{"Items":[{"id":"","Price":1}]}]}`:                              true,
		`{"data":[{"Items":[{"ID":"7"}]}]}`:                                       true,
		`{"data":[{"Items":[null,[{"Price":1}]]}]}`:                               true,
		`{"data":[{"Items":["a",{"Price":1}]}]}`:                                  true,
		`{"data":[{"Items":[{"id":"7","Line_Tax":[{"percentage":10}]}]}]}`:        true,
		`{"data":[{"Product":{"Items":[{"Price":1}]}}]}`:                          true,
		`{"data":[{"Picture":[{"file_id":"x"}]}]}`:                                true,
		`{"data":[{"Tag":[{"name":"a"}]}]}`:                                       false,
		`{"data":[{"Tags":[{"name":"a"}]}]}`:                                      true,
		`{"data":[{"Last_Name":"[{}]"}]}`:                                         false,
		`{"data":[{}],"apply_feature_execution":[{"name":"layout_rules"}]}`:       false,
		`{"data":{"Items":[{"Price":1}]}}`:                                        true,
		`{"business_hours":{"custom_timing":[{"days":"Monday"}]}}`:                true,
		`{"users":[{"id":"1","last_name":"a"}]}`:                                  false,
		`{}`:                                                                      false,
		`[]`:                                                                      true,
		`x`:                                                                       true,
		``:                                                                        true,
		`{"data":[{"Last_Name":"a"}]} {"data":[{"Items":[{"Price":1}]}]}`:         true,
		`{"data":[{"Last_Name":"a"}`:                                              true,
		`{"data":` + strings.Repeat(`[`, MaxDepth+10) + strings.Repeat(`]`, MaxDepth+10) + `}`: true,
	} {
		if got := AddsRows([]byte(body)); got != want {
			t.Errorf("%.80s: %v", body, got)
		}
	}
}

// The scanner finds what a decoder of the whole document finds.
func FuzzAddsRows(f *testing.F) {
	for _, seed := range []string{
		`{"data":[{"Items":[{"Price":1}]}]}`, `{"data":[{"Items":[{"id":"7","a":[{}]}]}],"b":{"c":[[{"id":1}]]}}`, `{"Tag":[{"Tag":[{}]}]}`, `{"a":[[[{}]]]}`,
		`{"a":[{"b":[{"id":"1","id":null}]}],"a":[{"id":[{}],"c":[{"id":-1}]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if !validJSON(body, MaxDepth) || bytes.Contains(body, []byte(`\u`)) || bytes.TrimSpace(body)[0] != '{' {
			return
		}
		want := false
		members(t, body, func(_ string, v json.RawMessage) {
			list := []json.RawMessage{v}
			if v[0] == '[' {
				unmarshal(t, v, &list)
			}
			for _, record := range list {
				want = adds(t, record, false) || want
			}
		})
		if got := AddsRows(body); got != want {
			t.Errorf("%s: %v", body, got)
		}
	})
}

// adds says it of one value, which is a row or not.
func adds(t *testing.T, raw json.RawMessage, row bool) (found bool) {
	switch raw[0] {
	case '{':
		known := false
		members(t, raw, func(name string, v json.RawMessage) {
			switch name {
			case "id":
				known = known || string(v) != `""` && (v[0] == '"' || v[0] >= '0' && v[0] <= '9')
			case "Tag":
			default:
				found = adds(t, v, false) || found
			}
		})
		return found || row && !known
	case '[':
		var list []json.RawMessage
		unmarshal(t, raw, &list)
		for _, v := range list {
			found = adds(t, v, v[0] == '{') || found
		}
	}
	return found
}

// members calls do for each member of an object, also where a name comes twice.
func members(t *testing.T, raw []byte, do func(name string, v json.RawMessage)) {
	d := json.NewDecoder(bytes.NewReader(raw))
	_, _ = d.Token()
	for d.More() {
		name, err := d.Token()
		var v json.RawMessage
		if err != nil || d.Decode(&v) != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		do(name.(string), v)
	}
}

func unmarshal(t *testing.T, raw []byte, v any) {
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
}
