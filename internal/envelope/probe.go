package envelope

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Probe is how an insert whose outcome is unknown is looked up: by exactly one
// of a COQL condition, a url and a field.
type Probe struct {
	// COQL is a condition that holds for the inserted record alone:
	// "External_Ref = 'order-4711'". It is asked of the module of the insert.
	COQL string
	// Path, RawQuery and Headers are a GET that answers with the inserted
	// record: one by the value of an external field. They are as a Request's.
	Path     string
	RawQuery string
	Headers  []Header
	// Field is the API name of a field whose value tells the records of the
	// body apart from all others. Values are what they have in it, in the body's
	// order and in COQL's spelling, 'order-4711' or 17: none is there twice, and
	// none holds a quote.
	Field  string
	Values []string
}

// Queries reports whether it asks by COQL, which is a heavy call (zoho-facts 3.3).
func (p *Probe) Queries() bool { return p.Path == "" }

var probeFields = []string{"coql", "url", "headers", "field"}

const (
	probeCOQL = iota
	probeURL
	probeHeaders
	probeField
)

// maxBatch is how many records Zoho takes in one call (zoho-facts 4.2).
const maxBatch = 100

// probe reads the field probe.
func (s *scanner) probe() *Probe {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	var p Probe
	var seen fieldSet
	for n := 0; ; n++ {
		field, ok := s.envelopeMember(n, probeFields, &seen)
		if !ok {
			break
		}
		s.field = "probe." + probeFields[field]
		switch field {
		case probeCOQL:
			if text, ok := s.text(); ok {
				if r, why := checkCondition(text); why != "" {
					s.refuse(r, why)
				}
				p.COQL = string(text)
			}
		case probeURL:
			if text, ok := s.text(); ok {
				path, query, f := parseURL(text)
				if f != nil {
					f.field = "probe." + f.field
					s.fault = f
				} else if r, why := checkProbePath(path); why != "" {
					s.refuse(r, why)
				}
				p.Path, p.RawQuery = path, string(query)
			}
		case probeHeaders:
			p.Headers = headersField(s)
		case probeField:
			if text, ok := s.text(); ok {
				if !validFieldName(text) {
					s.refuse(inSchema, badFieldName)
				}
				p.Field = string(text)
			}
		}
	}
	if f := s.fault; f != nil {
		if f.field == documentField && f.rule != ruleJSON {
			f.field = "probe"
		} else if f.field != documentField && !strings.HasPrefix(f.field, "probe.") {
			f.field = "probe." + f.field
		}
		return nil
	}
	s.field = "probe"
	switch ways := seen &^ (1 << probeHeaders); {
	case ways == 0 || ways&(ways-1) != 0:
		s.refuse(inSchema, "must have exactly one of coql, url and field")
	case seen.has(probeHeaders) && !seen.has(probeURL):
		s.field = "probe.headers"
		s.refuse(inSchema, "must be given with url only")
	}
	return &p
}

// notCondition are words that end a condition in COQL, or begin another query.
// Between quotes they are values.
var notCondition = []string{"select", "from", "where", "limit", "offset", "order", "group"}

// checkCondition returns why text isn't one condition of COQL, or "".
func checkCondition(text []byte) (rule, string) {
	if n := utf8.RuneCount(text); n == 0 || n > 1024 || hasControl(text) {
		return inSchema, "must be a condition of 1 to 1024 characters without control characters"
	}
	const example = "must be a condition alone, what stands between where and limit: External_Ref = 'order-4711'"
	depth, quoted, blank := 0, false, true
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quoted:
			if c == '\\' {
				i++
			}
			quoted = c != '\''
			continue
		case c == '\'':
			quoted = true
		case c == '(':
			depth++
		case c == ')':
			if depth--; depth < 0 {
				return ruleProbe, "must close no parenthesis that it doesn't open"
			}
		case c == ';':
			return ruleProbe, example
		case isLetter(c):
			word := text[i:]
			for n, c := range word {
				if !isWord(c) {
					word = word[:n]
					break
				}
			}
			for _, not := range notCondition {
				if strings.EqualFold(string(word), not) {
					return ruleProbe, example
				}
			}
			i += len(word) - 1
		}
		blank = blank && c == ' '
	}
	switch {
	case quoted:
		return ruleProbe, "must close its quotes: a quote inside a value is ''"
	case depth > 0:
		return ruleProbe, "must close its parentheses"
	case blank:
		return ruleProbe, example
	}
	return inSchema, ""
}

