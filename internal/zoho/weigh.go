package zoho

import (
	"strconv"
	"strings"

	"zoho-worker/internal/envelope"
)

// Weight is what a call counts for among Zoho's limits.
type Weight struct {
	// Credits it costs of the org's daily ones (zoho-facts 3.2).
	Credits int
	// Heavy says that it counts against the sub-concurrency (zoho-facts 3.3).
	Heavy bool
}

// heavyRecords is from how many records on a write is light (zoho-facts 3.3:
// more than ten are heavy).
const heavyRecords = 10

// Weigh returns the request's operation and weight. A body that is kept in the
// object store weighs as little as its operation can.
func Weigh(r *envelope.Request) (Operation, Weight) {
	op := OperationOf(r.Method, r.Path)
	return op, op.weigh(r, r.Body.Data)
}

// Cost is what a call of the request with this body costs of the org's credits.
func Cost(r *envelope.Request, body []byte) int {
	return OperationOf(r.Method, r.Path).weigh(r, body).Credits
}

func (o Operation) weigh(r *envelope.Request, body []byte) Weight {
	w := Weight{Credits: o.Credits, Heavy: o.Heavy}
	json := r.Body.Kind == envelope.JSONBody
	switch o.Name {
	case "records.list", "related.list":
		view := has(r.RawQuery, "cvid")
		if view {
			w.Credits = 3
		}
		w.Heavy = w.Heavy || view || has(r.RawQuery, "sort_by")
	case "records.insert", "records.update", "records.upsert":
		if json {
			n := envelope.CountElements(body, "data")
			w.Credits = max(1, (n+9)/10)
			w.Heavy = w.Heavy || n > heavyRecords
		}
	case "records.mass_delete":
		if json {
			w.Credits = max(1, (envelope.CountElements(body, "ids")+99)/100)
		}
	case "coql":
		if json {
			w.Credits = coqlCredits(body)
		}
	}
	return w
}

// has reports whether the query has the parameter.
func has(rawQuery, name string) bool {
	for rawQuery != "" {
		var pair string
		pair, rawQuery, _ = strings.Cut(rawQuery, "&")
		if key, _, _ := strings.Cut(pair, "="); key == name {
			return true
		}
	}
	return false
}

// coqlCredits is what a COQL query costs by its LIMIT: 1 up to 200 rows, 2 up
// to 1,000, 3 up to 2,000 (zoho-facts 3.2). Without one it is 200.
func coqlCredits(body []byte) int {
	query := strings.ToLower(string(body))
	at := strings.LastIndex(query, "limit")
	if at < 0 {
		return 1
	}
	// LIMIT rows, or LIMIT offset, rows.
	limit := 0
	for _, field := range strings.FieldsFunc(query[at+len("limit"):], func(r rune) bool { return r < '0' || r > '9' }) {
		if n, err := strconv.Atoi(field); err == nil && n <= 2000 {
			limit = max(limit, n)
		}
	}
	switch {
	case limit <= 200:
		return 1
	case limit <= 1000:
		return 2
	}
	return 3
}
