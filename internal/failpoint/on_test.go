//go:build failpoint

package failpoint

import (
	"reflect"
	"testing"
)

// A FAILPOINT that names nothing is an error: a test that kills nothing proves nothing.
func TestParse(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string]struct {
		point  Point
		count  int
		strike func()
	}{
		"claimed": {Claimed, 1, kill}, "stored:3": {Stored, 3, kill}, "claimed:2:STOP": {Claimed, 2, stop},
	} {
		p, count, strike, err := parse(spec)
		if err != nil || p != want.point || count != want.count || reflect.ValueOf(strike).Pointer() != reflect.ValueOf(want.strike).Pointer() {
			t.Errorf("%s: %s %d: %v", spec, p, count, err)
		}
	}
	for _, spec := range []string{"nowhere", "claimed:", "claimed:0", "claimed:x", "claimed:1:PAUSE", "claimed:1:STOP:1"} {
		if p, count, _, err := parse(spec); err == nil {
			t.Errorf("%s is %s %d", spec, p, count)
		}
	}
}

// A hook runs where it is set, every time, until it is taken away.
func TestHook(t *testing.T) {
	n := 0
	Set(Decoded, func() { n++ })
	Hit(Decoded)
	Hit(Decoded)
	Hit(Acked)
	Set(Decoded, nil)
	Hit(Decoded)
	if n != 2 {
		t.Errorf("the hook ran %d times", n)
	}
}
