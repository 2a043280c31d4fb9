package envelope

import (
	"bytes"
	"encoding/base64"
	"strings"
	"time"
	"unicode/utf8"
)

// Decoder decodes request envelopes. The zero value is useful: it allows no
// reply_to. A Decoder may be used by many goroutines.
type Decoder struct {
	// ReplyPrefixes are what a reply_to may begin with, compared byte by byte:
	// "_INBOX." allows every subject below _INBOX. Empty: no reply_to at all.
	// Too wide a list lets a requester have the worker publish where only the worker may.
	ReplyPrefixes []string
	// Inbox begins the subjects at which the worker itself is answered, with the dot
	// at its end: a response there would pass for an answer of the server's. Empty:
	// they are not told from others.
	Inbox string
	// MaxBytes bounds the whole document; larger ones are TooLarge. 0: MaxBytes
	// of this package. It should be the server's max_payload.
	MaxBytes int
}

// The fields of a request, in the schema's order.
const (
	fieldID = iota
	fieldMethod
	fieldURL
	fieldQuery
	fieldHeaders
	fieldBody
	fieldBodyText
	fieldBodyBase64
	fieldBodyObject
	fieldReplyTo
	fieldDeadline
	fieldUniqueField
	fieldOrderKey
	fieldProbe
	fieldRetryFailedRecords
)

var requestFields = []string{
	"id", "method", "url", "query", "headers", "body", "body_text", "body_base64", "body_object",
	"reply_to", "deadline", "unique_field", "order_key", "probe", "retry_failed_records",
}

// draft is a request as far as it has been read.
type draft struct {
	*Request
	seen     fieldSet
	urlQuery []byte // url's own
	query    []byte // the field's, encoded
}

// Decode decodes and validates a request that the server stored at received.
// The request's body and texts alias data, which must not be written to any more.
//
// Every error is an *Error, InvalidRequest or TooLarge, and comes with a
// Request that holds the ID and the ReplyTo, each only if it could be read and
// is valid by itself, wherever in the document: so somebody can be answered.
//
// A deadline in the past is no error here.
func (d *Decoder) Decode(data []byte, received time.Time) (*Request, error) {
	req, f := d.decode(data, received)
	if f == nil {
		return req, nil
	}
	req, grammar := d.salvage(data)
	if grammar != nil && grammar.rule == ruleJSON && f.code != TooLarge {
		f = grammar // not JSON at all says more than what a piece of it looked like
	}
	return req, &Error{Code: f.code, Message: f.message()}
}

func (d *Decoder) decode(data []byte, received time.Time) (*Request, *fault) {
	limit := d.MaxBytes
	if limit == 0 {
		limit = MaxBytes
	}
	s := scanner{data: data, depth: MaxDepth, field: documentField}
	switch {
	case len(data) > limit:
		return nil, &fault{TooLarge, ruleBytes, documentField, "is larger than this worker takes: put the body into the object store ZOHO_BODIES and name it in body_object"}
	case len(data) == 0:
		s.refuse(ruleJSON, "is empty: it must be a JSON object")
	case !utf8.Valid(data):
		s.refuse(ruleJSON, "must be valid UTF-8")
	case s.peek() != '{':
		s.refuse(inSchema, "must be a JSON object")
	}
	if s.fault != nil {
		return nil, s.fault
	}
	r := draft{Request: new(Request)}
	for n := 0; ; n++ {
		field, ok := s.envelopeMember(n, requestFields, &r.seen)
		if !ok {
			break
		}
		d.field(&s, &r, field)
	}
	s.end()
	r.finish(&s, received)
	if s.fault != nil {
		return nil, s.fault
	}
	return r.Request, nil
}

// fieldSet is a set of indexes into requestFields or responseFields.
type fieldSet uint32

func (f fieldSet) has(i int) bool { return f&(1<<i) != 0 }

// envelopeMember moves to the n-th member of the envelope itself and returns
// which of the fields it is.
func (s *scanner) envelopeMember(n int, fields []string, seen *fieldSet) (field int, ok bool) {
	s.field = documentField
	raw, ok := s.member(n)
	if !ok {
		return 0, false
	}
	key, ok := unquote(raw)
	if !ok {
		return 0, s.refuse(ruleSurrogate, "must not have half a surrogate pair (\\ud800 to \\udfff) in a key")
	}
	for i, name := range fields {
		if string(key) == name {
			s.field = name
			if seen.has(i) {
				return 0, s.refuse(ruleDuplicate, "must not be given twice")
			}
			*seen |= 1 << i
			return i, true
		}
	}
	return 0, s.unknown(key, fields)
}

