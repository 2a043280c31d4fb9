package zoho

import (
	"bytes"
	"encoding/json"
	"strings"

	"zoho-worker/internal/envelope"
)

// RecordsOf sums up what the answer to a write says of each record, in its data
// array (zoho-facts 4.1: a failed record may come with 400, 207, or 200). It is
// nil where body says nothing of records.
func RecordsOf(body []byte) *envelope.Records {
	// Reads have a data array, too, of records without a status.
	if !bytes.Contains(body, []byte(`"status"`)) {
		return nil
	}
	var r envelope.Records
	whole := envelope.EachRecord(body, func(code, status []byte) bool {
		switch string(status) {
		case "success":
			r.Add("", true)
		case "error":
			r.Add(string(code), false)
		default:
			return false
		}
		return true
	})
	if !whole || r.Succeeded+r.Failed == 0 {
		return nil
	}
	return &r
}

// IsObject reports whether body is a JSON object, as the API's answer to any write is.
// A page of a proxy or of Zoho's isn't, whatever its status.
func IsObject(body []byte) bool {
	body = bytes.TrimLeft(body, " \t\r\n")
	return len(body) > 0 && body[0] == '{' && json.Valid(body)
}

// Outcome is what Zoho said of one record of a write.
type Outcome struct {
	// Raw is the element of the answer's data array, as it came. It may be the answer's memory.
	Raw json.RawMessage
	// Code is Zoho's, and Done says that the record was written.
	Code string
	Done bool
}

// OutcomesOf returns what the answer to a write of n records says of each, in
// the request's order (zoho-facts 4.1). It is nil where body doesn't say it of
// exactly n records.
func OutcomesOf(body []byte, n int) []Outcome {
	var answer struct {
		Data []json.RawMessage `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Data) != n {
		return nil
	}
	outcomes := make([]Outcome, 0, n)
	for _, raw := range answer.Data {
		o, ok := OutcomeOf(raw)
		if !ok {
			return nil
		}
		outcomes = append(outcomes, o)
	}
	return outcomes
}

// OutcomeOf reads what Zoho says of one record, or of a call that it refused as
// a whole: the two have the same form.
func OutcomeOf(raw json.RawMessage) (Outcome, bool) {
	var record struct {
		Code   string `json:"code"`
		Status string `json:"status"`
	}
	if json.Unmarshal(raw, &record) != nil || record.Status != "success" && record.Status != "error" {
		return Outcome{}, false
	}
	return Outcome{Raw: raw, Code: record.Code, Done: record.Status == "success"}, true
}

// NotThere reports whether the answer to the deletion of one record says that there is none, of
// the call or of the record (zoho-facts 4.1). The message tells: what is no id at all, or can't be
// read, has the same code.
func NotThere(body []byte) bool {
	type refusal struct{ Code, Message, Status string }
	var answer struct {
		refusal
		Data []refusal
	}
	if json.Unmarshal(body, &answer) != nil {
		return false
	}
	r := answer.refusal
	if len(answer.Data) == 1 {
		r = answer.Data[0]
	}
	return r == refusal{"INVALID_DATA", "record not deleted", "error"}
}

// passing are the codes of records that failed for a reason which passes by
// itself, and that were not written (zoho-facts 3.7). What is not here is the
// record's own fault, or nobody knows.
var passing = map[string]bool{
	"RECORD_LOCKED":           true, // another process of Zoho's is at the record
	"ALREADY_SCHEDULED":       true, // another job for the record is under way
	"DEPENDENT_SERVICE_ERROR": true, // a service behind Zoho CRM was away
	"SERVICE_UNAVAILABLE":     true, // maintenance
	"TOO_MANY_REQUESTS":       true, // a limit; the call wasn't carried out
	// An INTERNAL_ERROR may come after the record was written: false, and only
	// what may be written twice is sent again.
	"INTERNAL_ERROR": false,
}

// Passing reports whether a record that failed with code may be sent again.
func Passing(code string, repeatable bool) bool {
	certain, known := passing[code]
	return known && (certain || repeatable)
}

// Row is one record that a lookup found.
type Row struct{ ID, Value string }

// RowsOf reads the answer to a COQL query, or to a GET of a record: of each
// record its id and its field, which may be empty, as text. more says that Zoho
// has more of them. It returns false for a body that isn't one.
func RowsOf(body []byte, field string) (rows []Row, more, ok bool) {
	var answer struct {
		Data []map[string]json.RawMessage `json:"data"`
		Info struct {
			More bool `json:"more_records"`
		} `json:"info"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Data == nil {
		return nil, false, false
	}
	for _, record := range answer.Data {
		id := text(record["id"])
		if id == "" || strings.Trim(id, "0123456789") != "" {
			return nil, false, false
		}
		value := text(record[field])
		if raw := record[field]; value == "" && len(raw) > 0 && (raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9') {
			value = string(raw)
		}
		rows = append(rows, Row{ID: id, Value: value})
	}
	return rows, answer.Info.More, true
}