// checkProbePath holds that a probe's GET reads one record from the database:
// /crm/v8/<module>/<id or external value>. A search lags behind, and a GET of a
// function carries it out.
func checkProbePath(path string) (rule, string) {
	const shape = "must read one record: /v<N>/<module>/<value>, with the value of an external field"
	parts := strings.Split(strings.TrimPrefix(path, apiRoot+"/"), "/")
	if len(parts) != 3 || parts[0][0] != 'v' {
		return inSchema, shape
	}
	if !validFieldName([]byte(parts[1])) {
		return ruleProbe, shape
	}
	switch parts[2] {
	case "search":
		return ruleProbe, "must not be a search: Zoho's index lags behind, and says that there is nothing"
	case "deleted", "actions", "upsert":
		return ruleProbe, shape
	}
	return inSchema, ""
}

// module returns the module of the path of an insert, /crm/v8/<module>.
func module(path string) (name string, ok bool) {
	version, name, _ := strings.Cut(strings.TrimPrefix(path, apiRoot+"/"), "/")
	return name, version[0] == 'v' && !strings.Contains(name, "/")
}

// checkProbe holds what a probe needs of the rest of the request.
func checkProbe(s *scanner, r *Request, data *Batch) {
	name, ok := module(r.Path)
	switch p := r.Probe; {
	case r.UniqueField != "":
		s.refuse(inSchema, "must not be given together with unique_field, which needs none")
	case r.Method != "POST" || !ok:
		s.refuse(inSchema, "must be given with an insert only: POST to /v<N>/<module>")
	case !validFieldName([]byte(name)):
		s.refuse(ruleProbe, "must be given with an insert only: POST to /v<N>/<module>")
	case p.Field == "":
		if len(data.Records) > 1 {
			s.field = "probe." + probeFields[probeURL]
			if p.COQL != "" {
				s.field = "probe." + probeFields[probeCOQL]
			}
			s.refuse(inSchema, "must be given with one record only: name a field to have several probed one by one")
		}
	default:
		s.field = "probe.field"
		p.Values = data.values(s, p.Field)
	}
}

// values returns what each record has in field.
func (b *Batch) values(s *scanner, field string) []string {
	values := make([]string, 0, len(b.Records))
	seen := make(map[string]bool, len(b.Records))
	for _, raw := range b.Records {
		value, times := Member(raw, field)
		text, ok := fieldValue(value)
		if times != 1 || !ok {
			s.refuse(ruleProbe, "must name a field that each record of the body has once, with a number, or 1 to 255 characters without control characters, quotes, \\ and space around them")
			return nil
		}
		if seen[text] {
			s.refuse(ruleProbe, "must name a field that has another value in each record of the body")
			return nil
		}
		seen[text] = true
		if value[0] == '"' {
			text = "'" + text + "'"
		}
		values = append(values, text)
	}
	return values
}