func (s *scanner) unknown(key []byte, fields []string) bool {
	name := string(key)
	if validID(key) && len(key) <= 32 {
		s.field = name // anything else could be a secret, or break a log line
	}
	for _, known := range fields {
		if strings.EqualFold(known, name) {
			return s.refuse(inSchema, "is not a field: did you mean "+known+"?")
		}
	}
	if name == "connection" {
		return s.refuse(inSchema, "is not a field of a request: the subject names the connection")
	}
	return s.refuse(inSchema, "is not a field: the fields are "+strings.Join(fields, ", "))
}

func (d *Decoder) field(s *scanner, r *draft, field int) {
	switch field {
	case fieldID:
		if id, ok := s.text(); ok {
			if !validID(id) {
				s.refuse(inSchema, "must be 1 to 128 of A-Z a-z 0-9 _ -")
				return
			}
			r.ID = view(id)
		}
	case fieldMethod:
		if text, ok := s.text(); ok {
			if r.Method = method(text); r.Method == "" {
				s.refuse(inSchema, "must be GET, POST, PUT, PATCH or DELETE, in capitals")
			}
		}
	case fieldURL:
		if text, ok := s.text(); ok {
			var f *fault
			if r.Path, r.urlQuery, f = parseURL(text); f != nil {
				s.fault = f
			}
		}
	case fieldQuery:
		r.query = queryField(s)
	case fieldHeaders:
		r.Headers = headersField(s)
	case fieldBody, fieldBodyText, fieldBodyBase64, fieldBodyObject:
		r.Body = s.body(r.Body, BodyKind(field-fieldBody)+JSONBody)
	case fieldReplyTo:
		if text, ok := s.text(); ok {
			if rule, why := d.checkReplyTo(text); why != "" {
				s.refuse(rule, why)
				return
			}
			r.ReplyTo = view(text)
		}
	case fieldDeadline:
		if text, ok := s.text(); ok {
			var err error
			if r.Deadline, err = time.Parse(time.RFC3339, string(text)); err != nil || !isRFC3339(text) {
				s.refuse(inSchema, "must be a time like 2026-01-31T15:04:05Z or 2026-01-31T15:04:05+02:00 (RFC 3339)")
			}
		}
	case fieldUniqueField:
		if text, ok := s.text(); ok {
			if !validFieldName(text) {
				s.refuse(inSchema, badFieldName)
				return
			}
			r.UniqueField = string(text)
		}
	case fieldOrderKey:
		if text, ok := s.text(); ok {
			if !validOrderKey(text) {
				s.refuse(inSchema, "must be 1 to 128 printable ASCII characters without spaces")
				return
			}
			r.OrderKey = string(text)
		}
	case fieldProbe:
		r.Probe = s.probe()
	case fieldRetryFailedRecords:
		switch s.peek() {
		case 't':
			r.RetryFailedRecords = s.word("true")
		case 'f':
			s.word("false")
		default:
			s.refuse(inSchema, "must be true or false")
		}
	}
}

const badFieldName = "must be the API name of a field: a letter, then at most 99 letters, digits or _"

// method returns the method's name, or "" if there is no such method.
func method(text []byte) string {
	switch string(text) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "PUT":
		return "PUT"
	case "PATCH":
		return "PATCH"
	case "DELETE":
		return "DELETE"
	}
	return ""
}

// isRFC3339 refuses what time.Parse lets through: a comma for the point, an
// hour without its leading 0, an offset of 24 hours or 60 minutes.
func isRFC3339(text []byte) bool {
	const shape = "0000-00-00T00:00:00"
	if len(text) <= len(shape) {
		return false
	}
	for i := range len(shape) {
		if shape[i] == '0' && !isDigit(text[i]) || shape[i] != '0' && text[i] != shape[i] {
			return false
		}
	}
	zone := text[len(shape):]
	if zone[0] == '.' {
		for zone = zone[1:]; len(zone) > 0 && isDigit(zone[0]); {
			zone = zone[1:]
		}
	}
	if len(zone) == 1 {
		return zone[0] == 'Z'
	}
	return len(zone) == 6 && zone[3] == ':' && string(zone[1:3]) < "24" && string(zone[4:6]) < "60"
}

