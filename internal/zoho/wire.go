package zoho

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// trip is one request, as it goes out over one connection.
type trip struct {
	where place
	head  []byte // request line and headers, with the empty line
	body  []byte
	// until is when the exchange must be over. Zero: as its context says.
	until time.Time
	// permit, which may be nil, is asked right before the first byte.
	permit func() error
	// limit bounds the response's body, decompressed.
	limit int
	// left is false where it is proved that no byte of the request left.
	left bool
}

// reply is what came back. Its body may be missing although the status is
// there: then bodyErr says why.
type reply struct {
	head
	body    []byte
	memory  *[]byte // of body; nil where there is none
	bodyErr error
}

const (
	// oneWrite is up to what size head and body go to the kernel in one piece,
	// from the goroutine that then waits for the answer: no kernel's buffer is
	// smaller, so this waits for nobody. Longer ones are written beside the
	// reading, since a server may answer before it has read all.
	oneWrite = 16 << 10
	// lastWords is how long an answer is waited for after writing failed: a
	// server that refuses a body says so, then closes.
	lastWords = time.Second
)

// roundTrip sends the request once, over one connection, and reads the answer.
// Whatever happens, it doesn't begin a second time: that is what keeps an insert
// from being sent twice. Its errors may be shown.
func (c *Client) roundTrip(ctx context.Context, t *trip) (r reply, err error) {
	k, err := c.connection(ctx, t)
	if err != nil {
		return r, err
	}
	keep := false
	alone := c.interrupts.watch(ctx, k)
	defer func() {
		if c.interrupts.done(k, alone) && keep {
			c.pool.put(k)
		} else {
			k.abort()
		}
	}()
	if t.permit != nil {
		if err := t.permit(); err != nil {
			keep = true
			return r, err
		}
	}
	if cause := context.Cause(ctx); cause != nil { // asking may have taken a while
		return r, cause
	}
	if keep, err = k.exchange(ctx, t, &r); err != nil {
		return r, t.describe(ctx, err)
	}
	if r.bodyErr != nil && !errors.Is(r.bodyErr, ErrTooLarge) {
		r.bodyErr = t.describe(ctx, r.bodyErr)
	}
	return r, nil
}

func (t *trip) describe(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && context.Cause(ctx) == nil && !t.until.IsZero() {
		return ErrCallTimeout
	}
	return describe(ctx, err)
}

// connection returns a kept connection that is still open, or a new one,
// whose deadline is t.until. Its errors may be shown.
func (c *Client) connection(ctx context.Context, t *trip) (*kept, error) {
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	for {
		k := c.pool.get(t.where)
		if k == nil {
			break
		}
		if k.raw.SetDeadline(t.until) == nil && k.open() {
			return k, nil
		}
		k.close()
	}
	if !t.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, t.until, ErrCallTimeout)
		defer cancel()
	}
	k, err := c.dial.dial(ctx, t.where)
	if err != nil {
		return nil, describe(ctx, err)
	}
	return k, k.raw.SetDeadline(t.until)
}

// exchange writes the request and reads the answer. It reports whether the
// connection can be used again.
func (k *kept) exchange(ctx context.Context, t *trip, r *reply) (again bool, err error) {
	before := k.out.Load()
	if len(t.head)+len(t.body) > oneWrite {
		return k.exchangeLong(ctx, t, r)
	}
	failed := k.send(t.head, t.body)
	if failed != nil {
		// Where the kernel took no byte at all, nothing has left.
		if t.left = k.out.Load() != before; !t.left {
			return false, failed
		}
		t.hear(k, failed)
	}
	t.left = true
	again, err = k.read(r, t.limit)
	return again && failed == nil, r.after(failed, err)
}

// after returns err, or failed in its place: what went wrong when writing says
// more than what followed from it.
func (r *reply) after(failed, err error) error {
	if failed == nil {
		return err
	}
	if r.bodyErr != nil && !errors.Is(r.bodyErr, ErrTooLarge) {
		r.bodyErr = failed
	}
	if err != nil {
		return failed
	}
	return nil
}

