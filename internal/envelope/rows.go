package envelope

// AddsRows reports whether body, that of an update, holds an object without an id in
// an array within one of its records: a row of a subform, a line item, a file. To Zoho
// that is a new one, and sent twice it is two (zoho-facts 4.2). What isn't a JSON object
// may hold anything. Tags are a set of names.
func AddsRows(body []byte) bool {
	s := scanner{data: body, depth: MaxDepth}
	adds := false
	if s.peek() != '{' {
		return true
	}
	for n := 0; ; n++ {
		if _, ok := s.member(n); !ok {
			break
		}
		if s.peek() != '[' { // its elements are the records
			adds = s.addsRows(s.depth) || adds
			continue
		}
		for n := 0; s.element(n); n++ {
			adds = s.addsRows(s.depth) || adds
		}
	}
	return adds || !s.end()
}

// addsRows reads one value that is no row itself.
func (s *scanner) addsRows(depth int) (adds bool) {
	switch {
	case depth <= 0:
		s.tooDeep()
	case s.peek() == '{':
		_, adds = s.row(depth)
	case s.peek() == '[':
		for n := 0; s.element(n); n++ {
			if s.peek() != '{' {
				adds = s.addsRows(depth-1) || adds
				continue
			}
			known, within := s.row(depth - 1)
			adds = adds || !known || within
		}
	default:
		s.skip()
	}
	return adds
}

// row reads an object, and reports whether it has an id and whether it adds rows.
func (s *scanner) row(depth int) (known, adds bool) {
	for n := 0; ; n++ {
		key, ok := s.member(n)
		if !ok {
			return known, adds
		}
		switch string(key) {
		case "id":
			id, _ := s.raw()
			known = known || len(id) > 0 && isDigit(id[0]) || len(id) > 2 && id[0] == '"'
		case "Tag":
			s.skip()
		default:
			adds = s.addsRows(depth-1) || adds
		}
	}
}
