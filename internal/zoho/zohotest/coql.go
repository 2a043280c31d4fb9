package zohotest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// The limits of COQL, zoho-facts 4.3.
const (
	defaultRows = 200
	maxRows     = 2_000
	maxOffset   = 100_000
	maxIn       = 50
)

// statement is a parsed COQL query.
type statement struct {
	fields      []string
	module      string
	where       condition
	orderBy     string
	descending  bool
	offset, max int
}

// coql is POST of /coql, which only reads.
func (x *exchange) coql() *result {
	var body struct {
		Query *string `json:"select_query"`
	}
	if err := decode(x.body, &body); err != nil {
		return notJSON()
	}
	if body.Query == nil {
		return fail(http.StatusBadRequest, "MANDATORY_NOT_FOUND", "required field not found", params{"api_name": "select_query"})
	}
	q, near := parseCOQL(*body.Query)
	if q == nil {
		return fail(http.StatusBadRequest, "SYNTAX_ERROR", "error occurred while parsing the query",
			params{"near": near, "line": 1, "column": max(strings.Index(*body.Query, near), 0) + 1})
	}
	if q.max > maxRows || q.offset+q.max > maxOffset {
		return fail(http.StatusBadRequest, "LIMIT_EXCEEDED", "maximum limit exceeded", params{"limit": maxRows, "clause": "limit"})
	}
	if !x.access.grant.allows("ZohoCRM", "modules."+q.module+".READ") {
		return scopeMismatch()
	}
	rows := x.all(q.module, func(r *record) bool { return q.where(r.fields) })
	if q.orderBy != "" {
		slices.SortStableFunc(rows, func(a, b snapshot) int {
			va, vb := field(a.fields, q.orderBy), field(b.fields, q.orderBy)
			if q.descending {
				va, vb = vb, va
			}
			return compare(va, canonical(vb))
		})
	}
	from, to := min(q.offset, len(rows)), min(q.offset+q.max, len(rows))
	if from == to {
		return empty(http.StatusNoContent)
	}
	data := make([]map[string]any, 0, to-from)
	for _, r := range rows[from:to] {
		data = append(data, pick(r.fields, q.fields))
	}
	return reply(http.StatusOK, "", params{"data": data, "info": params{"count": len(data), "more_records": to < len(rows)}})
}

// lex cuts a query into words, strings (with their first quote) and signs.
func lex(s string) ([]string, bool) {
	var tokens []string
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		case c == '\'':
			text, j := "'", i+1
			for ; j < len(s) && (s[j] != '\'' || strings.HasPrefix(s[j:], "''")); j++ {
				if (s[j] == '\\' || s[j] == '\'') && j+1 < len(s) {
					j++
				}
				text += s[j : j+1]
			}
			if j == len(s) {
				return tokens, false
			}
			tokens, i = append(tokens, text), j+1
		case strings.IndexByte("(),", c) >= 0:
			tokens, i = append(tokens, s[i:i+1]), i+1
		case strings.IndexByte("=<>!", c) >= 0:
			j := i + 1
			for j < len(s) && strings.IndexByte("=>", s[j]) >= 0 {
				j++
			}
			tokens, i = append(tokens, s[i:j]), j
		default:
			j := i
			for j < len(s) && strings.IndexByte(" \t\r\n'(),=<>!", s[j]) < 0 {
				j++
			}
			tokens, i = append(tokens, s[i:j]), j
		}
	}
	return tokens, true
}

// query is a parser over tokens. Its methods return false where the query is wrong;
// the token at hand is then what the error is near.
type query struct{ tokens []string }

func (p *query) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}

func (p *query) take() string {
	t := p.peek()
	if t != "" {
		p.tokens = p.tokens[1:]
	}
	return t
}

// word takes a keyword if it is next.
func (p *query) word(w string) bool {
	if !strings.EqualFold(p.peek(), w) {
		return false
	}
	p.take()
	return true
}

var keywords = []string{"select", "from", "where", "and", "or", "not", "in", "is", "null", "like", "between", "order", "by", "limit", "offset", "asc", "desc"}

func (p *query) name() (string, bool) {
	t := p.peek()
	if !moduleName.MatchString(strings.ReplaceAll(t, ".", "_")) || slices.Contains(keywords, strings.ToLower(t)) {
		return "", false
	}
	return p.take(), true
}