func validOrderKey(key []byte) bool {
	if len(key) == 0 || len(key) > maxOrderKey {
		return false
	}
	for _, c := range key {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}

func validFieldName(name []byte) bool {
	if len(name) == 0 || len(name) > 100 || !isLetter(name[0]) {
		return false
	}
	for _, c := range name {
		if !isWord(c) {
			return false
		}
	}
	return true
}

// body reads one of the four body fields. before is the body read so far.
func (s *scanner) body(before Body, kind BodyKind) Body {
	if before.Kind != NoBody {
		s.refuse(inSchema, "must not be given together with another body: give one of body, body_text, body_base64 and body_object")
		return before
	}
	body := Body{Kind: kind}
	if kind == JSONBody {
		body.Data, _ = s.raw()
		return body
	}
	text, ok := s.text()
	if !ok {
		return body
	}
	switch kind {
	case BytesBody:
		// The decoder passes over line breaks; a schema, and most other decoders, don't.
		decoded, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
		if err != nil || bytes.ContainsAny(text, "\r\n") {
			s.refuse(inSchema, "must be standard base64 with padding and without line breaks")
		}
		text = decoded
	case ObjectBody:
		if len(text) == 0 || utf8.RuneCount(text) > maxObjectName || hasControl(text) {
			s.refuse(inSchema, "must be an object's name: 1 to 255 characters without control characters")
		}
	}
	body.Data = text
	return body
}

// CheckReplyTo returns why a request must not be answered at subject, or nil.
func (d *Decoder) CheckReplyTo(subject string) error {
	if r, why := d.checkReplyTo([]byte(subject)); why != "" {
		f := fault{InvalidRequest, r, "reply_to", why}
		return &Error{Code: f.code, Message: f.message()}
	}
	return nil
}

// checkReplyTo returns why subject must not be published to, or "".
func (d *Decoder) checkReplyTo(subject []byte) (rule, string) {
	if len(subject) == 0 || len(subject) > maxReplyTo {
		return inSchema, "must be a subject of 1 to 255 characters"
	}
	start := 0 // of the token
	for i, c := range subject {
		switch {
		case c <= ' ' || c >= 0x7f || c == '*' || c == '>':
			return inSchema, "must be a subject of printable ASCII characters without spaces, * and >"
		case c == '.':
			if i == start {
				return inSchema, "must not have empty tokens"
			}
			start = i + 1
		}
	}
	switch {
	case start == len(subject):
		return inSchema, "must not have empty tokens"
	case subject[0] == '$':
		// An empty or wrong answer to a $JS.ACK subject would settle somebody's message.
		return inSchema, "must not begin with $: such subjects belong to the server"
	case string(subject) == "zoho" || bytes.HasPrefix(subject, []byte("zoho.")):
		return inSchema, "must not begin with zoho.: such subjects belong to the worker"
	}
	if d.Inbox != "" && bytes.HasPrefix(subject, []byte(d.Inbox)) {
		return ruleReplyPrefix, "must not be an inbox of the worker itself (" + d.Inbox + "…)"
	}
	for _, prefix := range d.ReplyPrefixes {
		if prefix != "" && len(subject) > len(prefix) && string(subject[:len(prefix)]) == prefix {
			return inSchema, ""
		}
	}
	return ruleReplyPrefix, "must begin with one of the prefixes that this worker may answer to (--reply-prefixes), like an inbox: _INBOX.…"
}

// finish does what needs more than one field.
func (r *draft) finish(s *scanner, received time.Time) {
	for _, field := range []int{fieldID, fieldMethod, fieldURL} {
		if !r.seen.has(field) {
			s.field = requestFields[field]
			s.refuse(inSchema, "is required")
		}
	}
	if r.Body.Kind != NoBody && r.Method == "GET" {
		s.field = requestFields[fieldBody+int(r.Body.Kind-JSONBody)]
		s.refuse(inSchema, "must not be given with GET")
	}
	if !r.seen.has(fieldDeadline) {
		r.Deadline = received.Add(DefaultDeadline)
	} else if r.Deadline.After(received.Add(MaxDeadline)) {
		s.field = "deadline"
		s.refuse(ruleDeadline, "must be at most 24 hours after the request was received")
	}
	if size := len(r.urlQuery) + 1 + len(r.query); len(r.urlQuery) > 0 && len(r.query) > 0 {
		if size > maxQuery {
			s.field = "query"
			s.refuse(ruleBytes, "must have at most 8192 bytes once encoded, together with url's own")
		}
		joined := append(make([]byte, 0, size), r.urlQuery...)
		r.RawQuery = view(append(append(joined, '&'), r.query...))
	} else if len(r.query) > 0 {
		r.RawQuery = view(r.query)
	} else {
		r.RawQuery = view(r.urlQuery)
	}
	if r.UniqueField != "" && s.fault == nil {
		s.field = "unique_field"
		checkUniqueField(s, r.Request)
	}
	if r.Probe != nil && s.fault == nil {
		s.field = "probe"
		if data := checkBatch(s, r.Request); data != nil {
			checkProbe(s, r.Request, data)
		}
	}
	if r.seen.has(fieldRetryFailedRecords) && s.fault == nil {
		s.field = "retry_failed_records"
		if r.Method == "DELETE" {
			s.refuse(inSchema, "must be given with POST, PUT or PATCH only")
		}
		checkBatch(s, r.Request)
	}
}

// checkUniqueField holds what makes an insert with a unique field safe to
// repeat: it inserts one record, and that record carries the request's id.
func checkUniqueField(s *scanner, r *Request) {
	if r.Method != "POST" || r.Body.Kind != JSONBody {
		s.refuse(inSchema, "must be given with POST and a JSON body only")
		return
	}
	const shape = `must be given with a body like {"data":[{…}]}, of exactly one record`
	body := scanner{data: r.Body.Data, depth: MaxDepth}
	records := 0
	var value []byte
	found := eachMember(&body, "data", func() {
		if body.peek() != '[' {
			body.refuse(inSchema, "")
			return
		}
		for body.element(records) {
			if records++; records > 1 || body.peek() != '{' {
				body.refuse(inSchema, "")
				return
			}
			times := eachMember(&body, r.UniqueField, func() { value, _ = body.raw() })
			if times != 1 {
				value = nil
			}
		}
	})
	switch {
	case found > 1:
		s.refuse(ruleDuplicate, shape)
	case body.fault != nil || found == 0 || records != 1:
		s.refuse(inSchema, shape)
	case !spells(value, r.ID):
		s.refuse(ruleUniqueField, "must name a field that the body's record has once, with the request's id as its value")
	}
}

// eachMember calls read for every member of the object that has the key, skips
// the others, and returns how many had it. It stands before the value.
func eachMember(s *scanner, key string, read func()) (times int) {
	if s.peek() != '{' {
		s.refuse(inSchema, "")
		return 0
	}
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			return times
		}
		if name, ok := unquote(raw); ok && string(name) == key {
			times++
			read()
		} else {
			s.skip()
		}
	}
}

