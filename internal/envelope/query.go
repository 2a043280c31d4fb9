package envelope

import (
	"net/url"
	"unicode/utf8"
)

// queryField reads the field query and returns its parameters, encoded, in the
// document's order. Numbers and booleans are sent as they are spelled.
func queryField(s *scanner) []byte {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	out := make([]byte, 0, 128)
	seen := make(keySet, 0, 16)
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			return out
		}
		if n == maxQueryKeys {
			s.refuse(inSchema, "must have at most 256 parameters")
			return out
		}
		key, ok := unquote(raw)
		switch {
		case !ok:
			s.refuse(ruleSurrogate, "must not have half a surrogate pair (\\ud800 to \\udfff) in a name")
		case len(key) == 0 || utf8.RuneCount(key) > maxQueryKey || hasControl(key):
			s.refuse(inSchema, "must have names of 1 to 128 characters without control characters")
		case isCredential(key):
			s.refuse(inSchema, credentialText)
		case !seen.add(string(key)):
			s.refuse(ruleDuplicate, "must not name a parameter twice: give it an array of values")
		}
		out = queryValues(s, out, string(key))
		if len(out) > maxQuery {
			s.refuse(ruleBytes, "must have at most 8192 bytes once encoded, together with url's own")
		}
		if s.fault != nil {
			return out
		}
	}
}

func queryValues(s *scanner, out []byte, key string) []byte {
	if s.peek() != '[' {
		return queryValue(s, out, key)
	}
	n := 0
	for ; s.element(n); n++ {
		if n == maxQueryList {
			s.refuse(inSchema, "must have at most 256 values in an array")
			return out
		}
		// Without this a long list of long values would be built before its size is looked at.
		if out = queryValue(s, out, key); len(out) > maxQuery {
			return out
		}
	}
	if n == 0 {
		s.refuse(inSchema, "must not have an empty array: leave the parameter out")
	}
	return out
}

func queryValue(s *scanner, out []byte, key string) []byte {
	var value []byte
	switch c := s.peek(); {
	case c == '"':
		value, _ = s.text()
	case c == 't' || c == 'f' || c == '-' || isDigit(c):
		value, _ = s.raw()
	default:
		s.refuse(inSchema, "must have strings, numbers, booleans or arrays of those as values")
	}
	if s.fault != nil {
		return out
	}
	if len(value) > maxQuery {
		s.refuse(ruleBytes, "must have at most 8192 bytes once encoded, together with url's own")
		return out
	}
	if len(out) > 0 {
		out = append(out, '&')
	}
	out = append(out, url.QueryEscape(key)...)
	out = append(out, '=')
	return append(out, url.QueryEscape(string(value))...)
}

// keySet finds a key that comes twice. Objects here have few keys and a bound
// on their number, so looking through all of them beats a map.
type keySet []string

func (k *keySet) add(key string) bool {
	for _, other := range *k {
		if other == key {
			return false
		}
	}
	*k = append(*k, key)
	return true
}
