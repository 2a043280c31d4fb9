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

// forms are those that a method's paths can fit, by their number of segments; the
// last are for all paths that have more than any pattern.
var forms = func() map[string][][]form {
	all, longest := make([]form, 0, len(rows)), 0
	for i := range rows {
		f := form{row: &rows[i]}
		pattern, bulk := strings.CutPrefix(rows[i].pattern, "bulk:")
		f.bulk, f.segments = bulk, strings.Split(pattern, "/")
		if last := len(f.segments) - 1; f.segments[last] == "…" {
			f.segments, f.open = f.segments[:last], true
		}
		all, longest = append(all, f), max(longest, len(f.segments))
	}
	fitting := make(map[string][][]form)
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		fitting[method] = make([][]form, longest+2)
		for n := range fitting[method] {
			for _, f := range all {
				if (f.method == "" || f.method == method) && (n == len(f.segments) || n > len(f.segments) && f.open) {
					fitting[method][n] = append(fitting[method][n], f)
				}
			}
		}
	}
	return fitting
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
	of := forms[method]
	if of == nil {
		return nil
	}
	of = of[min(len(segments), len(of)-1):]
	for i := range of[0] {
		if f := &of[0][i]; f.bulk == bulk && f.fits(segments) {
			return f.row
		}
	}
	return nil
}

// fits reports whether the path, which has the right number of segments, fits.
func (f *form) fits(path []string) bool {
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
