package zoho

import (
	"slices"
	"strings"
)

// form is a row's pattern, taken apart once: every request asks for its
// operation more than once.
type form struct {
	*row
	bulk     bool
	segments []string
	open     bool // "…" stands at the end: any more segments, or none
}

var forms = func() map[string][]form {
	all := make(map[string][]form)
	for i := range rows {
		f := form{row: &rows[i]}
		pattern, bulk := strings.CutPrefix(rows[i].pattern, "bulk:")
		f.bulk, f.segments = bulk, strings.Split(pattern, "/")
		if last := len(f.segments) - 1; f.segments[last] == "…" {
			f.segments, f.open = f.segments[:last], true
		}
		methods := []string{rows[i].method}
		if rows[i].method == "" {
			methods = []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
		}
		for _, method := range methods {
			all[method] = append(all[method], f)
		}
	}
	return all
}()

// match returns the first row that a method and the path behind the version fit.
func match(method, path string, bulk bool) *row {
	var room [8]string
	segments := room[:0]
	for rest, more := path, true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		segments = append(segments, segment)
	}
	for i := range forms[method] {
		if f := &forms[method][i]; f.bulk == bulk && f.fits(segments) {
			return f.row
		}
	}
	return nil
}

func (f *form) fits(path []string) bool {
	if len(path) < len(f.segments) || len(path) > len(f.segments) && !f.open {
		return false
	}
	for i, want := range f.segments {
		have := path[i]
		switch want {
		case "*":
			if have == "" {
				return false
			}
		case "{m}":
			if have == "" || strings.HasPrefix(have, "__") || slices.Contains(reservedSegments, have) {
				return false
			}
		default:
			if have != want {
				return false
			}
		}
	}
	return true
}
