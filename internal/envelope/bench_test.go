package envelope

import (
	"bytes"
	"testing"
	"time"
)

var benchRequest = []byte(`{"id":"01J9ZC6W3Y4V8QK2M5T7R1XAPB","method":"POST","url":"/v8/Leads","headers":{"Content-Type":"application/json","X-EXTERNAL":"Leads.External_Id"},` +
	`"body":{"data":[{"Company":"Zylker","Last_Name":"Daly","First_Name":"Paul","Email":"p.daly@zylker.example","State":"Texas","External_Id":"01J9ZC6W3Y4V8QK2M5T7R1XAPB",` +
	`"Description":"A line with \"quotes\", a \\ and a letter \u00fc beyond ASCII.","Annual_Revenue":1250000.50,"$append_values":{"Tag":true}}],"trigger":["workflow","approval"]},` +
	`"reply_to":"_INBOX.UDFhRyTYfW3Ml4pCWPvBhJ","deadline":"2026-01-31T15:04:05Z","unique_field":"External_Id"}`)

var benchReceived = time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)

func BenchmarkDecodeRequest(b *testing.B) {
	d := &Decoder{ReplyPrefixes: []string{"_INBOX."}}
	b.ReportAllocs()
	b.SetBytes(int64(len(benchRequest)))
	for b.Loop() {
		if _, err := d.Decode(benchRequest, benchReceived); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	r := &Response{
		ID: "01J9ZC6W3Y4V8QK2M5T7R1XAPB", Connection: "acme", Status: 201, Attempts: 1,
		ReceivedAt: benchReceived, FinishedAt: benchReceived.Add(320 * time.Millisecond),
		Headers: []Header{
			{"Content-Type", "application/json;charset=UTF-8"},
			{"Date", "Sat, 31 Jan 2026 15:00:00 GMT"},
			{"X-Api-Credits-Remaining", "49000"},
			{"Strict-Transport-Security", "max-age=63072000"},
		},
		Body: Body{Kind: JSONBody, Data: append(append([]byte(`{"text":"`), bytes.Repeat([]byte("0123456789abcdef"), 63)...), `"}`...)},
	}
	dst := r.AppendJSON(nil)
	b.ReportAllocs()
	b.SetBytes(int64(len(dst)))
	for b.Loop() {
		dst = r.AppendJSON(dst[:0])
	}
}

func BenchmarkDigest(b *testing.B) {
	d := &Decoder{ReplyPrefixes: []string{"_INBOX."}}
	r, err := d.Decode(benchRequest, benchReceived)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Digest()
	}
}
