package zoho

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

// conn is a connection as net/http sees it. All that net/http writes is the
// bytes of requests (TLS is below), and each of them has to pass the gate of
// the call that holds the connection.
type conn struct {
	net.Conn
	wire *countingConn // what Conn writes to in the end
	gate atomic.Pointer[gate]
}

func (c *conn) Write(p []byte) (int, error) {
	g := c.gate.Load()
	if g == nil {
		return 0, errNoCall
	}
	if err := g.pass(c); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		g.failed(c, err)
	}
	return n, err
}

// gate stands between one call and the connections that net/http picks for it.
// It asks for the permit before the first byte, keeps a call that must not be
// repeated from leaving on a second connection, and knows whether anything left.
//
// net/http calls it from the goroutine that writes; Do closes it from its own.
type gate struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   bool
	permit func() error

	mu      sync.Mutex // held while the permit is asked, so that shut waits for its answer
	via     *conn      // the connection whose bytes were let through last
	base    int64      // via.wire's count before the first of them
	before  bool       // a byte may have left on a connection before via
	sent    bool       // a byte may have left, on any connection
	refusal error      // why no further connection gets anything
}

// attach makes g the gate of c, which net/http has just picked for the call.
func (g *gate) attach(c net.Conn) {
	if c, ok := c.(*conn); ok {
		c.gate.Store(g)
	}
}

// pass decides whether bytes may go out over c.
func (g *gate) pass(c *conn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.via == c {
		return nil // the rest of a request whose first bytes were let through
	}
	if g.refusal != nil {
		return g.refusal
	}
	err := context.Cause(g.ctx)
	switch {
	case err != nil:
	case g.once && g.via != nil:
		err = errSecondSend
	case g.once && g.permit != nil:
		if err = g.permit(); err == nil {
			err = context.Cause(g.ctx) // asking may have taken a while
		}
	}
	if err != nil {
		g.refusal = err
		g.cancel(err) // else net/http would try its next idle connection
		return err
	}
	g.via, g.base = c, c.wire.out.Load()
	g.before, g.sent = g.sent, true
	return nil
}

// failed notes that a write to c failed. Where the kernel took no byte at all
// since the call got c, nothing has left.
func (g *gate) failed(c *conn, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.via == c && c.wire.out.Load() == g.base {
		g.sent = g.before
		if g.once {
			g.refusal = err
		}
	}
}

// untouched reports whether no byte has left and the gate was never asked to
// refuse one, so that another connection may be tried.
func (g *gate) untouched() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.via == nil && g.refusal == nil && g.ctx.Err() == nil
}

// shut lets nothing more begin, and returns what the gate itself refused.
func (g *gate) shut() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	refusal := g.refusal
	if refusal == nil {
		g.refusal = errShut
	}
	return refusal
}

// left reports, after shut, whether a byte of the request may have left.
func (g *gate) left() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sent
}