// exchangeLong is exchange with the writing in a goroutine of its own.
func (k *kept) exchangeLong(ctx context.Context, t *trip, r *reply) (again bool, err error) {
	before := k.out.Load()
	written := make(chan error, 1)
	go func() {
		_, err := k.link.Write(t.head)
		if err == nil && len(t.body) > 0 {
			_, err = k.link.Write(t.body)
		}
		switch {
		case err == nil || ctx.Err() != nil:
		case k.out.Load() == before:
			k.cut() // nobody will answer
		default:
			t.hear(k, err)
		}
		written <- err
	}()
	again, err = k.read(r, t.limit)
	var failed error
	select {
	case failed = <-written:
	default: // answered before it was read, or no answer at all
		again = false
		k.cut()
		failed = <-written
	}
	t.left = k.out.Load() != before
	again = again && failed == nil
	if errors.Is(failed, os.ErrDeadlineExceeded) {
		failed = nil // the time is over, which the reading says, too; or it was cut above
	}
	return again, r.after(failed, err)
}

// hear has the answer waited for a little longer, after writing failed.
func (t *trip) hear(k *kept, failed error) {
	until := time.Now().Add(lastWords)
	if errors.Is(failed, os.ErrDeadlineExceeded) || !t.until.IsZero() && t.until.Before(until) {
		return // the deadline that there is comes first
	}
	_ = k.raw.SetReadDeadline(until)
}

// read reads one answer, past interim ones, to the last byte of its body. An
// error means that there is no status; one of the body is in r.
func (k *kept) read(r *reply, limit int) (again bool, err error) {
	for interim := 0; ; interim++ {
		text, err := k.readHead()
		if err != nil {
			return false, err
		}
		if err := r.parse(text); err != nil {
			return false, err
		}
		if r.status >= 200 {
			break
		}
		if r.status == http.StatusSwitchingProtocols || interim == maxInterim {
			return false, ErrBroken
		}
	}
	body := &k.body
	*body = bodyReader{k: k, left: r.length}
	switch {
	case r.status == http.StatusNoContent || r.status == http.StatusNotModified:
		body.left, r.length = 0, 0
	case r.chunked:
		r.length = -1
		body.chunks()
	case r.length < 0:
		r.close = true // the body goes on to the connection's end
	}
	if r.memory, r.bodyErr = readBody(body, r.length, gzipped(r.fields), limit); r.memory != nil {
		r.body = *r.memory
	}
	if r.length < 0 && !r.chunked && r.bodyErr == nil && cutOff(&r.head, r.body) {
		free(r.memory)
		r.body, r.memory, r.bodyErr = nil, nil, io.ErrUnexpectedEOF
	}
	body.release()
	return r.bodyErr == nil && body.ended && !r.close && k.r == k.w, nil
}

// cutOff reports whether a body that goes on to the connection's end isn't whole: only
// JSON tells.
func cutOff(h *head, body []byte) bool {
	kind, _ := field(h.fields, "Content-Type")
	return strings.HasPrefix(strings.ToLower(kind), "application/json") && !json.Valid(body)
}

// maxInterim is how many 1xx answers are passed over.
const maxInterim = 8

// buffers hold requests while they are written. What writes one gives it back
// when the kernel has taken it.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 2<<10)
	return &b
}}

// appendLine appends one header of a request, its value in parts, or says what is
// wrong with it.
func appendLine(dst []byte, name string, value ...string) ([]byte, error) {
	if !httpguts.ValidHeaderFieldName(name) {
		return nil, errHeaderName
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	for _, part := range value {
		if !httpguts.ValidHeaderFieldValue(part) {
			return nil, errHeaderValue
		}
		dst = append(dst, part...)
	}
	return append(dst, "\r\n"...), nil
}

// appendLength ends a head with the body's length, where there is one to tell.
func appendLength(dst []byte, method string, length int) []byte {
	if length > 0 || method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch {
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, int64(length), 10)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// roundTripHTTP is roundTrip for a request of net/http's making. Left is false where
// it is proved that no byte of it left.
func (c *Client) roundTripHTTP(ctx context.Context, req *http.Request, limit int) (r reply, left bool, err error) {
	var body []byte
	if req.Body != nil {
		if body, err = io.ReadAll(req.Body); err != nil {
			return r, false, err
		}
	}
	dst := append(make([]byte, 0, 1024), req.Method+" "+req.URL.RequestURI()+" HTTP/1.1\r\nHost: "+req.URL.Host+"\r\n"...)
	for name, values := range req.Header {
		for _, value := range values {
			if dst, err = appendLine(dst, name, value); err != nil {
				return r, false, err
			}
		}
	}
	dst = appendLength(dst, req.Method, len(body))
	if strings.ContainsAny(req.Method+req.URL.RequestURI()+req.URL.Host, " \r\n") {
		return r, false, ErrRequest
	}
	t := trip{where: place{req.URL.Scheme, req.URL.Host}, head: dst, body: body, limit: limit}
	r, err = c.roundTrip(ctx, &t)
	return r, t.left, err
}
