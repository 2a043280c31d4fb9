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
	raw    net.Conn // TCP
	link   net.Conn // what requests are written to: raw, or TLS over it
	where  place
	out    atomic.Int64    // bytes that the kernel took
	socket syscall.RawConn // of raw; nil where there is none
	look   func(uintptr) bool
	still  bool    // what look saw
	shut   bool    // to TLS, which gets no more than what it holds
	one    [1]byte // to see whether that is anything
	buf    []byte  // read and not used yet: buf[r:w]
	r, w   int
	body   bodyReader // of the answer that is being read
	since  time.Time  // when it became idle

	// Of flush.
	held     *[]byte // what is to be written; nil: what is written goes out at once
	transmit func(uintptr) bool
	begun    bool  // transmit was called
	failed   error // to write
}

// below is the connection below TLS, with the count.
type below struct {
	net.Conn
	k *kept
}

// Write writes p, or holds it for flush.
func (b below) Write(p []byte) (int, error) {
	if b.k.held != nil {
		*b.k.held = append(*b.k.held, p...)
		return len(p), nil
	}
	n, err := b.Conn.Write(p)
	b.k.out.Add(int64(n))
	return n, err
}

// Read reads, or has TLS know that it would have to wait.
func (b below) Read(p []byte) (int, error) {
	if b.k.shut {
		return 0, os.ErrDeadlineExceeded
	}
	return b.Conn.Read(p)
}

func newKept(raw net.Conn, where place) *kept {
	linger(raw, 0)
	k := &kept{raw: raw, where: where}
	k.link = below{raw, k}
	if k.socket = socketOf(raw); k.socket != nil {
		k.look = func(fd uintptr) bool {
			k.still = silent(fd)
			return true
		}
		k.transmit = func(fd uintptr) bool {
			if k.begun {
				return true // there is something to be read
			}
			k.begun = true
			k.failed = k.writeOut(fd)
			k.release()
			return k.failed != nil
		}
	}
	return k
}

// send writes a request and, where the system allows it, waits until there is
// something to be read. To write and to wait are one step there, which costs no
// look whether the answer has come meanwhile, and no memory while it comes. An
// error is one of writing: that of waiting is the reading's, too.
func (k *kept) send(head, body []byte) error {
	whole := buffers.Get().(*[]byte)
	*whole = append(append((*whole)[:0], head...), body...)
	if k.socket == nil {
		_, err := k.link.Write(*whole)
		buffers.Put(whole)
		return err
	}
	k.held = buffers.Get().(*[]byte)
	*k.held = (*k.held)[:0]
	defer k.release()
	_, err := k.link.Write(*whole)
	buffers.Put(whole)
	if err != nil {
		return err
	}
	k.begun, k.failed = false, nil
	if err := k.socket.Read(k.transmit); !k.begun {
		return err
	}
	return k.failed
}

// writeOut gives the kernel what is held.
func (k *kept) writeOut(fd uintptr) error {
	n, err := write(fd, *k.held)
	k.out.Add(int64(n))
	switch {
	case err != nil:
		return &net.OpError{Op: "write", Net: "tcp", Source: k.raw.LocalAddr(), Addr: k.raw.RemoteAddr(), Err: os.NewSyscallError("write", err)}
	case n < len(*k.held): // its buffer is full
		n, err = k.raw.Write((*k.held)[n:])
		k.out.Add(int64(n))
	}
	return err
}

// release gives back what was held.
func (k *kept) release() {
	if k.held != nil {
		buffers.Put(k.held)
		k.held = nil
	}
}

// close closes a connection that isn't used any more.
func (k *kept) close() {
	linger(k.raw, -1)
	_ = k.link.Close()
}

// abort closes a connection after a call that it isn't kept after. What the kernel
// still holds of the request is dropped. TLS has no last word, since that could wait.
func (k *kept) abort() { _ = k.raw.Close() }

// linger says what becomes of what the kernel holds when the connection is closed: 0
// drops it. Else the kernel would go on sending a request for minutes, also after its
// outcome was told or looked up. As that holds when the process is killed, too, it is
// what every connection begins with.
func linger(c net.Conn, seconds int) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(seconds)
	}
}

// readBuffers are those that answers are read into. A connection has one from
// when its answer begins until it is given back.
var readBuffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// cut ends whatever waits for the connection, and makes it useless.
func (k *kept) cut() { _ = k.raw.SetDeadline(past) }

// open reports whether the server has neither closed the connection nor said
// anything since the last answer: what it said would be taken for the answer to the
// next request. net/http has a goroutine for each connection that notices; a look
// right before the use notices as much, for a system call of about a microsecond.
func (k *kept) open() bool {
	if k.socket != nil && (k.socket.Read(k.look) != nil || !k.still) {
		return false
	}
	t, secure := k.link.(*tls.Conn)
	if !secure {
		return true
	}
	// TLS may hold what the socket doesn't any more.
	k.shut = true
	n, err := t.Read(k.one[:])
	k.shut = false
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
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
