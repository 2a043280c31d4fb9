package zoho

import (
	"sync"
	"time"
)

// pool keeps unused connections, the one used last on top.
type pool struct {
	most int // kept for each host

	mu     sync.Mutex
	idle   map[place][]*kept
	sweeps *time.Timer // nil while nothing is kept
	closed bool        // since the last get: what comes back is closed
}

// get takes a connection out, nil where there is none.
func (p *pool) get(where place) *kept {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = false
	idle := p.idle[where]
	if len(idle) == 0 {
		return nil
	}
	k := idle[len(idle)-1]
	idle[len(idle)-1] = nil
	p.idle[where] = idle[:len(idle)-1]
	return k
}

// put gives a connection back.
func (p *pool) put(k *kept) {
	if len(k.buf) == bufferSize { // a larger one was an exception
		readBuffers.Put((*[bufferSize]byte)(k.buf))
	}
	k.buf, k.r, k.w = nil, 0, 0 // nothing is in it: that is why k is kept
	k.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[k.where]) >= p.most {
		k.close()
		return
	}
	if p.idle == nil {
		p.idle = make(map[place][]*kept)
	}
	p.idle[k.where] = append(p.idle[k.where], k)
	if p.sweeps == nil {
		p.sweeps = time.AfterFunc(idleTimeout, p.sweep)
	}
}

// sweep closes what nobody has used for idleTimeout.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sweeps == nil {
		return
	}
	var oldest time.Time
	for where, idle := range p.idle {
		n := 0
		for n < len(idle) && time.Since(idle[n].since) >= idleTimeout {
			idle[n].close()
			n++
		}
		if n == len(idle) {
			delete(p.idle, where)
			continue
		}
		p.idle[where] = append(idle[:0], idle[n:]...)
		clear(idle[len(idle)-n:])
		if oldest.IsZero() || idle[0].since.Before(oldest) {
			oldest = idle[0].since
		}
	}
	if oldest.IsZero() {
		p.sweeps = nil
		return
	}
	p.sweeps.Reset(max(time.Until(oldest.Add(idleTimeout)), time.Second))
}

// close closes what is kept, and what comes back before the next get.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweeps != nil {
		p.sweeps.Stop()
		p.sweeps = nil
	}
	for _, idle := range p.idle {
		for _, k := range idle {
			k.close()
		}
	}
	p.idle = nil
}