// fieldValue returns a JSON string or an integer as text, and false for what
// couldn't be looked up by it.
func fieldValue(value []byte) (string, bool) {
	if len(value) == 0 {
		return "", false
	}
	if value[0] != '"' {
		_, err := strconv.ParseInt(string(value), 10, 64)
		return string(value), err == nil
	}
	text, ok := unquote(value[1 : len(value)-1])
	n := utf8.RuneCount(text)
	ok = ok && n > 0 && n <= 255 && !hasControl(text) && !bytes.ContainsAny(text, `'"\`) && len(bytes.TrimSpace(text)) == len(text)
	return string(text), ok
}

// Batch is a body of records, {"data":[{…},…]}, taken apart: Head, the records
// with commas between them, and Tail are the body again, byte for byte but for
// white space between the records.
type Batch struct {
	Head, Tail []byte
	Records    [][]byte
}

// SplitRecords takes the body of a write apart. It returns false for a body
// that isn't an object with one array of objects, data. The parts alias body.
func SplitRecords(body []byte) (*Batch, bool) {
	s := scanner{data: body, depth: MaxDepth}
	b, times := s.records()
	return b, times == 1 && s.end()
}

// Member returns the value of a member of the object in body, the last one where it comes more
// than once, and how often it comes.
func Member(body []byte, name string) (value []byte, times int) {
	s := scanner{data: body, depth: MaxDepth}
	times = eachMember(&s, name, func() { value, _ = s.raw() })
	return value, times
}

// CountElements returns how many elements the array that is a member of the
// object in body has, 0 where there is none.
func CountElements(body []byte, member string) (n int) {
	s := scanner{data: body, depth: MaxDepth}
	eachMember(&s, member, func() {
		if s.peek() != '[' {
			s.refuse(inSchema, "")
			return
		}
		for n = 0; s.element(n); n++ {
			s.skip()
		}
	})
	return n
}

// EachRecord reads an object with one array of objects, data, and calls do with the
// code and the status of each, nil for what it doesn't have, until do returns false.
// It returns false then, for a code or status that isn't a string, and for a body
// that isn't such an object. What do gets is the body's memory.
func EachRecord(body []byte, do func(code, status []byte) bool) bool {
	s := scanner{data: body, depth: MaxDepth}
	times := eachMember(&s, "data", func() {
		if s.peek() != '[' {
			s.refuse(inSchema, "")
			return
		}
		for n := 0; s.element(n); n++ {
			if code, status := s.record(); s.fault == nil && !do(code, status) {
				s.refuse(inSchema, "")
			}
		}
	})
	return times == 1 && s.end()
}

// record reads an object's code and status.
func (s *scanner) record() (code, status []byte) {
	if s.peek() != '{' {
		s.refuse(inSchema, "")
		return nil, nil
	}
	for n := 0; ; n++ {
		key, ok := s.member(n)
		if !ok {
			return code, status
		}
		switch string(key) {
		case "code":
			code, _ = s.text()
		case "status":
			status, _ = s.text()
		default:
			s.skip()
		}
	}
}

// records reads an object with an array of objects, data, and returns how often it has it.
func (s *scanner) records() (b *Batch, times int) {
	b = &Batch{}
	times = eachMember(s, "data", func() {
		if s.peek() != '[' {
			s.refuse(inSchema, "")
			return
		}
		b.Head, b.Records = s.data[:s.pos+1], nil
		for n := 0; s.element(n); n++ {
			if s.peek() != '{' {
				s.refuse(inSchema, "")
				return
			}
			record, _ := s.raw()
			b.Records = append(b.Records, record)
		}
		if s.fault == nil {
			b.Tail = s.data[s.pos-1:]
		}
	})
	return b, times
}

// Body returns the body with the given records, by their places.
func (b *Batch) Body(places []int) []byte {
	size := len(b.Head) + len(b.Tail) + len(places)
	for _, i := range places {
		size += len(b.Records[i])
	}
	body := append(make([]byte, 0, size), b.Head...)
	for n, i := range places {
		if n > 0 {
			body = append(body, ',')
		}
		body = append(body, b.Records[i]...)
	}
	return append(body, b.Tail...)
}

// checkBatch reads the records that probe and retry_failed_records are about.
func checkBatch(s *scanner, r *Request) *Batch {
	const shape = `must be given with a body like {"data":[{…}]}, of 1 to 100 records`
	if r.Body.Kind != JSONBody {
		s.refuse(inSchema, shape)
		return nil
	}
	body := scanner{data: r.Body.Data, depth: MaxDepth}
	b, times := body.records()
	switch n := len(b.Records); {
	case times > 1:
		s.refuse(ruleDuplicate, shape)
	case body.fault != nil || times == 0 || n == 0 || n > maxBatch:
		s.refuse(inSchema, shape)
	default:
		return b
	}
	return nil
}
