package envelope

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// The fields of a response, in the order in which they are written.
const (
	answerID = iota
	answerConnection
	answerStatus
	answerHeaders
	answerBody
	answerBodyText
	answerBodyBase64
	answerBodyObject
	answerAttempts
	answerReceivedAt
	answerFinishedAt
	answerOutcome
	answerRecords
	answerCredits
	answerError
)

var responseFields = []string{
	"id", "connection", "status", "headers", "body", "body_text", "body_base64", "body_object",
	"attempts", "received_at", "finished_at", "outcome", "records", "credits", "error",
}

// timeFormat is RFC 3339 with milliseconds, in UTC.
const timeFormat = "2006-01-02T15:04:05.000Z"

// DecodeResponse decodes and validates a response envelope, as strictly as
// Decoder.Decode does a request. Its body aliases data. The error says the
// field and the rule, and isn't an *Error: nobody gets it as an answer.
func DecodeResponse(data []byte) (*Response, error) {
	r, f := decodeResponse(data)
	if f != nil {
		return nil, errors.New("decode response: " + f.message())
	}
	return r, nil
}

func decodeResponse(data []byte) (*Response, *fault) {
	s := scanner{data: data, depth: MaxDepth, field: documentField}
	if !utf8.Valid(data) {
		s.refuse(ruleJSON, "must be valid UTF-8")
	} else if s.peek() != '{' {
		if s.skip() && s.end() {
			s.refuse(inSchema, "must be a JSON object")
		}
	}
	if s.fault != nil {
		return nil, s.fault
	}
	var r Response
	var seen fieldSet
	for n := 0; ; n++ {
		field, ok := s.envelopeMember(n, responseFields, &seen)
		if !ok {
			break
		}
		responseField(&s, &r, field)
	}
	s.end()
	for _, field := range []int{answerConnection, answerAttempts, answerReceivedAt, answerFinishedAt} {
		if !seen.has(field) {
			s.field = responseFields[field]
			s.refuse(inSchema, "is required")
		}
	}
	if !seen.has(answerStatus) && !seen.has(answerError) {
		s.field = "status"
		s.refuse(inSchema, "is required where there is no error")
	}
	if s.fault != nil {
		return nil, s.fault
	}
	return &r, nil
}

func responseField(s *scanner, r *Response, field int) {
	switch field {
	case answerID:
		if text, ok := s.text(); ok {
			if r.ID = string(text); !validID(r.ID) {
				s.refuse(inSchema, "must be 1 to 128 of A-Z a-z 0-9 _ -")
			}
		}
	case answerConnection:
		if text, ok := s.text(); ok {
			// Not ValidConnection: a request may come for a name that no connection can have.
			if len(text) == 0 || utf8.RuneCount(text) > 255 || hasControl(text) || bytes.ContainsAny(text, " .*>") {
				s.refuse(inSchema, "must be one token of a subject")
			}
			r.Connection = string(text)
		}
	case answerStatus:
		r.Status = s.integer(100, 599)
	case answerHeaders:
		r.Headers = responseHeaders(s)
	case answerBody, answerBodyText, answerBodyBase64, answerBodyObject:
		r.Body = s.body(r.Body, BodyKind(field-answerBody)+JSONBody)
	case answerAttempts:
		r.Attempts = s.integer(0, math.MaxInt32)
	case answerReceivedAt:
		r.ReceivedAt = s.time()
	case answerFinishedAt:
		r.FinishedAt = s.time()
	case answerOutcome:
		if text, ok := s.text(); ok {
			if r.Outcome = string(text); r.Outcome != Confirmed {
				s.refuse(inSchema, "must be "+Confirmed)
			}
		}
	case answerRecords:
		r.Records = recordsField(s)
	case answerCredits:
		r.Credits = creditsField(s)
	case answerError:
		r.Error = errorField(s)
	}
}

func (s *scanner) integer(least, most int) int {
	if c := s.peek(); c != '-' && !isDigit(c) {
		s.refuse(inSchema, "must be an integer")
		return 0
	}
	raw, ok := s.raw()
	if !ok {
		return 0
	}
	if bytes.ContainsAny(raw, ".eE") {
		s.refuse(ruleNumber, "must be an integer without a point and an exponent")
		return 0
	}
	n, err := strconv.Atoi(string(raw))
	if err != nil || n < least || n > most {
		s.refuse(inSchema, "must be from "+strconv.Itoa(least)+" to "+strconv.Itoa(most))
	} else if raw[0] == '-' {
		s.refuse(ruleNumber, "must not be -0")
	}
	return n
}

