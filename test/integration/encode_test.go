package integration

import "encoding/json"

// encode is the request's envelope.
func (w *workload) encode(q *request) []byte {
	w.t.Helper()
	data, err := json.Marshal(q.doc)
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}
