package zoho

import (
	"bytes"
	"encoding/json"

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
	var answer struct {
		Data []struct {
			Code   string `json:"code"`
			Status string `json:"status"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Data) == 0 {
		return nil
	}
	var r envelope.Records
	for _, record := range answer.Data {
		switch record.Status {
		case "success":
			r.Succeeded++
		case "error":
			r.Failed++
			if r.Codes == nil {
				r.Codes = map[string]int{}
			}
			r.Codes[record.Code]++
		default:
			return nil
		}
	}
	return &r
}
