package envelope

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// scanner walks once through a JSON document. It keeps the first fault and
// stands still after it, so callers need to look only at the end.
type scanner struct {
	data  []byte
	pos   int
	depth int    // how deep a skipped value may nest
	field string // what a fault is about
	fault *fault
}

// refuse records what is wrong with the current field. It returns false, for
// callers that return right away.
func (s *scanner) refuse(r rule, text string) bool {
	if s.fault == nil {
		s.fault = &fault{code: InvalidRequest, rule: r, field: s.field, text: text}
	}
	return false
}

func (s *scanner) syntax() bool {
	if s.fault == nil {
		s.fault = &fault{
			code: InvalidRequest, rule: ruleJSON, field: documentField,
			text: "must be valid JSON, but isn't at byte " + strconv.Itoa(s.pos),
		}
	}
	return false
}

// documentField stands for the field in a fault of the whole document.
const documentField = "envelope"

// peek skips white space and returns the byte after it, 0 at the end. A byte 0
// in the document begins nothing either, so the two need no telling apart.
func (s *scanner) peek() byte {
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; c {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// end refuses anything but white space after the document.
func (s *scanner) end() bool {
	if s.fault != nil {
		return false
	}
	if s.peek(); s.pos < len(s.data) {
		return s.syntax()
	}
	return true
}

// member moves to the n-th member of an object, from 0, and returns its key as
// it stands between the quotes. The first call stands on '{'. It returns false
// behind the object, and on a fault.
func (s *scanner) member(n int) (key []byte, ok bool) {
	if !s.step(n, '}') {
		return nil, false
	}
	if key, ok = s.rawString(); !ok {
		return nil, false
	}
	if s.peek() != ':' {
		return nil, s.syntax()
	}
	s.pos++
	return key, true
}

// element moves to the n-th element of an array, like member.
func (s *scanner) element(n int) bool { return s.step(n, ']') }

func (s *scanner) step(n int, closing byte) bool {
	if s.fault != nil {
		return false
	}
	if n == 0 {
		s.pos++ // the opening bracket, which the caller saw
		if s.peek() == closing {
			s.pos++
			return false
		}
		return true
	}
	switch s.peek() {
	case closing:
		s.pos++
		return false
	case ',':
		s.pos++
		return true
	}
	return s.syntax()
}

// plain marks the bytes that stand for themselves in a JSON string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x100; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// plainPrefix returns how many plain bytes b begins with. It looks at eight at a time.
func plainPrefix(b []byte) (n int) {
	const low, high = 0x0101010101010101, 0x8080808080808080
	for ; n+8 <= len(b); n += 8 {
		w := binary.LittleEndian.Uint64(b[n:])
		quote, slash := w^(low*'"'), w^(low*'\\')
		// The high bit of the first byte that is below a space, or 0 once what is
		// looked for is taken away; of those behind it, some are wrong.
		found := ((w - low*' ') &^ w) | ((quote - low) &^ quote) | ((slash - low) &^ slash)
		if found &= high; found != 0 {
			return n + bits.TrailingZeros64(found)/8
		}
	}
	for n < len(b) && plain[b[n]] {
		n++
	}
	return n
}

// rawString reads a string and returns what stands between the quotes.
func (s *scanner) rawString() ([]byte, bool) {
	if s.peek() != '"' {
		return nil, s.syntax()
	}
	start := s.pos + 1
	for i := start; ; i++ {
		i += plainPrefix(s.data[i:])
		s.pos = i
		if i == len(s.data) {
			return nil, s.syntax()
		}
		c := s.data[i]
		if c == '"' {
			s.pos = i + 1
			return s.data[start:i:i], true
		}
		if c != '\\' || i+1 == len(s.data) {
			return nil, s.syntax()
		}
		i++
		switch s.data[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			if _, ok := hex4(s.data[i+1:]); !ok {
				return nil, s.syntax()
			}
			i += 4
		default:
			return nil, s.syntax()
		}
	}
}

// skip reads one value of any type. JSON's grammar is checked to the last
// byte, nothing is kept.
func (s *scanner) skip() bool { return s.fault == nil && s.skipAt(s.depth) }

func (s *scanner) skipAt(depth int) bool {
	switch c := s.peek(); c {
	case '"':
		_, ok := s.rawString()
		return ok
	case '{':
		if depth == 0 {
			return s.tooDeep()
		}
		for n := 0; ; n++ {
			if _, ok := s.member(n); !ok {
				return s.fault == nil
			}
			if !s.skipAt(depth - 1) {
				return false
			}
		}
	case '[':
		if depth == 0 {
			return s.tooDeep()
		}
		for n := 0; ; n++ {
			if !s.element(n) {
				return s.fault == nil
			}
			if !s.skipAt(depth - 1) {
				return false
			}
		}
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	default:
		return s.number()
	}
}

func (s *scanner) tooDeep() bool {
	return s.refuse(ruleDepth, "must not nest arrays and objects deeper than "+strconv.Itoa(s.depth))
}

func (s *scanner) word(w string) bool {
	if len(s.data)-s.pos < len(w) || string(s.data[s.pos:s.pos+len(w)]) != w {
		return s.syntax()
	}
	s.pos += len(w)
	return true
}

func (s *scanner) number() bool {
	i := s.pos
	at := func(c byte) bool { return i < len(s.data) && s.data[i] == c }
	digits := func() bool {
		from := i
		for i < len(s.data) && isDigit(s.data[i]) {
			i++
		}
		return i > from
	}
	if at('-') {
		i++
	}
	if at('0') {
		i++
	} else if !digits() {
		return s.syntax()
	}
	if at('.') {
		if i++; !digits() {
			return s.syntax()
		}
	}
	if at('e') || at('E') {
		i++
		if at('+') || at('-') {
			i++
		}
		if !digits() {
			return s.syntax()
		}
	}
	s.pos = i
	return true
}

// raw reads one value and returns its bytes as they stand in the document.
func (s *scanner) raw() ([]byte, bool) {
	s.peek()
	start := s.pos
	if !s.skip() {
		return nil, false
	}
	return s.data[start:s.pos:s.pos], true
}

// text reads a string value of the current field. What it returns is the
// document's own memory unless there were escapes.
func (s *scanner) text() ([]byte, bool) {
	if s.peek() != '"' {
		return nil, s.refuse(inSchema, "must be a string")
	}
	raw, ok := s.rawString()
	if !ok {
		return nil, false
	}
	text, ok := unquote(raw)
	if !ok {
		return nil, s.refuse(ruleSurrogate, "must not have half a surrogate pair (\\ud800 to \\udfff)")
	}
	return text, true
}

// unquote resolves the escapes of a string that rawString returned. It returns
// false, and U+FFFD in its place, for half a surrogate pair.
func unquote(raw []byte) (text []byte, ok bool) {
	i := bytes.IndexByte(raw, '\\')
	if i < 0 {
		return raw, true
	}
	ok = true
	text = append(make([]byte, 0, len(raw)), raw[:i]...)
	for i < len(raw) {
		c := raw[i]
		i++
		if c != '\\' {
			text = append(text, c)
			continue
		}
		c = raw[i]
		i++
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, _ := hex4(raw[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(0)
				if i+1 < len(raw) && raw[i] == '\\' && raw[i+1] == 'u' {
					low, _ = hex4(raw[i+2:])
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					ok = false
				} else {
					i += 6
				}
			}
			text = utf8.AppendRune(text, r)
			continue
		}
		text = append(text, c) // also " \ and /, which stand for themselves
	}
	return text, ok
}

// view returns b as a string, without a copy. Documents are never written to.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		d, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case isDigit(c):
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// validJSON reports whether data is one JSON value in UTF-8, with white space
// around it or not, that nests at most depth deep.
func validJSON(data []byte, depth int) bool {
	s := scanner{data: data, depth: depth}
	return utf8.Valid(data) && s.skip() && s.end()
}