// value is a string, a number, true, false or a bare time.
func (p *query) value() (string, bool) {
	t := p.peek()
	if text, ok := strings.CutPrefix(t, "'"); ok {
		p.take()
		return text, true
	}
	if t == "" || strings.ContainsAny(t, "(),=<>!") || slices.Contains(keywords, strings.ToLower(t)) {
		return "", false
	}
	return p.take(), true
}

func (p *query) number() (int, bool) {
	n, err := strconv.Atoi(p.peek())
	if err != nil || n < 0 {
		return 0, false
	}
	p.take()
	return n, true
}

// parseCOQL reads
//
//	select a, b from Module [where …] [order by a [asc|desc]] [limit n [offset o] | limit o, n]
//
// and returns nil and what the error is near when it can't.
func parseCOQL(s string) (*statement, string) {
	tokens, ok := lex(s)
	if !ok {
		return nil, "'"
	}
	p, q := &query{tokens}, &statement{max: defaultRows, where: func(map[string]any) bool { return true }}
	if !p.statement(q) || len(p.tokens) > 0 {
		return nil, strings.TrimPrefix(p.peek(), "'")
	}
	return q, ""
}

func (p *query) statement(q *statement) bool {
	if !p.word("select") {
		return false
	}
	for {
		f, ok := p.name()
		if !ok {
			return false
		}
		q.fields = append(q.fields, f)
		if !p.word(",") {
			break
		}
	}
	var ok bool
	if !p.word("from") {
		return false
	}
	if q.module, ok = p.name(); !ok {
		return false
	}
	if p.word("where") {
		if q.where, ok = p.or(); !ok {
			return false
		}
	}
	if p.word("order") {
		if !p.word("by") {
			return false
		}
		if q.orderBy, ok = p.name(); !ok {
			return false
		}
		if q.descending = p.word("desc"); !q.descending {
			p.word("asc")
		}
	}
	return p.limit(q)
}

func (p *query) limit(q *statement) (ok bool) {
	if !p.word("limit") {
		return true
	}
	if q.max, ok = p.number(); !ok {
		return false
	}
	switch {
	case p.word(","):
		q.offset = q.max
		q.max, ok = p.number()
	case p.word("offset"):
		q.offset, ok = p.number()
	}
	return ok && q.max > 0
}

func (p *query) or() (condition, bool) {
	left, ok := p.and()
	for ok && p.word("or") {
		var right condition
		right, ok = p.and()
		left = either(left, right)
	}
	return left, ok
}

func (p *query) and() (condition, bool) {
	left, ok := p.condition()
	for ok && p.word("and") {
		var right condition
		right, ok = p.condition()
		left = both(left, right)
	}
	return left, ok
}

func (p *query) condition() (condition, bool) {
	if p.word("(") {
		c, ok := p.or()
		return c, ok && p.word(")")
	}
	name, ok := p.name()
	if !ok {
		return nil, false
	}
	if p.word("is") {
		want := !p.word("not")
		return isNull(name, want), p.word("null")
	}
	if p.word("between") {
		from, okFrom := p.value()
		okAnd := p.word("and")
		to, okTo := p.value()
		low, _ := test(name, ">=", from)
		high, _ := test(name, "<=", to)
		return both(low, high), okFrom && okAnd && okTo
	}
	not := p.word("not")
	if p.word("in") {
		values, ok := p.values()
		return oneOf(name, values, !not), ok
	}
	operator := strings.ToLower(p.peek())
	if operator != "like" && (not || !slices.Contains([]string{"=", "!=", "<", "<=", ">", ">="}, operator)) {
		return nil, false
	}
	p.take()
	if not {
		operator = "not like"
	}
	v, ok := p.value()
	if !ok {
		return nil, false
	}
	c, err := test(name, operator, v)
	return c, err == nil
}

// values is a list in brackets.
func (p *query) values() ([]string, bool) {
	if !p.word("(") {
		return nil, false
	}
	var list []string
	for {
		v, ok := p.value()
		if !ok {
			return nil, false
		}
		list = append(list, v)
		if !p.word(",") {
			return list, len(list) <= maxIn && p.word(")")
		}
	}
}
