package zohotest

import (
	"cmp"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"time"
)

// condition judges a record, for search and COQL alike.
type condition = func(fields map[string]any) bool

// field is a value of a record; a dot leads into a lookup: Account_Name.id.
func field(fields map[string]any, name string) any {
	v, ok := fields[name]
	for !ok {
		head, tail, dotted := strings.Cut(name, ".")
		if !dotted {
			return nil
		}
		inner, is := fields[head].(map[string]any)
		if !is {
			return nil
		}
		fields, name = inner, tail
		v, ok = fields[name]
	}
	return v
}

// compare orders two values, a record's and one from a query: as numbers, as times
// or as text without case.
func compare(v any, text string) int {
	if n, ok := v.(json.Number); ok {
		a, okA := new(big.Rat).SetString(n.String())
		b, okB := new(big.Rat).SetString(text)
		if okA && okB {
			return a.Cmp(b)
		}
	}
	c := canonical(v)
	if a, err := time.Parse(time.RFC3339, strings.ToUpper(c)); err == nil {
		if b, err := parseTime(text); err == nil {
			return a.Compare(b)
		}
	}
	return cmp.Compare(c, strings.ToLower(text))
}

// test is a comparison of a field with a value; null fulfils only "not equal".
func test(name, operator, value string) (condition, error) {
	var hit func(order int) bool
	low := strings.ToLower(value)
	text := func(f func(s, substr string) bool, want bool) (condition, error) {
		return func(r map[string]any) bool {
			v := field(r, name)
			return v != nil && f(canonical(v), low) == want
		}, nil
	}
	switch operator {
	case "=", "equals":
		hit = func(o int) bool { return o == 0 }
	case "!=", "not_equal":
		return func(r map[string]any) bool { v := field(r, name); return v == nil || compare(v, value) != 0 }, nil
	case ">", "greater_than":
		hit = func(o int) bool { return o > 0 }
	case ">=", "greater_equal":
		hit = func(o int) bool { return o >= 0 }
	case "<", "less_than":
		hit = func(o int) bool { return o < 0 }
	case "<=", "less_equal":
		hit = func(o int) bool { return o <= 0 }
	case "like":
		return text(like, true)
	case "not like":
		return text(like, false)
	case "starts_with":
		return text(strings.HasPrefix, true)
	case "contains":
		return text(strings.Contains, true)
	default:
		return nil, errors.New("unknown operator " + operator)
	}
	return func(r map[string]any) bool { v := field(r, name); return v != nil && hit(compare(v, value)) }, nil
}

// like matches a text with a pattern whose % is any text.
func like(s, pattern string) bool {
	parts := strings.Split(pattern, "%")
	if len(parts) == 1 {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, p := range parts[1:last] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[last])
}

func oneOf(name string, values []string, want bool) condition {
	return func(r map[string]any) bool {
		v := field(r, name)
		if v == nil {
			return false
		}
		for _, w := range values {
			if compare(v, w) == 0 {
				return want
			}
		}
		return !want
	}
}

func isNull(name string, want bool) condition {
	return func(r map[string]any) bool { v := field(r, name); return (v == nil || v == "") == want }
}

func both(a, b condition) condition {
	return func(r map[string]any) bool { return a(r) && b(r) }
}

func either(a, b condition) condition {
	return func(r map[string]any) bool { return a(r) || b(r) }
}

// parseCriteria reads the criteria of /search: (Field:operator:value), joined by
// and/or, in brackets. In values, \ takes the meaning from ( ) , and \.
func parseCriteria(s string) (condition, error) {
	p := &criteria{rest: s}
	c, err := p.expression()
	if err == nil && strings.TrimSpace(p.rest) != "" {
		err = errors.New("unexpected " + p.rest)
	}
	return c, err
}

type criteria struct{ rest string }

func (p *criteria) expression() (condition, error) {
	left, err := p.term()
	for err == nil {
		p.rest = strings.TrimSpace(p.rest)
		join := either
		rest, ok := cutFold(p.rest, "or")
		if !ok {
			join = both
			if rest, ok = cutFold(p.rest, "and"); !ok {
				return left, nil
			}
		}
		p.rest = rest
		var right condition
		if right, err = p.term(); err == nil {
			left = join(left, right)
		}
	}
	return nil, err
}

func (p *criteria) term() (condition, error) {
	p.rest = strings.TrimSpace(p.rest)
	if !strings.HasPrefix(p.rest, "(") {
		return nil, errors.New("expected (")
	}
	p.rest = strings.TrimSpace(p.rest[1:])
	if strings.HasPrefix(p.rest, "(") {
		c, err := p.expression()
		if err != nil {
			return nil, err
		}
		if p.rest = strings.TrimSpace(p.rest); !strings.HasPrefix(p.rest, ")") {
			return nil, errors.New("expected )")
		}
		p.rest = p.rest[1:]
		return c, nil
	}
	name, rest, _ := strings.Cut(p.rest, ":")
	operator, rest, ok := strings.Cut(rest, ":")
	if !ok || !moduleName.MatchString(strings.ReplaceAll(name, ".", "_")) {
		return nil, errors.New("expected Field:operator:value")
	}
	values := []string{""}
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\\' && i+1 < len(rest):
			i++
			values[len(values)-1] += rest[i : i+1]
		case c == ')':
			p.rest = rest[i+1:]
			if operator == "in" {
				return oneOf(name, values, true), nil
			}
			if operator == "between" && len(values) == 2 {
				from, _ := test(name, ">=", values[0])
				to, _ := test(name, "<=", values[1])
				return both(from, to), nil
			}
			return test(name, operator, strings.Join(values, ","))
		case c == ',':
			values = append(values, "")
		default:
			values[len(values)-1] += rest[i : i+1]
		}
	}
	return nil, errors.New("expected )")
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