// spells reports whether a JSON value is the string id, or a number spelled so.
func spells(value []byte, id string) bool {
	if len(value) > 1 && value[0] == '"' {
		text, ok := unquote(value[1 : len(value)-1])
		return ok && string(text) == id
	}
	return len(value) > 0 && (isDigit(value[0]) || value[0] == '-') && string(value) == id
}

// salvage reads what is needed to answer a request that can't be carried out.
// It returns a fault where the document isn't JSON: then nothing in it counts.
func (d *Decoder) salvage(data []byte) (*Request, *fault) {
	s := scanner{data: data, depth: salvageDepth, field: documentField}
	if s.peek() != '{' {
		s.skip()
		s.end()
		return &Request{}, s.fault
	}
	var id, replyTo []byte
	ids, replies := 0, 0
	read := func() []byte {
		raw, ok := s.raw()
		if !ok || raw[0] != '"' {
			return nil
		}
		text, ok := unquote(raw[1 : len(raw)-1])
		if !ok {
			return nil
		}
		return text
	}
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			break
		}
		key, _ := unquote(raw)
		switch string(key) {
		case "id":
			id = read()
			ids++
		case "reply_to":
			replyTo = read()
			replies++
		default:
			s.skip()
		}
	}
	if !s.end() {
		return &Request{}, s.fault
	}
	req := &Request{}
	if ids == 1 && validID(id) { // of two, nobody can say which was meant
		req.ID = string(id)
	}
	if _, why := d.checkReplyTo(replyTo); replies == 1 && why == "" {
		req.ReplyTo = string(replyTo)
	}
	return req, nil
}
