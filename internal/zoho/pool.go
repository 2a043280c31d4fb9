package zoho

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// kept is a connection to Zoho, of one call at a time: whoever took it out of
// the pool, or dialled it, owns it.
type kept struct {
	raw   net.Conn // TCP
	link  net.Conn // what requests are written to: raw, or TLS over it
	where place
	out   atomic.Int64    // bytes that the kernel took
	probe syscall.RawConn // of raw; nil where there is none
	look  func(uintptr) bool
	still bool // what look saw
	wait  func(uintptr) bool
	woken bool   // wait was called before
	buf   []byte // read and not used yet: buf[r:w]
	r, w  int
	since time.Time // when it became idle
}

// Write and Read of the connection below TLS, with the count.
type counted struct {
	net.Conn
	out *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}

func newKept(raw net.Conn, where place) *kept {
	k := &kept{raw: raw, where: where}
	k.link = counted{raw, &k.out}
	if s, ok := raw.(syscall.Conn); ok {
		k.probe, _ = s.SyscallConn()
		k.look = func(fd uintptr) bool {
			k.still = silent(fd)
			return true
		}
		k.wait = func(fd uintptr) bool {
			there := k.woken || !empty(fd)
			k.woken = true
			return there
		}
	}
	return k
}

func (k *kept) close() {
	_ = k.link.Close()
}

// readBuffers are those that answers are read into. A connection has one from
// when its answer begins until it is given back.
var readBuffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// cut ends whatever waits for the connection, and makes it useless.
func (k *kept) cut() { _ = k.raw.SetDeadline(past) }

// open reports whether the server has neither closed the connection nor said
// anything since the last answer. net/http has a goroutine for each connection
// that notices; a look right before the use notices as much. The connection's
// deadline, until, stays as it is.
func (k *kept) open(until time.Time) bool {
	if k.r != k.w || k.probe != nil && (k.probe.Read(k.look) != nil || !k.still) {
		return false
	}
	t, secure := k.link.(*tls.Conn)
	if !secure {
		return true
	}
	// TLS may hold what the socket doesn't any more. To read with a deadline
	// that is over takes what is there, and waits for nothing.
	var b [1]byte
	_ = t.SetReadDeadline(past)
	n, err := t.Read(b[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && t.SetReadDeadline(until) == nil
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// fill reads once, into a buffer that grows to the largest head.
func (k *kept) fill() error {
	if k.r == k.w {
		k.r, k.w = 0, 0
	}
	switch {
	case k.buf == nil:
		// A call waits for its answer most of the time, and needs no memory for it.
		if k.woken = false; k.probe != nil {
			if err := k.probe.Read(k.wait); err != nil {
				return err
			}
		}
		k.buf = readBuffers.Get().(*[bufferSize]byte)[:]
	case k.w < len(k.buf):
	case k.r > 0:
		k.w = copy(k.buf, k.buf[k.r:k.w])
		k.r = 0
	default:
		k.buf = append(k.buf, make([]byte, len(k.buf))...)
	}
	for range 8 {
		n, err := k.link.Read(k.buf[k.w:])
		k.w += n
		if n > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) && k.w > k.r {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// Read implements io.Reader for bodies: what was read along with the head first.
func (k *kept) Read(p []byte) (int, error) {
	if k.r < k.w {
		n := copy(p, k.buf[k.r:k.w])
		k.r += n
		return n, nil
	}
	return k.link.Read(p)
}

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
