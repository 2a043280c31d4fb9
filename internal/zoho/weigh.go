package zoho

import (
	"encoding/json"
	"math"
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
	// Places are the calls in flight that it counts for, and Heavies, if it is Heavy,
	// those of the heavy ones; 0: one.
	Places, Heavies int
}

// compositePlaces is what a composite counts for, whatever is in it (zoho-facts 3.3),
// and the most calls that can be in it (zoho-facts 4.4).
const compositePlaces = 5

// heavyRecords is from how many records on a write is light (zoho-facts 3.3:
// more than ten are heavy).
const heavyRecords = 10

// mostRecords is how many records a write may have at most (zoho-facts 4.2),
// mostTagged how many may be tagged at once (zoho-facts 3.2).
const (
	mostRecords = 100
	mostTagged  = 500
)

// Weigh returns what r, a request of the operation, weighs. A body that is kept
// in the object store isn't seen yet: it is too large for a message, so it weighs
// as much as its operation can.
func (o Operation) Weigh(r *envelope.Request) Weight {
	unseen := r.Body.Kind == envelope.ObjectBody
	w := o.weigh(r.RawQuery, r.Body.Data, unseen)
	if o.Name == "composite" {
		w.Places, w.Heavies = compositePlaces, 1+compositePlaces
		if !unseen {
			w.Heavies = 1 + heavyWithin(r.Body.Data)
		}
	}
	return w
}

// heavyWithin is how many of the calls in a composite are heavy: each counts for itself
// (zoho-facts 3.3). What can't be read Zoho won't carry out.
func heavyWithin(body []byte) (n int) {
	var composite struct {
		Calls []struct {
			Method string                     `json:"method"`
			URI    string                     `json:"uri"`
			Params map[string]json.RawMessage `json:"params"`
			Body   json.RawMessage            `json:"body"`
		} `json:"__composite_requests"`
	}
	_ = json.Unmarshal(body, &composite)
	for _, c := range composite.Calls {
		path, query, _ := strings.Cut(c.URI, "?")
		for name := range c.Params {
			query += "&" + name
		}
		if OperationOf(c.Method, path).weigh(query, c.Body, false).Heavy {
			n++
		}
	}
	return min(n, compositePlaces)
}

// Cost is what a call of r, a request of the operation, costs of the org's
// credits with this body.
func (o Operation) Cost(r *envelope.Request, body []byte) int {
	return o.weigh(r.RawQuery, body, false).Credits
}

func (o Operation) weigh(rawQuery string, body []byte, unseen bool) Weight {
	w := Weight{Credits: o.Credits, Heavy: o.Heavy}
	count := func(member string, most int) int {
		if unseen {
			return most
		}
		return envelope.CountElements(body, member)
	}
	switch o.Name {
	case "records.list", "related.list":
		view := has(rawQuery, "cvid")
		if view {
			w.Credits = 3
		}
		w.Heavy = w.Heavy || view || has(rawQuery, "sort_by")
	case "records.insert", "records.update", "records.upsert":
		n := count("data", mostRecords)
		w.Credits = perEach(n, 10)
		w.Heavy = w.Heavy || n > heavyRecords
	case "records.tag":
		w.Credits = perEach(max(count("ids", mostTagged), idsOf(rawQuery)), 50)
	case "records.mass_delete":
		w.Credits = perEach(max(count("ids", mostTagged), idsOf(rawQuery)), 100)
	case "composite":
		if rollback, _ := envelope.Member(body, "rollback_on_fail"); unseen || string(rollback) == "true" {
			w.Credits = 2
		}
	case "coql":
		w.Credits = coqlCredits(body, unseen)
	}
	return w
}

// perEach is one credit for each so many of n, and one at least.
func perEach(n, each int) int { return max(1, (n+each-1)/each) }

// idsOf is how many ids the query's parameter of that name lists.
func idsOf(rawQuery string) int {
	for pair := range strings.SplitSeq(rawQuery, "&") {
		if key, value, _ := strings.Cut(pair, "="); key == "ids" && value != "" {
			return strings.Count(strings.ReplaceAll(strings.ToLower(value), "%2c", ","), ",") + 1
		}
	}
	return 0
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
func coqlCredits(body []byte, unseen bool) int {
	if unseen {
		return 3
	}
	switch rows := rowsOf(strings.ToLower(string(body))); {
	case rows <= 200:
		return 1
	case rows <= 1000:
		return 2
	}
	return 3
}

// rowsOf is how many rows a query in lower case asks for: LIMIT rows, LIMIT
// offset, rows, or LIMIT rows OFFSET offset.
func rowsOf(query string) int {
	const limit = "limit"
	inWord := func(c byte) bool { return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' }
	for rest := query; ; {
		at := strings.LastIndex(rest, limit)
		if at < 0 {
			return 0
		}
		clause := query[at+len(limit):]
		// A field may be called Credit_Limit.
		if rest = query[:at]; at > 0 && inWord(query[at-1]) || clause != "" && inWord(clause[0]) {
			continue
		}
		clause, _, _ = strings.Cut(clause, `"`)
		numbers := strings.FieldsFunc(clause, func(r rune) bool { return r < '0' || r > '9' })
		if len(numbers) == 0 {
			return 0
		}
		said := numbers[0]
		if len(numbers) > 1 && !strings.Contains(clause, "offset") {
			said = numbers[1]
		}
		rows, err := strconv.Atoi(said)
		if err != nil {
			return math.MaxInt
		}
		return rows
	}
}
