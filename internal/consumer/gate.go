package consumer

import "sync"

// gate bounds the calls in flight of this worker over all orgs. Orgs that find
// it closed stand in line, once each, so that they take turns at the places.
type gate struct {
	mu   sync.Mutex
	most int
	free int
	line []*org
}

func newGate(most int) *gate { return &gate{most: most, free: most} }

// enter takes a place for the org; false: it stands in line, and is called when
// it is its turn.
func (g *gate) enter(o *org) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if o.turn {
		o.turn = false // leave kept a place for it
		return true
	}
	if g.free > 0 { // then nobody stands in line: who leaves gives his place to the first
		g.free--
		return true
	}
	if !o.inLine {
		o.inLine = true
		g.line = append(g.line, o)
	}
	return false
}

// leave gives a place back and returns the org whose turn it is, nil for none.
func (g *gate) leave() *org {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.line) == 0 {
		g.free++
		return nil
	}
	o := g.line[0]
	g.line[0] = nil
	g.line = g.line[1:]
	o.inLine, o.turn = false, true
	return o
}

// unused gives the place back that leave kept for the org, if it has no use
// for it, and returns the org whose turn it is then.
func (g *gate) unused(o *org) *org {
	g.mu.Lock()
	kept := o.turn
	o.turn = false
	g.mu.Unlock()
	if !kept {
		return nil
	}
	return g.leave()
}

// state is how many places are taken, and how many orgs stand in line.
func (g *gate) state() (taken, waiting int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.most - g.free, len(g.line)
}