func (s *scanner) time() time.Time {
	text, ok := s.text()
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(timeFormat, string(text))
	// Parse takes a comma, too, and hours without a leading 0.
	if err != nil || t.Format(timeFormat) != string(text) {
		s.refuse(inSchema, "must be a time like 2026-01-31T15:04:05.000Z, with milliseconds and in UTC")
	}
	return t
}

func responseHeaders(s *scanner) []Header {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	var headers []Header
	seen := make(keySet, 0, 16)
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			return headers
		}
		key, ok := unquote(raw)
		name := string(key)
		switch {
		case !ok:
			s.refuse(ruleSurrogate, "must not have half a surrogate pair in a name")
		case !httpguts.ValidHeaderFieldName(name):
			s.refuse(inSchema, "must have names as RFC 9110 has them")
		case lower(name) == "set-cookie":
			s.refuse(inSchema, "must not have Set-Cookie")
		case !seen.add(lower(name)):
			s.refuse(ruleDuplicate, "must not name a header twice, in whatever case")
		case n == 0:
			headers = make([]Header, 0, 8)
		}
		value, ok := s.text()
		if !ok {
			return nil
		}
		headers = append(headers, Header{Name: name, Value: string(value)})
	}
}

var recordsFields = []string{"succeeded", "failed", "codes"}

func recordsField(s *scanner) *Records {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	var r Records
	var seen fieldSet
	for n := 0; ; n++ {
		field, ok := s.envelopeMember(n, recordsFields, &seen)
		if !ok {
			break
		}
		switch field {
		case 0:
			r.Succeeded = s.integer(0, math.MaxInt32)
		case 1:
			r.Failed = s.integer(0, math.MaxInt32)
		case 2:
			r.Codes = codesField(s)
		}
	}
	if s.fault == nil && seen != 7 {
		s.refuse(inSchema, "must have succeeded, failed and codes")
	}
	return &r
}

func codesField(s *scanner) map[string]int {
	if s.peek() != '{' {
		s.refuse(inSchema, "must have an object as codes")
		return nil
	}
	var codes map[string]int
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			return codes
		}
		key, ok := unquote(raw)
		if !ok {
			s.refuse(ruleSurrogate, "must not have half a surrogate pair in a code")
			return nil
		}
		if codes == nil {
			codes = map[string]int{}
		}
		if _, twice := codes[string(key)]; twice {
			s.refuse(ruleDuplicate, "must not have a code twice")
			return nil
		}
		codes[string(key)] = s.integer(1, math.MaxInt32)
	}
}

var creditsFields = []string{"used", "remaining"}

// maxCredits is the largest integer that every JSON library reads exactly.
const maxCredits = 1<<53 - 1

func creditsField(s *scanner) *Credits {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	var c Credits
	var seen fieldSet
	for n := 0; ; n++ {
		field, ok := s.envelopeMember(n, creditsFields, &seen)
		if !ok {
			break
		}
		if field == 0 {
			c.Used = s.integer(0, math.MaxInt32)
		} else {
			c.Remaining, c.Known = int64(s.integer(0, maxCredits)), true
		}
	}
	if s.fault == nil && !seen.has(0) {
		s.refuse(inSchema, "must have used")
	}
	return &c
}

func errorField(s *scanner) *Error {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	var e Error
	var seen fieldSet
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			break
		}
		key, _ := unquote(raw)
		field := 0
		switch string(key) {
		case "code":
		case "message":
			field = 1
		default:
			s.refuse(inSchema, "must have no fields but code and message")
			return nil
		}
		if seen.has(field) {
			s.refuse(ruleDuplicate, "must not have a field twice")
			return nil
		}
		seen |= 1 << field
		text, ok := s.text()
		if !ok {
			return nil
		}
		if field == 0 {
			e.Code = Code(text)
		} else {
			e.Message = string(text)
		}
	}
	if seen != 3 {
		s.refuse(inSchema, "must have a code and a message")
	} else if !e.Code.known() {
		s.refuse(inSchema, "must have a code of the documented list")
	}
	return &e
}

func (c Code) known() bool {
	for _, code := range Codes() {
		if c == code {
			return true
		}
	}
	return false
}
