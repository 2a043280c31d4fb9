package zoho

import (
	"reflect"
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
	} {
		if got := RecordsOf([]byte(c.body)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}
