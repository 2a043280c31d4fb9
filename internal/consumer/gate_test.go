package consumer

import "testing"

// Orgs take turns at the places of a worker: whoever comes later waits for those in
// line, each of which stands there once, and a place that was kept for one is had by that
// one, once, or goes on to the next.
func TestGate(t *testing.T) {
	t.Parallel()
	g := newGate(1)
	a, b, c, d := &org{name: "a"}, &org{name: "b"}, &org{name: "c"}, &org{name: "d"}
	enter := func(o *org, want bool) {
		t.Helper()
		if g.enter(o) != want {
			t.Fatalf("%s enters: %v", o.name, !want)
		}
	}
	leave := func(who *org) {
		t.Helper()
		if next := g.leave(); next != who {
			t.Fatalf("%+v is next, want %+v", next, who)
		}
	}
	state := func(taken, waiting int) {
		t.Helper()
		if n, m := g.state(); n != taken || m != waiting {
			t.Fatalf("%d places are taken and %d orgs wait, want %d and %d", n, m, taken, waiting)
		}
	}
	state(0, 0)
	enter(a, true)
	enter(b, false)
	enter(b, false)
	enter(c, false)
	state(1, 2)
	leave(b)
	state(1, 1)
	enter(a, false) // it has had its turn
	enter(b, true)
	enter(b, false) // for one place
	state(1, 3)
	leave(c)
	if next := g.unused(d); next != nil {
		t.Fatalf("%+v is next after one that has no turn", next)
	}
	if next := g.unused(c); next != a {
		t.Fatalf("%+v is next, want a: c has no use for its place", next)
	}
	enter(c, false) // it gave it back
	enter(a, true)
	leave(b)
	enter(b, true)
	leave(c)
	if next := g.unused(c); next != nil {
		t.Fatalf("%+v is next, and nobody waits", next)
	}
	state(0, 0)
	enter(d, true)
	leave(nil)
	state(0, 0)
}
